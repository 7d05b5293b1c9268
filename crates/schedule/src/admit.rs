//! Who comes back, who is let in, and who is guaranteed its worst case.
//!
//! In rank order, and nobody overtakes: the first who does not fit keeps the others out, so that pages
//! gather for it. Only a tenant at its cap is passed over.

use std::ops::Bound;

use plimsoll_kv::planted::{self, Bug};
use plimsoll_kv::{Hit, PromptKeys, Table};

use crate::config::Admission;
use crate::group::{Group, Phase, Rank, Sequence};
use crate::rows::Budget;
use crate::scheduler::Scheduler;
use crate::step::SeqEvent;

/// A prompt that does not fit begins where this part of the pool is free: one over this.
const LEAST: u64 = 128;

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    In,
    /// It does not fit yet, and nobody passes it.
    Blocked,
    /// It must be guaranteed its worst case and cannot be yet. Others may pass it without a guarantee:
    /// older requests run, and when it is the oldest nobody passes it.
    Passed,
    /// Its tenant holds all that it may.
    Capped,
}

impl Scheduler {
    /// Lets in whoever fits.
    pub(crate) fn admit(&mut self, budget: &mut Budget) {
        let mut capped = vec![false; self.config.tenants.len()];
        // The last one that was passed: who comes after it is let in without a guarantee or not at all.
        let mut passed = None;
        while budget.tokens > 0 {
            let Some(gi) = self.next_candidate(&capped, passed) else {
                return;
            };
            match self.try_admit(gi, passed.is_some()) {
                Verdict::Passed => passed = Some((self.group(gi).rank, gi)),
                Verdict::In => {
                    // Short here means that it runs but waits for pages.
                    let _ = self.place(gi, budget);
                }
                Verdict::Capped => {
                    let tenant = self.group(gi).request.scope().tenant;
                    let of = |g: &Group| g.request.scope().tenant == tenant;
                    let runs = self.running.iter().any(|r| of(self.group(r.1)));
                    if !runs
                        && (self.reclaim(of) || self.running.is_empty() && self.reclaim(|_| true))
                    {
                        continue;
                    }
                    capped[usize::from(tenant.0)] = true;
                }
                Verdict::Blocked => {
                    // Nobody runs, so what it lacks is held by others who gave way.
                    if self.running.is_empty() && self.reclaim(|_| true) {
                        continue;
                    }
                    return;
                }
            }
        }
    }

