//! Who gives way, and how.
//!
//! Victims are taken from the end of the step's order: tenants above their floor first, then the lowest
//! class, then the newest; never a guaranteed request, never one that already has rows. Cost decides only
//! how: to swap space, forgotten, or both (a prefix to swap space, the rest forgotten). A prompt that
//! began without room for all of it only loses its last blocks, as many as are wanted, and stays.

use plimsoll_kv::planted::{self, Bug};
use plimsoll_kv::{Short, Table};
use plimsoll_units::{Bytes, Nanos};

use crate::config::Preempt;
use crate::cost::{CostModel, StepLoad};
use crate::group::{Group, Phase};
use crate::notice::Notice;
use crate::scheduler::Scheduler;
use crate::step::SeqEvent;

/// A link that has not been seen is tried where it would be the better way if it were this many times as
/// fast as believed.
const DOUBT: u128 = 2;

/// How a victim gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Swap,
    /// Tokens up to here to swap space, the rest forgotten.
    Part(u32),
    Recompute,
}

impl Scheduler {
    /// Finds pages for the request at place `i` of the order. `false` where it gets no rows in this step:
    /// it has given way itself, or pages are on their way.
    pub(crate) fn make_room(&mut self, i: usize, gi: u32, short: Short) -> bool {
        let capped = short.available < self.kv.available();
        if !capped && self.kv.available() + self.kv.in_transit() >= short.needed {
            // Blocks in a transfer can be had when it is done.
            return false;
        }
        let tenant = self.group(gi).request.scope().tenant;
        let later = i + 1..self.order.len();
        let victim = later.clone().rev().find_map(|j| {
            let j = if planted::is(Bug::FirstGivesWay) {
                later.start + later.end - 1 - j
            } else {
                j
            };
            let v = self.order[j].0;
            let group = self.groups[v as usize].as_ref()?;
            let gives = group.phase == Phase::Running
                && (!group.guaranteed || planted::is(Bug::GuaranteedGivesWay))
                && group.placed != self.step.number
                && (!capped || group.request.scope().tenant == tenant);
            gives.then_some(v)
        });
        if let Some(v) = victim {
            let lacking = short.needed.saturating_sub(short.available);
            if !self.shorten(v, lacking) {
                self.preempt(v, gi, short);
            }
            return true;
        }
        if self.reclaim(|g| !capped || g.request.scope().tenant == tenant) {
            return true;
        }
        let group = self.group(gi);
        if group.guaranteed {
            return false;
        }
        if !capped && !self.step.rows.is_empty() && self.can_stall(group) {
            // Others go on, and may take from it what they need: it waits with what it has.
            self.group_mut(gi).stalled = true;
            return true;
        }
        self.preempt(gi, gi, short);
        false
    }

    /// Whether a request can lose its last blocks alone.
    pub(crate) fn can_stall(&self, group: &Group) -> bool {
        group.request.fan().width() == 1 && self.kv.layout().groups.iter().all(|g| g.keeps_all())
    }

