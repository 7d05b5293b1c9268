//! Qwen 1.5 and Qwen 2 mixture-of-experts: routed experts beside one shared expert with a gate.
//!
//! Source: transformers `models/qwen2_moe/{configuration,modeling}_qwen2_moe.py`. Where the window is
//! switched on, it is so in every second layer below `max_window_layers`.

use super::{Defaults, Family, SparseLayers, decoder_or, qwen2, qwen3_moe, reaches, tie};
use crate::builder::attention_layer;
use crate::{Config, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen2_moe",
    architectures: &["Qwen2MoeForCausalLM"],
    model_types: &["qwen2_moe"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder_or(
        &text,
        b,
        Defaults {
            kv_heads: Some(16),
            ..Defaults::default()
        },
    )?;
    let shared = text.dim(
        &["shared_expert_intermediate_size"],
        "it sizes the shared expert",
    )?;
    let sparse = SparseLayers::read(&text, shared)?;
    let inner = sparse.dense_inner(&text, d.layers, 5632)?;
    let bias = text.flag("qkv_bias", true)?;
    tie(config, &text, b, false)?;
    b.arithmetic(qwen3_moe::arithmetic(&text, &d));
    let last = text.opt("max_window_layers")?.unwrap_or(28);
    let windowed = |i: u64| i.is_multiple_of(2) && i < last;
    let reach = reaches(&text, d.layers, qwen2::switched_window(&text)?, windowed)?;

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in (0..).zip(reach) {
        let attention = d.attention(reach);
        let layer = attention_layer(attention, sparse.ffn(i, inner));
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.qkvo(d.hidden, &attention, bias, false);
            if sparse.has(i) {
                qwen3_moe::experts(b, d.hidden, &sparse)?;
                qwen3_moe::shared_expert(b, d.hidden, &sparse);
            } else {
                b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
            }
            b.norm("input_layernorm", d.hidden);
            b.norm("post_attention_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
