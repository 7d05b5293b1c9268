//! The fuzz corpus as plain tests: every seed, and thousands of mutations of it, through the
//! functions that the fuzz targets call. None may panic or take long.
//!
//! The seeds are small files from `support`; `cargo test -p plimsoll-model --test corpus -- --ignored`
//! writes them again.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

#[path = "../../../fuzz/entries.rs"]
mod entries;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::{Gguf, safetensors, safetensors_raw, string};

/// Mutations of each target.
const MUTATIONS: usize = 6000;
/// Far above what any takes, for machines that are busy.
const SLOWEST: Duration = Duration::from_secs(5);

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target)
}

fn read(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(corpus(target))
        .unwrap()
        .map(|e| {
            let e = e.unwrap();
            (
                e.file_name().to_string_lossy().into_owned(),
                std::fs::read(e.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    assert!(files.len() > 3, "the corpus of {target} is gone");
    files
}

/// A generator of our own, so that the same mutations come on every machine and version: Knuth's
/// multiplier for 64 bits, upper half of the state.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 32
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() as usize) % n.max(1)
    }
}

/// Numbers at which size arithmetic breaks.
const EDGES: [u64; 12] = [
    0,
    1,
    7,
    31,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 60,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Words of JSON that change what a reader does next.
const WORDS: [&str; 12] = [
    "null",
    "{}",
    "[]",
    "-1",
    "1e400",
    "18446744073709551616",
    "\"",
    "{\"a\":",
    "9223372036854775807",
    "NaN",
    "Infinity",
    "-Infinity",
];

fn mutate(seed: &[u8], other: &[u8], rng: &mut Lcg) -> Vec<u8> {
    let mut out = seed.to_vec();
    for _ in 0..=rng.below(3) {
        let at = rng.below(out.len() + 1);
        // Most of what matters is near the start.
        let at = if rng.below(2) == 0 {
            at
        } else {
            at % 256.min(out.len() + 1)
        };
        match rng.below(9) {
            0 if at < out.len() => out[at] ^= 1 << rng.below(8),
            1 if at < out.len() => out[at] = rng.next() as u8,
            2 => out.truncate(at),
            3 => out.insert(at, rng.next() as u8),
            4 => {
                let edge = EDGES[rng.below(EDGES.len())].to_le_bytes();
                let width = if rng.below(2) == 0 { 4 } else { 8 };
                for (slot, b) in out.iter_mut().skip(at).take(width).zip(edge) {
                    *slot = b;
                }
            }
            5 => {
                let end = (at + rng.below(40)).min(out.len());
                out.drain(at.min(end)..end);
            }
            6 => {
                let end = (at + rng.below(80)).min(out.len());
                let part = out[at.min(end)..end].to_vec();
                out.splice(at..at, part);
            }
            7 => {
                let from = rng.below(other.len() + 1);
                let part = &other[from..(from + rng.below(60)).min(other.len())];
                out.splice(at..at, part.iter().copied());
            }
            _ => {
                let word = WORDS[rng.below(WORDS.len())];
                // In place of a number or word, where one is near.
                let start = out[at..]
                    .iter()
                    .position(u8::is_ascii_digit)
                    .map_or(at, |p| at + p);
                let len = out[start..]
                    .iter()
                    .take_while(|b| b.is_ascii_alphanumeric())
                    .count();
                out.splice(start..start + len, word.bytes());
            }
        }
    }
    out
}

fn run(target: &str, entry: fn(&[u8])) {
    let seeds = read(target);
    for (_, seed) in &seeds {
        entry(seed);
    }
    let mut rng = Lcg(0x706c_696d_736f_6c6c);
    for i in 0..MUTATIONS {
        let (name, seed) = &seeds[i % seeds.len()];
        let (_, other) = &seeds[rng.below(seeds.len())];
        let bytes = mutate(seed, other, &mut rng);
        let start = Instant::now();
        if std::panic::catch_unwind(|| entry(&bytes)).is_err() {
            let path = std::env::temp_dir().join(format!("plimsoll-{target}-{i}"));
            let _ = std::fs::write(&path, &bytes);
            panic!(
                "mutation {i} of {name} panics; it is kept in {}",
                path.display()
            );
        }
        assert!(
            start.elapsed() < SLOWEST,
            "mutation {i} of {name} takes {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn gguf_files() {
    run("gguf", entries::gguf);
}

#[test]
fn safetensors_files() {
    run("safetensors", entries::safetensors);
}

#[test]
fn configs() {
    run("config", entries::config);
}

#[test]
fn indexes() {
    run("index", entries::index);
}

fn write(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(corpus(target)).unwrap();
    std::fs::write(corpus(target).join(name), bytes).unwrap();
}

/// A LLaMA of one layer with 8 hidden units, or the same under another architecture's keys.
fn small_gguf(arch: &str) -> Gguf {
    let mut g = Gguf::decoder(arch, 1, 32, 2, 1, 32)
        .strings("tokenizer.ggml.tokens", 32, |i| format!("t{i}"))
        .array("tokenizer.ggml.scores", 6, 32, &[0; 128])
        .tensor("token_embd.weight", &[32, 32], 2)
        .tensor("output_norm.weight", &[32], 0);
    for (name, shape) in [
        ("attn_q", [32, 32]),
        ("attn_k", [32, 16]),
        ("attn_v", [32, 16]),
        ("ffn_up", [32, 32]),
    ] {
        g = g.tensor(&format!("blk.0.{name}.weight"), &shape, 2);
    }
    g
}

#[test]
#[ignore = "writes the seeds"]
fn write_seeds() {
    for arch in ["llama", "gpt2", "qwen3", "gemma2", "gemma3", "phi3"] {
        write("gguf", arch, small_gguf(arch).file());
    }
    let moe = |arch: &str| {
        small_gguf(arch)
            .u32(&format!("{arch}.expert_count"), 2)
            .u32(&format!("{arch}.expert_used_count"), 1)
            .u32(&format!("{arch}.expert_feed_forward_length"), 32)
            .tensor("blk.0.ffn_down_exps.weight", &[32, 32, 2], 2)
    };
    for arch in ["llama", "qwen3moe", "gpt-oss", "granitemoe"] {
        let g = moe(arch).u32(&format!("{arch}.attention.sliding_window"), 16);
        write("gguf", &format!("moe-{arch}"), g.file());
    }
    let next = moe("qwen3next")
        .u32("qwen3next.ssm.conv_kernel", 4)
        .u32("qwen3next.ssm.inner_size", 32)
        .u32("qwen3next.ssm.state_size", 16)
        .u32("qwen3next.ssm.time_step_rank", 2)
        .u32("qwen3next.ssm.group_count", 1);
    write("gguf", "qwen3next", next.file());
    let mla = moe("deepseek2")
        .u32("deepseek2.attention.kv_lora_rank", 16)
        .u32("deepseek2.rope.dimension_count", 4)
        .u32("deepseek2.attention.key_length", 20)
        .u32("deepseek2.attention.value_length", 16);
    write("gguf", "deepseek2", mla.file());
    let split = small_gguf("llama")
        .u16("split.no", 0)
        .u16("split.count", 2)
        .u32("general.alignment", 32);
    write("gguf", "split", split.file());
    let nested = [
        &4_u32.to_le_bytes()[..],
        &1_u64.to_le_bytes(),
        &[1, 0, 0, 0],
    ]
    .concat();
    let types = (0..13_u32).fold(Gguf::default(), |g, t| match t {
        8 => g.raw(b"k8", 8, &string(b"text")),
        9 => g.array("k9", 9, 2, &nested.repeat(2)),
        7 => g.raw(b"k7", 7, &[1]),
        t => g.raw(
            format!("k{t}").as_bytes(),
            t,
            &vec![0xff; [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][t as usize]],
        ),
    });
    write("gguf", "every-value-type", types.file());

    let names = [
        ("model.embed_tokens.weight", &[8, 8][..]),
        ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
        ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
        ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
        ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
        ("model.layers.0.mlp.gate_proj.weight", &[8, 8]),
        ("model.layers.0.mlp.up_proj.weight", &[8, 8]),
        ("model.layers.0.mlp.down_proj.weight", &[8, 8]),
        ("model.layers.0.input_layernorm.weight", &[8]),
        ("model.layers.0.post_attention_layernorm.weight", &[8]),
        ("model.norm.weight", &[8]),
    ];
    let all: Vec<(&str, &str, &[u64], u64)> = names
        .iter()
        .map(|(n, s)| (*n, "F16", *s, 2 * s.iter().product::<u64>()))
        .collect();
    write("safetensors", "llama", safetensors(&all));
    write("safetensors", "half", safetensors(&all[..5]));
    let mut more = all.clone();
    more.push(("lm_head.weight", "F16", &[8, 8], 128));
    more.push((
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "F32",
        &[2],
        8,
    ));
    more.push(("other", "F8_E4M3", &[3], 3));
    write("safetensors", "more", safetensors(&more));
    write(
        "safetensors",
        "scalars",
        safetensors(&[
            ("a", "F32", &[], 4),
            ("b", "F4", &[2], 1),
            ("c", "BF16", &[0, 4], 0),
        ]),
    );
    write(
        "safetensors",
        "metadata",
        safetensors_raw(r#"{"__metadata__":{"format":"pt"}}   "#, 0),
    );

    write("config", "llama.json", entries::CONFIG);
    // One config of each shape that the catalogue has: by family, the first.
    let mut seen = std::collections::BTreeSet::new();
    for e in plimsoll_model::catalogue::entries() {
        let kind = e
            .config
            .get("model_type")
            .and_then(|t| t.as_str())
            .unwrap_or("none");
        if seen.insert(kind.to_owned()) {
            write("config", &format!("{kind}.json"), e.config.to_string());
        }
    }
    write(
        "config",
        "infinity.json",
        r#"{"model_type":"llama","a":[NaN,Infinity,-Infinity,"\"NaN"]}"#,
    );

    write(
        "index",
        "two.json",
        r#"{"metadata":{"total_size":4},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#,
    );
    write(
        "index",
        "outside.json",
        r#"{"weight_map":{"a":"../x.safetensors"}}"#,
    );
    write(
        "index",
        "pickle.json",
        r#"{"weight_map":{"a":"pytorch_model-00001-of-00002.bin"}}"#,
    );
    write(
        "index",
        "twice.json",
        r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#,
    );
    write(
        "index",
        "escapes.json",
        r#"{"weight_map":{"\u0061\u0000":"\u0078.safetensors"}}"#,
    );
}
