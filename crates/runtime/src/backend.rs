//! [`Backend`]: where a program is carried out, and [`Runner`]: the steps of a scheduler, carried out there.
//!
//! What steps have in common stands here: tables follow changes and events, pages move before rows are computed, rows
//! whose logits are wanted pass the program's head some at a time, and whoever chooses is asked. A backend holds the
//! arenas of its map and computes.

use std::fmt::Debug;
use std::ops::Range;
use std::time::{Duration, Instant};

use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, SwapOp};
use plimsoll_plan::Region;
use plimsoll_program::Program;
use plimsoll_schedule::{
    Executor, ExecutorError, Output, RowOutput, Step, StepOutput, Tables, Ticket,
};
use plimsoll_units::{Bytes, Nanos};

use crate::arena::ArenaError;
use crate::choose::{Asking, Chooser, Logits};
use crate::sample::{Brief, Shortlists};

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
    /// Time, where steps waited for them.
    pub time: Option<Nanos>,
}

/// What a machine can do at most, by its own measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peaks {
    /// Reading the weights, in bytes per second.
    pub read_bytes_per_s: u64,
    /// Operations per second, two for each multiply-add of bf16 weights with inputs as the backend has them.
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

/// Why a step could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Parts of arenas that are not there.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// What a device says.
    #[error(transparent)]
    Device(#[from] plimsoll_cuda::DeviceError),
    /// The step does not fit the program.
    #[error("{0}")]
    Step(String),
    /// A rank could not go on without another.
    #[error(transparent)]
    Lost(#[from] crate::collective::Lost),
    /// What ranks on GPUs meet by.
    #[error(transparent)]
    Nccl(#[from] plimsoll_cuda::NcclError),
    /// What a rank could not do.
    #[error("rank {rank} of {ranks}: {source}")]
    Rank {
        /// Which, from 0.
        rank: usize,
        /// How many there are.
        ranks: usize,
        /// What it says.
        source: Box<Self>,
    },
}

/// Where a program is carried out. `pool` are this machine's threads: free whenever they are lent.
pub trait Backend: Debug + Send {
    /// The program.
    fn program(&self) -> &Program;

    /// Places of pages in swap space.
    fn places(&self) -> usize;

    /// Whether pages move beside steps, so that nobody knows how long they took.
    fn moves_beside(&self) -> bool {
        false
    }

    /// Pages go to swap space: which of them, by their place in the list, did not arrive.
    ///
    /// # Errors
    /// [`BackendError`] where the list itself cannot be carried out.
    fn swap_out(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError>;

    /// Pages come back: which of them did not arrive.
    ///
    /// # Errors
    /// As [`Backend::swap_out`].
    fn swap_in(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError>;

    /// Pages are copied; none is both read and written.
    ///
    /// # Errors
    /// As [`Backend::swap_out`].
    fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError>;

    /// Checks a step, and notes where its tokens stand and its rows' tables.
    ///
    /// # Errors
    /// Where the step does not fit the program.
    fn begin(&mut self, step: &Step, tables: &Tables) -> Result<(), BackendError>;

    /// Carries some of the program's operations out over the rows of the step that began last. The logits of its tokens
    /// numbered `wanted`, at most R, are there after the last.
    ///
    /// # Errors
    /// [`BackendError`].
    fn run(
        &mut self,
        pool: &mut Pool,
        step: &Step,
        tables: &Tables,
        ops: Range<usize>,
        wanted: &[u32],
    ) -> Result<(), BackendError>;

    /// The logits of some rows, after they were computed; they may be changed.
    ///
    /// # Errors
    /// [`BackendError`].
    fn logits(&mut self, rows: Range<usize>) -> Result<&mut [f32], BackendError>;

    /// Whether shortlists of rows are made where logits are.
    fn shortens(&self) -> bool {
        false
    }

    /// What the first rows' logits come to, of each as it is asked for.
    ///
    /// # Errors
    /// [`BackendError`]; also where it does not [shorten](Self::shortens).
    fn shortlists(&mut self, _: &[Option<Brief>]) -> Result<Shortlists<'_>, BackendError> {
        Err(BackendError::Step("rows are not shortened".to_owned()))
    }

    /// What each region took so far, in the order of the map, but for what chooses.
    fn usage(&self) -> Vec<Usage>;

    /// Measures in less than 0.3 s, before the first step, what steps do. Leaves no mark on the arenas.
    ///
    /// # Errors
    /// [`BackendError`] where the program is not that of the arenas.
    fn measure(&mut self, pool: &mut Pool) -> Result<Measured, BackendError>;

    /// Measures what the machine can do, in some tenths of a second.
    ///
    /// # Errors
    /// [`BackendError`].
    fn peaks(&mut self, pool: &mut Pool) -> Result<Peaks, BackendError>;
}

/// What tests of single operations reach beside what steps do.
pub trait Inside: Backend {
    /// Reads what lies in weights, pages or activations, from byte `from` on.
    ///
    /// # Errors
    /// [`BackendError`] where there is no such part.
    fn read(&mut self, region: Region, from: u64, bytes: &mut [u8]) -> Result<(), BackendError>;

    /// Writes there.
    ///
    /// # Errors
    /// As [`Inside::read`].
    fn write(&mut self, region: Region, from: u64, bytes: &[u8]) -> Result<(), BackendError>;
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn program(&self) -> &Program {
        (**self).program()
    }
    fn places(&self) -> usize {
        (**self).places()
    }
    fn moves_beside(&self) -> bool {
        (**self).moves_beside()
    }
    fn swap_out(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        (**self).swap_out(pool, pages)
    }
    fn swap_in(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        (**self).swap_in(pool, pages)
    }
    fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        (**self).copy(copies)
    }
    fn begin(&mut self, step: &Step, tables: &Tables) -> Result<(), BackendError> {
        (**self).begin(step, tables)
    }
    fn run(
        &mut self,
        pool: &mut Pool,
        step: &Step,
        tables: &Tables,
        ops: Range<usize>,
        wanted: &[u32],
    ) -> Result<(), BackendError> {
        (**self).run(pool, step, tables, ops, wanted)
    }
    fn logits(&mut self, rows: Range<usize>) -> Result<&mut [f32], BackendError> {
        (**self).logits(rows)
    }
    fn shortens(&self) -> bool {
        (**self).shortens()
    }
    fn shortlists(&mut self, briefs: &[Option<Brief>]) -> Result<Shortlists<'_>, BackendError> {
        (**self).shortlists(briefs)
    }
    fn usage(&self) -> Vec<Usage> {
        (**self).usage()
    }
    fn measure(&mut self, pool: &mut Pool) -> Result<Measured, BackendError> {
        (**self).measure(pool)
    }
    fn peaks(&mut self, pool: &mut Pool) -> Result<Peaks, BackendError> {
        (**self).peaks(pool)
    }
}

/// Steps, carried out on a backend.
#[derive(Debug)]
pub struct Runner<B, S> {
    backend: B,
    pool: Pool,
    chooser: S,
    tables: Tables,
    /// Of what lies in swap space.
    generations: Vec<u32>,
    moved: Moved,
    /// A step's tokens whose logits are wanted.
    wanted: Vec<u32>,
    notes_tables: bool,
    output: Option<StepOutput>,
}

impl<B: Backend, S: Chooser> Runner<B, S> {
    /// A runner that chooses on the threads of `pool`.
    pub fn new(backend: B, pool: Pool, chooser: S) -> Self {
        let tokens = usize::try_from(backend.program().tokens).unwrap_or(usize::MAX);
        Self {
            tables: Tables::new(backend.program().geometry.groups.len()),
            generations: vec![0; backend.places()],
            wanted: Vec::with_capacity(tokens),
            moved: Moved::default(),
            notes_tables: false,
            output: None,
            backend,
            pool,
            chooser,
        }
    }

    /// The same with another chooser, before the first step.
    pub fn choosing<T: Chooser>(self, chooser: T) -> Runner<B, T> {
        Runner {
            backend: self.backend,
            pool: self.pool,
            chooser,
            tables: self.tables,
            generations: self.generations,
            moved: self.moved,
            wanted: self.wanted,
            notes_tables: self.notes_tables,
            output: self.output,
        }
    }

    /// Where it is carried out.
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// Where it is carried out.
    pub const fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
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
    pub fn program(&self) -> &Program {
        self.backend.program()
    }

    /// What went to swap space and came back so far.
    pub const fn moved(&self) -> Moved {
        self.moved
    }

    /// What each region took so far, in the order of the map.
    pub fn usage(&self) -> Vec<Usage> {
        let mut all = self.backend.usage();
        let (committed, high_water) = self.chooser.buffers();
        let region = Region::Workspace;
        if let Some(workspace) = all.iter_mut().find(|u| u.region == region) {
            // A part of it is the device's.
            workspace.committed = Bytes::new(workspace.committed.get() + committed.get());
            workspace.high_water = Bytes::new(workspace.high_water.get() + high_water.get());
            return all;
        }
        let after = all.iter().position(|u| u.region > region);
        let one = Usage {
            region,
            committed,
            high_water,
        };
        all.insert(after.unwrap_or(all.len()), one);
        all
    }

    /// From now on a digest of the block tables that rows are computed by is kept.
    pub const fn note_tables(&mut self) {
        self.notes_tables = true;
    }

    /// Block tables, and their digest where they are [noted](Self::note_tables).
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Measures, before the first step, what decides how a victim had better give way.
    ///
    /// # Errors
    /// As [`Backend::measure`].
    pub fn measure(&mut self) -> Result<Measured, BackendError> {
        self.backend.measure(&mut self.pool)
    }

    /// Measures what the machine can do.
    ///
    /// # Errors
    /// As [`Backend::peaks`].
    pub fn peaks(&mut self) -> Result<Peaks, BackendError> {
        self.backend.peaks(&mut self.pool)
    }

    /// Moves and copies the step's pages; tags of transfers that failed.
    fn move_pages(&mut self, step: &Step) -> Result<Vec<u64>, BackendError> {
        let began = Instant::now();
        let mut failed = Vec::new();
        let (outs, ins) = (&step.kv.swaps_out, &step.kv.swaps_in);
        if !outs.is_empty() {
            let lost = self.backend.swap_out(&mut self.pool, outs)?;
            failed.extend(lost.into_iter().map(|i| outs[i].tag));
            for s in outs.iter().filter(|s| !failed.contains(&s.tag)) {
                self.generations[s.slot as usize] = s.generation;
            }
        }
        if !ins.is_empty() {
            let lost = self.backend.swap_in(&mut self.pool, ins)?;
            failed.extend(lost.into_iter().map(|i| ins[i].tag));
        }
        if outs.len() + ins.len() > 0 {
            self.moved.pages += (outs.len() + ins.len()) as u64;
            let time = self.moved.time.unwrap_or_default().0 + nanos(began.elapsed());
            self.moved.time = (!self.backend.moves_beside()).then_some(Nanos(time));
        }
        if !step.kv.copies.is_empty() {
            self.backend.copy(&step.kv.copies)?;
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
    fn choose(
        &mut self,
        step: &Step,
        wanted: &[u32],
        out: &mut [RowOutput],
    ) -> Result<(), BackendError> {
        let mut all = Vec::with_capacity(wanted.len());
        let mut row = 0;
        for &token in wanted {
            while step.rows.get(row).is_some_and(|r| r.tokens.end <= token) {
                row += 1;
            }
            let Some(of) = step.rows.get(row) else { break };
            all.push(Wanted {
                row,
                position: of.start + (token - of.tokens.start),
                draws: token + 1 == of.tokens.end && of.output != Output::None,
                told: self.chooser.wants_all(of),
            });
        }
        let mut whole: Vec<usize> = (0..all.len()).collect();
        if self.backend.shortens() {
            whole = self.choose_short(step, &all, out)?;
        }
        // Rows side by side at once.
        for rows in whole.chunk_by(|a, b| a + 1 == *b) {
            self.choose_whole(step, &all, rows[0]..rows[0] + rows.len(), out)?;
        }
        Ok(())
    }

    /// Chooses of shortlists; which of the tokens take all of their logits.
    fn choose_short(
        &mut self,
        step: &Step,
        all: &[Wanted],
        out: &mut [RowOutput],
    ) -> Result<Vec<usize>, BackendError> {
        let briefs: Vec<_> = all
            .iter()
            .map(|w| {
                let short = w.draws && !w.told;
                short.then(|| self.chooser.brief(&step.rows[w.row], w.position + 1))?
            })
            .collect();
        let lists = match briefs.iter().any(Option::is_some) {
            true => Some(self.backend.shortlists(&briefs)?),
            false => None,
        };
        let (mut asking, mut asked, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (w, brief)) in all.iter().zip(&briefs).enumerate() {
            let list = lists.zip(brief.as_ref());
            match list.and_then(|(lists, brief)| lists.get(i, brief)) {
                Some(list) => {
                    asked.push(i);
                    asking.push(w.asking(step, Logits::Short(list)));
                }
                None => whole.push(i),
            }
        }
        self.chooser.rows(&mut self.pool, &mut asking);
        for (a, i) in asking.into_iter().zip(asked) {
            match a.out {
                Some(yields) => out[all[i].row] = yields,
                None => whole.push(i),
            }
        }
        whole.sort_unstable();
        Ok(whole)
    }

    /// Chooses of all logits of some of the tokens.
    fn choose_whole(
        &mut self,
        step: &Step,
        all: &[Wanted],
        rows: Range<usize>,
        out: &mut [RowOutput],
    ) -> Result<(), BackendError> {
        let vocab = usize::try_from(self.backend.program().vocab).unwrap_or(usize::MAX);
        let logits = self.backend.logits(rows.clone())?;
        let mut asking = Vec::with_capacity(rows.len());
        let mut asked = Vec::with_capacity(rows.len());
        for (w, logits) in all[rows].iter().zip(logits.chunks_mut(vocab)) {
            let row = &step.rows[w.row];
            if w.told && !self.chooser.position(row, w.position, logits) {
                out[w.row] = RowOutput::Failed;
            }
            if w.draws && out[w.row] != RowOutput::Failed {
                asked.push(w.row);
                asking.push(w.asking(step, Logits::All(logits)));
            }
        }
        self.chooser.rows(&mut self.pool, &mut asking);
        for (a, row) in asking.into_iter().zip(asked) {
            out[row] = a.out.unwrap_or(RowOutput::Failed);
        }
        Ok(())
    }

    /// Computes a step's rows, and what comes out of each: nothing where pages that `failed` to come back were read.
    fn compute(&mut self, step: &Step, failed: &[u64]) -> Result<Vec<RowOutput>, BackendError> {
        let mut out = vec![RowOutput::None; step.rows.len()];
        if step.rows.is_empty() {
            return Ok(out);
        }
        self.backend.begin(step, &self.tables)?;
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
        let program = self.backend.program();
        let (ops, head) = (program.ops.len(), program.head());
        // More rows of logits than were planned are computed some at a time.
        let most = usize::try_from(program.outputs).unwrap_or(usize::MAX);
        let (pool, tables) = (&mut self.pool, &self.tables);
        self.backend.run(pool, step, tables, 0..head, &[])?;
        for some in wanted.chunks(most.max(1)) {
            let (pool, tables) = (&mut self.pool, &self.tables);
            self.backend.run(pool, step, tables, head..ops, some)?;
            self.choose(step, some, &mut out)?;
        }
        self.wanted = wanted;
        Ok(out)
    }
}

/// A token of a step whose logits are wanted.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    /// Of which row.
    row: usize,
    /// Where it stands.
    position: u32,
    /// Whether the token after it is chosen.
    draws: bool,
    /// Whether its logits are told.
    told: bool,
}

impl Wanted {
    fn asking<'a>(&self, step: &'a Step, logits: Logits<'a>) -> Asking<'a> {
        Asking {
            row: &step.rows[self.row],
            position: self.position + 1,
            logits,
            out: None,
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<B: Backend, S: Chooser> Executor for Runner<B, S> {
    fn submit(&mut self, step: &Step) -> Result<Ticket, ExecutorError> {
        let began = Instant::now();
        self.tables.apply(step, |e| self.chooser.event(e));
        if self.notes_tables {
            self.tables.note(step);
        }
        let mut failed_transfers = self.stale(step);
        let failed = |e: BackendError| ExecutorError {
            step: step.number,
            reason: e.to_string(),
        };
        let lost = self.move_pages(step).map_err(failed)?;
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
