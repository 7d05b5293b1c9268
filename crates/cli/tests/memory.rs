//! Memory of `plimsoll generate`: its map is the one that `plimsoll plan` prints, what does not fit is refused before
//! weights are read, and the system says that the process has what was planned.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A folder of its own, removed in the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

const VOCAB: u64 = 256;

/// One word per token.
fn tokenizer() -> Vec<u8> {
    let vocab: BTreeMap<String, u64> = (0..VOCAB).map(|i| (format!("w{i}"), i)).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    tokenizer.to_string().into_bytes()
}

/// A checkpoint whose layers keep states of f32 beside keys and values of bfloat16.
fn hybrid(name: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("plimsoll-memory-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder");
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/fixtures/granite_hybrid");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(root.join(file), path.join(file)).expect("a copy");
    }
    std::fs::write(path.join("tokenizer.json"), tokenizer()).expect("written");
    Folder(path)
}

/// A LLaMA of random weights, with a tokenizer of one word per token.
fn model(name: &str, layers: u64, hidden: u64) -> Folder {
    let path = std::env::temp_dir().join(format!("plimsoll-memory-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder");
    let write = |file: &str, text: Vec<u8>| std::fs::write(path.join(file), text).expect("written");
    let wide = 4 * hidden;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": hidden / 8, "vocab_size": VOCAB, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "bos_token_id": 0, "eos_token_id": 1,
    });
    write("config.json", config.to_string().into_bytes());
    write("tokenizer.json", tokenizer());
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![VOCAB, hidden]),
    ];
    for i in 0..layers {
        let mut add = |name: &str, shape: Vec<u64>| {
            shapes.push((format!("model.layers.{i}.{name}.weight"), shape));
        };
        add("input_layernorm", vec![hidden]);
        add("post_attention_layernorm", vec![hidden]);
        add("self_attn.q_proj", vec![hidden, hidden]);
        add("self_attn.k_proj", vec![hidden / 2, hidden]);
        add("self_attn.v_proj", vec![hidden / 2, hidden]);
        add("self_attn.o_proj", vec![hidden, hidden]);
        add("mlp.gate_proj", vec![wide, hidden]);
        add("mlp.up_proj", vec![wide, hidden]);
        add("mlp.down_proj", vec![hidden, wide]);
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0_u64);
    for (name, shape) in shapes {
        let from = end;
        end += 2 * shape.iter().product::<u64>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [from, end]});
        header.insert(name, entry);
    }
    let header = serde_json::to_vec(&header).expect("a header");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..end.div_ceil(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Four bfloat16 of either sign between 2^-7 and 2^-5.
        let some = state & 0x80ff_80ff_80ff_80ff | 0x3c00_3c00_3c00_3c00;
        file.extend(some.to_le_bytes());
    }
    write("model.safetensors", file);
    Folder(path)
}

const SETTINGS: [&str; 14] = [
    "--max-num-batched-tokens",
    "64",
    "--max-num-seqs",
    "4",
    "--max-model-len",
    "256",
    "--kv-cache-dtype",
    "bf16",
    "--block-size",
    "16",
    "--threads",
    "2",
    "--swap-space",
    "1MiB",
];

