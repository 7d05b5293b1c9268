//! The shape of `GET /v1/memory`, and of each event of `GET /v1/memory/stream`: what memory is planned, committed and
//! held, by whom, at one moment. `docs/memory.example.json` is one. Never what anybody asked or was answered.
//!
//! Fields are added, never renamed or taken away, within a version of [`SCHEMA`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of this shape.
pub const SCHEMA: &str = "plimsoll.memory/1";
/// Most requests that are told one by one; the others are counted.
pub const MOST_REQUESTS: usize = 1000;
/// Refusals, and preemptions, that are remembered.
pub const REMEMBERED: usize = 64;

/// Memory at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// [`SCHEMA`].
    pub schema: String,
    /// What the model is called.
    pub model: String,
    /// Milliseconds since 1970 when this was answered.
    pub at_ms: u64,
    /// Milliseconds since the engine took down what it holds; `requests`, `kv_pages.total` and `kv_pages.held` are of
    /// its last step. More than a second while somebody looks: it hangs, or its steps are that long.
    pub age_ms: u64,
    /// How long the step under way has taken, in milliseconds; nothing between steps.
    pub step_ms: Option<u64>,
    /// Requests by where they are.
    pub requests: Requests,
    /// Pages of the KV cache.
    pub kv_pages: Pages,
    /// Places for pages outside of it.
    pub swap: Swap,
    /// Regions of memory, as planned.
    pub regions: Vec<Region>,
    /// What the bytes of held pages are.
    pub waste: Waste,
    /// Tenants, in the order of their configuration.
    pub owners: Vec<Owner>,
    /// Requests one by one: those that run first, then those that gave way, then those that wait; at most
    /// [`MOST_REQUESTS`].
    pub entries: Vec<Entry>,
    /// Requests that are not among them.
    pub entries_left_out: u64,
    /// Every page, by its number.
    pub page_map: PageMap,
    /// The last refusals, oldest first; at most [`REMEMBERED`].
    pub refusals: Vec<Refused>,
    /// The last preemptions, oldest first; at most [`REMEMBERED`].
    pub preemptions: Vec<Preempted>,
    /// Counters since the start.
    pub counters: Counters,
    /// Steps since the start.
    pub engine_steps: u64,
    /// Times the engine began anew.
    pub engine_restarts: u64,
}

/// Requests by where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Requests {
    /// They hold pages and get rows.
    pub running: u64,
    /// They have not begun.
    pub waiting: u64,
    /// They gave way, and wait to go on.
    pub preempted: u64,
}

/// Pages of the KV cache. `free + held + cached + in_transit` is `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pages {
    /// All of them.
    pub total: u64,
    /// Held by sequences.
    pub held: u64,
    /// Nobody holds them and nothing is in them.
    pub free: u64,
    /// Prefixes that nobody holds now and anybody with the same text finds.
    pub cached: u64,
    /// Held by nobody, and read or written by copies under way.
    pub in_transit: u64,
    /// Of the held ones, those of several sequences.
    pub shared: u64,
    /// Of the held ones, those of beam searches.
    pub beam: u64,
    /// Of the held ones, those that the prefix cache finds.
    pub prefix: u64,
    /// Pages copied since the start, because one of their holders wrote.
    pub copied_on_write: u64,
    /// Bytes of one.
    pub page_bytes: u64,
    /// Tokens of one.
    pub block_tokens: u64,
}

/// Places for pages in swap space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Swap {
    /// All of them.
    pub total_pages: u64,
    /// Taken.
    pub used_pages: u64,
    /// Pages that went there since the start.
    pub out_pages: u64,
    /// Pages that came back.
    pub in_pages: u64,
}

/// A region of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Region {
    /// `weights`, `kv_cache`, `activations`, `workspace`, `collectives`, `graphs`, `driver`, `reserve`, `swap` or `swap_file`; the last
    /// is on a disk.
    pub region: String,
    /// Before anything was read.
    pub planned_bytes: u64,
    /// At the start; nothing for what has no arena: the reserve, a driver, graphs.
    pub committed_bytes: Option<u64>,
    /// Used at most so far; of the reserve, what the process had beside its arenas.
    pub high_water_bytes: Option<u64>,
}

/// What the bytes of held pages are; together they are `kv_pages.held * kv_pages.page_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waste {
    /// Keys, values and states of tokens that are there: no waste.
    pub token_states_bytes: u64,
    /// Room for tokens of the step under way.
    pub reserved_bytes: u64,
    /// Room in pages that no token fills, padding included.
    pub internal_bytes: u64,
    /// Room between allocations: none, by construction.
    pub external_bytes: u64,
}

