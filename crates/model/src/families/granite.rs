//! Granite 3 dense: LLaMA with scalar multipliers, which store nothing.
//!
//! Source: transformers `models/granite/modeling_granite.py`.

use super::{Family, decoder, llama, reaches, tie};
use crate::{Config, ModelError, SpecBuilder};

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
    let reach = reaches(&text, d.layers, None, |_| false)?;
    llama::stack(&text, b, &d, &reach)
}
