//! MPT: ALiBi in place of positions, norms without biases, one projection for queries, keys and values.
//!
//! Source: transformers `models/mpt/{configuration,modeling}_mpt.py`.

use super::{Defaults, Family, decoder_or, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mpt",
    architectures: &["MptForCausalLM", "MPTForCausalLM"],
    model_types: &["mpt"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        q_heads: Some(16),
        vocab: Some(50_368),
        max_context: Some(2048),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    if let Some(set) = text.object("attn_config")? {
        let kind = set.str("attn_type").unwrap_or("multihead_attention");
        if kind != "multihead_attention" {
            return Err(set.reject("attn_type", "expected multihead_attention"));
        }
        if !set.flag("alibi", true)? {
            return Err(set.reject("alibi", "expected true: no published model of this class has learned positions"));
        }
        if set.flag("qk_ln", false)? {
            return Err(set.reject("qk_ln", "expected false: transformers' class has no norms of queries and keys"));
        }
    }
    if !text.flag("no_bias", true)? {
        return Err(text.reject("no_bias", "expected true: transformers' class has no biases"));
    }
    tie(config, &text, b, true)?;
    b.rotary_share(0.0);
    let attention = d.attention(Reach::Full);
    let (h, inner) = (d.hidden, d.hidden.saturating_mul(text.dim_or(&["expansion_ratio"], 4)?));
    let ffn = Ffn::Dense { intermediate: inner, gated: false };
    let fused = Shard::Qkv { q: d.q_heads, kv: d.kv_heads };
    b.embedding("transformer.wte.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("transformer.blocks.{i}."), attention_layer(attention, ffn), |b| {
            b.out_split(Role::Attention, "attn.Wqkv", [3 * h, h], false, fused);
            b.in_split(Role::Attention, "attn.out_proj", [h, h], false, heads(d.q_heads));
            b.out_split(Role::Mlp, "ffn.up_proj", [inner, h], false, columns(inner));
            b.in_split(Role::Mlp, "ffn.down_proj", [h, inner], false, columns(inner));
            b.norm("norm_1", h);
            b.norm("norm_2", h);
            Ok(())
        })?;
    }
    b.norm("transformer.norm_f", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}
