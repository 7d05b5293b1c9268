//! Built-in configs against what hf-mem counts in headers of the published shapes.
//!
//! The golden file and `docs/peers.md` are written by `tools/oracles/peers.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use plimsoll_model::{Assume, catalogue, from_config};
use serde_json::Value;

#[test]
fn stored_bytes_are_those_that_hf_mem_counts() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tools/oracles/golden/peers.jsonl"
    );
    let rows: Vec<Value> = std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let mut seen = 0;
    for row in &rows {
        let Some(name) = row["model"].as_str().unwrap().strip_prefix("published/") else {
            continue;
        };
        let entry = catalogue::find(name).unwrap();
        let spec = from_config(&entry.config, Assume::Nothing).unwrap();
        let peer = row["stored_bytes"]["hf_mem"].as_u64().unwrap();
        assert_eq!(spec.stored_bytes().unwrap().get(), peer, "{name}");
        seen += 1;
    }
    assert!(seen >= 8, "{seen} published models");
}
