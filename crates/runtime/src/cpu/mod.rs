//! [`Cpu`]: programs on this machine's processors.
//!
//! It is given the arenas of its map: weights, KV pages, swap space (or a file), activations. The program's operations go
//! over all rows at once. A row's keys and values go to the pages that the block tables name, and everything else to
//! the program's buffers; only lists of rows are made for a step, which the reserve counts.

mod measure;
mod ops;

use std::ops::Range;

use plimsoll_kernels::{COLS_MAX, HEAD_MAX, Inputs, LATENT_MAX, Level, Pool, TAPS_MAX};
use plimsoll_kv::{BlockCopy, SwapOp};
use plimsoll_plan::{MemoryMap, Region};
use plimsoll_program::{Op, Program};
use plimsoll_schedule::{Step, Tables};
use plimsoll_units::{Bytes, DType, SizeOverflow};

use crate::arena::{Arena, ArenaError, Part};
use crate::backend::{Backend, BackendError, Inside, Measured, Peaks, Runner, Usage};
use crate::choose::Chooser;
use crate::collective::Collective;
use crate::swap::SwapSpace;

/// What the processors' program holds: an arena for each region of its map that has one.
#[derive(Debug)]
pub struct Memory {
    /// Weights, as the program lays them out.
    pub weights: Arena,
    /// Pages, the null page among them.
    pub pages: Arena,
    /// Places of pages that left.
    pub swap: SwapSpace,
    /// The program's buffers.
    pub activations: Arena,
}

impl Memory {
    /// Commits the arenas of a map, exactly, beside swap space.
    ///
    /// # Errors
    /// [`ArenaError::Memory`].
    pub fn commit(map: &MemoryMap, swap: SwapSpace) -> Result<Self, ArenaError> {
        Ok(Self {
            weights: Arena::new("weights", map.region(Region::Weights))?,
            pages: Arena::new("KV pages", map.region(Region::KvCache))?,
            swap,
            activations: Arena::new("activations", map.region(Region::Activations))?,
        })
    }
}

