//! `plimsoll compare`: logs as engines print them, with noise, failures and hostile bytes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn log(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/logs")
        .join(name)
}

fn compare(path: &Path, extra: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg("compare")
        .arg(path)
        .args(extra)
        .output()
        .expect("the program runs")
}

fn json(path: &Path, extra: &[&str]) -> Value {
    let mut args = vec!["--json"];
    args.extend(extra);
    let out = compare(path, &args);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    serde_json::from_slice(&out.stdout).expect("JSON on stdout")
}

fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, bytes).expect("a writable folder");
    path
}

fn reported(v: &Value, term: &str) -> Option<f64> {
    v["terms"][term]["reported"].as_f64()
}

fn flags_of_advice(v: &Value) -> Vec<String> {
    v["advice"]
        .as_array()
        .expect("advice")
        .iter()
        .filter_map(|a| a["flag"].as_str().map(str::to_owned))
        .collect()
}

/// Its share and what was free are printed, so neither release nor card is needed.
#[test]
fn an_sglang_log_needs_nothing_else() {
    let v = json(&log("sglang-0.4-qwen3-0.6b.log"), &[]);
    assert_eq!(v["engine"], "sglang");
    assert_eq!(v["flags"]["mem_fraction_static"], "0.818");
    assert_eq!(v["flags"]["chunked_prefill_size"], "2048");
    assert_eq!(reported(&v, "weights"), Some(1.25));
    assert_eq!(reported(&v, "kv_pool"), Some(11.14));
    assert_eq!(reported(&v, "kv_tokens"), Some(104_273.0));
    let off = v["terms"]["kv_tokens"]["error_pct"].as_f64();
    assert!(off.is_some_and(|e| e.abs() <= 3.0), "{off:?}");
    assert_eq!(v["terms"]["kv_tokens"]["inside"], true);
    let advice = flags_of_advice(&v);
    assert!(
        advice
            .iter()
            .any(|f| f.starts_with("--mem-fraction-static")),
        "{advice:?}"
    );
}

/// The cache of the trial run comes first; the one that stays counts. Other processes had 49 GiB of this machine's memory,
/// which its log tells only after the fact, so the pool is far under its bound.
#[test]
fn a_tensorrt_llm_log_is_read_by_its_own_names() {
    let v = json(&log("trtllm-1.1-gpt-oss-120b.log"), &[]);
    assert_eq!(v["engine"], "tensorrt-llm");
    assert_eq!(v["engine_version"], "1.1.0rc3");
    assert_eq!(v["flags"]["free_gpu_memory_fraction"], "0.9");
    assert_eq!(v["flags"]["max_batch_size"], "64");
    assert_eq!(v["flags"]["tokens_per_block"], "32");
    assert_eq!(reported(&v, "weights"), Some(63.52));
    assert_eq!(reported(&v, "kv_pool"), Some(5.95));
    assert_eq!(reported(&v, "kv_tokens"), Some(86_720.0));
    for term in ["kv_pool", "kv_tokens"] {
        assert_eq!(v["terms"][term]["kind"], "bound", "{term}");
        assert_eq!(v["terms"][term]["inside"], true, "{term}");
    }
}

#[test]
fn a_v1_log_needs_nothing_else() {
    let v = json(&log("vllm-0.19-llama-3.1-8b.log"), &[]);
    assert_eq!(v["predicted_with"], "0.19.0");
    assert_eq!(v["model"], "meta-llama/Llama-3.1-8B-Instruct");
    // 79.19 GiB name the card.
    assert_eq!(v["device"]["name"], "h100-80g-sxm");
    assert_eq!(v["flags"]["max_num_batched_tokens"], "8192");
    assert_eq!(v["flags"]["gpu_memory_utilization"], "0.95");
    for (term, x) in [
        ("weights", 14.99),
        ("activation", 1.89),
        ("non_torch", 0.25),
        ("kv_pool", 58.11),
        ("kv_tokens", 476_016.0),
        ("max_concurrency", 58.11),
    ] {
        assert_eq!(reported(&v, term), Some(x), "{term}");
    }
    assert!(v["terms"]["weights"]["predicted"].is_number());
    assert_eq!(v["failure"], Value::Null);
    assert!(
        flags_of_advice(&v)
            .iter()
            .any(|f| f.starts_with("--max-model-len"))
    );
}

