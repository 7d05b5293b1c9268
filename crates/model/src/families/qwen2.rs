//! Qwen 1.5, 2 and 2.5: LLaMA with biases on query, key and value.
//!
//! Source: transformers `models/qwen2/{configuration,modeling}_qwen2.py`. The window counts only where
//! `use_sliding_window` says so, and then from layer `max_window_layers` on.

use super::{Decoder, Defaults, Family, decoder_or, reaches, tie, window};
use crate::builder::attention_layer;
use crate::{Arithmetic, Config, Ffn, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM"],
    model_types: &["qwen2"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder_or(
        &text,
        b,
        Defaults {
            kv_heads: Some(32),
            ..Defaults::default()
        },
    )?;
    b.arithmetic(Arithmetic::llama(&text, d.head_dim));
    stack(config, &text, b, &d, 28)
}

/// The decoder of Qwen2, also inside the vision-language models built on it.
pub(super) fn stack(
    config: &Config<'_>,
    text: &Config<'_>,
    b: &mut SpecBuilder,
    d: &Decoder,
    max_window_layers: u64,
) -> Result<(), ModelError> {
    tie(config, text, b, false)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let ffn = Ffn::Dense {
        intermediate: inner,
        gated: true,
    };

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in late_windows(text, d.layers, max_window_layers)?
        .iter()
        .enumerate()
    {
        let attention = d.attention(*reach);
        b.layer(
            &format!("model.layers.{i}."),
            attention_layer(attention, ffn),
            |b| {
                b.qkvo(d.hidden, &attention, true, false);
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

/// Qwen's switch: no window unless `use_sliding_window`, whatever `sliding_window` says.
pub(super) fn switched_window(text: &Config<'_>) -> Result<Option<u64>, ModelError> {
    if text.flag("use_sliding_window", false)? {
        window(text, Some(4096))
    } else {
        Ok(None)
    }
}

/// Full attention in the first `max_window_layers` layers, the window above.
pub(super) fn late_windows(
    text: &Config<'_>,
    layers: u64,
    max_window_layers: u64,
) -> Result<Vec<Reach>, ModelError> {
    let first = text.opt("max_window_layers")?.unwrap_or(max_window_layers);
    reaches(text, layers, switched_window(text)?, |i| i >= first)
}
