//! The memory of devices, term by term.

use std::fmt::Write as _;

use crate::cards::{CardsReport, fullest, region_bytes};
use crate::numbers::{short_bytes, thousands};
use crate::svg::escape;
use crate::table::REGIONS;
use crate::wire::{PlanReport, Rank, Term};

/// `part` of `whole` in percent, to a tenth.
pub(super) fn share(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// A bar per stage, and the terms of the fullest one as a table.
pub(super) fn memory(r: &PlanReport, out: &mut String) {
    let mut names: Vec<&String> = r.ranks.iter().filter_map(|k| k.device.as_ref()).collect();
    names.sort_unstable();
    names.dedup();
    let kinds = names.len();
    let on = match &r.device {
        Some(_) if kinds > 1 => "per device".to_owned(),
        Some(d) => format!("per {}, {} usable", d.name, short_bytes(d.usable_bytes)),
        None => "in all".to_owned(),
    };
    let _ = writeln!(
        out,
        "<h2>Memory {}</h2>\n<p class=\"quiet-text\">Point at a part, or step through them with the tab key, for its \
         formula and source.</p>",
        escape(&on)
    );
    legend(&r.ranks.iter().collect::<Vec<_>>(), out);
    for rank in &r.ranks {
        let name = if r.ranks.len() > 1 {
            format!(
                "stage {}, layers {} to {}",
                rank.stage + 1,
                rank.layers[0],
                rank.layers[1].saturating_sub(1)
            )
        } else {
            String::new()
        };
        let alike = if rank.copies > 1 {
            format!("{} alike", rank.copies)
        } else {
            String::new()
        };
        let kind = match (&rank.device, rank.usable_bytes) {
            (Some(d), Some(usable)) if kinds > 1 => format!("{d}, {} usable", short_bytes(usable)),
            _ => String::new(),
        };
        let label: Vec<&str> = [&*name, &*kind, &*alike]
            .into_iter()
            .filter(|t| !t.is_empty())
            .collect();
        bar(&label.join("; "), rank, rank.usable_bytes, out);
    }
    if let Some(rank) = fullest(r) {
        terms(r, rank, out);
    }
}

/// A bar per card.
pub(super) fn cards(report: &CardsReport, out: &mut String) {
    let ranks: Vec<(&str, &Rank, Option<u64>)> = report
        .cards
        .iter()
        .filter_map(|c| {
            let plan = c.plan.as_ref()?;
            let rank = fullest(plan)?;
            Some((c.device.as_str(), rank, rank.usable_bytes))
        })
        .collect();
    if ranks.is_empty() {
        return;
    }
    out.push_str("<h2>Memory of each card's fullest device</h2>\n");
    legend(&ranks.iter().map(|(_, r, _)| *r).collect::<Vec<_>>(), out);
    for (name, rank, usable) in ranks {
        bar(name, rank, usable, out);
    }
}

/// The regions that occur, in the order of the bars.
fn legend(ranks: &[&Rank], out: &mut String) {
    out.push_str("<p class=\"legend\">");
    for &(region, ..) in REGIONS {
        if ranks.iter().any(|r| region_bytes(r, region) > 0) {
            let _ = write!(
                out,
                "<span><i class=\"{region}\"></i>{}</span>",
                region.replace('_', " ")
            );
        }
    }
    out.push_str("<span><i class=\"free\"></i>unused</span></p>\n");
}

/// One device: its terms as parts of what it has.
fn bar(name: &str, rank: &Rank, usable: Option<u64>, out: &mut String) {
    // What does not fit runs over the device's end, so both are seen.
    let whole = usable.unwrap_or(0).max(rank.total_bytes).max(1);
    let _ = write!(
        out,
        "<div class=\"bar-line\"><span>{}</span><div class=\"stack\">",
        escape(name)
    );
    let mut before = 0_u64;
    for &(region, ..) in REGIONS {
        for t in rank.terms.iter().filter(|t| t.region == region) {
            if t.bytes == 0 {
                continue;
            }
            // What it says opens to the side where there is room.
            let far = if before > whole / 2 { " far" } else { "" };
            before = before.saturating_add(t.bytes);
            let wide = u128::from(t.bytes) * 12 > u128::from(whole);
            let text = if wide {
                short_bytes(t.bytes)
            } else {
                String::new()
            };
            let _ = write!(
                out,
                "<div class=\"part {region}{far}\" style=\"flex-grow:{}\" tabindex=\"0\"><b>{text}</b>{}</div>",
                t.bytes,
                tip(t)
            );
        }
    }
    let free = whole.saturating_sub(rank.total_bytes);
    if free > 0 {
        let _ = write!(
            out,
            "<div class=\"part free\" style=\"flex-grow:{free}\" title=\"unused {}\"></div>",
            short_bytes(free)
        );
    }
    if let Some(usable) = usable.filter(|u| *u < rank.total_bytes) {
        let _ = write!(
            out,
            "<i class=\"end\" style=\"left:{}%\" title=\"the device's {}\"></i>",
            share(usable, whole),
            short_bytes(usable)
        );
    }
    out.push_str("</div></div>\n");
}

/// What a term says of itself.
fn tip(t: &Term) -> String {
    let mut out = format!(
        "<span class=\"tip\"><b>{}: {}</b>{} bytes, {}",
        escape(&t.name.replace('_', " ")),
        short_bytes(t.bytes),
        thousands(t.bytes),
        escape(&t.kind)
    );
    if let Some(i) = t.interval {
        let _ = write!(out, ", {} to {}", short_bytes(i.low), short_bytes(i.high));
    }
    if !t.formula.is_empty() {
        let _ = write!(out, "<br/>= {}", escape(&t.formula));
    }
    for [name, value] in &t.inputs {
        let _ = write!(out, "<br/>{} = {}", escape(name), escape(value));
    }
    if !t.source.is_empty() {
        let _ = write!(out, "<br/><em>{}</em>", escape(&t.source));
    }
    out.push_str("</span>");
    out
}

/// The terms of a rank, region by region.
fn terms(r: &PlanReport, rank: &Rank, out: &mut String) {
    let whole = rank.usable_bytes.unwrap_or(rank.total_bytes);
    if r.ranks.len() > 1 {
        let _ = writeln!(
            out,
            "<p class=\"quiet-text\">The fullest, stage {}:</p>",
            rank.stage + 1
        );
    }
    out.push_str(
        "<table class=\"terms\">\n<thead><tr><th scope=\"col\"></th><th scope=\"col\">size</th><th \
         scope=\"col\">share</th><th class=\"name\" scope=\"col\">known</th></tr></thead>\n<tbody>\n",
    );
    let mut row = |t: &Term, mark: &str| {
        let known = match t.interval {
            Some(i) if t.kind == "calibrated" => {
                format!(
                    "calibrated, {} to {}",
                    short_bytes(i.low),
                    short_bytes(i.high)
                )
            }
            Some(i) if t.kind == "bound" => format!("at most {}", short_bytes(i.high)),
            _ => t.kind.clone(),
        };
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\" tabindex=\"0\"><i class=\"{mark}\"></i>{}: {}{}</th><td>{}</td><td>{} %</td><td \
             class=\"name\">{}</td></tr>",
            escape(&t.region.replace('_', " ")),
            escape(&t.name.replace('_', " ")),
            tip(t),
            short_bytes(t.bytes),
            share(t.bytes, whole),
            escape(&known)
        );
    };
    for &(region, ..) in REGIONS {
        for t in rank.terms.iter().filter(|t| t.region == region) {
            row(t, region);
        }
    }
    for t in &rank.host_terms {
        row(t, "host");
    }
    let _ = writeln!(
        out,
        "<tr><th scope=\"row\">total</th><td>{}</td><td>{} %</td><td></td></tr>\n</tbody>\n</table>",
        short_bytes(rank.total_bytes),
        share(rank.total_bytes, whole)
    );
    if let Some(b) = rank.budget_bytes {
        let _ = writeln!(
            out,
            "<p class=\"quiet-text\">The engine allows itself {} = {}</p>",
            short_bytes(b),
            escape(&rank.budget_formula)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_are_cut_to_tenths() {
        assert_eq!(share(1, 3), "33.3");
        assert_eq!(share(0, 0), "0.0");
        assert_eq!(share(u64::MAX, u64::MAX), "100.0");
        assert_eq!(share(3, 2), "150.0");
    }
}
