//! A server whose steps CUDA's kernels carry out, on fibers.

use std::process::Command;

use serde_json::{Value, json};

use crate::generating::{Dir, plimsoll, words};
use crate::server::Server;

const FIBERS: [&str; 5] = [
    "--device",
    "fibers",
    "--batch-invariant",
    "--max-num-seqs",
    "4",
];

#[test]
fn a_device_answers_and_its_log_replays() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let log = dir.path("run.log");
    let ask = |server: &Server| {
        let body = json!({ "prompt": words(2, 12), "max_tokens": 8, "n": 2, "seed": 1, "ignore_eos": true });
        server.complete(body)["choices"].clone()
    };
    let fibers = Server::start(&[&[&model[..], "--log", &log], &FIBERS[..]].concat());
    assert!(fibers.card.contains("device: fibers"), "{}", fibers.card);
    let there = ask(&fibers);
    let memory = fibers.get("/v1/memory").json();
    let mut committed = 0;
    for r in memory["regions"].as_array().unwrap() {
        if r["committed_bytes"].is_null() {
            let reserve = r["region"] == "reserve";
            assert!(
                reserve || r["region"] == "driver" || r["region"] == "graphs",
                "{r}"
            );
            assert_eq!(r["high_water_bytes"].is_null(), !reserve, "{r}");
            continue;
        }
        assert_eq!(r["planned_bytes"], r["committed_bytes"], "{r}");
        committed += 1;
    }
    assert!(committed >= 4, "{memory}");
    fibers.signal("-TERM");
    let (status, said) = fibers.ended();
    assert!(status.success(), "{said}");
    let replay = plimsoll(&["simulate", "--replay", &log]);
    assert!(replay.status.success(), "{replay:?}");
    let processors = [&model[..], "--device", "cpu", "--inputs", "f32"];
    assert_eq!(ask(&Server::start(&processors)), there);
}

#[test]
fn a_dry_run_shows_the_map_that_a_device_commits() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let serve = [&["serve", &model, "--dry-run", "--json"], &FIBERS[..]].concat();
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(serve)
        .args(["--threads", "1"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let planned: Value = serde_json::from_slice(&out.stdout).unwrap();
    let server = Server::start(&[&[&model[..]], &FIBERS[..]].concat());
    let memory = server.get("/v1/memory").json();
    let regions = |v: &Value| -> Vec<(Value, Value)> {
        let all = v["regions"].as_array().unwrap().iter();
        all.map(|r| (r["region"].clone(), r["planned_bytes"].clone()))
            .collect()
    };
    assert!(!regions(&planned).is_empty());
    assert_eq!(regions(&planned), regions(&memory));
}
