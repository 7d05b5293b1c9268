//! Ling's hybrids: groups of layers of gated delta rule with a decay for each channel that end in one of latent attention;
//! experts chosen by biased scores beside shared ones.
//!
//! Source: transformers `models/bailing_hybrid/{configuration,modeling}_bailing_hybrid.py`; the state's 32 bits from vLLM
//! `layers/mamba/mamba_utils.py` (`kda_state_dtype`). Fields have two names: published and transformers'.

use plimsoll_units::DType;

use super::deepseek::latent;
use super::{Defaults, Family, LayerKind, MAX_EXPERTS, decoder_or, gated, layer_types, norms, tie};
use crate::builder::heads;
use crate::{
    Config, Ffn, LatentAttention, LayerSpec, Mixer, ModelError, Moe, Role, Shard, SpecBuilder, StateKind, StateSpace,
};

pub(super) const FAMILY: Family = Family {
    name: "bailing_hybrid",
    architectures: &["BailingHybridForCausalLM"],
    model_types: &["bailing_hybrid"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(text.dim_or(&["num_attention_heads"], 32)?),
        head_dim: Some(128),
        max_context: text.opt("model_max_length")?,
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let h = d.hidden;
    let latent = latent(&text, &d)?;
    let inner = text.dim_or(&["intermediate_size"], 6144)?;
    let moe = routed(&text)?;
    let dense = text.opt("first_k_dense_replace")?.unwrap_or(2);
    // What transformers writes is the rotated part; the width of the delta rule's heads has then a name of its own.
    let width = text.dim_or(&["linear_head_dim"], d.head_dim)?;
    let delta = StateSpace {
        kind: StateKind::GatedDelta,
        conv_taps: text.dim_or(&["short_conv_kernel_size"], 4)?,
        conv_channels: d.q_heads.saturating_mul(width).saturating_mul(3),
        heads: d.q_heads,
        rows: width,
        cols: width,
        groups: d.q_heads,
        state_dtype: Some(DType::F32),
    };
    let every = text.dim_or(&["layer_group_size"], 6)?;
    let kinds = layer_types(&text, d.layers)?.unwrap_or_else(|| {
        (1..=d.layers).map(|n| if n % every == 0 { LayerKind::Full } else { LayerKind::Linear }).collect()
    });
    tie(config, &text, b, false)?;
    b.embedding("model.word_embeddings.weight", d.vocab, h);
    for (i, kind) in (0..).zip(kinds) {
        let mixer = if kind == LayerKind::Linear { Mixer::State(delta) } else { Mixer::Latent(latent) };
        let ffn = if i >= dense { Ffn::Moe(moe) } else { gated(inner) };
        let layer = LayerSpec { mixer, parallel: None, cross: None, ffn };
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            match mixer {
                Mixer::Latent(a) => attends(b, h, &a)?,
                _ => recurs(b, h, &delta),
            }
            norms(b, h);
            if i >= dense {
                return experts(b, h, &moe);
            }
            b.gated_mlp(Role::Mlp, "mlp.", h, inner, false);
            Ok(())
        })?;
    }
    b.norm("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

fn routed(text: &Config<'_>) -> Result<Moe, ModelError> {
    let inner = text.dim_or(&["moe_intermediate_size"], 768)?;
    let experts = text.dim_or(&["num_experts", "num_local_experts"], 512)?;
    let top_k = text.dim_or(&["num_experts_per_token", "num_experts_per_tok"], 8)?;
    if top_k > experts || experts > MAX_EXPERTS {
        return Err(text.reject("num_experts", format!("expected {top_k} to {MAX_EXPERTS}")));
    }
    let shared = text.opt_any(&["num_shared_experts", "n_shared_experts"])?.unwrap_or(1).saturating_mul(inner);
    Ok(Moe { experts, top_k, intermediate: inner, shared })
}

/// DeepSeek's projections under this family's names, with a gate for each head.
fn attends(b: &mut SpecBuilder, h: u64, a: &LatentAttention) -> Result<(), ModelError> {
    let (role, split) = (Role::Attention, heads(a.q_heads));
    let q = a.q_heads.saturating_mul(a.nope_dim + a.rope_dim);
    b.scope("attention.", |b| {
        match a.q_rank {
            Some(rank) => {
                b.whole(role, "q_a_proj", [rank, h], false);
                b.norm("q_a_layernorm", rank);
                b.out_split(role, "q_b_proj", [q, rank], false, split);
            }
            None => b.out_split(role, "q_proj", [q, h], false, split),
        }
        b.whole(role, "kv_a_proj_with_mqa", [a.rank + a.rope_dim, h], false);
        b.norm("kv_a_layernorm", a.rank);
        b.out_split(role, "kv_b_proj", [a.q_heads * (a.nope_dim + a.v_dim), a.rank], false, split);
        b.out_split(role, "g_proj", [a.q_heads, h], false, split);
        b.in_split(role, "dense", [h, a.q_heads * a.v_dim], false, split);
        Ok(())
    })
}

fn recurs(b: &mut SpecBuilder, h: u64, s: &StateSpace) {
    let (role, split, wide) = (Role::State, heads(s.heads), s.heads.saturating_mul(s.rows));
    for name in ["q", "k", "v"] {
        b.tensor(role, &format!("attention.{name}_conv1d.weight"), &[wide, 1, s.conv_taps], split);
    }
    for name in ["q", "k", "v", "f", "g"] {
        b.out_split(role, &format!("attention.{name}_proj"), [wide, h], false, split);
    }
    b.tensor(role, "attention.A_log", &[s.heads], split);
    b.tensor(role, "attention.dt_bias", &[wide], split);
    b.out_split(role, "attention.b_proj", [s.heads, h], false, split);
    b.norm("attention.o_norm", s.rows);
    b.in_split(role, "attention.dense", [h, wide], false, split);
}

fn experts(b: &mut SpecBuilder, h: u64, moe: &Moe) -> Result<(), ModelError> {
    b.whole(Role::Router, "mlp.gate", [moe.experts, h], false);
    b.tensor_typed(Role::Router, "mlp.gate.expert_bias", &[moe.experts], Shard::Replicated, DType::F32);
    b.experts(moe.experts, |b| {
        b.gated_mlp(Role::Experts, "mlp.experts.{e}.", h, moe.intermediate, false);
        Ok(())
    })?;
    if moe.shared > 0 {
        b.gated_mlp(Role::SharedExperts, "mlp.shared_experts.", h, moe.shared, false);
    }
    Ok(())
}
