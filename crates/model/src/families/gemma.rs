//! Gemma 1: a head size of 256 whatever the width, a tied head.
//!
//! Source: transformers `models/gemma/{configuration,modeling}_gemma.py`.

use super::{Defaults, Family, decoder_or, llama, reaches, tie};
use crate::{Config, ModelError, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gemma",
    architectures: &["GemmaForCausalLM"],
    model_types: &["gemma"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(16),
        head_dim: Some(256),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    tie(config, &text, b, true)?;
    let reach = reaches(&text, d.layers, None, |_| false)?;
    llama::stack(&text, b, &d, &reach)
}
