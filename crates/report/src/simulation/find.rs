//! The highest rate at which a service level holds: its JSON form, and a table of the search.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rows::yes_no;
use super::text::{percent, seconds, slo_words};
use super::wire::Setup;
use crate::numbers::{plain, short_bytes, thousands};
use crate::table::{Look, paint};

/// Version of this form. A field may be added under the same number, never changed or removed.
pub const FIND_SCHEMA: &str = "plimsoll.find/1";

/// The highest rate at which a service level holds, by server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FindReport {
    /// Always `plimsoll.find/1`.
    pub schema: String,
    /// What was simulated; its requests are the fewest of a probe.
    pub setup: Setup,
    /// The rate that fails is above the one that holds by this share of it, both rounded to four digits.
    pub precision: f64,
    /// How a probe was judged, one sentence each.
    pub judged: Vec<String>,
    /// The answers, one entry per server.
    pub servers: Vec<Found>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// The answer for one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// The server.
    pub label: String,
    /// Requests per second at which the level holds; null where it holds at no rate.
    pub rate_per_s: Option<f64>,
    /// Requests per second at which it fails, one step above; null where it holds at every rate tried.
    pub fails_at_per_s: Option<f64>,
    /// What breaks it there.
    pub limited_by: Option<Limit>,
    /// Every probe, in order. The first one sends requests so far apart that each is alone.
    pub probes: Vec<Probe>,
}

/// What breaks a service level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Time to the first token.
    Ttft,
    /// Gaps between later tokens.
    Itl,
    /// Requests that can never run.
    Refused,
    /// The level holds, but requests come faster than they are served, so that it would not for long.
    Queue,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Requests per second.
    pub rate_per_s: f64,
    /// Requests of the run.
    pub requests: u64,
    /// Time from the first arrival to the last, in seconds.
    pub arrivals_s: f64,
    /// Whether the level was kept.
    pub kept: bool,
    /// What broke it; null where it was kept.
    pub limited_by: Option<Limit>,
    /// Share of the judged requests that kept it, of 1.
    pub share: f64,
    /// Share of their second half that did, of 1.
    pub second_half_share: f64,
    /// How much longer the last tenth of the requests waited for a first token than the second tenth, in seconds.
    pub wait_growth_s: f64,
    /// Output tokens of finished requests, per second.
    pub output_tokens_per_s: f64,
    /// 99th percentile of the time to the first token, in seconds, all requests.
    pub ttft_p99_s: Option<f64>,
    /// 99th percentile of the gaps between tokens, in seconds, all requests.
    pub inter_token_p99_s: Option<f64>,
}

/// The JSON Schema of [`FindReport`].
#[must_use]
pub fn find_schema() -> serde_json::Value {
    schemars::schema_for!(FindReport).to_value()
}

impl Limit {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Ttft => "first token",
            Self::Itl => "later tokens",
            Self::Refused => "refusals",
            Self::Queue => "growing queue",
        }
    }
}

/// Draws `report`: the answers, then the probes that led to them.
#[must_use]
pub fn find_table(report: &FindReport, look: Look) -> String {
    let s = &report.setup;
    let mut out = String::new();
    let title = format!("{} on {}", plain(&s.model), plain(&s.device));
    let _ = writeln!(out, "{}", paint(&title, 1, look));
    let _ = writeln!(
        out,
        "{}; {} of KV memory; seed {}",
        plain(&s.workload),
        short_bytes(s.kv_bytes),
        s.seed
    );
    if let Some(slo) = &s.slo {
        let _ = writeln!(out, "Service level: {}", slo_words(slo));
    }
    let _ = writeln!(out);
    for found in &report.servers {
        let _ = writeln!(out, "{}", paint(&answer(found), 1, look));
    }
    for found in &report.servers {
        let _ = writeln!(out, "\nProbes of {}:", plain(&found.label));
        probes(&found.probes, &mut out);
    }
    let _ = writeln!(out);
    for sentence in &report.judged {
        let _ = writeln!(out, "{}", plain(sentence));
    }
    for n in &report.notes {
        let _ = writeln!(out, "note: {}", plain(n));
    }
    out
}

/// One line.
fn answer(found: &Found) -> String {
    let label = plain(&found.label);
    let limit = found.limited_by.map_or("", Limit::words);
    match (found.rate_per_s, found.fails_at_per_s) {
        (Some(rate), Some(fails)) => {
            format!("{label}: {rate} requests per second; at {fails}, limited by: {limit}")
        }
        (Some(rate), None) => {
            format!(
                "{label}: at least {rate} requests per second; no rate was tried at which it fails"
            )
        }
        (None, _) => format!("{label}: no rate keeps it; limited by: {limit}"),
    }
}

fn probes(probes: &[Probe], out: &mut String) {
    let mut t = Table::new();
    t.load_preset(presets::NOTHING);
    t.set_header([
        "requests / s",
        "requests",
        "arriving for",
        "in SLO",
        "2nd half",
        "TTFT p99",
        "ITL p99",
        "kept",
        "limited by",
    ]);
    let duration = |s: Option<f64>| s.map_or_else(|| "-".to_owned(), seconds);
    for (i, p) in probes.iter().enumerate() {
        t.add_row([
            if i == 0 {
                "alone".to_owned()
            } else {
                p.rate_per_s.to_string()
            },
            thousands(p.requests),
            seconds(p.arrivals_s),
            percent(p.share),
            percent(p.second_half_share),
            duration(p.ttft_p99_s),
            duration(p.inter_token_p99_s),
            yes_no(p.kept),
            p.limited_by.map_or("", Limit::words).to_owned(),
        ]);
    }
    for i in 0..8 {
        if let Some(c) = t.column_mut(i) {
            if i == 0 {
                c.set_padding((2, 1));
            }
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in t.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
}
