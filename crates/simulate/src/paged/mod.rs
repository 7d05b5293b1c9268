//! Our own scheduler and block manager under a virtual clock: one server, or a fleet of replicas.
//!
//! The very crates that serve decide here; [`World`] stands in for the executor. Order of events,
//! which decides ties: a step ends; what it yielded is told; requests that arrived up to and including
//! that moment are submitted; the next step starts. Memory is that of the living requests.

mod fleet;
mod replica;
#[cfg(test)]
mod tests;
mod world;

use plimsoll_kv::KvConfig;
use plimsoll_schedule::{CostModel, Log, NoLog, Preempt, SchedulerConfig, Stats};
use plimsoll_units::Nanos;

pub use fleet::{Fleet, Router};
pub use world::{Branching, Faults, World};

use crate::arrival::Arrival;
use crate::record::Sink;
use crate::sharing::Sharing;
use replica::Replica;

/// What requests ask for, as opposed to where they will end by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// As many tokens as the model allows: nobody knows how long an answer will be.
    #[default]
    Most,
    /// Exactly as many as there will be.
    Exact,
}

/// One simulated server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The scheduler; its limits must allow the workload's longest request.
    pub scheduler: SchedulerConfig,
    /// The pool.
    pub kv: KvConfig,
    /// What the scheduler believes of times.
    pub belief: CostModel,
    /// What times are.
    pub truth: CostModel,
    /// What requests ask for.
    pub asked: Asked,
    /// How beams branch.
    pub branching: Branching,
    /// What goes wrong.
    pub faults: Faults,
    /// Whether blocks saved by sharing are counted, which walks all tables at every step.
    pub measure_sharing: bool,
    /// Seed of generated tokens, branching and faults.
    pub seed: u64,
    /// When to stop, finished or not; `None` to go on until every request has ended.
    pub until: Option<Nanos>,
}

/// What a run did, beyond what its sink was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The scheduler's counters.
    pub stats: Stats,
    /// Digest of every decision.
    pub decision_hash: u64,
    /// When the last step ended.
    pub ended: Nanos,
    /// Most pages held at once.
    pub pages_peak: u64,
    /// Blocks that sharing saved; nothing unless asked for.
    pub sharing: Sharing,
    /// Requests that were cut off by `until`.
    pub unfinished: u64,
}

/// Why a run stopped before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// The scheduler has requests and does nothing: a fault of ours.
    #[error(
        "the scheduler stands still at {0} ns: please report this with the command that led to it"
    )]
    Stuck(Nanos),
}

/// Runs `arrivals` through one server. `tokens` fills a prompt's token ids (called with the arrival's
/// number), where the prefix cache is on; else prompts are blanks.
///
/// # Errors
/// [`RunError`]; what happened before has been told to the sink.
pub fn run<E, L: Log>(
    config: &Config,
    arrivals: impl IntoIterator<Item = Result<Arrival, E>>,
    tokens: impl FnMut(u64, &Arrival, &mut Vec<u32>),
    sink: &mut impl Sink,
    log: L,
) -> Result<(Summary, L), RunError<E>> {
    let mut server = [Replica::new(config, 0, log)];
    let summary = fleet::serve(
        config,
        Router::default(),
        &mut server,
        arrivals,
        tokens,
        sink,
    )?;
    let [server] = server;
    Ok((summary, server.into_log()))
}

/// Runs `arrivals` through a fleet of servers that are each as `config` says. The sink sees the fleet as
/// one: its states are sums.
///
/// # Errors
/// [`RunError`]; what happened before has been told to the sink.
pub fn run_fleet<E>(
    config: &Config,
    fleet: Fleet,
    arrivals: impl IntoIterator<Item = Result<Arrival, E>>,
    tokens: impl FnMut(u64, &Arrival, &mut Vec<u32>),
    sink: &mut impl Sink,
) -> Result<Summary, RunError<E>> {
    let mut replicas: Vec<_> = (0..fleet.replicas.get())
        .map(|i| Replica::new(config, i, NoLog))
        .collect();
    fleet::serve(config, fleet.router, &mut replicas, arrivals, tokens, sink)
}

/// The words of the routers, for reports.
#[must_use]
pub const fn router_name(r: Router) -> &'static str {
    match r {
        Router::RoundRobin => "round-robin",
        Router::LeastLoaded => "least-loaded",
    }
}

/// The words of the policies, for reports.
#[must_use]
pub const fn preempt_name(p: Preempt) -> &'static str {
    match p {
        Preempt::Auto => "auto",
        Preempt::Swap => "swap",
        Preempt::Recompute => "recompute",
    }
}
