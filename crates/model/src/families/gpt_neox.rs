//! GPT-NeoX-20B and Pythia: one fused projection for query, key and value, an untied head.
//!
//! Source: transformers `models/gpt_neox/modeling_gpt_neox.py`. Older checkpoints also hold causal
//! masks and rotary frequencies, which no engine loads.

use super::{Decoder, Family, decoder, tie};
use crate::arithmetic::RopeDefaults;
use crate::builder::{attention_layer, columns, heads};
use crate::{Activation, Arithmetic, Norm, Positions, Residual, Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM"],
    model_types: &["gpt_neox"],
    towers: false,
    lower,
};

/// Share of a head that is rotated where the config is silent.
const ROTARY_SHARE: f64 = 0.25;

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let mut d = decoder(config, b)?;
    d.kv_heads = d.q_heads;
    let inner = config.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = config.flag("attention_bias", true)?;
    tie(config, config, b, false)?;
    b.arithmetic(arithmetic(config, &d));
    b.rotary_share(ROTARY_SHARE);
    let layer = attention_layer(
        d.attention(Reach::Full),
        Ffn::Dense {
            intermediate: inner,
            gated: false,
        },
    );
    let (at, h) = (Role::Attention, d.hidden);
    let qkv = Shard::Qkv {
        q: d.q_heads,
        kv: d.kv_heads,
    };
    let width = d.q_heads * d.head_dim;

    b.embedding("gpt_neox.embed_in.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("gpt_neox.layers.{i}."), layer, |b| {
            b.norm_bias("input_layernorm", h);
            b.norm_bias("post_attention_layernorm", h);
            b.out_split(at, "attention.query_key_value", [3 * width, h], bias, qkv);
            b.in_split(at, "attention.dense", [h, width], bias, heads(d.q_heads));
            b.out_split(
                Role::Mlp,
                "mlp.dense_h_to_4h",
                [inner, h],
                true,
                columns(inner),
            );
            b.in_split(
                Role::Mlp,
                "mlp.dense_4h_to_h",
                [h, inner],
                true,
                columns(inner),
            );
            Ok(())
        })?;
    }
    b.norm_bias("gpt_neox.final_layer_norm", h);
    b.head("embed_out", d.vocab, h);
    Ok(())
}

fn arithmetic(config: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    let rope = RopeDefaults {
        share: ROTARY_SHARE,
        ..RopeDefaults::default()
    };
    Ok(Arithmetic {
        norm: Norm::Layer {
            eps: config.positive("layer_norm_eps")?.unwrap_or(1e-5),
            affine: true,
        },
        residual: if config.flag("use_parallel_residual", true)? {
            Residual::Parallel
        } else {
            Residual::Serial
        },
        positions: Positions::rotary(config, d.head_dim, rope)?,
        activation: Activation::read(config, "hidden_act", Activation::Gelu)?,
        ..Arithmetic::llama(config, d.head_dim)?
    })
}
