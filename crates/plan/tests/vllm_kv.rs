//! vLLM's KV cache allocation against vLLM's own code: every golden row must agree exactly.
//!
//! `golden/vllm_kv.jsonl` and `golden/vllm_kv_refused.jsonl` (starts that fail) are the output of
//! `tools/oracles/vllm_kv.py`, which runs vLLM's classes on bare configs. Rows whose family this
//! workspace does not know are counted and listed.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking, and prints what it left out"
)]

use std::collections::BTreeMap;

use plimsoll_model::{Assume, ModelSpec, from_config};
use plimsoll_plan::engine::{self, Context};
use plimsoll_plan::kv::{Capacity, GroupReport, KvLaw};
use plimsoll_plan::{Deployment, Engine, PlanError, Settings, StateMode, Version};
use plimsoll_program::{GroupKind, Parallel};
use plimsoll_units::Bytes;
use serde_json::Value;

#[path = "vllm_kv/vectors.rs"]
mod vectors;

const GOLDEN: [&str; 2] = [
    include_str!("golden/vllm_kv.jsonl"),
    include_str!("golden/vllm_kv_refused.jsonl"),
];
/// Share of rows that must be compared.
const COVERED_PERCENT: usize = 98;

enum Outcome {
    Compared,
    /// Not compared: why.
    Uncovered(String),
}

