//! [`Scheduler`]: requests in, steps out, outputs in, notices out.
//!
//! Iteration-level scheduling (Yu et al., OSDI 2022) over paged KV (Kwon et al., SOSP 2023), with chunked
//! prefill (Agrawal et al., OSDI 2024). A step gives rows to whoever runs, in rank order, then to whoever
//! gave way, then to new requests. What is where:
//!
//! - this file: the state, what comes in, and the order of a step;
//! - `rows.rs`: which rows a running request gets;
//! - `admit.rs`: who is let in or comes back, and who is guaranteed its worst case;
//! - `preempt.rs`: who gives way, and how;
//! - `learn.rs`: what step times teach about the belief by which that is decided;
//! - `commit.rs`: what an output does to sequences, beams among them.
//!
//! Progress: the guaranteed requests are always the first ones of those that run, in rank order, and the
//! sum of their worst cases fits the pool; they can take every page that the others hold, so they end.
//! The first that runs is always among them.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_kv::planted::{self, Bug};
use plimsoll_kv::{Census, KvCache, KvConfig, Owner, Table};
use plimsoll_units::{Nanos, SeqId};

use crate::config::SchedulerConfig;
use crate::cost::CostModel;
use crate::decision::DecisionHash;
use crate::group::{Group, Phase, Rank, worst_case};
use crate::learn::Learned;
use crate::notice::{Notice, Reason, Refusal, Stats};
use crate::request::{Fan, Request, RequestId};
use crate::room::Room;
use crate::step::{SeqEvent, Step};

/// Means are smoothed over about so many ends.
const SMOOTH: u64 = 8;

/// A row of the step under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) group: u32,
    pub(crate) seq: u32,
    pub(crate) tokens: u32,
}

/// Which rows run, and who gives way. Pure: time is passed in, and equal inputs give equal decisions.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) kv: KvCache,
    /// What is believed of times now.
    pub(crate) cost: CostModel,
    pub(crate) learned: Learned,
    pub(crate) groups: Vec<Option<Group>>,
    free_groups: Vec<u32>,
    by_id: BTreeMap<RequestId, u32>,
    /// Whoever runs, in rank order.
    pub(crate) running: Vec<(Rank, u32)>,
    pub(crate) preempted: BTreeSet<(Rank, u32)>,
    /// Whoever waits, by tenant.
    pub(crate) waiting: Vec<BTreeSet<(Rank, u32)>>,
    pub(crate) waiting_count: usize,
    pub(crate) running_seqs: u32,
    /// Sum of the worst cases of guaranteed requests, in pages.
    pub(crate) guaranteed_pages: u64,
    /// Pages that prompts under way have yet to take.
    pub(crate) promised: u64,
    /// Pages that pins keep from everybody.
    pub(crate) pinned: u64,
    generations: Vec<u32>,
    free_seqs: Vec<u32>,
    pub(crate) step: Step,
    pub(crate) placed: Vec<Placed>,
    /// Requests that came back from swap space in the step under way.
    pub(crate) resumed: Vec<u32>,
    /// Requests that left for swap space in the step under way.
    pub(crate) left: Vec<u32>,
    pub(crate) order: Vec<(u32, u32)>,
    /// Whether somebody waits for pages: see [`Scheduler::is_short_of_pages`].
    short_of_pages: bool,
    /// Whether somebody gave way in the step under way: nobody is let in then.
    pub(crate) gave_way: bool,
    pub(crate) cancelled: Vec<u32>,
    under_way: bool,
    draining: bool,
    arrivals: u64,
    pub(crate) notices: Vec<Notice>,
    pub(crate) stats: Stats,
    pub(crate) hash: DecisionHash,
    /// Smoothed time between two requests' ends, and the last end.
    finish_interval: u64,
    /// Smoothed tokens of an answer, all sequences together, times [`SMOOTH`].
    answer: u64,
    last_finish: Option<Nanos>,
}

