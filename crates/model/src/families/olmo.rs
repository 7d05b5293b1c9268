//! OLMo: LLaMA whose norms have no weights.
//!
//! Source: transformers `models/olmo/{configuration,modeling}_olmo.py`.

use super::{Family, decoder, gated, tie};
use crate::builder::attention_layer;
use crate::{Config, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "olmo",
    architectures: &["OlmoForCausalLM"],
    model_types: &["olmo"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let inner = text.dim_or(&["intermediate_size"], 11_008)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, gated(inner)), |b| {
            b.qkvo(d.hidden, &attention, bias, bias);
            b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
            Ok(())
        })?;
    }
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
