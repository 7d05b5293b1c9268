//! Qwen3 dense: a norm on every query and key head, a head size of its own.
//!
//! Source: transformers `models/qwen3/{configuration,modeling}_qwen3.py`.

use super::{Defaults, Family, decoder_or, qwen2, tie};
use crate::builder::attention_layer;
use crate::{Arithmetic, Config, Ffn, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(32),
        head_dim: Some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    b.arithmetic(Arithmetic::llama(&text, d.head_dim).map(|a| Arithmetic { qk_norm: true, ..a }));
    let ffn = Ffn::Dense {
        intermediate: inner,
        gated: true,
    };

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in qwen2::late_windows(&text, d.layers, 28)?.iter().enumerate() {
        let attention = d.attention(*reach);
        b.layer(
            &format!("model.layers.{i}."),
            attention_layer(attention, ffn),
            |b| {
                b.qkvo(d.hidden, &attention, bias, bias);
                b.norm("self_attn.q_norm", d.head_dim);
                b.norm("self_attn.k_norm", d.head_dim);
                b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
                b.norm("input_layernorm", d.hidden);
                b.norm("post_attention_layernorm", d.hidden);
                Ok(())
            },
        )?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
