//! One question asked of several kinds of device: a plan for each, in one table.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use plimsoll_plan::Question;

use crate::build::{ModelFacts, engine_name, wire_load};
use crate::csv::field;
use crate::numbers::{plain, short_bytes, thousands, users};
use crate::table::{Look, paint};
use crate::wire::{EngineName, PlanReport, Rank};

/// Version of this form. A field may be added under the same number, never changed or removed.
pub const CARDS_SCHEMA: &str = "plimsoll.cards/1";

/// Plans of one model and load on several kinds of device, in the order in which they were named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CardsReport {
    /// Always `plimsoll.cards/1`.
    pub schema: String,
    /// The model, as asked for.
    pub model: String,
    /// The engine whose rules were applied.
    pub engine: EngineName,
    /// The load.
    pub load: crate::wire::Load,
    /// Device by device.
    pub cards: Vec<Card>,
}

/// One kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Catalogue name.
    pub device: String,
    /// What all devices of its plan cost per hour, where a price was given.
    pub price_per_hour: Option<f64>,
    /// Its plan; null where no division is legal or the engine refuses a setting on it.
    pub plan: Option<PlanReport>,
    /// Why there is none.
    pub refused: Option<String>,
}

impl Card {
    /// Whether it carries the load.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.plan.as_ref().is_some_and(|p| p.answer.verdict != "no")
    }
}

impl CardsReport {
    /// `cards` under one question.
    #[must_use]
    pub fn new(facts: &ModelFacts, question: &Question, cards: Vec<Card>) -> Self {
        Self {
            schema: CARDS_SCHEMA.to_owned(),
            model: facts.name.clone(),
            engine: engine_name(question.settings.engine),
            load: wire_load(facts, question),
            cards,
        }
    }

    /// What is compared, in one line.
    pub(crate) fn heading(&self) -> String {
        let mixed = if self.load.lengths.is_empty() {
            ""
        } else {
            "up to "
        };
        let load = match self.load.users {
            Some(n) => format!(
                "{} of {mixed}{} tokens",
                users(n),
                thousands(self.load.context)
            ),
            None => format!(
                "sequences of {mixed}{} tokens",
                thousands(self.load.context)
            ),
        };
        format!("{} for {load}, {}", self.model, self.engine.text())
    }