/// Why an executor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Memory.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// A size left 64 bits.
    #[error(transparent)]
    Size(#[from] SizeOverflow),
    /// A type of cached keys and values that no kernel reads.
    #[error("a KV cache of {0} cannot be served on the CPU: choose bf16, f16, f32, fp8 or int8")]
    KvType(DType),
    /// A type of cached latents that no kernel reads.
    #[error(
        "latents have no heads to scale by, so they cannot be cached as {0}: choose bf16, f16, f32 or fp8"
    )]
    LatentType(DType),
    /// An arena of another size than the program's.
    #[error("{region}: {committed} were committed, and the program has {needed}")]
    Map {
        /// Its region.
        region: Region,
        /// Its size.
        committed: Bytes,
        /// What the program needs.
        needed: Bytes,
    },
    /// Heads that no kernel has room for.
    #[error(
        "attention heads of {0} elements cannot be served on the CPU yet: at most {HEAD_MAX} can"
    )]
    Head(u64),
    /// Latents that no kernel has room for.
    #[error("latents of {0} elements cannot be served on the CPU yet: at most {LATENT_MAX} can")]
    Latent(u64),
    /// A recurrent state that no kernel has room for.
    #[error(
        "recurrent states of {cols} columns behind convolutions of {taps} taps cannot be served on the CPU yet: at most {COLS_MAX} and {TAPS_MAX} can"
    )]
    State {
        /// Columns of a head's state.
        cols: u64,
        /// Taps of a convolution.
        taps: u64,
    },
    /// More query heads for each KV head than a GPU's kernels have room for.
    #[error("{0} query heads that share one KV head cannot be served on a GPU yet: at most 32 can")]
    Group(u64),
    /// What a device could not do.
    #[error(transparent)]
    Device(#[from] BackendError),
    /// A thread.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Whether the kernels of this machine's processors can carry `program` out: known before any memory is taken.
///
/// # Errors
/// [`StartError::KvType`], [`StartError::LatentType`], [`StartError::Head`], [`StartError::Latent`] or
/// [`StartError::State`].
pub fn check(program: &Program) -> Result<(), StartError> {
    let kv = program.kv_dtype;
    if !matches!(
        kv,
        DType::Bf16 | DType::F16 | DType::F32 | DType::F8E4m3 | DType::I8
    ) {
        return Err(StartError::KvType(kv));
    }
    let (mut cols, mut taps) = (0, 0);
    for op in &program.ops {
        match op {
            Op::Attention(a) if a.k_dim.max(a.v_dim) > HEAD_MAX as u64 => {
                return Err(StartError::Head(a.k_dim.max(a.v_dim)));
            }
            Op::Latent(_) if kv == DType::I8 => return Err(StartError::LatentType(kv)),
            Op::Latent(a) if a.rank.saturating_add(a.rope_dim) > LATENT_MAX as u64 => {
                return Err(StartError::Latent(a.rank.saturating_add(a.rope_dim)));
            }
            Op::Convolve(c) => taps = taps.max(c.taps),
            Op::Scan(s) => cols = cols.max(s.cols),
            _ => {}
        }
    }
    if cols > COLS_MAX as u64 || taps > TAPS_MAX as u64 {
        return Err(StartError::State { cols, taps });
    }
    Ok(())
}

/// This machine's processors.
#[derive(Debug)]
pub struct Cpu {
    program: Program,
    weights: Arena,
    pages: Arena,
    swap: SwapSpace,
    activations: Arena,
    /// Positions of a step's tokens.
    positions: Vec<u32>,
    level: Level,
    inputs: Inputs,
    poison: bool,
    /// Where it meets the other ranks, if it is one of several.
    seat: Option<Box<dyn Collective>>,
}

/// Steps on this machine's processors.
pub type CpuExecutor<S> = Runner<Cpu, S>;

impl<S: Chooser> CpuExecutor<S> {
    /// An executor of `program` on `threads` threads.
    ///
    /// # Errors
    /// Where memory is not to be had, or a thread cannot be started.
    pub fn on_processors(
        program: Program,
        memory: Memory,
        threads: usize,
        level: Level,
        inputs: Inputs,
        chooser: S,
    ) -> Result<Self, StartError> {
        let cpu = Cpu::new(program, memory, level, inputs)?;
        Ok(Self::new(cpu, Pool::new(threads)?, chooser))
    }
}

/// Whether the arenas of `program` have the sizes that it says.
///
/// # Errors
/// [`StartError::Map`].
pub(crate) fn check_sizes(
    program: &Program,
    committed: [(Region, Bytes); 4],
) -> Result<(), StartError> {
    let page = program.geometry.page;
    for (region, committed) in committed {
        let needed = match region {
            Region::Weights => program.weight_bytes,
            Region::Activations => program.activation_bytes,
            _ => page.times(committed.whole(page))?,
        };
        if committed != needed {
            return Err(StartError::Map {
                region,
                committed,
                needed,
            });
        }
    }
    Ok(())
}

impl Cpu {
    /// `program` in the arenas of its map.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(
        program: Program,
        memory: Memory,
        level: Level,
        inputs: Inputs,
    ) -> Result<Self, StartError> {
        check_sizes(
            &program,
            [
                (Region::Weights, memory.weights.bytes()),
                (Region::KvCache, memory.pages.bytes()),
                (Region::Swap, memory.swap.bytes()),
                (Region::Activations, memory.activations.bytes()),
            ],
        )?;
        check(&program)?;
        for w in &program.weights {
            // Whatever the program asks for later is there.
            let len = w.layout.bytes()?.get() / 4;
            let offset = w.offset.get();
            memory.weights.find::<u32>(Part { offset, len })?;
        }
        let tokens = usize::try_from(program.tokens).unwrap_or(usize::MAX);
        Ok(Self {
            weights: memory.weights,
            pages: memory.pages,
            swap: memory.swap,
            activations: memory.activations,
            positions: Vec::with_capacity(tokens),
            program,
            level,
            inputs,
            poison: false,
            seat: None,
        })
    }

    /// The same as one of several ranks.
    #[must_use]
    pub fn seated(self, seat: Box<dyn Collective>) -> Self {
        Self {
            seat: Some(seat),
            ..self
        }
    }

    /// From now on pages that went to swap space are filled with NaN: for tests without a prefix cache, in which pages
    /// that went are still found.
    pub const fn poison(&mut self) {
        self.poison = true;
    }

    /// Pages, as they lie: for tests that damage them.
    pub fn pages_mut(&mut self) -> &mut Arena {
        &mut self.pages
    }

    fn page(&self, n: u32) -> Part {
        let len = self.program.geometry.page.get();
        Part {
            offset: u64::from(n) * len,
            len,
        }
    }
}

impl Backend for Cpu {
    fn program(&self) -> &Program {
        &self.program
    }

    fn places(&self) -> usize {
        let places = self.swap.bytes().whole(self.program.geometry.page);
        usize::try_from(places).unwrap_or(usize::MAX)
    }

    fn swap_out(&mut self, pool: &mut Pool, outs: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        let parts = outs
            .iter()
            .map(|s| (self.page(s.slot), self.page(s.page.0)));
        let parts: Vec<(Part, Part)> = parts.collect();
        let pages = parts
            .iter()
            .map(|(to, from)| Ok((to.offset, self.pages.view(*from)?)))
            .collect::<Result<_, ArenaError>>()?;
        let lost = self.swap.write(pool, pages)?;
        if self.poison {
            for (_, s) in outs.iter().enumerate().filter(|(i, _)| !lost.contains(i)) {
                // NaN in every type.
                let part = self.page(s.page.0);
                self.pages.view_mut::<u8>(part)?.fill(0xff);
            }
        }
        Ok(lost)
    }

