//! [`Ranks`]: a model divided over backends that carry the same step out together.
//!
//! There is one scheduler, and block tables, pages and places in swap space have the same numbers on every rank. Rows
//! are computed by all ranks at once, each by a thread and a pool of its own; they meet where the program says so
//! ([`Collective`](crate::Collective)). Whatever one cannot do is the step's error, which names it.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, SwapOp};
use plimsoll_program::Program;
use plimsoll_schedule::{Step, Tables};
use plimsoll_units::Bytes;

use crate::backend::{Backend, BackendError, Measured, Peaks, Usage};
use crate::collective::Meeting;
use crate::sample::{Brief, Shortlists};

/// Threads of each of `ranks` that share `threads`.
#[must_use]
pub fn threads_of_rank(threads: usize, ranks: usize) -> usize {
    (threads / ranks.max(1)).max(1)
}

/// The ranks of a model, the first one first.
#[derive(Debug)]
pub struct Ranks<B> {
    backends: Vec<B>,
    pools: Vec<Pool>,
    /// A thread for each rank, the caller's among them.
    together: Pool,
    meeting: Meeting,
}

impl<B: Backend> Ranks<B> {
    /// Backends that have the seats of `meeting`, in their order, on `threads` threads all together, or one each.
    ///
    /// # Errors
    /// Where the system starts no more threads.
    pub fn new(backends: Vec<B>, meeting: Meeting, threads: usize) -> std::io::Result<Self> {
        let ranks = backends.len();
        assert!(
            ranks > 0 && ranks == meeting.ranks(),
            "a backend for each seat"
        );
        let each = threads_of_rank(threads, ranks);
        Ok(Self {
            pools: (0..ranks)
                .map(|_| Pool::new(each))
                .collect::<Result<_, _>>()?,
            together: Pool::new(ranks)?,
            backends,
            meeting,
        })
    }

    /// The ranks.
    #[must_use]
    pub fn backends(&self) -> &[B] {
        &self.backends
    }

    /// Calls `f` for all ranks at once.
    fn all<T: Send>(
        &mut self,
        f: impl Fn(&mut B, &mut Pool) -> Result<T, BackendError> + Sync,
    ) -> Result<Vec<T>, BackendError> {
        let meeting = &self.meeting;
        meeting.renew()?;
        let ranks = self.backends.iter_mut().zip(&mut self.pools);
        let ranks: Vec<_> = ranks.map(|r| Mutex::new((r, None))).collect();
        // Each call waits for the others, so there is a thread for each of them.
        self.together.run(ranks.len(), |i| {
            let mut rank = ranks[i].lock().unwrap_or_else(PoisonError::into_inner);
            let ((backend, pool), result) = &mut *rank;
            let done = catch_unwind(AssertUnwindSafe(|| f(backend, pool)));
            let done = done.unwrap_or_else(|panic| Err(BackendError::Step(panicked(&*panic))));
            if done.is_err() {
                meeting.fail();
            }
            *result = Some(done);
        });
        let mut all = Vec::with_capacity(ranks.len());
        let mut errors = Vec::new();
        for (i, rank) in ranks.into_iter().enumerate() {
            let (_, result) = rank.into_inner().unwrap_or_else(PoisonError::into_inner);
            match result {
                Some(Ok(value)) => all.push(value),
                Some(Err(e)) => errors.push((i, e)),
                None => errors.push((i, BackendError::Step("it did not run".to_owned()))),
            }
        }
        // Those that only waited for another say nothing of what happened.
        errors.sort_by_key(|(_, e)| matches!(e, BackendError::Lost(_)));
        match errors.into_iter().next() {
            None => Ok(all),
            Some((rank, e)) => Err(self.of_rank(rank, e)),
        }
    }

    fn of_rank(&self, rank: usize, e: BackendError) -> BackendError {
        BackendError::Rank {
            rank,
            ranks: self.backends.len(),
            source: Box::new(e),
        }
    }

