//! What configs and files lower to: frequencies of rotary embeddings, GGUF files beside their checkpoints, sizes; and what
//! does not lower.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use std::path::Path;

use plimsoll_model::gguf;
use plimsoll_model::read_at::{ReadAt, ReadError};
use plimsoll_model::{Assume, ModelSpec, Role, catalogue};
use plimsoll_program::{Limits, LowerError, Op, Program, Weight, WeightLayout, lower};
use serde_json::{Value, json};
use support::models::{LIMITS, RULES, config};
use support::{Reader, fixtures, name, spec, tensors};

// ---------------------------------------------------------------- rotary frequencies

/// Steps between two floats.
fn apart(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

#[test]
fn frequencies_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rope.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut cases = 0;
    for case in file["cases"].as_array().unwrap() {
        let name = &case["name"];
        let limits = Limits {
            context: case["context"].as_u64().unwrap(),
            ..LIMITS
        };
        let p = lower(&config(&case["config"]), &limits, &RULES).unwrap();
        let tables: Vec<_> = p
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Rotary(t) => Some(t),
                _ => None,
            })
            .collect();
        assert_eq!(tables.len(), 1, "{name}");
        let want: Vec<f32> = case["bits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| f32::from_bits(u32::try_from(b.as_u64().unwrap()).unwrap()))
            .collect();
        assert_eq!(tables[0].frequencies.len(), want.len(), "{name}");
        // Where torch rounds a power the other way, what is computed from it is a step away.
        for (have, want) in tables[0].frequencies.iter().zip(&want) {
            assert!(apart(*have, *want) <= 1, "{name}: {have} for {want}");
        }
        #[allow(clippy::cast_possible_truncation, reason = "models multiply in f32")]
        let scale = case["scale"].as_f64().unwrap() as f32;
        assert!(
            apart(tables[0].scale, scale) <= 1,
            "{name}: {}",
            tables[0].scale
        );
        cases += 1;
    }
    assert!(cases >= 9, "{cases}");
}

// ---------------------------------------------------------------- GGUF

/// The fixture as llama.cpp's converter would store it: its names, and query and key rows reordered so that
/// rotated pairs are neighbours.
#[test]
fn a_llama_of_a_gguf_file_computes_the_same() {
    let folder = fixtures().into_iter().find(|f| name(f) == "llama").unwrap();
    let plain = spec(&folder);
    let stored = tensors(&folder.join("model.safetensors"));
    let renamed = |name: &str| {
        let mut s = name.replace("model.layers.", "blk.");
        for (from, to) in [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ] {
            s = s.replace(from, to);
        }
        s
    };
    let mut spec = plain.clone();
    for t in &mut spec.tensors {
        t.name = renamed(&t.name);
    }
    if let Ok(a) = &mut spec.arithmetic
        && let plimsoll_model::Positions::Rotary { interleaved, .. } = &mut a.positions
    {
        *interleaved = true;
    }
    let head = 16;
    let reordered = stored
        .iter()
        .map(|(name, t)| {
            let columns = usize::try_from(*t.shape.last().unwrap()).unwrap();
            let rows = t.values.len() / columns;
            let turn = name.contains("q_proj") || name.contains("k_proj");
            // Row i of a head's first half comes before row i of its second.
            let from = |r: usize| match (turn, r % head) {
                (false, _) => r,
                (true, i) => r - i + i / 2 + (i % 2) * head / 2,
            };
            let values = (0..rows)
                .flat_map(|r| t.values[from(r) * columns..][..columns].to_vec())
                .collect();
            let shape = t.shape.clone();
            (renamed(name), support::Tensor { shape, values })
        })
        .collect();
    let ids = [3, 77, 5, 250, 19, 42, 7, 7, 130];
    let run = |spec: &ModelSpec, tensors: &support::Tensors| {
        let p = lower(spec, &LIMITS, &RULES).unwrap();
        Reader::new(&p, tensors).logits(&ids)
    };
    let (a, b) = (run(&plain, &stored), run(&spec, &reordered));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }
}