    /// The first in rank order of those that gave way and those that wait; tenants below their floor before
    /// the others where both only wait.
    fn next_candidate(&self, capped: &[bool], passed: Option<(Rank, u32)>) -> Option<u32> {
        let free = |gi: u32| !capped[usize::from(self.group(gi).request.scope().tenant.0)];
        let after = passed.map_or(Bound::Unbounded, Bound::Excluded);
        let back = self
            .preempted
            .range((after, Bound::Unbounded))
            .find(|p| free(p.1));
        let new = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(t, _)| !capped[*t])
            .filter_map(|(_, queue)| queue.range((after, Bound::Unbounded)).next())
            .min_by_key(|(rank, gi)| (self.is_over_floor(*gi), *rank));
        match (back, new) {
            (Some(b), Some(n)) if n.0 < b.0 => Some(n.1),
            (Some(b), _) => Some(b.1),
            (None, n) => n.map(|n| n.1),
        }
    }

    /// Pages left free for those that run to go on a little.
    pub(crate) fn headroom(&self) -> u64 {
        let slots = self
            .kv
            .layout()
            .groups
            .iter()
            .map(|g| g.slots)
            .filter(|s| *s > 0)
            .min()
            .unwrap_or(1);
        let tokens = u64::from(self.running_seqs) * u64::from(self.config.headroom_tokens);
        tokens.div_ceil(u64::from(slots))
    }

    /// Pages that those who run will want until two of them have ended.
    pub(crate) fn soon(&self) -> u64 {
        let slots = self
            .kv
            .layout()
            .groups
            .iter()
            .map(|g| g.slots)
            .filter(|s| *s > 0)
            .min()
            .unwrap_or(1);
        self.growth().div_ceil(u64::from(slots))
    }

    /// Whether a prompt that does not fit yet may begin with the pages that there are: it gives them back
    /// from its end when those that run need them, and they would lie idle otherwise. Its promise exceeds what
    /// is free, so nobody else is let in until it has what it lacks.
    fn may_begin(&self, gi: u32, room: u64) -> bool {
        let least = u64::from(self.kv.pages()).div_ceil(LEAST);
        !self.running.is_empty() && room >= least + self.soon() && self.can_stall(self.group(gi))
    }

    fn try_admit(&mut self, gi: u32, passes: bool) -> Verdict {
        let group = self.group(gi);
        let (rank, phase, width) = (group.rank, group.phase, group.width());
        let tenant = group.request.scope().tenant;
        if self.left.contains(&gi) || self.running_seqs + width > self.config.max_seqs {
            return Verdict::Blocked;
        }
        let free = u64::from(self.kv.available());
        let headroom = self.headroom();
        let room = free.saturating_sub(self.promised).saturating_sub(headroom);
        let guarantee = self.must_guarantee(gi);
        // Promised pages and headroom are no matter to whoever can take them back.
        let room = if guarantee { free } else { room };
        if room == 0 && !self.running.is_empty() {
            return Verdict::Blocked;
        }
        let cap = u64::from(self.config.tenants[usize::from(tenant.0)].cap);
        let cap_room = cap.saturating_sub(self.kv.charged(tenant));
        if cap_room == 0 {
            return Verdict::Capped;
        }
        if guarantee && (passes || !self.can_guarantee(gi)) {
            let older = self.running.first().is_some_and(|r| r.0 < rank);
            return if older && self.config.admission == Admission::Optimistic {
                Verdict::Passed
            } else {
                Verdict::Blocked
            };
        }
        if phase == Phase::Swapped {
            let group = self.group(gi);
            let tables: Vec<&Table> = group.tables().collect();
            let back = u64::from(self.kv.pages_on_host(&tables));
            let more: u32 = group
                .seqs
                .iter()
                .filter_map(|s| Some((s, s.table.as_ref()?)))
                .map(|(s, t)| self.kv.pages_for(t, s.len() - t.committed()))
                .sum();
            // Blocks that siblings share, or that will leave a window, are counted more than once there.
            let held: u64 = tables.iter().map(|t| t.on_device()).sum();
            let most = u64::from(group.worst).saturating_sub(held).max(back);
            let needed = (back + u64::from(more)).min(most);
            let more = u32::try_from(needed - back).unwrap_or(u32::MAX);
            if needed > cap_room {
                return Verdict::Capped;
            }
            if needed > room {
                return Verdict::Blocked;
            }
            let Self { groups, kv, .. } = self;
            let Some(group) = groups[gi as usize].as_mut() else {
                return Verdict::Blocked;
            };
            let tag = group.request.id().0;
            let mut tables: Vec<&mut Table> = group
                .seqs
                .iter_mut()
                .filter_map(|s| s.table.as_mut())
                .collect();
            if kv.swap_in(tag, &mut tables).is_err() {
                return Verdict::Blocked;
            }
            self.resumed.push(gi);
            self.enter(gi, rank, more);
        } else {
            let (hit, needed) = self.start(gi);
            if needed > cap_room {
                return Verdict::Capped;
            }
            let stalls = needed > room;
            if stalls && (guarantee || !self.may_begin(gi, room)) {
                return Verdict::Blocked;
            }
            let before = self.kv.available();
            self.begin_sequences(gi, hit);
            let taken = u64::from(before.saturating_sub(self.kv.available()));
            let needed = needed.saturating_sub(taken);
            let hit = hit.tokens;
            let new = phase == Phase::Waiting;
            let group = self.group_mut(gi);
            let prompt = group.request.prompt_len();
            if new {
                group.cached_tokens = hit;
            }
            if new {
                self.stats.queried_tokens += u64::from(prompt);
                self.stats.cached_tokens += u64::from(hit);
            }
            self.enter(gi, rank, u32::try_from(needed).unwrap_or(u32::MAX));
            self.group_mut(gi).stalled = stalls;
        }
        if guarantee {
            self.guarantee_through(rank);
        }
        Verdict::In
    }

    /// The cached prefix from which a request can start, and the pages that it takes from there to get to the
    /// end of what is known.
    fn start(&mut self, gi: u32) -> (Hit, u64) {
        let Self {
            groups, kv, config, ..
        } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return (Hit::default(), 0);
        };
        let tokens = match group.seqs.first() {
            Some(s) => &s.tokens[..group.leader_target() as usize],
            None => &group.request.prompt()[..],
        };
        let len = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let mut hit = Hit::default();
        if kv.has_prefix_cache() {
            // What was generated has addresses too, when it is computed again.
            let keys = match group.keys.take() {
                Some(k) if group.phase == Phase::Waiting => k,
                _ => kv.keys(group.request.scope(), tokens),
            };
            // At least one token is always run.
            if group.request.reads_cache() {
                hit = kv.lookup(&keys, tokens, len - 1);
            }
            group.keys = Some(keys);
        }
        let chunk = config.max_batched_tokens;
        let no_keys = PromptKeys::default();
        let keys = group.keys.as_ref().unwrap_or(&no_keys);
        let mut needed = kv.pages_from(keys, hit, len, chunk);
        if group.seqs.len() > 1 {
            let prompt = u64::from(len);
            for s in &group.seqs {
                needed += kv
                    .layout()
                    .groups
                    .iter()
                    .map(|g| match g.is_state() {
                        true => u64::from(g.state_pages),
                        false => {
                            let slots = u64::from(g.slots.max(1));
                            u64::from(s.len()).div_ceil(slots) - prompt / slots
                        }
                    })
                    .sum::<u64>();
            }
        }
        (hit, needed.min(u64::from(group.worst)))
    }

    /// Gives a request its leading sequence, where it has none yet, and that the cached prefix.
    fn begin_sequences(&mut self, gi: u32, hit: Hit) {
        if self.group(gi).seqs.is_empty() {
            let id = self.new_seq();
            let group = self.group_mut(gi);
            let tokens = group.request.prompt().to_vec();
            group.seqs.push(Sequence {
                id,
                index: 0,
                table: None,
                tokens,
                score: 0.0,
                logprobs: Vec::new(),
                ended: false,
            });
            let request = group.request.id();
            self.event(SeqEvent::Start {
                seq: id,
                request,
                index: 0,
            });
        }
        let Self { groups, kv, .. } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return;
        };
        let scope = group.request.scope();
        let mut table = kv.table(group.seqs[0].id, scope, group.request.prompt_len());
        if let Some(keys) = &group.keys {
            kv.attach(&mut table, keys, hit);
        }
        group.seqs[0].table = Some(table);
    }

    fn enter(&mut self, gi: u32, rank: Rank, promised: u32) {
        // Leaves its queue, joins those that run.
        self.detach(gi);
        let group = self.group_mut(gi);
        group.phase = Phase::Running;
        group.promised = promised;
        let width = group.width();
        self.promised += u64::from(promised);
        self.running_seqs += width;
        if let Err(at) = self.running.binary_search(&(rank, gi)) {
            self.running.insert(at, (rank, gi));
        }
    }

    /// Whether a candidate may run only with its worst case guaranteed: by policy, since it gave way too
    /// often, or since it would come before somebody who has been guaranteed.
    pub(crate) fn must_guarantee(&self, gi: u32) -> bool {
        let group = self.group(gi);
        self.config.admission == Admission::Guaranteed
            || (group.preemptions() >= self.config.max_preemptions
                && !planted::is(Bug::PreemptionsUnbounded))
            || self
                .running
                .iter()
                .take_while(|r| self.group(r.1).guaranteed)
                .any(|r| r.0 > group.rank)
    }

    /// Whether the worst cases of everybody before it, and its own, fit beside those guaranteed already.
    fn can_guarantee(&self, gi: u32) -> bool {
        let group = self.group(gi);
        let before: u64 = self
            .running
            .iter()
            .take_while(|r| r.0 < group.rank)
            .map(|r| self.group(r.1))
            .filter(|g| !g.guaranteed)
            .map(|g| u64::from(g.worst))
            .sum();
        let pool = u64::from(self.kv.pages()).saturating_sub(self.pinned);
        if self.guaranteed_pages + before + u64::from(group.worst) > pool {
            return false;
        }
        // The guaranteed requests of every tenant fit within its cap as well.
        let caps = &self.config.tenants;
        if caps.iter().all(|t| u64::from(t.cap) >= pool) {
            return true;
        }
        let mut sums = vec![0_u64; caps.len()];
        let mut add = |g: &Group| {
            sums[usize::from(g.request.scope().tenant.0)] += u64::from(g.worst);
        };
        for &(r, other) in &self.running {
            let g = self.group(other);
            if g.guaranteed || r < group.rank {
                add(g);
            }
        }
        add(group);
        sums.iter()
            .zip(caps)
            .all(|(sum, t)| *sum <= u64::from(t.cap))
    }

    /// Guarantees everybody who runs, up to `rank`.
    fn guarantee_through(&mut self, rank: Rank) {
        for i in 0..self.running.len() {
            let (r, gi) = self.running[i];
            if r > rank {
                break;
            }
            self.guarantee(gi);
        }
    }

    pub(crate) fn guarantee(&mut self, gi: u32) {
        let group = self.group_mut(gi);
        if !group.guaranteed {
            group.guaranteed = true;
            let worst = group.worst;
            self.guaranteed_pages += u64::from(worst);
        }
    }
}

impl Group {
    /// Whether it has sequences that wait for the leading one to finish the prompt.
    pub(crate) fn waits_for_leader(&self) -> bool {
        self.seqs.len() > 1 && self.seqs.iter().skip(1).all(|s| s.table.is_none())
    }
}
