//! What must hold of a scheduler between two calls, recounted from scratch.

use plimsoll_kv::Violation;

use crate::group::Phase;
use crate::scheduler::Scheduler;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation(what()))
    }
}

pub(crate) fn check(s: &Scheduler) -> Result<(), Violation> {
    let (mut waiting, mut running, mut preempted) = (0, 0, 0);
    let (mut seqs, mut guaranteed, mut promised) = (0, 0_u64, 0_u64);
    for (gi, g) in (0u32..).zip(&s.groups) {
        let Some(g) = g else { continue };
        let id = g.request.id().0;
        let tenant = usize::from(g.request.scope().tenant.0);
        let key = (g.rank, gi);
        let here = (
            s.waiting[tenant].contains(&key),
            s.running.binary_search(&key).is_ok(),
            s.preempted.contains(&key),
        );
        let expected = match g.phase {
            Phase::Waiting => (true, false, false),
            Phase::Running => (false, true, false),
            Phase::Swapped | Phase::Dropped => (false, false, true),
        };
        ensure(here == expected, || {
            format!("request {id} is {:?} and lies in queues {here:?}", g.phase)
        })?;
        match g.phase {
            Phase::Waiting => {
                waiting += 1;
                ensure(g.seqs.is_empty(), || {
                    format!("request {id} waits and has sequences")
                })?;
            }
            Phase::Running => {
                running += 1;
                seqs += g.width();
                ensure(g.tables().all(plimsoll_kv::Table::is_resident), || {
                    format!("request {id} runs with blocks in swap space")
                })?;
            }
            Phase::Swapped => preempted += 1,
            Phase::Dropped => {
                preempted += 1;
                ensure(g.tables().next().is_none(), || {
                    format!("request {id} was dropped and holds blocks")
                })?;
            }
        }
        ensure(!g.guaranteed || g.phase == Phase::Running, || {
            format!("request {id} is guaranteed its worst case and does not run")
        })?;
        if g.guaranteed {
            guaranteed += u64::from(g.worst);
        }
        promised += u64::from(g.promised);
        let held: u64 = g.tables().map(plimsoll_kv::Table::blocks).sum();
        let alone = g.seqs.len() == 1;
        ensure(!alone || held <= u64::from(g.worst), || {
            format!(
                "request {id} holds {held} blocks, its worst case is {}",
                g.worst
            )
        })?;
        for q in &g.seqs {
            ensure(q.committed() < q.len(), || {
                format!(
                    "request {id}: {} of {} tokens are written",
                    q.committed(),
                    q.len()
                )
            })?;
        }
    }
    let lists = s
        .waiting
        .iter()
        .map(std::collections::BTreeSet::len)
        .sum::<usize>();
    ensure(waiting == lists && waiting == s.waiting_count, || {
        format!(
            "{waiting} wait, {lists} are listed, {} counted",
            s.waiting_count
        )
    })?;
    ensure(
        running == s.running.len() && preempted == s.preempted.len(),
        || "a queue holds somebody who is gone".into(),
    )?;
    ensure(seqs == s.running_seqs, || {
        format!("{seqs} sequences run, counted {}", s.running_seqs)
    })?;
    ensure(seqs <= s.config.max_seqs, || {
        format!("{seqs} sequences run at once")
    })?;
    ensure(promised == s.promised, || {
        format!("{promised} pages are promised, counted {}", s.promised)
    })?;
    ensure(guaranteed == s.guaranteed_pages, || {
        format!(
            "{guaranteed} pages are guaranteed, counted {}",
            s.guaranteed_pages
        )
    })?;
    ensure(guaranteed + s.pinned <= u64::from(s.kv.pages()), || {
        format!(
            "{guaranteed} pages are guaranteed, {} pinned, of {}",
            s.pinned,
            s.kv.pages()
        )
    })?;
    let order: Vec<bool> = s.running.iter().map(|r| s.group(r.1).guaranteed).collect();
    ensure(order.is_sorted_by(|a, b| a >= b), || {
        "somebody is guaranteed whom another, not guaranteed, precedes".into()
    })
}
