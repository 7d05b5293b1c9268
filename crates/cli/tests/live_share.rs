//! Near-zero waste, as issue B promises it: while requests wait for memory, live tokens fill the pool.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::process::Command;

use serde_json::Value;

/// The paged run of a workload, in less memory than its rate asks for.
fn kv(workload: &str, block: &str, longest: &str, memory: &str, rate: &str) -> Value {
    let args = [
        "simulate",
        "llama-13b",
        "--max-model-len",
        longest,
        "--kv-memory",
        memory,
        "--rate",
        rate,
        "--requests",
        "400",
        "--servers",
        "paged",
        "--json",
        "--workload",
        workload,
        "--block-size",
        block,
    ];
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .env_remove("PLIMSOLL_GPU")
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    report["runs"][0]["kv"].clone()
}

fn share(kv: &Value, name: &str) -> f64 {
    kv[name].as_f64().unwrap()
}

#[test]
fn live_tokens_fill_the_pool_while_requests_wait_for_memory() {
    for workload in ["sharegpt", "azure-code", "azure-conv"] {
        let kv = kv(workload, "16", "8192", "12GiB", "20");
        let live = share(&kv, "live_share_at_saturation");
        assert!(live >= 0.96, "{workload}: {live}");
        assert!(kv["saturated_steps"].as_u64().unwrap() > 1000, "{workload}");
        // Steps full of prompt tokens make others wait too, with pages to spare.
        assert!(share(&kv, "waiting_s") >= share(&kv, "saturated_s"));
    }
}

#[test]
fn large_blocks_waste_visibly() {
    let live = |block| {
        let kv = kv("alpaca", block, "2048", "3GiB", "40");
        share(&kv, "live_share_at_saturation")
    };
    assert!(live("128") < live("16") - 0.2);
}
