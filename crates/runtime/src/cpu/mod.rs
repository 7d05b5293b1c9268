//! [`CpuExecutor`]: steps on this machine's processors.
//!
//! It is given the arenas of its map: weights, KV pages, swap space, activations. A step moves pages first, as it
//! says, then walks the program's operations over all rows at once. A row's keys and values go to the pages that
//! the block tables name, and everything else to the program's buffers; only lists of rows are made for a step, which
//! the reserve counts.

mod ops;
mod tables;

use std::time::Instant;

use plimsoll_kernels::{COLS_MAX, HEAD_MAX, LATENT_MAX, Level, Pool, TAPS_MAX};
use plimsoll_plan::{MemoryMap, Region};
use plimsoll_program::{Op, Program};
use plimsoll_schedule::{Executor, ExecutorError, Output, RowOutput, Step, StepOutput, Ticket};
use plimsoll_units::{Bytes, DType, Nanos, SeqId, SizeOverflow};

use self::tables::Tables;
use crate::arena::{Arena, ArenaError, Part};
use crate::choose::Chooser;

/// What an executor holds: an arena for each region of its map that has one.
#[derive(Debug)]
pub struct Memory {
    /// Weights, as the program lays them out.
    pub weights: Arena,
    /// Pages, the null page among them.
    pub pages: Arena,
    /// Places of pages in swap space.
    pub swap: Arena,
    /// The program's buffers.
    pub activations: Arena,
}

impl Memory {
    /// Commits the arenas of a map, exactly.
    ///
    /// # Errors
    /// [`ArenaError::Memory`].
    pub fn commit(map: &MemoryMap) -> Result<Self, ArenaError> {
        Ok(Self {
            weights: Arena::new("weights", map.region(Region::Weights))?,
            pages: Arena::new("KV pages", map.region(Region::KvCache))?,
            swap: Arena::new("swap space", map.region(Region::Swap))?,
            activations: Arena::new("activations", map.region(Region::Activations))?,
        })
    }
}

/// What a region took, as its allocator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Which.
    pub region: Region,
    /// What was committed at start.
    pub committed: Bytes,
    /// The end of the last byte that was ever used.
    pub high_water: Bytes,
}

/// What the processors can do at most, by their own measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peaks {
    /// Reading the weights, in bytes per second.
    pub read_bytes_per_s: u64,
    /// f32 fused multiply-adds, two operations each, per second.
    pub flops_per_s: u64,
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
    #[error("a KV cache of {0} cannot be served on the CPU yet: choose bf16 or f32")]
    KvType(DType),
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
    /// A thread.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Whether the kernels of this machine's processors can carry `program` out: known before any memory is taken.
