//! `plimsoll generate` as users meet it, on a tiny checkpoint: the same text however it is computed, its log
//! replayed by the simulator, and one clear error for what cannot be run.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// A folder that is gone after the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("plimsoll-generate-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }

    /// A copy of a fixture's checkpoint with a tokenizer of one word per token.
    fn model(&self, family: &str) -> String {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../runtime/tests/fixtures")
            .join(family);
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(name), self.0.join(name)).unwrap();
        }
        let vocab: serde_json::Map<String, Value> =
            (0..256).map(|i| (format!("w{i}"), json!(i))).collect();
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" },
            "post_processor": null,
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
        });
        self.write("tokenizer.json", tokenizer.to_string());
        self.0.to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn plimsoll(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn generate(args: &[&str]) -> String {
    let out = plimsoll(&[&["generate"], args].concat());
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Words that the vocabulary has.
fn words(seed: usize, n: usize) -> String {
    let word = |i: usize| format!("w{}", 4 + (i * i * 31 + seed * 17 + i) % 250);
    (0..n).map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn text_does_not_depend_on_how_it_is_computed() {
    for family in ["llama", "granite_hybrid"] {
        one_text(family);
    }
}

fn one_text(family: &str) {
    let dir = Dir::new();
    let model = dir.model(family);
    let prompt = words(1, 30);
    let run = |more: &[&str]| {
        let all = [
            &[&model[..], "-p", &prompt, "-n", "20", "--ignore-eos"],
            more,
        ]
        .concat();
        generate(&all)
    };
    let text = run(&["--temperature", "0"]);
    assert!(
        text.starts_with(&prompt) && text.len() > prompt.len() + 20,
        "{text}"
    );
    for more in [
        ["--cpu-level", "scalar"],
        ["--threads", "1"],
        ["--max-num-batched-tokens", "17"],
        ["--block-size", "5"],
    ] {
        assert_eq!(
            run(&[&["--temperature", "0"], &more[..]].concat()),
            text,
            "{more:?}"
        );
    }
    // Draws depend on the seed, and on nothing else.
    let one = run(&["--seed", "7"]);
    assert_eq!(run(&["--seed", "7", "--cpu-level", "scalar"]), one);
    assert_ne!(run(&["--seed", "8"]), one);
}

#[test]
fn a_run_under_pressure_says_the_same_and_its_log_replays() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let lines: Vec<String> = (0..12)
        .map(|i| json!({ "prompt": words(i, 12 + i), "max_tokens": 60 }).to_string())
        .collect();
    let prompts = dir.write("prompts.jsonl", lines.join("\n"));
    let log = dir.path("run.log");
    let run = |more: &[&str]| -> Vec<Value> {
        let args = [
            &[
                &model[..],
                "--prompts",
                &prompts,
                "--ignore-eos",
                "--seed",
                "3",
            ],
            more,
        ]
        .concat();
        let text = generate(&args);
        let mut all: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        all.sort_by_key(|v| v["index"].as_u64());
        all
    };
    let roomy = run(&[]);
    let tight = run(&[
        "--kv-memory",
        "128KiB",
        "--swap-space",
        "1MiB",
        "--log",
        &log,
    ]);
    assert_eq!(roomy.len(), 12);
    let preempted: u64 = tight
        .iter()
        .map(|v| v["preemptions"].as_u64().unwrap())
        .sum();
    assert!(preempted > 0, "{tight:?}");
    for (a, b) in roomy.iter().zip(&tight) {
        assert_eq!(a["texts"], b["texts"]);
        assert_eq!(a["output_tokens"], json!(60));
    }
    let replay = plimsoll(&["simulate", "--replay", &log]);
    assert!(replay.status.success(), "{replay:?}");
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let prompt = words(5, 10);
    let args = [
        &model[..],
        "-p",
        &prompt,
        "-n",
        "40",
        "--temperature",
        "0",
        "--ignore-eos",
    ];
    let whole = generate(&args);
    let answer: Vec<&str> = whole[prompt.len()..].split_whitespace().collect();
    // The first words of the answer, up to one that comes again nowhere before it.
    let at = (3..answer.len())
        .find(|&i| !answer[..i].contains(&answer[i]))
        .unwrap();
    let stop = format!("{} ", answer[at]);
    let cut = generate(&[&args[..], &["--stop", &stop]].concat());
    let shown: Vec<&str> = cut[prompt.len()..].split_whitespace().collect();
    assert_eq!(shown, answer[..at]);
}

/// Each answer of several is a text of its own, by the same rules as one that is shown as it comes.
#[test]
fn the_first_of_several_answers_is_the_only_one_of_one() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let prompt = words(2, 8);
    let base = [
        &model[..],
        "-p",
        &prompt,
        "-n",
        "30",
        "--ignore-eos",
        "--seed",
        "5",
    ];
    let several = |more: &[&str]| -> Vec<String> {
        let text = generate(&[&base[..], &["--samples", "3"], more].concat());
        let answers = text.split("\n---\n").filter(|a| !a.is_empty());
        answers.map(str::to_owned).collect()
    };
    let all = several(&[]);
    assert_eq!(all.len(), 3);
    assert_eq!(all[0], generate(&base).trim_end_matches('\n'));
    assert!(all[0] != all[1] && all[1] != all[2]);
    // A word in the middle of the second ends it there, and the others where they have it.
    let word = all[1][prompt.len()..].split_whitespace().nth(9).unwrap();
    let stop = format!("{word} ");
    let cut = |text: &String| -> String {
        let answer = &text[prompt.len()..];
        let end = answer.find(&stop).unwrap_or(answer.len());
        text[..prompt.len() + end].to_owned()
    };
    let stopped = several(&["--stop", &stop]);
    assert_eq!(stopped, all.iter().map(cut).collect::<Vec<_>>());
    assert_ne!(stopped[1], all[1]);
    // And nothing is generated behind it: the space in the stop comes with the word after.
    let until = |text: &String| {
        let words: Vec<&str> = text[prompt.len()..].split_whitespace().collect();
        let at = words[..words.len() - 1].iter().position(|w| *w == word);
        at.map_or(30, |i| i as u64 + 2)
    };
    let line = json!({ "prompt": prompt, "max_tokens": 30 }).to_string();
    let file = dir.write("one.jsonl", line);
    let args = [
        "--prompts",
        &file,
        "--samples",
        "3",
        "--ignore-eos",
        "--seed",
        "5",
    ];
    let out = generate(&[&[&model[..]], &args[..], &["--stop", &stop]].concat());
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        out["output_tokens"],
        json!(all.iter().map(until).sum::<u64>())
    );
}

