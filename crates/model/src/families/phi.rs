//! Phi 1, 1.5 and 2: attention and feed-forward beside each other after one norm, biases everywhere,
//! also on the head.
//!
//! Source: transformers `models/phi/{configuration,modeling}_phi.py`. The first uploads
//! (`model_type` phi-msft) call their fields as GPT-2 does, and name their tensors otherwise; the
//! shapes are the same.

use super::{Decoder, Family, decoder, tie};
use crate::arithmetic::RopeDefaults;
use crate::builder::{attention_layer, columns, heads};
use crate::{Activation, Arithmetic, Norm, Positions, Residual, Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "phi",
    architectures: &["PhiForCausalLM"],
    model_types: &["phi", "phi-msft"],
    towers: false,
    lower,
};

/// Share of a head that is rotated where the config is silent.
const ROTARY_SHARE: f64 = 0.5;

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let inner = config.dim_or(
        &["intermediate_size", "n_inner"],
        d.hidden.saturating_mul(4),
    )?;
    let qk_norm = config.flag("qk_layernorm", false)?;
    tie(config, config, b, false)?;
    b.arithmetic(arithmetic(config, &d, qk_norm));
    b.rotary_share(ROTARY_SHARE);
    let attention = d.attention(Reach::Full);
    let layer = attention_layer(
        attention,
        Ffn::Dense {
            intermediate: inner,
            gated: false,
        },
    );
    let (at, h) = (Role::Attention, d.hidden);
    let (q, kv) = (d.q_heads * d.head_dim, d.kv_heads * d.head_dim);
    let kv_shard = Shard::KvHeads { heads: d.kv_heads };

    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.out_split(at, "self_attn.q_proj", [q, h], true, heads(d.q_heads));
            b.out_split(at, "self_attn.k_proj", [kv, h], true, kv_shard);
            b.out_split(at, "self_attn.v_proj", [kv, h], true, kv_shard);
            b.in_split(at, "self_attn.dense", [h, q], true, heads(d.q_heads));
            if qk_norm {
                b.norm_bias("self_attn.q_layernorm", h / d.q_heads);
                b.norm_bias("self_attn.k_layernorm", h / d.q_heads);
            }
            b.out_split(Role::Mlp, "mlp.fc1", [inner, h], true, columns(inner));
            b.in_split(Role::Mlp, "mlp.fc2", [h, inner], true, columns(inner));
            b.norm_bias("input_layernorm", h);
            Ok(())
        })?;
    }
    b.norm_bias("model.final_layernorm", h);
    b.head("lm_head", d.vocab, h);
    b.tensor(
        Role::Head,
        "lm_head.bias",
        &[d.vocab],
        Shard::Vocab { rows: d.vocab },
    );
    Ok(())
}

fn arithmetic(
    config: &Config<'_>,
    d: &Decoder,
    qk_norm: bool,
) -> Result<Arithmetic, ModelError> {
    let rope = RopeDefaults {
        share: ROTARY_SHARE,
        ..RopeDefaults::default()
    };
    Ok(Arithmetic {
        norm: Norm::Layer {
            eps: config.positive("layer_norm_eps")?.unwrap_or(1e-5),
            affine: true,
        },
        residual: Residual::Parallel,
        positions: Positions::rotary(config, d.head_dim, rope)?,
        activation: Activation::read(config, "hidden_act", Activation::GeluTanh)?,
        qk_norm,
        ..Arithmetic::llama(config, d.head_dim)?
    })
}
