//! A plan as one page: no network, no script, light and dark; every term shows its formula to whoever points at it or
//! reaches it by the keyboard.

mod heat;
mod stack;

use std::fmt::Write as _;

use plimsoll_plan::Grid;

use crate::cards::{COLUMNS, CardsReport, cells, fullest, region_bytes};
use crate::numbers::{short_bytes, thousands, users};
use crate::page::document;
use crate::svg::escape;
use crate::wire::{PlanReport, Way};

/// A plan and how full its deployment is under other loads.
#[derive(Clone, Copy, Debug)]
pub struct Planned<'a> {
    /// The plan.
    pub report: &'a PlanReport,
    /// Loads around its own; `None` where nothing limits them.
    pub grid: Option<&'a Grid>,
}

/// The page of one plan.
#[must_use]
pub fn plan_html(plan: Planned<'_>) -> String {
    let r = plan.report;
    let mut out = String::new();
    let _ = writeln!(out, "<h1>{}</h1>", escape(&r.answer.text));
    model_line(r, &mut out);
    figures(r, &mut out);
    whole(plan, &mut out);
    notes(&r.notes, &mut out);
    document(
        &format!("{} - Plimsoll plan", r.model.name),
        &out,
        &footer(&r.schema),
    )
}

/// The page of several kinds of device: the table, every card's memory, then the plan of each that has one.
#[must_use]
pub fn cards_html(report: &CardsReport, grids: &[Option<Grid>]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "<h1>{}</h1>", escape(&report.heading()));
    if let Some(plan) = report.cards.iter().find_map(|c| c.plan.as_ref()) {
        model_line(plan, &mut out);
    }
    cards(report, &mut out);
    for (i, c) in report.cards.iter().enumerate() {
        let Some(plan) = &c.plan else { continue };
        let _ = writeln!(
            out,
            "<details class=\"plan\"><summary>{}</summary>",
            escape(&plan.answer.text)
        );
        figures(plan, &mut out);
        whole(
            Planned {
                report: plan,
                grid: grids.get(i).and_then(Option::as_ref),
            },
            &mut out,
        );
        out.push_str("</details>\n");
    }
    notes(&report.notes(), &mut out);
    document(
        &format!("{} - Plimsoll cards", report.model),
        &out,
        &footer(&report.schema),
    )
}

fn footer(schema: &str) -> String {
    format!(
        "Made by plimsoll plan; {}. Sizes are powers of 1,024 where they say KiB, MiB or GiB. exact: computed as the \
         engine computes it. derived: follows from exact figures by a rule of the engine. calibrated: measured on \
         published start-ups, with a 90 % interval. bound: at most so much.",
        escape(schema)
    )
}

/// Everything about a plan below its headline.
fn whole(plan: Planned<'_>, out: &mut String) {
    let r = plan.report;
    stack::memory(r, out);
    if let Some(grid) = plan.grid {
        heat::grid(grid, r, out);
    }
    ways(r, out);
    changes(r, out);
    commands(r, out);
}

fn model_line(r: &PlanReport, out: &mut String) {
    let m = &r.model;
    let quantised = m
        .quantization
        .as_ref()
        .map_or_else(String::new, |q| format!(", {q}"));
    let _ = writeln!(
        out,
        "<p class=\"quiet-text\">{}: {} parameters, {}{quantised}, {} stored, {} layers; {}. Read from {}.</p>",
        escape(&m.architecture),
        thousands(m.parameters),
        escape(&m.dtype),
        short_bytes(m.stored_bytes),
        m.layers,
        escape(&r.engine.text()),
        escape(&m.read_from)
    );
}

/// The numbers that matter.
fn figures(r: &PlanReport, out: &mut String) {
    let a = &r.answer;
    let rank = fullest(r);
    let of = |region: &str| short_bytes(rank.map_or(0, |x| region_bytes(x, region)));
    let fits = a.verdict != "no";
    let or_dash = |text: String| if fits { text } else { "-".to_owned() };
    let length = format!(
        "of {}{} tokens",
        if r.load.lengths.is_empty() {
            ""
        } else {
            "up to "
        },
        thousands(r.load.context)
    );
    let mut shown = Vec::new();
    if let Some(d) = &r.device {
        let one = if r.ranks.iter().all(|k| k.device.as_ref() == Some(&d.name)) {
            format!("{}, {} usable", d.name, short_bytes(d.usable_bytes))
        } else {
            "of several kinds".to_owned()
        };
        shown.push(("devices", a.devices.to_string(), one));
        shown.push(("users carried", or_dash(thousands(a.max_users)), length));
        let asked = format!("tokens, for {}", users(r.load.users.unwrap_or(1)));
        shown.push(("longest context", or_dash(thousands(a.max_context)), asked));
    }
    let fullest = if r.ranks.len() > 1 {
        "per device, of the fullest"
    } else {
        "per device"
    };
    shown.push(("weights", of("weights"), fullest.to_owned()));
    shown.push((
        "KV cache",
        of("kv_cache"),
        format!("{} tokens", thousands(r.kv.tokens)),
    ));
    out.push_str("<div class=\"cards\">\n");
    for (name, value, more) in shown {
        let _ = writeln!(
            out,
            "<div class=\"card\"><span>{name}</span><b>{}</b><span>{}</span></div>",
            escape(&value),
            escape(&more)
        );
    }
    out.push_str("</div>\n");
}

