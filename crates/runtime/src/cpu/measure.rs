//! What this machine does, measured: bounds for benchmarks, and what the scheduler believes at the start.

use std::time::Duration;

use plimsoll_program::{Op, Rows, WeightLayout};

use super::CpuExecutor;
use crate::arena::{ArenaError, Part};
use crate::choose::Chooser;

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

/// What the processors can do at most, by their own measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peaks {
    /// Reading the weights, in bytes per second.
    pub read_bytes_per_s: u64,
    /// Operations per second, two for each multiply-add of bf16 weights with inputs as the executor has them.
    pub flops_per_s: u64,
}

/// What decides how a victim had better give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Reading weights, in bytes per second.
    pub read_bytes_per_s: u64,
    /// Pages to swap space and back, in bytes moved per second.
    pub swap_bytes_per_s: u64,
    /// Operations of the largest linear layer with many rows, per second; nothing where there is none.
    pub flops_per_s: Option<u64>,
}

impl<S: Chooser> CpuExecutor<S> {
    /// Measures what the processors can do, in some tenths of a second.
    pub fn peaks(&mut self) -> Peaks {
        Peaks {
            read_bytes_per_s: self.reads(u64::MAX, BOUND),
            flops_per_s: plimsoll_kernels::flops_per_s(
                &mut self.pool,
                BOUND,
                self.level,
                self.inputs,
            ),
        }
    }

    /// Measures in less than 0.3 s, before the first step, what the executor does: with its own threads, pages, swap
    /// space and weights. Leaves no mark on the arenas.
    ///
    /// # Errors
    /// [`ArenaError`] where the program is not that of the arenas.
    pub fn measure(&mut self) -> Result<Measured, ArenaError> {
        let measured = Measured {
            read_bytes_per_s: self.reads(READ_WORDS, BRIEF),
            swap_bytes_per_s: self.moves()?,
            flops_per_s: self.computes(),
        };
        self.pages.unmark();
        self.swap.unmark();
        Ok(measured)
    }

    fn reads(&mut self, most: u64, time: Duration) -> u64 {
        let all = Part {
            offset: 0,
            len: (self.weights.bytes().get() / 4).min(most),
        };
        // An arena lends its whole length, so there is always something to read.
        let words = self.weights.view::<u32>(all).unwrap_or(&[]);
        plimsoll_kernels::read_bytes_per_s(&mut self.pool, time, words)
    }

    /// Pages go out and come back, as in a step.
    fn moves(&mut self) -> Result<u64, ArenaError> {
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
            done = self.there_and_back(&parts);
        });
        // What fails is not fast.
        Ok(if done? { per_s } else { 0 })
    }

    /// The first pages to the first places and back; whether all arrived.
    fn there_and_back(&mut self, parts: &[Part]) -> Result<bool, ArenaError> {
        let pages = parts
            .iter()
            .map(|p| Ok((p.offset, self.pages.view(*p)?)))
            .collect::<Result<_, ArenaError>>()?;
        let lost = self.swap.write(&mut self.pool, pages)?;
        let pages = self.pages.split_mut(parts)?.into_iter();
        let pages = parts.iter().map(|p| p.offset).zip(pages).collect();
        let more = self.swap.read(&mut self.pool, pages)?;
        Ok(lost.is_empty() && more.is_empty())
    }

    /// The largest matrix that every token passes.
    fn computes(&mut self) -> Option<u64> {
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
            self.alone(&op, scratch, n);
        }))
    }
}
