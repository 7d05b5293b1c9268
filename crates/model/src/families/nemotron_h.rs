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
    let blocks = blocks(&text, "layers_block_type", "hybrid_override_pattern")?.ok_or_else(|| ModelError::Missing {
        field: text.path_of("hybrid_override_pattern"),
        why: "it says what each layer is",
    })?;
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
    let (h, bias, mlp_bias) = (d.hidden, text.flag("attention_bias", false)?, text.flag("mlp_bias", false)?);
    let inner = text.dim_or(&["intermediate_size"], 21_504)?;
    let ahead = ahead(&text)?;
    let moe = if blocks.contains(&Block::Experts) || ahead.contains(&Block::Experts) {
        let shared = text.dim_or(&["moe_shared_expert_intermediate_size"], 7688)?;
        let count = text.opt("n_shared_experts")?.unwrap_or(1);
        Some(moe(&text, &["n_routed_experts"], &["moe_intermediate_size"], shared.saturating_mul(count))?)
    } else {
        None
    };
    let latent = text.opt("moe_latent_size")?;
    if latent == Some(0) {
        return Err(text.reject("moe_latent_size", "expected 1 or more, or null"));
    }
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
                Ffn::Moe(moe) => experts(b, h, latent, &moe, mlp_bias)?,
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

    b.spec().mtp_layers = u64::from(!ahead.is_empty());
    for (i, block) in ahead.iter().enumerate() {
        b.mtp(&format!("mtp.layers.{i}."), |b| {
            if i == 0 {
                b.norm("enorm", h);
                b.norm("hnorm", h);
                b.tensor(Role::Mtp, "eh_proj.weight", &[h, 2 * h], Shard::Replicated);
            }
            b.norm("norm", h);
            match (block, &moe) {
                (Block::Experts, Some(moe)) => experts(b, h, latent, moe, mlp_bias)?,
                _ => attention_tensors(b, h, &attention, bias),
            }
            if i + 1 == ahead.len() {
                b.norm("final_layernorm", h);
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
        let key = if text.has(names) { names } else { pattern };
        return Err(text.reject(key, "expected attention and experts"));
    }
    Ok(parts)
}

/// The layers that the string `pattern` describes, or the list `names`, which transformers 5 writes.
fn blocks(text: &Config<'_>, names: &str, pattern: &str) -> Result<Option<Vec<Block>>, ModelError> {
    if let Some(list) = text.strings(names)? {
        let block = |name: &str| match name {
            "mamba" | "linear_attention" => Ok(Block::State),
            "attention" | "full_attention" => Ok(Block::Attention),
            "mlp" => Ok(Block::Mlp),
            "moe" => Ok(Block::Experts),
            _ => Err(text.reject(names, "expected mamba, attention, mlp or moe")),
        };
        return list.into_iter().map(block).collect::<Result<_, _>>().map(Some);
    }
    let block = |c| match c {
        'M' => Ok(Block::State),
        '*' => Ok(Block::Attention),
        '-' => Ok(Block::Mlp),
        'E' => Ok(Block::Experts),
        _ => Err(text.reject(pattern, "expected M, *, - or E for each layer")),
    };
    text.str(pattern).map(|p| p.chars().map(block).collect()).transpose()
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

fn experts(b: &mut SpecBuilder, h: u64, latent: Option<u64>, moe: &Moe, bias: bool) -> Result<(), ModelError> {
    let (role, one) = (Role::Router, Shard::Replicated);
    b.tensor_typed(role, "mixer.gate.weight", &[moe.experts, h], one, DType::F32);
    let correction = "mixer.gate.e_score_correction_bias";
    b.tensor_typed(role, correction, &[moe.experts], one, DType::F32);
    if let Some(latent) = latent {
        // Every rank has the whole of both.
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