    /// A stalled request loses its last blocks, at least `pages` of them, and goes on from there when it can.
    /// `false` where it must give way altogether, or had better: one that decodes would lose its blocks piece
    /// by piece, and has somebody waiting for each of its tokens.
    fn shorten(&mut self, gi: u32, pages: u32) -> bool {
        let Self {
            groups, kv, stats, ..
        } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return false;
        };
        let Some(s) = group.seqs.first_mut().filter(|_| group.stalled) else {
            return false;
        };
        let (seq, len) = (s.id, s.len());
        let Some(table) = s.table.as_mut() else {
            return false;
        };
        let (committed, blocks) = (table.committed(), table.blocks());
        if len <= committed + 1 {
            return false;
        }
        let layout = &kv.layout().groups;
        let slots = layout.iter().map(|g| g.slots).max().unwrap_or(1).max(1);
        let kept = |to: u32| -> u64 {
            let blocks = layout.iter().map(|g| u64::from(to.div_ceil(g.slots)));
            blocks.sum()
        };
        let mut to = committed.saturating_sub(1) / slots * slots;
        while to > 0 && blocks.saturating_sub(kept(to)) < u64::from(pages) {
            to -= slots;
        }
        if to == 0 || kv.truncate(table, to).is_err() {
            return false;
        }
        let freed = u32::try_from(blocks - table.blocks()).unwrap_or(u32::MAX);
        group.promised += freed;
        stats.forgotten_tokens += u64::from(committed - to);
        self.promised += u64::from(freed);
        self.gave_way = true;
        if !planted::is(Bug::StallUntold) {
            self.event(SeqEvent::Truncate { seq, to });
        }
        true
    }

    /// Takes back the blocks that only requests in swap space still hold on the device: those requests are
    /// computed again, the last in rank first, until a page can be had. `false` where there are none.
    pub(crate) fn reclaim(&mut self, of: impl Fn(&Group) -> bool + Copy) -> bool {
        let held = self.preempted.iter().rev().map(|p| p.1).find(|&gi| {
            let group = self.group(gi);
            group.phase == Phase::Swapped
                && !self.left.contains(&gi)
                && of(group)
                && group.tables().any(|t| t.on_device() > 0)
        });
        let Some(gi) = held else { return false };
        let before = self.kv.available();
        self.forget(gi);
        self.group_mut(gi).phase = Phase::Dropped;
        self.kv.available() > before || self.reclaim(of)
    }

    /// A running request gives way to `by`, who lacks pages.
    pub(crate) fn preempt(&mut self, gi: u32, by: u32, short: Short) {
        self.gave_way = true;
        let (way, cost) = self.way(gi);
        self.detach(gi);
        let mut swapped_pages = 0;
        let lost_before = self.stats.forgotten_tokens;
        let way = match way {
            Way::Recompute => Way::Recompute,
            Way::Swap | Way::Part(_) => self.send(gi, way, &mut swapped_pages),
        };
        if way == Way::Recompute {
            self.forget(gi);
        }
        let forgotten_tokens = self.stats.forgotten_tokens - lost_before;
        let by = self.group(by).request.id();
        let group = self.group_mut(gi);
        let rank = group.rank;
        if way == Way::Recompute {
            group.phase = Phase::Dropped;
            group.recomputes += 1;
        } else {
            group.phase = Phase::Swapped;
            group.swaps += 1;
        }
        let request = group.request.id();
        self.preempted.insert((rank, gi));
        if way == Way::Recompute {
            self.stats.recomputes += 1;
        } else {
            self.stats.swaps += 1;
            self.left.push(gi);
        }
        self.notices.push(Notice::Preempted {
            request,
            by,
            short,
            swapped_pages,
            forgotten_tokens: u32::try_from(forgotten_tokens).unwrap_or(u32::MAX),
            cost,
        });
    }

    /// Sends a request's blocks to swap space; what was done.
    fn send(&mut self, gi: u32, way: Way, pages: &mut u32) -> Way {
        let Self {
            groups, kv, stats, ..
        } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return Way::Recompute;
        };
        let mut cut = None;
        if let (Way::Part(to), Some(s)) = (way, group.seqs.first_mut())
            && let Some(t) = s.table.as_mut()
        {
            let lost = t.committed() - to.min(t.committed());
            if kv.truncate(t, to).is_err() {
                return Way::Recompute;
            }
            stats.forgotten_tokens += u64::from(lost);
            cut = Some((s.id, to));
        }
        let tag = group.request.id().0;
        let mut tables: Vec<&mut Table> = group
            .seqs
            .iter_mut()
            .filter_map(|s| s.table.as_mut())
            .collect();
        let sent = kv.swap_out(tag, &mut tables);
        if let Some((seq, to)) = cut {
            self.event(SeqEvent::Truncate { seq, to });
        }
        match sent {
            Ok(n) => {
                *pages = n;
                way
            }
            Err(_) => Way::Recompute,
        }
    }

    /// Forgets what a request has computed; its tokens stay.
    pub(crate) fn forget(&mut self, gi: u32) {
        let Self {
            groups, kv, stats, ..
        } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return;
        };
        let prompt = group.request.prompt_len();
        let mut events = Vec::new();
        for (i, s) in group.seqs.iter_mut().enumerate() {
            let Some(t) = s.table.take() else { continue };
            // A shared prompt is computed again once.
            let shared = if i > 0 { prompt.min(t.committed()) } else { 0 };
            stats.forgotten_tokens += u64::from(t.committed() - shared);
            kv.release(t);
            events.push(s.id);
        }
        for seq in events {
            self.event(SeqEvent::Truncate { seq, to: 0 });
        }
    }

    /// How a victim gives way, whichever the cost model finds cheaper, and what that is believed to cost.
    fn way(&mut self, gi: u32) -> (Way, Nanos) {
        let Self {
            groups,
            kv,
            cost,
            config,
            running_seqs,
            learned,
            ..
        } = self;
        let Some(group) = groups[gi as usize].as_ref() else {
            return (Way::Recompute, Nanos(0));
        };
        let beside = u64::from(running_seqs.saturating_sub(group.width()));
        let chunk = u64::from(config.max_batched_tokens);
        let recompute = |cost: &CostModel, from| {
            let load = computed_again(cost, group, from);
            u128::from(cost.added(&load, beside, chunk).0)
        };
        let priced = |way, nanos| (way, Nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        let again = recompute(cost, 0);
        if config.preempt == Preempt::Recompute {
            return priced(Way::Recompute, again);
        }
        let tables: Vec<&Table> = group.tables().collect();
        let moved = kv.swappable(&tables);
        let page = kv.layout().page;
        let free = kv.swap_free();
        let forced = config.preempt == Preempt::Swap;
        let transfer = |cost: &CostModel, pages: u32| {
            let bytes = page.times(u64::from(pages)).unwrap_or(Bytes::MAX);
            2 * u128::from(cost.swap(bytes, u64::from(pages)).0)
        };
        if moved <= free {
            // Whoever never swaps never learns how fast blocks move.
            let doubt = if learned.is_link_unseen() { DOUBT } else { 1 };
            let swap = transfer(cost, moved);
            return if forced || swap <= doubt * again {
                priced(Way::Swap, swap)
            } else {
                learned.age_link(cost);
                priced(Way::Recompute, again)
            };
        }
        // What does not fit into swap space is computed again, where one sequence's start can be kept.
        let one_kind = matches!(&kv.layout().groups[..], [g] if g.keeps_all());
        let slots = kv.layout().groups.first().map_or(1, |g| g.slots);
        let to = free.saturating_mul(slots);
        if group.seqs.len() == 1 && one_kind && free > 0 {
            let part = transfer(cost, free) + recompute(cost, to);
            if forced || part < again {
                return priced(Way::Part(to), part);
            }
        }
        priced(Way::Recompute, again)
    }
}

/// The rows that compute a request's tokens from `from` on again; a shared prompt once.
fn computed_again(cost: &CostModel, group: &Group, from: u32) -> StepLoad {
    let prompt = group.request.prompt_len();
    let mut load = StepLoad::default();
    for (i, t) in group.tables().enumerate() {
        let start = if i == 0 {
            from
        } else {
            prompt.min(t.committed())
        };
        let n = t.committed().saturating_sub(start);
        if n > 0 {
            cost.add_row(&mut load, u64::from(start), u64::from(n), 0);
        }
    }
    load
}
