//! The series of a report as CSV: one line per run and bucket, tidy, for spreadsheets and scripts.

use std::fmt::Write as _;

use super::wire::{SimulationReport, TimeSeries, Track};
use crate::csv::field;

/// A column by name.
type Column<T> = (&'static str, fn(&TimeSeries) -> &T);

/// The tracks.
const TRACKS: [Column<Track>; 11] = [
    ("token_states", |s| &s.token_states),
    ("reserved", |s| &s.reserved),
    ("internal", |s| &s.internal),
    ("external", |s| &s.external),
    ("cached", |s| &s.cached),
    ("free", |s| &s.free),
    ("running", |s| &s.running),
    ("batch", |s| &s.batch),
    ("waiting", |s| &s.waiting),
    ("preempted", |s| &s.preempted),
    ("swapped_bytes", |s| &s.swapped_bytes),
];

/// The counts.
const COUNTS: [Column<Vec<u64>>; 5] = [
    ("steps", |s| &s.steps),
    ("swap_preemptions", |s| &s.swap_preemptions),
    ("recompute_preemptions", |s| &s.recompute_preemptions),
    ("queried_tokens", |s| &s.queried_tokens),
    ("cached_tokens", |s| &s.cached_tokens),
];

/// The series of every run. Slots and sequences are means and maxima of a bucket, the rest is counted
/// per bucket; `start_s` and `width_s` are seconds.
#[must_use]
pub fn series_csv(report: &SimulationReport) -> String {
    let mut out = String::from("run,start_s,width_s");
    for (name, _) in TRACKS {
        let _ = write!(out, ",{name}_mean,{name}_max");
    }
    for (name, _) in COUNTS {
        let _ = write!(out, ",{name}");
    }
    out.push('\n');
    for run in &report.runs {
        let s = &run.series;
        let label = field(&run.label);
        for (i, start) in s.start_s.iter().enumerate() {
            let _ = write!(out, "{label},{start},{}", s.width_s);
            for (_, of) in TRACKS {
                let t = of(s);
                let mean = t.mean.get(i).copied().unwrap_or_default();
                let max = t.max.get(i).copied().unwrap_or_default();
                let _ = write!(out, ",{mean},{max}");
            }
            for (_, of) in COUNTS {
                let _ = write!(out, ",{}", of(s).get(i).copied().unwrap_or_default());
            }
            out.push('\n');
        }
    }
    out
}
