//! BLOOM: ALiBi in place of positions, a norm behind the embedding, biases everywhere.
//!
//! Source: transformers `models/bloom/{configuration,modeling}_bloom.py`.

use super::{Family, decoder, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "bloom",
    architectures: &["BloomForCausalLM"],
    model_types: &["bloom"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    tie(config, &text, b, true)?;
    b.rotary_share(0.0);
    let attention = d.attention(Reach::Full);
    let (h, inner) = (d.hidden, d.hidden.saturating_mul(4));
    let ffn = Ffn::Dense {
        intermediate: inner,
        gated: false,
    };
    let fused = Shard::Qkv { q: d.q_heads, kv: d.kv_heads };
    b.embedding("transformer.word_embeddings.weight", d.vocab, h);
    b.norm_bias("transformer.word_embeddings_layernorm", h);
    for i in 0..d.layers {
        b.layer(&format!("transformer.h.{i}."), attention_layer(attention, ffn), |b| {
            let at = Role::Attention;
            b.out_split(at, "self_attention.query_key_value", [3 * h, h], true, fused);
            b.in_split(at, "self_attention.dense", [h, h], true, heads(d.q_heads));
            b.out_split(Role::Mlp, "mlp.dense_h_to_4h", [inner, h], true, columns(inner));
            b.in_split(Role::Mlp, "mlp.dense_4h_to_h", [h, inner], true, columns(inner));
            b.norm_bias("input_layernorm", h);
            b.norm_bias("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm_bias("transformer.ln_f", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}
