//! What a scheduler holds at one moment, for whoever looks: requests one by one, and whose every page is.

use plimsoll_kv::{TenantId, View as Pages};

use crate::group::{Group, Phase};
use crate::request::{Fan, RequestId};
use crate::scheduler::Scheduler;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has not run.
    Waiting,
    /// It runs, and has no token yet.
    Prefill,
    /// It runs, and has tokens.
    Decode,
    /// It gave way; its blocks are in swap space.
    Swapped,
    /// It gave way; it will be computed again.
    Dropped,
}

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestView {
    /// Which.
    pub id: RequestId,
    /// Whose.
    pub tenant: TenantId,
    /// Where it is.
    pub place: Place,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens generated so far, all its sequences together.
    pub generated_tokens: u64,
    /// Prompt tokens found in the prefix cache at first.
    pub cached_tokens: u32,
    /// Sequences that live.
    pub sequences: u32,
    /// Whether it is a beam search.
    pub beam: bool,
    /// Times it gave way.
    pub preemptions: u32,
}

/// A scheduler at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Whoever runs, then whoever gave way, then whoever waits, as many as were asked for.
    pub requests: Vec<RequestView>,
    /// Requests that are not among them.
    pub left_out: usize,
    /// The pool; owners and holdings are by the place in `requests`, and beyond it for those left out.
    pub pages: Pages,
}

impl Group {
    fn view(&self) -> RequestView {
        let prompt = self.request.prompt_len();
        let alive = self
            .seqs
            .iter()
            .map(|s| u64::from(s.len().saturating_sub(prompt)));
        let done = self.done.iter().map(|c| c.tokens.len() as u64);
        let generated_tokens: u64 = alive.chain(done).sum();
        RequestView {
            id: self.request.id(),
            tenant: self.request.scope().tenant,
            place: match self.phase {
                Phase::Waiting => Place::Waiting,
                Phase::Running if generated_tokens == 0 => Place::Prefill,
                Phase::Running => Place::Decode,
                Phase::Swapped => Place::Swapped,
                Phase::Dropped => Place::Dropped,
            },
            prompt_tokens: prompt,
            generated_tokens,
            cached_tokens: self.cached_tokens,
            sequences: u32::try_from(self.seqs.len()).unwrap_or(u32::MAX),
            beam: matches!(self.request.fan(), Fan::Beam(_)),
            preemptions: self.preemptions(),
        }
    }
}

impl Scheduler {
    /// One request, while it is in flight.
    #[must_use]
    pub fn request(&self, id: RequestId) -> Option<RequestView> {
        self.place_of(id).map(|gi| self.group(gi).view())
    }

    /// Everything, with at most `most` requests one by one. Walks all pages and tables: for whoever looks, not for
    /// every step.
    #[must_use]
    pub fn view(&self, most: usize) -> View {
        let running = self.running.iter();
        let waiting = self.waiting.iter().flatten();
        let all = running.chain(&self.preempted).chain(waiting);
        let all: Vec<&Group> = all.map(|r| self.group(r.1)).collect();
        let tables = (0_u32..).zip(&all).flat_map(|(place, g)| {
            let beam = matches!(g.request.fan(), Fan::Beam(_));
            g.tables().map(move |t| (place, beam, t))
        });
        View {
            pages: self.kv().view(tables),
            requests: all.iter().take(most).map(|g| g.view()).collect(),
            left_out: all.len().saturating_sub(most),
        }
    }
}
