//! What tests of `plimsoll generate` have in common.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// A folder that is gone after the test.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("plimsoll-generate-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }

    /// A copy of a fixture's checkpoint with a tokenizer of one word per token.
    pub(crate) fn model(&self, family: &str) -> String {
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

pub(crate) fn plimsoll(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

pub(crate) fn generate(args: &[&str]) -> String {
    let out = plimsoll(&[&["generate"], args].concat());
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Words that the vocabulary has.
pub(crate) fn words(seed: usize, n: usize) -> String {
    let word = |i: usize| format!("w{}", 4 + (i * i * 31 + seed * 17 + i) % 250);
    (0..n).map(word).collect::<Vec<_>>().join(" ")
}

/// The lines that `--prompts` gives for these, in their order.
pub(crate) fn answers(dir: &Dir, model: &str, lines: &[Value], more: &[&str]) -> Vec<Value> {
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    let file = dir.write("lines.jsonl", text.join("\n"));
    let out = generate(&[&[model, "--prompts", &file], more].concat());
    let mut all: Vec<Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    all.sort_by_key(|v| v["index"].as_u64());
    assert_eq!(all.len(), lines.len());
    all
}

/// The demo model, with its files kept in `home`.
pub(crate) fn demo(home: &Dir, args: &[&str]) -> (String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .env("HF_HOME", home.path("hf"))
        .env("NO_COLOR", "1")
        .current_dir(&home.0)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let text = |b| String::from_utf8(b).unwrap();
    (text(out.stdout), text(out.stderr))
}
