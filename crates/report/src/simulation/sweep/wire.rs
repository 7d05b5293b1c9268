//! The JSON form of a sweep. What it has in common with a single simulation has that one's form.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::simulation::wire::{
    Goodput, KvUse, Latency, Named, Preemptions, PrefixCache, Requests, Run, Setup, TenantCounts,
};

/// Version of this form. A field may be added under the same number, never changed or removed.
pub const SWEEP_SCHEMA: &str = "plimsoll.sweep/1";

/// Every combination of the swept values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SweepReport {
    /// Always `plimsoll.sweep/1`.
    pub schema: String,
    /// What was simulated. Where it depends on a swept value, it is that of the first point that ran.
    pub setup: Setup,
    /// What was swept, in the order asked for.
    pub swept: Vec<Axis>,
    /// The points; the last swept value changes fastest.
    pub points: Vec<Point>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A swept value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// Its name, that of the flag.
    pub name: String,
    /// The values as typed.
    pub values: Vec<String>,
    /// The values as numbers (sizes in bytes); null where they are words.
    pub numbers: Option<Vec<f64>>,
}

/// One combination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The swept values as typed, in the order of `swept`.
    pub settings: Vec<Named>,
    /// Bytes of KV memory that each run had; null where the point cannot run.
    pub kv_bytes: Option<u64>,
    /// Why the point cannot run; null where it ran.
    pub reason: Option<String>,
    /// What came of it, one entry per server; empty where the point cannot run.
    pub runs: Vec<PointRun>,
}

/// One run, without its series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PointRun {
    /// The server.
    pub label: String,
    /// Length of the run, in seconds.
    pub duration_s: f64,
    /// Requests by outcome.
    pub requests: Requests,
    /// Finished requests per second.
    pub requests_per_s: f64,
    /// Output tokens of finished requests, per second.
    pub output_tokens_per_s: f64,
    /// Requests that kept the service level; null without one.
    pub goodput: Option<Goodput>,
    /// Latencies.
    pub latency: Latency,
    /// Rows of a step, mean over busy time.
    pub batch_mean: f64,
    /// Sequences that hold KV and run, mean over busy time.
    pub running_mean: f64,
    /// Steps.
    pub steps: u64,
    /// Preemptions and their cost.
    pub preemptions: Preemptions,
    /// The prefix cache.
    pub prefix_cache: PrefixCache,
    /// Blocks copied for copy-on-write.
    pub copied_blocks: u64,
    /// Where the KV pool went.
    pub kv: KvUse,
    /// Requests by tenant, in order.
    pub tenants: Vec<TenantCounts>,
    /// Hash over every decision, as hexadecimal.
    pub decision_hash: Option<String>,
}

impl From<Run> for PointRun {
    fn from(run: Run) -> Self {
        Self {
            label: run.label,
            duration_s: run.duration_s,
            requests: run.requests,
            requests_per_s: run.requests_per_s,
            output_tokens_per_s: run.output_tokens_per_s,
            goodput: run.goodput,
            latency: run.latency,
            batch_mean: run.batch_mean,
            running_mean: run.running_mean,
            steps: run.steps,
            preemptions: run.preemptions,
            prefix_cache: run.prefix_cache,
            copied_blocks: run.copied_blocks,
            kv: run.kv,
            tenants: run.tenants,
            decision_hash: run.decision_hash,
        }
    }
}
