//! The tensors of a GGUF file as an inventory: what each is for, and where it belongs.
//!
//! Names: `LLM_TENSOR_NAMES` in llama.cpp's `src/llama-arch.cpp`.

use serde_json::Value as Json;

use super::{GgufTensor, Header, Value, to_config};
use crate::arithmetic::{Arithmetic, Norm, Positions};
use crate::builder::{columns, heads};
use crate::json::printable;
use crate::spec::{Ffn, LayerSpec, Mixer, ModelSpec};
use crate::tensor::{Axis, Linear, Role, Shard, TensorSpec};
use crate::{Assume, ModelError, from_config};

/// Why a GGUF header gives no model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufSpecError {
    /// The metadata do not describe a model that we know.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Metadata and tensors disagree.
    #[error("metadata and tensors are of different models: {0}")]
    Mismatch(String),
}

/// What a tensor is for, and its layer, by its name alone.
#[must_use]
pub fn role_of(name: &str) -> (Role, Option<u32>) {
    if let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|r| r.split_once('.'))
        && let Ok(layer) = layer.parse()
    {
        return (block_role(rest), Some(layer));
    }
    let stem = name.split('.').next().unwrap_or(name);
    let role = match stem {
        "token_embd" | "per_layer_token_embd" | "token_types" => Role::Embedding,
        "position_embd" | "rope_freqs" | "rope_factors_long" | "rope_factors_short" => {
            Role::Position
        }
        "output" => Role::Head,
        "v" | "mm" | "a" => Role::Encoder,
        "nextn" => Role::Mtp,
        s if s.contains("norm") => Role::Norm,
        _ => Role::Other,
    };
    (role, None)
}

fn block_role(rest: &str) -> Role {
    let stem = rest.split('.').next().unwrap_or(rest);
    match stem {
        "nextn" => Role::Mtp,
        s if s.contains("norm") => Role::Norm,
        "ffn_gate_inp" | "ffn_gate_inp_shexp" | "exp_probs_b" | "ffn_gate_tid2eid" => Role::Router,
        s if s.ends_with("_shexp") => Role::SharedExperts,
        s if s.ends_with("exps") => Role::Experts,
        // Files of 2023 have a tensor per expert: `ffn_gate.7.weight`.
        "ffn_gate" | "ffn_up" | "ffn_down"
            if rest
                .split('.')
                .nth(1)
                .is_some_and(|n| n.parse::<u32>().is_ok()) =>
        {
            Role::Experts
        }
        s if s.starts_with("ffn") => Role::Mlp,
        s if s.starts_with("attn") || s.starts_with("indexer") => Role::Attention,
        s if s.starts_with("ssm") || s.starts_with("shortconv") => Role::State,
        s if s.starts_with("time_mix") || s.starts_with("channel_mix") => Role::State,
        _ => Role::Other,
    }
}

/// The inventory of a header, for a decoder with these layers; tensors of later layers predict
/// ahead. llama.cpp divides a model by layers, so only what a matrix's place makes certain is
/// marked as divisible.
#[must_use]
pub fn tensors(header: &Header, layers: &[LayerSpec]) -> Vec<TensorSpec> {
    header.tensors.iter().map(|t| tensor(t, layers)).collect()
}

fn tensor(t: &GgufTensor, layers: &[LayerSpec]) -> TensorSpec {
    let (mut role, mut layer) = role_of(&t.name);
    let spec = layer.and_then(|l| layers.get(l as usize));
    if layer.is_some() && spec.is_none() {
        (role, layer) = (Role::Mtp, None);
    }
    // A recurrent layer's projections have names of attention.
    if role == Role::Attention && spec.is_some_and(|s| matches!(s.mixer, Mixer::State(_))) {
        role = Role::State;
    }
    let mut shape = t.shape.clone();
    let mut experts = None;
    if role == Role::Experts
        && shape.len() == 3
        && let Some(Ffn::Moe(moe)) = spec.map(|s| s.ffn)
        && shape.first() == Some(&moe.experts)
    {
        experts = Some(shape.remove(0));
    }
    let is_matrix = !matches!(
        role,
        Role::Embedding | Role::Position | Role::Norm | Role::Other
    );
    let linear = match shape.as_slice() {
        [out, inp] if is_matrix && t.name.ends_with(".weight") && !t.name.contains("conv") => {
            Some(Linear {
                out: *out,
                inp: *inp,
                axis: axis(&t.name),
            })
        }
        _ => None,
    };
    let shard = shard(&t.name, role, spec, &shape);
    TensorSpec {
        name: t.name.clone(),
        shape,
        dtype: t.dtype,
        role,
        layer,
        shard,
        experts,
        linear,
    }
}

fn axis(name: &str) -> Axis {
    if name.contains("_down") || name.contains("attn_output") || name.contains("_out.") {
        Axis::In
    } else {
        Axis::Out
    }
}

