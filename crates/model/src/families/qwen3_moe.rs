//! Qwen3 mixture-of-experts: Qwen3 with routed experts and none shared.
//!
//! Source: transformers `models/qwen3_moe/{configuration,modeling}_qwen3_moe.py`. Where the window is
//! switched on, it is so in every layer.

use super::{Decoder, Defaults, Family, SparseLayers, decoder_or, qwen2, reaches, tie};
use crate::builder::attention_layer;
use crate::{Arithmetic, Config, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM"],
    model_types: &["qwen3_moe"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder_or(
        &text,
        b,
        Defaults {
            kv_heads: Some(4),
            ..Defaults::default()
        },
    )?;
    let sparse = SparseLayers::read(&text, 0)?;
    let inner = sparse.dense_inner(&text, d.layers, 6144)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    b.arithmetic(arithmetic(&text, &d).map(|a| Arithmetic { qk_norm: true, ..a }));
    let reach = reaches(&text, d.layers, qwen2::switched_window(&text)?, |_| true)?;

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in (0..).zip(reach) {
        let attention = d.attention(reach);
        let layer = attention_layer(attention, sparse.ffn(i, inner));
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.qkvo(d.hidden, &attention, bias, bias);
            b.norm("self_attn.q_norm", d.head_dim);
            b.norm("self_attn.k_norm", d.head_dim);
            if sparse.has(i) {
                experts(b, d.hidden, &sparse)?;
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

/// LLaMA's, with weights of experts as `norm_topk_prob` says.
pub(super) fn arithmetic(text: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    Ok(Arithmetic {
        renormalise: text.flag("norm_topk_prob", false)?,
        ..Arithmetic::llama(text, d.head_dim)?
    })
}

/// The router and the routed experts, under the names that Qwen and DeepSeek share.
pub(super) fn experts(
    b: &mut SpecBuilder,
    hidden: u64,
    sparse: &SparseLayers,
) -> Result<(), ModelError> {
    let moe = sparse.moe;
    b.whole(Role::Router, "mlp.gate", [moe.experts, hidden], false);
    b.experts(moe.experts, |b| {
        b.gated_mlp(
            Role::Experts,
            "mlp.experts.{e}.",
            hidden,
            moe.intermediate,
            false,
        );
        Ok(())
    })
}

/// The expert that every token passes, and its gate.
pub(super) fn shared_expert(b: &mut SpecBuilder, hidden: u64, sparse: &SparseLayers) {
    let role = Role::SharedExperts;
    b.gated_mlp(role, "mlp.shared_expert.", hidden, sparse.moe.shared, false);
    b.whole(Role::Router, "mlp.shared_expert_gate", [1, hidden], false);
}
