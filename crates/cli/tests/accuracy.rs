//! `plimsoll accuracy`: what it reads, that predictions see no figure, and what it refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn accuracy(records: &Path, extra: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg("accuracy")
        .arg(records)
        .arg("--configs")
        .arg(data("configs.jsonl"))
        .args(extra)
        .output()
        .expect("the program runs")
}

fn json(records: &Path, extra: &[&str]) -> Value {
    let mut args = vec!["--json"];
    args.extend(extra);
    let out = accuracy(records, &args);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).expect("JSON on stdout")
}

/// A file of its own in the test's temporary folder.
fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("a writable folder");
    path
}

/// Fields of a record that were measured, or say something about it. A card's total, a file's size and what was free
/// before anything was loaded are facts of the start.
const MEASURED: &[&str] = &[
    "weights_gib_per_gpu",
    "activation_peak_gib",
    "non_torch_gib",
    "cuda_graph_gib",
    "kv_available_gib",
    "kv_tokens",
    "gpu_blocks",
    "cpu_blocks",
    "max_concurrency",
    "weights_buffer_mib",
    "kv_buffer_mib",
    "kv_buffer_mib_by_device",
    "kv_detail",
    "compute_buffer_mib",
    "compute_buffer_mib_by_device",
    "model_params",
    "source",
    "source_kind",
];

/// What a remark says of the start: free memory before or after loading, a cap by flag.
fn conditions(notes: &str) -> String {
    let mut kept = Vec::new();
    for marker in [" GB before load", " GB after load"] {
        if let Some(at) = notes.find(marker) {
            let from = notes[..at].rfind(' ').map_or(0, |i| i + 1);
            kept.push(format!("{}{marker}", &notes[from..at]));
        }
    }
    if let Some(at) = notes.find("max_total_tokens capped at ") {
        let rest = &notes[at..];
        kept.push(rest.split(';').next().unwrap_or(rest).to_owned());
    }
    kept.join("; ")
}

/// Only what was predicted, record by record.
fn predictions(report: &Value) -> String {
    let mut out = String::new();
    for r in report["records"].as_array().expect("records") {
        for (term, t) in r["terms"].as_object().expect("terms") {
            for key in ["predicted", "low", "high", "kind", "unpredicted"] {
                out.push_str(&format!("{} {term} {key} {}\n", r["id"], t[key]));
            }
        }
        out.push_str(&format!(
            "{} {} {}\n",
            r["id"], r["assumed"], r["predicted_with"]
        ));
    }
    out
}