/// How a matrix divides, where role and place leave no doubt.
fn shard(name: &str, role: Role, layer: Option<&LayerSpec>, shape: &[u64]) -> Shard {
    let weight = name.ends_with(".weight");
    let part = name.split('.').nth(2).unwrap_or_default();
    match (role, layer.map(|l| (l.mixer, l.ffn))) {
        (Role::Embedding | Role::Head, _) if weight && shape.len() == 2 => Shard::Vocab {
            rows: shape.first().copied().unwrap_or(0),
        },
        (Role::Attention, Some((Mixer::Attention(a), _))) => match part {
            "attn_q" => heads(a.q_heads),
            "attn_output" if weight => heads(a.q_heads),
            "attn_k" | "attn_v" => Shard::KvHeads { heads: a.kv_heads },
            "attn_qkv" if a.k_dim == a.v_dim => Shard::Qkv {
                q: a.q_heads,
                kv: a.kv_heads,
            },
            _ => Shard::Replicated,
        },
        (Role::Mlp, Some((_, Ffn::Dense { intermediate, .. }))) => match part {
            "ffn_gate" | "ffn_up" => columns(intermediate),
            "ffn_down" if weight => columns(intermediate),
            _ => Shard::Replicated,
        },
        (Role::Experts, Some((_, Ffn::Moe(moe)))) if weight => columns(moe.intermediate),
        (Role::SharedExperts, Some((_, Ffn::Moe(moe)))) if weight && moe.shared > 0 => {
            columns(moe.shared)
        }
        _ => Shard::Replicated,
    }
}

/// The model of a GGUF header, and the `config.json` that stands for its metadata.
///
/// # Errors
/// [`GgufSpecError`] where the architecture is unknown, keys are missing, or tensors do not fit
/// the metadata.
pub fn spec(header: &Header, assume: Assume) -> Result<(Json, ModelSpec), GgufSpecError> {
    let config = to_config(header, assume)?;
    let mut spec = from_config(&config, assume)?;
    let tensors = tensors(header, &spec.layers);
    check(&spec, header)?;
    if let Some(words) = header
        .get("tokenizer.ggml.tokens")
        .and_then(Value::as_array)
        && words.len != spec.vocab
    {
        spec.notes.push(format!(
            "the tokenizer has {} words, the embedding {} rows: the rows count",
            words.len, spec.vocab
        ));
    }
    let others: Vec<&TensorSpec> = tensors.iter().filter(|t| t.role == Role::Other).collect();
    if let Some(first) = others.first() {
        spec.notes.push(format!(
            "{} tensors have names that are unknown, `{}` among them; they count as role \"other\"",
            others.len(),
            printable(&first.name)
        ));
    }
    if !tensors.iter().any(|t| t.role == Role::Mtp) {
        spec.mtp_layers = 0;
    }
    spec.tensors = tensors;
    spec.arithmetic = spec.arithmetic.map(|a| as_stored(a, header));
    spec.from_headers = true;
    Ok((config, spec))
}

/// Architectures whose query and key rows the converter reorders so that rotated pairs are neighbours:
/// `LLAMA_ROPE_TYPE_NORM` in llama.cpp's `llama_model_rope_type`.
const NEIGHBOURS: &[&str] = &["llama", "granite"];

/// The arithmetic of a checkpoint after the converter: gains are stored whole, and rows may be reordered.
fn as_stored(mut a: Arithmetic, header: &Header) -> Arithmetic {
    if let Norm::Rms { plus_one, .. } = &mut a.norm {
        *plus_one = false;
    }
    let arch = header.get("general.architecture").and_then(Value::as_str);
    if let Positions::Rotary { interleaved, .. } = &mut a.positions {
        *interleaved = arch.is_some_and(|a| NEIGHBOURS.contains(&a));
    }
    a
}

/// Metadata and tensors must be of one model: embedding, every layer, and what decides the cache.
fn check(spec: &ModelSpec, header: &Header) -> Result<(), GgufSpecError> {
    let fail = |text: String| Err(GgufSpecError::Mismatch(text));
    if header.tensors.is_empty() {
        return fail("the file has no tensors, only metadata (a vocabulary?)".to_owned());
    }
    let shape = |name: &str| header.tensor(name).map(|t| t.shape.as_slice());
    match shape("token_embd.weight") {
        Some([rows, width]) if *rows == spec.vocab && *width == spec.hidden => {}
        Some(found) => {
            return fail(format!(
                "`token_embd.weight` is {found:?}; the keys say [{}, {}]",
                spec.vocab, spec.hidden
            ));
        }
        None => return fail("`token_embd.weight` is missing".to_owned()),
    }
    let mut seen = vec![false; spec.layers.len()];
    for t in &header.tensors {
        if let Some(slot) = role_of(&t.name).1.and_then(|l| seen.get_mut(l as usize)) {
            *slot = true;
        }
    }
    if let Some(i) = seen.iter().position(|s| !s) {
        return fail(format!("layer {i} of {} has no tensors", spec.layers.len()));
    }
    for (i, layer) in spec.layers.iter().enumerate() {
        let Mixer::Attention(a) = layer.mixer else {
            continue;
        };
        for (part, rows) in [("k", a.kv_heads * a.k_dim), ("v", a.kv_heads * a.v_dim)] {
            let name = format!("blk.{i}.attn_{part}.weight");
            if let Some(found) = shape(&name)
                && found.first() != Some(&rows)
            {
                return fail(format!(
                    "`{name}` is {found:?}; {} KV heads of {} give {rows} rows",
                    a.kv_heads,
                    rows / a.kv_heads.max(1)
                ));
            }
        }
    }
    Ok(())
}
