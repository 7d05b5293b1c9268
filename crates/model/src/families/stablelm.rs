//! StableLM 2 and 3B: LLaMA's matrices under norms with biases; the largest runs both halves of a layer side by side.
//!
//! Source: transformers `models/stablelm/{configuration,modeling}_stablelm.py`.

use super::{Defaults, Family, decoder_or, gated, tie};
use crate::builder::attention_layer;
use crate::{Config, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "stablelm",
    architectures: &["StableLmForCausalLM"],
    model_types: &["stablelm"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(32),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let (h, inner) = (d.hidden, text.dim(&["intermediate_size"], "it sizes the feed-forward")?);
    let bias = text.flag("use_qkv_bias", false)?;
    let qk_norm = text.flag("qk_layernorm", false)?;
    if qk_norm && d.q_heads > MOST_HEADS {
        return Err(text.reject("num_attention_heads", format!("expected at most {MOST_HEADS}")));
    }
    let parallel = text.flag("use_parallel_residual", false)?;
    tie(config, &text, b, false)?;
    b.rotary_share(0.25);
    let attention = d.attention(Reach::Full);
    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, gated(inner)), |b| {
            b.qkvo(h, &attention, bias, false);
            if qk_norm {
                for (name, heads) in [("q", d.q_heads), ("k", d.kv_heads)] {
                    for i in 0..heads {
                        b.norm(&format!("self_attn.{name}_layernorm.norms.{i}"), d.head_dim);
                    }
                }
            }
            b.gated_mlp(Role::Mlp, "mlp.", h, inner, false);
            b.norm_bias("input_layernorm", h);
            if !parallel {
                b.norm_bias("post_attention_layernorm", h);
            }
            Ok(())
        })?;
    }
    b.norm_bias("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

/// Each head's norm is a tensor of its own: more than any model has would only fill memory.
const MOST_HEADS: u64 = 1 << 10;
