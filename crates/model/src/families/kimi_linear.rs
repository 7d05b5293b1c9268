//! Kimi Linear: three layers of gated delta rule with a decay for each channel to one of latent attention without
//! positions; experts chosen by biased scores beside shared ones.
//!
//! Source: transformers `models/kimi_linear/{configuration,modeling}_kimi_linear.py`; the state's 32 bits from vLLM
//! `layers/mamba/mamba_utils.py` (`kda_state_dtype`). Fields have two names: published and transformers'.

use plimsoll_units::DType;

use super::deepseek::{latent, projections};
use super::{Defaults, Family, LayerKind, MAX_EXPERTS, decoder_or, gated, layer_types, minimax_m2, norms, stack, tie};
use crate::builder::heads;
use crate::{
    Config, Ffn, LayerSpec, Mixer, ModelError, Moe, Role, Shard, SpecBuilder, StateKind, StateSpace,
};

pub(super) const FAMILY: Family = Family {
    name: "kimi_linear",
    architectures: &["KimiLinearForCausalLM"],
    model_types: &["kimi_linear"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    // Head sizes come from the latent fields.
    let defaults = Defaults {
        head_dim: Some(1),
        max_context: text.opt("model_max_length")?,
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let (h, inner) = (d.hidden, text.dim(&["intermediate_size"], "it sizes the dense feed-forward")?);
    let moe = routed(&text)?;
    let dense = text.opt("first_k_dense_replace")?.unwrap_or(1);
    let kinds = text.strings("mlp_layer_types")?;
    let routes = |i: u64| match &kinds {
        Some(kinds) => usize::try_from(i).ok().and_then(|i| kinds.get(i)) == Some(&"sparse"),
        None => i >= dense,
    };
    let latent = latent(&text, &d)?;
    let delta = delta(&text)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    b.rotary_share(0.0);
    let attends = attends(&text, d.layers)?;
    let layers = (0..).zip(&attends).map(|(i, attends)| LayerSpec {
        mixer: if *attends { Mixer::Latent(latent) } else { Mixer::State(delta) },
        parallel: None,
        cross: None,
        ffn: if routes(i) { Ffn::Moe(moe) } else { gated(inner) },
    });
    stack(b, "model.", &d, layers, |b, i, layer| {
        match layer.mixer {
            Mixer::State(s) => tensors(b, h, &s),
            _ => projections(b, h, &latent, bias),
        }
        norms(b, h);
        if !routes(i) {
            b.gated_mlp(Role::Mlp, "block_sparse_moe.", h, inner, false);
            return Ok(());
        }
        experts(b, h, &moe)
    })?;
    b.head("lm_head", d.vocab, h);
    Ok(())
}

fn routed(text: &Config<'_>) -> Result<Moe, ModelError> {
    let inner = text.dim(&["moe_intermediate_size"], "it sizes a routed expert")?;
    let experts = text.dim_or(&["num_experts", "num_local_experts"], 256)?;
    let top_k = text.dim_or(&["num_experts_per_token", "num_experts_per_tok"], 8)?;
    if top_k > experts || experts > MAX_EXPERTS {
        return Err(text.reject("num_experts", format!("expected {top_k} to {MAX_EXPERTS}")));
    }
    let shared = text.opt_any(&["num_shared_experts", "n_shared_experts"])?.unwrap_or(1).saturating_mul(inner);
    Ok(Moe { experts, top_k, intermediate: inner, shared })
}

/// Which layers have latent attention: listed, counted from 1, in `linear_attn_config`, or every fourth after the first.
fn attends(text: &Config<'_>, layers: u64) -> Result<Vec<bool>, ModelError> {
    let listed = match text.object("linear_attn_config")? {
        Some(set) => set.numbers("full_attn_layers")?,
        None => None,
    };
    Ok(match (layer_types(text, layers)?, listed) {
        (Some(kinds), _) => kinds.iter().map(|k| *k != LayerKind::Linear).collect(),
        (None, Some(listed)) => (1..=layers).map(|i| listed.contains(&i)).collect(),
        (None, None) => (0..layers).map(|i| i > 0 && i.is_multiple_of(4)).collect(),
    })
}

fn delta(text: &Config<'_>) -> Result<StateSpace, ModelError> {
    let (set, keys) = match text.object("linear_attn_config")? {
        Some(set) => (set, ["head_dim", "num_heads", "short_conv_kernel_size"]),
        None => (text.clone(), ["linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim"]),
    };
    let [dim, count, taps] = keys;
    let (dim, count) = (set.dim_or(&[dim], 128)?, set.dim_or(&[count], 32)?);
    Ok(StateSpace {
        kind: StateKind::GatedDelta,
        conv_taps: set.dim_or(&[taps], 4)?,
        conv_channels: dim.saturating_mul(count).saturating_mul(3),
        heads: count,
        rows: dim,
        cols: dim,
        groups: count,
        state_dtype: Some(DType::F32),
    })
}

fn tensors(b: &mut SpecBuilder, hidden: u64, s: &StateSpace) {
    let (state, split) = (Role::State, heads(s.heads));
    let wide = s.heads.saturating_mul(s.rows);
    for name in ["q", "k", "v"] {
        b.out_split(state, &format!("self_attn.{name}_proj"), [wide, hidden], false, split);
        b.tensor(state, &format!("self_attn.{name}_conv1d.weight"), &[wide, 1, s.conv_taps], split);
    }
    b.tensor(state, "self_attn.A_log", &[1, 1, s.heads, 1], split);
    b.tensor_typed(state, "self_attn.dt_bias", &[wide], split, DType::F32);
    b.out_split(state, "self_attn.b_proj", [s.heads, hidden], false, split);
    for name in ["f", "g"] {
        b.whole(state, &format!("self_attn.{name}_a_proj"), [s.rows, hidden], false);
        b.out_split(state, &format!("self_attn.{name}_b_proj"), [wide, s.rows], false, split);
    }
    b.norm("self_attn.o_norm", s.rows);
    b.in_split(state, "self_attn.o_proj", [hidden, wide], false, split);
}

/// Mixtral's names, but for the router's bias, which stays in 32 bits, and the shared experts.
fn experts(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    let (role, one) = (Role::Router, Shard::Replicated);
    b.whole(role, "block_sparse_moe.gate", [moe.experts, hidden], false);
    let bias = "block_sparse_moe.gate.e_score_correction_bias";
    b.tensor_typed(role, bias, &[moe.experts], one, DType::F32);
    minimax_m2::routed(b, hidden, moe)?;
    if moe.shared > 0 {
        b.gated_mlp(Role::SharedExperts, "block_sparse_moe.shared_experts.", hidden, moe.shared, false);
    }
    Ok(())
}
