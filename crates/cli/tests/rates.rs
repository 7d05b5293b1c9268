//! Rates, beliefs and measured profiles of `plimsoll simulate`: what they change, and what is wrong with bad ones.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod simulating;

use std::process::Command;

use serde_json::{Value, json as object};
use simulating::{Dir, json, refused_with, words};

/// A load that preempts.
const TIGHT: &str = "llama-13b --servers paged --kv-memory 4GiB --requests 60 --workload synthetic:in=600,out=200,rate=8";

fn tight(flags: &str) -> Value {
    json(&words(&format!("{TIGHT} {flags}")))
}

fn cost(report: &Value, name: &str) -> Option<String> {
    let costs = report["setup"]["costs"].as_array().unwrap();
    let found = costs.iter().find(|c| c["name"] == name)?;
    Some(found["value"].as_str().unwrap().to_owned())
}

#[test]
fn rates_change_times_and_beliefs_change_decisions() {
    let plain = tight("");
    let slow = tight("--rates step=50ms,memory=1TB/s");
    assert_eq!(cost(&slow, "step_ns").as_deref(), Some("50,000,000"));
    assert_eq!(
        cost(&slow, "memory_bytes_per_s").as_deref(),
        Some("1,000,000,000,000")
    );
    assert_eq!(cost(&slow, "flops_per_s"), cost(&plain, "flops_per_s"));
    let gap = |r: &Value| {
        r["runs"][0]["latency"]["inter_token"]["p50_s"]
            .as_f64()
            .unwrap()
    };
    assert!(gap(&slow) > gap(&plain) + 0.047);
    // Who knows the truth is told of nothing else.
    assert_eq!(cost(&slow, "believed step_ns"), None);

    // A link believed to be slow is not swapped over, though it is fast; and the other way round.
    let kinds = |r: &Value| {
        let p = &r["runs"][0]["preemptions"];
        (
            p["swap"].as_u64().unwrap(),
            p["recompute"].as_u64().unwrap(),
        )
    };
    let wary = tight("--belief link=1MB/s");
    let rash = tight("--rates link=1GB/s --belief link=1TB/s,transfer=0s");
    assert_eq!(
        cost(&wary, "believed link_bytes_per_s").as_deref(),
        Some("1,000,000")
    );
    assert!(
        kinds(&wary).0 == 0 && kinds(&wary).1 > 0,
        "{:?}",
        kinds(&wary)
    );
    assert!(kinds(&rash).0 > 0, "{:?}", kinds(&rash));
    let words = wary["setup"]["modelled"][2].as_str().unwrap();
    assert!(
        words.ends_with("; the scheduler believes others."),
        "{words}"
    );
}

/// The published rates of the device as a profile.
fn profile(report: &Value) -> Value {
    let rate = |name: &str| -> u64 {
        cost(report, name)
            .unwrap()
            .replace(',', "")
            .parse()
            .unwrap()
    };
    let names = [
        "flops_per_s",
        "memory_bytes_per_s",
        "link_bytes_per_s",
        "transfer_ns",
        "transfers_per_block",
        "step_ns",
        "row_ns",
    ];
    let rates: serde_json::Map<String, Value> = names
        .iter()
        .map(|n| ((*n).to_owned(), rate(n).into()))
        .collect();
    object!({"schema": "plimsoll.profile/1", "device": "a100-80g", "rates": rates})
}

#[test]
fn a_profile_takes_the_place_of_published_rates() {
    let dir = Dir::new();
    let plain = tight("");
    let mut measured = profile(&plain);
    let path = dir.write("profile.json", measured.to_string());
    let same = tight(&format!("--profile {path}"));
    assert_eq!(same["runs"], plain["runs"]);
    let words = same["setup"]["modelled"][2].as_str().unwrap();
    assert!(
        words.starts_with("Rates are measured in ") && words.ends_with("profile.json."),
        "{words}"
    );

    measured["rates"]["step_ns"] = 9_000_000.into();
    let path = dir.write("slower.json", measured.to_string());
    let slower = tight(&format!("--profile {path}"));
    assert_eq!(cost(&slower, "step_ns").as_deref(), Some("9,000,000"));
    // A rate that is given goes before one that was measured.
    let given = tight(&format!("--profile {path} --rates step=3ms"));
    assert_eq!(cost(&given, "step_ns").as_deref(), Some("3,000,000"));

    let schema = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["schema", "profile"])
        .output()
        .unwrap();
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert!(validator.is_valid(&measured));
    measured["rates"]["flops_per_s"] = 0.into();
    assert!(!validator.is_valid(&measured));
}

/// Steps and swaps that take exactly what these rates say, as a profile.
fn timed(flops: f64, memory: f64, step_s: f64) -> Value {
    let weight_bytes = 26_000_000_000_u64;
    let mut steps = Vec::new();
    for tokens in [1_u64, 4, 16, 64, 300, 800, 2048] {
        for rows in [1, 8, 64] {
            for kv_bytes in [1_000_000_u64, 3_000_000_000, 20_000_000_000] {
                let linear = tokens as f64 * 26e9;
                let seconds = step_s
                    + f64::from(rows) * 5e-6
                    + (linear / flops).max(weight_bytes as f64 / memory)
                    + kv_bytes as f64 / memory
                    + 1e9 / flops;
                steps.push(object!({
                    "rows": rows, "linear_flops": tokens * 26_000_000_000, "attention_flops": 1_000_000_000,
                    "kv_bytes": kv_bytes, "seconds": seconds
                }));
            }
        }
    }
    let swap = |blocks: u64, bytes: u64| object!({"blocks": blocks, "bytes": bytes, "seconds": blocks as f64 * 1e-5 + bytes as f64 / 2e10});
    let swaps = [
        swap(1, 1_000_000),
        swap(8, 100_000_000),
        swap(50, 90_000_000),
    ];
    object!({
        "schema": "plimsoll.profile/1", "device": "a100-80g",
        "timed": {"weight_bytes": weight_bytes, "steps": steps, "swaps": swaps}
    })
}

