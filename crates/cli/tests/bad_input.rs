//! Bad input as users meet it: one error with place, reason and next step, the exit code of
//! README.md, nothing on stdout but one JSON object where JSON was asked for, no panic, and bounded
//! time and memory.
//!
//! The parsers have their own, finer tests (`crates/model/tests`, `crates/host/tests`); here the
//! binary is run. Letters and numbers are those of the reliability groups: I files of weights, J
//! GGUF, K configs and the hub, P the planner.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

#[path = "../../model/tests/support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Gguf, LLAMA_CONFIG, f16_file, llama_tensors, safetensors_raw};

/// A folder that is gone after the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plimsoll-bad-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Most address space that a run may take: far less than what hostile sizes ask for.
const MEMORY_KIB: u32 = 512 << 10;
/// Longest that a run may take, in a debug build beside others.
const SECONDS: u64 = 20;

/// Runs the binary under a limit of memory where the shell can set one.
fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    let begin = Instant::now();
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!(
            "ulimit -v {MEMORY_KIB} 2>/dev/null; exec \"$0\" \"$@\""
        ))
        .arg(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args);
    for name in ["PLIMSOLL_GPU", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    let out = command.envs(env.iter().copied()).output().unwrap();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(SECONDS), "{args:?}: {took:?}");
    out
}

/// The error of a run that must fail with `code`, as text and as JSON: its whole text.
fn refused_with(args: &[&str], env: &[(&str, &str)], code: i32) -> String {
    let out = run(args, env);
    let (stdout, stderr) = (
        String::from_utf8(out.stdout).unwrap(),
        String::from_utf8(out.stderr).unwrap(),
    );
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    assert_eq!(stdout, "", "{args:?}");
    let errors = stderr.lines().filter(|l| l.starts_with("error")).count();
    assert_eq!(errors, 1, "{args:?}: {stderr}");
    assert!(
        stderr.contains("  try: ") || stderr.contains("try '--help'"),
        "{args:?} names no next step: {stderr}"
    );
    assert!(
        !stderr.contains('\u{1b}') && !stderr.contains('\0'),
        "{args:?} passes control characters on: {stderr:?}"
    );

    let with_json = [args, &["--json"]].concat();
    let out = run(&with_json, env);
    assert_eq!(out.status.code(), Some(code), "{with_json:?}: {out:?}");
    assert!(out.stderr.is_empty(), "{with_json:?}: {out:?}");
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    let error = &value["error"];
    assert!(error["code"].as_str().unwrap().starts_with("E-"), "{value}");
    let message = error["message"].as_str().unwrap();
    assert!(!message.is_empty() && error["hint"].is_string(), "{value}");
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let first = flat(message.lines().next().unwrap());
    assert!(
        flat(&stderr).contains(&first),
        "{message} is not in {stderr}"
    );
    stderr
}

