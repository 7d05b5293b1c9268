//! GPT-NeoX and Pythia: fused query-key-value, biases, separate embeddings.
//!
//! Source: transformers `models/gpt_neox/modeling_gpt_neox.py`.

use super::{Family, decoder, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM"],
    model_types: &["gpt_neox"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let inner = config.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = config.flag("attention_bias", true)?;
    tie(config, config, b, false)?;
    let layer =
        attention_layer(d.attention(Reach::Full), Ffn::Dense { intermediate: inner, gated: false });
    let width = d.q_heads * d.head_dim;
    let qkv = Shard::Qkv { q: d.q_heads, kv: d.q_heads };
    b.embedding("gpt_neox.embed_in.weight", d.vocab, d.hidden);
    for i in 0..d.layers {
        b.layer(&format!("gpt_neox.layers.{i}."), layer, |b| {
            b.norm_bias("input_layernorm", d.hidden);
            b.norm_bias("post_attention_layernorm", d.hidden);
            b.out_split(Role::Attention, "attention.query_key_value", [3 * width, d.hidden], bias, qkv);
            b.in_split(Role::Attention, "attention.dense", [d.hidden, width], bias, heads(d.q_heads));
            b.out_split(Role::Mlp, "mlp.dense_h_to_4h", [inner, d.hidden], true, columns(inner));
            b.in_split(Role::Mlp, "mlp.dense_4h_to_h", [d.hidden, inner], true, columns(inner));
            Ok(())
        })?;
    }
    b.norm_bias("gpt_neox.final_layer_norm", d.hidden);
    b.head("embed_out", d.vocab, d.hidden);
    Ok(())
}
