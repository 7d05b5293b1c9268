//! Preemptions over time, one plot per run that has any, and what they cost.

use super::{Chart, Frame, HOVERS, Topic, WIDTH, end_s, heading, legend};
use crate::numbers::{short_bytes, thousands};
use crate::simulation::scale::Scale;
use crate::simulation::text::{clip, percent, seconds};
use crate::simulation::wire::{Preemptions, Run, SimulationReport};
use crate::svg::{Anchor, Svg};

fn any(p: &Preemptions) -> bool {
    p.swap > 0 || p.recompute > 0
}

/// The kinds that `runs` have, as a legend.
fn kinds(runs: &[&Run]) -> Vec<(String, String)> {
    let mut out = Vec::new();
    if runs.iter().any(|r| r.preemptions.swap > 0) {
        out.push(("swap".to_owned(), "swapped out".to_owned()));
    }
    if runs.iter().any(|r| r.preemptions.recompute > 0) {
        out.push(("recompute".to_owned(), "dropped, computed again".to_owned()));
    }
    out
}

/// All charts on preemption; none where nothing was preempted.
pub(super) fn charts(report: &SimulationReport) -> Vec<Chart> {
    let runs: Vec<&Run> = report.runs.iter().filter(|r| any(&r.preemptions)).collect();
    if runs.is_empty() {
        return Vec::new();
    }
    let end = end_s(&report.runs);
    let groups: Vec<Groups> = runs.iter().map(|r| Groups::new(r, end)).collect();
    let most = groups.iter().map(Groups::most).max().unwrap_or(0) as f64;
    let mut out: Vec<Chart> = runs
        .iter()
        .zip(&groups)
        .enumerate()
        .map(|(i, (run, g))| over_time(i, run, g, end, most))
        .collect();
    out.push(tax(&runs));
    out
}

/// Preemptions in intervals that are the same for every run.
struct Groups {
    width_s: f64,
    swap: Vec<u64>,
    recompute: Vec<u64>,
}

impl Groups {
    fn new(run: &Run, end_s: f64) -> Self {
        let width_s = (end_s / HOVERS as f64).max(run.series.width_s);
        let s = &run.series;
        let (mut swap, mut recompute) = (Vec::new(), Vec::new());
        for (i, start) in s.start_s.iter().enumerate() {
            let group = (start / width_s).max(0.0) as usize;
            let group = group.min(HOVERS);
            if swap.len() <= group {
                swap.resize(group + 1, 0);
                recompute.resize(group + 1, 0);
            }
            swap[group] += s.swap_preemptions.get(i).copied().unwrap_or_default();
            recompute[group] += s.recompute_preemptions.get(i).copied().unwrap_or_default();
        }
        Self {
            width_s,
            swap,
            recompute,
        }
    }

    fn most(&self) -> u64 {
        let both = self.swap.iter().zip(&self.recompute);
        both.map(|(a, b)| a + b).max().unwrap_or(0)
    }
}

fn over_time(i: usize, run: &Run, g: &Groups, end: f64, most: f64) -> Chart {
    let mut svg = Svg::new(WIDTH, 225.0);
    let unit = format!("preemptions per {}", seconds(g.width_s));
    heading(&mut svg, &run.label, &unit);
    legend(&mut svg, 24.0, &kinds(&[run]));
    let frame = Frame::over_time(&mut svg, [44.0, 50.0, WIDTH - 8.0, 186.0], end, |p| {
        Scale::counts(most, p)
    });
    for (j, (swap, recompute)) in g.swap.iter().zip(&g.recompute).enumerate() {
        if swap + recompute == 0 {
            continue;
        }
        let start = j as f64 * g.width_s;
        let x0 = frame.x.at(start);
        let w = (frame.x.at(start + g.width_s) - x0 - 1.0).max(1.0);
        let title = format!(
            "{}, {}: {} swapped out, {} dropped",
            run.label,
            seconds(start),
            thousands(*swap),
            thousands(*recompute)
        );
        let y1 = frame.y.at(*swap as f64);
        let y2 = frame.y.at((swap + recompute) as f64);
        svg.rect("swap", [x0, y1, w, frame.bottom - y1], &title);
        svg.rect("recompute", [x0, y2, w, y1 - y2], &title);
    }
    frame.baseline(&mut svg);
    Chart::new(
        format!("preemption-{}", i + 1),
        Topic::Preemption,
        &format!("Preemptions over time, {}", run.label),
        &svg,
    )
}

/// Seconds that the window was busy.
fn busy_s(run: &Run) -> f64 {
    run.busy_share * run.duration_s
}

/// The share that fills a bar, at least: a thousandth must not look like everything.
const LEAST_SHARE: f64 = 0.05;

/// Time that preemption took, as a share of busy time.
fn tax(runs: &[&Run]) -> Chart {
    const LEFT: f64 = 100.0;
    const ROW: f64 = 50.0;
    let share = |s: f64, r: &Run| {
        if busy_s(r) > 0.0 { s / busy_s(r) } else { 0.0 }
    };
    let shares: Vec<[f64; 2]> = runs
        .iter()
        .map(|r| [r.preemptions.swap_time_s, r.preemptions.recompute_time_s].map(|s| share(s, r)))
        .collect();
    let most = shares
        .iter()
        .map(|[a, b]| a + b)
        .fold(LEAST_SHARE, f64::max);
    let top = 50.0;
    let mut svg = Svg::new(WIDTH, top + runs.len() as f64 * ROW);
    heading(&mut svg, "What preemption costs", "share of busy time");
    legend(&mut svg, 24.0, &kinds(runs));
    let width = WIDTH - LEFT - 64.0;
    for (row, (run, [swap, recompute])) in runs.iter().zip(&shares).enumerate() {
        let y = top + row as f64 * ROW;
        let p = &run.preemptions;
        svg.text(
            "small",
            Anchor::End,
            LEFT - 10.0,
            y + 14.0,
            &clip(&run.label, 15),
        );
        let scale = if most > 0.0 { width / most } else { 0.0 };
        let (a, b) = (swap * scale, recompute * scale);
        let moved = format!("moving: {}", seconds(p.swap_time_s));
        let again = format!("computing again: {}", seconds(p.recompute_time_s));
        svg.rect("swap", [LEFT, y, a, 20.0], &moved);
        svg.rect("recompute", [LEFT + a, y, b, 20.0], &again);
        svg.text(
            "figure",
            Anchor::Start,
            LEFT + a + b + 6.0,
            y + 14.0,
            &percent(swap + recompute),
        );
        let mut words = Vec::new();
        if p.swap > 0 {
            let size = short_bytes(p.swapped_bytes);
            let n = thousands(p.swap);
            words.push(format!("{n} swaps, {size}, {}", seconds(p.swap_time_s)));
        }
        if p.recompute > 0 {
            let (n, tokens) = (thousands(p.recompute), thousands(p.recomputed_tokens));
            let time = seconds(p.recompute_time_s);
            words.push(format!("{n} recomputed, {tokens} tokens, {time}"));
        }
        svg.text("quiet", Anchor::Start, LEFT, y + 34.0, &words.join("; "));
    }
    Chart::new(
        "preemption-cost".to_owned(),
        Topic::Preemption,
        "Time that preemption took, as a share of busy time",
        &svg,
    )
}
