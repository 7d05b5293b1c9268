//! The pictures of a report. Each is a [`Chart`], drawn 540 pixels wide, so that text stays readable
//! on a page of one column or two; colours come from `chart.css` by class.
//!
//! Charts are drawn here rather than with a plotting crate: colours must follow the reader's light or
//! dark theme, which needs CSS classes where those crates write fixed colours, and all of it is axes,
//! areas, lines and bars.

mod latency;
mod memory;
mod over_time;
pub(super) mod points;
mod preemption;
mod waste;

use super::scale::Scale;
use super::text::clip;
use super::wire::{Run, SimulationReport, TimeSeries};
use crate::page::CHART_CSS;
use crate::svg::{Anchor, Svg};

/// Width of every chart.
const WIDTH: f64 = 540.0;

/// Columns that a pointer can find, per chart over time.
const HOVERS: usize = 60;

/// Points of a line or an area; more would be narrower than a pixel or two.
const POINTS: usize = 200;

/// Width of a character of small text, generously.
const CHARACTER: f64 = 6.1;

/// Colours of runs in lines; beyond them they repeat, dashed.
const COLOURS: usize = 6;

/// What a chart is about; a page has one section for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Shares of the pool by class, and what they buy.
    Waste,
    /// The pool over time.
    Memory,
    /// Sequences and queues over time.
    Load,
    /// Latency percentiles.
    Latency,
    /// Preemptions and what they cost.
    Preemption,
    /// Prefix cache hits.
    Cache,
}

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chart {
    /// A file name without its end: `memory-1`. Counted by run where there is one for each.
    pub name: String,
    /// What it is about.
    pub topic: Topic,
    /// The drawing as an element of a page that has [`CHART_CSS`].
    pub inline: String,
    /// The drawing as a file of its own.
    pub standalone: String,
}

/// All charts of `report`, in the order of the page. What would be empty is left out.
#[must_use]
pub fn charts(report: &SimulationReport) -> Vec<Chart> {
    let mut out = Vec::new();
    if report.runs.is_empty() {
        return out;
    }
    out.push(waste::classes(report));
    out.push(waste::rates(report));
    out.extend(memory::panels(report));
    out.extend(over_time::load(report));
    out.extend(latency::charts(report));
    out.extend(preemption::charts(report));
    out.extend(over_time::cache(report));
    out
}

impl Chart {
    fn new(name: String, topic: Topic, label: &str, svg: &Svg) -> Self {
        Self {
            name,
            topic,
            inline: svg.finish(label, ""),
            standalone: svg.finish(label, CHART_CSS),
        }
    }
}

/// The colour class of run number `i`.
fn colour(i: usize) -> String {
    let dashed = if i >= COLOURS { " again" } else { "" };
    format!("r{}{dashed}", i % COLOURS)
}

/// The end of the longest run, in seconds.
fn end_s(runs: &[Run]) -> f64 {
    let end = |s: &TimeSeries| s.start_s.last().copied().unwrap_or_default() + s.width_s;
    runs.iter().map(|r| end(&r.series)).fold(0.0, f64::max)
}

/// Neighbouring values in groups of equal size, at most `POINTS` groups: each group's mean, and how
/// many values a group has.
fn thin(values: &[f64]) -> (Vec<f64>, usize) {
    let each = values.len().div_ceil(POINTS).max(1);
    let mean = |g: &[f64]| g.iter().sum::<f64>() / g.len() as f64;
    (values.chunks(each).map(mean).collect(), each)
}

/// A plot area with axes.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
}

impl Frame {
    /// An area over time from 0 to `end_s`, its vertical scale from `scale`, and its axes drawn.
    fn over_time(
        svg: &mut Svg,
        [left, top, right, bottom]: [f64; 4],
        end_s: f64,
        scale: impl FnOnce([f64; 2]) -> Scale,
    ) -> Self {
        let (x, unit) = Scale::time(end_s, [left, right]);
        let area = [left, top, right, bottom];
        Self::over(svg, area, x, &format!("time ({unit})"), scale)
    }

    /// An area over `x`, which is called `name`, its vertical scale from `scale`, and its axes drawn.
    fn over(
        svg: &mut Svg,
        [left, top, right, bottom]: [f64; 4],
        x: Scale,
        name: &str,
        scale: impl FnOnce([f64; 2]) -> Scale,
    ) -> Self {
        let frame = Self {
            left,
            right,
            top,
            bottom,
            x,
            y: scale([bottom, top]),
        };
        for (v, label) in &frame.y.ticks {
            let y = frame.y.at(*v);
            svg.line("grid", [left, y, right, y]);
            svg.text("tick", Anchor::End, left - 6.0, y + 3.5, label);
        }
        for (v, label) in &frame.x.ticks {
            let x = frame.x.at(*v);
            svg.line("axis", [x, bottom, x, bottom + 4.0]);
            svg.text("tick", Anchor::Middle, x, bottom + 16.0, label);
        }
        let middle = f64::midpoint(left, right);
        svg.text("axis-title", Anchor::Middle, middle, bottom + 31.0, name);
        frame
    }

    /// The line along the bottom, over what was drawn.
    fn baseline(&self, svg: &mut Svg) {
        svg.line("axis", [self.left, self.bottom, self.right, self.bottom]);
    }

    /// Columns that show themselves under a pointer and say what holds: `say` is asked for groups of
    /// buckets, first and one past the last.
    fn hovers(&self, svg: &mut Svg, s: &TimeSeries, say: impl Fn(usize, usize) -> String) {
        let n = s.start_s.len();
        let each = n.div_ceil(HOVERS).max(1);
        for from in (0..n).step_by(each) {
            let to = (from + each).min(n);
            let x0 = self.x.at(s.start_s[from]);
            let x1 = self.x.at(s.start_s[to - 1] + s.width_s);
            svg.rect(
                "hover",
                [x0, self.top, x1 - x0, self.bottom - self.top],
                &say(from, to),
            );
        }
    }
}

/// The heading of a chart: what it is, and its unit or basis in quieter type.
fn heading(svg: &mut Svg, title: &str, unit: &str) {
    svg.heading(0.0, 14.0, &clip(title, 44), unit);
}

/// Swatches with names, in as many rows as needed from `y` on; the height they took.
fn legend(svg: &mut Svg, y: f64, entries: &[(String, String)]) -> f64 {
    let (mut x, mut row) = (0.0, 0.0);
    for (class, text) in entries {
        let w = 14.0 + text.chars().count() as f64 * CHARACTER + 12.0;
        if x > 0.0 && x + w > WIDTH {
            x = 0.0;
            row += 1.0;
        }
        let top = y + row * 17.0;
        svg.rect(&format!("swatch {class}"), [x, top, 10.0, 10.0], "");
        svg.text("small", Anchor::Start, x + 14.0, top + 9.0, text);
        x += w;
    }
    (row + 1.0) * 17.0
}
