//! Golden inventories: reading them, and what differs from a spec.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by tests, each of which uses a part"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plimsoll_model::{ModelSpec, Role};
use serde_json::Value;

pub type Inventory = BTreeMap<String, (Vec<u64>, String)>;

pub fn golden_files(folder: &str) -> Vec<PathBuf> {
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

pub fn read(path: &Path) -> Value {
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
pub fn expected(rows: &Value) -> Inventory {
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
            "float8_e4m3fn" => "f8_e4m3",
            "int8" => "i8",
            "uint8" => "u8",
            "int32" => "i32",
            "int64" => "i64",
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
pub fn inventory(spec: &ModelSpec) -> Inventory {
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
pub fn differences(want: &Inventory, have: &Inventory) -> Vec<String> {
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
