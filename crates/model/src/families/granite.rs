//! Granite 3 dense: LLaMA with scalar multipliers, which store nothing.
//!
//! Source: transformers `models/granite/modeling_granite.py`.

use super::{Decoder, Family, decoder, llama, reaches, tie};
use crate::{Arithmetic, Config, ModelError, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "granite",
    architectures: &["GraniteForCausalLM"],
    model_types: &["granite"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    tie(config, &text, b, false)?;
    b.arithmetic(arithmetic(&text, &d));
    let reach = reaches(&text, d.layers, None, |_| false)?;
    llama::stack(&text, b, &d, &reach)
}

/// LLaMA's, multiplied.
pub(super) fn arithmetic(text: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    let multiplier = |key: &str| Ok::<f64, ModelError>(text.positive(key)?.unwrap_or(1.0));
    Ok(Arithmetic {
        embedding_scale: multiplier("embedding_multiplier")?,
        attention_scale: multiplier("attention_multiplier")?,
        residual_scale: multiplier("residual_multiplier")?,
        logit_scale: 1.0 / multiplier("logits_scaling")?,
        ..Arithmetic::llama(text, d.head_dim)?
    })
}