#[test]
fn rates_are_fitted_to_timed_steps() {
    let dir = Dir::new();
    let profile = timed(1.5e14, 1.2e12, 3e-3);
    let path = dir.write("timed.json", profile.to_string());
    let report = tight(&format!("--profile {path}"));
    let near = |name: &str, expected: f64| {
        let rate: f64 = cost(&report, name)
            .unwrap()
            .replace(',', "")
            .parse()
            .unwrap();
        assert!((rate / expected - 1.0).abs() < 0.001, "{name}: {rate}");
    };
    near("flops_per_s", 1.5e14);
    near("memory_bytes_per_s", 1.2e12);
    near("link_bytes_per_s", 2e10);
    near("transfer_ns", 1e4);
    near("step_ns", 3e6);
    near("row_ns", 5e3);
    let words = report["setup"]["modelled"][2].as_str().unwrap();
    assert!(
        words.starts_with("Rates are fitted to 63 steps and 3 swaps timed in "),
        "{words}"
    );
    assert!(words.ends_with(", off by 0.0 % on average."), "{words}");

    let alike: Value = vec![profile["timed"]["steps"][0].clone(); 20].into();
    for (pointer, value, part) in [
        (
            "/timed/steps",
            object!([]),
            "time steps of few and of many rows",
        ),
        ("/timed/steps", alike, "time steps of few and of many rows"),
        (
            "/timed/swaps",
            object!([]),
            "time swaps of few and of many bytes",
        ),
        (
            "/timed/steps/2/seconds",
            0.into(),
            "step 3 took no positive time",
        ),
    ] {
        let mut changed = profile.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        let path = dir.write("bad.json", changed.to_string());
        let stderr = refused_with(&["llama-13b", "--requests", "5", "--profile", &path], 65);
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
}

#[test]
fn profiles_that_are_not() {
    let dir = Dir::new();
    let good = profile(&tight(""));
    let refused = |text: &str, code: i32, part: &str| {
        let path = dir.write("profile.json", text);
        let args = ["llama-13b", "--requests", "5", "--profile", &path];
        let stderr = refused_with(&args, code);
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    };
    let with = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        changed.to_string()
    };
    let whole = good.to_string();
    refused(&whole[..40], 65, "EOF");
    refused("", 65, "EOF");
    refused("\u{1b}[31m", 65, "expected value");
    refused(
        &whole.replacen("\"device\"", "\"machine\"", 1),
        65,
        "unknown field `machine`",
    );
    refused(
        &whole.replacen("\"row_ns\"", "\"rows_ns\"", 1),
        65,
        "unknown field `rows_ns`",
    );
    refused(
        &with("/rates/flops_per_s", 0.into()),
        65,
        "flops_per_s is 0",
    );
    refused(&with("/rates/step_ns", (-1).into()), 65, "invalid value");
    refused(&with("/rates/step_ns", 1.5.into()), 65, "invalid type");
    refused(
        &with("/schema", "plimsoll.profile/9".into()),
        65,
        "not `plimsoll.profile/1`",
    );
    refused(
        &with("/device", "abacus".into()),
        65,
        "is none that is known",
    );
    refused(&with("/device", "h100".into()), 2, "add `--gpu h100");
    for path in ["no-such-profile.json", dir.0.to_str().unwrap()] {
        refused_with(&["llama-13b", "--requests", "5", "--profile", path], 4);
    }
    // A sweep over devices cannot have one profile for all.
    let path = dir.write("profile.json", &whole);
    let args = [
        "llama-13b",
        "--requests",
        "5",
        "--profile",
        &path,
        "--sweep",
        "gpu=h100,h200",
    ];
    refused_with(&args, 2);
}

#[test]
fn beams_branch_as_told() {
    let copied = |drift: &str| {
        let report = json(&words(&format!(
            "llama-13b --servers paged --requests 20 --workload sharegpt:fan=beam(4) --beam-drift {drift}"
        )));
        report["runs"][0]["copied_blocks"].as_u64().unwrap()
    };
    assert!(copied("1") > copied("0"));
}

#[test]
fn rates_that_make_no_sense() {
    for (flags, part) in [
        ("--rates fast", "`fast` is no rate"),
        ("--rates flops=0", "no number of operations"),
        ("--rates link=0", "nothing would ever arrive"),
        ("--belief step=5", "write 1.5s, 50ms or 800us"),
        ("--belief speed=5", "use flops, memory, link"),
        ("--rates row=1us,row=2us", "row is given twice"),
        ("--beam-drift -1", "is no drift"),
        ("--beam-drift NaN", "is no drift"),
    ] {
        let stderr = refused_with(&[&["llama-13b"][..], &words(flags)].concat(), 2);
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
}
