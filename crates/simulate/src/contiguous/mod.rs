//! The contiguous servers that paging replaces, under a virtual clock.
//!
//! A request's KV cache is one run of slots, taken before the request starts and given back when it
//! ends. [`orca`] schedules iteration by iteration and takes chunks from a [`buddy`] allocator, by
//! one of three [`Reservation`]s; [`static_batch`] runs a whole batch to its end. Nothing is shared,
//! nothing is preempted, and prompts are not split.
//!
//! Order of events, which decides ties: a step ends; its tokens and finished requests are told;
//! requests that arrived up to and including that moment are in the queue; requests are admitted,
//! first come, first served; the next step starts. Memory is that of the requests that wait or run,
//! however long the trace.
//!
//! Source: Kwon et al. (SOSP 2023), sections 3.1 and 6.1; Yu et al. (OSDI 2022) for Orca.

pub mod buddy;
mod front;
pub mod orca;
pub mod static_batch;

use plimsoll_schedule::CostModel;
use plimsoll_units::Nanos;

use crate::arrival::Arrival;
use crate::record::Sink;
use front::Front;

/// Which server, and how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Slots of the KV pool, one per token.
    pub slots: u64,
    /// Tokens of a sequence at most, prompt and output together; longer requests are refused.
    pub max_tokens: u64,
    /// How it batches and reserves.
    pub server: Server,
    /// Sequences that run at once at most; `None` where memory alone decides.
    pub max_batch: Option<u64>,
    /// When to stop, finished or not; `None` to go on until every request has ended.
    pub until: Option<Nanos>,
}

/// How a contiguous server batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Batches that start and end together, at the maximum length each (FasterTransformer).
    StaticBatch,
    /// Requests join and leave at every iteration, each with a chunk of its own.
    Orca(Reservation),
}

/// How many slots a sequence reserves, before the allocator rounds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// The maximum length.
    Max,
    /// The prompt, and the true output length rounded up to a power of two; at most the maximum
    /// length.
    Pow2,
    /// The prompt and the true output length, which no real server knows.
    Oracle,
}

/// Why a run stopped before its end. Whatever happened before has been told to the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError<E> {
    /// The source of arrivals failed.
    #[error(transparent)]
    Arrivals(E),
    /// Arrivals go back in time.
    #[error("an arrival at {at} ns follows one at {before} ns: sort the arrivals by time")]
    Disordered {
        /// The earlier one's time, which came later.
        at: Nanos,
        /// The time of the one before.
        before: Nanos,
    },
    /// The virtual clock is full.
    #[error("the run is longer than 2^64 - 1 ns: check the rates of the cost model")]
    ClockOverflow,
}

/// Serves `arrivals`, which are in order of time, and tells `sink` what happens.
///
/// The last call of [`Sink::state`] is at the end of the run: when the last request ended, or at
/// `config.until`. A step that is under way then has happened for its states, not for its tokens.
///
/// # Errors
/// [`RunError`]; requests that do not fit are refused through the sink instead.
pub fn run<E>(
    config: &Config,
    arrivals: impl Iterator<Item = Result<Arrival, E>>,
    cost: &CostModel,
    sink: &mut impl Sink,
) -> Result<(), RunError<E>> {
    match config.server {
        Server::StaticBatch => {
            let limits = static_batch::Limits::new(config);
            let front = Front::new(arrivals, |r| limits.admits(r), config, sink)?;
            static_batch::serve(&limits, front, cost)
        }
        Server::Orca(reservation) => {
            let pool = orca::Pool::new(config, reservation);
            let front = Front::new(arrivals, |r| pool.admits(r), config, sink)?;
            orca::serve(&pool, front, cost)
        }
    }
}

#[cfg(test)]
mod tests;