/// Several cards: their table, and the memory of the fullest device of each.
fn cards(report: &CardsReport, out: &mut String) {
    let priced = report.cards.iter().any(|c| c.price_per_hour.is_some());
    let shown = if priced {
        COLUMNS.len()
    } else {
        COLUMNS.len() - 1
    };
    out.push_str("<h2>Cards</h2>\n<div class=\"scroll\"><table>\n<thead><tr>");
    for name in COLUMNS.iter().take(shown) {
        let _ = write!(out, "<th scope=\"col\">{name}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for c in &report.cards {
        out.push_str("<tr>");
        for (i, text) in cells(c).iter().take(shown).enumerate() {
            let text = escape(text);
            let _ = if i == 0 {
                write!(out, "<th scope=\"row\">{text}</th>")
            } else {
                write!(out, "<td>{text}</td>")
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
    out.push_str("<p class=\"quiet-text\">Sizes are per device, of the fullest one.</p>\n");
    if let Some((c, price)) = report.cheapest() {
        let devices = c.plan.as_ref().map_or(0, |p| p.answer.devices);
        let _ = writeln!(
            out,
            "<p>Cheapest: {devices} x {} at {price:.2} per hour.</p>",
            escape(&c.device)
        );
    }
    for c in &report.cards {
        if let Some(why) = &c.refused {
            let _ = writeln!(out, "<p>{}: {}</p>", escape(&c.device), escape(why));
        }
    }
    stack::cards(report, out);
}

/// The KV cache of the load, three ways, and where the engine's own holding goes.
fn ways(r: &PlanReport, out: &mut String) {
    let w = &r.ways;
    let most = [w.contiguous, w.paged, w.paged_shared]
        .iter()
        .map(|w| w.bytes)
        .max()
        .unwrap_or(0);
    if most == 0 {
        return;
    }
    out.push_str(
        "<h2>The KV cache of this load, three ways</h2>\n<p class=\"quiet-text\">Users: what the same pool \
         carries.</p>\n<table class=\"ways\">\n<tbody>\n",
    );
    for (name, way) in [
        ("contiguous, longest length reserved", w.contiguous),
        ("paged, nothing shared", w.paged),
        ("paged, copy-on-write and shared prefix", w.paged_shared),
    ] {
        let Way { bytes, users: n } = way;
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{name}</th><td>{}</td><td>{}</td><td class=\"wide\"><i class=\"kv_cache\" \
             style=\"width:{}%\"></i></td></tr>",
            short_bytes(bytes),
            users(n),
            stack::share(bytes, most)
        );
    }
    out.push_str("</tbody>\n</table>\n");
    let n = &r.kv.need;
    if n.pool_bytes > 0 {
        let part = |b: u64| format!("{} %", stack::share(b, n.pool_bytes));
        let _ = writeln!(
            out,
            "<p>On the device that decides, the load holds {}: {} token states, {} reserved, {} internal \
             fragmentation.</p>",
            short_bytes(n.pool_bytes),
            part(n.token_states_bytes),
            part(n.reserved_bytes),
            part(n.internal_bytes)
        );
    }
}

fn changes(r: &PlanReport, out: &mut String) {
    if r.changes.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Any one of these would make it fit</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th \
         scope=\"col\">change</th><th scope=\"col\">users</th><th scope=\"col\">fits</th><th \
         class=\"name\" scope=\"col\">what it costs</th></tr></thead>\n<tbody>\n",
    );
    for c in &r.changes {
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td><td>{}</td><td class=\"name\">{}</td></tr>",
            escape(&c.flag),
            thousands(c.users),
            escape(&c.verdict),
            escape(&c.cost)
        );
    }
    out.push_str("</tbody>\n</table></div>\n");
}

fn commands(r: &PlanReport, out: &mut String) {
    if r.flags.is_empty() {
        return;
    }
    out.push_str("<h2>To run it</h2>\n");
    for f in &r.flags {
        let _ = writeln!(
            out,
            "<pre tabindex=\"0\"><code>{}</code></pre>",
            escape(&f.command)
        );
    }
}

fn notes(all: &[String], out: &mut String) {
    for n in all {
        let _ = writeln!(out, "<p><strong>Note:</strong> {}</p>", escape(n));
    }
}