    /// Calls `f` for one rank after the other.
    fn one_by_one<T>(
        &mut self,
        mut f: impl FnMut(&mut B) -> Result<T, BackendError>,
    ) -> Result<Vec<T>, BackendError> {
        let mut all = Vec::with_capacity(self.backends.len());
        for rank in 0..self.backends.len() {
            all.push(f(&mut self.backends[rank]).map_err(|e| self.of_rank(rank, e))?);
        }
        Ok(all)
    }
}

impl<B> Drop for Ranks<B> {
    fn drop(&mut self) {
        // What they meet by ends before they do.
        self.meeting.fail();
    }
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("without a word"))
}

/// What did not arrive on some rank did not arrive.
fn lost(ranks: Vec<Vec<usize>>) -> Vec<usize> {
    let mut all: Vec<usize> = ranks.into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl<B: Backend> Backend for Ranks<B> {
    fn program(&self) -> &Program {
        self.backends[0].program()
    }

    fn places(&self) -> usize {
        let places = self.backends.iter().map(B::places);
        places.min().unwrap_or(0)
    }

    fn moves_beside(&self) -> bool {
        self.backends[0].moves_beside()
    }

    fn swap_out(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        self.one_by_one(|b| b.swap_out(pool, pages)).map(lost)
    }

    fn swap_in(&mut self, pool: &mut Pool, pages: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        self.one_by_one(|b| b.swap_in(pool, pages)).map(lost)
    }

    fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        self.one_by_one(|b| b.copy(copies)).map(|_| ())
    }

    fn begin(&mut self, step: &Step, tables: &Tables) -> Result<(), BackendError> {
        self.one_by_one(|b| b.begin(step, tables)).map(|_| ())
    }

    fn run(
        &mut self,
        _: &mut Pool,
        step: &Step,
        tables: &Tables,
        ops: Range<usize>,
        wanted: &[u32],
    ) -> Result<(), BackendError> {
        self.all(|b, pool| b.run(pool, step, tables, ops.clone(), wanted))
            .map(|_| ())
    }

    fn logits(&mut self, rows: Range<usize>) -> Result<&mut [f32], BackendError> {
        // All ranks have all of them.
        self.backends[0].logits(rows)
    }

    fn shortens(&self) -> bool {
        self.backends[0].shortens()
    }

    fn shortlists(&mut self, briefs: &[Option<Brief>]) -> Result<Shortlists<'_>, BackendError> {
        self.backends[0].shortlists(briefs)
    }

    /// What each region took on all ranks together.
    fn usage(&self) -> Vec<Usage> {
        let sum = |a: Bytes, b: Bytes| Bytes::new(a.get().saturating_add(b.get()));
        let mut all = self.backends[0].usage();
        for rank in &self.backends[1..] {
            for (sums, here) in all.iter_mut().zip(rank.usage()) {
                sums.committed = sum(sums.committed, here.committed);
                sums.high_water = sum(sums.high_water, here.high_water);
            }
        }
        all
    }

    /// What each does beside the others; the slowest decides.
    fn measure(&mut self, _: &mut Pool) -> Result<Measured, BackendError> {
        let all = self.all(|b, pool| b.measure(pool))?;
        let least = |of: fn(&Measured) -> u64| all.iter().map(of).min().unwrap_or(0);
        Ok(Measured {
            read_bytes_per_s: least(|m| m.read_bytes_per_s),
            swap_bytes_per_s: least(|m| m.swap_bytes_per_s),
            flops_per_s: all.iter().filter_map(|m| m.flops_per_s).min(),
        })
    }

    /// What each does beside the others; the slowest decides.
    fn peaks(&mut self, _: &mut Pool) -> Result<Peaks, BackendError> {
        let all = self.all(|b, pool| b.peaks(pool))?;
        let least = |of: fn(&Peaks) -> u64| all.iter().map(of).min().unwrap_or(0);
        Ok(Peaks {
            read_bytes_per_s: least(|p| p.read_bytes_per_s),
            flops_per_s: least(|p| p.flops_per_s),
        })
    }
}