#[test]
fn predictions_see_no_figure() {
    let whole = data("measurements.jsonl");
    let text = std::fs::read_to_string(&whole).expect("test data");
    let stripped: String = text
        .lines()
        .map(|l| {
            let mut v: Value = serde_json::from_str(l).expect("test data");
            let map = v.as_object_mut().expect("an object");
            map.retain(|k, _| !MEASURED.contains(&k.as_str()));
            if let Some(n) = map.get("notes").and_then(Value::as_str).map(conditions) {
                map.insert("notes".to_owned(), Value::String(n));
            }
            format!("{v}\n")
        })
        .collect();
    let bare = file("stripped.jsonl", &stripped);
    let (a, b) = (json(&whole, &[]), json(&bare, &[]));
    let (a, b) = (predictions(&a), predictions(&b));
    assert!(a.contains("\"predicted\"") || a.contains(" predicted "));
    // Figures that an engine does not have appear only where they were reported.
    let engine_terms = |s: &str| {
        s.lines()
            .filter(|l| !l.contains("not a figure of"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(engine_terms(&a), engine_terms(&b));
    assert!(b.len() > 1000);
}

#[test]
fn every_record_is_judged_or_listed() {
    let r = json(&data("measurements.jsonl"), &[]);
    let records = r["records"].as_array().expect("records");
    assert_eq!(records.len(), 24);
    for (term, m) in r["terms"].as_object().expect("terms") {
        let reported = records
            .iter()
            .filter(|x| x["terms"][term]["reported"].is_number())
            .count() as u64;
        let n = m["n"].as_u64().expect("n");
        let none = m["unpredicted"].as_u64().expect("unpredicted");
        let bounds = m["bounds"].as_u64().expect("bounds");
        assert_eq!(n + none + bounds, reported, "{term}");
        let by: u64 = r["by_engine"]
            .as_object()
            .expect("by_engine")
            .values()
            .map(|e| e[term]["n"].as_u64().expect("n"))
            .sum();
        assert_eq!(by, n, "{term}");
    }
    for x in records {
        for (term, t) in x["terms"].as_object().expect("terms") {
            let told = t["predicted"].is_number() || t["unpredicted"].is_string();
            assert!(told, "{} {term}", x["id"]);
        }
    }
}

/// What cannot be known is listed with its reason.
#[test]
fn what_a_report_leaves_out_is_the_reason_of_what_is_not_predicted() {
    let head =
        r#""engine":"vllm","engine_version":"v0.19.0","model":"Qwen/Qwen3-8B","gpu_count":1"#;
    let text = format!(
        "{{\"id\":\"cardless\",{head},\"kv_tokens\":1000}}\n\
         {{\"id\":\"packed\",{head},\"gpu\":\"H100\",\"quantization\":\"quip\",\"weights_gib_per_gpu\":4}}\n\
         {{\"id\":\"small\",{head},\"gpu\":\"RTX 4060 Ti 16GB\",\"kv_tokens\":1000}}\n\
         {{\"id\":\"smaller\",{head},\"gpu\":\"RTX 3060 12GB\",\"kv_tokens\":1000}}\n"
    );
    let r = json(&file("left-out.jsonl", &text), &[]);
    for (i, (term, reason)) in [
        ("kv_tokens", "no card is named"),
        ("weights", "quip"),
        ("kv_tokens", "it would not start"),
        ("kv_tokens", "no weight format is given"),
    ]
    .into_iter()
    .enumerate()
    {
        let why = r["records"][i]["terms"][term]["unpredicted"].as_str();
        assert!(why.is_some_and(|w| w.contains(reason)), "{reason}: {why:?}");
    }
}

/// A card that is described and not named gives bounds over those that it can be.
#[test]
fn a_class_of_cards_bounds_the_figures() {
    let head = r#""engine":"vllm","engine_version":"v0.19.0","model":"Qwen/Qwen3-8B","gpu_count":1,"kv_available_gib":11.0"#;
    let text = ["compute capability < 8 card", "24GB-class GPU", "RTX 4090"]
        .map(|gpu| format!("{{\"id\":\"{gpu}\",{head},\"gpu\":\"{gpu}\"}}\n"));
    let r = json(&file("classes.jsonl", &text.concat()), &[]);
    let pool = |i: usize, key: &str| {
        let pool = &r["records"][i]["terms"]["kv_pool"];
        pool[key].as_f64().unwrap_or_else(|| panic!("{pool}"))
    };
    let kind = |i: usize| r["records"][i]["terms"]["kv_pool"]["kind"].clone();
    assert_eq!(
        [kind(0), kind(1), kind(2)],
        ["bound", "bound", "calibrated"]
    );
    // Those of 11 and 16 GB would not start; that of 48 GB has most.
    assert!(pool(0, "low") > 0.0 && pool(0, "high") > 25.0);
    assert!(pool(1, "low") <= pool(2, "predicted") && pool(2, "predicted") <= pool(1, "high"));
    assert!(pool(1, "high") < 9.0);
}

/// A report that names no release is not judged by one: its figures are bounds that span several.
#[test]
fn what_a_report_leaves_open_is_a_bound() {
    let r = json(&data("measurements.jsonl"), &[]);
    let records = r["records"].as_array().expect("records");
    let of = |id: &str| records.iter().find(|x| x["id"] == id).expect("a record");
    let open = of("gh-60408716987-qwen3-06b-h100-u95");
    assert_eq!(open["terms"]["kv_pool"]["kind"], "bound");
    assert!(open["terms"]["weights"]["kind"] != "bound");
    let assumed = open["assumed"].to_string();
    assert!(assumed.contains("any of"), "{assumed}");
    // Its share is given, and what was free before loading is known.
    let sglang = of("gh-55068335887-sglang-qwen25-05b");
    assert!(sglang["terms"]["weights"]["inside"] == true, "{sglang}");
}

#[test]
fn failed_starts_are_judged_apart() {
    let r = json(&data("measurements.jsonl"), &[]);
    let starts = r["starts"]["records"].as_array().expect("starts");
    let of = |id: &str| starts.iter().find(|s| s["id"] == id).cloned();
    let failed = of("llmd-llama33-70b-fp8-tp1").expect("a negative budget is a failed start");
    assert_eq!(failed["reported"], "does not fit");
    assert_eq!(failed["predicted"], "does not fit");
    let other = of("jgchn-openai-gpt-oss-20b-tp1pp1dp1-8192-failed").expect("marked failed");
    assert_eq!(other["reported"], "fits");
}

#[test]
fn old_and_unnumbered_versions_are_kept_out_and_listed() {
    let r = json(&data("measurements.jsonl"), &["--min-version", "0.17"]);
    let excluded: Vec<&str> = r["excluded"]
        .as_array()
        .expect("excluded")
        .iter()
        .filter_map(|e| e["id"].as_str())
        .collect();
    assert!(excluded.contains(&"llmd-llama31-8b-tp1"), "{excluded:?}");
    assert!(
        excluded.contains(&"gh-67179877961-qwen3-8b-4090"),
        "{excluded:?}"
    );
    assert!(!excluded.contains(&"gh-55068335887-sglang-qwen25-05b"));
    let all = r["records"].as_array().expect("records").len() + excluded.len();
    assert_eq!(all, 24);
}

#[test]
fn bad_lines_are_named() {
    for (name, text, says) in [
        (
            "broken.jsonl",
            "{\"engine\":\"vllm\",\"model\":\"m\"}\n\n{\"engine\":",
            "line 3",
        ),
        ("array.jsonl", "[1,2]\n", "line 1"),
        (
            "typed.jsonl",
            "{\"engine\":\"vllm\",\"model\":\"m\",\"kv_tokens\":\"many\"}",
            "kv_tokens",
        ),
        ("nomodel.jsonl", "{\"engine\":\"vllm\"}", "model"),
    ] {
        let out = accuracy(&file(name, text), &[]);
        assert_eq!(out.status.code(), Some(65), "{name}");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(said.contains(says) && said.contains(name), "{said}");
        assert!(out.stdout.is_empty());
    }
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("binary.jsonl");
    std::fs::write(&binary, [0xff, 0xfe, 0x00, b'\n']).expect("a writable folder");
    assert_eq!(accuracy(&binary, &[]).status.code(), Some(65));
    assert_eq!(
        accuracy(Path::new("/nonexistent.jsonl"), &[]).status.code(),
        Some(4)
    );
}

#[test]
fn an_empty_file_gives_empty_metrics() {
    let r = json(&file("empty.jsonl", "\n"), &[]);
    assert_eq!(r["terms"]["weights"]["n"], 0);
    assert!(r["terms"]["weights"]["mean_abs_pct"].is_null());
}

#[test]
fn the_table_lists_reasons() {
    // A model that nobody knows, beside those that are.
    let known = std::fs::read_to_string(data("measurements.jsonl")).expect("records");
    let unknown = r#"{"id":"u","engine":"vllm","engine_version":"0.19.0","model":"nobody/none","weights_gib_per_gpu":1.0}"#;
    let out = accuracy(
        &file("reasons.jsonl", &format!("{known}\n{unknown}\n")),
        &[],
    );
    assert!(out.status.success());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    for part in [
        "weights",
        "kv_tokens",
        "not predicted:",
        "sglang",
        "starts:",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn constants_are_listed() {
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["accuracy", "--constants", "--json"])
        .output()
        .expect("the program runs");
    assert!(out.status.success());
    let v: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert!(v["constants"].is_array());
    // With reports at hand, each constant is judged on those that show its term.
    let v = json(&data("measurements.jsonl"), &["--constants"]);
    for c in v["constants"].as_array().expect("constants") {
        let records = c["records"].as_array().expect("records");
        assert_eq!(
            records.is_empty(),
            c["in_sample_error_pct"].is_null(),
            "{c}"
        );
    }
}

/// SGLang's tokens follow from its share, what was free and the weights: none may be off by more than 3 %.
#[test]
fn sglangs_tokens_are_within_three_percent() {
    let r = json(&data("measurements.jsonl"), &[]);
    let tokens = &r["by_engine"]["sglang"]["kv_tokens"];
    assert_eq!(tokens["n"], 4, "{tokens}");
    let worst = tokens["worst"]["error_pct"].as_f64();
    assert!(worst.is_some_and(|e| e.abs() <= 3.0), "{tokens}");
    // Loading is seen from the driver: a few MiB of segments and modules are not counted one by one.
    let weights = &r["by_engine"]["sglang"]["weights"];
    assert_eq!(weights["interval_coverage_pct"], 100.0, "{weights}");
}

#[test]
fn the_committed_reports_are_predicted_within_the_bars() {
    let r = json(&data("measurements.jsonl"), &["--min-version", "0.17"]);
    // Mean absolute percentages that a release must keep, and the fewest reports behind each.
    for (term, bar, least) in [
        ("weights", 0.5, 8),
        ("activation", 2.0, 7),
        ("kv_pool", 1.5, 8),
        ("kv_tokens", 2.0, 8),
        ("max_concurrency", 2.0, 8),
        ("kv_buffer", 0.0, 2),
    ] {
        // SGLang's weights are the driver's figure, which has a test of its own.
        let of = match term {
            "kv_buffer" => &r["terms"],
            _ => &r["by_engine"]["vllm"],
        };
        let t = &of[term];
        assert!(t["n"].as_u64().is_some_and(|n| n >= least), "{term}: {t}");
        let mean = t["mean_abs_pct"].as_f64().expect("a figure");
        assert!(
            mean <= bar + 0.005,
            "{term}: {mean} % on average, above {bar} %"
        );
    }
}
