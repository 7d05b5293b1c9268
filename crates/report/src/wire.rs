//! The JSON form of a plan. Sizes are bytes, whole; names are those of the memory map.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::workload::Workload;

/// Version of this form. A field may be added under the same number, never changed or removed.
pub const SCHEMA: &str = "plimsoll.plan/1";

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanReport {
    /// Always `plimsoll.plan/1`.
    pub schema: String,
    /// The model planned for.
    pub model: Model,
    /// The engine whose rules were applied.
    pub engine: EngineName,
    /// The load.
    pub load: Load,
    /// The device; null where none was named.
    pub device: Option<Device>,
    /// The answer.
    pub answer: Answer,
    /// The memory map, one entry per pipeline stage (tensor-parallel ranks of a stage are alike).
    pub ranks: Vec<Rank>,
    /// The KV cache of the rank that decides, in the engine's own definitions.
    pub kv: Kv,
    /// The KV cache of the load allocated three ways.
    pub ways: Ways,
    /// What comes of the workload; null where the load was given by users and lengths.
    pub workload: Option<Workload>,
    /// Single changes that would make the load fit, gentlest first.
    pub changes: Vec<Change>,
    /// Flags to paste, by engine.
    pub flags: Vec<EngineFlags>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// As asked for.
    pub name: String,
    /// Architecture class.
    pub architecture: String,
    /// Family that lowered it.
    pub family: String,
    /// Parameters.
    pub parameters: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// Type of unquantised weights.
    pub dtype: String,
    /// Weight format, where quantised.
    pub quantization: Option<String>,
    /// Decoder layers.
    pub layers: u64,
    /// Hidden size.
    pub hidden: u64,
    /// Vocabulary.
    pub vocab: u64,
    /// Trained context.
    pub max_context: Option<u64>,
    /// Where configuration and sizes were read.
    pub read_from: String,
}

/// An engine and its version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineName {
    /// `ideal`, `contiguous`, `vllm`, `llama.cpp` or `plimsoll`.
    pub name: String,
    /// Version or variant.
    pub version: Option<String>,
}

impl EngineName {
    /// Name and version.
    pub(crate) fn text(&self) -> String {
        match &self.version {
            Some(v) => format!("{} {v}", self.name),
            None => self.name.clone(),
        }
    }
}

/// A load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Concurrent requests; null where the plan answers how many.
    pub users: Option<u64>,
    /// Tokens of one sequence; of the longest where lengths are mixed.
    pub context: u64,
    /// The mix of lengths; empty where all are alike.
    pub lengths: Vec<LengthShare>,
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Sequences per request.
    pub sequences: u64,
    /// Leading tokens in common.
    pub shared_prefix: u64,
    /// Share of requests that have them.
    pub prefix_hit: f64,
}

/// A length and its share of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LengthShare {
    /// Tokens.
    pub tokens: u64,
    /// Share, of 1.
    pub share: f64,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Catalogue name.
    pub name: String,
    /// What a process sees as total.
    pub usable_bytes: u64,
    /// How well that is known: `printed`, `datasheet`, `derived`, `given`.
    pub confidence: String,
    /// Where it was printed.
    pub source: String,
    /// What other processes use.
    pub in_use_bytes: u64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// `yes`, `tight` (depends on the calibrated intervals) or `no`.
    pub verdict: String,
    /// Devices in all.
    pub devices: u64,
    /// Whether that number was chosen by the planner.
    pub chosen: bool,
    /// Degrees.
    pub parallel: Parallel,
    /// Users carried at the load's context.
    pub max_users: u64,
    /// Longest context carried for the load's users.
    pub max_context: u64,
    /// What one device carries, where the plan has more and one is legal.
    pub one_device: Option<OneDevice>,
    /// The answer in one sentence.
    pub text: String,
}

/// Degrees of parallelism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parallel {
    /// Tensor parallel.
    pub tp: u64,
    /// Pipeline parallel.
    pub pp: u64,
    /// Data parallel.
    pub dp: u64,
    /// Ranks over which whole experts are dealt out; 1 where experts are split.
    pub ep: u64,
}

/// What one device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OneDevice {
    /// Users at the load's context.
    pub users: u64,
    /// Longest context of one user.
    pub context: u64,
}

