//! `plimsoll simulate --find max-rate`: the answer is a rate that runs again to the same figures, holds, and fails one
//! step above.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod simulating;

use std::process::Command;

use serde_json::Value;
use simulating::{Dir, json, refused_with, run, text, words};

fn find(flags: &str) -> Value {
    json(&words(&format!("--find max-rate {flags}")))
}

fn probe_at<'a>(found: &'a Value, rate: &Value) -> &'a Value {
    let probes = found["probes"].as_array().unwrap();
    probes.iter().find(|p| &p["rate_per_s"] == rate).unwrap()
}

const BASE: &str = "llama-13b --workload synthetic:in=200,out=lognormal(60,0.6) --max-model-len 1k --kv-memory 4GiB";

#[test]
fn the_answer_holds_and_fails_one_step_above() {
    let slo = "--slo ttft=1s,itl=60ms,attain=0.9";
    let report = find(&format!("{BASE} {slo} --requests 300"));
    let found = &report["servers"][0];
    let (rate, fails) = (&found["rate_per_s"], &found["fails_at_per_s"]);
    let (holds_at, fails_at) = (probe_at(found, rate), probe_at(found, fails));
    assert_eq!(
        (&holds_at["kept"], &fails_at["kept"]),
        (&true.into(), &false.into())
    );
    assert_eq!(found["limited_by"], fails_at["limited_by"]);
    let (r, f) = (rate.as_f64().unwrap(), fails.as_f64().unwrap());
    assert!(f > r && f / r < 1.011, "{r} {f}");
    // Both run again as plain simulations.
    for (probe, rate) in [(holds_at, r), (fails_at, f)] {
        let n = &probe["requests"];
        let again = json(&words(&format!(
            "{BASE} {slo} --servers paged --rate {rate} --requests {n}"
        )));
        let latency = &again["runs"][0]["latency"];
        assert_eq!(latency["ttft"]["p99_s"], probe["ttft_p99_s"]);
        assert_eq!(latency["inter_token"]["p99_s"], probe["inter_token_p99_s"]);
    }
    // Away from the threshold a plain run says the same.
    for (rate, attained) in [(0.8 * r, true), (1.2 * f, false)] {
        let n = &fails_at["requests"];
        let plain = json(&words(&format!(
            "{BASE} {slo} --servers paged --rate {rate} --requests {n}"
        )));
        assert_eq!(plain["runs"][0]["goodput"]["attained"], attained, "{rate}");
    }
    // Every probe is long enough.
    let probes = found["probes"].as_array().unwrap();
    assert!(probes.iter().all(|p| p["requests"].as_u64() >= Some(300)));
    assert!(probes.len() < 25);
}

#[test]
fn servers_are_compared_and_the_same_twice() {
    let flags = format!("{BASE} --slo ttft=2s --requests 100 --servers paged,orca-max");
    let report = find(&flags);
    let rate = |i: usize| report["servers"][i]["rate_per_s"].as_f64().unwrap();
    assert!(rate(0) > 1.5 * rate(1), "{} {}", rate(0), rate(1));
    assert_eq!(report["servers"][1]["limited_by"], "ttft");
    assert_eq!(report, find(&format!("{flags} --threads 1")));
    let schema = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["schema", "find"])
        .output()
        .unwrap();
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert!(validator.is_valid(&report));
}

/// Gaps between tokens stay short however many wait, so only the queue shows that this is too fast.
#[test]
fn a_level_without_a_bound_on_waiting_is_limited_by_the_queue() {
    let report = find(&format!("{BASE} --slo itl=10s --requests 100"));
    let found = &report["servers"][0];
    assert_eq!(found["limited_by"], "queue");
    let fails = probe_at(found, &found["fails_at_per_s"]);
    assert_eq!(fails["share"], 1.0);
    assert!(
        fails["wait_growth_s"].as_f64().unwrap() > 0.01 * fails["arrivals_s"].as_f64().unwrap()
    );
}

#[test]
fn what_is_broken_by_a_request_alone_has_no_rate() {
    for (slo, limit) in [("itl=1ms", "itl"), ("ttft=1ms", "ttft")] {
        let out = run(&words(&format!(
            "{BASE} --find max-rate --requests 50 --json --slo {slo}"
        )));
        assert_eq!(out.status.code(), Some(3));
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        let found = &report["servers"][0];
        assert_eq!(
            (&found["rate_per_s"], &found["limited_by"]),
            (&Value::Null, &limit.into())
        );
        assert_eq!(found["probes"].as_array().unwrap().len(), 1);
    }
    let out = run(&words(
        "llama-13b --find max-rate --requests 20 --slo ttft=1s --kv-memory 26MiB",
    ));
    assert_eq!(out.status.code(), Some(3));
    let table = String::from_utf8(out.stdout).unwrap();
    assert!(
        table.contains("paged: no rate keeps it; limited by: refusals"),
        "{table}"
    );
}

#[test]
fn a_trace_is_sent_at_the_rates_of_the_search() {
    let dir = Dir::new();
    // Without arrival times.
    let path = dir.write("trace", "prompt_len,output_len\n100,20\n300,40\n");
    let table = text(&[
        "llama-13b",
        "--find",
        "max-rate",
        "--slo",
        "ttft=1s",
        "--trace",
        &path,
        "--requests",
        "50",
    ]);
    assert!(
        table.contains("A probe has at least 50 requests"),
        "{table}"
    );
    assert!(
        table.contains("Probes of paged:\n  requests / s"),
        "{table}"
    );
}

#[test]
fn searches_that_make_no_sense() {
    for (flags, part) in [
        ("--find max-rate", "--slo"),
        (
            "--find max-rate --slo ttft=1s --requests 10000001",
            "choose `--requests` up to 10,000,000",
        ),
        (
            "--find max-users --slo ttft=1s",
            "possible values: max-rate",
        ),
        (
            "--find max-rate --slo ttft=1s --rate 2",
            "cannot be used with",
        ),
        (
            "--find max-rate --slo ttft=1s --sweep tp=1,2",
            "cannot be used with",
        ),
        (
            "--find max-rate --slo ttft=1s --html x",
            "cannot be used with",
        ),
    ] {
        let stderr = refused_with(&[&["llama-13b"][..], &words(flags)].concat(), 2);
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
}