/// As above for `plan MODEL`, offline; the text must hold `parts`.
fn model(path: &str, code: i32, parts: &[&str]) {
    let text = refused_with(&["plan", path, "--offline"], &[], code);
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// Flags of `plan llama-13b` that make no sense.
fn usage(flags: &str, part: &str) {
    let args: Vec<&str> = ["plan", "llama-13b"]
        .into_iter()
        .chain(flags.split_whitespace())
        .collect();
    let text = refused_with(&args, &[], 2);
    assert!(text.contains(part), "no `{part}` in: {text}");
}

#[test]
fn p_flags_out_of_range() {
    for (flags, part) in [
        ("--users 0", "--users"),
        ("--users 1000000000000000000", "--users"),
        ("--users -1", "--users"),
        ("--users 1e3", "--users"),
        ("--context 0", "--context"),
        ("--context -5", "--context"),
        ("--context 99999999999k", "--context"),
        ("--context 18446744073709551616", "--context"),
        ("--context 1.5k", "--context"),
        ("--prompt 0", "--prompt"),
        ("--n 0", "--n"),
        ("--n 16385", "--n"),
        ("--beam-width 0", "--beam-width"),
        ("--prefix-hit NaN", "--prefix-hit"),
        ("--prefix-hit 1.1", "--prefix-hit"),
        ("--prefix-hit -0.1", "--prefix-hit"),
        ("--gpu h100 --gpu-memory-utilization 0", "utilization"),
        ("--gpu h100 --gpu-memory-utilization 2", "utilization"),
        ("--gpu h100 --gpu-memory-utilization NaN", "utilization"),
        ("--gpu h100 --gpu-memory-utilization inf", "utilization"),
        ("--gpu h100 --gpu-memory-utilization -1", "utilization"),
        ("--gpu h100 --gpus 0", "--gpus"),
        ("--gpu h100 --gpus 65", "--gpus"),
        ("--gpu h100 --gpus 1000000000", "--gpus"),
        ("--tp 0", "--tp"),
        ("--tp -1", "--tp"),
        ("--tp 1025", "--tp"),
        ("--pp 0", "--pp"),
        ("--dp 0", "--dp"),
        ("--memory 0", "--memory"),
        ("--memory -1", "--memory"),
        ("--memory -24GiB", "unexpected argument"),
        ("--memory 1e400", "--memory"),
        ("--memory 1e30GiB", "--memory"),
        ("--memory NaN", "--memory"),
        ("--memory inf", "--memory"),
        ("--memory 18446744073709551616", "--memory"),
        ("--memory 24parsecs", "--memory"),
        ("--gpu h100 --in-use -1", "--in-use"),
        ("--kv-memory 0", "--kv-memory"),
        ("--kv-memory 1e400", "--kv-memory"),
        ("--block-size 0", "--block-size"),
        ("--block-size 65537", "--block-size"),
        ("--max-model-len 0", "--max-model-len"),
        ("--max-num-seqs 0", "--max-num-seqs"),
        ("--max-num-batched-tokens 0", "--max-num-batched-tokens"),
        ("--engine nonsense", "ideal"),
        ("--engine vllm@nonsense", "0.19"),
        ("--engine vllm@", "--engine"),
        ("--kv-cache-dtype f17", "auto"),
        ("--dtype f17", "--dtype"),
        ("--quantization f17", "fp8"),
        ("--weights int3", "int8"),
        ("--gpu h100 --price h100=NaN", "--price"),
        ("--gpu h100 --price h100", "--price"),
        ("--gpu h100 --price h10=1", "no device is called"),
        ("--gpu nonsense", "plimsoll devices"),
        ("--gpu h10", "did you mean h100"),
        ("--async-scheduling maybe", "--async-scheduling"),
        ("--nonsense", "--nonsense"),
        ("--users", "--users"),
    ] {
        usage(flags, part);
    }
}

#[test]
fn p_flags_that_contradict_each_other_or_the_model() {
    for (flags, part) in [
        ("--gpu h100 --memory 24GiB", "--memory"),
        ("--gpu any --memory 24GiB", "--memory"),
        ("--gpu h100 --threads 2", "--threads"),
        ("--gpu h100 --logprobs 5", "--logprobs"),
        ("--n 2 --beam-width 2", "cannot be used with"),
        (
            "--enable-prefix-caching --no-enable-prefix-caching",
            "cannot be used with",
        ),
        (
            "--gpu h100 --gpus 1 --tp 2",
            "--gpus 1 contradicts TP x PP x DP, which is 2",
        ),
        ("--gpu h100 --gpus 8 --tp 2 --pp 2", "which is 4"),
        ("--gpus 2", "without a device"),
        ("--in-use 1GiB", "without a device"),
        ("--context 2000 --max-model-len 100", "--max-model-len 100"),
        ("--context 2000 --prompt 2001", "--prompt"),
        ("--context 2000 --shared-prefix 2001", "--shared-prefix"),
        ("--engine vllm --reserve max", "--reserve"),
        ("--engine vllm --weights int8", "--quantization"),
        (
            "--engine sglang --gpu h100 --tp 8 --decode-context-parallel-size 2",
            "`--engine vllm`",
        ),
        (
            "--engine plimsoll --gpu h100 --pp 2 --weights int8",
            "only where the model runs",
        ),
        ("--gpu h100 --tp 3", "3 does not divide 40"),
        ("--gpu h100 --pp 41", "PP 41"),
        ("--gpu h100 --tp 1024 --pp 1024 --dp 1024", "PP 1024"),
        ("--engine llama.cpp --gpu h100 --tp 2", "--tp 2"),
        (
            "--gpu h100 --max-num-seqs 1000000",
            "--max-num-batched-tokens",
        ),
        ("--users 1000000000 --context 4294967296", "64 bits"),
        (
            "--users 1000000000 --context 4294967296 --gpu h100",
            "64 bits",
        ),
    ] {
        usage(flags, part);
    }
    // Text was asked for and JSON at once.
    for flags in ["--explain", "--method rule-of-thumb"] {
        let mut args = vec!["plan", "llama-13b", "--json"];
        args.extend(flags.split_whitespace());
        let out = run(&args, &[]);
        assert_eq!(out.status.code(), Some(2), "{flags}");
        let value: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert!(value["error"]["hint"].is_string(), "{value}");
    }
    let out = run(&["plan", "llama-13b", "--explain", "zzz"], &[]);
    assert_eq!(out.status.code(), Some(2));
}

/// 80GB, 80GiB, 80e9 and "80 G": GB is decimal, GiB and a bare letter are binary.
#[test]
fn p_units_are_told_apart() {
    let usable = |size: &str| {
        let out = run(&["plan", "llama-13b", "--memory", size, "--json"], &[]);
        let v: Value = serde_json::from_slice(&out.stdout).unwrap();
        v["device"]["usable_bytes"].as_u64().unwrap()
    };
    assert_eq!(usable("80GB"), 80_000_000_000);
    assert_eq!(usable("80e9"), 80_000_000_000);
    assert_eq!(usable("80GiB"), 80 << 30);
    assert_eq!(usable("80 G"), 80 << 30);
}

/// Figures that are large or small but legal have an answer, within the limits of time and memory.
#[test]
fn p_absurd_but_legal() {
    for (flags, code) in [
        ("--gpu h100 --kv-memory 500GiB", 3),
        ("--gpu h100 --in-use 90GiB", 3),
        ("--memory 1", 3),
        ("--memory 18446744073709551615", 0),
        ("--gpu h100 --gpu-memory-utilization 1e-300", 3),
        ("--gpu h100 --max-num-batched-tokens 4294967296", 3),
        ("--gpu h100 --block-size 65536", 0),
        ("--gpu h100 --swap-space 18446744073709551615", 0),
        ("--gpu h100 --gpus 64", 0),
        ("--gpu h100 --n 16384 --users 1000", 3),
        ("--gpu t4 --gpus 1", 3),
    ] {
        let mut args = vec!["plan", "llama-13b"];
        args.extend(flags.split_whitespace());
        let text = run(&args, &[]);
        let shown = String::from_utf8_lossy(&text.stdout).into_owned();
        assert_eq!(text.status.code(), Some(code), "{flags}: {text:?}");
        assert!(!shown.is_empty() && text.stderr.is_empty(), "{flags}");
        args.push("--json");
        let out = run(&args, &[]);
        assert_eq!(out.status.code(), Some(code), "{flags}");
        let v: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(v["answer"]["verdict"] == "no", code == 3, "{flags}");
    }
}

#[test]
fn i_safetensors() {
    let dir = Dir::new();
    dir.write("config.json", LLAMA_CONFIG);
    let whole = f16_file(&llama_tensors());
    let header = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    let entry = |body: &str, data: u64| safetensors_raw(&format!("{{{body}}}"), data);
    let two = |a: &str, b: &str, data: u64| {
        let one = |name: &str, range: &str| {
            format!(r#""{name}":{{"dtype":"F16","shape":[4],"data_offsets":{range}}}"#)
        };
        entry(&format!("{},{}", one("a", a), one("b", b)), data)
    };
    let shaped = |dtype: &str, shape: &str, size: u64| {
        entry(
            &format!(r#""a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{size}]}}"#),
            size.min(64),
        )
    };
    let twice = r#""a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}"#;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("I1 7 bytes", whole[..7].to_vec()),
        ("I1 8 bytes", whole[..8].to_vec()),
        ("I1 header 0", header(0)),
        ("I1 header 1", header(1)),
        ("I1 header past the end", header(11)),
        ("I1 header 100,000,001", header(100_000_001)),
        ("I1 header 2^63", header(1 << 63)),
        ("I1 header 2^64-1", header(u64::MAX)),
        ("I2 in the header", whole[..100].to_vec()),
        ("I2 in a tensor", whole[..whole.len() - 500].to_vec()),
        ("I2 last byte", whole[..whole.len() - 1].to_vec()),
        ("I2 one more", [&whole[..], &[0]].concat()),
        ("I3 no brace", safetensors_raw("[]", 0)),
        ("I3 bad UTF-8", {
            let mut b = safetensors_raw("{\"??\":1}", 0);
            b[10] = 0xff;
            b
        }),
        ("I4 twice", entry(&format!("{twice},{twice}"), 8)),
        ("I5 overlap", two("[0,8]", "[4,12]", 12)),
        ("I5 hole", two("[0,8]", "[16,24]", 24)),
        ("I5 end before begin", two("[8,0]", "[8,16]", 16)),
        ("I5 past the end", two("[0,8]", "[8,99]", 16)),
        ("I6 product", shaped("F16", "[4294967296,4294967296,4]", 8)),
        ("I6 size", shaped("F16", "[5]", 8)),
        ("I6 rank 100", shaped("F16", &format!("{:?}", [1; 100]), 4)),
        ("I6 type", shaped("F17", "[4]", 8)),
        ("I6 negative", shaped("F16", "[-4]", 8)),
        (
            "I10 a pickle behind",
            [&whole[..], b"\x80\x02}q\0."].concat(),
        ),
        (
            "I11 LFS",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n".to_vec(),
        ),
        (
            "I11 web page",
            b"<!DOCTYPE html><title>404</title>".to_vec(),
        ),
        (
            "I11 gzip",
            b"\x1f\x8b\x08\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
        ),
    ];
    for (what, bytes) in cases {
        dir.write("model.safetensors", bytes);
        let text = refused_with(&["plan", dir.path(), "--offline"], &[], 65);
        assert!(text.contains("model.safetensors"), "{what}: {text}");
        assert!(text.contains("because"), "{what}: {text}");
    }
    // An odd name is quoted, not printed.
    let name = r#""a\u001b[31m\n\u0000../x":{"dtype":"F17","shape":[4],"data_offsets":[0,8]}"#;
    dir.write("model.safetensors", entry(name, 8));
    refused_with(&["plan", dir.path(), "--offline"], &[], 65);
    dir.write("model.safetensors", "");
    model(dir.path(), 65, &["empty"]);
}

#[test]
fn i7_weights_and_config_of_different_models() {
    let dir = Dir::new();
    dir.write("model.safetensors", f16_file(&llama_tensors()));
    let taller = LLAMA_CONFIG.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    dir.write("config.json", taller);
    model(dir.path(), 65, &["model.layers.2"]);
}

#[cfg(unix)]
#[test]
fn i9_i10_i11_folders() {
    use std::os::unix::fs::symlink;
    let dir = Dir::new();
    let outside = Dir::new();
    dir.write("config.json", LLAMA_CONFIG);
    let index = "model.safetensors.index.json";
    let secret = outside.write("x.safetensors", f16_file(&llama_tensors()));
    for (shard, part) in [
        ("missing-00001.safetensors", "missing-00001.safetensors"),
        ("../x.safetensors", "../x.safetensors"),
        (secret.as_str(), "x.safetensors"),
    ] {
        let map = json!({"metadata": {}, "weight_map": {"lm_head.weight": shard}});
        dir.write(index, map.to_string());
        let text = refused_with(&["plan", dir.path(), "--offline"], &[], 65);
        assert!(text.contains(part), "{text}");
    }
    std::fs::remove_file(dir.0.join(index)).unwrap();
    // Links that lead out, to nothing, or round in circles.
    for (target, code) in [
        (secret.as_str(), 65),
        ("gone", 4),
        ("model.safetensors", 65),
    ] {
        let link = dir.0.join("model.safetensors");
        symlink(target, &link).unwrap();
        model(dir.path(), code, &["model.safetensors"]);
        std::fs::remove_file(link).unwrap();
    }
    // I10, I11.
    for name in ["pytorch_model.bin", "model.pt", "x.ckpt", "x.pkl"] {
        let path = outside.write(name, b"\x80\x02");
        let text = refused_with(&["plan", &path, "--offline"], &[], 65);
        assert!(text.contains("pickle") && text.contains("safetensors"));
    }
    let empty = Dir::new();
    model(empty.path(), 4, &["config.json"]);
    let fifo = outside.0.join("config.json");
    if Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .is_ok_and(|s| s.success())
    {
        model(fifo.to_str().unwrap(), 65, &["named pipe"]);
    }
    if Path::new("/dev/zero").exists() {
        model("/dev/zero", 65, &["device"]);
    }
    model("/nowhere/config.json", 4, &["/nowhere/config.json"]);
}

#[test]
fn j_gguf() {
    let dir = Dir::new();
    let good = Gguf::llama();
    let bytes = good.file();
    let changed = |at: usize, with: &[u8]| {
        let mut b = bytes.clone();
        b[at..at + with.len()].copy_from_slice(with);
        b
    };
    let with = |f: &dyn Fn(Gguf) -> Gguf| f(Gguf::llama()).file();
    let max = u64::MAX.to_le_bytes();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("magic", changed(0, b"GGML")),
        ("version 0", changed(4, &0_u32.to_le_bytes())),
        ("version 1", changed(4, &1_u32.to_le_bytes())),
        ("version 4", changed(4, &4_u32.to_le_bytes())),
        ("big-endian", changed(4, &3_u32.to_be_bytes())),
        ("tensors 2^64-1", changed(8, &max)),
        ("keys 2^64-1", changed(16, &max)),
        ("key length 2^64-1", changed(24, &max)),
        ("key length 0", changed(24, &0_u64.to_le_bytes())),
        ("cut in the header", bytes[..bytes.len().min(300)].to_vec()),
        ("shorter than declared", bytes[..bytes.len() - 1].to_vec()),
        ("type 13", with(&|g| g.raw(b"x.y", 13, &[0; 8]))),
        ("type 2^32-1", with(&|g| g.raw(b"x.y", u32::MAX, &[0; 8]))),
        ("bool 2", with(&|g| g.raw(b"x.y", 7, &[2]))),
        ("key twice", with(&|g| g.u32("llama.block_count", 2))),
        ("array 2^60", with(&|g| g.array("x.y", 4, 1 << 60, &[]))),
        ("alignment 0", with(&|g| g.u32("general.alignment", 0))),
        ("alignment 13", with(&|g| g.u32("general.alignment", 13))),
        (
            "alignment 2^31",
            with(&|g| g.u32("general.alignment", 1 << 31)),
        ),
        (
            "alignment text",
            with(&|g| g.str("general.alignment", "32")),
        ),
        (
            "5 dimensions",
            with(&|g| g.tensor("x", &[1, 1, 1, 1, 1], 0)),
        ),
        (
            "product",
            with(&|g| g.raw_tensor(b"x", &[1 << 32, 1 << 32], 0, 0)),
        ),
        (
            "bytes",
            with(&|g| g.raw_tensor(b"x", &[1 << 40, 1 << 21], 0, 0)),
        ),
        ("row", with(&|g| g.raw_tensor(b"x", &[33], 2, 0))),
        ("tensor type", with(&|g| g.raw_tensor(b"x", &[32], 4, 0))),
        (
            "offset",
            with(&|g| g.raw_tensor(b"x", &[32], 0, u64::MAX - 31)),
        ),
        ("unaligned", with(&|g| g.raw_tensor(b"x", &[32], 0, 1))),
        (
            "name twice",
            with(&|g| g.tensor("output.weight", &[64, 96], 2)),
        ),
        ("no architecture", Gguf::default().file()),
        (
            "layers",
            Gguf::decoder("llama", u32::MAX, 64, 4, 2, 128).file(),
        ),
        ("heads 0", Gguf::decoder("llama", 2, 64, 0, 0, 128).file()),
        ("KV heads", Gguf::decoder("llama", 2, 64, 4, 8, 128).file()),
        ("layers 0", Gguf::decoder("llama", 0, 64, 4, 2, 128).file()),
    ];
    for (what, bytes) in cases {
        let path = dir.write("m.gguf", bytes);
        let out = run(&["plan", &path, "--offline"], &[]);
        assert_eq!(out.status.code(), Some(65), "{what}: {out:?}");
        let text = refused_with(&["plan", &path, "--offline"], &[], 65);
        assert!(text.contains("m.gguf"), "{what}: {text}");
    }
    // One part of a split model without the others.
    let split = Gguf::llama().u16("split.no", 0).u16("split.count", 2);
    let path = dir.write("m-00001-of-00002.gguf", split.file());
    let text = run(&["plan", &path, "--offline"], &[]);
    assert!(matches!(text.status.code(), Some(4 | 65)), "{text:?}");
}

#[test]
fn k1_configs() {
    let dir = Dir::new();
    let with = |key: &str, value: Value| {
        let mut c: Value = serde_json::from_str(LLAMA_CONFIG).unwrap();
        c[key] = value;
        c.to_string()
    };
    for (key, value) in [
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(null)),
        ("num_hidden_layers", json!("2")),
        ("num_hidden_layers", json!(-2)),
        ("num_hidden_layers", json!(2.5)),
        ("num_hidden_layers", json!(1_u64 << 63)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(5)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(u64::MAX)),
        ("intermediate_size", json!(u64::MAX)),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(u64::MAX)),
        ("head_dim", json!("64")),
        ("max_position_embeddings", json!("128")),
        ("torch_dtype", json!("float17")),
    ] {
        let path = dir.write("config.json", with(key, value.clone()));
        let out = run(&["plan", &path, "--offline"], &[]);
        // A size past 64 bits is found by the planner, anything else by the reader.
        assert!(
            matches!(out.status.code(), Some(2 | 65)),
            "{key} = {value}: {out:?}"
        );
        let code = out.status.code().unwrap();
        let text = refused_with(&["plan", &path, "--offline"], &[], code);
        assert!(
            code == 2 || text.contains(key) || text.contains("attention heads"),
            "{key} = {value} is not named: {text}"
        );
    }
    // Whatever a number is, it is an error or a plan, and quick.
    for key in [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "head_dim",
        "sliding_window",
    ] {
        for value in [
            json!(1),
            json!(4096),
            json!(100_000),
            json!(1_u64 << 31),
            json!(u64::from(u32::MAX)),
            json!(1_u64 << 53),
            json!(i64::MIN),
            json!([1, 2]),
            json!({}),
            json!(true),
        ] {
            let path = dir.write("config.json", with(key, value.clone()));
            for more in [&[][..], &["--gpu", "h100"]] {
                let args = [&["plan", &path, "--offline"], more].concat();
                let out = run(&args, &[]);
                assert!(
                    matches!(out.status.code(), Some(0 | 2 | 3 | 65)),
                    "{key} = {value} {more:?}: {out:?}"
                );
                let stderr = String::from_utf8_lossy(&out.stderr);
                assert!(!stderr.contains("panicked"), "{key} = {value}: {stderr}");
            }
        }
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let big = format!("{{\"a\":\"{}\"}}", "x".repeat(17 << 20));
    for text in ["", "{}", "[]", "null", "{\"a\":", "NaN", &deep, &big] {
        let path = dir.write("config.json", text);
        refused_with(&["plan", &path, "--offline"], &[], 65);
    }
    let unknown = LLAMA_CONFIG
        .replace("LlamaForCausalLM", "NobodyForCausalLM")
        .replace("\"llama\"", "\"nobody\"");
    let path = dir.write("config.json", unknown);
    let out = run(&["plan", &path, "--offline"], &[]);
    let code = out.status.code().unwrap();
    let text = refused_with(&["plan", &path, "--offline"], &[], code);
    assert!(
        text.contains("nobody") && text.contains("--assume gqa"),
        "{text}"
    );
    let out = run(&["plan", &path, "--offline", "--assume", "gqa"], &[]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
}

#[test]
fn k2_code_in_a_config_is_ignored_with_a_note() {
    let dir = Dir::new();
    let mut c: Value = serde_json::from_str(LLAMA_CONFIG).unwrap();
    c["auto_map"] = json!({"AutoModel": "evil.py--Model"});
    let path = dir.write("config.json", c.to_string());
    dir.write("evil.py", "raise SystemExit('run')");
    let out = run(&["plan", &path], &[]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("never run"));
}

/// A hub that answers everything with `head` and counts how often it is asked.
fn hub(head: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            seen.fetch_add(1, Ordering::SeqCst);
            let mut request = [0; 4096];
            // A client that hangs up early is part of the game.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(
                format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                    .as_bytes(),
            );
        }
    });
    (address, count)
}

