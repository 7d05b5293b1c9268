//! `plimsoll simulate --replicas`: a fleet as users run it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::process::{Command, Output};

use serde_json::Value;

fn run(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg("simulate")
        .args(line.split_whitespace())
        .env_remove("PLIMSOLL_GPU")
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn json(line: &str) -> Value {
    let out = run(&format!("{line} --json"));
    assert!(
        out.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).unwrap()
}

/// More requests than one replica with this pool runs at once.
const CROWD: &str = "llama-13b --workload sharegpt:rate=16 --requests 200 --kv-memory 4GiB";

#[test]
fn one_replica_is_the_server_that_runs_without_the_flag() {
    let plain = json(&format!("{CROWD} --servers paged"));
    assert_eq!(json(&format!("{CROWD} --replicas 1")), plain);
    assert_eq!(
        json(&format!("{CROWD} --replicas 1 --router least-loaded")),
        plain
    );
}

#[test]
fn replicas_share_the_requests_and_have_a_pool_each() {
    let one = json(&format!("{CROWD} --replicas 1"));
    let four = json(&format!("{CROWD} --replicas 4 --tp 2"));
    assert_eq!(four, json(&format!("{CROWD} --dp 4 --tp 2")));
    assert_eq!(
        four["setup"]["device"],
        "8 x a100-80g-sxm (4 replicas of TP 2)"
    );
    // Whole pages of the 4 GiB that each device gives.
    let kv_bytes = |r: &Value| r["setup"]["kv_bytes"].as_u64().unwrap();
    let page_bytes = one["runs"][0]["pool"]["page_bytes"].as_u64().unwrap();
    assert!(kv_bytes(&four).abs_diff(kv_bytes(&one)) < page_bytes);
    assert_eq!(four["runs"].as_array().unwrap().len(), 1);
    let (a, b) = (&one["runs"][0], &four["runs"][0]);
    assert_eq!(b["requests"]["finished"], 200);
    // With TP 2 a page holds a block's half on each device, so the same memory has twice the slots.
    let slots = |r: &Value| r["pool"]["slots"].as_u64().unwrap();
    assert!(slots(b).abs_diff(8 * slots(a)) <= 8 * 16);
    let p99 = |r: &Value| r["latency"]["ttft"]["p99_s"].as_f64().unwrap();
    assert!(p99(b) < p99(a) / 2.0, "{} {}", p99(b), p99(a));
    assert!(
        b["policies"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"] == "router" && p["value"] == "round-robin")
    );
}

#[test]
fn the_router_makes_a_difference_and_repeats() {
    let two = |router: &str| {
        json(&format!("{CROWD} --replicas 2 --router {router}"))["runs"][0]["decision_hash"].clone()
    };
    assert_eq!(two("least-loaded"), two("least-loaded"));
    assert_ne!(two("least-loaded"), two("round-robin"));
}

#[test]
fn replicas_are_swept() {
    let sweep = json(&format!("{CROWD} --sweep replicas=1,2"));
    let ttft: Vec<_> = sweep["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["runs"][0]["latency"]["ttft"]["p99_s"].clone())
        .collect();
    for (i, n) in [1, 2].into_iter().enumerate() {
        let one = json(&format!("{CROWD} --replicas {n}"));
        assert_eq!(ttft[i], one["runs"][0]["latency"]["ttft"]["p99_s"]);
    }
}

#[test]
fn what_replicas_do_not_go_with_is_a_usage_error() {
    for (flags, says) in [
        (
            "--replicas 2 --servers paged,static",
            "--replicas is for the paged server",
        ),
        ("--replicas 2 --log x", "--log records one server"),
        (
            "--sweep replicas=1,2 --servers static",
            "--replicas is for the paged server",
        ),
        ("--replicas 0", "write 1 to 1024"),
        ("--replicas 1025", "write 1 to 1024"),
        ("--router random", "round-robin, least-loaded"),
    ] {
        let out = run(&format!("llama-13b --requests 2 {flags}"));
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{flags}: {text}");
        assert!(text.contains(says), "{flags}: {text}");
    }
}
