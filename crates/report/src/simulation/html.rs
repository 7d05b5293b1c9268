//! A report as one page: no network, no script, light and dark, every figure also in words.

use std::fmt::Write as _;

use super::charts::{Chart, Topic, charts};
use super::rows::rows;
use super::text::{figure, percent, seconds, slo_words};
use super::wire::{Named, Run, Setup, SimulationReport};
use crate::numbers::{short_bytes, thousands};
use crate::page::document;
use crate::svg::escape;

/// The sections with charts: topic, heading, what to see.
const SECTIONS: [(Topic, &str, &str); 6] = [
    (
        Topic::Waste,
        "Memory and what it buys",
        "Shares are means over the time in which requests waited; a run in which none ever did shows its busy time. \
         Reserved: held for tokens that will come. Internal: held, and no token will fill it. External: lost between \
         allocations, or on its way to or from swap space.",
    ),
    (
        Topic::Latency,
        "Latency",
        "Large dot: median. Small dot: 90th percentile. Ring: 99th. The axis is logarithmic.",
    ),
    (
        Topic::Memory,
        "The KV pool over time",
        "One panel per run, all on one scale.",
    ),
    (Topic::Load, "Load over time", ""),
    (
        Topic::Preemption,
        "Preemption",
        "A sequence gives way when blocks run out: its blocks are swapped out, or dropped and computed again.",
    ),
    (
        Topic::Cache,
        "Prefix cache",
        "Prompt tokens whose keys and values were there already.",
    ),
];

/// The page.
#[must_use]
pub fn simulation_html(report: &SimulationReport) -> String {
    let s = &report.setup;
    let title = format!("{} on {}", s.model, s.device);
    let mut out = String::new();
    head(report, &title, &mut out);
    let drawn = charts(report);
    for (topic, heading, words) in SECTIONS {
        section(&drawn, topic, heading, words, &mut out);
        if topic == Topic::Waste {
            comparison(report, &mut out);
        }
    }
    if !drawn.is_empty() && !drawn.iter().any(|c| c.topic == Topic::Preemption) {
        out.push_str("<h2>Preemption</h2>\n<p>No run preempted anything.</p>\n");
    }
    let looked_up = report
        .runs
        .iter()
        .any(|r| r.prefix_cache.queried_tokens > 0);
    if looked_up && !drawn.iter().any(|c| c.topic == Topic::Cache) {
        out.push_str("<h2>Prefix cache</h2>\n<p>No prompt token was found in it.</p>\n");
    }
    setup(report, &mut out);
    let footer = format!(
        "Made by plimsoll simulate; {}, seed {}. The same workload, seed and parameters give the same decisions on \
         any machine.",
        escape(&report.schema),
        s.seed
    );
    document(&format!("{title} - Plimsoll simulation"), &out, &footer)
}

/// Title, the numbers that matter, and what they rest on.
fn head(report: &SimulationReport, title: &str, out: &mut String) {
    let s = &report.setup;
    let _ = write!(
        out,
        "<h1>{}</h1>\n<p class=\"quiet-text\">{}; {} of KV memory, at most {} tokens and {} sequences per step</p>\n",
        escape(title),
        escape(&s.workload),
        short_bytes(s.kv_bytes),
        thousands(s.max_batched_tokens),
        thousands(s.max_sequences)
    );
    if let Some(slo) = &s.slo {
        let _ = writeln!(
            out,
            "<p class=\"quiet-text\">Service level: {}</p>",
            slo_words(slo)
        );
    }
    if let Some((first, others)) = report.runs.split_first() {
        cards(first, others, out);
    }
    for n in &report.notes {
        let _ = writeln!(out, "<p><strong>Note:</strong> {}</p>", escape(n));
    }
    basis(s, out);
}

/// What a simulation models, and what it leaves out.
pub(super) fn basis(s: &Setup, out: &mut String) {
    out.push_str("<div class=\"two\">\n");
    list("What this models", &s.modelled, out);
    list("What it does not", &s.not_modelled, out);
    out.push_str("</div>\n");
}

fn list(heading: &str, sentences: &[String], out: &mut String) {
    let _ = writeln!(out, "<div><h2>{heading}</h2>\n<ul>");
    for s in sentences {
        let _ = writeln!(out, "<li>{}</li>", escape(s));
    }
    if sentences.is_empty() {
        out.push_str("<li>Not stated.</li>\n");
    }
    out.push_str("</ul></div>\n");
}

