//! [`CpuExecutor`]: steps on this machine's processors.
//!
//! It is given the arenas of its map: weights, KV pages, swap space (or a file), activations. A step moves pages first, as it
//! says, then walks the program's operations over all rows at once. A row's keys and values go to the pages that
//! the block tables name, and everything else to the program's buffers; only lists of rows are made for a step, which
//! the reserve counts.

mod measure;
mod ops;

use std::time::{Duration, Instant};

use plimsoll_kernels::{COLS_MAX, HEAD_MAX, Inputs, LATENT_MAX, Level, Pool, TAPS_MAX};
use plimsoll_plan::{MemoryMap, Region};
use plimsoll_program::{Op, Program};
use plimsoll_schedule::{
    Executor, ExecutorError, Output, RowOutput, Step, StepOutput, Tables, Ticket,
};
use plimsoll_units::{Bytes, DType, Nanos, SizeOverflow};

pub use self::measure::{Measured, Peaks};
use crate::arena::{Arena, ArenaError, Part};
use crate::choose::{Asking, Chooser};
use crate::swap::SwapSpace;

/// What an executor holds: an arena for each region of its map that has one.
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
    /// Commits the arenas of a map, exactly; a swap file is the caller's to make.
    ///
    /// # Errors
    /// [`ArenaError::Memory`].
    pub fn commit(map: &MemoryMap) -> Result<Self, ArenaError> {
        Ok(Self {
            weights: Arena::new("weights", map.region(Region::Weights))?,
            pages: Arena::new("KV pages", map.region(Region::KvCache))?,
            swap: Arena::new("swap space", map.region(Region::Swap))?.into(),
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

/// Pages that went to swap space and came back, and the time it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Pages, both ways.
    pub pages: u64,
    /// Time.
    pub time: Nanos,
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
    #[error("a KV cache of {0} cannot be served on the CPU: choose bf16, f16, f32 or int8")]
    KvType(DType),
    /// A type of cached latents that no kernel reads.
    #[error(
        "latents have no heads to scale by, so they cannot be cached as {0}: choose bf16, f16 or f32"
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
    if !matches!(kv, DType::Bf16 | DType::F16 | DType::F32 | DType::I8) {
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

/// Steps on this machine's processors.
#[derive(Debug)]
pub struct CpuExecutor<S> {
    program: Program,
    weights: Arena,
    pages: Arena,
    swap: SwapSpace,
    moved: Moved,
    generations: Vec<u32>,
    activations: Arena,
    /// Positions of a step's tokens.
    positions: Vec<u32>,
    /// A step's tokens whose logits are wanted.
    wanted: Vec<u32>,
    pool: Pool,
    level: Level,
    inputs: Inputs,
    tables: Tables,
    chooser: S,
    poison: bool,
    notes_tables: bool,
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
        inputs: Inputs,
        chooser: S,
    ) -> Result<Self, StartError> {
        let page = program.geometry.page;
        let whole = |committed: Bytes| page.times(committed.whole(page));
        let (pages, swap) = (memory.pages.bytes(), memory.swap.bytes());
        let activations = memory.activations.bytes();
        for (region, committed, needed) in [
            (
                Region::Weights,
                memory.weights.bytes(),
                program.weight_bytes,
            ),
            (Region::KvCache, pages, whole(pages)?),
            (Region::Swap, swap, whole(swap)?),
            (Region::Activations, activations, program.activation_bytes),
        ] {
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
            moved: Moved::default(),
            generations: vec![0; places],
            activations: memory.activations,
            positions: Vec::with_capacity(tokens),
            wanted: Vec::with_capacity(tokens),
            tables: Tables::new(program.geometry.groups.len()),
            weights: memory.weights,
            program,
            pool: Pool::new(threads)?,
            level,
            inputs,
            chooser,
            poison: false,
            notes_tables: false,
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

    /// What went to swap space and came back so far.
    pub const fn moved(&self) -> Moved {
        self.moved
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
            Usage {
                region: if self.swap.is_file() {
                    Region::SwapFile
                } else {
                    Region::Swap
                },
                committed: self.swap.bytes(),
                high_water: self.swap.high_water(),
            },
        ]
    }

    /// From now on a digest of the block tables that rows are computed by is kept.
    pub const fn note_tables(&mut self) {
        self.notes_tables = true;
    }

    /// Block tables, and their digest where they are [noted](Self::note_tables).
    pub const fn tables(&self) -> &Tables {
        &self.tables
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

    /// Moves and copies the step's pages; tags of transfers that failed.
    fn move_pages(&mut self, step: &Step) -> Result<Vec<u64>, ArenaError> {
        let began = Instant::now();
        let len = self.program.geometry.page.get();
        let first = |n: u32| u64::from(n) * len;
        let at = |n: u32| Part {
            offset: first(n),
            len,
        };
        let mut failed = Vec::new();
        let outs = &step.kv.swaps_out;
        if !outs.is_empty() {
            let pages = outs
                .iter()
                .map(|s| Ok((first(s.slot), self.pages.view(at(s.page.0))?)))
                .collect::<Result<_, ArenaError>>()?;
            let lost = self.swap.write(&mut self.pool, pages)?;
            failed.extend(lost.into_iter().map(|i| outs[i].tag));
            for s in outs.iter().filter(|s| !failed.contains(&s.tag)) {
                self.generations[s.slot as usize] = s.generation;
                if self.poison {
                    // NaN in every type.
                    self.pages.view_mut::<u8>(at(s.page.0))?.fill(0xff);
                }
            }
        }
        let ins = &step.kv.swaps_in;
        if !ins.is_empty() {
            let parts: Vec<Part> = ins.iter().map(|s| at(s.page.0)).collect();
            let pages = self.pages.split_mut(&parts)?.into_iter();
            let pages = ins.iter().map(|s| first(s.slot)).zip(pages).collect();
            let lost = self.swap.read(&mut self.pool, pages)?;
            failed.extend(lost.into_iter().map(|i| ins[i].tag));
        }
        if outs.len() + ins.len() > 0 {
            self.moved.pages += (outs.len() + ins.len()) as u64;
            self.moved.time.0 += nanos(began.elapsed());
        }
        for c in &step.kv.copies {
            let [from, to] = self.pages.views_mut::<u8, 2>([at(c.from.0), at(c.to.0)])?;
            to.copy_from_slice(from);
        }
        Ok(failed)
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

    /// What is wanted of the tokens numbered `wanted`, whose logits were computed last: `out` has a place for each row.
    fn choose(&mut self, step: &Step, wanted: &[u32], out: &mut [RowOutput]) {
        let vocab = usize::try_from(self.program.vocab).unwrap_or(usize::MAX);
        let at = ops::range(self.program.buffer(self.program.logits), wanted.len());
        let part = Part {
            offset: 4 * at.start as u64,
            len: at.len() as u64,
        };
        // It was written by the program's last operation.
        let logits = self.activations.view_mut::<f32>(part).unwrap_or_default();
        let mut rows = step.rows.iter().zip(out);
        let mut next = rows.next();
        let mut asking = Vec::with_capacity(wanted.len());
        for (&token, logits) in wanted.iter().zip(logits.chunks_mut(vocab)) {
            while next
                .as_ref()
                .is_some_and(|(row, _)| row.tokens.end <= token)
            {
                next = rows.next();
            }
            let Some((row, out)) = &mut next else { break };
            let position = row.start + (token - row.tokens.start);
            if self.chooser.wants_all(row) && !self.chooser.position(row, position, logits) {
                **out = RowOutput::Failed;
            }
            let last = token + 1 == row.tokens.end && row.output != Output::None;
            if last && **out != RowOutput::Failed {
                asking.extend(next.take().map(|(row, out)| Asking {
                    row,
                    position: position + 1,
                    logits,
                    out,
                }));
                next = rows.next();
            }
        }
        self.chooser.rows(&mut self.pool, &mut asking);
    }

    /// Computes a step's rows, and what comes out of each: nothing where pages that `failed` to come back were read.
    fn compute(&mut self, step: &Step, failed: &[u64]) -> Result<Vec<RowOutput>, String> {
        let mut out = vec![RowOutput::None; step.rows.len()];
        if step.rows.is_empty() {
            return Ok(out);
        }
        self.begin(step)?;
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.clear();
        for row in &step.rows {
            let tokens = row.tokens.clone();
            self.chooser.tokens(
                row,
                &step.tokens[tokens.start as usize..tokens.end as usize],
            );
            if failed.binary_search(&row.request.0).is_ok() {
                continue;
            }
            if self.chooser.wants_all(row) {
                wanted.extend(tokens);
            } else if row.output != Output::None {
                wanted.push(tokens.end - 1);
            }
        }
        let ops = self.program.ops.len();
        let head = self.program.head();
        self.run(step, 0..head, &[]);
        // More rows of logits than were planned are computed some at a time.
        let most = usize::try_from(self.program.outputs).unwrap_or(usize::MAX);
        for some in wanted.chunks(most.max(1)) {
            self.run(step, head..ops, some);
            self.choose(step, some, &mut out);
        }
        self.wanted = wanted;
        Ok(out)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<S: Chooser> Executor for CpuExecutor<S> {
    fn submit(&mut self, step: &Step) -> Result<Ticket, ExecutorError> {
        let began = Instant::now();
        self.tables.apply(step, |e| self.chooser.event(e));
        if self.notes_tables {
            self.tables.note(step);
        }
        let mut failed_transfers = self.stale(step);
        let failed = |reason| ExecutorError {
            step: step.number,
            reason,
        };
        let lost = self.move_pages(step).map_err(|e| failed(e.to_string()))?;
        failed_transfers.extend(lost);
        failed_transfers.sort_unstable();
        failed_transfers.dedup();
        let rows = self.compute(step, &failed_transfers).map_err(failed)?;
        self.output = Some(StepOutput {
            rows,
            failed_transfers,
            elapsed: Nanos(nanos(began.elapsed())),
        });
        Ok(Ticket(step.number))
    }

    fn complete(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        self.output.take().ok_or_else(|| ExecutorError {
            step: ticket.0,
            reason: "the step was not submitted".to_owned(),
        })
    }

    fn restart(&mut self) {
        self.tables.clear();
        self.generations.fill(0);
        self.output = None;
        self.chooser.restart();
    }
}