///
/// # Errors
/// [`StartError::KvType`], [`StartError::Head`], [`StartError::Latent`] or [`StartError::State`].
pub fn check(program: &Program) -> Result<(), StartError> {
    if !matches!(program.kv_dtype, DType::Bf16 | DType::F32) {
        return Err(StartError::KvType(program.kv_dtype));
    }
    let (mut cols, mut taps) = (0, 0);
    for op in &program.ops {
        match op {
            Op::Attention(a) if a.k_dim.max(a.v_dim) > HEAD_MAX as u64 => {
                return Err(StartError::Head(a.k_dim.max(a.v_dim)));
            }
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

/// Steps on this machine's processors.
#[derive(Debug)]
pub struct CpuExecutor<S> {
    program: Program,
    weights: Arena,
    pages: Arena,
    swap: Arena,
    generations: Vec<u32>,
    activations: Arena,
    /// Positions of a step's tokens.
    positions: Vec<u32>,
    /// A step's tokens whose logits are wanted.
    wanted: Vec<u32>,
    pool: Pool,
    level: Level,
    tables: Tables,
    chooser: S,
    poison: bool,
    output: Option<StepOutput>,
}

impl<S: Chooser> CpuExecutor<S> {
    /// An executor of `program`.
    ///
    /// # Errors
    /// Where memory is not to be had, or a thread cannot be started.
    pub fn new(
        program: Program,
        memory: Memory,
        threads: usize,
        level: Level,
        chooser: S,
    ) -> Result<Self, StartError> {
        let page = program.geometry.page;
        let whole = |arena: &Arena| page.times(arena.bytes().whole(page));
        for (region, arena, needed) in [
            (Region::Weights, &memory.weights, program.weight_bytes),
            (Region::KvCache, &memory.pages, whole(&memory.pages)?),
            (Region::Swap, &memory.swap, whole(&memory.swap)?),
            (
                Region::Activations,
                &memory.activations,
                program.activation_bytes,
            ),
        ] {
            let committed = arena.bytes();
            if committed != needed {
                return Err(StartError::Map {
                    region,
                    committed,
                    needed,
                });
            }
        }
        let places = usize::try_from(memory.swap.bytes().whole(page)).unwrap_or(usize::MAX);
        let tokens = usize::try_from(program.tokens).unwrap_or(usize::MAX);
        check(&program)?;
        for w in &program.weights {
            // Whatever the program asks for later is there.
            let len = w.layout.bytes()?.get() / 4;
            let offset = w.offset.get();
            memory.weights.find::<u32>(Part { offset, len })?;
        }
        Ok(Self {
            pages: memory.pages,
            swap: memory.swap,
            generations: vec![0; places],
            activations: memory.activations,
            positions: Vec::with_capacity(tokens),
            wanted: Vec::with_capacity(tokens),
            tables: Tables::new(program.geometry.groups.len()),
            weights: memory.weights,
            program,
            pool: Pool::new(threads)?,
            level,
            chooser,
            poison: false,
            output: None,
        })
    }

    /// Who chooses tokens.
    pub const fn chooser(&self) -> &S {
        &self.chooser
    }

    /// Who chooses tokens.
    pub const fn chooser_mut(&mut self) -> &mut S {
        &mut self.chooser
    }

    /// The program.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Measures what the processors can do, in some tenths of a second.
    pub fn peaks(&mut self) -> Peaks {
        let all = Part {
            offset: 0,
            len: self.weights.bytes().get() / 4,
        };
        // An arena lends its whole length, so there is always something to read.
        let words = self.weights.view::<u32>(all).unwrap_or(&[]);
        Peaks {
            read_bytes_per_s: plimsoll_kernels::read_bytes_per_s(&mut self.pool, words),
            flops_per_s: plimsoll_kernels::flops_per_s(&mut self.pool, self.level),
        }
    }

    /// What each region took so far, in the order of the map.
    pub fn usage(&self) -> Vec<Usage> {
        let arena = |region, arena: &Arena| Usage {
            region,
            committed: arena.bytes(),
            high_water: arena.high_water(),
        };
        let sampling = self.chooser.buffers();
        vec![
            arena(Region::Weights, &self.weights),
            arena(Region::KvCache, &self.pages),
            arena(Region::Activations, &self.activations),
            Usage {
                region: Region::Workspace,
                committed: sampling.0,
                high_water: sampling.1,
            },
            arena(Region::Swap, &self.swap),
        ]
    }

    /// A sequence's pages of one group, by block.
    pub fn table(&self, seq: SeqId, group: usize) -> &[u32] {
        self.tables.get(seq, group)
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

    fn move_pages(&mut self, step: &Step) -> Result<(), ArenaError> {
        let len = self.program.geometry.page.get();
        let at = |n: u32| Part {
            offset: u64::from(n) * len,
            len,
        };
        for s in &step.kv.swaps_out {
            let to = self.swap.view_mut::<u8>(at(s.slot))?;
            to.copy_from_slice(self.pages.view(at(s.page.0))?);
            self.generations[s.slot as usize] = s.generation;
            if self.poison {
                // NaN in every type.
                self.pages.view_mut::<u8>(at(s.page.0))?.fill(0xff);
            }
        }
        for s in &step.kv.swaps_in {
            let to = self.pages.view_mut::<u8>(at(s.page.0))?;
            to.copy_from_slice(self.swap.view(at(s.slot))?);
        }
        for c in &step.kv.copies {
            let [from, to] = self.pages.views_mut::<u8, 2>([at(c.from.0), at(c.to.0)])?;
            to.copy_from_slice(from);
        }
        Ok(())
    }

    /// Tags of transfers in that would bring what another swap has left there.
    fn stale(&self, step: &Step) -> Vec<u64> {
        step.kv
            .swaps_in
            .iter()
            .filter(|s| self.generations[s.slot as usize] != s.generation)
            .map(|s| s.tag)
            .collect()
    }

    fn sample(&mut self, step: &Step, wanted: &[u32]) -> Vec<RowOutput> {
        let vocab = usize::try_from(self.program.vocab).unwrap_or(usize::MAX);
        let at = ops::range(self.program.buffer(self.program.logits), wanted.len());
        let part = Part {
            offset: 4 * at.start as u64,
            len: at.len() as u64,
        };
        // It was written by the program's last operation.
        let logits = self.activations.view_mut::<f32>(part).unwrap_or_default();
        let all = self.chooser.wants_all();
        let mut next = 0;
        let mut out = Vec::with_capacity(step.rows.len());
        for row in &step.rows {
            let n = row.tokens.end - row.tokens.start;
            if all {
                for i in 0..n {
                    let logits = &logits[(next + i as usize) * vocab..][..vocab];
                    self.chooser.position(row, row.start + i, logits);
                }
                next += n as usize - 1;
            }
            if row.output == Output::None {
                next += usize::from(all);
                out.push(RowOutput::None);
                continue;
            }
            let logits = &mut logits[next * vocab..][..vocab];
            out.push(self.chooser.row(row, row.start + n, logits));
            next += 1;
        }
        out
    }
}

impl<S: Chooser> Executor for CpuExecutor<S> {
    fn submit(&mut self, step: &Step) -> Result<Ticket, ExecutorError> {
        let began = Instant::now();
        self.tables.apply(step, |e| self.chooser.event(e));
        let failed_transfers = self.stale(step);
        let failed = |reason| ExecutorError {
            step: step.number,
            reason,
        };
        self.move_pages(step).map_err(|e| failed(e.to_string()))?;
        let all = self.chooser.wants_all();
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.clear();
        for row in &step.rows {
            let tokens = row.tokens.start..row.tokens.end;
            self.chooser.tokens(
                row,
                &step.tokens[tokens.start as usize..tokens.end as usize],
            );
            if all {
                wanted.extend(tokens);
            } else if row.output != Output::None {
                wanted.push(tokens.end - 1);
            }
        }
        let ran = self.run(step, &wanted).map_err(failed);
        let rows = ran.map(|()| self.sample(step, &wanted));
        self.wanted = wanted;
        let rows = rows?;
        let elapsed = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.output = Some(StepOutput {
            rows,
            failed_transfers,
            elapsed: Nanos(elapsed),
        });
        Ok(Ticket(step.number))
    }

    fn complete(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        self.output.take().ok_or_else(|| ExecutorError {
            step: ticket.0,
            reason: "the step was not submitted".to_owned(),
        })
    }
}