/// What a card shows: its name, the value of a run where it has one, and how that is written.
type Card = (&'static str, fn(&Run) -> Option<f64>, fn(f64) -> String);

/// The first run's numbers, each beside the range of the others.
fn cards(first: &Run, others: &[Run], out: &mut String) {
    let mut shown: Vec<Card> = vec![
        (
            "live KV at saturation",
            |r| r.kv.live_share_at_saturation,
            percent,
        ),
        ("sequences running, mean", |r| Some(r.running_mean), figure),
        ("output tokens / s", |r| Some(r.output_tokens_per_s), figure),
        (
            "latency / token, mean",
            |r| r.latency.normalised.map(|p| p.mean_s),
            seconds,
        ),
        (
            "preemptions",
            |r| Some((r.preemptions.swap + r.preemptions.recompute) as f64),
            figure,
        ),
    ];
    if first.goodput.is_some() {
        shown.push(("within SLO", |r| r.goodput.map(|g| g.share), percent));
    }
    let _ = writeln!(
        out,
        "<p class=\"quiet-text\">The figures of <strong>{}</strong>{}</p>\n<div class=\"cards\">",
        escape(&first.label),
        if others.is_empty() {
            ""
        } else {
            ", and the range of the other runs:"
        }
    );
    for (name, of, write) in shown {
        let value = of(first).map_or_else(|| "-".to_owned(), write);
        let known: Vec<f64> = others.iter().filter_map(of).collect();
        let low = known.iter().copied().fold(f64::INFINITY, f64::min);
        let high = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let range = match (known.is_empty(), write(low), write(high)) {
            (true, ..) => String::new(),
            (_, a, b) if a == b => format!("<span>others: {a}</span>"),
            (_, a, b) => format!("<span>others: {a} to {b}</span>"),
        };
        let _ = writeln!(
            out,
            "<div class=\"card\"><span>{name}</span><b>{value}</b>{range}</div>"
        );
    }
    out.push_str("</div>\n");
}

/// The lines of the terminal's table.
fn comparison(report: &SimulationReport, out: &mut String) {
    if report.runs.is_empty() {
        out.push_str("<p>Nothing was run.</p>\n");
        return;
    }
    out.push_str(
        "<h2>Runs</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\"></th>",
    );
    for run in &report.runs {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(&run.label));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows(report) {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escape(&row.name));
        for cell in &row.cells {
            let _ = write!(out, "<td>{}</td>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
}

fn section(drawn: &[Chart], topic: Topic, heading: &str, words: &str, out: &mut String) {
    let mut of_topic = drawn.iter().filter(|c| c.topic == topic).peekable();
    if of_topic.peek().is_none() {
        return;
    }
    let _ = writeln!(out, "<h2>{heading}</h2>");
    if !words.is_empty() {
        let _ = writeln!(out, "<p class=\"quiet-text\">{words}</p>");
    }
    out.push_str("<div class=\"charts\">\n");
    for chart in of_topic {
        out.push_str(&chart.inline);
        out.push('\n');
    }
    out.push_str("</div>\n");
}

/// Everything that was told, for whoever wants to repeat it.
fn setup(report: &SimulationReport, out: &mut String) {
    let s = &report.setup;
    out.push_str("<details><summary>Setup</summary>\n<div class=\"scroll\"><table class=\"setup\">\n<tbody>\n");
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
            escape(name),
            escape(value)
        );
    };
    row("model", &s.model);
    row("device", &s.device);
    row("workload", &s.workload);
    row("requests", &thousands(s.requests));
    row("KV memory", &format!("{} bytes", thousands(s.kv_bytes)));
    row("swap space", &format!("{} bytes", thousands(s.swap_bytes)));
    row("tokens per step, at most", &thousands(s.max_batched_tokens));
    row("sequences per step, at most", &thousands(s.max_sequences));
    row("seed", &s.seed.to_string());
    if let Some(slo) = s.slo {
        row("service level", &slo_words(&slo));
    }
    for Named { name, value } in &s.costs {
        row(&format!("cost: {name}"), value);
    }
    for run in &report.runs {
        for Named { name, value } in &run.policies {
            row(&format!("{}: {name}", run.label), value);
        }
        row(&format!("{}: slots", run.label), &thousands(run.pool.slots));
        if let (Some(pages), Some(bytes)) = (run.pool.pages, run.pool.page_bytes) {
            let text = format!("{} of {} bytes", thousands(pages), thousands(bytes));
            row(&format!("{}: pages", run.label), &text);
        }
        if let Some(block) = run.pool.block_size {
            row(
                &format!("{}: slots per block", run.label),
                &thousands(block),
            );
        }
        if let Some(hash) = &run.decision_hash {
            row(&format!("{}: decision hash", run.label), hash);
        }
        for r in &run.requests.refusals {
            row(
                &format!("{}: refused, {}", run.label, r.reason),
                &thousands(r.count),
            );
        }
    }
    out.push_str("</tbody>\n</table></div></details>\n");
}