#[test]
fn several_workers_and_a_model_by_flag() {
    let path = log("vllm-0.19-tp2.log");
    // The log's own name for the model is a folder that is not here.
    let out = compare(&path, &[]);
    assert_eq!(out.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&out.stderr).contains("--model"));
    let v = json(&path, &["--model", "llama-3.1-8b", "--gpu", "h100"]);
    assert_eq!(v["flags"]["tensor_parallel"], "2");
    assert_eq!(reported(&v, "weights"), Some(7.51));
    assert_eq!(reported(&v, "kv_tokens"), Some(1_044_688.0));
    let weights = v["terms"]["weights"]["predicted"]
        .as_f64()
        .expect("predicted");
    assert!((weights - 7.5).abs() < 0.1, "{weights}");
}

#[test]
fn the_newest_form() {
    let v = json(
        &log("vllm-0.32-qwen3-0.6b.log"),
        &["--model", "llama-3.2-1b", "--gpu", "h100"],
    );
    assert_eq!(v["predicted_with"], "0.32.0");
    assert_eq!(v["flags"]["gpu_memory_utilization"], "0.95");
    assert_eq!(reported(&v, "kv_pool"), Some(73.53));
    assert_eq!(reported(&v, "kv_tokens"), Some(688_384.0));
    assert_eq!(reported(&v, "max_concurrency"), Some(16.81));
}

#[test]
fn a_refused_length_gets_the_nearest_that_starts() {
    let v = json(&log("vllm-v0-llama-3.1-8b-refused.log"), &[]);
    assert!(v["failure"].as_str().is_some_and(|f| f.contains("131072")));
    let usable = v["device"]["usable_bytes"].as_f64().expect("a device");
    assert!((usable / f64::from(1 << 30) - 22.07).abs() < 1e-6);
    for (term, x) in [
        ("weights", 14.9888),
        ("activation", 0.22),
        ("non_torch", 0.05),
        ("kv_pool", 4.6),
        ("kv_tokens", 37_696.0),
    ] {
        assert_eq!(reported(&v, term), Some(x), "{term}");
    }
    let flags = flags_of_advice(&v);
    assert_eq!(flags[0], "--max-model-len 37696");
    // A second card is proposed once, not once per size.
    assert_eq!(flags.iter().filter(|f| f.starts_with("--tp")).count(), 1);
}

#[test]
fn no_cache_at_all() {
    let config = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["models", "show", "llama-3.3-70b", "--config"])
        .output()
        .expect("the program runs");
    let config = file("llama-3.3-70b.json", &config.stdout);
    let config = config.to_str().expect("a plain path");
    let v = json(&log("vllm-0.11-70b-no-cache.log"), &["--model", config]);
    assert_eq!(v["device"]["name"], "h100-80g-sxm");
    assert!(
        v["failure"]
            .as_str()
            .is_some_and(|f| f.contains("KV cache"))
    );
    // 8-bit weights by the checkpoint's name, which the note says.
    let weights = v["terms"]["weights"]["predicted"]
        .as_f64()
        .expect("predicted");
    assert!((weights - 67.72).abs() < 0.4, "{weights}");
    assert!(v["assumed"].to_string().contains("fp8-dynamic"));
    assert!(!flags_of_advice(&v).is_empty());
}