impl Scheduler {
    /// A scheduler over an empty pool. `cost` is what it believes.
    #[must_use]
    pub fn new(mut config: SchedulerConfig, kv: KvCache, cost: CostModel) -> Self {
        // A step has room for one token of every sequence, or prompts would never get any.
        config.max_seqs = config.max_seqs.max(1);
        config.max_batched_tokens = config.max_batched_tokens.max(config.max_seqs);
        if config.tenants.is_empty() {
            config.tenants.push(crate::config::Tenant::FREE);
        }
        Self {
            waiting: vec![BTreeSet::new(); config.tenants.len()],
            config,
            kv,
            learned: Learned::new(cost.clone()),
            cost,
            groups: Vec::new(),
            free_groups: Vec::new(),
            by_id: BTreeMap::new(),
            running: Vec::new(),
            preempted: BTreeSet::new(),
            waiting_count: 0,
            running_seqs: 0,
            guaranteed_pages: 0,
            promised: 0,
            pinned: 0,
            generations: Vec::new(),
            free_seqs: Vec::new(),
            step: Step::default(),
            placed: Vec::new(),
            resumed: Vec::new(),
            left: Vec::new(),
            order: Vec::new(),
            short_of_pages: false,
            gave_way: false,
            cancelled: Vec::new(),
            under_way: false,
            draining: false,
            arrivals: 0,
            notices: Vec::new(),
            stats: Stats::default(),
            hash: DecisionHash::default(),
            finish_interval: 0,
            answer: 0,
            last_finish: None,
        }
    }

    /// What could ever be let in.
    #[must_use]
    pub fn room(&self) -> Room {
        Room {
            layout: self.kv.layout().clone(),
            pages: u64::from(self.kv.pages()).saturating_sub(self.pinned),
            caps: self.config.tenants.iter().map(|t| t.cap).collect(),
            chunk: self.config.max_batched_tokens,
            queue: self.config.max_queued,
        }
    }

    /// Takes a request in, or says why not and when to try again.
    ///
    /// # Errors
    /// [`Refusal`]. The request has left no trace then.
    pub fn submit(&mut self, request: Request, now: Nanos) -> Result<(), Refusal> {
        let tenant = request.scope().tenant;
        let refuse = |reason| Refusal {
            reason,
            retry_after: None,
        };
        if self.by_id.contains_key(&request.id()) {
            return Err(refuse(Reason::Duplicate));
        }
        if self.draining {
            return Err(refuse(Reason::Draining));
        }
        let width = request.fan().width();
        if width > self.config.max_seqs {
            return Err(refuse(Reason::TooWide {
                width,
                max: self.config.max_seqs,
            }));
        }
        let worst = worst_case(self.kv.layout(), &request, self.config.max_batched_tokens);
        let pool = u64::from(self.kv.pages()).saturating_sub(self.pinned);
        if worst > pool {
            return Err(refuse(Reason::NeverFits {
                pages: worst,
                available: pool,
            }));
        }
        let cap = self.config.tenants[usize::from(tenant.0)].cap;
        if worst > u64::from(cap) {
            return Err(refuse(Reason::OverTenantCap {
                pages: worst,
                cap: u64::from(cap),
            }));
        }
        if self.waiting_count >= self.config.max_queued.saturating_add(self.free_places()) {
            return Err(Refusal {
                reason: Reason::QueueFull {
                    waiting: self.waiting_count,
                },
                retry_after: Some(Nanos(self.finish_interval.max(1_000_000))),
            });
        }
        self.arrivals += 1;
        let rank = Rank::new(now, request.priority(), self.config.class, self.arrivals);
        let id = request.id();
        let group = Group {
            request,
            rank,
            phase: Phase::Waiting,
            seqs: Vec::new(),
            done: Vec::new(),
            forked: false,
            keys: None,
            // Below the pool's pages.
            worst: u32::try_from(worst).unwrap_or(u32::MAX),
            guaranteed: false,
            promised: 0,
            stalled: false,
            swaps: 0,
            recomputes: 0,
            cached_tokens: 0,
            prompt_computed: 0,
            placed: 0,
        };
        let gi = self.free_groups.pop().unwrap_or_else(|| {
            self.groups.push(None);
            u32::try_from(self.groups.len() - 1).unwrap_or(u32::MAX)
        });
        self.groups[gi as usize] = Some(group);
        self.by_id.insert(id, gi);
        self.waiting[usize::from(tenant.0)].insert((rank, gi));
        self.waiting_count += 1;
        Ok(())
    }

