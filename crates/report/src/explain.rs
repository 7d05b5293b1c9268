//! `--explain`: every term with its formula, its inputs and its source.

use std::fmt::Write as _;

use crate::numbers::{short_bytes, thousands};
use crate::wire::PlanReport;

/// The terms whose name or region contains `filter` (all of them for `None` or an empty one), as
/// text; `None` where nothing matches.
#[must_use]
pub fn explain(report: &PlanReport, filter: Option<&str>) -> Option<String> {
    let wanted = filter.unwrap_or("").to_ascii_lowercase();
    let mut out = String::new();
    for rank in &report.ranks {
        let matching: Vec<_> = rank
            .terms
            .iter()
            .filter(|t| {
                wanted.is_empty()
                    || t.name.to_ascii_lowercase().contains(&wanted)
                    || t.region.contains(&wanted)
            })
            .collect();
        if matching.is_empty() {
            continue;
        }
        let _ = writeln!(
            out,
            "stage {} (layers {}..{}), {} rank(s) alike",
            rank.stage, rank.layers[0], rank.layers[1], rank.copies
        );
        if let Some(budget) = rank.budget_bytes {
            let _ = writeln!(
                out,
                "  budget {} = {}",
                short_bytes(budget),
                rank.budget_formula
            );
        }
        for t in matching {
            let _ = writeln!(
                out,
                "  {} / {}: {} = {} bytes, {}",
                t.region,
                t.name,
                short_bytes(t.bytes),
                thousands(t.bytes),
                t.kind
            );
            if let Some(i) = t.interval {
                let _ = writeln!(
                    out,
                    "      between {} and {}",
                    short_bytes(i.low),
                    short_bytes(i.high)
                );
            }
            if !t.formula.is_empty() {
                let _ = writeln!(out, "      = {}", t.formula);
            }
            for [name, value] in &t.inputs {
                let _ = writeln!(out, "        {name} = {value}");
            }
            if !t.source.is_empty() {
                let _ = writeln!(out, "      source: {}", t.source);
            }
        }
    }
    if out.is_empty() {
        return None;
    }
    for g in &report.kv.groups {
        let span = g
            .span
            .map_or_else(String::new, |n| format!(" of {} tokens", thousands(n)));
        let _ = writeln!(
            out,
            "kv group: {}{span}, {} layers + {} padding, {} tokens per block, {} bytes per layer page, {} \
             blocks per request of {} tokens",
            g.kind,
            g.layers,
            g.padding_layers,
            thousands(g.block_size),
            thousands(g.page_bytes),
            thousands(g.blocks_per_request),
            thousands(report.kv.max_model_len)
        );
    }
    Some(out)
}
