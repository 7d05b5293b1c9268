//! Nemotron 4 and Minitron: a feed-forward without a gate, norms with biases, half of each head rotated.
//!
//! Source: transformers `models/nemotron/{configuration,modeling}_nemotron.py`.

use super::{Family, decoder, tie};
use crate::builder::{attention_layer, columns};
use crate::{Config, Ffn, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "nemotron",
    architectures: &["NemotronForCausalLM"],
    model_types: &["nemotron"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let (h, inner) = (d.hidden, text.dim_or(&["intermediate_size"], 24_576)?);
    let (bias, mlp_bias) = (text.flag("attention_bias", false)?, text.flag("mlp_bias", false)?);
    tie(config, &text, b, false)?;
    b.rotary_share(0.5);
    let attention = d.attention(Reach::Full);
    let ffn = Ffn::Dense { intermediate: inner, gated: false };
    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, ffn), |b| {
            b.qkvo(h, &attention, bias, bias);
            b.out_split(Role::Mlp, "mlp.up_proj", [inner, h], mlp_bias, columns(inner));
            b.in_split(Role::Mlp, "mlp.down_proj", [h, inner], mlp_bias, columns(inner));
            b.norm_bias("input_layernorm", h);
            b.norm_bias("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm_bias("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}