#[test]
fn weights_that_are_rounded_are_told() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let args = [
        "generate",
        &model[..],
        "-p",
        "w7 w9",
        "-n",
        "12",
        "--temperature",
        "0",
    ];
    let before = plimsoll(&args);
    assert!(!String::from_utf8_lossy(&before.stderr).contains("note:"));
    for weights in ["int8", "int4"] {
        let out = plimsoll(&[&args[..], &["--weights", weights]].concat());
        assert!(out.status.success());
        let note = format!("matrices stored as bf16 are quantised to {weights}");
        assert!(String::from_utf8_lossy(&out.stderr).contains(&note));
    }
    // The same numbers, stored as float32.
    let file = dir.path("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let n = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header = String::from_utf8(bytes[8..8 + n].to_vec()).unwrap();
    let mut header: serde_json::Map<String, Value> = serde_json::from_str(&header).unwrap();
    for (_, t) in header.iter_mut().filter(|(k, _)| *k != "__metadata__") {
        t["dtype"] = json!("F32");
        for i in 0..2 {
            t["data_offsets"][i] = json!(2 * t["data_offsets"][i].as_u64().unwrap());
        }
    }
    let header = Value::Object(header).to_string();
    let mut wide = (header.len() as u64).to_le_bytes().to_vec();
    wide.extend(header.as_bytes());
    wide.extend(bytes[8 + n..].chunks(2).flat_map(|b| [0, 0, b[0], b[1]]));
    std::fs::write(&file, wide).unwrap();
    let after = plimsoll(&args);
    assert!(after.status.success(), "{after:?}");
    assert!(
        String::from_utf8_lossy(&after.stderr).contains("f32"),
        "{after:?}"
    );
    assert_eq!(before.stdout, after.stdout);
}

#[test]
fn what_cannot_be_run_is_one_clear_error() {
    let dir = Dir::new();
    let model = dir.model("llama");
    let fails = |args: &[&str], code: i32, says: &str| {
        let out = plimsoll(&[&["generate"], args].concat());
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{err}");
        assert!(err.contains(says), "{says} is not in {err}");
        assert!(!err.contains("panicked") && out.stdout.is_empty(), "{err}");
    };
    fails(&["llama-13b", "-p", "x"], 4, "weights");
    fails(&["/nowhere/at/all", "-p", "x"], 4, "nowhere");
    let empty = dir.write("empty.jsonl", "");
    fails(&[&model, "--prompts", &empty], 65, "no prompt");
    let bad = dir.write("bad.jsonl", "{\"prompt\": \"w5\"}\n{\"text\": 1}\n");
    fails(&[&model, "--prompts", &bad], 65, "line 2");
    fails(
        &[&model, "-p", "w5", "--temperature", "9"],
        2,
        "temperature",
    );
    fails(
        &[&model, "-p", "w5", "--kv-memory", "1KiB"],
        3,
        "do not fit",
    );
    fails(
        &[&model, "-p", &words(0, 300)],
        2,
        "300 tokens leave no room",
    );
    fails(&[&model, "-p", ""], 2, "something to go on from");
    let narrow = ["--samples", "4", "--max-num-seqs", "1"];
    fails(
        &[&[&model[..], "-p", "w5"], &narrow[..]].concat(),
        2,
        "--max-num-seqs",
    );
    fails(
        &[&model, "-p", "w5", "--kv-cache-dtype", "fp8"],
        2,
        "KV cache",
    );
    let file = dir.path("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    fails(&[&model, "-p", "w5"], 65, "model.safetensors");
    std::fs::write(&file, &bytes).unwrap();
    dir.write("tokenizer.json", "{\"version\": \"1.0\"");
    fails(&[&model, "-p", "w5"], 65, "tokenizer.json");
    // What nobody has lowered yet can be planned, not run.
    let other = Dir::new();
    let mamba = other.model("llama");
    let config = other.path("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("LlamaForCausalLM", "NoSuchForCausalLM")
            .replace("\"llama\"", "\"no_such\""),
    )
    .unwrap();
    fails(&[&mamba, "-p", "w5"], 65, "no_such");
}
