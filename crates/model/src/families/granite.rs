//! Granite 3: LLaMA with scaled residuals and logits.
//!
//! Source: transformers `models/granite/modeling_granite.py`.

use super::{Family, decoder, tie};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "granite",
    architectures: &["GraniteForCausalLM"],
    model_types: &["granite"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let inner = config.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    tie(config, config, b, false)?;
    let attention = d.attention(Reach::Full);
    let layer = attention_layer(attention, Ffn::Dense { intermediate: inner, gated: true });
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.qkvo(d.hidden, &attention, bias, bias);
            b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, mlp_bias);
            b.norm("input_layernorm", d.hidden);
            b.norm("post_attention_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
