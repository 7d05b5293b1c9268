//! The lines of a sweep: the same in the terminal and on the page.

use super::wire::{Point, PointRun, SweepReport};
use crate::numbers::{plain, thousands};
use crate::simulation::rows::yes_no;
use crate::simulation::text::{figure, joined, percent};
use crate::simulation::wire::Percentiles;

/// What heads the columns, and one line of cells per point and server that ran.
pub(super) struct Lines {
    /// How many columns at the left are names rather than figures.
    pub(super) names: usize,
    pub(super) header: Vec<&'static str>,
    pub(super) cells: Vec<Vec<String>>,
}

/// A column: what heads it, and what it says of a run.
type Column = (&'static str, fn(&PointRun) -> String);

/// The lines of a report; columns that say nothing of any run are left out.
pub(super) fn lines(report: &SweepReport) -> Lines {
    let runs = || report.points.iter().flat_map(|p| &p.runs);
    let mut columns: Vec<Column> = vec![("finished", |r| thousands(r.requests.finished))];
    if runs().any(|r| r.requests.refused > 0) {
        columns.push(("refused", |r| thousands(r.requests.refused)));
    }
    columns.push(("tokens / s", |r| figure(r.output_tokens_per_s)));
    if runs().any(|r| r.goodput.is_some()) {
        columns.push(("in SLO", |r| {
            r.goodput.map_or_else(none, |g| percent(g.share))
        }));
        columns.push(("kept", |r| {
            r.goodput.map_or_else(none, |g| yes_no(g.attained))
        }));
    }
    columns.push(("TTFT p50 / p99", |r| middle_and_end(r.latency.ttft)));
    columns.push(("ITL p50 / p99", |r| middle_and_end(r.latency.inter_token)));
    columns.push(("live KV", |r| {
        r.kv.live_share_at_saturation.map_or_else(none, percent)
    }));
    if runs().any(|r| r.preemptions.swap > 0) {
        columns.push(("swaps", |r| thousands(r.preemptions.swap)));
    }
    if runs().any(|r| r.preemptions.recompute > 0) {
        columns.push(("recomputes", |r| thousands(r.preemptions.recompute)));
    }
    let line = |p: &Point, r: &PointRun| -> Vec<String> {
        let names = p.settings.iter().map(|s| plain(&s.value));
        let label = std::iter::once(plain(&r.label));
        let figures = columns.iter().map(|(_, cell)| cell(r));
        names.chain(label).chain(figures).collect()
    };
    Lines {
        names: report.swept.len() + 1,
        header: columns.iter().map(|(name, _)| *name).collect(),
        cells: report
            .points
            .iter()
            .flat_map(|p| p.runs.iter().map(move |r| (p, r)))
            .map(|(p, r)| line(p, r))
            .collect(),
    }
}

/// The names over the columns at the left.
pub(super) fn names(report: &SweepReport) -> Vec<String> {
    let swept = report.swept.iter().map(|a| plain(&a.name));
    swept.chain(std::iter::once("server".to_owned())).collect()
}

/// The values of a point, as `rate=4, tp=2`.
pub(super) fn settings(point: &Point) -> String {
    let each = point
        .settings
        .iter()
        .map(|s| format!("{}={}", plain(&s.name), plain(&s.value)));
    each.collect::<Vec<_>>().join(", ")
}

/// Points that cannot run, with the reason.
pub(super) fn failed(report: &SweepReport) -> impl Iterator<Item = String> {
    report.points.iter().filter_map(|p| {
        let reason = p.reason.as_ref()?;
        Some(format!("{}: {}", settings(p), plain(reason)))
    })
}

fn none() -> String {
    "-".to_owned()
}

fn middle_and_end(p: Option<Percentiles>) -> String {
    p.map_or_else(none, |p| joined(&[p.p50_s, p.p99_s]))
}
