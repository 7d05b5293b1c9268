//! The comparison of runs: the same lines in the terminal and on the page.

use std::collections::BTreeSet;

use super::text::{figure, percent, seconds};
use super::wire::{Percentiles, Run, SimulationReport, TenantCounts};
use crate::numbers::{plain, short_bytes, thousands};

/// A line: what it says, and one cell per run.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) cells: Vec<String>,
}

/// The lines of a report; those that say nothing of any run are left out.
pub(super) fn rows(report: &SimulationReport) -> Vec<Row> {
    let mut out = Vec::new();
    let mut add = |name: &str, shown: bool, cell: &dyn Fn(&Run) -> String| {
        if shown {
            let name = name.to_owned();
            let cells = report.runs.iter().map(cell).collect();
            out.push(Row { name, cells });
        }
    };
    let any = |f: &dyn Fn(&Run) -> bool| report.runs.iter().any(f);
    let n = |x: u64| thousands(x);

    add("requests finished", true, &|r| n(r.requests.finished));
    add("refused", any(&|r| r.requests.refused > 0), &|r| {
        n(r.requests.refused)
    });
    add("cancelled", any(&|r| r.requests.cancelled > 0), &|r| {
        n(r.requests.cancelled)
    });
    add("measured time", true, &|r| seconds(r.duration_s));
    add("requests / s", true, &|r| figure(r.requests_per_s));
    add("output tokens / s", true, &|r| {
        figure(r.output_tokens_per_s)
    });
    add("within SLO", any(&|r| r.goodput.is_some()), &|r| {
        r.goodput.map_or_else(none, |g| percent(g.share))
    });
    add("SLO attained", any(&|r| r.goodput.is_some()), &|r| {
        r.goodput.map_or_else(none, |g| yes_no(g.attained))
    });
    add("latency / token, mean", true, &|r| {
        at(r.latency.normalised, |p| p.mean_s)
    });
    add("first token, p50", true, &|r| {
        at(r.latency.ttft, |p| p.p50_s)
    });
    add("first token, p99", true, &|r| {
        at(r.latency.ttft, |p| p.p99_s)
    });
    add("next token, p50", true, &|r| {
        at(r.latency.inter_token, |p| p.p50_s)
    });
    add("next token, p99", true, &|r| {
        at(r.latency.inter_token, |p| p.p99_s)
    });
    add("end to end, p50", true, &|r| at(r.latency.e2e, |p| p.p50_s));
    add("end to end, p99", true, &|r| at(r.latency.e2e, |p| p.p99_s));
    add("sequences running, mean", true, &|r| figure(r.running_mean));
    add("rows per step, mean", true, &|r| figure(r.batch_mean));
    add("live KV at saturation", true, &|r| {
        r.kv.live_share_at_saturation.map_or_else(none, percent)
    });
    let of_time = |r: &Run, seconds: f64| {
        if r.duration_s > 0.0 {
            percent(seconds / r.duration_s)
        } else {
            none()
        }
    };
    add("time short of memory", true, &|r| {
        of_time(r, r.kv.saturated_s)
    });
    add("live KV while any wait", true, &|r| {
        r.kv.live_share_while_waiting.map_or_else(none, percent)
    });
    add("time any wait", true, &|r| of_time(r, r.kv.waiting_s));
    add("most slots held", true, &|r| n(r.kv.high_water_slots));
    add(
        "most pages held",
        any(&|r| r.kv.high_water_pages.is_some()),
        &|r| r.kv.high_water_pages.map_or_else(none, n),
    );
    let swaps = any(&|r| r.preemptions.swap > 0);
    add("preempted by swap", swaps, &|r| n(r.preemptions.swap));
    add("  bytes moved", swaps, &|r| {
        short_bytes(r.preemptions.swapped_bytes)
    });
    add("  time moving", swaps, &|r| {
        seconds(r.preemptions.swap_time_s)
    });
    let recomputes = any(&|r| r.preemptions.recompute > 0);
    add("preempted by recompute", recomputes, &|r| {
        n(r.preemptions.recompute)
    });
    add("  tokens computed again", recomputes, &|r| {
        n(r.preemptions.recomputed_tokens)
    });
    add("  time computing again", recomputes, &|r| {
        seconds(r.preemptions.recompute_time_s)
    });
    add(
        "prefix cache hits",
        any(&|r| r.prefix_cache.queried_tokens > 0),
        &|r| r.prefix_cache.hit_share.map_or_else(none, percent),
    );
    add("blocks copied", any(&|r| r.copied_blocks > 0), &|r| {
        n(r.copied_blocks)
    });
    for id in tenants(report) {
        let of = |r: &Run, cell: &dyn Fn(&TenantCounts) -> Option<String>| {
            let tenant = r.tenants.iter().find(|t| t.tenant == id);
            tenant.and_then(cell).unwrap_or_else(none)
        };
        add(&format!("tenant {id}, finished"), true, &|r| {
            of(r, &|t| Some(n(t.finished)))
        });
        add("  within SLO", any(&|r| r.goodput.is_some()), &|r| {
            of(r, &|t| {
                (t.finished > 0).then(|| percent(t.good as f64 / t.finished as f64))
            })
        });
        add("  first token, mean", true, &|r| {
            of(r, &|t| t.ttft_mean_s.map(seconds))
        });
        add("  end to end, mean", true, &|r| {
            of(r, &|t| t.e2e_mean_s.map(seconds))
        });
    }
    add("decision hash", any(&|r| r.decision_hash.is_some()), &|r| {
        r.decision_hash
            .as_ref()
            .map_or_else(none, |h| plain(h).chars().take(8).collect())
    });
    out
}

/// The tenants that have lines of their own: none where there is one, and the first eight where there are more.
fn tenants(report: &SimulationReport) -> Vec<u32> {
    let all: BTreeSet<u32> = report
        .runs
        .iter()
        .flat_map(|r| r.tenants.iter().map(|t| t.tenant))
        .collect();
    match all.len() {
        0 | 1 => Vec::new(),
        _ => all.into_iter().take(8).collect(),
    }
}

pub(super) fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn none() -> String {
    "-".to_owned()
}

/// One figure of a distribution, where there is one.
fn at(p: Option<Percentiles>, of: fn(Percentiles) -> f64) -> String {
    p.map_or_else(none, |p| seconds(of(p)))
}
