//! SmolLM3: LLaMA with layers that do not rotate.
//!
//! Source: transformers `models/smollm3/{configuration,modeling}_smollm3.py`.

use super::{Defaults, Family, decoder_or, gated, norms, reaches, stack, tie, window};
use crate::builder::attention_layer;
use crate::{Config, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "smollm3",
    architectures: &["SmolLM3ForCausalLM"],
    model_types: &["smollm3"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(4),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = text.flag("attention_bias", false)?;
    let mlp_bias = text.flag("mlp_bias", false)?;
    tie(config, &text, b, true)?;
    let width = if text.flag("use_sliding_window", false)? { window(&text, None)? } else { None };
    // Where no types are listed, layers have the window unless they are those that do not rotate.
    let every = text.dim_or(&["no_rope_layer_interval"], 4)?;
    let rotates = text.numbers("no_rope_layers")?;
    let windowed = |i: u64| match &rotates {
        Some(list) => usize::try_from(i).ok().and_then(|i| list.get(i)) == Some(&0),
        None => (i + 1).is_multiple_of(every),
    };
    let reach = reaches(&text, d.layers, width, windowed)?;
    let layers = reach.into_iter().map(|r| attention_layer(d.attention(r), gated(inner)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &d.attention(Reach::Full), bias, bias);
        b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, mlp_bias);
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