#[test]
fn llama_cpp_of_three_years_and_the_fork() {
    let v = json(&log("llamacpp-2025-llama-3.1-8b.log"), &[]);
    assert_eq!(v["engine"], "llama.cpp");
    assert_eq!(v["flags"]["n_ctx"], "16384");
    assert_eq!(v["flags"]["flash_attn"], "true");
    assert_eq!(reported(&v, "kv_buffer"), Some(2048.0));
    assert_eq!(reported(&v, "compute_buffer"), Some(613.01));

    let v = json(&log("llamacpp-2024-pythia-2.8b.log"), &[]);
    assert_eq!(v["model"], "pythia 2.8B");
    assert_eq!(v["device"]["name"], "v100-16g-pcie");
    assert_eq!(reported(&v, "kv_buffer"), Some(640.0));
    assert_eq!(reported(&v, "compute_buffer"), Some(162.0));
    assert_eq!(v["also_reported"]["model_buffers_mib"], 5295.33);

    let v = json(
        &log("llamacpp-2026-gemma-4.log"),
        &["--model", "llama-3.1-8b"],
    );
    assert_eq!(reported(&v, "kv_buffer"), Some(2048.0));
    assert_eq!(reported(&v, "compute_buffer"), Some(541.07));
    assert_eq!(v["flags"]["max_num_seqs"], "4");

    let v = json(&log("ik-llama-3.1-8b.log"), &[]);
    assert_eq!(v["engine"], "ik_llama.cpp");
    assert_eq!(v["flags"]["kv_cache_dtype"], "K:iq4_nl, V:f16");
    assert_eq!(reported(&v, "kv_buffer"), Some(82.0));
    assert_eq!(reported(&v, "compute_buffer"), Some(266.5));
}

#[test]
fn standard_input_and_wrapped_lines() {
    // As a container runtime, a CI system and a shell would wrap them.
    let text = std::fs::read_to_string(log("vllm-0.19-llama-3.1-8b.log")).expect("a test log");
    let wrapped: String = text
        .lines()
        .map(|l| format!("2026-04-11T09:12:07.123Z stdout F vllm-0  | {l}\r\n"))
        .collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["compare", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program runs");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(wrapped.as_bytes())
        .expect("the program reads");
    let out = child.wait_with_output().expect("it ends");
    let v: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(reported(&v, "kv_tokens"), Some(476_016.0));
    assert_eq!(reported(&v, "weights"), Some(14.99));
}

#[test]
fn hostile_logs_give_one_error() {
    let mut binary = Vec::new();
    for i in 0..200_000_u32 {
        binary.extend_from_slice(&i.wrapping_mul(2_654_435_761).to_le_bytes());
    }
    let long = vec![b'x'; 40 << 20];
    let many = b"\n\r a\n".repeat(1 << 20);
    for (name, bytes) in [
        ("empty.log", &b""[..]),
        ("prose.log", b"nothing of note happened\n"),
        ("binary.log", &binary),
        ("long.log", &long),
        ("many.log", &many),
        ("escape.log", b"\x1b[\x1b[\x1b[31;\x1b"),
    ] {
        let out = compare(&file(name, bytes), &[]);
        assert_eq!(out.status.code(), Some(65), "{name}");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(said.matches("error[").count(), 1, "{said}");
        assert!(!said.contains("panicked"), "{said}");
        assert!(out.stdout.is_empty(), "{name}");
    }
    assert_eq!(
        compare(Path::new("/nonexistent.log"), &[]).status.code(),
        Some(4)
    );
}

#[test]
fn absurd_figures_are_shown_not_believed() {
    let head = "INFO core.py] Initializing a V1 LLM engine (v0.19.0) with config: model='meta-llama/Llama-3.1-8B-Instruct', ";
    for (name, text) in [
        (
            "tp.log",
            "tensor_parallel_size=99999999999, max_seq_len=8192",
        ),
        (
            "len.log",
            "tensor_parallel_size=1, max_seq_len=1099511627776",
        ),
        (
            "zero.log",
            "tensor_parallel_size=0, pipeline_parallel_size=0, max_seq_len=0",
        ),
        ("dtype.log", "dtype=torch.potato, max_seq_len=8192"),
        ("kv.log", "max_seq_len=8192, kv_cache_dtype=potato"),
    ] {
        let body = format!(
            "{head}{text}, quantization=None\nAvailable KV cache memory: 999999999999999999999 GiB\nModel loading took -5 GiB memory\ntotal_gpu_memory (1e9GiB) x gpu_memory_utilization (99.9) = 1GiB\nGPU KV cache size: 99,999,999,999,999,999,999 tokens\n"
        );
        let out = compare(&file(name, body.as_bytes()), &["--json"]);
        let code = out.status.code();
        assert!(
            matches!(code, Some(0 | 2 | 65)),
            "{name}: {code:?} {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let v: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert!(v.is_object());
    }
}