fn plimsoll(command: &str, model: &Path, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .arg(command)
        .arg(model)
        .args(flags)
        .env_remove("PLIMSOLL_GPU")
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes by region and name of the terms of a plan or of a map.
fn terms(all: &Value) -> BTreeMap<(String, String), u64> {
    let word = |v: &Value| v.as_str().expect("a word").to_owned();
    let all = all.as_array().expect("terms").iter();
    all.map(|t| {
        let bytes = t["bytes"].as_u64().expect("bytes");
        ((word(&t["region"]), word(&t["name"])), bytes)
    })
    .collect()
}

/// Runs a prompt and returns the map of the run.
fn run(folder: &Folder, flags: &[&str]) -> Value {
    let file = folder.0.join("map.json");
    let mut all = vec!["-p", "w5 w6 w7", "-n", "40", "--ignore-eos", "--memory-map"];
    all.push(file.to_str().expect("a path"));
    all.extend(flags);
    let out = plimsoll("generate", &folder.0, &all);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let written = std::fs::read(&file).expect("a map");
    serde_json::from_slice(&written).expect("JSON")
}

#[test]
fn the_map_of_a_run_is_the_one_that_plan_prints() {
    for (folder, length) in [(model("map", 2, 64), "256"), (hybrid("states"), "128")] {
        let bytes = ["bf16", "int8", "int4"].map(|w| compare_maps(&folder, length, w));
        assert!(bytes[0] > bytes[1] && bytes[1] > bytes[2], "{bytes:?}");
    }
}

/// Bytes of weights.
fn compare_maps(folder: &Folder, length: &str, weights: &str) -> u64 {
    let mut weight_bytes = 0;
    for sizes in [["--kv-memory", "3MiB"], ["--memory", "256MiB"]] {
        let mut flags = SETTINGS
            .map(|f| if f == "256" { length } else { f })
            .to_vec();
        flags.extend(sizes);
        flags.extend(["--weights", weights]);
        let map = run(folder, &flags);
        let mut question = vec![
            "--engine",
            "plimsoll",
            "--gpu",
            "cpu",
            "--context",
            length,
            "--json",
        ];
        question.extend(&flags);
        let out = plimsoll("plan", &folder.0, &question);
        assert!(out.status.success(), "{}", text(&out.stderr));
        let plan: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let planned = terms(&plan["ranks"][0]["terms"]);
        assert_eq!(terms(&map["terms"]), planned, "{weights}, {sizes:?}");
        let mut regions: BTreeMap<&str, u64> = BTreeMap::new();
        for ((region, _), bytes) in &planned {
            *regions.entry(region).or_default() += bytes;
        }
        let listed = map["regions"].as_array().expect("regions");
        assert_eq!(listed.len(), regions.len());
        for r in listed {
            let name = r["region"].as_str().expect("a name");
            assert_eq!(r["planned_bytes"], regions[name], "{name}");
            if name == "reserve" {
                assert!(r["committed_bytes"].is_null());
            } else {
                assert_eq!(r["committed_bytes"], regions[name], "{name}");
            }
        }
        weight_bytes = regions["weights"];
    }
    weight_bytes
}

#[test]
fn what_does_not_fit_is_refused_with_settings_that_do() {
    let folder = model("refused", 2, 64);
    let refused = |flags: &[&str]| -> String {
        let mut all = vec!["-p", "w5", "-n", "4"];
        all.extend(flags);
        let began = Instant::now();
        let out = plimsoll("generate", &folder.0, &all);
        assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
        assert!(began.elapsed() < Duration::from_secs(2));
        assert!(out.stdout.is_empty());
        text(&out.stderr)
    };
    // Everything but the pool, and little more: a shorter sequence fits, and one of 2,048 tokens does not.
    let map = run(&folder, &["--max-model-len", "2048", "--threads", "2"]);
    let all: u64 = map["regions"]
        .as_array()
        .expect("regions")
        .iter()
        .map(|r| {
            if r["region"] == "kv_cache" {
                0
            } else {
                r["planned_bytes"].as_u64().expect("bytes")
            }
        })
        .sum();
    let flags = |budget: &str| -> Vec<String> {
        let all = [
            "--max-model-len",
            "2048",
            "--threads",
            "2",
            "--memory",
            budget,
        ];
        all.map(str::to_owned).to_vec()
    };
    let tight = flags(&(all + 100_000).to_string());
    let as_str: Vec<&str> = tight.iter().map(String::as_str).collect();
    let e = refused(&as_str);
    let hint = e
        .lines()
        .find_map(|l| l.trim().strip_prefix("try: `--max-model-len "));
    let n = hint.and_then(|h| h.split('`').next()).expect(&e);
    let mut fits = tight.clone();
    fits[1] = n.to_owned();
    let fits: Vec<&str> = fits.iter().map(String::as_str).collect();
    run(&folder, &fits);
    let e = refused(&["--memory", "1MiB"]);
    assert!(e.contains("raise `--memory`"), "{e}");
}

#[test]
fn the_process_has_what_was_planned() {
    if !Path::new("/proc/self/status").exists() {
        println!("skipped: this system has no /proc to say what a process has in memory");
        return;
    }
    let folder = model("resident", 12, 512);
    let mut flags = SETTINGS.to_vec();
    flags.extend(["--kv-memory", "64MiB"]);
    let map = run(&folder, &flags);
    let (mut committed, mut reserve, mut reserve_used) = (0, 0, 0);
    for r in map["regions"].as_array().expect("regions") {
        match r["committed_bytes"].as_u64() {
            Some(bytes) => committed += bytes,
            None => {
                reserve += r["planned_bytes"].as_u64().expect("bytes");
                reserve_used += r["high_water_bytes"].as_u64().expect("bytes");
            }
        }
    }
    let ready = map["resident_bytes_at_ready"].as_u64().expect("bytes");
    println!("committed {committed}, ready {ready}, reserve {reserve}, of it used {reserve_used}");
    let all = terms(&map["terms"]);
    let process = all[&("reserve".to_owned(), "process".to_owned())];
    assert!(committed > 3 * process, "too small to show anything");
    // Pages that were only promised would be missing.
    assert!(ready >= committed, "{ready} of {committed}");
    // Within 3 % of the arenas and the stated constant of any process.
    let most = committed + committed * 3 / 100 + process;
    assert!(ready <= most, "{ready} of {most}");
    assert!(reserve_used <= reserve, "{reserve_used} of {reserve}");
}
