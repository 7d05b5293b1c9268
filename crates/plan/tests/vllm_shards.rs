//! What one tensor-parallel rank of vLLM holds of a model's weights, against vLLM's own classes.
//!
//! `golden/vllm_shards.jsonl` is the output of `tools/oracles/vllm_shards.py`. A matrix that is split where vLLM
//! replicates it, or the other way, shows at once; so do tensors that a family forgets.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it compared"
)]

use plimsoll_model::{Assume, Role, Shard, from_config};
use plimsoll_plan::engine::{self, Context};
use plimsoll_plan::{Deployment, Engine, Region, Settings};
use plimsoll_program::{Parallel, WeightRules, rank_tensors};
use plimsoll_units::Bytes;
use serde_json::Value;

/// Largest difference, of the whole: vLLM keeps some small vectors in 32 bits, or whole on every rank.
const TOLERANCE: f64 = 2.5e-4;
/// Differences up to this many bytes are not looked at: routers of the small configs, in 16 bits or 32.
const SMALL: u64 = 64 << 10;
/// What differs by more, and why.
const KNOWN: [(&str, &str); 3] = [
    (
        "deepseek-v4 tp8",
        "the numbers of hashed tokens' experts have 32 bits there, 64 in a checkpoint",
    ),
    (
        "gpt-oss",
        "its kernels round experts' sizes up, by the card's backend",
    ),
    ("minimax-01", "0.19 keeps its head and routers in 32 bits"),
];

/// The weights of one rank, without what is no parameter.
fn bytes(row: &Value) -> Result<u64, String> {
    let spec = from_config(&row["config"], Assume::Nothing).map_err(|e| e.to_string())?;
    let parallel = Parallel {
        tp: row["tp"].as_u64().unwrap(),
        ..Parallel::default()
    };
    let version = row["version"].as_str().unwrap().parse().unwrap();
    let deployment = Deployment {
        kinds: None,
        device: plimsoll_device::find("h100").unwrap().clone(),
        parallel,
        in_use: Bytes::ZERO,
    };
    let context = Context {
        spec: &spec,
        deployment: &deployment,
        settings: &Settings::new(Engine::Vllm(version)),
        stage: &parallel.stages(spec.layers.len() as u64)[0],
        max_model_len: 256,
        users: 1,
    };
    let stage = engine::stage(&context).map_err(|e| e.to_string())?;
    let beside = [
        "rotary tables",
        "allocator rounding",
        "expert layout",
        "indexer's choices",
        "lanes for prediction layers",
    ];
    let weights = stage
        .terms
        .iter()
        .filter(|t| t.region == Region::Weights && !beside.contains(&t.name.as_str()));
    Ok(weights.map(|t| t.bytes.get()).sum())
}

#[test]
fn ranks_hold_what_vllms_classes_hold() {
    let mut wrong = Vec::new();
    let (mut compared, mut families) = (0, std::collections::BTreeSet::new());
    for line in include_str!("golden/vllm_shards.jsonl").lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let name = format!("{} tp{}", row["name"].as_str().unwrap(), row["tp"]);
        let Some(theirs) = row["bytes"].as_u64() else {
            continue;
        };
        match bytes(&row) {
            Ok(ours) => {
                let off = (ours as f64 - theirs as f64) / theirs as f64;
                println!("{name}: {ours} {theirs} {off:+.6}");
                let known = KNOWN.iter().any(|(of, _)| name.starts_with(of));
                if off.abs() > TOLERANCE && ours.abs_diff(theirs) > SMALL && !known {
                    wrong.push(format!("{name}: {ours}, vLLM {theirs} ({off:+.5})"));
                }
                compared += 1;
                families.insert(row["name"].as_str().unwrap().to_owned());
            }
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(families.len() >= 60, "{families:?}");
}

/// Prediction layers of the rank, without tables of the vocabulary, which some checkpoints repeat.
fn prediction_bytes(row: &Value) -> Result<u64, String> {
    let spec = from_config(&row["config"], Assume::Nothing).map_err(|e| e.to_string())?;
    let parallel = Parallel {
        tp: row["tp"].as_u64().unwrap(),
        ..Parallel::default()
    };
    let stage = &parallel.stages(spec.layers.len() as u64)[0];
    let rules = WeightRules {
        mtp: true,
        ..WeightRules::stored()
    };
    let parts = rank_tensors(&spec, &parallel, stage, &rules).map_err(|e| e.to_string())?;
    let own = parts
        .iter()
        .filter(|p| p.role == Role::Mtp && !matches!(p.tensor.shard, Shard::Vocab { .. }));
    Ok(own.map(|p| p.each.get() * p.copies).sum())
}

#[test]
fn prediction_layers_are_those_of_vllms_classes() {
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for line in include_str!("golden/vllm_shards.jsonl").lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let Some(theirs) = row["mtp"].as_u64() else {
            continue;
        };
        let name = format!("{} tp{}", row["name"].as_str().unwrap(), row["tp"]);
        let ours = prediction_bytes(&row).unwrap();
        let off = (ours as f64 - theirs as f64) / theirs as f64;
        println!("{name}: {ours} {theirs} {off:+.6}");
        if off.abs() > TOLERANCE {
            wrong.push(format!("{name}: {ours}, vLLM {theirs} ({off:+.5})"));
        }
        compared += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared >= 18, "{compared} rows");
}
