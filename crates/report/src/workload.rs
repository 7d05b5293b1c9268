//! The part of a plan that comes from a workload: its lengths, a replay of it, and fleets that keep a service level.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::numbers::{plain, thousands};
use crate::simulation::{Limit, Percentiles, SloBounds, figure, percent, seconds, slo_words};

/// What a plan knows of its workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The workload as typed, or where the trace is.
    pub name: String,
    /// Requests whose lengths were read.
    pub requests: u64,
    /// Tokens of a prompt, mean.
    pub prompt_tokens_mean: f64,
    /// Tokens of an answer, mean.
    pub output_tokens_mean: f64,
    /// Tokens of the longest request, prompt and answer together.
    pub longest_tokens: u64,
    /// The plan's deployment under this workload; null where it cannot be replayed.
    pub replay: Option<Replay>,
    /// Fleets that keep a service level; null where none was asked for.
    pub fleets: Option<Fleets>,
}

/// A run of the workload through Plimsoll's scheduler and block manager under a virtual clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// Requests.
    pub requests: u64,
    /// Arrivals per second; null where all came at once.
    pub rate_per_s: Option<f64>,
    /// Seed of everything random.
    pub seed: u64,
    /// Replicas behind a router that takes them in turn.
    pub replicas: u64,
    /// Tensor-parallel degree of each.
    pub tp: u64,
    /// Requests that ended well.
    pub finished: u64,
    /// Requests that do not fit even alone.
    pub refused: u64,
    /// Share of the time in which requests waited or were preempted, of 1.
    pub saturated_share: f64,
    /// Sequences that hold KV and run, all replicas together: mean over that time, or over busy time without it.
    pub running_mean: f64,
    /// Share of live tokens in the pool over the same time, of 1.
    pub live_share: f64,
    /// Preemptions to swap space, per request.
    pub swaps_per_request: f64,
    /// Preemptions that forget and compute again, per request.
    pub recomputes_per_request: f64,
    /// Tokens computed once more, over the tokens of all requests.
    pub recomputed_share: f64,
    /// Finished requests per second.
    pub requests_per_s: f64,
    /// Output tokens per second.
    pub output_tokens_per_s: f64,
    /// Arrival to first token.
    pub ttft: Option<Percentiles>,
    /// One token to the next.
    pub inter_token: Option<Percentiles>,
    /// The command that repeats it; null where `simulate` has no such flags.
    pub command: Option<String>,
}

/// Fleets tried at a rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fleets {
    /// The service level.
    pub slo: SloBounds,
    /// Arrivals per second.
    pub rate_per_s: f64,
    /// Requests of each replay.
    pub requests: u64,
    /// The fewest replicas of each kind of device and tensor-parallel degree.
    pub tried: Vec<Fleet>,
}

/// A number of replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// Catalogue name of the device.
    pub device: String,
    /// Tensor-parallel degree of each replica.
    pub tp: u64,
    /// The fewest replicas that keep the service level; where none does, the most that were tried.
    pub replicas: u64,
    /// Devices in all.
    pub devices: u64,
    /// Price per hour of all; null where none was given.
    pub price_per_hour: Option<f64>,
    /// Whether enough requests keep the service level, after the first tenth of them, and no queue grows.
    pub attained: bool,
    /// What breaks it; null where it is kept.
    pub limited_by: Option<Limit>,
    /// Share of the requests after the first tenth that keep it, of 1.
    pub slo_share: f64,
    /// 99th percentile of the time to the first token, in seconds; null where there was none.
    pub ttft_p99_s: Option<f64>,
    /// 99th percentile of the time from one token to the next, in seconds; null where there was none.
    pub inter_token_p99_s: Option<f64>,
    /// Whether the plan is for this one.
    pub chosen: bool,
    /// The command that repeats it; null where `simulate` has no such flags.
    pub command: Option<String>,
}

/// Draws it below a plan's table.
pub(crate) fn section(w: &Workload, out: &mut String) {
    let _ = writeln!(
        out,
        "\nWorkload {}: {} requests, prompts of {} and answers of {} tokens on average, at most {} together",
        plain(&w.name),
        thousands(w.requests),
        figure(w.prompt_tokens_mean),
        figure(w.output_tokens_mean),
        thousands(w.longest_tokens)
    );
    if let Some(f) = &w.fleets {
        fleets(f, out);
    }
    if let Some(r) = &w.replay {
        replay(r, out);
    }
}

