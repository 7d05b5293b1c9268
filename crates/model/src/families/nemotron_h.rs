//! Nemotron-H and Nemotron 3: each layer is one thing alone: a Mamba 2 state, attention without positions, a
//! feed-forward or experts, as a pattern says. Experts may stand behind a projection to a narrower latent.
//!
//! Source: transformers `models/nemotron_h/{configuration,modeling}_nemotron_h.py`; the state's type from vLLM
//! `models/config.py` (`NemotronHForCausalLMConfig`), which takes 32 bits where the config is silent, and the
//! multi-token-prediction layers, which transformers drops on loading, from vLLM `models/nemotron_h_mtp.py`.

use plimsoll_units::DType;

use super::{Defaults, Family, decoder_or, mamba2, moe, tie};
use crate::builder::columns;
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, Moe, Reach, Role, Shard, SpecBuilder, StateSpace};

pub(super) const FAMILY: Family =
    Family { name: "nemotron_h", architectures: &["NemotronHForCausalLM"], model_types: &["nemotron_h"], towers: false, lower };

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block { State, Attention, Mlp, Experts }

/// Kinds of layers by their words and letters.
const KINDS: [(Block, &[&str]); 4] = [
    (Block::State, &["mamba", "linear_attention", "M"]),
    (Block::Attention, &["attention", "full_attention", "*"]),
    (Block::Mlp, &["mlp", "-"]),
    (Block::Experts, &["moe", "E"]),
];

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let blocks = blocks(&text, "layers_block_type", "hybrid_override_pattern")?.ok_or_else(|| ModelError::Missing {
        field: text.path_of("hybrid_override_pattern"),
        why: "it says what each layer is",
    })?;
    let count = blocks.len() as u64;
    let d = decoder_or(&text, b, Defaults { layers: Some(count), kv_heads: Some(8), head_dim: Some(128), ..Defaults::default() })?;
    if count != d.layers {
        return Err(text.reject("hybrid_override_pattern", format!("expected one entry for each of the {} layers", d.layers)));
    }
    let (h, bias, mlp_bias) = (d.hidden, text.flag("attention_bias", false)?, text.flag("mlp_bias", false)?);
    let (inner, ahead) = (text.dim_or(&["intermediate_size"], 21_504)?, ahead(&text)?);
    let routes = blocks.contains(&Block::Experts) || ahead.contains(&Block::Experts);
    let count = text.opt("n_shared_experts")?.unwrap_or(1);
    let shared = text.dim_or(&["moe_shared_expert_intermediate_size"], 7688)?.saturating_mul(count);
    let moe = routes.then(|| moe(&text, &["n_routed_experts"], &["moe_intermediate_size"], shared)).transpose()?;
    let latent = text.has("moe_latent_size").then(|| text.dim(&["moe_latent_size"], "it is what experts read")).transpose()?;
    let mamba = mamba2::mamba(&text, "mamba_num_heads", "mamba_head_dim")?;
    let types = [("float32", DType::F32), ("bfloat16", DType::Bf16), ("float16", DType::F16)];
    let key = "mamba_ssm_cache_dtype";
    let kept = types.iter().find(|t| t.0 == text.str(key).unwrap_or("float32"));
    let kept = kept.ok_or_else(|| text.reject(key, "expected float32, bfloat16 or float16"))?.1;
    tie(config, &text, b, false)?;
    b.rotary_share(0.0);
    let attention = d.attention(Reach::Full);
    b.embedding("backbone.embeddings.weight", d.vocab, h);
    let dense = Ffn::Dense { intermediate: inner, gated: false };
    let state = StateSpace { state_dtype: Some(kept), ..mamba.state() };
    for (i, block) in blocks.into_iter().enumerate() {
        let (mixer, ffn) = match block {
            Block::State => (Mixer::State(state), Ffn::None),
            Block::Attention => (Mixer::Attention(attention), Ffn::None),
            Block::Mlp => (Mixer::None, dense),
            Block::Experts => (Mixer::None, moe.map_or(Ffn::None, Ffn::Moe)),
        };
        let layer = LayerSpec { mixer, parallel: None, cross: None, ffn };
        b.layer(&format!("backbone.layers.{i}."), layer, |b| {
            b.norm("norm", h);
            match ffn {
                Ffn::Dense { .. } => mlp(b, Role::Mlp, "mixer.", h, inner, mlp_bias),
                Ffn::Moe(moe) => experts(b, h, latent, &moe, mlp_bias)?,
                Ffn::None if block == Block::State => {
                    mamba.tensors(b, "mixer.", h);
                    mamba.norm(b, "mixer.");
                }
                Ffn::None => b.qkvo_as("mixer", h, &attention, [bias; 2]),
            }
            Ok(())
        })?;
    }
    b.norm("backbone.norm_f", h);
    b.head("lm_head", d.vocab, h);
    b.spec().mtp_layers = u64::from(!ahead.is_empty());
    for (i, block) in ahead.iter().enumerate() {
        b.mtp(&format!("mtp.layers.{i}."), |b| {
            b.norm("norm", h);
            if i == 0 {
                ["enorm", "hnorm"].into_iter().for_each(|name| b.norm(name, h));
                b.tensor(Role::Mtp, "eh_proj.weight", &[h, 2 * h], Shard::Replicated);
            }
            if i + 1 == ahead.len() {
                b.norm("final_layernorm", h);
            }
            match (block, &moe) {
                (Block::Experts, Some(moe)) => return experts(b, h, latent, moe, mlp_bias),
                _ => b.qkvo_as("mixer", h, &attention, [bias; 2]),
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The parts of the multi-token-prediction layer, where there is one.
fn ahead(text: &Config<'_>) -> Result<Vec<Block>, ModelError> {
    let (names, pattern) = ("mtp_layers_block_type", "mtp_hybrid_override_pattern");
    match text.opt("num_nextn_predict_layers")?.unwrap_or(0) {
        0 => return Ok(Vec::new()),
        1 => {}
        _ => return Err(text.reject("num_nextn_predict_layers", "expected one layer at most")),
    }
    let parts = blocks(text, names, pattern)?.unwrap_or_else(|| vec![Block::Attention, Block::Experts]);
    if parts.is_empty() || !parts.iter().all(|p| matches!(p, Block::Attention | Block::Experts)) {
        return Err(text.reject(if text.has(names) { names } else { pattern }, "expected attention and experts"));
    }
    Ok(parts)
}

/// The layers that the string `pattern` describes, or the list `names`, which transformers 5 writes.
fn blocks(text: &Config<'_>, names: &str, pattern: &str) -> Result<Option<Vec<Block>>, ModelError> {
    let kind = |word: &str| KINDS.iter().find(|(_, words)| words.contains(&word)).map(|(kind, _)| *kind);
    let (key, found) = match (text.strings(names)?, text.str(pattern)) {
        (Some(list), _) => (names, list.into_iter().map(kind).collect::<Option<Vec<_>>>()),
        (None, Some(letters)) => (pattern, letters.split("").filter(|l| !l.is_empty()).map(kind).collect()),
        (None, None) => return Ok(None),
    };
    found.map(Some).ok_or_else(|| text.reject(key, "expected mamba (M), attention (*), mlp (-) or moe (E) for each layer"))
}

/// A feed-forward without a gate.
fn mlp(b: &mut SpecBuilder, role: Role, at: &str, h: u64, inner: u64, bias: bool) {
    b.out_split(role, &format!("{at}up_proj"), [inner, h], bias, columns(inner));
    b.in_split(role, &format!("{at}down_proj"), [h, inner], bias, columns(inner));
}

fn experts(b: &mut SpecBuilder, h: u64, latent: Option<u64>, moe: &Moe, bias: bool) -> Result<(), ModelError> {
    for (name, shape) in [("weight", &[moe.experts, h][..]), ("e_score_correction_bias", &[moe.experts])] {
        b.tensor_typed(Role::Router, &format!("mixer.gate.{name}"), shape, Shard::Replicated, DType::F32);
    }
    if let Some(latent) = latent {
        b.whole(Role::Mlp, "mixer.fc1_latent_proj", [latent, h], bias);
        b.whole(Role::Mlp, "mixer.fc2_latent_proj", [h, latent], bias);
    }
    b.experts(moe.experts, |b| {
        mlp(b, Role::Experts, "mixer.experts.{e}.", latent.unwrap_or(h), moe.intermediate, bias);
        Ok(())
    })?;
    mlp(b, Role::SharedExperts, "mixer.shared_experts.", h, moe.shared, bias);
    Ok(())
}
