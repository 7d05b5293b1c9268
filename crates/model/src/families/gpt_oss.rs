//! gpt-oss: alternating windows with attention sinks, biases, experts fused along their first
//! dimension and stored in mxfp4.
//!
//! Source: transformers `models/gpt_oss/modeling_gpt_oss.py`; names as in the published checkpoints.

use super::{Family, decoder, reaches_of, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Axis, Config, Ffn, Linear, ModelError, Moe, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gpt_oss",
    architectures: &["GptOssForCausalLM"],
    model_types: &["gpt_oss"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let inner = config.dim(&["intermediate_size"], "it sizes an expert")?;
    let bias = config.flag("attention_bias", true)?;
    tie(config, config, b, false)?;
    let moe = Moe {
        experts: config.dim(&["num_local_experts", "num_experts"], "it is the number of experts")?,
        top_k: config.dim(&["num_experts_per_tok", "experts_per_token"], "it is the experts per token")?,
        intermediate: inner,
        shared: 0,
    };
    let window = config.dim_or(&["sliding_window"], 128)?;
    let reach = match config.strings("layer_types")? {
        Some(types) => reaches_of(config, &types, d.layers, window)?,
        None => (0..d.layers)
            .map(|i| if i.is_multiple_of(2) { Reach::Window(window) } else { Reach::Full })
            .collect(),
    };
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in reach.into_iter().enumerate() {
        let attention = d.attention(reach);
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, Ffn::Moe(moe)), |b| {
            b.tensor(Role::Attention, "self_attn.sinks", &[d.q_heads], heads(d.q_heads));
            b.qkvo(d.hidden, &attention, bias, bias);
            b.whole(Role::Router, "mlp.router", [moe.experts, d.hidden], true);
            b.experts(moe.experts, |b| {
                // Gate and up rows alternate, so a split by pairs of rows is a split by columns.
                expert(b, "gate_up_proj", [2 * inner, d.hidden], Axis::Out, inner);
                expert(b, "down_proj", [d.hidden, inner], Axis::In, inner);
                Ok(())
            })?;
            b.norm("input_layernorm", d.hidden);
            b.norm("post_attention_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// One of the fused expert weights, stored `[experts, inp, out]`, with its bias.
fn expert(b: &mut SpecBuilder, name: &str, [out, inp]: [u64; 2], axis: Axis, inner: u64) {
    let shard = columns(inner);
    b.tensor(Role::Experts, &format!("mlp.experts.{name}"), &[inp, out], shard);
    if let Some(t) = b.spec().tensors.last_mut() {
        t.linear = Some(Linear { out, inp, axis });
    }
    let bias = if axis == Axis::Out { shard } else { crate::Shard::Replicated };
    b.tensor(Role::Experts, &format!("mlp.experts.{name}_bias"), &[out], bias);
}