fn fleets(f: &Fleets, out: &mut String) {
    let _ = writeln!(
        out,
        "Fewest replicas that keep {}, at {} requests per second ({} replayed):",
        slo_words(&f.slo),
        figure(f.rate_per_s),
        thousands(f.requests)
    );
    let priced = f.tried.iter().any(|t| t.price_per_hour.is_some());
    let mut t = Table::new();
    t.load_preset(presets::NOTHING);
    let mut header = vec![
        "",
        "device",
        "TP",
        "replicas",
        "devices",
        "within SLO",
        "first token, p99",
        "next token, p99",
    ];
    if priced {
        header.push("per hour");
    }
    let columns = header.len();
    let limited = f.tried.iter().any(|t| t.limited_by.is_some());
    if limited {
        header.push("limited by");
    }
    t.set_header(header);
    for x in &f.tried {
        let duration = |s: Option<f64>| s.map_or_else(|| "-".to_owned(), seconds);
        let replicas = thousands(x.replicas);
        let mut row = vec![
            if x.chosen { ">" } else { "" }.to_owned(),
            x.device.clone(),
            x.tp.to_string(),
            if x.attained {
                replicas
            } else {
                format!("not {replicas}")
            },
            thousands(x.devices),
            percent(x.slo_share),
            duration(x.ttft_p99_s),
            duration(x.inter_token_p99_s),
        ];
        if priced {
            row.push(
                x.price_per_hour
                    .map_or_else(String::new, |p| format!("{p:.2}")),
            );
        }
        if limited {
            row.push(x.limited_by.map_or("", Limit::words).to_owned());
        }
        t.add_row(row);
    }
    for i in 2..columns {
        if let Some(c) = t.column_mut(i) {
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in t.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
    if f.tried.is_empty() {
        let _ = writeln!(out, "    none: one replica fits at no degree");
    } else if f.tried.iter().all(|x| !x.attained) {
        let _ = writeln!(out, "    none of them keeps it");
    }
}

fn replay(r: &Replay, out: &mut String) {
    let arrivals = r.rate_per_s.map_or_else(
        || "all at once".to_owned(),
        |rate| format!("{} per second", figure(rate)),
    );
    let replicas = if r.replicas > 1 {
        format!("{} replicas of TP {}", thousands(r.replicas), r.tp)
    } else {
        format!("TP {}", r.tp)
    };
    let when = if r.saturated_share > 0.0 {
        "while requests wait"
    } else {
        "while busy"
    };
    let _ = writeln!(
        out,
        "Replayed {} request{}, {arrivals}, on {replicas}:",
        thousands(r.requests),
        if r.requests == 1 { "" } else { "s" }
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<25} {value}");
    };
    if r.refused > 0 {
        line(
            "refused",
            format!("{}: they do not fit even alone", thousands(r.refused)),
        );
    }
    line(
        "sequences running, mean",
        format!(
            "{} {when} ({} of the time)",
            figure(r.running_mean),
            percent(r.saturated_share)
        ),
    );
    line(
        "live share of the pool",
        format!("{} {when}", percent(r.live_share)),
    );
    line(
        "preemptions per request",
        format!(
            "{} by swap, {} by recompute; {} of the tokens computed again",
            figure(r.swaps_per_request),
            figure(r.recomputes_per_request),
            percent(r.recomputed_share)
        ),
    );
    line(
        "throughput",
        format!(
            "{} requests and {} output tokens per second",
            figure(r.requests_per_s),
            figure(r.output_tokens_per_s)
        ),
    );
    // Where all come at once, waiting says how many there were.
    let ttft = r.ttft.filter(|_| r.rate_per_s.is_some());
    for (name, p) in [("first token", ttft), ("next token", r.inter_token)] {
        if let Some(p) = p {
            line(
                name,
                format!("p50 {}, p99 {}", seconds(p.p50_s), seconds(p.p99_s)),
            );
        }
    }
    if let Some(command) = &r.command {
        line("repeat it by", command.clone());
    }
}
