//! Several replicas behind one router, in one thread.
//!
//! Order of events, which decides ties: requests are routed when they arrive, each by what is known then, before
//! any step that ends at that moment; then the replica whose step ends first goes next (of equals, the one with
//! the lowest index): what the step yielded is told, the replica submits what was routed to it, and starts its
//! next step. So the sink is told everything in order of time, whichever replica it is about.

use std::num::NonZeroU32;

use plimsoll_schedule::Log;
use plimsoll_units::Nanos;

use super::replica::{Replica, Stuck};
use super::world::mix;
use super::{Config, RunError, Summary};
use crate::arrival::Arrival;
use crate::record::{Sink, State};

/// How many servers, and who divides the requests among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Servers, each of which holds the whole model.
    pub replicas: NonZeroU32,
    /// Who divides.
    pub router: Router,
}

/// Which replica a request goes to. It stays there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Router {
    /// The next one in turn.
    #[default]
    RoundRobin,
    /// The one with the fewest requests that have not ended; of equals, the first.
    LeastLoaded,
}

impl Router {
    /// Where request `number` goes.
    fn choose<L>(self, number: u64, replicas: &[Replica<L>]) -> usize {
        let chosen = match self {
            Self::RoundRobin => usize::try_from(number % (replicas.len() as u64).max(1)).ok(),
            Self::LeastLoaded => (0..replicas.len()).min_by_key(|i| replicas[*i].in_flight),
        };
        chosen.unwrap_or(0)
    }
}

/// Serves `arrivals` by `replicas`, which have not served anything yet.
pub(super) fn serve<E, L: Log>(
    config: &Config,
    router: Router,
    replicas: &mut [Replica<L>],
    arrivals: impl IntoIterator<Item = Result<Arrival, E>>,
    mut tokens: impl FnMut(u64, &Arrival, &mut Vec<u32>),
    sink: &mut impl Sink,
) -> Result<Summary, RunError<E>> {
    let over = |now: Nanos| config.until.is_some_and(|end| now >= end);
    let mut arrivals = arrivals.into_iter();
    let mut next = pull(&mut arrivals, Nanos(0))?;
    let mut number = 0;
    let mut now = Nanos(0);
    let mut view = View::new(sink, replicas.len());
    loop {
        let step = earliest(replicas);
        if let Some(a) = next.take_if(|a| step.is_none_or(|(end, _)| a.at <= end)) {
            if over(a.at) {
                // Nor is anybody who comes later; the steps under way end.
                now = a.at;
                continue;
            }
            next = pull(&mut arrivals, a.at)?;
            replicas[router.choose(number, replicas)].route(number, a);
            number += 1;
            continue;
        }
        let Some((end, i)) = step else { break };
        now = end;
        let replica = &mut replicas[i];
        replica.tell(now, view.sink);
        if over(now) {
            replica.ready = None;
            continue;
        }
        replica
            .step(now, &mut tokens, &mut view)
            .map_err(|Stuck| RunError::Stuck(now))?;
    }
    Ok(view.end(now, replicas))
}

fn pull<E>(
    arrivals: &mut impl Iterator<Item = Result<Arrival, E>>,
    before: Nanos,
) -> Result<Option<Arrival>, RunError<E>> {
    let Some(next) = arrivals.next() else {
        return Ok(None);
    };
    let a = next.map_err(RunError::Arrivals)?;
    if a.at < before {
        return Err(RunError::Disordered { at: a.at, before });
    }
    Ok(Some(a))
}

/// Whose step ends first, and when.
fn earliest<L>(replicas: &[Replica<L>]) -> Option<(Nanos, usize)> {
    let ends = replicas.iter().enumerate();
    ends.filter_map(|(i, r)| Some((r.ready?, i))).min()
}

/// The replicas as one server, for the sink.
pub(super) struct View<'a, S> {
    pub(super) sink: &'a mut S,
    pub(super) summary: Summary,
    /// What each replica held last, and how many pages.
    held: Vec<(State, u64)>,
}

impl<'a, S: Sink> View<'a, S> {
    fn new(sink: &'a mut S, replicas: usize) -> Self {
        Self {
            sink,
            summary: Summary::default(),
            held: vec![(State::default(), 0); replicas],
        }
    }

    /// A replica starts a step.
    pub(super) fn step(&mut self, now: Nanos, replica: usize, held: (State, u64)) {
        let (state, pages) = self.replace(replica, held);
        self.summary.pages_peak = self.summary.pages_peak.max(pages);
        self.sink.state(now, &state);
        self.sink.pages(pages);
    }

    /// A replica begins to wait for a request.
    pub(super) fn rest(&mut self, now: Nanos, replica: usize, held: (State, u64)) {
        let (state, _) = self.replace(replica, held);
        self.sink.state(now, &state);
    }

    /// What all hold now.
    fn replace(&mut self, replica: usize, held: (State, u64)) -> (State, u64) {
        self.held[replica] = held;
        if self.held.len() == 1 {
            return held;
        }
        let mut sum = (State::default(), 0);
        for (state, pages) in &self.held {
            sum.0 += *state;
            sum.1 += pages;
        }
        sum
    }

    fn end<L: Log>(mut self, now: Nanos, replicas: &[Replica<L>]) -> Summary {
        let mut state = State::default();
        let summary = &mut self.summary;
        for (i, r) in replicas.iter().enumerate() {
            let s = r.scheduler();
            summary.stats += *s.stats();
            summary.decision_hash = if i == 0 {
                s.decision_hash()
            } else {
                mix(summary.decision_hash) ^ s.decision_hash()
            };
            summary.unfinished += r.unfinished();
            state += r.at_rest().0;
        }
        summary.ended = now;
        self.sink.state(now, &state);
        self.summary
    }
}
