//! Where the pool went, by class (Kwon et al., SOSP 2023, figure 2), and what that buys.

use super::{Chart, Topic, WIDTH, heading, legend};
use crate::simulation::text::{CLASSES, clip, figure, percent, telling};
use crate::simulation::wire::{Run, SimulationReport};
use crate::svg::{Anchor, Svg};

/// Where bars begin; names stand left of it.
const LEFT: f64 = 112.0;

/// One stacked bar per run, with figures.
pub(super) fn classes(report: &SimulationReport) -> Chart {
    const ROW: f64 = 46.0;
    let used: Vec<(String, String)> = CLASSES
        .iter()
        .filter(|c| report.runs.iter().any(|r| (c.share)(telling(r).0) > 0.0))
        .map(|c| (c.key.to_owned(), c.name.to_owned()))
        .collect();
    let top = 50.0;
    let mut svg = Svg::new(WIDTH, top + report.runs.len() as f64 * ROW);
    heading(&mut svg, "Where the KV pool went", "share of all slots");
    legend(&mut svg, 24.0, &used);
    let width = WIDTH - LEFT;
    for (row, run) in report.runs.iter().enumerate() {
        let y = top + row as f64 * ROW;
        let (shares, when) = telling(run);
        let label = clip(&run.label, 16);
        svg.text("small", Anchor::End, LEFT - 10.0, y + 11.0, &label);
        svg.text("quiet", Anchor::End, LEFT - 10.0, y + 24.0, when);
        let mut x = LEFT;
        let mut rest: Vec<String> = Vec::new();
        for class in &CLASSES {
            let share = (class.share)(shares);
            let w = share.clamp(0.0, 1.0) * width;
            if share <= 0.0 {
                continue;
            }
            let title = format!("{}: {} {}", run.label, class.name, percent(share));
            svg.rect(class.key, [x, y, w, 22.0], &title);
            if w >= 46.0 {
                let class = format!("figure on-{}", class.key);
                svg.text(
                    &class,
                    Anchor::Middle,
                    x + w / 2.0,
                    y + 15.5,
                    &percent(share),
                );
            } else {
                rest.push(format!("{} {}", class.name, percent(share)));
            }
            x += w;
        }
        // What is too narrow for its figure has it below.
        svg.text("quiet", Anchor::Start, LEFT, y + 35.0, &rest.join(", "));
    }
    Chart::new(
        "waste".to_owned(),
        Topic::Waste,
        "Shares of the KV pool by class and run",
        &svg,
    )
}

/// What the pool bought: sequences at once, and tokens per second.
pub(super) fn rates(report: &SimulationReport) -> Chart {
    const ROW: f64 = 22.0;
    let n = report.runs.len() as f64;
    let block = 30.0 + n * ROW;
    let mut svg = Svg::new(WIDTH, 2.0 * block + 14.0);
    heading(
        &mut svg,
        "What it bought",
        "sequences running, mean while busy",
    );
    bars(&mut svg, 26.0, &report.runs, |r| r.running_mean);
    let second = block + 14.0;
    svg.text(
        "unit",
        Anchor::Start,
        0.0,
        second + 14.0,
        "output tokens per second",
    );
    bars(&mut svg, second + 26.0, &report.runs, |r| {
        r.output_tokens_per_s
    });
    Chart::new(
        "rates".to_owned(),
        Topic::Waste,
        "Sequences running and output tokens per second by run",
        &svg,
    )
}

fn bars(svg: &mut Svg, top: f64, runs: &[Run], of: impl Fn(&Run) -> f64) {
    let most = runs.iter().map(&of).fold(0.0, f64::max);
    let width = WIDTH - LEFT - 60.0;
    for (i, run) in runs.iter().enumerate() {
        let y = top + i as f64 * 22.0;
        let value = of(run);
        let w = if most > 0.0 {
            value / most * width
        } else {
            0.0
        };
        let label = clip(&run.label, 16);
        svg.text("small", Anchor::End, LEFT - 10.0, y + 12.0, &label);
        let title = format!("{}: {}", run.label, figure(value));
        svg.rect("bar", [LEFT, y, w, 16.0], &title);
        let at = LEFT + w + 6.0;
        svg.text("figure", Anchor::Start, at, y + 12.0, &figure(value));
    }
}
