//! `plimsoll simulate --sweep`: every point is the run that its flags alone would give, in order, on any number of
//! threads; what cannot run says so; what makes no sense is one clear error.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod simulating;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use simulating::{Dir, command, json, refused_with, run, text, words};

/// A short sweep with these flags.
fn sweep(flags: &str) -> Value {
    json(&words(&format!("llama-13b --requests 30 {flags}")))
}

fn validator() -> jsonschema::Validator {
    let schema = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["schema", "sweep"])
        .output()
        .unwrap();
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

#[test]
fn a_point_is_the_run_that_its_flags_give() {
    let report = sweep(
        "--servers paged,orca-max --slo ttft=1s --sweep rate=2,8 --sweep kv-memory=4GiB,8GiB --sweep prefix-cache=on,off",
    );
    let points = report["points"].as_array().unwrap();
    assert_eq!(points.len(), 8);
    assert_eq!(
        report["swept"][1]["numbers"][0].as_f64(),
        Some((4_u64 << 30) as f64)
    );
    assert_eq!(report["swept"][2]["numbers"], Value::Null);
    // The last name changes fastest.
    let values = |i: usize| -> Vec<&str> {
        let settings = points[i]["settings"].as_array().unwrap();
        settings
            .iter()
            .map(|s| s["value"].as_str().unwrap())
            .collect()
    };
    assert_eq!(values(0), ["2", "4GiB", "on"]);
    assert_eq!(values(1), ["2", "4GiB", "off"]);
    assert_eq!(values(2), ["2", "8GiB", "on"]);
    assert_eq!(values(4), ["8", "4GiB", "on"]);
    let alone = json(&words(
        "llama-13b --requests 30 --servers paged,orca-max --slo ttft=1s --rate 8 --kv-memory 4GiB --no-enable-prefix-caching",
    ));
    for server in 0..2 {
        let (swept, alone) = (&points[5]["runs"][server], &alone["runs"][server]);
        for (name, value) in swept.as_object().unwrap() {
            assert_eq!(value, &alone[name], "{name}");
        }
        assert!(
            alone["decision_hash"] != points[0]["runs"][server]["decision_hash"] || server == 1
        );
    }
    if let Err(e) = validator().validate(&report) {
        panic!("{e}");
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let args = words(
        "llama-13b --requests 30 --json --sweep rate=1,8 --sweep block-size=8,32 --sweep kv-memory=1KiB,4GiB --threads",
    );
    let with = |n: &'static str| text(&[&args[..], &[n]].concat());
    let one = with("1");
    assert_eq!(one, with("4"));
    assert_eq!(one, with("1000000"));
}

#[test]
fn every_name_is_swept() {
    let report = sweep(
        "--servers paged --workload sharegpt:rate=16 --sweep gpu=a100-80g,h100 --sweep tp=1,2 --sweep seed=0,1 --sweep requests=10,20",
    );
    let points = report["points"].as_array().unwrap();
    assert_eq!(points.len(), 16);
    let finished = |i: usize| {
        points[i]["runs"][0]["requests"]["finished"]
            .as_u64()
            .unwrap()
    };
    assert_eq!((finished(0), finished(1)), (10, 20));
    let speed = |i: usize| {
        points[i]["runs"][0]["latency"]["e2e"]["mean_s"]
            .as_f64()
            .unwrap()
    };
    assert!(speed(0) > speed(8), "an h100 is faster");
    assert!(speed(0) > speed(4), "two are faster than one");
    let report = sweep(
        "--servers paged --workload synthetic:in=200,out=200,rate=64 --kv-memory 2GiB --sweep preempt=swap,recompute --sweep swap-space=0,8GiB \
         --sweep admission=optimistic,guaranteed --sweep max-num-seqs=2,64 --sweep max-num-batched-tokens=512,2k --sweep kv-cache-dtype=auto,fp8",
    );
    let points = report["points"].as_array().unwrap();
    assert_eq!(points.len(), 64);
    let swaps = |i: usize| {
        points[i]["runs"][0]["preemptions"]["swap"]
            .as_u64()
            .unwrap()
    };
    let dropped = |i: usize| {
        points[i]["runs"][0]["preemptions"]["recompute"]
            .as_u64()
            .unwrap()
    };
    // By swapping with swap space, with none, and by recomputing.
    assert!(swaps(20) > 0 && swaps(4) == 0 && swaps(52) == 0);
    assert!(dropped(52) > 0);
}

#[test]
fn a_point_without_room_says_why_and_the_others_run() {
    let args =
        words("llama-13b --requests 10 --servers paged --sweep kv-memory=1KiB,4GiB --sweep tp=1,3");
    let report = json(&args);
    let points = report["points"].as_array().unwrap();
    let reason = |i: usize| points[i]["reason"].as_str().unwrap_or_default();
    assert!(
        reason(0).contains("no room for two KV blocks"),
        "{}",
        reason(0)
    );
    assert!(
        reason(3).contains("cannot be split over TP 3"),
        "{}",
        reason(3)
    );
    assert_eq!(points[0]["runs"].as_array().unwrap().len(), 0);
    assert_eq!(points[2]["runs"][0]["requests"]["finished"], 10);
    let table = text(&args);
    assert!(
        table.contains("Cannot run:\n  kv-memory=1KiB, tp=1: "),
        "{table}"
    );

    let none = words("llama-13b --requests 10 --sweep kv-memory=1KiB,2KiB");
    let stderr = refused_with(&none, 3);
    assert!(
        stderr.contains("none of the 2 points of the sweep can run"),
        "{stderr}"
    );
    // Every request of every point is refused.
    let out = run(&words(
        "llama-13b --requests 10 --sweep kv-memory=26MiB,27MiB",
    ));
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("every request was refused"));
}

