//! The plan for a terminal: the answer, a stacked bar, the breakdown, what sharing saves, what to
//! change, what to paste.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use crate::cards::{fullest, region_bytes};
use crate::numbers::{plain, short_bytes, thousands, users};
use crate::wire::{PlanReport, Rank, Term};
use crate::workload::section;

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Whether to colour.
    pub color: bool,
    /// Whether to keep to ASCII.
    pub ascii: bool,
    /// Columns of the terminal.
    pub width: usize,
}

/// Regions in the order of the bar: name, letter for ASCII bars, ANSI colour.
pub(crate) const REGIONS: &[(&str, char, u8)] = &[
    ("weights", 'W', 34),
    ("adapters", 'A', 94),
    ("draft", 'D', 94),
    ("activations", 'a', 33),
    ("workspace", 'w', 33),
    ("encoder_cache", 'e', 33),
    ("graphs", 'g', 35),
    ("collectives", 'c', 35),
    ("driver", 'd', 35),
    ("kv_cache", 'K', 32),
    ("swap", 's', 36),
    ("in_use", 'x', 31),
    ("reserve", '.', 90),
];

/// Cells of the bar.
const BAR: usize = 60;

/// Draws `report`.
#[must_use]
pub fn table(report: &PlanReport, look: Look) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", paint(&plain(&report.answer.text), 1, look));
    second_line(report, &mut out);
    let _ = writeln!(out);
    if report.ranks.len() > 2 {
        stages(report, &mut out);
    }
    for rank in shown(report) {
        draw_rank(report, rank, look, &mut out);
    }
    kv_lines(report, &mut out);
    ways(report, &mut out);
    if let Some(w) = &report.workload {
        section(w, &mut out);
    }
    if !report.changes.is_empty() {
        let _ = writeln!(out, "\nAny one of these would make it fit:");
        for c in &report.changes {
            let tight = if c.verdict == "tight" { ", tight" } else { "" };
            let _ = writeln!(
                out,
                "  {:<34} {} users{tight}; {}",
                c.flag,
                thousands(c.users),
                c.cost
            );
        }
    }
    if !report.flags.is_empty() {
        let _ = writeln!(out, "\nTo run it:");
        for f in &report.flags {
            let _ = writeln!(out, "  {}", f.command);
        }
    }
    for n in &report.notes {
        let _ = writeln!(out, "note: {}", plain(n));
    }
    out
}

