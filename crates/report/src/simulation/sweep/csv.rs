//! A sweep as CSV: one line per point and server, durations in seconds, shares of 1.

use std::fmt::Write as _;

use super::wire::{PointRun, SweepReport};
use crate::csv::field;
use crate::simulation::wire::Percentiles;

/// A column by name; `None` where a run has no such figure.
type Column = (&'static str, fn(&PointRun) -> Option<f64>);

const COLUMNS: [Column; 24] = [
    ("duration_s", |r| Some(r.duration_s)),
    ("finished", |r| Some(r.requests.finished as f64)),
    ("refused", |r| Some(r.requests.refused as f64)),
    ("requests_per_s", |r| Some(r.requests_per_s)),
    ("output_tokens_per_s", |r| Some(r.output_tokens_per_s)),
    ("slo_share", |r| r.goodput.map(|g| g.share)),
    ("slo_attained", |r| {
        r.goodput.map(|g| f64::from(u8::from(g.attained)))
    }),
    ("slo_requests_per_s", |r| {
        r.goodput.map(|g| g.requests_per_s)
    }),
    ("ttft_mean_s", |r| r.latency.ttft.map(mean)),
    ("ttft_p50_s", |r| r.latency.ttft.map(p50)),
    ("ttft_p99_s", |r| r.latency.ttft.map(p99)),
    ("inter_token_mean_s", |r| r.latency.inter_token.map(mean)),
    ("inter_token_p50_s", |r| r.latency.inter_token.map(p50)),
    ("inter_token_p99_s", |r| r.latency.inter_token.map(p99)),
    ("e2e_p50_s", |r| r.latency.e2e.map(p50)),
    ("e2e_p99_s", |r| r.latency.e2e.map(p99)),
    ("running_mean", |r| Some(r.running_mean)),
    ("batch_mean", |r| Some(r.batch_mean)),
    ("live_share_at_saturation", |r| {
        r.kv.live_share_at_saturation
    }),
    ("saturated_s", |r| Some(r.kv.saturated_s)),
    ("swap_preemptions", |r| Some(r.preemptions.swap as f64)),
    ("recompute_preemptions", |r| {
        Some(r.preemptions.recompute as f64)
    }),
    ("prefix_cache_hit_share", |r| r.prefix_cache.hit_share),
    ("steps", |r| Some(r.steps as f64)),
];

fn mean(p: Percentiles) -> f64 {
    p.mean_s
}

fn p50(p: Percentiles) -> f64 {
    p.p50_s
}

fn p99(p: Percentiles) -> f64 {
    p.p99_s
}

/// Every point: its values as typed, then figures of each server. A point that cannot run has one line, with the
/// reason in the last column and no figures.
#[must_use]
pub fn sweep_csv(report: &SweepReport) -> String {
    let mut out = String::new();
    for axis in &report.swept {
        let _ = write!(out, "{},", field(&axis.name));
    }
    out.push_str("server,kv_bytes");
    for (name, _) in COLUMNS {
        let _ = write!(out, ",{name}");
    }
    out.push_str(",decision_hash,cannot_run\n");
    for point in &report.points {
        let mut start = String::new();
        for s in &point.settings {
            let _ = write!(start, "{},", field(&s.value));
        }
        for run in &point.runs {
            let _ = write!(out, "{start}{},", field(&run.label));
            if let Some(bytes) = point.kv_bytes {
                let _ = write!(out, "{bytes}");
            }
            for (_, of) in COLUMNS {
                out.push(',');
                if let Some(x) = of(run) {
                    let _ = write!(out, "{x}");
                }
            }
            let hash = run.decision_hash.as_deref().unwrap_or_default();
            let _ = writeln!(out, ",{},", field(hash));
        }
        if let Some(reason) = &point.reason {
            let empty = ",".repeat(COLUMNS.len() + 2);
            let _ = writeln!(out, "{start}{empty},{}", field(reason));
        }
    }
    out
}