    /// The card that costs least of those that fit, where prices were given.
    pub(crate) fn cheapest(&self) -> Option<(&Card, f64)> {
        self.cards
            .iter()
            .filter(|c| c.fits())
            .filter_map(|c| Some((c, c.price_per_hour?)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// What the plans' notes say, each once, with the cards where not all say it.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut seen: Vec<(&str, Vec<&str>)> = Vec::new();
        for c in &self.cards {
            for n in c.plan.iter().flat_map(|p| &p.notes) {
                match seen.iter_mut().find(|(text, _)| text == n) {
                    Some((_, on)) => on.push(&c.device),
                    None => seen.push((n, vec![&c.device])),
                }
            }
        }
        let plans = self.cards.iter().filter(|c| c.plan.is_some()).count();
        seen.into_iter()
            .map(|(text, on)| {
                if on.len() == plans {
                    text.to_owned()
                } else {
                    format!("{}: {text}", on.join(", "))
                }
            })
            .collect()
    }
}

/// One line of the comparison, as table, page and CSV show it.
pub(crate) const COLUMNS: [&str; 10] = [
    "card",
    "usable",
    "devices",
    "fits",
    "users",
    "longest context",
    "weights",
    "KV cache",
    "unused",
    "per hour",
];

/// What a card says in each of [`COLUMNS`]: sizes per device, of the fullest.
pub(crate) fn cells(c: &Card) -> Vec<String> {
    let price = |p: f64| format!("{p:.2}");
    let Some(p) = &c.plan else {
        let mut out = vec![c.device.clone()];
        out.resize(COLUMNS.len(), String::new());
        "no".clone_into(&mut out[3]);
        return out;
    };
    let usable = p.device.as_ref().map_or(0, |d| d.usable_bytes);
    let a = &p.answer;
    let rank = fullest(p);
    let of = |region: &str| rank.map_or(0, |r| region_bytes(r, region));
    let total = rank.map_or(0, |r| r.total_bytes);
    let some = |text: String| {
        if a.verdict == "no" {
            "-".to_owned()
        } else {
            text
        }
    };
    vec![
        c.device.clone(),
        short_bytes(usable),
        format!("{} ({})", a.devices, division(p)),
        a.verdict.clone(),
        some(thousands(a.max_users)),
        some(thousands(a.max_context)),
        short_bytes(of("weights")),
        short_bytes(of("kv_cache")),
        short_bytes(usable.saturating_sub(total)),
        c.price_per_hour.map_or_else(String::new, price),
    ]
}

fn division(p: &PlanReport) -> String {
    let d = p.answer.parallel;
    let mut parts: Vec<String> = [("TP", d.tp), ("PP", d.pp), ("DP", d.dp), ("EP", d.ep)]
        .into_iter()
        .filter(|(_, n)| *n > 1)
        .map(|(name, n)| format!("{name}{n}"))
        .collect();
    if parts.is_empty() {
        parts.push("TP1".to_owned());
    }
    parts.join(" x ")
}

/// The rank with the most besides its cache.
pub(crate) fn fullest(report: &PlanReport) -> Option<&Rank> {
    let fixed = |r: &&Rank| -> u64 {
        r.terms
            .iter()
            .filter(|t| t.region != "kv_cache")
            .map(|t| t.bytes)
            .fold(0, u64::saturating_add)
    };
    report.ranks.iter().max_by_key(fixed)
}

/// Bytes of one region of a rank.
pub(crate) fn region_bytes(rank: &Rank, region: &str) -> u64 {
    rank.terms
        .iter()
        .filter(|t| t.region == region)
        .map(|t| t.bytes)
        .fold(0, u64::saturating_add)
}

/// Draws the comparison.
#[must_use]
pub fn cards_table(report: &CardsReport, look: Look) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", paint(&plain(&report.heading()), 1, look));
    let priced = report.cards.iter().any(|c| c.price_per_hour.is_some());
    let shown = if priced {
        COLUMNS.len()
    } else {
        COLUMNS.len() - 1
    };
    let mut t = Table::new();
    t.load_preset(presets::NOTHING);
    t.set_header(COLUMNS.iter().take(shown).copied());
    for c in &report.cards {
        t.add_row(cells(c).iter().take(shown).map(|text| plain(text)));
    }
    for i in (1..shown).filter(|i| *i != 3) {
        if let Some(c) = t.column_mut(i) {
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in t.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = writeln!(out, "Sizes are per device, of the fullest one.");
    if let Some((c, price)) = report.cheapest() {
        let devices = c.plan.as_ref().map_or(0, |p| p.answer.devices);
        let _ = writeln!(
            out,
            "Cheapest: {devices} x {} at {price:.2} per hour.",
            plain(&c.device)
        );
    }
    for c in &report.cards {
        if let Some(why) = &c.refused {
            let _ = writeln!(out, "{}", plain(&format!("{}: {why}", c.device)));
        }
    }
    for n in report.notes() {
        let _ = writeln!(out, "note: {}", plain(&n));
    }
    out
}

/// The comparison as CSV: one line per card, sizes in bytes.
#[must_use]
pub fn cards_csv(report: &CardsReport) -> String {
    let mut out = String::from(
        "device,usable_bytes,devices,tp,pp,dp,ep,verdict,max_users,max_context,weights_bytes,kv_cache_bytes,\
         total_bytes,price_per_hour,refused\n",
    );
    for c in &report.cards {
        let price = c.price_per_hour.map_or_else(String::new, |p| p.to_string());
        let refused = field(c.refused.as_deref().unwrap_or(""));
        let device = field(&c.device);
        let Some(p) = &c.plan else {
            let _ = writeln!(out, "{device},,,,,,,no,,,,,,{price},{refused}");
            continue;
        };
        let (a, d, rank) = (&p.answer, p.answer.parallel, fullest(p));
        let of = |region: &str| rank.map_or(0, |r| region_bytes(r, region));
        let _ = writeln!(
            out,
            "{device},{},{},{},{},{},{},{},{},{},{},{},{},{price},{refused}",
            p.device.as_ref().map_or(0, |d| d.usable_bytes),
            a.devices,
            d.tp,
            d.pp,
            d.dp,
            d.ep,
            a.verdict,
            a.max_users,
            a.max_context,
            of("weights"),
            of("kv_cache"),
            rank.map_or(0, |r| r.total_bytes),
        );
    }
    out
}
