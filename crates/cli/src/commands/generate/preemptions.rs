//! What giving way was believed to cost, and what it took.

use std::time::Duration;

use plimsoll_report::thousands;
use plimsoll_runtime::Moved;
use plimsoll_schedule::Stats;
use plimsoll_units::Nanos;

/// One way of giving way.
#[derive(Default)]
struct Way {
    victims: u64,
    believed_ns: u64,
}

/// Every preemption of a run.
#[derive(Default)]
pub(super) struct Preemptions {
    swap: Way,
    recompute: Way,
    /// Shares of the steps in which forgotten tokens were computed again, by tokens.
    recomputing: Duration,
}

impl Preemptions {
    /// Somebody gave way.
    pub(super) fn preempted(&mut self, swapped_pages: u32, cost: Nanos) {
        let way = if swapped_pages > 0 {
            &mut self.swap
        } else {
            &mut self.recompute
        };
        way.victims += 1;
        way.believed_ns = way.believed_ns.saturating_add(cost.0);
    }

    /// A step took so long beside its transfers.
    pub(super) fn step(&mut self, before: &Stats, after: &Stats, took: Duration) {
        let tokens = after.tokens - before.tokens;
        let again = after.recomputed_tokens - before.recomputed_tokens;
        if again > 0 {
            self.recomputing += took.mul_f64(again as f64 / tokens.max(1) as f64);
        }
    }

    /// For people: nothing where nobody gave way and nothing was shared.
    pub(super) fn text(&self, stats: &Stats, moved: Moved) -> String {
        if stats.swaps + stats.recomputes + stats.cached_tokens + stats.pages_copied == 0 {
            return String::new();
        }
        let way = |of: &Way, took: Option<Duration>| {
            if of.victims == 0 {
                return String::new();
            }
            let each = |seconds: f64| 1e3 * seconds / of.victims as f64;
            let believed = Duration::from_nanos(of.believed_ns).as_secs_f64();
            let took = match took {
                Some(took) => format!("took {:.3} ms", each(took.as_secs_f64())),
                None => "beside steps".to_owned(),
            };
            format!(" (believed {:.3} ms each, {took})", each(believed))
        };
        format!(
            "\npreempted {} times by swap{}, {} by recompute{}\n\
             {} prompt tokens from the prefix cache, {} pages copied",
            stats.swaps,
            way(&self.swap, moved.time.map(|t| Duration::from_nanos(t.0))),
            stats.recomputes,
            way(&self.recompute, Some(self.recomputing)),
            thousands(stats.cached_tokens),
            thousands(stats.pages_copied)
        )
    }
}
