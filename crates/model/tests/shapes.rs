//! Every family's inventory against the checkpoints that transformers writes.
//!
//! The golden files are written by `tools/oracles/transformers_shapes.py`, which describes their
//! format; nothing in them was typed by hand.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod inventory;

use inventory::{differences, expected, golden_files, inventory, read};
use plimsoll_model::{Assume, LayerSpec, Mixer, ModelSpec, Reach, Role, from_config};
use serde_json::Value;

/// Windows and states of all layers as the golden files write them.
fn layers(spec: &ModelSpec) -> Vec<Value> {
    spec.layers
        .iter()
        .map(|l| match l.mixer {
            _ if l.parallel.is_some() => Value::from("both"),
            Mixer::Attention(a) => match a.reach {
                Reach::Full => Value::from(0),
                Reach::Window(n) => Value::from(n),
                Reach::Chunk(_) => Value::from("chunk"),
            },
            Mixer::Latent(a) => Value::from(a.compressed.map_or(0, |c| c.window)),
            Mixer::State(_) => Value::from("state"),
            Mixer::None => Value::from("none"),
        })
        .collect()
}

/// Taps, channels, heads, rows and columns of all layers' states as the golden files write them.
fn states(spec: &ModelSpec) -> Vec<Value> {
    let sizes = |l: &LayerSpec| match (l.mixer, l.parallel) {
        (Mixer::State(s), _) | (_, Some(s)) => {
            Value::from(vec![s.conv_taps, s.conv_channels, s.heads, s.rows, s.cols])
        }
        _ => Value::Null,
    };
    spec.layers.iter().map(sizes).collect()
}

/// KV heads and head size of all layers that read an encoder's output as the golden files write them.
fn crossed(spec: &ModelSpec) -> Vec<Value> {
    let sizes = |l: &LayerSpec| match l.cross {
        Some(c) => Value::from(vec![c.kv_heads, c.head_dim]),
        None => Value::Null,
    };
    spec.layers.iter().map(sizes).collect()
}

/// Families that transformers does not know: what ranks hold of them is compared with vLLM's classes
/// (`crates/plan/tests/vllm_shards.rs`).
const ELSEWHERE: &[&str] = &[
    "arctic",
    "baichuan",
    "bailing_moe",
    "chatglm",
    "nemotron_nas",
];

fn without_quantisation(config: &Value) -> Value {
    let mut config = config.clone();
    config
        .as_object_mut()
        .unwrap()
        .shift_remove("quantization_config");
    config
}

#[test]
fn inventories_equal_transformers() {
    let mut wrong = Vec::new();
    let mut families = std::collections::BTreeSet::new();
    let mut sized = 0;
    let files = golden_files("shapes");
    for path in &files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let golden = read(path);
        let want = expected(&golden["tensors"]);
        for key in ["config", "saved_config"] {
            let Some(config) = golden.get(key) else {
                continue;
            };
            // Where the config states no type, transformers' choice is its own.
            let stated = ["dtype", "torch_dtype"]
                .iter()
                .any(|k| config.get(*k).is_some());
            match from_config(&without_quantisation(config), Assume::Nothing) {
                Ok(spec) => {
                    families.insert(spec.family);
                    let mut have = inventory(&spec);
                    if !stated {
                        for (name, (_, dtype)) in &mut have {
                            if let Some(w) = want.get(name) {
                                dtype.clone_from(&w.1);
                            }
                        }
                    }
                    let found = differences(&want, &have);
                    if !found.is_empty() {
                        wrong.push(format!("{name} ({key}):\n    {}", found.join("\n    ")));
                    }
                    if let Some(want) = golden.get("states") {
                        sized += 1;
                        if Value::from(states(&spec)) != *want {
                            wrong.push(format!(
                                "{name} ({key}): states {:?}, want {want}",
                                states(&spec)
                            ));
                        }
                    }
                    let cross = crossed(&spec);
                    let none = vec![Value::Null; cross.len()];
                    let want = golden.get("cross").cloned();
                    if Value::from(cross) != want.unwrap_or(Value::from(none)) {
                        wrong.push(format!("{name} ({key}): {:?}", crossed(&spec)));
                    }
                    if Value::from(layers(&spec)) != golden["layers"] {
                        wrong.push(format!(
                            "{name} ({key}): layers {:?}, want {}",
                            layers(&spec),
                            golden["layers"]
                        ));
                    }
                }
                Err(e) => wrong.push(format!("{name} ({key}): {e}")),
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} files:\n{}",
        wrong.len(),
        files.len(),
        wrong.join("\n")
    );
    assert!(sized >= 28, "{sized} models with states");
    let all: std::collections::BTreeSet<_> = plimsoll_model::families::FAMILIES
        .iter()
        .map(|f| f.name)
        .collect();
    families.extend(ELSEWHERE);
    assert_eq!(families, all, "a family has no golden file");
}

