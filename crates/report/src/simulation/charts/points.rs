//! Charts of a sweep: a figure over the first swept number, one line per server and other values.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{CHARACTER, Chart, Frame, Topic, WIDTH, colour, heading};
use crate::simulation::scale::Scale;
use crate::simulation::sweep::{Axis, PointRun, SweepReport};
use crate::simulation::text::{clip, figure, percent, seconds};
use crate::svg::{Anchor, Svg, px};

/// Lines that can be told apart: six colours, whole and dashed.
const LINES: usize = 12;

/// How the values of a chart are scaled and written.
#[derive(Clone, Copy)]
enum Kind {
    Counts,
    Shares,
    Durations,
}

impl Kind {
    fn written(self, x: f64) -> String {
        match self {
            Self::Counts => figure(x),
            Self::Shares => percent(x),
            Self::Durations => seconds(x),
        }
    }
}

struct Metric {
    name: &'static str,
    topic: Topic,
    title: &'static str,
    unit: &'static str,
    kind: Kind,
    of: fn(&PointRun) -> Option<f64>,
}

const METRICS: [Metric; 8] = [
    Metric {
        name: "sweep-throughput",
        topic: Topic::Load,
        title: "Output tokens per second",
        unit: "of finished requests",
        kind: Kind::Counts,
        of: |r| Some(r.output_tokens_per_s),
    },
    Metric {
        name: "sweep-slo",
        topic: Topic::Latency,
        title: "Within the service level",
        unit: "share of the requests",
        kind: Kind::Shares,
        of: |r| r.goodput.map(|g| g.share),
    },
    Metric {
        name: "sweep-ttft-p50",
        topic: Topic::Latency,
        title: "Time to first token, median",
        unit: "from arrival",
        kind: Kind::Durations,
        of: |r| r.latency.ttft.map(|p| p.p50_s),
    },
    Metric {
        name: "sweep-ttft-p99",
        topic: Topic::Latency,
        title: "Time to first token, p99",
        unit: "from arrival",
        kind: Kind::Durations,
        of: |r| r.latency.ttft.map(|p| p.p99_s),
    },
    Metric {
        name: "sweep-inter-token-p50",
        topic: Topic::Latency,
        title: "Between tokens, median",
        unit: "per sequence",
        kind: Kind::Durations,
        of: |r| r.latency.inter_token.map(|p| p.p50_s),
    },
    Metric {
        name: "sweep-inter-token-p99",
        topic: Topic::Latency,
        title: "Between tokens, p99",
        unit: "per sequence",
        kind: Kind::Durations,
        of: |r| r.latency.inter_token.map(|p| p.p99_s),
    },
    Metric {
        name: "sweep-live",
        topic: Topic::Waste,
        title: "Live KV at saturation",
        unit: "share of all slots",
        kind: Kind::Shares,
        of: |r| r.kv.live_share_at_saturation,
    },
    Metric {
        name: "sweep-preemptions",
        topic: Topic::Preemption,
        title: "Preemptions",
        unit: "by swap or recompute",
        kind: Kind::Counts,
        of: |r| {
            let all = r.preemptions.swap + r.preemptions.recompute;
            (all > 0).then_some(all as f64)
        },
    },
];

/// One line: its name, and the runs by their place on the horizontal axis.
struct Line<'a> {
    name: String,
    runs: Vec<(f64, &'a str, &'a PointRun)>,
}

/// One chart per figure that any run has.
#[must_use]
pub fn charts(report: &SweepReport) -> Vec<Chart> {
    let numeric = report.swept.iter().position(|a| a.numbers.is_some());
    let Some((at, axis)) = numeric
        .or(Some(0))
        .and_then(|i| Some((i, report.swept.get(i)?)))
    else {
        return Vec::new();
    };
    let lines = lines(report, at, axis);
    METRICS
        .iter()
        .filter_map(|m| chart(m, axis, &lines))
        .collect()
}

/// Where the values of `axis` lie: as numbers, or one after another.
fn places(axis: &Axis) -> Vec<f64> {
    match &axis.numbers {
        Some(numbers) => numbers.clone(),
        None => (0..axis.values.len()).map(|i| i as f64).collect(),
    }
}

