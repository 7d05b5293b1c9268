//! Falcon: one key and value head (7B), groups of them behind two norms (40B, 180B, Falcon 2), or a head for each query
//! with ALiBi in place of rotation (RW).
//!
//! Source: transformers `models/falcon/{configuration,modeling}_falcon.py`.

use super::{Defaults, Family, decoder_or, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "falcon",
    architectures: &["FalconForCausalLM"],
    model_types: &["falcon"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let grouped = text.flag("new_decoder_architecture", false)?;
    let defaults = Defaults {
        max_context: Some(2048),
        ..Defaults::default()
    };
    let mut d = decoder_or(&text, b, defaults)?;
    // Without groups the field for KV heads says nothing: there is one, or one for each query head.
    if !grouped {
        d.kv_heads = if text.flag("multi_query", true)? { 1 } else { d.q_heads };
    }
    let inner = text.dim_or(&["ffn_hidden_size"], d.hidden.saturating_mul(4))?;
    let bias = text.flag("bias", false)?;
    let parallel = text.flag("parallel_attn", true)?;
    let two_norms = grouped && text.opt("num_ln_in_parallel_attn")?.unwrap_or(2) == 2;
    tie(config, &text, b, true)?;
    if text.flag("alibi", false)? {
        b.rotary_share(0.0);
    }
    let attention = d.attention(Reach::Full);
    let ffn = Ffn::Dense {
        intermediate: inner,
        gated: false,
    };
    let (h, at, q) = (d.hidden, Role::Attention, d.q_heads * d.head_dim);
    let rows = q + 2 * d.kv_heads * d.head_dim;
    let fused = Shard::Qkv { q: d.q_heads, kv: d.kv_heads };
    b.embedding("transformer.word_embeddings.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("transformer.h.{i}."), attention_layer(attention, ffn), |b| {
            b.out_split(at, "self_attention.query_key_value", [rows, h], bias, fused);
            b.in_split(at, "self_attention.dense", [h, q], bias, heads(d.q_heads));
            b.out_split(Role::Mlp, "mlp.dense_h_to_4h", [inner, h], bias, columns(inner));
            b.in_split(Role::Mlp, "mlp.dense_4h_to_h", [h, inner], bias, columns(inner));
            if two_norms {
                b.norm_bias("ln_attn", h);
                b.norm_bias("ln_mlp", h);
            } else {
                b.norm_bias("input_layernorm", h);
                if !parallel {
                    b.norm_bias("post_attention_layernorm", h);
                }
            }
            Ok(())
        })?;
    }
    b.norm_bias("transformer.ln_f", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}
