//! Plans for llama.cpp on processors against what `llama-server` printed when it was started with the emitted command.
//!
//! The golden rows are of `tools/oracles/llamacpp_server.py`; their models are those of `golden/llamacpp.jsonl`.

#[path = "support/gguf.rs"]
#[allow(dead_code, reason = "tests/llamacpp.rs uses the rest")]
mod gguf;

use std::collections::BTreeMap;

use gguf::Meta;
use plimsoll_device::{Device, find};
use plimsoll_model::{Assume, ModelSpec, catalogue, from_config};
use plimsoll_plan::{Deployment, Load, PlanError, Region, Settings, StageEvaluation, evaluate};
use plimsoll_program::Parallel;
use plimsoll_units::Bytes;
use serde_json::Value;

const SERVER: &str = include_str!("golden/llamacpp_server.jsonl");
const MODELS: &str = include_str!("golden/llamacpp.jsonl");

fn lines(text: &str) -> impl Iterator<Item = Value> {
    text.lines()
        .map(|l| serde_json::from_str(l).expect("a JSON line"))
}

/// The models by name.
fn models() -> BTreeMap<String, ModelSpec> {
    lines(MODELS)
        .filter(|v| v.get("gguf_metadata").is_some())
        .map(|v| {
            let spec = Meta::new(&v["gguf_metadata"]).spec(&v["tensors"]);
            (v["model"].as_str().expect("a model").to_owned(), spec)
        })
        .collect()
}

/// Processors with 64 GiB.
fn processors(pp: u64) -> Deployment {
    let any: &Device = find("h100").expect("in the catalogue");
    Deployment {
        device: Device {
            name: "cpu".to_owned(),
            vendor: "cpu".to_owned(),
            usable: Bytes::from_gib(64.0).expect("it fits 64 bits"),
            ..any.clone()
        },
        kinds: None,
        parallel: Parallel {
            pp,
            ..Parallel::default()
        },
        in_use: Bytes::ZERO,
    }
}

fn settings(row: &Value) -> Settings {
    let number = |key: &str| row.get(key).and_then(Value::as_u64);
    let flag = |key: &str| row.get(key).and_then(Value::as_bool);
    let ty = |key: &str| {
        let name = row.get(key).and_then(Value::as_str)?;
        Some(name.parse().expect("a type"))
    };
    Settings {
        max_model_len: number("max_model_len"),
        max_num_seqs: number("max_num_seqs"),
        max_num_batched_tokens: number("batch"),
        ubatch: number("ubatch"),
        kv_type: ty("type_k").unwrap_or_default(),
        kv_type_v: ty("type_v"),
        flash_attention: flag("flash_attn"),
        kv_unified: flag("kv_unified") == Some(true),
        swa_full: flag("swa_full") == Some(true),
        ..Settings::new("llama.cpp".parse().expect("an engine"))
    }
}

fn mib(stage: &StageEvaluation, region: Region) -> f64 {
    stage.region(region).expect("it fits 64 bits").mib()
}

#[test]
fn a_server_prints_the_terms_of_its_plan() {
    let models = models();
    let (mut rows, mut repacked) = (0, 0);
    for row in lines(SERVER) {
        let name = row["model"].as_str().expect("a model");
        let load = Load::plain(
            row["users"].as_u64().expect("users"),
            row["context"].as_u64().expect("a context"),
        );
        let e = evaluate(&models[name], &processors(1), &settings(&row), &load).expect("a plan");
        let stage = &e.stages[0];
        for (key, region) in [
            ("weights", Region::Weights),
            ("kv_cache", Region::KvCache),
            ("activations", Region::Activations),
            ("workspace", Region::Workspace),
        ] {
            let printed = row["printed_mib"][key].as_f64().expect("a figure");
            let planned = mib(stage, region);
            // A mapped file spans what was laid out anew elsewhere.
            let same = if key == "weights" && row["repacked"] == true {
                planned <= printed + 0.01
            } else {
                (planned - printed).abs() <= 0.01
            };
            assert!(same, "{row}: {key} {planned}");
        }
        rows += 1;
        repacked += u64::from(row["repacked"] == true);
    }
    assert_eq!((rows, repacked), (64, 15));
}

/// What is beside the printed buffers: at 151,936 tokens the process took 50 MiB of its own and 15 of files.
#[test]
fn the_process_is_more_than_its_buffers() {
    let models = models();
    let row = serde_json::json!({});
    let load = Load::plain(2, 2048);
    let of = |name: &str| {
        let e = evaluate(&models[name], &processors(1), &settings(&row), &load).expect("a plan");
        mib(&e.stages[0], Region::Driver)
    };
    assert!((65.0..100.0).contains(&of("qwen3-0.6b")));
    // 262,144 tokens: 86 MiB with 15 of files.
    assert!((101.0..130.0).contains(&of("gemma-3-1b")));
}

/// Finished prompts are kept by newer builds alone, and what holds on devices is said of processors too.
#[test]
fn notes_are_those_of_the_build_and_the_checkpoint() {
    let notes = |spec: &ModelSpec, engine: &str| {
        let settings = Settings::new(engine.parse().expect("an engine"));
        let e = evaluate(spec, &processors(1), &settings, &Load::plain(1, 512)).expect("a plan");
        e.stages[0].notes.join("\n")
    };
    let plain = &models()["qwen3-0.6b"];
    assert!(notes(plain, "llama.cpp").contains("--cache-ram"));
    assert!(!notes(plain, "llama.cpp@2025-06-01").contains("--cache-ram"));
    let entry = catalogue::find("gpt-oss-20b").expect("in the catalogue");
    let stored = from_config(&entry.config, Assume::Nothing).expect("a model");
    assert!(notes(&stored, "llama.cpp").contains("give its header"));
}

#[test]
fn processors_are_one_device() {
    let models = models();
    let refused = evaluate(
        &models["qwen3-0.6b"],
        &processors(2),
        &settings(&serde_json::json!({})),
        &Load::plain(1, 512),
    );
    assert!(matches!(refused, Err(PlanError::Refused { .. })));
}
