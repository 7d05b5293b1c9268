//! The pool over time: one stacked area per run, all on one scale.

use std::fmt::Write as _;

use super::{Chart, Frame, Topic, WIDTH, end_s, heading, legend, thin};
use crate::simulation::scale::Scale;
use crate::simulation::text::{CLASSES, compact, percent, seconds};
use crate::simulation::wire::{Run, SimulationReport, TimeSeries, Track};
use crate::svg::{Svg, px};

/// The tracks in the order of [`CLASSES`].
fn tracks(s: &TimeSeries) -> [&Track; 6] {
    [
        &s.token_states,
        &s.reserved,
        &s.internal,
        &s.external,
        &s.cached,
        &s.free,
    ]
}

/// One panel per run.
pub(super) fn panels(report: &SimulationReport) -> Vec<Chart> {
    let end = end_s(&report.runs);
    let slots = report.runs.iter().map(pool).fold(0.0, f64::max);
    let drawn = report.runs.iter().enumerate();
    drawn
        .filter(|(_, r)| !r.series.start_s.is_empty())
        .map(|(i, r)| panel(i, r, end, slots))
        .collect()
}

/// Slots of the pool: as told, or as seen.
fn pool(run: &Run) -> f64 {
    let seen = (0..run.series.start_s.len())
        .map(|i| {
            let at = |t: &Track| t.mean.get(i).copied().unwrap_or_default();
            tracks(&run.series).into_iter().map(at).sum::<f64>()
        })
        .fold(0.0, f64::max);
    seen.max(run.pool.slots as f64)
}

fn panel(i: usize, run: &Run, end: f64, slots: f64) -> Chart {
    let s = &run.series;
    let present: Vec<(String, String)> = CLASSES
        .iter()
        .zip(tracks(s))
        .filter(|(_, t)| t.max.iter().any(|m| *m > 0))
        .map(|(c, _)| {
            let text = format!("{} {}", c.name, percent((c.share)(&run.kv.whole)));
            (c.key.to_owned(), text)
        })
        .collect();
    // Two rows are kept for the legend in every panel, so that plots line up side by side.
    let top = 62.0;
    let mut svg = Svg::new(WIDTH, 285.0);
    heading(&mut svg, &run.label, "slots (tokens), mean share");
    legend(&mut svg, 24.0, &present);
    let frame = Frame::over_time(&mut svg, [44.0, top, WIDTH - 8.0, 246.0], end, |p| {
        Scale::whole(slots, p)
    });
    let mut below: Vec<f64> = Vec::new();
    for (class, track) in CLASSES.iter().zip(tracks(s)) {
        let (values, each) = thin(&track.mean);
        below.resize(values.len(), 0.0);
        let above: Vec<f64> = below.iter().zip(&values).map(|(b, v)| b + v).collect();
        if values.iter().any(|v| *v > 0.0) {
            let d = area(&frame, s, each, &below, &above);
            svg.path(class.key, &d, "");
        }
        below = above;
    }
    frame.baseline(&mut svg);
    frame.hovers(&mut svg, s, |from, to| {
        let mut text = format!("{}, {}", run.label, seconds(s.start_s[from]));
        for (class, track) in CLASSES.iter().zip(tracks(s)) {
            let values = track.mean.get(from..to).unwrap_or_default();
            let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
            if mean > 0.0 {
                let _ = write!(text, "\n{} {}", class.name, compact(mean));
            }
        }
        text
    });
    Chart::new(
        format!("memory-{}", i + 1),
        Topic::Memory,
        &format!("KV pool by class over time, {}", run.label),
        &svg,
    )
}

/// The band between two stepped lines: forward along the upper, back along the lower.
fn area(frame: &Frame, s: &TimeSeries, each: usize, below: &[f64], above: &[f64]) -> String {
    let n = s.start_s.len();
    let edge = |i: usize| {
        let b = (i * each).min(n);
        let at = s.start_s.get(b).copied();
        frame
            .x
            .at(at.unwrap_or_else(|| s.start_s[n - 1] + s.width_s))
    };
    let mut d = format!("M{} {}", px(edge(0)), px(frame.y.at(below[0])));
    for (i, v) in above.iter().enumerate() {
        let _ = write!(d, "V{}H{}", px(frame.y.at(*v)), px(edge(i + 1)));
    }
    for (i, v) in below.iter().enumerate().rev() {
        let _ = write!(d, "V{}H{}", px(frame.y.at(*v)), px(edge(i)));
    }
    d.push('Z');
    d
}
