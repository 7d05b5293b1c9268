//! Qwen 1.5, 2 and 2.5: LLaMA with biases on query, key and value.
//!
//! Source: transformers `models/qwen2/modeling_qwen2.py`. A window is used only with
//! `use_sliding_window`, and only from layer `max_window_layers` on.

use super::{Family, decoder, tie, windows_from};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM"],
    model_types: &["qwen2"],
    lower: |config, b| lower_at(config, b, "model.", "lm_head"),
};

/// Also the text model of vision-language wrappers, under another prefix.
pub(super) fn lower_at(
    config: &Config<'_>,
    b: &mut SpecBuilder,
    prefix: &str,
    head: &str,
) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    tie(config, &text, b, false)?;
    let reach = windows_from(&text, d.layers)?;
    b.embedding(&format!("{prefix}embed_tokens.weight"), d.vocab, d.hidden);
    for (i, reach) in reach.into_iter().enumerate() {
        let attention = d.attention(reach);
        let layer = attention_layer(attention, Ffn::Dense { intermediate: inner, gated: true });
        b.layer(&format!("{prefix}layers.{i}."), layer, |b| {
            b.qkvo(d.hidden, &attention, true, false);
            b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
            b.norm("input_layernorm", d.hidden);
            b.norm("post_attention_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm(&format!("{prefix}norm"), d.hidden);
    b.head(head, d.vocab, d.hidden);
    Ok(())
}