    fn swap_in(&mut self, pool: &mut Pool, ins: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        let parts: Vec<Part> = ins.iter().map(|s| self.page(s.page.0)).collect();
        let places: Vec<u64> = ins.iter().map(|s| self.page(s.slot).offset).collect();
        let pages = self.pages.split_mut(&parts)?;
        Ok(self
            .swap
            .read(pool, places.into_iter().zip(pages).collect())?)
    }

    fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        for c in copies {
            let parts = [self.page(c.from.0), self.page(c.to.0)];
            let [from, to] = self.pages.views_mut::<u8, 2>(parts)?;
            to.copy_from_slice(from);
        }
        Ok(())
    }

    fn begin(&mut self, step: &Step, tables: &Tables) -> Result<(), BackendError> {
        self.mark_pages(step, tables);
        positions(&self.program, step, &mut self.positions)
    }

    fn run(
        &mut self,
        pool: &mut Pool,
        step: &Step,
        tables: &Tables,
        ops: Range<usize>,
        wanted: &[u32],
    ) -> Result<(), BackendError> {
        self.walk(pool, step, tables, ops, wanted)
    }

    fn logits(&mut self, rows: Range<usize>) -> Result<&mut [f32], BackendError> {
        let buffer = self.program.buffer(self.program.logits);
        let at = ops::range(buffer, rows.start).end..ops::range(buffer, rows.end).end;
        let part = Part {
            offset: 4 * at.start as u64,
            len: at.len() as u64,
        };
        // It was written by the program's last operation.
        Ok(self.activations.view_mut::<f32>(part)?)
    }

    fn usage(&self) -> Vec<Usage> {
        let arena = |region, arena: &Arena| Usage {
            region,
            committed: arena.bytes(),
            high_water: arena.high_water(),
        };
        vec![
            arena(Region::Weights, &self.weights),
            arena(Region::KvCache, &self.pages),
            arena(Region::Activations, &self.activations),
            swap_usage(&self.swap),
        ]
    }

    fn measure(&mut self, pool: &mut Pool) -> Result<Measured, BackendError> {
        self.measured(pool)
    }

    fn peaks(&mut self, pool: &mut Pool) -> Result<Peaks, BackendError> {
        Ok(self.bounds(pool))
    }
}

impl Cpu {
    fn arena(&mut self, region: Region) -> Result<&mut Arena, BackendError> {
        match region {
            Region::Weights => Ok(&mut self.weights),
            Region::KvCache => Ok(&mut self.pages),
            Region::Activations => Ok(&mut self.activations),
            other => Err(BackendError::Step(format!("{other} is no arena of it"))),
        }
    }
}

impl Inside for Cpu {
    fn read(&mut self, region: Region, from: u64, bytes: &mut [u8]) -> Result<(), BackendError> {
        let (offset, len) = (from, bytes.len() as u64);
        bytes.copy_from_slice(self.arena(region)?.view(Part { offset, len })?);
        Ok(())
    }

    fn write(&mut self, region: Region, from: u64, bytes: &[u8]) -> Result<(), BackendError> {
        let (offset, len) = (from, bytes.len() as u64);
        let part = self.arena(region)?.view_mut(Part { offset, len })?;
        part.copy_from_slice(bytes);
        Ok(())
    }
}

/// What swap space took so far.
pub(crate) fn swap_usage(swap: &SwapSpace) -> Usage {
    Usage {
        region: if swap.is_file() {
            Region::SwapFile
        } else {
            Region::Swap
        },
        committed: swap.bytes(),
        high_water: swap.high_water(),
    }
}

/// Checks that a step fits a program, and where its tokens stand.
pub(crate) fn positions(
    program: &Program,
    step: &Step,
    positions: &mut Vec<u32>,
) -> Result<(), BackendError> {
    if step.tokens.len() as u64 > program.tokens {
        return Err(BackendError::Step(format!(
            "{} tokens, for which at most {} were planned",
            step.tokens.len(),
            program.tokens,
        )));
    }
    if step.tokens.iter().any(|t| u64::from(*t) >= program.vocab) {
        return Err(BackendError::Step(
            "a token outside the vocabulary".to_owned(),
        ));
    }
    positions.clear();
    positions.resize(step.tokens.len(), 0);
    for r in &step.rows {
        let tokens = r.tokens.start as usize..r.tokens.end as usize;
        (r.start..)
            .zip(&mut positions[tokens])
            .for_each(|(p, at)| *at = p);
    }
    Ok(())
}