/// One rank of one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rank {
    /// Pipeline stage, from 0.
    pub stage: u64,
    /// First layer, and one past the last.
    pub layers: [u64; 2],
    /// Ranks that look like this one.
    pub copies: u64,
    /// The kind of device; null without one.
    pub device: Option<String>,
    /// What a process sees of it as total.
    pub usable_bytes: Option<u64>,
    /// What the engine allows itself; null without a device.
    pub budget_bytes: Option<u64>,
    /// How the budget comes about.
    pub budget_formula: String,
    /// Sum of all terms.
    pub total_bytes: u64,
    /// The terms; those with `inside` false lie outside the engine's budget.
    pub terms: Vec<Term>,
    /// Memory on the host that belongs to this rank; not in the total.
    pub host_terms: Vec<Term>,
}

/// One line of the map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Region of the memory map.
    pub region: String,
    /// What it is.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// `exact`, `derived`, `calibrated` or `bound`.
    pub kind: String,
    /// The 90 % interval of a calibrated term, the range of a bound.
    pub interval: Option<Interval>,
    /// Whether the engine counts it in its budget.
    pub inside: bool,
    /// The formula.
    pub formula: String,
    /// The values that went in.
    pub inputs: Vec<[String; 2]>,
    /// Where the formula comes from.
    pub source: String,
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// Lower end.
    pub low: u64,
    /// Upper end.
    pub high: u64,
}

/// The KV cache in the engine's own words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kv {
    /// Bytes of the pool on one rank.
    pub pool_bytes: u64,
    /// Blocks, where the engine has them.
    pub blocks: Option<u64>,
    /// Bytes of one block.
    pub bytes_per_block: u64,
    /// Tokens per block of the first group.
    pub block_size: u64,
    /// Tokens, as the engine prints them.
    pub tokens: u64,
    /// Requests of the longest length, as the engine prints them.
    pub max_concurrency: f64,
    /// Length of those requests.
    pub max_model_len: u64,
    /// Groups of layers.
    pub groups: Vec<Group>,
    /// What the load needs on this rank.
    pub need: Need,
}

/// A group of layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// `full`, `window`, `chunk`, `latent` or `state`.
    pub kind: String,
    /// Tokens of the window or chunk.
    pub span: Option<u64>,
    /// Layers.
    pub layers: u64,
    /// Layers that exist only as padding.
    pub padding_layers: u64,
    /// Tokens per block.
    pub block_size: u64,
    /// Bytes of one layer's page.
    pub page_bytes: u64,
    /// Blocks of one request of the longest length.
    pub blocks_per_request: u64,
}

/// What a load needs, by class of waste.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// The least pool.
    pub pool_bytes: u64,
    /// Keys, values and states of tokens that exist.
    pub token_states_bytes: u64,
    /// Held for tokens that may come.
    pub reserved_bytes: u64,
    /// Held without a token to fill it: internal fragmentation.
    pub internal_bytes: u64,
    /// Lost between allocations: external fragmentation of the pool.
    pub external_bytes: u64,
}

/// The KV cache three ways, over all ranks of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ways {
    /// Contiguous runs of the longest length.
    pub contiguous: Way,
    /// Blocks, every sequence on its own.
    pub paged: Way,
    /// Blocks, with copy-on-write and prefix sharing.
    pub paged_shared: Way,
}

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// Bytes that the load needs.
    pub bytes: u64,
    /// Users that the plan's pool carries.
    pub users: u64,
}

/// A change that would make the load fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// As a flag of `plimsoll plan`.
    pub flag: String,
    /// What it costs.
    pub cost: String,
    /// Users carried after it.
    pub users: u64,
    /// `yes` or `tight`.
    pub verdict: String,
}

/// Flags to paste.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineFlags {
    /// The engine.
    pub engine: String,
    /// The command.
    pub command: String,
}

/// What `--json` prints instead of a plan when there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorReport {
    /// The error.
    pub error: ErrorBody,
}

/// An error, for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// Stable code.
    pub code: String,
    /// What went wrong, and where.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// Causes, outermost first.
    pub details: Vec<String>,
}
