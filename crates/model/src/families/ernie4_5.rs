//! ERNIE 4.5, dense.
//!
//! Source: transformers `models/ernie4_5/{configuration,modeling}_ernie4_5.py`.

use super::{Defaults, Family, decoder_or, gated, norms, stack, tie};
use crate::builder::attention_layer;
use crate::{Config, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "ernie4_5",
    architectures: &["Ernie4_5ForCausalLM"],
    model_types: &["ernie4_5"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(2),
        head_dim: Some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = text.flag("use_bias", false)?;
    tie(config, &text, b, true)?;
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|_| attention_layer(attention, gated(inner)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &attention, bias, bias);
        b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, bias);
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