/// The lines over the swept value number `at`, in the order of the points.
fn lines<'a>(report: &'a SweepReport, at: usize, axis: &'a Axis) -> Vec<Line<'a>> {
    let x: BTreeMap<&str, f64> = axis
        .values
        .iter()
        .map(String::as_str)
        .zip(places(axis))
        .collect();
    let mut lines: Vec<Line<'a>> = Vec::new();
    // A sweep of one server need not name it.
    let mut labels = report.points.iter().flat_map(|p| &p.runs).map(|r| &r.label);
    let first = labels.next();
    let several = labels.any(|l| Some(l) != first) || report.swept.len() == 1;
    for point in &report.points {
        let others: Vec<String> = point
            .settings
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != at)
            .map(|(_, s)| format!("{} {}", s.name, s.value))
            .collect();
        let Some(value) = point.settings.get(at).map(|s| s.value.as_str()) else {
            continue;
        };
        for run in &point.runs {
            let label = several.then(|| run.label.clone());
            let name: Vec<String> = label.into_iter().chain(others.clone()).collect();
            let name = name.join(", ");
            let place = x.get(value).copied().unwrap_or_default();
            let entry = (place, value, run);
            match lines.iter_mut().find(|l| l.name == name) {
                Some(line) => line.runs.push(entry),
                None => lines.push(Line {
                    name,
                    runs: vec![entry],
                }),
            }
        }
    }
    for line in &mut lines {
        line.runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

fn chart(metric: &Metric, axis: &Axis, lines: &[Line<'_>]) -> Option<Chart> {
    let of = |r: &PointRun| (metric.of)(r).filter(|v| v.is_finite());
    // A line has its colour in every chart.
    let drawn: Vec<(String, &Line<'_>)> = lines
        .iter()
        .take(LINES)
        .enumerate()
        .filter(|(_, l)| l.runs.iter().any(|(_, _, r)| of(r).is_some()))
        .map(|(i, l)| (colour(i), l))
        .collect();
    if drawn.is_empty() {
        return None;
    }
    let values: Vec<f64> = drawn
        .iter()
        .flat_map(|(_, l)| l.runs.iter().filter_map(|(_, _, r)| of(r)))
        .collect();
    let max = values.iter().copied().fold(0.0, f64::max);
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let unit = match lines.len() {
        n if n > LINES => format!("{}; the first {LINES} of {n} lines", metric.unit),
        _ => metric.unit.to_owned(),
    };
    let names: Vec<(String, String)> = drawn
        .iter()
        .map(|(colour, l)| (colour.clone(), clip(&l.name, 80)))
        .collect();
    // The key tells its height by drawing.
    let top = 34.0 + key(&mut Svg::new(WIDTH, 0.0), 0.0, &names);
    let mut svg = Svg::new(WIDTH, top + 235.0);
    heading(&mut svg, metric.title, &unit);
    key(&mut svg, 26.0, &names);
    let area = [52.0, top, WIDTH - 16.0, top + 192.0];
    let x = Scale::places(
        &places(axis),
        &axis.values,
        [area[0] + 14.0, area[2] - 14.0],
    );
    let frame = Frame::over(&mut svg, area, x, &axis.name, |p| match metric.kind {
        Kind::Counts => Scale::counts(max, p),
        Kind::Shares => Scale::shares(max, p),
        Kind::Durations => Scale::durations(min, max, p),
    });
    // The first line is the one that matters: it is drawn last, above the others.
    for (colour, line) in drawn.iter().rev() {
        let joined = axis.numbers.is_some();
        draw(&mut svg, &frame, metric, colour, line, joined);
    }
    frame.baseline(&mut svg);
    Some(Chart::new(
        metric.name.to_owned(),
        metric.topic,
        &format!("{} over {}", metric.title, axis.name),
        &svg,
    ))
}

/// Samples of lines with names, in as many rows as needed from `y` on; the height they took.
fn key(svg: &mut Svg, y: f64, entries: &[(String, String)]) -> f64 {
    let (mut x, mut row) = (0.0, 0.0);
    for (class, text) in entries {
        let w = 26.0 + text.chars().count() as f64 * CHARACTER + 12.0;
        if x > 0.0 && x + w > WIDTH {
            x = 0.0;
            row += 1.0;
        }
        let middle = y + row * 17.0 + 5.0;
        let d = format!("M{} {}L{} {}", px(x), px(middle), px(x + 20.0), px(middle));
        svg.path(&format!("line {class}"), &d, "");
        svg.circle(&format!("dot {class}"), x + 10.0, middle, 3.5, "");
        svg.text("small", Anchor::Start, x + 26.0, middle + 4.0, text);
        x += w;
    }
    (row + 1.0) * 17.0
}

/// A dot at every value, and a line through them; the line is broken where a run has no such figure, and missing
/// where there is nothing between values.
fn draw(
    svg: &mut Svg,
    frame: &Frame,
    metric: &Metric,
    colour: &str,
    line: &Line<'_>,
    joined: bool,
) {
    let (mut d, mut pen, mut dots) = (String::new(), 'M', Vec::new());
    for (place, text, run) in &line.runs {
        let Some(value) = (metric.of)(run).filter(|v| v.is_finite()) else {
            pen = 'M';
            continue;
        };
        let (x, y) = (frame.x.at(*place), frame.y.at(value));
        let _ = write!(d, "{pen}{} {}", px(x), px(y));
        pen = 'L';
        dots.push((x, y, text, value));
    }
    if joined {
        svg.path(&format!("line {colour}"), &d, &line.name);
    }
    for (x, y, text, value) in dots {
        let title = format!("{}, at {text}: {}", line.name, metric.kind.written(value));
        svg.circle(&format!("dot {colour}"), x, y, 3.5, &title);
    }
}
