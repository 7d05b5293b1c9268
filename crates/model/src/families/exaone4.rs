//! EXAONE 4: norms behind each half of a layer and on each head; in the larger model, three layers with a window to one
//! without.
//!
//! Source: transformers `models/exaone4/{configuration,modeling}_exaone4.py`.

use super::{Defaults, Family, decoder_or, gated, reaches, stack, tie, window};
use crate::builder::attention_layer;
use crate::{Config, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "exaone4",
    architectures: &["Exaone4ForCausalLM"],
    model_types: &["exaone4"],
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
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    tie(config, &text, b, false)?;
    let pattern = pattern(&text)?;
    let width = window(&text, Some(4096))?;
    let reach = reaches(&text, d.layers, width, |i| !(i + 1).is_multiple_of(pattern))?;
    let layers = reach.into_iter().map(|r| attention_layer(d.attention(r), gated(inner)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &d.attention(Reach::Full), false, false);
        b.norm("self_attn.q_norm", d.head_dim);
        b.norm("self_attn.k_norm", d.head_dim);
        b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
        b.norm("post_attention_layernorm", d.hidden);
        b.norm("post_feedforward_layernorm", d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// Of how many layers the last has no window: a number, or a row of letters of which the last stands for that layer.
pub(super) fn pattern(text: &Config<'_>) -> Result<u64, ModelError> {
    let key = "sliding_window_pattern";
    match text.str(key) {
        Some(letters) if letters.chars().rev().eq(std::iter::once('G').chain(letters.chars().skip(1).map(|_| 'L'))) => {
            Ok(u64::try_from(letters.len()).unwrap_or(u64::MAX))
        }
        Some(_) => Err(text.reject(key, "expected L for each layer with a window, then one G")),
        None => text.dim_or(&[key], 4),
    }
}
