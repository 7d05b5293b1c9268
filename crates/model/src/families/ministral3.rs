//! Ministral 3 and Devstral 2: LLaMA's layers, without a window unless the config names one.
//!
//! Source: transformers `models/ministral3/{configuration,modeling}_ministral3.py`. Queries are scaled by how far they
//! stand beyond the context first trained (`llama_4_scaling_beta`), which takes no weight.

use super::{Defaults, Family, decoder_or, llama, reaches, tie, window};
use crate::{Arithmetic, Config, ModelError, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "ministral3",
    architectures: &["Ministral3ForCausalLM"],
    model_types: &["ministral3"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        vocab: Some(131_072),
        q_heads: Some(32),
        kv_heads: Some(8),
        head_dim: Some(128),
        max_context: Some(262_144),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    tie(config, &text, b, false)?;
    b.arithmetic(arithmetic(&text, d.head_dim));
    let reach = reaches(&text, d.layers, window(&text, None)?, |_| true)?;
    llama::stack(&text, b, &d, &reach)
}

fn arithmetic(text: &Config<'_>, head_dim: u64) -> Result<Arithmetic, ModelError> {
    let key = "rope_parameters";
    let Some(rope) = text.object(key)? else {
        return Err(text.reject(key, "a config without them scales queries by position, which is not computed"));
    };
    if rope.float("llama_4_scaling_beta").unwrap_or(0.0) != 0.0 {
        return Err(rope.reject("llama_4_scaling_beta", "queries scaled by position are not computed"));
    }
    Arithmetic::llama(text, head_dim)
}
