//! A simulation for a terminal: what ran, one column per run, where the KV pool went.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::rows::{Row, rows};
use super::text::{CLASSES, clip, percent, slo_words, telling};
use super::wire::{Run, SimulationReport};
use crate::numbers::{plain, short_bytes, thousands};
use crate::table::{Look, paint};

/// Cells of a bar: with its label and its figure it fits in 100 columns.
const BAR: usize = 52;

/// Columns that the names of the lines take, and those of one run. Five runs fit in 100 columns.
const NAME_COLUMNS: usize = 26;
const RUN_COLUMNS: usize = 14;

/// Draws `report`.
#[must_use]
pub fn simulation_table(report: &SimulationReport, look: Look) -> String {
    let s = &report.setup;
    let mut out = String::new();
    let title = format!("{} on {}", plain(&s.model), plain(&s.device));
    let _ = writeln!(out, "{}", paint(&title, 1, look));
    let swap = if s.swap_bytes > 0 {
        format!(", {} of swap space", short_bytes(s.swap_bytes))
    } else {
        String::new()
    };
    let _ = writeln!(
        out,
        "{}\n{} of KV memory{swap}; seed {}\nAt most {} tokens and {} sequences per step",
        plain(&s.workload),
        short_bytes(s.kv_bytes),
        s.seed,
        thousands(s.max_batched_tokens),
        thousands(s.max_sequences)
    );
    if let Some(slo) = &s.slo {
        let _ = writeln!(out, "Service level: {}", slo_words(slo));
    }
    let _ = writeln!(out);

    let lines = rows(report);
    let per_table = (look.width.saturating_sub(NAME_COLUMNS) / RUN_COLUMNS).max(1);
    for (i, runs) in report.runs.chunks(per_table).enumerate() {
        columns(&lines, runs, i * per_table, &mut out);
    }
    bars(report, look, &mut out);
    for n in &report.notes {
        let _ = writeln!(out, "note: {}", plain(n));
    }
    out
}

/// A table of some neighbouring runs, the first of them run number `first`.
fn columns(lines: &[Row], runs: &[Run], first: usize, out: &mut String) {
    let mut t = Table::new();
    t.load_preset(presets::NOTHING);
    let labels = runs.iter().map(|r| clip(&r.label, RUN_COLUMNS - 2));
    t.set_header(std::iter::once(String::new()).chain(labels));
    for line in lines {
        let cells = line.cells.iter().skip(first).take(runs.len()).cloned();
        t.add_row(std::iter::once(line.name.clone()).chain(cells));
    }
    for i in 1..=runs.len() {
        if let Some(c) = t.column_mut(i) {
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in t.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = writeln!(out);
}

/// One bar per run, and what its letters mean.
fn bars(report: &SimulationReport, look: Look, out: &mut String) {
    if report.runs.is_empty() {
        return;
    }
    let _ = writeln!(out, "Where the KV pool went:");
    for run in &report.runs {
        let (classes, when) = telling(run);
        let mut cells = 0;
        let mut done = 0.0;
        let mut text = String::from("[");
        for class in &CLASSES {
            done += (class.share)(classes);
            let end = ((done * BAR as f64).round().max(0.0) as usize).min(BAR);
            let solid = look.color && !look.ascii && class.key != "free";
            for _ in cells..end {
                let glyph = if solid { '\u{2588}' } else { class.letter };
                text.push_str(&paint(&glyph.to_string(), class.ansi, look));
            }
            cells = cells.max(end);
        }
        // Shares that add up to less than 1: nothing was measured.
        (cells..BAR).for_each(|_| text.push(' '));
        let _ = writeln!(
            out,
            "  {:<14} {text}] {:>7} live {when}",
            clip(&run.label, 14),
            percent(classes.token_states)
        );
    }
    let legend: Vec<String> = CLASSES
        .iter()
        .map(|c| format!("{} {}", paint(&c.letter.to_string(), c.ansi, look), c.name))
        .collect();
    let _ = writeln!(out, "  {}", legend.join("  "));
}
