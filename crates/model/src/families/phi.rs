//! Phi 1, 1.5 and 2: parallel attention and MLP, biases everywhere, partial rotary embeddings.
//!
//! Source: transformers `models/phi/modeling_phi.py`; the first checkpoints call themselves `phi-msft`
//! and use GPT-2's field names.

use super::{Family, decoder, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::{Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "phi",
    architectures: &["PhiForCausalLM"],
    model_types: &["phi", "phi-msft"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let inner = config.dim_or(&["intermediate_size", "n_inner"], d.hidden.saturating_mul(4))?;
    let qk_norm = config.flag("qk_layernorm", false)?;
    tie(config, config, b, false)?;
    let a = d.attention(Reach::Full);
    let layer = attention_layer(a, Ffn::Dense { intermediate: inner, gated: false });
    let width = d.q_heads * d.head_dim;
    let kv = Shard::KvHeads { heads: d.kv_heads };
    let at = Role::Attention;
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.out_split(at, "self_attn.q_proj", [width, d.hidden], true, heads(d.q_heads));
            b.out_split(at, "self_attn.k_proj", [d.kv_heads * d.head_dim, d.hidden], true, kv);
            b.out_split(at, "self_attn.v_proj", [d.kv_heads * d.head_dim, d.hidden], true, kv);
            b.in_split(at, "self_attn.dense", [d.hidden, width], true, heads(d.q_heads));
            if qk_norm {
                b.norm_bias("self_attn.q_layernorm", d.head_dim);
                b.norm_bias("self_attn.k_layernorm", d.head_dim);
            }
            b.out_split(Role::Mlp, "mlp.fc1", [inner, d.hidden], true, columns(inner));
            b.in_split(Role::Mlp, "mlp.fc2", [d.hidden, inner], true, columns(inner));
            b.norm_bias("input_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm_bias("model.final_layernorm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    // This head has a bias of its own.
    if !b.spec().tied_embeddings {
        b.tensor(Role::Head, "lm_head.bias", &[d.vocab], Shard::Vocab { rows: d.vocab });
    }
    Ok(())
}
