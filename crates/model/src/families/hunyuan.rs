//! Hunyuan, dense (0.5B to 7B) and with experts (A13B): norms on each head; one feed-forward that every token passes.
//!
//! Source: transformers `models/hunyuan_v1_dense/{configuration,modeling}_hunyuan_v1_dense.py` and
//! `models/hunyuan_v1_moe`.

use plimsoll_units::DType;

use super::{Decoder, Family, decoder, gated, norms, stack, tie};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Moe, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "hunyuan",
    architectures: &["HunYuanDenseV1ForCausalLM", "HunYuanMoEV1ForCausalLM"],
    model_types: &["hunyuan_v1_dense", "hunyuan_v1_moe"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let sparse = config.architecture() == Some("HunYuanMoEV1ForCausalLM")
        || text.str("model_type") == Some("hunyuan_v1_moe");
    let ffn = if sparse { Ffn::Moe(routed(&text, inner)?) } else { gated(inner) };
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|_| attention_layer(attention, ffn));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &attention, bias, bias);
        b.norm("self_attn.query_layernorm", d.head_dim);
        b.norm("self_attn.key_layernorm", d.head_dim);
        match ffn {
            Ffn::Moe(moe) => experts(b, &d, &moe)?,
            _ => b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false),
        }
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// Fields that may be a number, or a list with the same number for every layer.
fn uniform(text: &Config<'_>, key: &str, why: &'static str) -> Result<u64, ModelError> {
    if !text.get(key).is_some_and(serde_json::Value::is_array) {
        return text.dim(&[key], why);
    }
    match text.numbers(key)?.as_deref() {
        Some([first, rest @ ..]) if *first > 0 && rest.iter().all(|n| n == first) => Ok(*first),
        _ => Err(text.reject(key, "expected the same number, 1 or more, for every layer")),
    }
}

fn routed(text: &Config<'_>, inner: u64) -> Result<Moe, ModelError> {
    let experts = uniform(text, "num_experts", "it is the number of routed experts")?;
    let top_k = uniform(text, "moe_topk", "it is the number of experts that a token takes")?;
    if top_k > experts || experts > super::MAX_EXPERTS {
        return Err(text.reject("num_experts", format!("expected {top_k} to {}", super::MAX_EXPERTS)));
    }
    for (key, want) in [("moe_intermediate_size", inner), ("num_shared_expert", 1)] {
        if text.has(key) && uniform(text, key, "it sizes experts")? != want {
            return Err(text.reject(key, format!("expected {want}, which transformers takes for granted")));
        }
    }
    Ok(Moe { experts, top_k, intermediate: inner, shared: inner })
}

fn experts(b: &mut SpecBuilder, d: &Decoder, moe: &Moe) -> Result<(), ModelError> {
    let gate = [moe.experts, d.hidden];
    b.tensor_typed(Role::Router, "mlp.gate.wg.weight", &gate, Shard::Replicated, DType::F32);
    b.experts(moe.experts, |b| {
        b.gated_mlp(Role::Experts, "mlp.experts.{e}.", d.hidden, moe.intermediate, false);
        Ok(())
    })?;
    b.gated_mlp(Role::SharedExperts, "mlp.shared_mlp.", d.hidden, moe.shared, false);
    Ok(())
}
