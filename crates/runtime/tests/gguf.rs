//! Fixtures as llama.cpp's converter stores them, on the real path: the logits are transformers' still.
//!
//! The conversions are those of `conversion/*.py` and the names those of `gguf-py` in llama.cpp. Families whose
//! files cannot say what a fixture does (Gemma's query scale, windows in some of Qwen 2's layers) are not here.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

#[path = "../src/testing.rs"]
mod testing;

mod support;

use plimsoll_schedule::Fan;
use plimsoll_units::DType;
use support::{Model, Server, expected, fixtures};
use testing::{Folder, Meta};

/// A stored tensor.
struct Tensor {
    name: String,
    shape: Vec<u64>,
    values: Vec<f32>,
}

impl Tensor {
    fn rows(&self, order: impl Iterator<Item = usize>) -> Vec<f32> {
        let k = self.values.len() / usize::try_from(self.shape[0]).unwrap();
        order
            .flat_map(|r| self.values[r * k..][..k].to_vec())
            .collect()
    }
}

/// The tensors of a fixture, all bfloat16.
fn tensors(folder: &std::path::Path) -> Vec<Tensor> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let n = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let number = |v: &serde_json::Value| usize::try_from(v.as_u64().unwrap()).unwrap();
    let all = header.as_object().unwrap().iter();
    all.filter(|(name, _)| *name != "__metadata__")
        .map(|(name, t)| {
            assert_eq!(t["dtype"], "BF16");
            let at = |i: usize| 8 + n + number(&t["data_offsets"][i]);
            let data = bytes[at(0)..at(1)].chunks(2);
            Tensor {
                name: name.clone(),
                shape: t["shape"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|d| d.as_u64().unwrap())
                    .collect(),
                values: data
                    .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                    .collect(),
            }
        })
        .collect()
}

