//! Which rows a running request gets in a step.

use plimsoll_kv::Short;
use plimsoll_kv::planted::{self, Bug};

use crate::group::{Group, Phase, Sequence};
use crate::request::Fan;
use crate::scheduler::{Placed, Scheduler};
use crate::step::{Output, Row, Step};

/// What is left of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Tokens.
    pub(crate) tokens: u32,
    /// Of them, kept for sequences that come later and want one each.
    pub(crate) kept: u32,
}

impl Budget {
    fn for_prompts(&self) -> u32 {
        self.tokens.saturating_sub(self.kept)
    }
}

/// Tokens that a request wants where it only goes on by one per sequence; 0 for one with more to compute.
fn decoding(group: &Group) -> u32 {
    let one_each = group
        .seqs
        .iter()
        .all(|s| s.table.is_some() && s.len() == s.committed() + 1);
    if one_each {
        u32::try_from(group.seqs.len()).unwrap_or(u32::MAX)
    } else {
        0
    }
}

impl Scheduler {
    /// The order of a step and its budget.
    pub(crate) fn begin(&mut self) -> Budget {
        if let Some(&(_, first)) = self.running.first()
            && !self.group(first).guaranteed
        {
            self.guarantee(first);
        }
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        let mut kept = 0;
        for &(_, gi) in &self.running {
            let wants = decoding(self.group(gi));
            kept += wants;
            order.push((gi, wants));
        }
        if self.config.tenants.len() > 1 {
            // Tenants below their floor come first: what they lack, the others give back.
            order.sort_by_key(|(gi, _)| self.is_over_floor(*gi));
        }
        self.order = order;
        Budget {
            tokens: self.config.max_batched_tokens,
            kept,
        }
    }

    pub(crate) fn is_over_floor(&self, gi: u32) -> bool {
        let tenant = self.group(gi).request.scope().tenant;
        let floor = self.config.tenants[usize::from(tenant.0)].floor;
        self.kv.charged(tenant) > u64::from(floor)
    }

    /// Gives rows to whoever runs, in order; whoever is short of pages takes them from the end.
    pub(crate) fn run(&mut self, budget: &mut Budget) {
        for i in 0..self.order.len() {
            let (gi, wants) = self.order[i];
            budget.kept -= wants;
            if self.group(gi).phase != Phase::Running {
                continue;
            }
            while let Err(short) = self.place(gi, budget) {
                if !self.make_room(i, gi, short) {
                    break;
                }
            }
        }
    }

