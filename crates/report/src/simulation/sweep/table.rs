//! A sweep for a terminal: one line per point and server.

use crate::numbers::plain;
use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::rows::{failed, lines, names};
use super::wire::SweepReport;
use crate::simulation::text::slo_words;
use crate::table::{Look, paint};

/// Draws `report`.
#[must_use]
pub fn sweep_table(report: &SweepReport, look: Look) -> String {
    let s = &report.setup;
    let mut out = String::new();
    let title = format!("{} on {}", plain(&s.model), plain(&s.device));
    let _ = writeln!(out, "{}", paint(&title, 1, look));
    let _ = writeln!(
        out,
        "{}; seed {}\nWhat is not swept is as in this run, the first",
        plain(&s.workload),
        s.seed
    );
    if let Some(slo) = &s.slo {
        let _ = writeln!(out, "Service level: {}", slo_words(slo));
    }
    let _ = writeln!(out);
    let lines = lines(report);
    let mut t = Table::new();
    t.load_preset(presets::NOTHING);
    let header = lines.header.iter().map(|h| (*h).to_owned());
    t.set_header(names(report).into_iter().chain(header));
    for cells in &lines.cells {
        t.add_row(cells);
    }
    if let Some(c) = t.column_mut(0) {
        c.set_padding((0, 1));
    }
    for i in 0..lines.names + lines.header.len() {
        if let Some(c) = t.column_mut(i).filter(|_| i + 1 != lines.names) {
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in t.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let mut failures = failed(report).peekable();
    if failures.peek().is_some() {
        let _ = writeln!(out, "\nCannot run:");
    }
    for f in failures {
        let _ = writeln!(out, "  {f}");
    }
    for n in &report.notes {
        let _ = writeln!(out, "note: {}", plain(n));
    }
    out
}