/// Parts of names, by Hugging Face and by ggml; the longer first where one holds another.
const NAMES: &[(&str, &str)] = &[
    ("transformer.h.", "blk."),
    ("gpt_neox.layers.", "blk."),
    ("model.layers.", "blk."),
    ("model.embed_tokens", "token_embd"),
    ("transformer.wte", "token_embd"),
    ("gpt_neox.embed_in", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("transformer.ln_f", "output_norm"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("embed_out", "output"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
];

/// What a converter does to the rows and columns of a tensor.
fn convert(family: &str, t: &mut Tensor) {
    let heads = |n: usize, rows: usize| (n, rows / n);
    let rows = usize::try_from(t.shape[0]).unwrap();
    match family {
        // `reshape(heads, 2, size / 2, …).swapaxes(1, 2)`: the fixtures have four query heads and two key heads.
        "llama" | "granite" if t.name.contains("q_proj") || t.name.contains("k_proj") => {
            let (n, size) = heads(if t.name.contains("q_proj") { 4 } else { 2 }, rows);
            let half = size / 2;
            let order = (0..n).flat_map(|h| {
                (0..half).flat_map(move |i| (0..2).map(move |side| h * size + side * half + i))
            });
            t.values = t.rows(order);
        }
        // `reshape(heads, 3, size, …)`, then all queries, all keys, all values.
        "gpt_neox" if t.name.contains("query_key_value") => {
            let size = rows / 4 / 3;
            let order = (0..3).flat_map(|j| {
                (0..4).flat_map(move |h| (0..size).map(move |i| (h * 3 + j) * size + i))
            });
            t.values = t.rows(order);
        }
        "gpt2" if t.shape.len() == 2 && t.name.contains(".c_") => {
            let columns = t.values.len() / rows;
            t.values = (0..columns)
                .flat_map(|c| (0..rows).map(move |r| r * columns + c))
                .map(|i| t.values[i])
                .collect();
            t.shape.reverse();
        }
        _ => {}
    }
}

/// Divisors of Llama 3.1's frequencies (`generate_extra_tensors`), in f32.
fn divisors(base: f32, dim: u32, factor: f32, [low, high]: [f32; 2], original: f32) -> Vec<f32> {
    (0..dim / 2)
        .map(|i| {
            let length = std::f32::consts::TAU * base.powf(2.0 * i as f32 / dim as f32);
            if length < original / high {
                1.0
            } else if length > original / low {
                factor
            } else {
                let smooth = (original / length - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect()
}

/// Writes a fixture as `model.gguf`.
fn write(family: &str, folder: &std::path::Path) -> Folder {
    let arch = if family == "gpt_neox" {
        "gptneox"
    } else {
        family
    };
    let mut meta = vec![(
        "general.architecture".to_owned(),
        Meta::Text(arch.to_owned()),
    )];
    let mut put = |key: &str, value| meta.push((format!("{arch}.{key}"), value));
    let u32s: &[(&str, u32)] = match family {
        "gpt2" => &[("block_count", 3), ("context_length", 64)],
        "qwen3" => &[
            ("block_count", 2),
            ("context_length", 128),
            ("attention.head_count_kv", 2),
        ],
        "gpt_neox" => &[("block_count", 3), ("context_length", 128)],
        _ => &[
            ("block_count", 3),
            ("context_length", 128),
            ("attention.head_count_kv", 2),
        ],
    };
    let all = [
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
    ];
    for (key, n) in u32s.iter().chain(&all) {
        put(key, Meta::U32(*n));
    }
    let more: Vec<(&str, Meta)> = match family {
        "llama" => vec![
            ("rope.freq_base", Meta::F32(500.0)),
            ("rope.dimension_count", Meta::U32(16)),
        ],
        "granite" => vec![
            ("rope.freq_base", Meta::F32(10_000.0)),
            ("attention.scale", Meta::F32(0.125)),
            ("embedding_scale", Meta::F32(6.0)),
            ("residual_scale", Meta::F32(0.6)),
            ("logit_scale", Meta::F32(3.0)),
        ],
        "qwen3" => vec![
            ("attention.key_length", Meta::U32(32)),
            ("attention.value_length", Meta::U32(32)),
            ("rope.freq_base", Meta::F32(1000.0)),
            ("rope.scaling.type", Meta::Text("yarn".into())),
            ("rope.scaling.factor", Meta::F32(4.0)),
            ("rope.scaling.original_context_length", Meta::U32(32)),
        ],
        "gpt_neox" => vec![
            ("rope.dimension_count", Meta::U32(4)),
            ("use_parallel_residual", Meta::Bool(true)),
        ],
        _ => Vec::new(),
    };
    for (key, value) in more {
        put(key, value);
    }
    let (norm, eps) = match family {
        "gpt2" => ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        "gpt_neox" => ("attention.layer_norm_epsilon", "layer_norm_eps"),
        _ => ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    };
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    put(norm, Meta::F32(config[eps].as_f64().unwrap() as f32));

    let mut stored = Vec::new();
    for mut t in tensors(folder) {
        convert(family, &mut t);
        for (from, to) in NAMES {
            t.name = t.name.replace(from, to);
        }
        stored.push(t);
    }
    if family == "llama" {
        let values = divisors(500.0, 16, 4.0, [1.0, 4.0], 32.0);
        let (name, shape) = ("rope_freqs.weight".to_owned(), vec![8]);
        stored.push(Tensor {
            name,
            shape,
            values,
        });
    }
    let tensors: Vec<(&str, u32, &[u64], Vec<u8>)> = stored
        .iter()
        .map(|t| {
            // Vectors are f32, matrices bfloat16: nothing is rounded.
            let (kind, bytes) = if t.shape.len() == 1 {
                (0, t.values.iter().flat_map(|x| x.to_le_bytes()).collect())
            } else {
                let half = |x: &f32| ((x.to_bits() >> 16) as u16).to_le_bytes();
                (30, t.values.iter().flat_map(half).collect())
            };
            (t.name.as_str(), kind, t.shape.as_slice(), bytes)
        })
        .collect();
    let out = Folder::new();
    let meta: Vec<(&str, Meta)> = meta.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    out.gguf("model.gguf", &meta, &tensors);
    out
}

#[test]
fn gguf_files_have_the_logits_of_their_checkpoints() {
    let mut found = 0;
    for folder in fixtures() {
        let family = folder.file_name().unwrap().to_str().unwrap().to_owned();
        if !["llama", "granite", "qwen3", "gpt2", "gpt_neox"].contains(&family.as_str()) {
            continue;
        }
        found += 1;
        let file = write(&family, &folder);
        let model = Model::gguf(&file.0);
        let (prompt, want) = expected(&folder);
        let server = Server {
            kv: DType::F32,
            ..Server::default()
        };
        let (_, seen, _) = model.serve(&server, &[(prompt.clone(), 1, Fan::ONE)]);
        let vocab = want.len() / prompt.len();
        let size = want.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        let mut worst = 0.0_f32;
        for (i, want) in want.chunks(vocab).enumerate() {
            let got = &seen[&(0, 0, u32::try_from(i).unwrap())];
            for (g, w) in got.iter().zip(want) {
                worst = worst.max((f32::from_bits(*g) - w).abs());
            }
        }
        println!("{family}: largest difference {worst:.2e} of {size:.2}");
        // As for checkpoints with a float32 cache; only the order of sums differs (see `logits.rs`).
        assert!(worst <= 2e-5 * size, "{family}: {worst} of {size}");
    }
    assert_eq!(found, 5);
}