#[test]
fn every_golden_row_agrees() {
    let mut failures = Vec::new();
    let mut compared = 0;
    let mut uncovered: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in golden_rows() {
        let name = format!("{} {}", text(&row, "version"), text(&row, "name"));
        match compare(&row) {
            Ok(Outcome::Compared) => compared += 1,
            Ok(Outcome::Uncovered(why)) => uncovered.entry(why).or_default().push(name),
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    let left_out: usize = uncovered.values().map(Vec::len).sum();
    let rows = compared + left_out + failures.len();
    println!("{rows} rows: {compared} compared, {left_out} not");
    for (why, names) in &uncovered {
        println!("  {} rows: {why}: {}", names.len(), names.join(", "));
    }
    assert!(
        failures.is_empty(),
        "{} of {rows} rows differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(rows > 0, "the golden file is empty");
    assert!(
        compared * 100 >= rows * COVERED_PERCENT,
        "only {compared} of {rows} rows were compared"
    );
}

fn golden_rows() -> impl Iterator<Item = Value> {
    let lines = GOLDEN.iter().flat_map(|f| f.lines());
    let lines = lines.filter(|l| !l.trim().is_empty());
    // Python writes infinite limits in a config so; JSON has no word for them.
    lines.map(|l| serde_json::from_str(&l.replace("Infinity", "null")).unwrap())
}

/// Everything of a row, or what differs.
fn compare(row: &Value) -> Result<Outcome, String> {
    let spec = match from_config(&row["config"], Assume::Nothing) {
        Ok(spec) => spec,
        Err(why) => return Ok(Outcome::Uncovered(why.to_string())),
    };
    let flags = &row["flags"];
    let settings = settings(row);
    let parallel = Parallel {
        tp: given(row, flags, "tp").unwrap_or(1),
        pp: given(row, flags, "pp").unwrap_or(1),
        ..Parallel::default()
    };
    let available = Bytes::new(given(row, flags, "available_bytes").unwrap());
    let laws = laws(&spec, &settings, parallel).map_err(|e| e.to_string())?;
    let max_len = settings.max_model_len.unwrap();
    if row["refused"] == true {
        return refusal(row, &laws, available, max_len).map(|()| Outcome::Compared);
    }
    let each: Vec<Capacity> = laws
        .iter()
        .map(|l| l.capacity(available, max_len).unwrap())
        .collect();
    // All workers use the smallest count.
    let blocks = each.iter().filter_map(|c| c.blocks).min().unwrap();
    let of = |i: usize| {
        let pool = each[i].bytes_per_block.times(blocks).unwrap();
        laws[i].capacity(pool, max_len).unwrap()
    };
    let first = of(0);
    let mut wrong = Vec::new();
    let mut check = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            wrong.push(format!("{what} {ours}, vLLM {theirs}"));
        }
    };
    check(
        "bytes_per_block",
        first.bytes_per_block.get().to_string(),
        row["bytes_per_block"].to_string(),
    );
    check(
        "num_blocks",
        blocks.to_string(),
        row["num_blocks"].to_string(),
    );
    check(
        "kv_tokens",
        first.tokens.to_string(),
        row["kv_tokens"].to_string(),
    );
    let theirs = row["max_concurrency"].as_f64().unwrap();
    if (first.max_concurrency - theirs).abs() > 1e-9 * theirs {
        check(
            "max_concurrency",
            first.max_concurrency.to_string(),
            theirs.to_string(),
        );
    }
    let theirs = row["groups"].as_array().unwrap();
    // Their order is that in which a class builds its modules (Zamba2's shared attention comes first); no size
    // depends on it.
    let sorted = |mut lines: Vec<Line>| {
        lines.sort();
        format!("{lines:?}")
    };
    check(
        "groups",
        sorted(first.groups.iter().map(ours).collect()),
        sorted(theirs.iter().map(golden).collect()),
    );
    for (i, worker) in row["workers"].as_array().into_iter().flatten().enumerate() {
        let c = of(i);
        let layers: Vec<u64> = c.groups.iter().map(|g| g.layers).collect();
        check(
            &format!("worker {i}"),
            format!("{layers:?} {}", c.bytes_per_block.get()),
            format!(
                "{:?} {}",
                numbers(&worker["layers"]),
                worker["bytes_per_block"]
            ),
        );
    }
    // A pool that starts must also pass our own start check.
    for law in &laws {
        let least = law.start(max_len).unwrap();
        if least.is_some_and(|b| b > available) {
            check("starts", "no".to_owned(), "yes".to_owned());
        }
    }
    if wrong.is_empty() {
        Ok(Outcome::Compared)
    } else {
        Err(wrong.join("; "))
    }
}

/// vLLM refused to start: so must we, with its figures.
fn refusal(
    row: &Value,
    laws: &[Box<dyn KvLaw>],
    available: Bytes,
    max_len: u64,
) -> Result<(), String> {
    let starts = |law: &dyn KvLaw, len: u64| law.start(len).unwrap().is_none_or(|b| b <= available);
    let Some(law) = laws.iter().find(|l| !starts(l.as_ref(), max_len)) else {
        return Err("starts, vLLM refuses".to_owned());
    };
    // The printed need leaves out the null block, which newer versions take off the available side.
    let null = match text(row, "version").parse::<Version>().unwrap() {
        v if v >= Version::new(0, 32) => law.capacity(available, max_len).unwrap().bytes_per_block,
        _ => Bytes::ZERO,
    };
    let needed = law.start(max_len).unwrap().unwrap().saturating_sub(null);
    let gib = needed.get() as f64 / (1_u64 << 30) as f64;
    if let Some(theirs) = row["needed_gib"].as_str() {
        let theirs: f64 = theirs.parse().unwrap();
        if (gib - theirs).abs() > 0.005 + 1e-9 {
            return Err(format!("needs {gib} GiB, vLLM {theirs}"));
        }
    }
    let longest = |law: &dyn KvLaw| {
        let (mut low, mut high) = (0, max_len);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if starts(law, middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    };
    let ours = longest(law.as_ref());
    match row["estimated_max_len"].as_u64() {
        Some(theirs) if theirs != ours => Err(format!("longest length {ours}, vLLM {theirs}")),
        _ => Ok(()),
    }
}

fn laws(
    spec: &ModelSpec,
    settings: &Settings,
    parallel: Parallel,
) -> Result<Vec<Box<dyn KvLaw>>, PlanError> {
    let deployment = Deployment {
        device: plimsoll_device::find("h100").unwrap().clone(),
        kinds: None,
        parallel,
        in_use: Bytes::ZERO,
    };
    parallel
        .stages(spec.layers.len() as u64)
        .iter()
        .map(|stage| {
            let context = Context {
                spec,
                deployment: &deployment,
                settings,
                stage,
                max_model_len: settings.max_model_len.unwrap(),
                users: 1,
            };
            engine::stage(&context).map(|s| s.kv)
        })
        .collect()
}

fn settings(row: &Value) -> Settings {
    let flags = &row["flags"];
    let version: Version = text(row, "version").parse().unwrap();
    let mut s = Settings::new(Engine::Vllm(version));
    s.dtype = row["dtype"].as_str().map(|d| d.parse().unwrap());
    if let Some(t) = either(row, flags, "kv_cache_dtype").as_str() {
        s.kv_type = t.parse().unwrap();
    }
    s.block_size = row["block_size_requested"]
        .as_u64()
        .or(flags["block_size"].as_u64());
    s.max_model_len = given(row, flags, "max_model_len");
    // The oracle's own value where a case gives none.
    s.max_num_batched_tokens = given(row, flags, "max_num_batched_tokens").or(Some(8192));
    s.max_num_seqs = given(row, flags, "max_num_seqs");
    // The oracle caches prefixes unless a case says otherwise.
    s.prefix_caching = either(row, flags, "prefix_caching")
        .as_bool()
        .or(Some(true));
    s.async_scheduling = either(row, flags, "async_scheduling").as_bool();
    if either(row, flags, "disable_hybrid_kv_cache_manager") == true {
        s.disable_hybrid_kv_cache_manager = Some(true);
    }
    match row["mamba_cache_mode"].as_str() {
        Some("align") => s.mamba_cache_mode = Some(StateMode::Align),
        // 0.11 has one mode and no name for it.
        mode if mode == Some("all") || mode.is_none() && s.prefix_caching == Some(true) => {
            // The spec does not carry the chunk of the state kernel.
            let config = &row["config"];
            let chunk = &config["mamba_chunk_size"];
            s.mamba_block_size = chunk.as_u64().or(config["chunk_size"].as_u64());
        }
        _ => {}
    }
    let state = row["mamba_ssm_cache_dtype_requested"].as_str();
    s.mamba_ssm_cache_dtype = state.map(|d| d.parse().unwrap());
    s
}

/// Kind, layers with padding, layers, tokens per block, bytes per page.
type Line = (String, u64, u64, u64, u64);

fn ours(g: &GroupReport) -> Line {
    let kind = match g.kind {
        GroupKind::Full => "full".to_owned(),
        GroupKind::Latent => "latent".to_owned(),
        GroupKind::Window(w) => format!("window {w}"),
        GroupKind::Chunk(c) => format!("chunk {c}"),
        GroupKind::State => "state".to_owned(),
    };
    let slots = g.layers + g.padding_layers;
    (kind, slots, g.layers, g.block_size, g.page.get())
}

fn golden(g: &Value) -> Line {
    let kind = match text(g, "kind") {
        "FullAttentionSpec" => "full".to_owned(),
        "MLAAttentionSpec" => "latent".to_owned(),
        "SlidingWindowSpec" | "SlidingWindowMLASpec" => format!("window {}", g["sliding_window"]),
        "ChunkedLocalAttentionSpec" => format!("chunk {}", g["attention_chunk_size"]),
        // One size for a sequence of any length.
        "MambaSpec" | "CrossAttentionSpec" => "state".to_owned(),
        other => other.to_owned(),
    };
    let n = |key: &str| g[key].as_u64().unwrap();
    (
        kind,
        n("layers"),
        n("real_layers"),
        n("block_size"),
        n("page_bytes"),
    )
}

fn numbers(v: &Value) -> Vec<u64> {
    v.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_u64)
        .collect()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

/// A field of the row, else the flag of that name.
fn either<'a>(row: &'a Value, flags: &'a Value, key: &str) -> &'a Value {
    if row[key].is_null() {
        &flags[key]
    } else {
        &row[key]
    }
}

fn given(row: &Value, flags: &Value, key: &str) -> Option<u64> {
    either(row, flags, key).as_u64()
}

#[test]
fn tokens_are_dealt_over_ranks_that_keep_the_same_heads() {
    use plimsoll_device::find;
    let capacity = |model: &str, tp: u64, dcp: Option<u64>, version: &str| {
        let entry = plimsoll_model::catalogue::find(model).unwrap();
        let spec = from_config(&entry.config, Assume::Nothing).unwrap();
        let parallel = Parallel {
            tp,
            ..Parallel::default()
        };
        let deployment = Deployment {
            kinds: None,
            device: find("h200").unwrap().clone(),
            parallel,
            in_use: Bytes::ZERO,
        };
        let settings = Settings {
            decode_context_parallel: dcp,
            ..Settings::new(Engine::Vllm(version.parse().unwrap()))
        };
        let stages = parallel.stages(spec.layers.len() as u64);
        engine::stage(&Context {
            spec: &spec,
            deployment: &deployment,
            settings: &settings,
            stage: &stages[0],
            max_model_len: 4096,
            users: 1,
        })
        .and_then(|s| s.kv.capacity(Bytes::from_gib(40.0).unwrap(), 4096))
        .map(|c| (c.tokens, c.max_concurrency))
    };
    let (one, requests) = capacity("deepseek-v3", 8, None, "0.11").unwrap();
    let (eight, more) = capacity("deepseek-v3", 8, Some(8), "0.11").unwrap();
    assert_eq!(eight, 8 * one);
    assert!((more / requests - 8.0).abs() < 1e-9, "{more} {requests}");
    // Two KV heads: four of eight ranks keep each.
    assert!(capacity("Qwen/Qwen2.5-3B", 8, Some(4), "0.19").is_ok());
    for (model, tp, dcp, version, reason) in [
        ("Qwen/Qwen2.5-3B", 8, 8, "0.19", "keep the same heads"),
        ("deepseek-v3", 8, 3, "0.19", "does not divide"),
        ("deepseek-v3", 8, 8, "0.10", "it came with"),
        ("openai/gpt-oss-20b", 16, 2, "0.19", "are not dealt"),
    ] {
        let refused = capacity(model, tp, Some(dcp), version).unwrap_err();
        assert!(refused.to_string().contains(reason), "{model}: {refused}");
    }
}
