//! What this machine does, measured: bounds for benchmarks, and what the scheduler believes at the start.

use std::time::Duration;

use plimsoll_kernels::Pool;
use plimsoll_program::{Op, Rows, WeightLayout};

use super::Cpu;
use crate::arena::{ArenaError, Part};
use crate::backend::{BackendError, Measured, Peaks};

/// Time of each measure of a bound.
const BOUND: Duration = Duration::from_millis(150);
/// Time of each measure before the start.
const BRIEF: Duration = Duration::from_millis(50);
/// Weights that are read then: more than caches hold.
const READ_WORDS: u64 = 64 << 20;
/// Pages that are moved then, each way: as many as a victim has.
const PAGES: u64 = 64;
/// Tokens that are computed then: more do not go faster.
const TOKENS: u64 = 64;

impl Cpu {
    /// Measures what the processors can do, in some tenths of a second.
    pub(super) fn bounds(&mut self, pool: &mut Pool) -> Peaks {
        Peaks {
            read_bytes_per_s: self.reads(pool, u64::MAX, BOUND),
            flops_per_s: plimsoll_kernels::flops_per_s(pool, BOUND, self.level, self.inputs),
        }
    }

    /// Measures in less than 0.3 s, before the first step, what the executor does: with its own threads, pages, swap
    /// space and weights. Leaves no mark on the arenas.
    ///
    /// # Errors
    /// [`BackendError`] where the program is not that of the arenas.
    pub(super) fn measured(&mut self, pool: &mut Pool) -> Result<Measured, BackendError> {
        let measured = Measured {
            read_bytes_per_s: self.reads(pool, READ_WORDS, BRIEF),
            swap_bytes_per_s: self.moves(pool)?,
            flops_per_s: self.computes(pool),
        };
        self.pages.unmark();
        self.swap.unmark();
        Ok(measured)
    }

    fn reads(&mut self, pool: &mut Pool, most: u64, time: Duration) -> u64 {
        let all = Part {
            offset: 0,
            len: (self.weights.bytes().get() / 4).min(most),
        };
        // An arena lends its whole length, so there is always something to read.
        let words = self.weights.view::<u32>(all).unwrap_or(&[]);
        plimsoll_kernels::read_bytes_per_s(pool, time, words)
    }

    /// Pages go out and come back, as in a step.
    fn moves(&mut self, pool: &mut Pool) -> Result<u64, ArenaError> {
        let len = self.program.geometry.page.get();
        let n = PAGES
            .min(self.pages.bytes().get() / len)
            .min(self.swap.bytes().get() / len);
        let parts: Vec<Part> = (0..n)
            .map(|i| Part {
                offset: i * len,
                len,
            })
            .collect();
        let mut done = Ok(true);
        let per_s = plimsoll_kernels::best_per_s(BRIEF, 2 * n * len, || {
            done = self.there_and_back(pool, &parts);
        });
        // What fails is not fast.
        Ok(if done? { per_s } else { 0 })
    }

    /// The first pages to the first places and back; whether all arrived.
    fn there_and_back(&mut self, pool: &mut Pool, parts: &[Part]) -> Result<bool, ArenaError> {
        let pages = parts
            .iter()
            .map(|p| Ok((p.offset, self.pages.view(*p)?)))
            .collect::<Result<_, ArenaError>>()?;
        let lost = self.swap.write(pool, pages)?;
        let pages = self.pages.split_mut(parts)?.into_iter();
        let pages = parts.iter().map(|p| p.offset).zip(pages).collect();
        let more = self.swap.read(pool, pages)?;
        Ok(lost.is_empty() && more.is_empty())
    }

    /// The largest matrix that every token passes.
    fn computes(&mut self, pool: &mut Pool) -> Option<u64> {
        let size = |op: &Op| {
            let Op::Linear { weight, out, .. } = op else {
                return None;
            };
            let each = self.program.buffer(*out).rows == Rows::Tokens;
            match self.program.weight(*weight).layout {
                WeightLayout::Packed { n, k, .. } if each => Some(n.saturating_mul(k)),
                _ => None,
            }
        };
        let ops = self.program.ops.iter().zip(&self.program.scratch);
        let (params, op, scratch) = ops
            .filter_map(|(op, scratch)| Some((size(op)?, op, *scratch)))
            .max_by_key(|x| x.0)?;
        let op = op.clone();
        let tokens = TOKENS.min(self.program.tokens);
        let flops = params.saturating_mul(2).saturating_mul(tokens);
        let n = usize::try_from(tokens).unwrap_or(1);
        Some(plimsoll_kernels::best_per_s(BRIEF, flops, || {
            self.alone(pool, &op, scratch, n);
        }))
    }
}
