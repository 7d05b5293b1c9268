//! Nemotron-H and Nemotron 3 Nano: each layer is one thing alone: a Mamba 2 state, attention without positions, a
//! feed-forward or experts, as a pattern says.
//!
//! Source: transformers `models/nemotron_h/{configuration,modeling}_nemotron_h.py`; the state's type from vLLM
//! `models/config.py` (`NemotronHForCausalLMConfig`), which takes 32 bits where the config is silent.

use plimsoll_units::DType;

use super::{Defaults, Family, decoder_or, mamba2, moe, tie};
use crate::builder::columns;
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, Moe, Reach, Role, Shard, SpecBuilder, StateSpace};

pub(super) const FAMILY: Family = Family {
    name: "nemotron_h",
    architectures: &["NemotronHForCausalLM"],
    model_types: &["nemotron_h"],
    towers: false,
    lower,
};

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    State,
    Attention,
    Mlp,
    Experts,
}

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let blocks = blocks(&text)?;
    let defaults = Defaults {
        layers: u64::try_from(blocks.len()).ok(),
        kv_heads: Some(8),
        head_dim: Some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    if u64::try_from(blocks.len()) != Ok(d.layers) {
        let reason = format!("expected one entry for each of the {} layers", d.layers);
        return Err(text.reject("hybrid_override_pattern", reason));
    }
    if text.has("moe_latent_size") {
        return Err(text.reject("moe_latent_size", "experts behind a latent projection are not known"));
    }
    let (h, bias, mlp_bias) = (d.hidden, text.flag("attention_bias", false)?, text.flag("mlp_bias", false)?);
    let inner = text.dim_or(&["intermediate_size"], 21_504)?;
    let moe = if blocks.contains(&Block::Experts) {
        let shared = text.dim_or(&["moe_shared_expert_intermediate_size"], 7688)?;
        let count = text.opt("n_shared_experts")?.unwrap_or(1);
        Some(moe(&text, &["n_routed_experts"], &["moe_intermediate_size"], shared.saturating_mul(count))?)
    } else {
        None
    };
    let mamba = mamba2::mamba(&text, "mamba_num_heads", "mamba_head_dim")?;
    let kept = match text.str("mamba_ssm_cache_dtype") {
        None | Some("float32") => DType::F32,
        Some("bfloat16") => DType::Bf16,
        Some("float16") => DType::F16,
        Some(_) => return Err(text.reject("mamba_ssm_cache_dtype", "expected float32, bfloat16 or float16")),
    };
    tie(config, &text, b, false)?;
    b.rotary_share(0.0);
    let attention = d.attention(Reach::Full);
    b.embedding("backbone.embeddings.weight", d.vocab, h);
    for (i, block) in blocks.into_iter().enumerate() {
        let dense = Ffn::Dense { intermediate: inner, gated: false };
        let state = StateSpace { state_dtype: Some(kept), ..mamba.state() };
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
                Ffn::Moe(moe) => experts(b, h, &moe, mlp_bias)?,
                Ffn::None if block == Block::State => {
                    mamba.tensors(b, "mixer.", h);
                    mamba.norm(b, "mixer.");
                }
                Ffn::None => attention_tensors(b, h, &attention, bias),
            }
            Ok(())
        })?;
    }
    b.norm("backbone.norm_f", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

/// The layers of `hybrid_override_pattern`, or of `layers_block_type`, which transformers 5 writes.
fn blocks(text: &Config<'_>) -> Result<Vec<Block>, ModelError> {
    if let Some(names) = text.strings("layers_block_type")? {
        let block = |name: &str| match name {
            "mamba" | "linear_attention" => Ok(Block::State),
            "attention" | "full_attention" => Ok(Block::Attention),
            "mlp" => Ok(Block::Mlp),
            "moe" => Ok(Block::Experts),
            _ => Err(text.reject("layers_block_type", "expected mamba, attention, mlp or moe")),
        };
        return names.into_iter().map(block).collect();
    }
    let key = "hybrid_override_pattern";
    let pattern = text.str(key).ok_or_else(|| ModelError::Missing {
        field: text.path_of(key),
        why: "it says what each layer is",
    })?;
    let block = |c| match c {
        'M' => Ok(Block::State),
        '*' => Ok(Block::Attention),
        '-' => Ok(Block::Mlp),
        'E' => Ok(Block::Experts),
        _ => Err(text.reject(key, "expected M, *, - or E for each layer")),
    };
    pattern.chars().map(block).collect()
}

fn attention_tensors(b: &mut SpecBuilder, h: u64, a: &crate::Attention, bias: bool) {
    let (at, q) = (Role::Attention, a.q_heads * a.k_dim);
    let kv = Shard::KvHeads { heads: a.kv_heads };
    let split = crate::builder::heads(a.q_heads);
    b.out_split(at, "mixer.q_proj", [q, h], bias, split);
    b.out_split(at, "mixer.k_proj", [a.kv_heads * a.k_dim, h], bias, kv);
    b.out_split(at, "mixer.v_proj", [a.kv_heads * a.v_dim, h], bias, kv);
    b.in_split(at, "mixer.o_proj", [h, q], bias, split);
}

/// A feed-forward without a gate.
fn mlp(b: &mut SpecBuilder, role: Role, prefix: &str, h: u64, inner: u64, bias: bool) {
    b.out_split(role, &format!("{prefix}up_proj"), [inner, h], bias, columns(inner));
    b.in_split(role, &format!("{prefix}down_proj"), [h, inner], bias, columns(inner));
}

fn experts(b: &mut SpecBuilder, h: u64, moe: &Moe, bias: bool) -> Result<(), ModelError> {
    let (role, one) = (Role::Router, Shard::Replicated);
    b.tensor_typed(role, "mixer.gate.weight", &[moe.experts, h], one, DType::F32);
    let correction = "mixer.gate.e_score_correction_bias";
    b.tensor_typed(role, correction, &[moe.experts], one, DType::F32);
    b.experts(moe.experts, |b| {
        mlp(b, Role::Experts, "mixer.experts.{e}.", h, moe.intermediate, bias);
        Ok(())
    })?;
    mlp(b, Role::SharedExperts, "mixer.shared_experts.", h, moe.shared, bias);
    Ok(())
}
