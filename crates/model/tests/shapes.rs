//! Every family's inventory against the checkpoints that transformers writes.
//!
//! The golden files are written by `tools/oracles/transformers_shapes.py`, which describes their
//! format; nothing in them was typed by hand.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plimsoll_model::{Assume, Mixer, ModelSpec, Reach, Role, from_config};
use serde_json::Value;

type Inventory = BTreeMap<String, (Vec<u64>, String)>;

fn golden_files(folder: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    files
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// "0-3,7" as numbers.
fn numbers(text: &str) -> Vec<u64> {
    text.split(',')
        .flat_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            first.parse::<u64>().unwrap()..=last.parse::<u64>().unwrap()
        })
        .collect()
}

/// The rows of a golden file, `{l}` and `{e}` written out.
fn expected(rows: &Value) -> Inventory {
    let mut all = Inventory::new();
    for row in rows.as_array().unwrap() {
        let name = row[0].as_str().unwrap();
        let shape: Vec<u64> = row[1]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d.as_u64().unwrap())
            .collect();
        let dtype = match row[2].as_str().unwrap() {
            "bfloat16" | "BF16" => "bf16",
            "float16" | "F16" => "f16",
            "float32" | "F32" => "f32",
            other => panic!("type {other}"),
        };
        let axis = |i: usize| row.get(i).map_or(vec![0], |r| numbers(r.as_str().unwrap()));
        for l in axis(3) {
            for e in axis(4) {
                let name = name
                    .replace("{l}", &l.to_string())
                    .replace("{e}", &e.to_string());
                assert!(
                    all.insert(name, (shape.clone(), dtype.to_owned()))
                        .is_none()
                );
            }
        }
    }
    all
}

/// What a spec stores, without the multi-token-prediction layers: transformers drops those on
/// loading and never writes them, so no golden file has them.
fn inventory(spec: &ModelSpec) -> Inventory {
    let mut all = Inventory::new();
    for t in spec.tensors.iter().filter(|t| t.role != Role::Mtp) {
        for (name, shape) in t.stored() {
            let twice = all.insert(name.clone(), (shape, t.dtype.name().to_owned()));
            assert!(twice.is_none(), "{name} is there twice");
        }
    }
    all
}

/// The first few names on which the two disagree.
fn differences(want: &Inventory, have: &Inventory) -> Vec<String> {
    let mut out = Vec::new();
    for (name, w) in want {
        match have.get(name) {
            None => out.push(format!("missing {name} {w:?}")),
            Some(h) if h != w => out.push(format!("{name}: want {w:?}, have {h:?}")),
            Some(_) => {}
        }
    }
    out.extend(
        have.keys()
            .filter(|n| !want.contains_key(*n))
            .map(|n| format!("superfluous {n}")),
    );
    out.truncate(12);
    out
}

/// Windows and states of all layers as the golden files write them.
fn layers(spec: &ModelSpec) -> Vec<Value> {
    spec.layers
        .iter()
        .map(|l| match l.mixer {
            Mixer::Attention(a) => match a.reach {
                Reach::Full => Value::from(0),
                Reach::Window(n) => Value::from(n),
                Reach::Chunk(_) => Value::from("chunk"),
            },
            Mixer::Latent(_) => Value::from(0),
            Mixer::State(_) => Value::from("state"),
            Mixer::None => Value::from("none"),
        })
        .collect()
}

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
    let all: std::collections::BTreeSet<_> = plimsoll_model::families::FAMILIES
        .iter()
        .map(|f| f.name)
        .collect();
    assert_eq!(families, all, "a family has no golden file");
}
