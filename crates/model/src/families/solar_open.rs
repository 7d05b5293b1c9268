//! Solar Open: GLM-4.5's experts in every layer.
//!
//! Source: transformers `models/solar_open/{configuration,modeling}_solar_open.py`.

use super::glm4_moe::{experts, routed};
use super::{Defaults, Family, decoder_or, norms, stack, tie};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Reach, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "solar_open",
    architectures: &["SolarOpenForCausalLM"],
    model_types: &["solar_open"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(8),
        head_dim: Some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    if text.opt("first_k_dense_replace")?.is_some_and(|n| n > 0) {
        return Err(text.reject("first_k_dense_replace", "expected 0: the class has no dense layers"));
    }
    let moe = routed(&text)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|_| attention_layer(attention, Ffn::Moe(moe)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &attention, bias, false);
        norms(b, d.hidden);
        experts(b, d.hidden, &moe)
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