    /// Gives a running request its rows: none where the budget is used up.
    ///
    /// # Errors
    /// [`Short`] where pages are lacking; nothing has changed then.
    pub(crate) fn place(&mut self, gi: u32, budget: &mut Budget) -> Result<(), Short> {
        let before = self.kv.available();
        let limit = self.room_under_cap(gi);
        let spare = self.spare(gi);
        let Self {
            groups,
            kv,
            step,
            placed,
            ..
        } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return Ok(());
        };
        let several = group.seqs.len() > 1;
        let apart = several && group.seqs.iter().all(|s| s.table.is_some());
        if !apart {
            let target = group.leader_target();
            let Some(s) = group.seqs.first_mut() else {
                return Ok(());
            };
            let Some(table) = s.table.as_mut() else {
                return Ok(());
            };
            let committed = table.committed();
            let left = target - committed;
            let mut n = left.min(if left == 1 {
                budget.tokens
            } else {
                budget.for_prompts()
            });
            if n == 0 {
                return Ok(());
            }
            if kv.has_prefix_cache()
                && kv.layout().has_state()
                && let Some(end) = kv
                    .layout()
                    .snapshot_after(committed, group.request.prompt_len())
            {
                n = n.min(end - committed);
            }
            if let Some(spare) = spare {
                n = kv.tokens_within(table, n, spare.min(limit));
                if n == 0 {
                    return Ok(());
                }
            }
            kv.prepare(table, n, limit)?;
            if committed + n == target {
                group.stalled = false;
            }
            let output = if several || committed + n < target {
                Output::None
            } else {
                output(group.request.fan(), group.forked)
            };
            if !planted::is(Bug::BudgetIgnored) {
                budget.tokens -= n;
            }
            let s = &group.seqs[0];
            push(
                step,
                placed,
                gi,
                0,
                s,
                group.request.id(),
                (committed, n),
                output,
            );
        } else if decoding(group) > 0 {
            let k = u32::try_from(group.seqs.len()).unwrap_or(u32::MAX);
            if budget.tokens < k {
                return Ok(());
            }
            let mut tables: Vec<_> = group
                .seqs
                .iter_mut()
                .filter_map(|s| s.table.as_mut().map(|t| (t, 1)))
                .collect();
            kv.prepare_all(&mut tables, limit)?;
            budget.tokens -= k;
            let output = output(group.request.fan(), true);
            for (i, s) in group.seqs.iter().enumerate() {
                let i = u32::try_from(i).unwrap_or(u32::MAX);
                push(
                    step,
                    placed,
                    gi,
                    i,
                    s,
                    group.request.id(),
                    (s.committed(), 1),
                    output,
                );
            }
        } else {
            // Sequences that are computed again catch up to the token before their last, and go on together.
            let id = group.request.id();
            for i in 0..group.seqs.len() {
                let s = &mut group.seqs[i];
                let (len, committed) = (s.len(), s.committed());
                let n = (len - committed - 1).min(budget.for_prompts());
                let Some(table) = s.table.as_mut().filter(|_| n > 0) else {
                    continue;
                };
                let limit = limit.saturating_sub(before.saturating_sub(kv.available()));
                if let Err(short) = kv.prepare(table, n, limit) {
                    // Some have rows already: the others follow in the next step.
                    if group.placed == step.number {
                        break;
                    }
                    return Err(short);
                }
                budget.tokens -= n;
                group.placed = step.number;
                let s = &group.seqs[i];
                let i = u32::try_from(i).unwrap_or(u32::MAX);
                push(step, placed, gi, i, s, id, (committed, n), Output::None);
            }
        }
        let Some(group) = self.groups[gi as usize].as_mut() else {
            return Ok(());
        };
        group.placed = self.step.number;
        if group.promised > 0 {
            let taken = before
                .saturating_sub(self.kv.available())
                .min(group.promised);
            group.promised -= taken;
            self.promised -= u64::from(taken);
        }
        Ok(())
    }

    /// Pages that a stalled request may take: what others do not need soon. `None` for everybody else, and
    /// where nobody has rows yet: somebody must go on.
    fn spare(&self, gi: u32) -> Option<u32> {
        let group = self.group(gi);
        if !group.stalled || group.guaranteed || self.step.rows.is_empty() {
            return None;
        }
        let headroom = u32::try_from(self.headroom().max(self.soon())).unwrap_or(u32::MAX);
        Some(self.kv.available().saturating_sub(headroom))
    }

    /// Pages that a request's tenant may still take.
    fn room_under_cap(&self, gi: u32) -> u32 {
        let tenant = self.group(gi).request.scope().tenant;
        let cap = self.config.tenants[usize::from(tenant.0)].cap;
        if cap >= self.kv.pages() {
            return u32::MAX;
        }
        let left = u64::from(cap).saturating_sub(self.kv.charged(tenant));
        u32::try_from(left).unwrap_or(u32::MAX)
    }
}

/// What a row at the end of everything known yields.
fn output(fan: Fan, forked: bool) -> Output {
    match fan {
        Fan::Sample { best_of, .. } => Output::Sample {
            draws: if forked { 1 } else { best_of },
        },
        Fan::Beam(b) => Output::Candidates {
            k: b.width.saturating_mul(2),
        },
    }
}

#[allow(clippy::too_many_arguments, reason = "the parts of one row")]
fn push(
    step: &mut Step,
    placed: &mut Vec<Placed>,
    group: u32,
    seq: u32,
    s: &Sequence,
    request: crate::RequestId,
    (start, n): (u32, u32),
    output: Output,
) {
    // A step has at most T tokens.
    let from = u32::try_from(step.tokens.len()).unwrap_or(u32::MAX);
    let range = start as usize..(start + n) as usize;
    step.tokens.extend_from_slice(&s.tokens[range]);
    step.rows.push(Row {
        seq: s.id,
        request,
        index: s.index,
        start,
        tokens: from..from + n,
        output,
    });
    placed.push(Placed {
        group,
        seq,
        tokens: n,
    });
}