    /// Drops a request, in whatever state it is. Unknown ids and repetitions do nothing; `false` then.
    /// While a step is under way it goes when that is done.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let Some(&gi) = self.by_id.get(&id) else {
            return false;
        };
        if self.under_way {
            let new = !self.cancelled.contains(&gi);
            if new {
                self.cancelled.push(gi);
            }
            return new;
        }
        self.notices.push(Notice::Cancelled { request: id });
        self.remove(gi);
        true
    }

    /// Begins anew over an empty pool, as after a fault that leaves nothing to trust: whoever is in flight is forgotten
    /// without a notice. What it was told and has learned, its counters and its decision hash stay.
    pub fn restart(&mut self) {
        let groups = std::mem::take(&mut self.groups).into_iter().flatten();
        let tables = groups.flat_map(|g| g.seqs).filter_map(|s| s.table);
        self.kv.restart(tables);
        let none = KvCache::new(KvConfig::new(self.kv.layout().clone(), 0));
        let kv = std::mem::replace(&mut self.kv, none);
        let fresh = Self::new(self.config.clone(), kv, self.cost.clone());
        let old = std::mem::replace(self, fresh);
        self.step.number = old.step.number;
        self.stats = old.stats;
        self.hash = old.hash;
    }

    /// Whether a request has not run yet.
    #[must_use]
    pub fn is_waiting(&self, id: RequestId) -> bool {
        let gi = self.by_id.get(&id);
        gi.is_some_and(|gi| self.group(*gi).phase == Phase::Waiting)
    }

    pub(crate) fn place_of(&self, id: RequestId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// From now on nobody is let in; whoever is in, ends.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// The next step; `None` where there is nothing to do. It is under way until [`Scheduler::commit`] or
    /// [`Scheduler::fail`].
    pub fn schedule(&mut self, _now: Nanos) -> Option<&Step> {
        debug_assert!(!self.under_way, "one step at a time");
        self.step.number += 1;
        self.step.rows.clear();
        self.step.tokens.clear();
        self.placed.clear();
        self.resumed.clear();
        self.left.clear();
        let mut budget = self.begin();
        self.gave_way = false;
        self.run(&mut budget);
        // Whoever just gave way would come back at once, to give way again.
        if !self.gave_way {
            self.admit(&mut budget);
        }
        self.short_of_pages = budget.tokens > 0
            && self.running_seqs < self.config.max_seqs
            && (self.waiting_count > 0
                || !self.preempted.is_empty()
                || self.running.iter().any(|r| self.group(r.1).stalled));
        let moves = self.kv.has_moves();
        if self.step.rows.is_empty() && !moves {
            // Changes of tables wait for the next step.
            self.step.number -= 1;
            return None;
        }
        let mut kv = std::mem::take(&mut self.step.kv);
        self.kv.drain(&mut kv);
        self.step.kv = kv;
        self.hash.step(&self.step);
        self.stats.step(&self.step);
        self.under_way = true;
        Some(&self.step)
    }

    /// The step under way has ended, one way or another.
    pub(crate) fn end_step(&mut self) {
        self.under_way = false;
        self.step.events.clear();
        self.kv.complete();
    }

    pub(crate) fn group(&self, gi: u32) -> &Group {
        self.groups[gi as usize]
            .as_ref()
            .expect("an index is kept only of living requests")
    }

    pub(crate) fn group_mut(&mut self, gi: u32) -> &mut Group {
        self.groups[gi as usize]
            .as_mut()
            .expect("an index is kept only of living requests")
    }

    pub(crate) fn event(&mut self, event: SeqEvent) {
        self.step.events.push((self.kv.deltas_so_far(), event));
    }

    /// An id for a new sequence.
    pub(crate) fn new_seq(&mut self) -> SeqId {
        let slot = self.free_seqs.pop().unwrap_or_else(|| {
            self.generations.push(0);
            u32::try_from(self.generations.len() - 1).unwrap_or(u32::MAX)
        });
        SeqId(u64::from(self.generations[slot as usize]) << 32 | u64::from(slot))
    }

    /// A sequence ends: its blocks go back, its id is used again under another generation.
    pub(crate) fn drop_seq(&mut self, id: SeqId, table: Option<Table>) {
        if let Some(t) = table {
            self.kv.release(t);
        }
        self.event(SeqEvent::Drop { seq: id });
        #[allow(clippy::cast_possible_truncation, reason = "the low half is the slot")]
        let slot = id.0 as u32;
        let generation = &mut self.generations[slot as usize];
        *generation = generation.wrapping_add(1);
        self.free_seqs.push(slot);
    }

    /// Takes a request out of whatever set it is in.
    pub(crate) fn detach(&mut self, gi: u32) {
        let group = self.group_mut(gi);
        let (rank, phase, promised) = (group.rank, group.phase, group.promised);
        group.promised = 0;
        let (width, guaranteed, worst) = (group.width(), group.guaranteed, group.worst);
        group.guaranteed = false;
        group.stalled = false;
        let tenant = usize::from(group.request.scope().tenant.0);
        if !planted::is(Bug::PromiseKept) {
            self.promised -= u64::from(promised);
        }
        if guaranteed {
            self.guaranteed_pages -= u64::from(worst);
        }
        match phase {
            Phase::Waiting => {
                self.waiting[tenant].remove(&(rank, gi));
                self.waiting_count -= 1;
            }
            Phase::Running => {
                if let Ok(at) = self.running.binary_search(&(rank, gi)) {
                    self.running.remove(at);
                }
                self.running_seqs -= width;
            }
            Phase::Swapped | Phase::Dropped => {
                self.preempted.remove(&(rank, gi));
            }
        }
    }

    /// Ends a request: everything that it holds goes back.
    pub(crate) fn remove(&mut self, gi: u32) -> Option<Group> {
        self.detach(gi);
        let mut group = self.groups[gi as usize].take()?;
        let leaks = planted::is(Bug::CancelLeaks) && group.done.is_empty();
        for s in &mut group.seqs {
            let table = s.table.take();
            if leaks {
                // Forgetting it is the bug; dropping it would be noticed at once.
                std::mem::forget(table);
                continue;
            }
            self.drop_seq(s.id, table);
        }
        self.by_id.remove(&group.request.id());
        self.free_groups.push(gi);
        Some(group)
    }

    pub(crate) fn note_finish(&mut self, now: Nanos, answer: u64) {
        self.answer = self.answer - self.answer / SMOOTH + answer;
        if let Some(last) = self.last_finish {
            let gap = now.0.saturating_sub(last.0);
            self.finish_interval =
                self.finish_interval - self.finish_interval / SMOOTH + gap / SMOOTH;
        }
        self.last_finish = Some(now);
    }

    /// Tokens by which those that run grow, all together, until two of them have ended: two answers, whatever
    /// their number.
    pub(crate) const fn growth(&self) -> u64 {
        2 * self.answer / SMOOTH
    }

    /// What has happened since the last call, in order.
    pub fn take_notices(&mut self, into: &mut Vec<Notice>) {
        into.clear();
        std::mem::swap(&mut self.notices, into);
    }

    /// Counters.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The pool.
    #[must_use]
    pub const fn kv(&self) -> &KvCache {
        &self.kv
    }

    /// What it was told.
    #[must_use]
    pub const fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Replaces what it believes of times.
    pub fn believe(&mut self, cost: CostModel) {
        self.learned = Learned::new(cost.clone());
        self.cost = cost;
    }

    /// A digest of every decision so far.
    #[must_use]
    pub const fn decision_hash(&self) -> u64 {
        self.hash.get()
    }

    /// Whether, in the step scheduled last, somebody waited although the step had room for more tokens and
    /// sequences: what was lacking is pages.
    #[must_use]
    pub const fn is_short_of_pages(&self) -> bool {
        self.short_of_pages
    }

    /// Of those that have not begun, how many the next step can let in at most: they do not wait for a place, only for a step.
    const fn free_places(&self) -> usize {
        if self.short_of_pages {
            return 0;
        }
        self.config.max_seqs.saturating_sub(self.running_seqs) as usize
    }

    /// Requests that have not begun.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting_count
    }

    /// Requests that gave way and wait to go on.
    #[must_use]
    pub fn preempted(&self) -> usize {
        self.preempted.len()
    }

    /// Requests that run.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that run, or will when their prompt is done.
    #[must_use]
    pub const fn running_seqs(&self) -> u32 {
        self.running_seqs
    }

    /// Whether nobody is in.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Keeps a cached prefix; what it takes is no longer promised to anybody. `None` where nothing of it is
    /// cached, or somebody has been promised those pages.
    pub fn pin(&mut self, scope: &plimsoll_kv::Scope, tokens: &[u32]) -> Option<plimsoll_kv::Pin> {
        let pin = self.kv.pin(scope, tokens)?;
        let pages = pin.table().blocks();
        let room = u64::from(self.kv.pages()).saturating_sub(self.pinned);
        // Every request that was let in must still be able to end.
        let largest = self
            .groups
            .iter()
            .flatten()
            .map(|g| u64::from(g.worst))
            .max();
        let needed = self.guaranteed_pages.max(largest.unwrap_or(0));
        if needed + pages > room {
            self.kv.unpin(pin);
            return None;
        }
        self.pinned += pages;
        Some(pin)
    }

    /// Lets a pinned prefix go.
    pub fn unpin(&mut self, pin: plimsoll_kv::Pin) {
        self.pinned -= pin.table().blocks();
        self.kv.unpin(pin);
    }

    /// Blocks in all tables, one page counted once per table that holds it. Walks all running requests.
    #[must_use]
    pub fn table_blocks(&self) -> u64 {
        let running = self.running.iter().map(|r| self.group(r.1));
        running.flat_map(Group::tables).map(Table::blocks).sum()
    }

    /// Who holds every page. Walks all tables: for reports, not for every step.
    #[must_use]
    pub fn census(&self, pins: &[plimsoll_kv::Pin]) -> Census {
        let tables = self.groups.iter().flatten().flat_map(|g| {
            let owner = Owner {
                request: g.request.id().0,
                beam: matches!(g.request.fan(), Fan::Beam(_)),
            };
            g.tables().map(move |t| (owner, t))
        });
        self.kv
            .census(tables, pins.iter().map(plimsoll_kv::Pin::table))
    }

    /// Checks everything that must hold between two calls, recounting from scratch.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check_integrity(&self, pins: &[plimsoll_kv::Pin]) -> Result<(), plimsoll_kv::Violation> {
        let tables = self.groups.iter().flatten().flat_map(Group::tables);
        self.kv
            .check_integrity(tables.chain(pins.iter().map(plimsoll_kv::Pin::table)))?;
        crate::integrity::check(self)
    }

    /// The step under way, or the last one.
    #[must_use]
    pub const fn current(&self) -> &Step {
        &self.step
    }

    pub(crate) const fn is_under_way(&self) -> bool {
        self.under_way
    }
}

/// The pool goes with the scheduler, so tables that still hold blocks of it owe nobody anything: a run that
/// is cut off, or a log that stops early. Release builds have no check of tables to be told.
#[cfg(debug_assertions)]
impl Drop for Scheduler {
    fn drop(&mut self) {
        // What a panic left behind may not be consistent, and no table checks itself then.
        if std::thread::panicking() {
            return;
        }
        let groups = self.groups.iter_mut().flatten();
        for seq in groups.flat_map(|g| g.seqs.iter_mut()) {
            if let Some(table) = seq.table.take() {
                self.kv.release(table);
            }
        }
    }
}
