//! Latency: median, 90th and 99th percentile of each run on one logarithmic axis.

use super::{Chart, Topic, WIDTH, heading};
use crate::simulation::scale::Scale;
use crate::simulation::text::{clip, joined, seconds};
use crate::simulation::wire::{Latency, Percentiles, Run, SimulationReport};
use crate::svg::{Anchor, Svg};

/// Where the axis lies; names stand left of it, figures right.
const LEFT: f64 = 100.0;
const RIGHT: f64 = WIDTH - 156.0;

/// Height of a run's row.
const ROW: f64 = 24.0;

struct Kind {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    of: fn(&Latency) -> Option<Percentiles>,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "latency-normalised",
        title: "Normalised latency",
        unit: "end to end / output tokens",
        of: |l| l.normalised,
    },
    Kind {
        name: "latency-ttft",
        title: "Time to first token",
        unit: "from arrival",
        of: |l| l.ttft,
    },
    Kind {
        name: "latency-inter-token",
        title: "Between tokens",
        unit: "per sequence",
        of: |l| l.inter_token,
    },
    Kind {
        name: "latency-e2e",
        title: "End to end",
        unit: "from arrival to last token",
        of: |l| l.e2e,
    },
];

/// One chart per kind of latency that any run has.
pub(super) fn charts(report: &SimulationReport) -> Vec<Chart> {
    KINDS.iter().filter_map(|k| chart(report, k)).collect()
}

fn chart(report: &SimulationReport, kind: &Kind) -> Option<Chart> {
    let rows: Vec<(&Run, Option<Percentiles>)> = report
        .runs
        .iter()
        .map(|r| (r, (kind.of)(&r.latency)))
        .collect();
    let known: Vec<Percentiles> = rows.iter().filter_map(|(_, p)| *p).collect();
    if known.is_empty() {
        return None;
    }
    let low = known
        .iter()
        .map(|p| p.p50_s)
        .filter(|s| *s > 0.0)
        .fold(f64::INFINITY, f64::min);
    let high = known.iter().map(|p| p.p99_s).fold(0.0, f64::max);
    let low = if low.is_finite() { low } else { 0.0 };
    let x = Scale::durations(low, high, [LEFT, RIGHT]);
    let top = 44.0;
    let bottom = top + rows.len() as f64 * ROW;
    let mut svg = Svg::new(WIDTH, bottom + 24.0);
    heading(&mut svg, kind.title, kind.unit);
    for (v, label) in &x.ticks {
        let at = x.at(*v);
        svg.line("grid", [at, top - 4.0, at, bottom]);
        svg.text("tick", Anchor::Middle, at, bottom + 15.0, label);
    }
    svg.text(
        "axis-title",
        Anchor::End,
        WIDTH,
        top - 10.0,
        "p50 / p90 / p99",
    );
    for (row, (run, p)) in rows.iter().enumerate() {
        let y = top + (row as f64 + 0.5) * ROW;
        let label = clip(&run.label, 15);
        svg.text("small", Anchor::End, LEFT - 10.0, y + 4.0, &label);
        let Some(p) = p else {
            svg.text("small", Anchor::End, WIDTH, y + 4.0, "none");
            continue;
        };
        let (a, b) = (x.at(p.p50_s), x.at(p.p99_s));
        svg.line("range bar", [a, y, b, y]);
        let marks = [
            ("dot", p.p50_s, 5.0, "median"),
            ("dot", p.p90_s, 3.5, "90th percentile"),
            ("ring", p.p99_s, 4.5, "99th percentile"),
        ];
        for (shape, value, r, name) in marks {
            let title = format!("{}: {name} {}", run.label, seconds(value));
            svg.circle(&format!("{shape} bar"), x.at(value), y, r, &title);
        }
        let text = joined(&[p.p50_s, p.p90_s, p.p99_s]);
        svg.text("small", Anchor::End, WIDTH, y + 4.0, &text);
    }
    Some(Chart::new(
        kind.name.to_owned(),
        Topic::Latency,
        &format!("{} by run: median, 90th and 99th percentile", kind.title),
        &svg,
    ))
}