#[test]
fn a_sweep_is_written_as_table_csv_page_and_charts() {
    let dir = Dir::new();
    let (html, csv, svg) = (
        dir.path("sweep.html"),
        dir.path("sweep.csv"),
        dir.path("charts"),
    );
    let args = words(
        "llama-13b --requests 20 --servers paged,static --sweep rate=1,4 --sweep kv-memory=1KiB,4GiB",
    );
    let table = text(&[&args[..], &["--html", &html, "--csv", &csv, "--svg", &svg]].concat());
    let head = table
        .lines()
        .position(|l| l.starts_with("rate  kv-memory  server"))
        .unwrap();
    assert_eq!(
        words(table.lines().nth(head + 1).unwrap())[..4],
        ["1", "4GiB", "paged", "20"]
    );
    let csv = std::fs::read_to_string(csv).unwrap();
    let fields: Vec<usize> = csv.lines().map(|l| l.split(',').count()).collect();
    // Two points run on two servers, and two cannot.
    assert_eq!(fields.len(), 1 + 4 + 2);
    assert!(csv.starts_with("rate,kv-memory,server,kv_bytes,"));
    assert!(fields[1..].iter().all(|n| *n >= fields[0]), "{csv}");
    let html = std::fs::read_to_string(html).unwrap();
    assert!(html.matches("<svg").count() >= 5 && html.ends_with("</html>\n"));
    assert!(Path::new(&svg).join("sweep-throughput.svg").exists());
}

#[test]
fn a_trace_from_standard_input_is_read_once_for_all_points() {
    let mut child = command(&words(
        "llama-13b --trace - --servers paged --sweep rate=1,2,3 --json",
    ))
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let trace = "arrival_time,prompt_len,output_len\n0,10,20\n1,30,40\n";
    child
        .stdin
        .take()
        .unwrap()
        .write_all(trace.as_bytes())
        .unwrap();
    let out = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    for point in report["points"].as_array().unwrap() {
        assert_eq!(point["runs"][0]["requests"]["finished"], 2);
    }
}

#[test]
fn sweeps_that_make_no_sense() {
    for (flags, part) in [
        ("--sweep rate", "no values"),
        ("--sweep servers=paged", "`servers` cannot be swept"),
        ("--sweep rate=fast", "--rate"),
        ("--sweep rate=0,1", "--rate 0 is no rate"),
        ("--sweep block-size=0", "0 is not in 1..=65536"),
        ("--sweep gpu=h1000,h100", "did you mean h100"),
        ("--sweep rate=1 --sweep rate=2", "names rate twice"),
        ("--sweep rate=1,1", "given twice"),
        ("--sweep rate=1 --log x", "cannot be used with"),
        (
            "--sweep rate=1 --trace no-such-trace.csv",
            "cannot open the trace",
        ),
    ] {
        let args = [&["llama-13b", "--requests", "20"][..], &words(flags)].concat();
        let code = if flags.contains("trace") { 4 } else { 2 };
        let stderr = refused_with(&args, code);
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
    let seeds: Vec<String> = (0..101).map(|n| n.to_string()).collect();
    let (a, b) = (
        format!("seed={}", seeds.join(",")),
        format!("tp={}", seeds[1..].join(",")),
    );
    let stderr = refused_with(&["llama-13b", "--sweep", &a, "--sweep", &b], 2);
    assert!(stderr.contains("more than 10,000 points"), "{stderr}");
}