#[test]
fn k6_k9_answers_of_the_hub() {
    for (head, code, part) in [
        ("401 Unauthorized", 4, "HF_TOKEN"),
        ("403 Forbidden\r\nx-error-code: GatedRepo", 4, "accept"),
        ("404 Not Found\r\nx-error-code: RepoNotFound", 4, "org/name"),
        ("429 Too Many\r\nretry-after: 17", 75, "17"),
        ("500 Oops", 75, "500"),
        ("503 Busy", 75, "503"),
        ("418 Teapot", 1, "418"),
    ] {
        let home = Dir::new();
        let (address, _) = hub(head);
        let env = [
            ("HF_ENDPOINT", address.as_str()),
            ("HF_HOME", home.path()),
            ("HF_TOKEN", "hf_averysecrettoken"),
        ];
        let text = refused_with(&["plan", "org/name"], &env, code);
        assert!(text.contains(part), "{head}: {text}");
        assert!(!text.contains("averysecret"), "{text}");
        // Nothing that a later run could take for an answer.
        let left = std::fs::read_dir(&home.0).unwrap().flatten().count();
        let out = run(&["plan", "org/name", "--offline"], &env);
        assert_eq!(out.status.code(), Some(5), "{head}: {left}: {out:?}");
    }
    // Nobody listens.
    let home = Dir::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let env = [
        ("HF_ENDPOINT", format!("http://{port}")),
        ("HF_HOME", home.path().to_owned()),
    ];
    let env: Vec<(&str, &str)> = env.iter().map(|(a, b)| (*a, b.as_str())).collect();
    refused_with(&["plan", "org/name"], &env, 75);
}

