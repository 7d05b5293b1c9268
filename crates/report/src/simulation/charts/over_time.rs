//! Lines over time, all runs in one plot: sequences running, requests in the queue, cache hits.

use std::fmt::Write as _;

use super::{Chart, Frame, Topic, WIDTH, colour, end_s, heading, thin};
use crate::simulation::scale::Scale;
use crate::simulation::text::{clip, figure, percent, seconds};
use crate::simulation::wire::{Run, SimulationReport};
use crate::svg::{Anchor, Svg, px};

/// What a plot of lines shows.
struct Lines<'a> {
    name: &'a str,
    topic: Topic,
    title: &'a str,
    unit: &'a str,
    /// Values are shares of 1 rather than counts.
    shares: bool,
    /// What one run adds; `None` where there is nothing to say at that time.
    values: fn(&Run) -> Vec<Option<f64>>,
}

/// Sequences running, and requests that wait.
pub(super) fn load(report: &SimulationReport) -> Vec<Chart> {
    let running = Lines {
        name: "running",
        topic: Topic::Load,
        title: "Sequences running",
        unit: "mean of each interval",
        shares: false,
        values: |r| r.series.running.mean.iter().copied().map(Some).collect(),
    };
    let queue = Lines {
        name: "queue",
        topic: Topic::Load,
        title: "Requests in the queue",
        unit: "waiting or preempted",
        shares: false,
        values: |r| {
            let s = &r.series;
            let both = s.waiting.mean.iter().zip(&s.preempted.mean);
            both.map(|(w, p)| Some(w + p)).collect()
        },
    };
    [running, queue]
        .iter()
        .filter_map(|l| draw(report, l))
        .collect()
}

/// Hits of the prefix cache, where any run had one.
pub(super) fn cache(report: &SimulationReport) -> Option<Chart> {
    let used = |r: &Run| r.prefix_cache.hit_share.is_some_and(|s| s > 0.0);
    if !report.runs.iter().any(used) {
        return None;
    }
    draw(
        report,
        &Lines {
            name: "cache",
            topic: Topic::Cache,
            title: "Prefix cache hits",
            unit: "share of prompt tokens",
            shares: true,
            values: hits,
        },
    )
}

/// Share of tokens found, over runs of buckets long enough to hold some lookups.
fn hits(run: &Run) -> Vec<Option<f64>> {
    let s = &run.series;
    let n = s.queried_tokens.len().min(s.cached_tokens.len());
    let each = n.div_ceil(50).max(1);
    let groups = s.queried_tokens[..n]
        .chunks(each)
        .zip(s.cached_tokens[..n].chunks(each));
    groups
        .flat_map(|(q, c)| {
            let (q_sum, c_sum) = (total(q), total(c));
            let share = (q_sum > 0.0).then(|| c_sum / q_sum);
            std::iter::repeat_n(share, q.len())
        })
        .collect()
}

fn total(counts: &[u64]) -> f64 {
    counts.iter().map(|c| *c as f64).sum()
}