pub(crate) fn paint(text: &str, code: u8, look: Look) -> String {
    if look.color {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

fn second_line(report: &PlanReport, out: &mut String) {
    let a = &report.answer;
    let mixed = if report.load.lengths.is_empty() {
        ""
    } else {
        "up to "
    };
    let Some(device) = &report.device else { return };
    if a.one_device.is_some_and(|one| one.context == 0) {
        let _ = writeln!(
            out,
            "One {} does not hold the model and a single token.",
            device.name
        );
    } else if let Some(one) = a.one_device {
        let _ = writeln!(
            out,
            "One {} carries {} of {mixed}{} tokens, or one user of {}.",
            device.name,
            users(one.users),
            thousands(report.load.context),
            thousands(one.context)
        );
    }
    if a.verdict != "no" {
        let asked = report.load.users.unwrap_or(1);
        let _ = writeln!(
            out,
            "This deployment carries {} of {mixed}{} tokens, or {} of {mixed}{}.",
            users(a.max_users),
            thousands(report.load.context),
            thousands(asked),
            thousands(a.max_context)
        );
    }
}

/// The stages drawn in full: all of one or two, else the fullest alone.
fn shown(report: &PlanReport) -> Vec<&Rank> {
    if report.ranks.len() <= 2 {
        return report.ranks.iter().collect();
    }
    fullest(report).into_iter().collect()
}

/// One line per stage.
fn stages(report: &PlanReport, out: &mut String) {
    let of = |r: &Rank, region: &str| short_bytes(region_bytes(r, region));
    let _ = writeln!(out, "Stages, per device (the fullest follows in full):");
    for r in &report.ranks {
        let _ = writeln!(
            out,
            "  {:>2}  layers {:>3}..{:<3}  weights {:>10}  activations {:>10}  kv cache {:>10}  total {:>10}",
            r.stage + 1,
            r.layers[0],
            r.layers[1],
            of(r, "weights"),
            of(r, "activations"),
            of(r, "kv_cache"),
            short_bytes(r.total_bytes)
        );
    }
    let _ = writeln!(out);
}

fn draw_rank(report: &PlanReport, rank: &Rank, look: Look, out: &mut String) {
    let which = if report.ranks.len() > 1 {
        format!(
            "stage {} of {}, layers {}..{}, ",
            rank.stage + 1,
            report.ranks.len(),
            rank.layers[0],
            rank.layers[1]
        )
    } else {
        String::new()
    };
    let on = match (&rank.device, rank.usable_bytes) {
        (Some(d), Some(usable)) => format!("per {d} ({} usable)", short_bytes(usable)),
        _ => "in all".to_owned(),
    };
    let engine = report.engine.text();
    let _ = writeln!(out, "Memory {which}{on}, {engine}");
    if let Some(usable) = rank.usable_bytes {
        let _ = writeln!(out, "{}", bar(rank, usable, look));
    }
    let mut t = Table::new();
    t.load_preset(presets::NOTHING);
    t.set_header(vec!["", "size", "share", "known"]);
    let whole = rank.usable_bytes.unwrap_or(rank.total_bytes).max(1);
    let mut known: Vec<&str> = Vec::new();
    for &(region, ..) in REGIONS {
        let terms: Vec<&Term> = rank.terms.iter().filter(|t| t.region == region).collect();
        if terms.is_empty() {
            continue;
        }
        let sum: u64 = terms.iter().map(|t| t.bytes).fold(0, u64::saturating_add);
        let kind = weakest(&terms);
        if !known.contains(&kind) {
            known.push(kind);
        }
        t.add_row(vec![
            region.replace('_', " "),
            short_bytes(sum),
            percent(sum, whole),
            how(&terms, kind),
        ]);
        if terms.len() > 1 {
            for x in terms {
                t.add_row(vec![
                    format!("  {}", x.name.replace('_', " ")),
                    short_bytes(x.bytes),
                    percent(x.bytes, whole),
                    String::new(),
                ]);
            }
        }
    }
    if rank.usable_bytes.is_some() {
        let free = whole.saturating_sub(rank.total_bytes);
        t.add_row(vec![
            "unused".to_owned(),
            short_bytes(free),
            percent(free, whole),
            String::new(),
        ]);
    }
    t.add_row(vec![
        "total".to_owned(),
        short_bytes(rank.total_bytes),
        percent(rank.total_bytes, whole),
        String::new(),
    ]);
    for i in [1, 2] {
        if let Some(c) = t.column_mut(i) {
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in t.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
    for t in &rank.host_terms {
        let _ = writeln!(
            out,
            "on {}: {} {}, {}",
            if t.region == "swap_file" {
                "a disk"
            } else {
                "the host"
            },
            t.name,
            short_bytes(t.bytes),
            t.kind
        );
    }
    if let Some(b) = rank.budget_bytes {
        let _ = writeln!(out, "budget {} = {}", short_bytes(b), rank.budget_formula);
    }
    let _ = writeln!(out);
}

/// The least certain kind among terms.
fn weakest<'a>(terms: &[&'a Term]) -> &'a str {
    ["bound", "calibrated", "derived", "exact"]
        .into_iter()
        .find_map(|k| terms.iter().find(|t| t.kind == k).map(|t| t.kind.as_str()))
        .unwrap_or("exact")
}

fn how(terms: &[&Term], kind: &str) -> String {
    let ends = |f: fn(&crate::wire::Interval) -> u64| {
        terms
            .iter()
            .map(|t| t.interval.as_ref().map_or(t.bytes, f))
            .fold(0, u64::saturating_add)
    };
    match kind {
        "calibrated" => format!(
            "calibrated, {} to {}",
            short_bytes(ends(|i| i.low)),
            short_bytes(ends(|i| i.high))
        ),
        "bound" => format!("at most {}", short_bytes(ends(|i| i.high))),
        other => other.to_owned(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a percentage")]
fn percent(n: u64, of: u64) -> String {
    format!("{:.1} %", n as f64 * 100.0 / of as f64)
}

/// One line: each region's share of the device in `BAR` cells, the rest as dots.
fn bar(rank: &Rank, usable: u64, look: Look) -> String {
    let mut cells: Vec<(char, u8)> = Vec::with_capacity(BAR);
    let mut done = 0_u64;
    for &(region, letter, color) in REGIONS {
        done = done.saturating_add(region_bytes(rank, region));
        let end = (u128::from(done) * BAR as u128 / u128::from(usable.max(1))).min(BAR as u128);
        while (cells.len() as u128) < end {
            cells.push((letter, color));
        }
    }
    let mut text = String::from("[");
    for (letter, color) in &cells {
        let glyph = if look.ascii || !look.color {
            letter.to_string()
        } else {
            "\u{2588}".to_owned()
        };
        text.push_str(&paint(&glyph, *color, look));
    }
    for _ in cells.len()..BAR {
        text.push(if look.ascii { '.' } else { '\u{b7}' });
    }
    text.push(']');
    let legend: Vec<String> = REGIONS
        .iter()
        .filter(|(region, ..)| {
            rank.terms
                .iter()
                .any(|t| t.region == *region && t.bytes > 0)
        })
        .map(|(region, letter, color)| {
            let mark = if look.color {
                paint(&letter.to_string(), *color, look)
            } else {
                letter.to_string()
            };
            format!("{mark} {}", region.replace('_', " "))
        })
        .collect();
    format!("{text}\n {}", legend.join("  "))
}

fn kv_lines(report: &PlanReport, out: &mut String) {
    let kv = &report.kv;
    let blocks = kv.blocks.map_or_else(String::new, |n| {
        format!(
            "{} blocks of {} tokens, {} each; ",
            thousands(n),
            thousands(kv.block_size),
            short_bytes(kv.bytes_per_block)
        )
    });
    let _ = writeln!(
        out,
        "KV cache: {blocks}{} tokens; {:.2} requests of {} tokens",
        thousands(kv.tokens),
        kv.max_concurrency,
        thousands(kv.max_model_len)
    );
    let n = &kv.need;
    if n.pool_bytes > 0 {
        let waste = |b: u64| percent(b, n.pool_bytes);
        let _ = writeln!(
            out,
            "The load holds {}: {} token states, {} reserved, {} internal fragmentation",
            short_bytes(n.pool_bytes),
            waste(n.token_states_bytes),
            waste(n.reserved_bytes),
            waste(n.internal_bytes)
        );
    }
    external(report, out);
}

/// What a contiguous pool loses between its runs when full.
fn external(report: &PlanReport, out: &mut String) {
    if report.engine.name != "contiguous" {
        return;
    }
    let kv = &report.kv;
    let run = kv.bytes_per_block;
    let lost = kv
        .pool_bytes
        .saturating_sub(run.saturating_mul(kv.pool_bytes.checked_div(run).unwrap_or(0)));
    let _ = writeln!(
        out,
        "Full: {} sequences of {} slots, {} external fragmentation",
        thousands(kv.pool_bytes.checked_div(run).unwrap_or(0)),
        thousands(kv.block_size),
        percent2(lost, kv.pool_bytes)
    );
}

#[allow(clippy::cast_precision_loss, reason = "a percentage")]
fn percent2(n: u64, of: u64) -> String {
    format!("{:.2} %", n as f64 * 100.0 / of.max(1) as f64)
}

fn ways(report: &PlanReport, out: &mut String) {
    let w = &report.ways;
    let _ = writeln!(
        out,
        "\nKV cache of this load, three ways (users: what the same pool carries):"
    );
    for (name, way) in [
        ("contiguous, longest length reserved", w.contiguous),
        ("paged, nothing shared", w.paged),
        ("paged, copy-on-write and shared prefix", w.paged_shared),
    ] {
        let _ = writeln!(
            out,
            "  {name:<40} {:>12}  {:>9} users",
            short_bytes(way.bytes),
            thousands(way.users)
        );
    }
    if report.load.sequences > 1 {
        let _ = writeln!(
            out,
            "  {} sequences per request: the cache grows linearly in their number, not exponentially, and less \
             than linearly where the prompt's blocks are shared",
            report.load.sequences
        );
    }
}
