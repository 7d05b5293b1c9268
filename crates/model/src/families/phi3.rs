//! Phi 3, 3.5 and 4: fused query-key-value and gate-up projections.
//!
//! Source: transformers `models/phi3/modeling_phi3.py`.

use super::{Family, decoder, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "phi3",
    architectures: &["Phi3ForCausalLM"],
    model_types: &["phi3"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let inner = config.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    tie(config, config, b, false)?;
    let reach = match config.opt("sliding_window")? {
        Some(w) if w > 0 => Reach::Window(w),
        _ => Reach::Full,
    };
    let layer = attention_layer(d.attention(reach), Ffn::Dense { intermediate: inner, gated: true });
    let qkv_out = (d.q_heads + 2 * d.kv_heads) * d.head_dim;
    let qkv = Shard::Qkv { q: d.q_heads, kv: d.kv_heads };
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            let width = d.q_heads * d.head_dim;
            b.in_split(Role::Attention, "self_attn.o_proj", [d.hidden, width], false, heads(d.q_heads));
            b.out_split(Role::Attention, "self_attn.qkv_proj", [qkv_out, d.hidden], false, qkv);
            b.out_split(Role::Mlp, "mlp.gate_up_proj", [2 * inner, d.hidden], false, columns(inner));
            b.in_split(Role::Mlp, "mlp.down_proj", [d.hidden, inner], false, columns(inner));
            b.norm("input_layernorm", d.hidden);
            b.norm("post_attention_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
