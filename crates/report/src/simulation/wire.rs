//! The JSON form of a simulation. Sizes are bytes, whole; times are seconds and say so; a slot is one
//! token's place in the KV pool.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Version of this form. A field may be added under the same number, never changed or removed.
pub const SIMULATION_SCHEMA: &str = "plimsoll.simulate/1";

/// One workload, run under one or more policies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SimulationReport {
    /// Always `plimsoll.simulate/1`.
    pub schema: String,
    /// What was simulated.
    pub setup: Setup,
    /// What came of it, one entry per policy or replica.
    pub runs: Vec<Run>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// What was simulated; the same for every run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The model, as asked for.
    pub model: String,
    /// The device, with its count.
    pub device: String,
    /// Bytes of KV memory that each run had.
    pub kv_bytes: u64,
    /// Bytes of swap space on the host.
    pub swap_bytes: u64,
    /// T: most tokens of one step.
    pub max_batched_tokens: u64,
    /// R: most sequences of one step.
    pub max_sequences: u64,
    /// Seed of everything random.
    pub seed: u64,
    /// The workload in words: lengths, arrivals, where they come from.
    pub workload: String,
    /// Requests of the workload.
    pub requests: u64,
    /// What the cost model was told, with units in the names.
    pub costs: Vec<Named>,
    /// The service level, where one was set.
    pub slo: Option<SloBounds>,
    /// What the simulation models, one sentence each.
    pub modelled: Vec<String>,
    /// What it leaves out, one sentence each.
    pub not_modelled: Vec<String>,
}

/// A name and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The name, with its unit last where it has one.
    pub name: String,
    /// The value.
    pub value: String,
}

/// What a good request keeps to, and how many must be good.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SloBounds {
    /// Longest time to the first token, in seconds; null where it may take any.
    pub ttft_s: Option<f64>,
    /// Longest mean gap between a request's later tokens, in seconds; null where it may be any.
    pub per_token_s: Option<f64>,
    /// Share of the requests that must keep to both, of 1.
    pub attain: f64,
}

/// One run of the workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What tells it from the others: `paged`, `orca-max`, `static` ...
    pub label: String,
    /// The policies by name: allocation, admission, preemption ...
    pub policies: Vec<Named>,
    /// The pool.
    pub pool: Pool,
    /// Where the measured window begins, in seconds since the start.
    pub from_s: f64,
    /// Length of the measured window, in seconds.
    pub duration_s: f64,
    /// Share of the window in which something ran, of 1.
    pub busy_share: f64,
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
    /// Hash over every decision, as hexadecimal; equal hashes mean equal runs.
    pub decision_hash: Option<String>,
    /// The run over time.
    pub series: TimeSeries,
}

/// A KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Slots.
    pub slots: u64,
    /// Pages; null where the allocator has none.
    pub pages: Option<u64>,
    /// Bytes of a page; null where the allocator has none.
    pub page_bytes: Option<u64>,
    /// Slots of a block; null where the allocator has none.
    pub block_size: Option<u64>,
}

/// Requests by outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Requests {
    /// Ended well inside the window.
    pub finished: u64,
    /// Turned away.
    pub refused: u64,
    /// Given up by the client.
    pub cancelled: u64,
    /// Refusals by reason, in order of the reason.
    pub refusals: Vec<Refusal>,
}

/// Refusals for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The reason.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Requests that kept the service level.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Goodput {
    /// How many.
    pub requests: u64,
    /// Per second.
    pub requests_per_s: f64,
    /// Share of the finished and the refused, of 1.
    pub share: f64,
    /// Whether that share is large enough.
    pub attained: bool,
}

/// Latencies; null where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Arrival to first token.
    pub ttft: Option<Percentiles>,
    /// One token to the next, per sequence.
    pub inter_token: Option<Percentiles>,
    /// Arrival to last token.
    pub e2e: Option<Percentiles>,
    /// End-to-end over output length: seconds per token (Kwon et al., section 6.1).
    pub normalised: Option<Percentiles>,
}

/// A distribution of durations. Percentiles are within 0.1 %, mean and maximum exact.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Percentiles {
    /// How many durations.
    pub count: u64,
    /// Mean, in seconds.
    pub mean_s: f64,
    /// Median, in seconds.
    pub p50_s: f64,
    /// 90th percentile, in seconds.
    pub p90_s: f64,
    /// 99th percentile, in seconds.
    pub p99_s: f64,
    /// Longest, in seconds.
    pub max_s: f64,
}

