//! GPT-NeoX-20B and Pythia: one fused projection for query, key and value, an untied head.
//!
//! Source: transformers `models/gpt_neox/modeling_gpt_neox.py`. Older checkpoints also hold causal
//! masks and rotary frequencies, which no engine loads.

use super::{Family, decoder, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM"],
    model_types: &["gpt_neox"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let mut d = decoder(config, b)?;
    d.kv_heads = d.q_heads;
    let inner = config.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = config.flag("attention_bias", true)?;
    tie(config, config, b, false)?;
    b.rotary_share(0.25);
    let layer = attention_layer(
        d.attention(Reach::Full),
        Ffn::Dense {
            intermediate: inner,
            gated: false,
        },
    );
    let (at, h) = (Role::Attention, d.hidden);
    let qkv = Shard::Qkv {
        q: d.q_heads,
        kv: d.kv_heads,
    };
    let width = d.q_heads * d.head_dim;

    b.embedding("gpt_neox.embed_in.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("gpt_neox.layers.{i}."), layer, |b| {
            b.norm_bias("input_layernorm", h);
            b.norm_bias("post_attention_layernorm", h);
            b.out_split(at, "attention.query_key_value", [3 * width, h], bias, qkv);
            b.in_split(at, "attention.dense", [h, width], bias, heads(d.q_heads));
            b.out_split(
                Role::Mlp,
                "mlp.dense_h_to_4h",
                [inner, h],
                true,
                columns(inner),
            );
            b.in_split(
                Role::Mlp,
                "mlp.dense_4h_to_h",
                [h, inner],
                true,
                columns(inner),
            );
            Ok(())
        })?;
    }
    b.norm_bias("gpt_neox.final_layer_norm", h);
    b.head("embed_out", d.vocab, h);
    Ok(())
}
