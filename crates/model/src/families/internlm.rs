//! InternLM 2 and 3: LLaMA under other names; the second has one projection for queries, keys and values, dealt out by KV
//! head, the third LLaMA's tensors with biases of its own.
//!
//! Source: transformers `models/internlm3` (which it computes with LLaMA's code); InternLM 2, which it does not know, from
//! vLLM `models/internlm2.py`.

use super::{Decoder, Defaults, Family, decoder_or, gated, norms, stack, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "internlm",
    architectures: &["InternLM2ForCausalLM", "InternLM3ForCausalLM"],
    model_types: &["internlm2", "internlm3"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let is_2 = text.architecture() == Some("InternLM2ForCausalLM") || text.str("model_type") == Some("internlm2");
    let defaults = Defaults {
        kv_heads: (!is_2).then_some(2),
        head_dim: (!is_2).then_some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    tie(config, &text, b, false)?;
    if is_2 {
        return second(&text, b, &d, inner);
    }
    let either = |names: [&'static str; 2]| match names.into_iter().find(|n| text.has(n)) {
        Some(name) => text.flag(name, false),
        None => Ok(false),
    };
    let (bias, mlp_bias) = (either(["qkv_bias", "attention_bias"])?, either(["bias", "mlp_bias"])?);
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|_| attention_layer(attention, gated(inner)));
    stack(b, "model.", &d, layers, |b, _, _| {
        // The output's bias goes with those of the feed-forward, in published files.
        b.qkvo(d.hidden, &attention, bias, mlp_bias);
        b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, mlp_bias);
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

fn second(text: &Config<'_>, b: &mut SpecBuilder, d: &Decoder, inner: u64) -> Result<(), ModelError> {
    let (h, bias) = (d.hidden, text.flag("bias", false)?);
    let attention = d.attention(Reach::Full);
    let fused = (d.q_heads + 2 * d.kv_heads).saturating_mul(d.head_dim);
    b.embedding("model.tok_embeddings.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, gated(inner)), |b| {
            let qkv = Shard::Qkv { q: d.q_heads, kv: d.kv_heads };
            b.out_split(Role::Attention, "attention.wqkv", [fused, h], bias, qkv);
            b.in_split(Role::Attention, "attention.wo", [h, d.q_heads * d.head_dim], bias, heads(d.q_heads));
            b.out_split(Role::Mlp, "feed_forward.w1", [inner, h], false, columns(inner));
            b.out_split(Role::Mlp, "feed_forward.w3", [inner, h], false, columns(inner));
            b.in_split(Role::Mlp, "feed_forward.w2", [h, inner], false, columns(inner));
            b.norm("attention_norm", h);
            b.norm("ffn_norm", h);
            Ok(())
        })?;
    }
    b.norm("model.norm", h);
    b.head("output", d.vocab, h);
    Ok(())
}