/// Checkpoints with random weights, saved by transformers: their headers, byte for byte.
#[test]
fn configs_give_the_bytes_of_real_headers() {
    let files = golden_files("checkpoints");
    assert!(files.len() >= 12, "{} checkpoints", files.len());
    for path in files {
        let golden = read(&path);
        let spec = from_config(&golden["config"], Assume::Nothing).unwrap();
        let found = differences(&expected(&golden["tensors"]), &inventory(&spec));
        assert!(
            found.is_empty(),
            "{}:\n{}",
            path.display(),
            found.join("\n")
        );
        let derived: u64 = spec
            .tensors
            .iter()
            .filter(|t| t.role != Role::Mtp)
            .map(|t| t.bytes().unwrap().get())
            .sum();
        assert_eq!(
            Some(derived),
            golden["bytes"].as_u64(),
            "{}",
            path.display()
        );
    }
}

fn catalogued(name: &str) -> ModelSpec {
    let entry = plimsoll_model::catalogue::find(name).unwrap();
    from_config(&entry.config, Assume::Nothing).unwrap()
}

/// `metadata.total_size` of published `model.safetensors.index.json` files.
#[test]
fn published_totals_are_met() {
    for (name, total) in [
        ("qwen3-30b-a3b", 61_064_245_248),
        ("gpt-oss-120b", 65_248_815_744),
        ("gemma-3-4b", 8_600_158_944),
    ] {
        assert_eq!(
            catalogued(name).stored_bytes().unwrap().get(),
            total,
            "{name}"
        );
    }
}

/// The hub's count of parameters from files' headers, as AlexsJones/llmfit collected them (`hf_models.json`; Codestral's
/// from its AWQ copy there, `StarCoder` 2's from a card made of its headers): an AWQ checkpoint's are those of its matrices
/// unpacked, its feed-forwards padded for their groups.
#[test]
fn catalogued_models_have_as_many_parameters_as_the_hub_counts() {
    for (name, parameters) in [
        ("codestral-22b", 22_247_282_688),
        ("qwen2-vl-7b", 8_291_375_616),
        ("qwen2-vl-72b", 73_405_560_320),
        ("qwen2.5-vl-72b-awq", 73_662_435_584),
        ("starcoder2-15b", 15_957_889_024),
    ] {
        assert_eq!(catalogued(name).parameters().unwrap(), parameters, "{name}");
    }
}

/// The weight files of DeepSeek-V3 are 688,586,727,753 bytes long, headers included. A header line
/// has the name, three keys and the numbers: what remains must be that, for every tensor. So the
/// multi-token-prediction layer is whole, and its projection is not quantised.
#[test]
fn deepseek_v3_is_as_long_as_its_files() {
    let spec = catalogued("deepseek-v3");
    let names: u64 = spec
        .tensors
        .iter()
        .flat_map(|t| t.stored())
        .map(|(n, _)| n.len() as u64)
        .sum();
    let count: u64 = spec.tensors.iter().map(|t| t.copies()).sum();
    let headers = 688_586_727_753 - spec.stored_bytes().unwrap().get();
    let line = (headers - names) / count;
    assert!(
        (60..=120).contains(&line),
        "{line} bytes per header line beside the name"
    );
    assert_eq!(spec.mtp_layers, 1);
}

/// What the headers of Nemotron 3 Super hold, as the hub counts it: its prediction layer and the corrections of its
/// routers among it.
#[test]
fn nemotron_3_super_has_as_many_parameters_as_its_files() {
    let spec = catalogued("nemotron-3-super-120b-a12b");
    assert_eq!(spec.parameters().unwrap(), 123_611_033_088);
    let ahead = spec.tensors.iter().filter(|t| t.role == Role::Mtp);
    let ahead: u64 = ahead.map(|t| t.elements().unwrap() * t.copies()).sum();
    assert_eq!(ahead, 2_942_324_736 + 512);
}
