//! docs/hybrids.md: what one request of each hybrid family holds, by the mathematics and by engines' rules.
//!
//! The configs are those of `tools/oracles/vllm_kv_cases.py` (`HYBRIDS`), which vLLM's own code was run on at the same
//! lengths (`golden/vllm_kv.jsonl`, rows `request-*`): its figures must be those of the page. `UPDATE_DOCS=1` writes the page.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use plimsoll_model::{Assume, ModelSpec, from_config};
use plimsoll_plan::engine::{self, Context};
use plimsoll_plan::kv::KvLaw;
use plimsoll_plan::{Deployment, Engine, Load, Settings};
use plimsoll_program::Parallel;
use plimsoll_units::Bytes;
use serde_json::Value;

const LENGTHS: [(&str, u64); 3] = [("1k", 1 << 10), ("8k", 8 << 10), ("128k", 128 << 10)];

/// Families that llama.cpp has no architecture for (`src/llama-arch.cpp`, mid-2026), or whose caches there are not modelled.
const NOT_IN_LLAMACPP: [&str; 3] = ["deepseek-v4", "minimax-01", "zamba2"];

/// The oracle's rows at the lengths of the page: family and length.
fn rows() -> BTreeMap<(String, u64), Value> {
    include_str!("golden/vllm_kv.jsonl")
        .lines()
        .map(|l| serde_json::from_str::<Value>(&l.replace("Infinity", "null")).unwrap())
        .filter_map(|row| {
            let name = row["name"].as_str()?.strip_prefix("request-")?;
            let (family, label) = name.rsplit_once('-')?;
            let (_, length) = LENGTHS.iter().find(|(l, _)| *l == label)?;
            Some(((family.to_owned(), *length), row))
        })
        .collect()
}

/// The law of one rank of `tp`, which are alike.
fn law(spec: &ModelSpec, engine: Engine, row: &Value, length: u64, tp: u64) -> Box<dyn KvLaw> {
    let mut s = Settings::new(engine);
    s.max_model_len = Some(length);
    s.prefix_caching = Some(false);
    s.max_num_batched_tokens = row["max_num_batched_tokens"].as_u64();
    // llama.cpp has as many slots as this says.
    s.max_num_seqs = match engine {
        Engine::LlamaCpp(_) => Some(1),
        _ => row["max_num_seqs"].as_u64(),
    };
    let parallel = Parallel {
        tp,
        ..Parallel::default()
    };
    let deployment = Deployment {
        kinds: None,
        device: plimsoll_device::find("h100").unwrap().clone(),
        parallel,
        in_use: Bytes::ZERO,
    };
    let stage = parallel
        .stages(spec.layers.len() as u64)
        .into_iter()
        .next()
        .unwrap();
    let context = Context {
        spec,
        deployment: &deployment,
        settings: &s,
        stage: &stage,
        max_model_len: length,
        users: 1,
    };
    engine::stage(&context).unwrap().kv
}

/// What vLLM's own code says that one request of the row's longest length holds, on all ranks.
fn theirs(row: &Value) -> u64 {
    let groups = row["groups"].as_array().unwrap();
    let blocks: u64 = groups
        .iter()
        .map(|g| g["blocks_per_request"].as_u64().unwrap())
        .sum();
    blocks * row["bytes_per_block"].as_u64().unwrap() * row["tp"].as_u64().unwrap()
}

#[test]
fn one_request_holds_what_the_page_says() {
    let rows = rows();
    let mut families: Vec<&str> = rows.keys().map(|(family, _)| family.as_str()).collect();
    families.dedup();
    assert!(families.len() >= 20, "{} families", families.len());
    let mut table = String::new();
    for family in families {
        let _ = write!(table, "| {family} |");
        for (_, length) in LENGTHS {
            let row = &rows[&(family.to_owned(), length)];
            let spec = from_config(&row["config"], Assume::Nothing).unwrap();
            let tp = row["tp"].as_u64().unwrap();
            let load = Load::plain(1, length);
            let vllm = Engine::Vllm(row["version"].as_str().unwrap().parse().unwrap());
            let paged = law(&spec, vllm, row, length, tp);
            // The null block is the pool's, not the request's.
            let pool = paged.need(&load).unwrap().pool;
            let block = paged.capacity(pool, length).unwrap().bytes_per_block;
            let held = pool.saturating_sub(block).times(tp).unwrap();
            assert_eq!(held.get(), theirs(row), "{family} at {length}");
            let alone = |engine| {
                let law = law(&spec, engine, row, length, 1);
                law.need(&load).unwrap().pool
            };
            let ideal = alone(Engine::Ideal);
            assert!(ideal <= held, "{family} at {length}: {ideal} above {held}");
            let cells = if NOT_IN_LLAMACPP.contains(&family) {
                "-".to_owned()
            } else {
                alone("llama.cpp".parse().unwrap()).to_string()
            };
            let _ = write!(table, " {ideal} | {held} | {cells} |");
        }
        table.push('\n');
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/hybrids.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, _) = page
        .split_once("| --- |")
        .expect("the page has a table with a head");
    let rule = format!("| --- |{}\n", " ---: |".repeat(9));
    let fresh = format!("{head}{rule}{table}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, fresh).unwrap();
    } else {
        assert_eq!(
            page, fresh,
            "docs/hybrids.md is out of date: UPDATE_DOCS=1 cargo test -p plimsoll-plan --test hybrids"
        );
    }
}

#[test]
fn compressed_caches_are_refused_where_they_are_not_modelled() {
    let row = &rows()[&("deepseek-v4".to_owned(), 1 << 10)];
    let spec = from_config(&row["config"], Assume::Nothing).unwrap();
    let refused = |engine: &str, change: &dyn Fn(&mut Settings)| {
        let mut s = Settings::new(engine.parse().unwrap());
        s.max_model_len = Some(1 << 10);
        change(&mut s);
        let parallel = Parallel {
            tp: 8,
            ..Parallel::default()
        };
        let deployment = Deployment {
            kinds: None,
            device: plimsoll_device::find("h200").unwrap().clone(),
            parallel,
            in_use: Bytes::ZERO,
        };
        let stage = &parallel.stages(spec.layers.len() as u64)[0];
        let context = Context {
            spec: &spec,
            deployment: &deployment,
            settings: &s,
            stage,
            max_model_len: 1 << 10,
            users: 1,
        };
        engine::stage(&context).err().map(|e| e.to_string())
    };
    for engine in ["sglang", "llama.cpp", "trtllm"] {
        let why = refused(engine, &|_| {}).expect(engine);
        assert!(why.contains("compressed entries"), "{engine}: {why}");
    }
    assert_eq!(refused("vllm", &|_| {}), None);
    assert!(refused("vllm@0.19", &|_| {}).unwrap().contains("0.21"));
    let blocks = refused("vllm", &|s| s.block_size = Some(64)).unwrap();
    assert!(blocks.contains("256"), "{blocks}");
    let kept = refused("vllm", &|s| s.kv_type = "bf16".parse().unwrap()).unwrap();
    assert!(kept.contains("8 bits"), "{kept}");
}
