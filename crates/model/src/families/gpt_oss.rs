//! gpt-oss: window and full attention in turn with a learned sink per head, biases everywhere, all
//! experts of a layer in one tensor.
//!
//! Source: transformers `models/gpt_oss/{configuration,modeling}_gpt_oss.py`. Unquantised, the experts'
//! matrices are stored transposed; in MXFP4 they are stored by output row.

use super::{Decoder, Defaults, Family, decoder_or, moe, reaches, tie, window};
use crate::arithmetic::RopeDefaults;
use crate::builder::{attention_layer, columns, heads};
use crate::{
    Arithmetic, Axis, ClampedSwiglu, Config, Ffn, Linear, ModelError, Norm, Positions, Role, Shard,
    SpecBuilder,
};

pub(super) const FAMILY: Family = Family {
    name: "gpt_oss",
    architectures: &["GptOssForCausalLM"],
    model_types: &["gpt_oss"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(8),
        head_dim: Some(64),
        max_context: Some(131_072),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let moe = moe(
        &text,
        &["num_local_experts", "num_experts"],
        &["intermediate_size"],
        0,
    )?;
    let bias = text.flag("attention_bias", true)?;
    tie(config, &text, b, false)?;
    b.arithmetic(arithmetic(&text, &d));
    let reach = reaches(&text, d.layers, window(&text, Some(128))?, |i| {
        i.is_multiple_of(2)
    })?;
    let (h, inner, ex) = (d.hidden, moe.intermediate, Role::Experts);

    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for (i, reach) in reach.iter().enumerate() {
        let attention = d.attention(*reach);
        let layer = attention_layer(attention, Ffn::Moe(moe));
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.tensor(
                Role::Attention,
                "self_attn.sinks",
                &[d.q_heads],
                heads(d.q_heads),
            );
            b.qkvo(h, &attention, bias, bias);
            b.whole(Role::Router, "mlp.router", [moe.experts, h], true);
            b.experts(moe.experts, |b| {
                let up = Linear {
                    out: 2 * inner,
                    inp: h,
                    axis: Axis::Out,
                };
                let down = Linear {
                    out: h,
                    inp: inner,
                    axis: Axis::In,
                };
                let cols = columns(inner);
                b.matrix_as(ex, "mlp.experts.gate_up_proj", &[up.inp, up.out], up, cols);
                b.tensor(ex, "mlp.experts.gate_up_proj_bias", &[up.out], cols);
                b.matrix_as(
                    ex,
                    "mlp.experts.down_proj",
                    &[down.inp, down.out],
                    down,
                    cols,
                );
                b.tensor(
                    ex,
                    "mlp.experts.down_proj_bias",
                    &[down.out],
                    Shard::Replicated,
                );
                Ok(())
            })?;
            b.norm("input_layernorm", h);
            b.norm("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

fn arithmetic(text: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    if !["rope_scaling", "rope_parameters"]
        .iter()
        .any(|k| text.has(k))
    {
        return Err(ModelError::Missing {
            field: text.path_of("rope_scaling"),
            why: "without it, versions of transformers rotate differently",
        });
    }
    let defaults = RopeDefaults {
        theta: 150_000.0,
        ..RopeDefaults::default()
    };
    Ok(Arithmetic {
        norm: Norm::Rms {
            eps: text.positive("rms_norm_eps")?.unwrap_or(1e-5),
            plus_one: false,
        },
        positions: Positions::rotary(text, d.head_dim, defaults)?,
        clamped: Some(ClampedSwiglu {
            limit: text.positive("swiglu_limit")?.unwrap_or(7.0),
            alpha: text.positive("swiglu_alpha")?.unwrap_or(1.702),
        }),
        ..Arithmetic::llama(text, d.head_dim)?
    })
}