// ---------------------------------------------------------------- what does not lower

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut json = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 256,
        "max_position_embeddings": 128,
    });
    assert!(lower(&config(&json), &LIMITS, &RULES).is_ok());
    change(&mut json);
    lower(&config(&json), &LIMITS, &RULES)
        .unwrap_err()
        .to_string()
}

#[test]
fn what_is_unknown_is_refused_with_the_field() {
    for (key, value, says) in [
        ("hidden_act", json!("xielu"), "`hidden_act` is \"xielu\""),
        ("rms_norm_eps", json!("1e-5"), "`rms_norm_eps` is \"1e-5\""),
        ("rope_theta", json!(-1), "`rope_theta` is -1"),
        (
            "rope_scaling",
            json!({"rope_type": "axial"}),
            "`rope_scaling.rope_type` is \"axial\"",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "linear"}),
            "`rope_scaling.factor` is absent",
        ),
        (
            "rope_scaling",
            json!({"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}),
            "expected 8 numbers above 0",
        ),
        (
            "partial_rotary_factor",
            json!(0.2),
            "expected an even number",
        ),
    ] {
        let text = refused(|c| c[key] = value);
        assert!(text.contains(says), "{key}: {text}");
    }
    let text = refused(|c| {
        c["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
        c["max_position_embeddings"] = json!(32);
    });
    assert!(text.contains("limit the context"), "{text}");
}

#[test]
fn families_without_a_lowering_say_so() {
    let mut not_yet = Vec::new();
    for entry in catalogue::entries() {
        let spec = config(&entry.config);
        let limits = Limits {
            context: 1024,
            ..LIMITS
        };
        if let Err(e) = lower(&spec, &limits, &RULES) {
            assert!(e.to_string().contains(spec.family), "{}: {e}", entry.name);
            if !e.to_string().contains("weights are quantised") {
                not_yet.push(spec.family);
            }
        }
    }
    not_yet.sort_unstable();
    not_yet.dedup();
    assert!(not_yet.contains(&"qwen3_next"), "{not_yet:?}");
    for runs in [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "phi3",
        "gemma2",
        "gemma3",
        "opt",
        "gpt2",
        "mixtral",
        "qwen3_moe",
        "deepseek",
        "gpt_oss",
    ] {
        assert!(!not_yet.contains(&runs), "{runs}");
    }
}

#[test]
fn a_tensor_that_nothing_reads_is_refused() {
    let folder = fixtures().into_iter().find(|f| name(f) == "llama").unwrap();
    let mut spec = spec(&folder);
    let mut more = spec.tensors[1].clone();
    more.name = "model.layers.0.self_attn.gate.weight".to_owned();
    spec.tensors.push(more);
    let text = lower(&spec, &LIMITS, &RULES).unwrap_err().to_string();
    assert!(
        text.contains("no operation reads its `model.layers.0.self_attn.gate.weight`"),
        "{text}"
    );
    // A missing one too.
    spec.tensors.pop();
    spec.tensors
        .retain(|t| !t.name.contains("layers.1.mlp.up_proj"));
    let text = lower(&spec, &LIMITS, &RULES).unwrap_err().to_string();
    assert!(
        text.contains("no `mlp.up_proj.weight` in layer 1"),
        "{text}"
    );
}

#[test]
fn sizes_past_64_bits_are_an_error() {
    let folder = fixtures().into_iter().find(|f| name(f) == "llama").unwrap();
    let limits = Limits {
        tokens: u64::MAX / 64,
        ..LIMITS
    };
    let e = lower(&spec(&folder), &limits, &RULES).unwrap_err();
    assert!(matches!(e, LowerError::Size(_)), "{e}");
}

#[test]
fn longrope_takes_its_divisors_by_the_longest_sequence() {
    let folder = fixtures().into_iter().find(|f| name(f) == "phi3").unwrap();
    let spec = spec(&folder);
    let frequencies = |context| {
        let p = lower(&spec, &Limits { context, ..LIMITS }, &RULES).unwrap();
        p.ops.iter().find_map(|op| match op {
            Op::Rotary(t) => Some(t.frequencies.clone()),
            _ => None,
        })
    };
    assert_eq!(frequencies(16), frequencies(32));
    assert_ne!(frequencies(32), frequencies(33));
}

/// Published configs keep the part that is rotated beside `rope_scaling`, not in it.
#[test]
fn phi_4_mini_lowers_from_its_published_config() {
    let factors = vec![1.5; 48];
    let spec = config(&json!({
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 2, "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200_064,
        "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096, "sliding_window": 262_144,
        "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "attention_bias": false, "full_attn_mod": 1, "interpolate_factor": 1, "hidden_act": "silu",
        "rope_scaling": {"long_factor": factors, "short_factor": factors, "type": "longrope"},
    }));
    let p = lower(&spec, &LIMITS, &RULES).unwrap();
    let turned = p.ops.iter().filter_map(|op| match op {
        Op::Rotate { heads, head, .. } => Some((*heads, *head)),
        _ => None,
    });
    assert!(turned.eq([(32, 128), (32, 128)]));
    let frequencies = p.ops.iter().find_map(|op| match op {
        Op::Rotary(t) => Some(t.frequencies.len()),
        _ => None,
    });
    assert_eq!(frequencies, Some(48));
    assert!(!p.weights.iter().any(|w| w.role == Role::Head));
}

/// The header of a file whose data is not there.
struct Headless {
    size: u64,
    head: Vec<u8>,
}

impl ReadAt for Headless {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        buf.fill(0);
        let from = usize::try_from(offset).unwrap().min(self.head.len());
        let n = (self.head.len() - from).min(buf.len());
        buf[..n].copy_from_slice(&self.head[from..from + n]);
        Ok(())
    }
}