fn draw(report: &SimulationReport, what: &Lines<'_>) -> Option<Chart> {
    let lines: Vec<(usize, &Run, Vec<Option<f64>>)> = report
        .runs
        .iter()
        .enumerate()
        .map(|(i, r)| (i, r, (what.values)(r)))
        .filter(|(_, r, v)| v.len() == r.series.start_s.len() && v.iter().any(Option::is_some))
        .collect();
    if lines.is_empty() {
        return None;
    }
    let all = lines.iter().flat_map(|(_, _, v)| v.iter().flatten());
    let max = all.copied().fold(0.0, f64::max);
    let (top, right) = (34.0, WIDTH - 96.0);
    let mut svg = Svg::new(WIDTH, 265.0);
    heading(&mut svg, what.title, what.unit);
    let end = end_s(&report.runs);
    let frame = Frame::over_time(&mut svg, [44.0, top, right, 226.0], end, |p| {
        if what.shares {
            Scale::shares(max, p)
        } else {
            Scale::counts(max, p)
        }
    });
    let mut ends: Vec<(f64, usize, &Run)> = Vec::new();
    // The first run is the one that matters: it is drawn last, above the others.
    for (i, run, values) in lines.iter().rev() {
        let (d, last) = line(&frame, run, values);
        svg.path(&format!("line {}", colour(*i)), &d, &run.label);
        ends.push((last, *i, run));
    }
    frame.baseline(&mut svg);
    labels(&mut svg, &frame, ends);
    if let Some((_, widest, _)) = lines
        .iter()
        .max_by(|a, b| reach(a.1).total_cmp(&reach(b.1)))
    {
        frame.hovers(&mut svg, &widest.series, |from, to| {
            let (a, b) = (
                widest.series.start_s[from],
                widest.series.start_s[to - 1] + widest.series.width_s,
            );
            let mut text = seconds(a);
            for (_, run, values) in &lines {
                if let Some(mean) = mean_between(run, values, a, b) {
                    let value = if what.shares {
                        percent(mean)
                    } else {
                        figure(mean)
                    };
                    let _ = write!(text, "\n{} {value}", run.label);
                }
            }
            text
        });
    }
    Some(Chart::new(
        what.name.to_owned(),
        what.topic,
        &format!("{} over time", what.title),
        &svg,
    ))
}

/// When the series of `run` ends, in seconds.
fn reach(run: &Run) -> f64 {
    run.series.start_s.last().copied().unwrap_or_default() + run.series.width_s
}

/// The mean of the values whose buckets start in `a..b`, as far as there are any.
fn mean_between(run: &Run, values: &[Option<f64>], a: f64, b: f64) -> Option<f64> {
    let starts = run.series.start_s.iter().zip(values);
    let inside: Vec<f64> = starts
        .filter(|(t, _)| (a..b).contains(*t))
        .filter_map(|(_, v)| *v)
        .collect();
    (!inside.is_empty()).then(|| inside.iter().sum::<f64>() / inside.len() as f64)
}

/// A line through the middles of buckets, broken where there is nothing; and the pixel of its end.
fn line(frame: &Frame, run: &Run, values: &[Option<f64>]) -> (String, f64) {
    let s = &run.series;
    let known: Vec<f64> = values.iter().map(|v| v.unwrap_or(f64::NAN)).collect();
    let (points, each) = thin(&known);
    let (mut d, mut pen, mut last) = (String::new(), 'M', frame.bottom);
    for (i, v) in points.iter().enumerate() {
        // A group with a gap in it is a gap: its mean is not a number.
        if !v.is_finite() {
            pen = 'M';
            continue;
        }
        let first = i * each;
        let after = (first + each).min(s.start_s.len());
        let middle = f64::midpoint(s.start_s[first], s.start_s[after - 1] + s.width_s);
        last = frame.y.at(*v);
        let _ = write!(d, "{pen}{} {}", px(frame.x.at(middle)), px(last));
        pen = 'L';
    }
    (d, last)
}

/// Names at the right, each as near to the end of its line as its neighbours let it.
fn labels(svg: &mut Svg, frame: &Frame, mut ends: Vec<(f64, usize, &Run)>) {
    ends.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let gap = 14.0_f64.min((frame.bottom - frame.top) / ends.len() as f64);
    let mut at: Vec<f64> = Vec::with_capacity(ends.len());
    for (y, ..) in &ends {
        let least = at.last().map_or(frame.top, |l: &f64| l + gap);
        at.push(y.max(least));
    }
    // What ran out below is pushed up again.
    let mut most = frame.bottom;
    for y in at.iter_mut().rev() {
        *y = y.min(most);
        most = *y - gap;
    }
    for ((_, i, run), y) in ends.iter().zip(at) {
        let x = frame.right + 8.0;
        svg.rect(
            &format!("swatch {}", colour(*i)),
            [x, y - 4.0, 8.0, 8.0],
            "",
        );
        let label = clip(&run.label, 12);
        svg.text("small", Anchor::Start, x + 12.0, y + 3.5, &label);
    }
}
