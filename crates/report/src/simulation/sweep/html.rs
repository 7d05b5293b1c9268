//! A sweep as one page.

use std::fmt::Write as _;

use super::rows::{failed, lines, names};
use super::wire::SweepReport;
use crate::numbers::short_bytes;
use crate::page::document;
use crate::simulation::charts::{Chart, points};
use crate::simulation::html::basis;
use crate::simulation::text::slo_words;
use crate::svg::escape;

/// The page.
#[must_use]
pub fn sweep_html(report: &SweepReport) -> String {
    let s = &report.setup;
    let title = format!("{} on {}", s.model, s.device);
    let swept: Vec<&str> = report.swept.iter().map(|a| a.name.as_str()).collect();
    let mut out = format!(
        "<h1>{}: {}</h1>\n<p class=\"quiet-text\">{}; {} of KV memory. What is not swept is as in this run, the \
         first.</p>\n",
        escape(&title),
        escape(&swept.join(", ")),
        escape(&s.workload),
        short_bytes(s.kv_bytes)
    );
    if let Some(slo) = &s.slo {
        let _ = writeln!(
            out,
            "<p class=\"quiet-text\">Service level: {}</p>",
            slo_words(slo)
        );
    }
    for n in &report.notes {
        let _ = writeln!(out, "<p><strong>Note:</strong> {}</p>", escape(n));
    }
    let charts: Vec<Chart> = points::charts(report);
    if !charts.is_empty() {
        out.push_str("<div class=\"charts\">\n");
        for chart in &charts {
            let _ = writeln!(out, "{}", chart.inline);
        }
        out.push_str("</div>\n");
    }
    table(report, &mut out);
    basis(s, &mut out);
    let footer = format!(
        "Made by plimsoll simulate; {}, seed {}. The same values, workload and seed give the same decisions on any \
         machine.",
        escape(&report.schema),
        s.seed
    );
    document(&format!("{title} - Plimsoll sweep"), &out, &footer)
}

/// The lines of the terminal's table.
fn table(report: &SweepReport, out: &mut String) {
    let lines = lines(report);
    out.push_str("<h2>Points</h2>\n<div class=\"scroll\"><table>\n<thead><tr>");
    for name in &names(report) {
        let _ = write!(
            out,
            "<th scope=\"col\" class=\"name\">{}</th>",
            escape(name)
        );
    }
    for name in &lines.header {
        let _ = write!(out, "<th scope=\"col\">{name}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for cells in &lines.cells {
        out.push_str("<tr>");
        for (i, cell) in cells.iter().enumerate() {
            let class = if i < lines.names {
                " class=\"name\""
            } else {
                ""
            };
            let _ = write!(out, "<td{class}>{}</td>", escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
    let mut failures = failed(report).peekable();
    if failures.peek().is_some() {
        out.push_str("<h2>Cannot run</h2>\n<ul>\n");
        for f in failures {
            let _ = writeln!(out, "<li>{}</li>", escape(&f));
        }
        out.push_str("</ul>\n");
    }
}
