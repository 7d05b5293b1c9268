//! ChatGLM 3 and GLM-4-9B: one projection for queries, keys and values with a bias, one for gate and what it gates.
//!
//! Source: vLLM `models/chatglm.py` and `transformers_utils/configs/chatglm.py`; transformers does not know the published
//! class, and what ranks hold of it is compared with vLLM's (`crates/plan/tests/vllm_shards.rs`).

use super::{Defaults, Family, decoder_or, gated, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "chatglm",
    architectures: &["ChatGLMModel", "ChatGLMForConditionalGeneration"],
    model_types: &["chatglm"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let multi_query = text.flag("multi_query_attention", false)?;
    let defaults = Defaults {
        vocab: text.opt("padded_vocab_size")?,
        kv_heads: if multi_query { Some(text.dim_or(&["multi_query_group_num"], 1)?) } else { None },
        head_dim: text.opt("kv_channels")?,
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    if !text.flag("post_layer_norm", true)? || !text.flag("rmsnorm", true)? {
        return Err(text.reject("post_layer_norm", "expected true: published models end in a norm"));
    }
    let inner = text.dim(&["ffn_hidden_size"], "it sizes the feed-forward")?;
    let bias = text.flag("add_bias_linear", false)?;
    let qkv_bias = bias || text.flag("add_qkv_bias", false)?;
    tie(config, &text, b, false)?;
    b.rotary_share(0.5);
    let attention = d.attention(Reach::Full);
    let (h, wide) = (d.hidden, d.q_heads.saturating_mul(d.head_dim));
    let fused = (d.q_heads + 2 * d.kv_heads).saturating_mul(d.head_dim);
    b.embedding("transformer.embedding.word_embeddings.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("transformer.encoder.layers.{i}."), attention_layer(attention, gated(inner)), |b| {
            let qkv = Shard::Qkv { q: d.q_heads, kv: d.kv_heads };
            b.out_split(Role::Attention, "self_attention.query_key_value", [fused, h], qkv_bias, qkv);
            b.in_split(Role::Attention, "self_attention.dense", [h, wide], bias, heads(d.q_heads));
            b.out_split(Role::Mlp, "mlp.dense_h_to_4h", [2 * inner, h], bias, columns(inner));
            b.in_split(Role::Mlp, "mlp.dense_4h_to_h", [h, inner], bias, columns(inner));
            b.norm("input_layernorm", h);
            b.norm("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm("transformer.encoder.final_layernorm", h);
    b.head("transformer.output_layer", d.vocab, h);
    Ok(())
}