/// Preemptions and their cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Preemptions {
    /// By swapping blocks out.
    pub swap: u64,
    /// By dropping blocks, to be computed again.
    pub recompute: u64,
    /// Bytes moved to swap space and back, both ways together.
    pub swapped_bytes: u64,
    /// Tokens computed once more.
    pub recomputed_tokens: u64,
    /// Seconds that moving took.
    pub swap_time_s: f64,
    /// Seconds that computing once more took.
    pub recompute_time_s: f64,
}

/// Use of the prefix cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrefixCache {
    /// Prompt tokens looked up.
    pub queried_tokens: u64,
    /// Prompt tokens found.
    pub cached_tokens: u64,
    /// Found over looked up; null where nothing was looked up.
    pub hit_share: Option<f64>,
}

/// Where the KV pool went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KvUse {
    /// Share of live tokens in the pool while requests wait, of 1; null where none ever did.
    pub live_share_at_saturation: Option<f64>,
    /// Seconds in which requests waited or were preempted.
    pub saturated_s: f64,
    /// Steps that began in that time.
    pub saturated_steps: u64,
    /// Classes over that time; null where there was none.
    pub saturated: Option<Classes>,
    /// Classes over the time in which something ran.
    pub busy: Classes,
    /// Classes over the whole window.
    pub whole: Classes,
    /// Most pages held at once; null where the allocator has none.
    pub high_water_pages: Option<u64>,
    /// Most slots that requests held at once, live or wasted.
    pub high_water_slots: u64,
}

/// Shares of the pool by class, time-weighted, of 1 (Kwon et al., figure 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Classes {
    /// Live tokens.
    pub token_states: f64,
    /// Held for tokens that will come.
    pub reserved: f64,
    /// Held, and no token will fill it.
    pub internal: f64,
    /// Lost between allocations.
    pub external: f64,
    /// Cached prefixes that no running request holds.
    pub cached: f64,
    /// Anybody's.
    pub free: f64,
}

/// One tenant's requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantCounts {
    /// Which tenant.
    pub tenant: u32,
    /// Requests that ended well.
    pub finished: u64,
    /// Tokens generated for them.
    pub output_tokens: u64,
    /// Requests that kept the service level; 0 without one.
    pub good: u64,
    /// Arrival to first token, mean, in seconds; null where nothing was measured.
    pub ttft_mean_s: Option<f64>,
    /// Arrival to first token, longest, in seconds; null where nothing was measured.
    pub ttft_max_s: Option<f64>,
    /// Arrival to last token, mean, in seconds; null where nothing was measured.
    pub e2e_mean_s: Option<f64>,
}

/// A run over time: equally wide buckets from the start of the run, window or not. All arrays are
/// equally long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeSeries {
    /// Width of a bucket, in seconds.
    pub width_s: f64,
    /// Start of each bucket, in seconds.
    pub start_s: Vec<f64>,
    /// Slots of live tokens.
    pub token_states: Track,
    /// Slots held for tokens that will come.
    pub reserved: Track,
    /// Slots held that no token will fill.
    pub internal: Track,
    /// Slots lost between allocations.
    pub external: Track,
    /// Slots of cached prefixes.
    pub cached: Track,
    /// Slots that are anybody's.
    pub free: Track,
    /// Sequences that hold KV and run.
    pub running: Track,
    /// Rows of a step.
    pub batch: Track,
    /// Requests that wait for their first step.
    pub waiting: Track,
    /// Requests preempted.
    pub preempted: Track,
    /// Bytes in swap space.
    pub swapped_bytes: Track,
    /// Steps, per bucket.
    pub steps: Vec<u64>,
    /// Preemptions by swapping, per bucket.
    pub swap_preemptions: Vec<u64>,
    /// Preemptions by recomputation, per bucket.
    pub recompute_preemptions: Vec<u64>,
    /// Prompt tokens looked up in the prefix cache, per bucket.
    pub queried_tokens: Vec<u64>,
    /// Prompt tokens found there, per bucket.
    pub cached_tokens: Vec<u64>,
}

/// One quantity over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Track {
    /// Time-weighted mean of each bucket, to three decimals.
    pub mean: Vec<f64>,
    /// Largest value of each bucket.
    pub max: Vec<u64>,
}
