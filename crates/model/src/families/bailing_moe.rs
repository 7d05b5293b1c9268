//! Ling and Ring 2.0: grouped-query attention with norms on heads, dense layers first, then experts chosen by biased scores
//! beside a shared one.
//!
//! Source: vLLM `models/bailing_moe.py`; transformers does not know the class, and what ranks hold of it is compared with
//! vLLM's (`crates/plan/tests/vllm_shards.rs`).

use plimsoll_units::DType;

use super::{Family, decoder, gated, moe, norms, tie};
use crate::builder::{attention_layer, heads};
use crate::{Config, Ffn, ModelError, Moe, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "bailing_moe",
    architectures: &["BailingMoeV2ForCausalLM"],
    model_types: &["bailing_moe_v2"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let h = d.hidden;
    let inner = text.dim(&["intermediate_size"], "it sizes the dense feed-forward")?;
    let one = text.dim(&["moe_intermediate_size"], "it sizes a routed expert")?;
    let each = text.dim_or(&["moe_shared_expert_intermediate_size"], one)?;
    let shared = text.opt("num_shared_experts")?.unwrap_or(0).saturating_mul(each);
    let moe = moe(&text, &["num_experts"], &["moe_intermediate_size"], shared)?;
    let dense = text.opt("first_k_dense_replace")?.unwrap_or(0);
    let (bias, qkv_bias) = (text.flag("use_bias", false)?, text.flag("use_qkv_bias", false)?);
    let normed = text.flag("use_qk_norm", false)?;
    let corrected = text.flag("moe_router_enable_expert_bias", false)?;
    let kept = match text.str("router_dtype") {
        None => b.spec().dtype,
        Some("fp32") => DType::F32,
        Some("bf16") => DType::Bf16,
        Some(_) => return Err(text.reject("router_dtype", "expected fp32 or bf16")),
    };
    if text.opt("num_nextn_predict_layers")?.is_some_and(|n| n > 0) {
        b.spec().notes.push("multi-token-prediction layers are left out".to_owned());
    }
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    let fused = (d.q_heads + 2 * d.kv_heads).saturating_mul(d.head_dim);
    b.embedding("model.word_embeddings.weight", d.vocab, h);
    for i in 0..d.layers {
        let ffn = if i >= dense { Ffn::Moe(moe) } else { gated(inner) };
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, ffn), |b| {
            let qkv = Shard::Qkv { q: d.q_heads, kv: d.kv_heads };
            b.out_split(Role::Attention, "attention.query_key_value", [fused, h], bias || qkv_bias, qkv);
            b.in_split(Role::Attention, "attention.dense", [h, d.q_heads * d.head_dim], bias, heads(d.q_heads));
            for name in ["query_layernorm", "key_layernorm"].iter().filter(|_| normed) {
                b.norm(&format!("attention.{name}"), d.head_dim);
            }
            norms(b, h);
            if i >= dense {
                return experts(b, h, &moe, kept, corrected);
            }
            b.gated_mlp(Role::Mlp, "mlp.", h, inner, bias);
            Ok(())
        })?;
    }
    b.norm("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

/// The router in a type of its own, and the experts.
fn experts(b: &mut SpecBuilder, h: u64, moe: &Moe, kept: DType, corrected: bool) -> Result<(), ModelError> {
    b.tensor_typed(Role::Router, "mlp.gate.weight", &[moe.experts, h], Shard::Replicated, kept);
    if corrected {
        b.tensor_typed(Role::Router, "mlp.gate.expert_bias", &[moe.experts], Shard::Replicated, DType::F32);
    }
    b.experts(moe.experts, |b| {
        b.gated_mlp(Role::Experts, "mlp.experts.{e}.", h, moe.intermediate, false);
        Ok(())
    })?;
    if moe.shared > 0 {
        b.gated_mlp(Role::SharedExperts, "mlp.shared_experts.", h, moe.shared, false);
    }
    Ok(())
}