#[test]
fn k7_offline_asks_nobody() {
    let home = Dir::new();
    let (address, count) = hub("500 Oops");
    let base = [("HF_ENDPOINT", address.as_str()), ("HF_HOME", home.path())];
    refused_with(&["plan", "org/name", "--offline"], &base, 5);
    let env = [base[0], base[1], ("HF_HUB_OFFLINE", "1")];
    refused_with(&["plan", "org/name"], &env, 5);
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[test]
fn k8_odd_names() {
    for (name, code) in [
        ("", 2),
        ("org/name@../..", 2),
        ("org/name@", 2),
        ("org/na\u{7f}me", 2),
        ("org/na me", 2),
        ("a/b/c/d", 4),
        ("gpt-4", 4),
        ("nosuchmodel", 4),
        ("\u{1b}[31mred", 4),
    ] {
        let out = run(&["plan", name, "--offline"], &[]);
        assert!(
            matches!(out.status.code(), Some(2 | 4)),
            "{name:?} {code}: {out:?}"
        );
        refused_with(
            &["plan", name, "--offline"],
            &[],
            out.status.code().unwrap(),
        );
    }
}

#[test]
fn other_commands() {
    let dir = Dir::new();
    let nowhere = dir.0.join("none.log");
    let nowhere = nowhere.to_str().unwrap();
    for args in [
        &["compare", nowhere][..],
        &["accuracy", nowhere],
        &["accuracy", nowhere, "--configs", nowhere],
    ] {
        let out = run(args, &[]);
        let code = out.status.code().unwrap();
        assert!(matches!(code, 1 | 2 | 4 | 65), "{args:?}: {out:?}");
        refused_with(args, &[], code);
    }
    let noise = dir.write("noise.log", [0xff_u8, 0, 1, 2].repeat(10_000));
    let out = run(&["compare", &noise], &[]);
    refused_with(&["compare", &noise], &[], out.status.code().unwrap());
    let out = run(&["models", "show", "nosuchmodel"], &[]);
    assert_eq!(out.status.code(), Some(4), "{out:?}");
    let out = run(&["nonsense"], &[]);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
}

/// Code 1: here, a full disk under stdout. 0 is every good plan; 2, 3, 4, 5, 65 and 75 are above.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_failure() {
    for more in [&[][..], &["--json"]] {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .args(["plan", "llama-13b"])
            .args(more)
            .stdout(full)
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(1));
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(text.contains("cannot write to stdout"), "{text}");
    }
}
