//! [`CpuExecutor`]: steps on this machine's processors.
//!
//! It owns three blocks of memory, made once: weights, KV pages, activations. A step moves pages first, as it
//! says, then walks the program's operations over all rows at once. Nothing is allocated for tokens: a row's
//! keys and values go to the pages that the block tables name, and everything else to the program's buffers.

mod ops;
mod tables;

use std::time::Instant;

use plimsoll_kernels::{Level, Pool};
use plimsoll_program::Program;
use plimsoll_schedule::{
    Executor, ExecutorError, Output, Row, RowOutput, SeqEvent, Step, StepOutput, Ticket,
};
use plimsoll_units::{Bytes, Nanos};

use self::tables::Tables;

/// Who turns logits into tokens.
pub trait Sampling {
    /// What a row yields; `logits` may be changed.
    fn row(&mut self, row: &Row, position: u32, logits: &mut [f32]) -> RowOutput;
    /// What happens to a sequence, in order, before the step's rows.
    fn event(&mut self, event: &SeqEvent);
    /// Tokens of a row, before it is computed: what a sequence's history is made of.
    fn tokens(&mut self, _row: &Row, _tokens: &[u32]) {}
    /// Whether logits of every position are wanted, whatever rows ask for.
    fn wants_all(&self) -> bool {
        false
    }
    /// Logits of one position, where all are wanted.
    fn position(&mut self, _row: &Row, _position: u32, _logits: &[f32]) {}
}

/// What an executor holds.
#[derive(Debug)]
pub struct Memory {
    /// Weights, as the program lays them out.
    pub weights: Vec<u32>,
    /// Pages, the null page among them.
    pub pages: u32,
    /// Places in swap space.
    pub swap: u32,
}

/// Steps on this machine's processors.
#[derive(Debug)]
pub struct CpuExecutor<S> {
    program: Program,
    weights: Vec<u32>,
    pages: Vec<u16>,
    page: usize,
    swap: Vec<u16>,
    generations: Vec<u32>,
    activations: Vec<f32>,
    pool: Pool,
    level: Level,
    tables: Tables,
    sampling: S,
    output: Option<StepOutput>,
}

impl<S: Sampling> CpuExecutor<S> {
    /// An executor of `program`.
    ///
    /// # Errors
    /// Where memory sizes do not fit this machine's addresses, or a thread cannot be started.
    pub fn new(
        program: Program,
        memory: Memory,
        threads: usize,
        level: Level,
        sampling: S,
    ) -> std::io::Result<Self> {
        let too_large =
            || std::io::Error::other("a block of memory is larger than can be addressed");
        let size =
            |bytes: Bytes, each: u64| usize::try_from(bytes.get() / each).map_err(|_| too_large());
        let page = size(program.geometry.page, 2)?;
        let of_pages = |n: u32| page.checked_mul(n as usize).ok_or_else(too_large);
        Ok(Self {
            pages: vec![0; of_pages(memory.pages)?],
            swap: vec![0; of_pages(memory.swap)?],
            generations: vec![0; memory.swap as usize],
            activations: vec![0.0; size(program.activation_bytes, 4)?],
            tables: Tables::new(program.geometry.groups.len()),
            weights: memory.weights,
            page,
            program,
            pool: Pool::new(threads)?,
            level,
            sampling,
            output: None,
        })
    }

    /// Who samples.
    pub const fn sampling(&self) -> &S {
        &self.sampling
    }

    /// Who samples.
    pub const fn sampling_mut(&mut self) -> &mut S {
        &mut self.sampling
    }

    /// The program.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Pages, as they lie: for tests that damage them.
    pub fn pages_mut(&mut self) -> &mut [u16] {
        &mut self.pages
    }

    fn move_pages(&mut self, step: &Step) {
        let page = self.page;
        let at = |n: u32| n as usize * page..(n as usize + 1) * page;
        for s in &step.kv.swaps_out {
            self.swap[at(s.slot)].copy_from_slice(&self.pages[at(s.page.0)]);
            self.generations[s.slot as usize] = s.generation;
        }
        for s in &step.kv.swaps_in {
            self.pages[at(s.page.0)].copy_from_slice(&self.swap[at(s.slot)]);
        }
        for c in &step.kv.copies {
            self.pages.copy_within(at(c.from.0), c.to.0 as usize * page);
        }
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
        let logits = &mut self.activations[at];
        let all = self.sampling.wants_all();
        let mut next = 0;
        let mut out = Vec::with_capacity(step.rows.len());
        for row in &step.rows {
            let n = row.tokens.end - row.tokens.start;
            if all {
                for i in 0..n {
                    let logits = &logits[(next + i as usize) * vocab..][..vocab];
                    self.sampling.position(row, row.start + i, logits);
                }
                next += n as usize - 1;
            }
            if row.output == Output::None {
                next += usize::from(all);
                out.push(RowOutput::None);
                continue;
            }
            let logits = &mut logits[next * vocab..][..vocab];
            out.push(self.sampling.row(row, row.start + n, logits));
            next += 1;
        }
        out
    }
}

impl<S: Sampling> Executor for CpuExecutor<S> {
    fn submit(&mut self, step: &Step) -> Result<Ticket, ExecutorError> {
        let began = Instant::now();
        self.tables.apply(step, |e| self.sampling.event(e));
        let failed_transfers = self.stale(step);
        self.move_pages(step);
        let all = self.sampling.wants_all();
        let mut wanted = Vec::new();
        for row in &step.rows {
            let tokens = row.tokens.start..row.tokens.end;
            self.sampling.tokens(
                row,
                &step.tokens[tokens.start as usize..tokens.end as usize],
            );
            if all {
                wanted.extend(tokens);
            } else if row.output != Output::None {
                wanted.push(tokens.end - 1);
            }
        }
        self.run(step, &wanted).map_err(|reason| ExecutorError {
            step: step.number,
            reason,
        })?;
        let rows = self.sample(step, &wanted);
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
