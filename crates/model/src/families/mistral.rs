//! Mistral 7B, Nemo and Small: LLaMA with a sliding window in every layer, or in none.
//!
//! Source: transformers `models/mistral/{configuration,modeling}_mistral.py`. A config without
//! `sliding_window` has one of 4,096; later models write `null`. Where a config has `layer_types`,
//! vLLM's `models/llama.py` follows them.

use super::{Defaults, Family, decoder_or, llama, reaches, tie, window};
use crate::{Arithmetic, Config, ModelError, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mistral",
    architectures: &["MistralForCausalLM"],
    model_types: &["mistral"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder_or(
        &text,
        b,
        Defaults {
            kv_heads: Some(8),
            ..Defaults::default()
        },
    )?;
    tie(config, &text, b, false)?;
    b.arithmetic(Arithmetic::llama(&text, d.head_dim));
    let reach = reaches(&text, d.layers, window(&text, Some(4096))?, |_| true)?;
    llama::stack(&text, b, &d, &reach)
}
