//! Gemma 1: a head size of 256 whatever the width, a tied head.
//!
//! Source: transformers `models/gemma/{configuration,modeling}_gemma.py`.

use super::{Decoder, Defaults, Family, decoder_or, llama, reaches, tie};
use crate::arithmetic::inverse_root;
use crate::{Activation, Arithmetic, Norm, Config, ModelError, SpecBuilder};

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
    b.arithmetic(arithmetic(&text, &d));
    let reach = reaches(&text, d.layers, None, |_| false)?;
    llama::stack(&text, b, &d, &reach)
}

/// LLaMA's with gains stored less one and embeddings times the root of the width. A config's `gelu` is meant as
/// its tanh formula.
pub(super) fn arithmetic(text: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    let key = if text.has("hidden_activation") {
        "hidden_activation"
    } else {
        "hidden_act"
    };
    let activation = match Activation::read(text, key, Activation::GeluTanh)? {
        Activation::Gelu if key == "hidden_act" => Activation::GeluTanh,
        other => other,
    };
    Ok(Arithmetic {
        norm: Norm::Rms {
            eps: text.positive("rms_norm_eps")?.unwrap_or(1e-6),
            plus_one: true,
        },
        activation,
        embedding_scale: 1.0 / inverse_root(d.hidden),
        ..Arithmetic::llama(text, d.head_dim)?
    })
}
