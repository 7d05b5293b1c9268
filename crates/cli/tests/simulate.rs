//! `plimsoll simulate` as users meet it: what it prints and writes, the same twice, its log replayed, and one
//! clear error with a next step for every bad trace, log, flag and path (group P of the reliability groups).

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod simulating;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use simulating::{Dir, command, json, refused, refused_with, run, text, words};

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
const LENGTHS: &str = "arrival_time,prompt_len,output_len";

/// A trace of these bytes that is refused, saying `part`.
fn refused_trace(bytes: impl AsRef<[u8]>, code: i32, part: &str) {
    let dir = Dir::new();
    let path = dir.write("trace", bytes);
    for servers in ["paged", "static", "paged,orca-max"] {
        let stderr = refused_with(&["llama-13b", "--trace", &path, "--servers", servers], code);
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
}

/// A trace with these bytes and this many requests.
fn finishes(bytes: impl AsRef<[u8]>, flags: &str, requests: u64) {
    let dir = Dir::new();
    let path = dir.write("trace", bytes);
    let args = [
        &["llama-13b", "--servers", "paged,orca-max", "--trace", &path][..],
        &words(flags),
    ]
    .concat();
    for run in json(&args)["runs"].as_array().unwrap() {
        assert_eq!(run["requests"]["finished"], requests, "{}", run["label"]);
    }
}

#[test]
fn a_user_runs_thirteen_billion_on_an_a100() {
    let table = text(&["llama-13b", "--gpu", "a100-80g"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "llama-13b on a100-80g-sxm");
    assert!(
        lines[1].starts_with("2,000 requests of azure-conv, 5.52 per second; prompts of "),
        "{}",
        lines[1]
    );
    assert_eq!(
        words(lines[5]),
        ["paged", "orca-max", "orca-pow2", "orca-oracle", "static"]
    );
    for row in ["requests finished", "output tokens / s", "first token, p99"] {
        assert!(table.contains(row), "no {row} in {table}");
    }
    assert!(lines.iter().all(|l| l.chars().count() <= 110), "{table}");
}

#[test]
fn every_kind_of_cache_gives_json_that_its_schema_allows() {
    let schema = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["schema", "simulate"])
        .output()
        .unwrap();
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    // Full attention, windows, windows with sinks, latent, states.
    for model in [
        "llama-13b",
        "gemma-3-4b",
        "gpt-oss-20b",
        "deepseek-v2-lite",
        "qwen3-next-80b-a3b",
    ] {
        let report = json(&words(&format!(
            "{model} --requests 20 --kv-memory 8GiB --max-model-len 8k"
        )));
        if let Err(e) = validator.validate(&report) {
            panic!("{model}: {e}");
        }
        let runs = report["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 5);
        for run in runs {
            assert_eq!(run["requests"]["finished"], 20, "{model}");
        }
    }
    assert!(validator.validate(&serde_json::json!({"runs": 1})).is_err());
}

/// Slots were pages times the slots of a page, which is a token of one group of layers only.
#[test]
fn a_contiguous_token_takes_room_in_every_layer() {
    let report = json(&words(
        "gpt-oss-20b --requests 5 --kv-memory 8GiB --servers orca-max",
    ));
    // 24 layers of 8 heads of 64 numbers, keys and values, 2 bytes each: 48 KiB. A page has 16 tokens of half
    // of the layers, and the pool whole pages.
    let page = 16 * (24 << 10);
    let pool = (8_u64 << 30) / page * page;
    assert_eq!(report["runs"][0]["pool"]["slots"], pool / (48 << 10));
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_gives_others() {
    let args = ["llama-13b", "--requests", "60", "--json", "--seed"];
    let with = |seed: &str| text(&[&args[..], &[seed]].concat());
    assert_eq!(with("7"), with("7"));
    assert_ne!(with("7"), with("8"));
}

#[test]
fn a_server_is_run_once_however_often_it_is_named() {
    let report = json(&words(
        "llama-13b --requests 5 --servers static,paged,static,paged",
    ));
    let labels: Vec<&Value> = report["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["label"])
        .collect();
    assert_eq!(labels, ["static", "paged"]);
}

#[test]
fn pages_charts_series_and_logs_are_written() {
    let dir = Dir::new();
    let (html, csv, svg, log) = (
        dir.path("report.html"),
        dir.path("series.csv"),
        dir.path("new/charts"),
        dir.path("run.jsonl"),
    );
    text(&[
        "llama-13b",
        "--requests",
        "30",
        "--html",
        &html,
        "--csv",
        &csv,
        "--svg",
        &svg,
        "--log",
        &log,
    ]);
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    assert!(read(&html).starts_with("<!DOCTYPE html>") && read(&html).ends_with("</html>\n"));
    assert!(read(&csv).lines().count() > 10);
    assert!(read(&log).ends_with("}}\n"));
    let charts: Vec<_> = Path::new(&svg).read_dir().unwrap().collect();
    assert!(charts.len() >= 5, "{charts:?}");
    for chart in charts {
        let text = std::fs::read_to_string(chart.unwrap().path()).unwrap();
        assert!(text.contains("<svg") && text.contains("</svg>"));
    }
}

#[test]
fn a_log_replays_and_any_change_to_it_is_noticed() {
    let dir = Dir::new();
    let log = dir.path("run.jsonl");
    text(&[
        "llama-13b",
        "--requests",
        "20",
        "--workload",
        "sharegpt:fan=parallel(4)",
        "--log",
        &log,
        "--servers",
        "paged",
    ]);
    let replayed = text(&["--replay", &log]);
    // The prompt's blocks, of which three of four tables are saved.
    let saved = replayed
        .lines()
        .find_map(|l| l.strip_prefix("sharing saves "));
    let saved = saved.and_then(|s| s.split_once(" % of the blocks in tables"));
    let saved: f64 = saved.expect(&replayed).0.parse().unwrap();
    assert!(saved > 5.0 && saved < 75.0, "{replayed}");
    assert!(
        replayed.ends_with("every decision is the same\n"),
        "{replayed}"
    );

    let whole = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let refused = |name: &str, text: &str, part: &str| {
        let path = dir.write(name, text);
        let stderr = refused_with(&["--replay", &path], 65);
        assert!(stderr.contains(part), "{name}: no `{part}` in: {stderr}");
    };
    // The first token of the first prompt, and of the first answer.
    for (name, before) in [("prompt", "\"prompt\":["), ("answer", "\"rows\":[[[")] {
        let at = whole.find(before).unwrap() + before.len();
        let end = at + whole[at..].find(',').unwrap();
        let token: u32 = whole[at..end].parse().unwrap();
        let flipped = format!("{}{}{}", &whole[..at], token ^ 1, &whole[end..]);
        refused(name, &flipped, "the log was changed");
    }
    let without = |n: usize| {
        let kept = lines.iter().enumerate().filter(|(i, _)| *i != n);
        kept.map(|(_, l)| format!("{l}\n")).collect::<String>()
    };
    refused(
        "a line less",
        &without(lines.len() / 2),
        "the log was changed",
    );
    refused("no end", &without(lines.len() - 1), "it was cut off");
    refused("half", &whole[..whole.len() / 2], "it was cut off");
    refused("first bytes", &whole[..60], "line 1 of the log");
    refused("empty", "", "it was cut off");
    refused("text", "hello\n", "line 1 of the log");
    refused(
        "later version",
        &whole.replacen("\"plimsoll_log\":1", "\"plimsoll_log\":9", 1),
        "version 9",
    );
    refused_with(&["--replay", &dir.path("none")], 4);
    refused_with(&["--replay", dir.0.to_str().unwrap()], 4);
    refused_with(&["--replay", &log, "--rate", "3"], 2);
    refused_with(&["llama-13b", "--replay", &log], 2);
}

#[test]
fn traces_that_are_read() {
    let row = "2023-11-16 18:15:46.6805900,374,44";
    finishes(format!("{AZURE}\n{row}\n"), "", 1);
    // The last line need not end.
    finishes(format!("{AZURE}\n{row}"), "", 1);
    finishes(format!("\u{feff}{AZURE}\r\n{row}\r\n{row}\r\n"), "", 2);
    finishes(format!("{LENGTHS}\n\"0.5\",\"10\",\"20\"\n"), "", 1);
    // Late by less than a second.
    finishes(format!("{LENGTHS}\n1,10,20\n0.5,10,20\n"), "", 2);
    finishes("prompt_len,output_len\n10,20\n30,40\n", "--rate 2", 2);
}

#[test]
fn a_trace_is_repeated_up_to_the_requests_asked_for() {
    let mut trace = format!("{LENGTHS}\n");
    for i in 0..1000 {
        trace.push_str(&format!(
            "{},{},{}\n",
            f64::from(i) / 50.0,
            20 + i % 60,
            1 + i % 7
        ));
    }
    finishes(&trace, "--requests 5000", 5000);
    finishes(&trace, "", 1000);
    finishes(&trace, "--requests 10", 10);
}

#[test]
fn a_trace_comes_from_standard_input() {
    let trace = format!("{LENGTHS}\n0,10,20\n1,30,40\n");
    let piped = |servers: &str, bytes: &str| {
        let mut child = command(&["llama-13b", "--trace", "-", "--servers", servers])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(bytes.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    // Streamed to one server, held for several.
    for servers in ["paged", "paged,orca-max,static"] {
        let out = piped(servers, &trace);
        assert!(out.status.success(), "{out:?}");
        let table = String::from_utf8(out.stdout).unwrap();
        assert!(table.contains("2 requests of standard input"), "{table}");
        let out = piped(servers, "");
        assert_eq!(out.status.code(), Some(65), "{out:?}");
        assert!(
            String::from_utf8_lossy(&out.stderr)
                .contains("standard input: the trace holds no request")
        );
    }
}

#[test]
fn traces_that_are_not() {
    refused_trace("", 65, "holds no request");
    refused_trace(format!("{AZURE}\n"), 65, "holds no request");
    refused_trace(
        format!("{LENGTHS}\n600,10,20\n0,10,20\n"),
        65,
        "line 3: it arrives 600 s before",
    );
    refused_trace(
        format!("{LENGTHS}\nNaN,10,20\n"),
        65,
        "line 2: arrival time is `NaN`",
    );
    refused_trace(
        format!("{LENGTHS}\ninf,10,20\n"),
        65,
        "line 2: arrival time",
    );
    refused_trace(
        format!("{LENGTHS}\n-1,10,20\n"),
        65,
        "line 2: arrival time is `-1`",
    );
    refused_trace(
        format!("{LENGTHS}\n0,-10,20\n"),
        65,
        "line 2: prompt tokens is `-10`",
    );
    refused_trace(format!("{LENGTHS}\n0,10,1e30\n"), 65, "line 2: ");
    refused_trace("name,price\nx,1\n", 65, "no known trace");
    refused_trace("Timestamp,prompt_len\n0,1\n", 65, "output_len");
    refused_trace(
        format!("{AZURE}\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.9"),
        65,
        "line 3: ",
    );
    refused_trace(
        r#"{"timestamp": 27482, "input_length": 6955, "outp"#,
        65,
        "cut short",
    );
    refused_trace("prompt_len,output_len\n10,20\n", 2, "no arrival times");
    refused_trace([0_u8; 4096], 65, "no known trace");
    refused_trace([0xff, 0xfe, 0x1b, 0x5b], 65, "no known trace");
    refused_trace("a\u{1b}[31mb,c\n1,2\n", 65, "no known trace");
    refused_with(
        &[
            "llama-13b",
            "--trace",
            std::env::temp_dir().to_str().unwrap(),
        ],
        4,
    );
    refused_with(&["llama-13b", "--trace", "no-such-trace.csv"], 4);
    refused(
        "--trace x.csv --workload sharegpt",
        2,
        "cannot be used with",
    );
}

/// The run ended with requests in the pool, and debug builds stopped at the check that every table is given
/// back.
#[test]
fn a_bad_row_in_the_middle_of_a_trace_is_an_error_and_no_panic() {
    let mut trace = format!("{LENGTHS}\n");
    for i in 0..40 {
        trace.push_str(&format!("{},100,300\n", f64::from(i) / 10.0));
    }
    trace.push_str("5,x,1\n");
    refused_trace(trace, 65, "line 42: prompt tokens is `x`");
}

#[test]
fn flags_that_make_no_sense() {
    for (flags, part) in [
        ("--rate 0", "--rate 0 is no rate"),
        ("--rate NaN", "--rate NaN is no rate"),
        ("--rate inf", "--rate inf is no rate"),
        ("--rate -1", "--rate -1 is no rate"),
        ("--rate 1e-300", "raise the rate"),
        ("--rate fast", "--rate"),
        ("--block-size 0", "--block-size"),
        ("--block-size 65537", "--block-size"),
        ("--block-size -1", "--block-size"),
        ("--tp 3", "40 attention heads cannot be split over TP 3"),
        ("--tp 0", "--tp"),
        ("--gpu h1000", "did you mean h100"),
        ("--gpu banana", "`plimsoll devices` lists them"),
        ("--servers=", "--servers"),
        ("--servers vllm", "possible values: paged"),
        ("--servers static --log x", "--log records the paged run"),
        ("--max-num-seqs 0", "--max-num-seqs"),
        ("--max-num-batched-tokens 0", "--max-num-batched-tokens"),
        ("--max-model-len 0", "--max-model-len"),
        ("--max-model-len 1", "from 2 to 16,777,215"),
        ("--max-model-len 4294967296", "from 2 to 16,777,215"),
        ("--max-model-len 10000000000", "out of range"),
        ("--kv-memory 900TiB", "blocks are too many"),
        ("--kv-memory=-1GiB", "--kv-memory"),
        ("--kv-memory 99999999TiB", "out of range"),
        ("--kv-cache-dtype fp8_ds_mla", "a format of vLLM's kernels"),
        ("--seed -1", "--seed"),
        ("--threads 0", "--threads"),
        ("--slo 1s", "`1s` is no bound"),
        ("--slo attain=0.9", "no bound"),
        ("--slo ttft=1", "write 1.5s, 50ms or 800us"),
        ("--slo e2e=1s", "use ttft, itl (or tpot) and attain"),
        ("--workload sharegtp", "use sharegpt, alpaca"),
        ("--workload sharegpt:rate=0", "must be above 0"),
        ("--workload synthetic:in=0,out=1", "in: 0 to 0 tokens"),
        ("--workload sharegpt:fan=parallel(0)", "at least 1"),
    ] {
        refused(flags, 2, part);
    }
    refused_with(&[], 2);
    let latents = "deepseek-v3 --gpu h200 --tp 8 --kv-cache-dtype int8";
    let stderr = refused_with(&words(latents), 2);
    assert!(stderr.contains("use bf16, f16, f32 or fp8"), "{stderr}");
    refused_with(&["llama-13b", "--requests", "0"], 2);
    refused_with(&["no-such-model-anywhere", "--offline"], 4);
}

#[test]
fn what_does_not_fit_is_code_3() {
    refused("--kv-memory 1KiB", 3, "--kv-memory 1.0 KiB has no room");
    refused("--kv-memory 0", 3, "no room for two KV blocks");
    refused("--max-num-seqs 1000000", 3, "1,000,000 sequences");
    let stderr = refused_with(&["deepseek-v3", "--gpu", "a100-80g"], 3);
    assert!(stderr.contains("a higher `--tp`"), "{stderr}");
    // One page is the null page, so one alone carries nothing.
    refused("--kv-memory 13MiB", 3, "no room for two KV blocks");
    // A pool that no request fits in: the report is printed, and says so.
    for flags in ["--kv-memory 26MiB", "--workload sharegpt:fan=parallel(300)"] {
        let args = [&["llama-13b", "--requests", "20"][..], &words(flags)].concat();
        let out = run(&args);
        assert_eq!(out.status.code(), Some(3), "{flags}: {out:?}");
        let table = String::from_utf8(out.stdout).unwrap();
        assert!(table.contains("note: every request was refused"), "{table}");
    }
}

#[test]
fn extremes_that_run() {
    for flags in [
        "--block-size 65536 --kv-memory 120GiB",
        "--block-size 1",
        "--block-size 7",
        "--swap-space 0",
        "--swap-space 0 --preempt swap --kv-memory 2GiB",
        "--swap-space 99999TiB",
        "--preempt swap --kv-memory 2GiB",
        "--preempt recompute --kv-memory 2GiB",
        "--admission guaranteed --kv-memory 2GiB",
        "--max-num-seqs 1",
        "--max-num-batched-tokens 1",
        "--max-num-batched-tokens 1 --max-num-seqs 1",
        "--max-model-len 2",
        "--rate 1e300",
        "--rate 0.000001",
        "--tp 8",
        "--kv-cache-dtype fp8",
        "--seed 18446744073709551615",
        "--no-enable-prefix-caching",
        "--workload sharegpt:fan=beam(4)",
        "--workload sharegpt:fan=parallel(4),prefix=shared(2,100),tenants=weights(3,1:-1)",
    ] {
        let args = [
            &[
                "llama-13b",
                "--requests",
                "20",
                "--servers",
                "paged,orca-oracle",
            ][..],
            &words(flags),
        ]
        .concat();
        for run in json(&args)["runs"].as_array().unwrap() {
            assert_eq!(run["requests"]["finished"], 20, "{flags}: {}", run["label"]);
        }
    }
}

#[test]
fn outputs_that_cannot_be_written_are_told_before_the_run() {
    let dir = Dir::new();
    let file = dir.write("file", "x");
    for flag in ["--html", "--csv", "--log"] {
        let path = dir.path("none/out");
        // A run that would take minutes.
        let args = ["llama-13b", "--requests", "1000000", flag, &path];
        let stderr = refused_with(&args, 1);
        assert!(stderr.contains("cannot write"), "{stderr}");
        let folder = dir.0.to_str().unwrap();
        refused_with(&["llama-13b", "--requests", "5", flag, folder], 1);
    }
    refused_with(&["llama-13b", "--requests", "5", "--svg", &file], 1);
}

#[test]
fn errors_are_objects_where_json_was_asked_for() {
    let out = run(&["llama-13b", "--gpu", "h1000", "--json"]);
    assert_eq!(out.status.code(), Some(2));
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["error"]["code"], "E-DEVICE-001");
    assert!(out.stderr.is_empty());
}

#[test]
fn a_run_holds_no_more_than_the_pool_of_the_plan() {
    // A load that fills the pool. One page of it is the null page, which nobody holds.
    let report = json(&words(
        "llama-13b --workload sharegpt:rate=16 --requests 400 --kv-memory 4GiB --servers paged",
    ));
    let run = &report["runs"][0];
    let pages = run["pool"]["pages"].as_u64().unwrap();
    let page = run["pool"]["page_bytes"].as_u64().unwrap();
    assert!(pages * page <= 4 << 30);
    assert!((pages + 1) * page > 4 << 30);
    assert_eq!(run["kv"]["high_water_pages"].as_u64(), Some(pages - 1));
}