/// A tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Owner {
    /// Its name.
    pub tenant: String,
    /// Pages that it is charged for.
    pub held_pages: u64,
    /// Their bytes.
    pub held_bytes: u64,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It has not begun.
    #[default]
    Waiting,
    /// Its prompt is being read.
    Prefill,
    /// It is being answered.
    Decode,
    /// It gave way; its pages are in swap space.
    Swapped,
    /// It gave way; it will be computed again.
    Dropped,
}

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    /// The id of its answer; of a body with several prompts all have the same.
    pub id: String,
    /// The name of its tenant.
    pub tenant: String,
    /// Where it is.
    pub state: Phase,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Tokens generated so far, all its sequences together.
    pub generated_tokens: u64,
    /// Tokens of its prompt that the prefix cache had.
    pub cached_tokens: u64,
    /// Its sequences: one until its prompt is read.
    pub sequences: u64,
    /// Whether it is a beam search.
    pub beam: bool,
    /// Pages that it holds, each once.
    pub pages: u64,
    /// Of them, those with several holders, its own sequences among them.
    pub shared_pages: u64,
    /// Pages of it in swap space.
    pub swapped_pages: u64,
    /// Times it gave way.
    pub preemptions: u64,
    /// Milliseconds since it came.
    pub age_ms: u64,
}

/// Every page, by its number, from 1 on (page 0 is nobody's), as runs of equal pages.
///
/// `runs` is flat: three numbers for each run, `state, owner, length`, where `state` is a place in `states`, `owner` is
/// the place in `entries` of the one request that holds these pages, or -1, and the lengths add up to `kv_pages.total`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PageMap {
    /// Names of states: `free`, `cached`, `held`, `shared`, `beam`, `in_transit`.
    pub states: Vec<String>,
    /// The runs.
    pub runs: Vec<i64>,
}

/// A request that was not let in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The code of its error.
    pub code: String,
    /// What it was told.
    pub reason: String,
    /// The name of its tenant.
    pub tenant: String,
    /// Pages that it would need at its longest, where pages were the reason.
    pub pages_needed: Option<u64>,
    /// Pages that there are for it, where pages were the reason.
    pub pages_available: Option<u64>,
}

/// How a request gave way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Its pages went to swap space.
    Swap,
    /// It is computed again.
    #[default]
    Recompute,
}

/// A request that gave way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Preempted {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How.
    pub kind: Way,
    /// The id of its answer.
    pub id: String,
    /// The id of the answer that it gave way to; its own where it lacked pages itself.
    pub by: String,
    /// The name of its tenant.
    pub tenant: String,
    /// Pages that were needed for the next tokens.
    pub pages_needed: u64,
    /// Pages that could be had.
    pub pages_available: u64,
    /// Pages that went to swap space.
    pub swapped_pages: u64,
    /// Tokens whose keys and values were forgotten.
    pub forgotten_tokens: u64,
    /// What it was believed to cost, in nanoseconds.
    pub cost_ns: u64,
}

/// Counters since the start, for rates between two answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counters {
    /// Tokens of prompts that were read.
    pub prompt_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Tokens of prompts looked up in the prefix cache.
    pub prefix_queried_tokens: u64,
    /// Of them, found.
    pub prefix_found_tokens: u64,
    /// Preemptions by swapping.
    pub swaps: u64,
    /// Preemptions by recomputation.
    pub recomputes: u64,
    /// Tokens computed again after preemptions.
    pub recomputed_tokens: u64,
    /// Requests that were let in.
    pub requests: u64,
    /// Requests that were not.
    pub refused: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example is what the page and `top` are written against: nothing of it is unknown or missing.
    #[test]
    fn the_example_has_this_shape() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/memory.example.json"
        );
        let text = std::fs::read_to_string(path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let memory: Memory = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&memory).unwrap(), value);
        assert_eq!(memory.schema, SCHEMA);
        // What is promised of the numbers holds.
        let p = &memory.kv_pages;
        assert_eq!(p.free + p.held + p.cached + p.in_transit, p.total);
        let lengths: i64 = memory.page_map.runs.chunks(3).map(|r| r[2]).sum();
        assert_eq!(lengths.unsigned_abs(), p.total);
        let w = &memory.waste;
        assert_eq!(
            w.token_states_bytes + w.reserved_bytes + w.internal_bytes + w.external_bytes,
            p.held * p.page_bytes
        );
    }
}
