//! Seed-OSS: LLaMA with biases on queries, keys and values.
//!
//! Source: transformers `models/seed_oss/{configuration,modeling}_seed_oss.py`.

use super::{Defaults, Family, decoder_or, gated, norms, stack, tie};
use crate::builder::attention_layer;
use crate::{Config, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "seed_oss",
    architectures: &["SeedOssForCausalLM"],
    model_types: &["seed_oss"],
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
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = text.flag("attention_bias", true)?;
    let out_bias = text.flag("attention_out_bias", false)?;
    let mlp_bias = text.flag("mlp_bias", false)?;
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|_| attention_layer(attention, gated(inner)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &attention, bias, out_bias);
        b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, mlp_bias);
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
