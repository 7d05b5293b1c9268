//! LLaMA 1, 2, 3 and what is built the same way, such as SmolLM.
//!
//! Source: transformers `models/llama/modeling_llama.py`. A sliding window is no field of that
//! class, but vLLM's `models/llama.py` honours one, and so do we.

use super::{Decoder, Family, decoder, reaches, tie, window};
use crate::builder::attention_layer;
use crate::{Arithmetic, Config, Ffn, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    model_types: &["llama"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    tie(config, &text, b, false)?;
    b.arithmetic(Arithmetic::llama(&text, d.head_dim));
    let reach = reaches(&text, d.layers, window(&text, None)?, |_| true)?;
    stack(&text, b, &d, &reach)
}

/// The whole of a LLaMA-like decoder: other families differ in nothing but their defaults.
pub(super) fn stack(
    text: &Config<'_>,
    b: &mut SpecBuilder,
    d: &Decoder,
    reach: &[Reach],
) -> Result<(), ModelError> {
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let qkvo_bias = text.flag("attention_bias", false)?;
    let mlp_bias = text.flag("mlp_bias", false)?;
    let ffn = Ffn::Dense {
        intermediate: inner,
        gated: true,
    };

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in reach.iter().enumerate() {
        let attention = d.attention(*reach);
        b.layer(
            &format!("model.layers.{i}."),
            attention_layer(attention, ffn),
            |b| {
                b.qkvo(d.hidden, &attention, qkvo_bias, qkvo_bias);
                b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, mlp_bias);
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
