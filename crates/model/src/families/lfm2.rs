//! LFM2, dense and with experts: short convolutions, whose tails are all that they keep, and layers with attention.
//!
//! Source: transformers `models/lfm2` and `models/lfm2_moe` (`{configuration,modeling}_*.py`).

use plimsoll_units::DType;

use super::{Decoder, Defaults, Family, LayerKind, decoder_or, gated, layer_types, moe};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, Moe, Reach, Role, Shard, SpecBuilder, StateKind, StateSpace};

pub(super) const FAMILY: Family = Family {
    name: "lfm2",
    architectures: &["Lfm2ForCausalLM", "Lfm2MoeForCausalLM"],
    model_types: &["lfm2", "lfm2_moe"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    text(config, b, "model.")
}

/// The text model, `at` before all names but the head's.
pub(super) fn text(config: &Config<'_>, b: &mut SpecBuilder, at: &str) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(8),
        max_context: Some(128_000),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = inner(&text)?;
    let moe = if text.has("num_experts") {
        Some(moe(&text, &["num_experts"], &["moe_intermediate_size"], 0)?)
    } else {
        None
    };
    let dense = text.opt("num_dense_layers")?.unwrap_or(2);
    let corrected = text.flag("use_expert_bias", true)?;
    let bias = text.flag("conv_bias", false)?;
    let tied = ["tie_embedding", "tie_word_embeddings"];
    let owner = if tied.iter().any(|k| config.has(k)) { config } else { &text };
    b.spec().tied_embeddings = match tied.iter().find(|k| owner.has(k)) {
        Some(key) => owner.flag(key, true)?,
        None => true,
    };
    let attention = d.attention(Reach::Full);
    let state = StateSpace {
        kind: StateKind::ShortConv,
        conv_taps: text.dim_or(&["conv_L_cache"], 3)?,
        conv_channels: d.hidden,
        heads: 0,
        rows: 0,
        cols: 0,
        groups: 1,
        state_dtype: None,
    };
    let h = d.hidden;
    b.embedding(&format!("{at}embed_tokens.weight"), d.vocab, h);
    for (i, attends) in (0..).zip(attends(&text, d.layers)?) {
        let sparse = moe.filter(|_| i >= dense);
        let ffn = sparse.map_or(gated(inner), Ffn::Moe);
        let layer = if attends {
            attention_layer(attention, ffn)
        } else {
            LayerSpec { mixer: Mixer::State(state), parallel: None, cross: None, ffn }
        };
        b.layer(&format!("{at}layers.{i}."), layer, |b| {
            if attends {
                attention_tensors(b, &d);
            } else {
                convolution(b, h, state.conv_taps, bias);
            }
            b.norm("operator_norm", h);
            b.norm("ffn_norm", h);
            match sparse {
                Some(moe) => experts(b, h, &moe, corrected),
                None => {
                    mlp(b, Role::Mlp, "feed_forward.", h, inner);
                    Ok(())
                }
            }
        })?;
    }
    b.norm(&format!("{at}embedding_norm"), h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

/// Which layers attend: by kind, or by a list of their indices; all of them where the config is silent.
fn attends(text: &Config<'_>, layers: u64) -> Result<Vec<bool>, ModelError> {
    if let Some(kinds) = layer_types(text, layers)? {
        return Ok(kinds.iter().map(|k| *k != LayerKind::Linear).collect());
    }
    let listed = text.numbers("full_attn_idxs")?;
    Ok((0..layers).map(|i| listed.as_ref().is_none_or(|l| l.contains(&i))).collect())
}

/// The inner size, of which the dense class takes two thirds, times a factor, in whole multiples.
fn inner(text: &Config<'_>) -> Result<u64, ModelError> {
    let stated = text.dim_or(&["block_ff_dim", "intermediate_size"], 12_288)?;
    if text.has("num_experts") || !text.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(stated);
    }
    let key = "block_ffn_dim_multiplier";
    let scaled = crate::builder::scaled(2 * stated / 3, text.positive(key)?.unwrap_or(1.0));
    let unit = text.dim_or(&["block_multiple_of"], 256)?;
    Ok(scaled.div_ceil(unit).max(1).saturating_mul(unit))
}

fn attention_tensors(b: &mut SpecBuilder, d: &Decoder) {
    let (at, h, q, kv) = (Role::Attention, d.hidden, d.q_heads * d.head_dim, d.kv_heads * d.head_dim);
    let shared = Shard::KvHeads { heads: d.kv_heads };
    b.out_split(at, "self_attn.q_proj", [q, h], false, heads(d.q_heads));
    b.out_split(at, "self_attn.k_proj", [kv, h], false, shared);
    b.out_split(at, "self_attn.v_proj", [kv, h], false, shared);
    b.in_split(at, "self_attn.out_proj", [h, q], false, heads(d.q_heads));
    b.norm("self_attn.q_layernorm", d.head_dim);
    b.norm("self_attn.k_layernorm", d.head_dim);
}

fn convolution(b: &mut SpecBuilder, h: u64, taps: u64, bias: bool) {
    let split = Shard::Split { units: h, what: "convolution channels" };
    b.tensor(Role::State, "conv.conv.weight", &[h, 1, taps], split);
    if bias {
        b.tensor(Role::State, "conv.conv.bias", &[h], split);
    }
    b.out_split(Role::State, "conv.in_proj", [3 * h, h], bias, split);
    b.in_split(Role::State, "conv.out_proj", [h, h], bias, split);
}

fn mlp(b: &mut SpecBuilder, role: Role, prefix: &str, h: u64, inner: u64) {
    b.out_split(role, &format!("{prefix}w1"), [inner, h], false, columns(inner));
    b.out_split(role, &format!("{prefix}w3"), [inner, h], false, columns(inner));
    b.in_split(role, &format!("{prefix}w2"), [h, inner], false, columns(inner));
}

fn experts(b: &mut SpecBuilder, h: u64, moe: &Moe, corrected: bool) -> Result<(), ModelError> {
    b.whole(Role::Router, "feed_forward.gate", [moe.experts, h], false);
    if corrected {
        let name = "feed_forward.expert_bias";
        b.tensor_typed(Role::Router, name, &[moe.experts], Shard::Replicated, DType::F32);
    }
    b.experts(moe.experts, |b| {
        mlp(b, Role::Experts, "feed_forward.experts.{e}.", h, moe.intermediate);
        Ok(())
    })
}