/// Headers of published shapes, from `crates/model/tests/golden/gguf`: what a file gives is what the checkpoint
/// with the same config gives, under other names.
#[test]
fn gguf_files_lower_as_their_checkpoints_do() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/gguf");
    let (mut families, mut refused) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).unwrap();
        let (size, head) = bytes.split_first_chunk::<8>().unwrap();
        let (size, head) = (u64::from_le_bytes(*size), head.to_vec());
        let header = gguf::Header::read(&Headless { size, head }).unwrap();
        let Ok((json, spec)) = gguf::spec(&header, Assume::Nothing) else {
            continue;
        };
        let file = match lower(&spec, &LIMITS, &RULES) {
            Err(LowerError::NotYet { .. }) => continue,
            Err(e)
                if e.to_string().contains("of GGUF files")
                // Older converters left out how gpt-oss rotates.
                || e.to_string().contains("`rope_scaling` is missing") =>
            {
                refused.push(spec.family);
                continue;
            }
            other => other.unwrap_or_else(|e| panic!("{name}: {e}")),
        };
        let checkpoint = lower(&config(&json), &LIMITS, &RULES).unwrap();
        let weights = |p: &Program| -> Vec<(String, WeightLayout)> {
            let divides = |w: &Weight| w.name == "rotary_divisors";
            let kept = p.weights.iter().filter(|w| !divides(w));
            kept.map(|w| (w.name.clone(), w.layout)).collect()
        };
        assert_eq!(weights(&file), weights(&checkpoint), "{name}");
        assert_eq!(file.buffers, checkpoint.buffers, "{name}");
        assert_eq!(file.ops.len(), checkpoint.ops.len(), "{name}");
        assert_eq!(file.geometry, checkpoint.geometry, "{name}");
        families.push(spec.family);
    }
    families.sort_unstable();
    families.dedup();
    assert_eq!(
        families,
        [
            "gemma2", "gemma3", "gpt2", "gpt_neox", "granite", "llama", "phi3", "qwen2", "qwen3"
        ]
    );
    refused.sort_unstable();
    refused.dedup();
    assert_eq!(refused, ["deepseek", "gpt_oss", "mixtral", "qwen3_moe"]);
}
