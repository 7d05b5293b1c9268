//! Gemma 2: window and full attention in turn, a norm before and after each half of a layer, soft
//! caps on scores and logits.
//!
//! Source: transformers `models/gemma2/{configuration,modeling}_gemma2.py`.

use super::{Decoder, Defaults, Family, decoder_or, gemma, reaches, tie, window};
use crate::arithmetic::RopeDefaults;
use crate::builder::attention_layer;
use crate::{Arithmetic, Positions, Residual, Config, Ffn, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gemma2",
    architectures: &["Gemma2ForCausalLM"],
    model_types: &["gemma2"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(4),
        head_dim: Some(256),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim_or(&["intermediate_size"], 9216)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, true)?;
    // 30.0 where the config is silent; `null` switches it off.
    b.spec().final_softcap = !text.is_null("final_logit_softcapping");
    b.arithmetic(arithmetic(&text, &d));
    let ffn = Ffn::Dense {
        intermediate: inner,
        gated: true,
    };
    let reach = reaches(&text, d.layers, window(&text, Some(4096))?, |i| {
        i.is_multiple_of(2)
    })?;

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in reach.iter().enumerate() {
        let attention = d.attention(*reach);
        b.layer(
            &format!("model.layers.{i}."),
            attention_layer(attention, ffn),
            |b| {
                b.qkvo(d.hidden, &attention, bias, bias);
                b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
                norms(b, d.hidden);
                Ok(())
            },
        )?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// The four norms of a layer of Gemma 2 and 3.
pub(super) fn norms(b: &mut SpecBuilder, hidden: u64) {
    for name in [
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ] {
        b.norm(name, hidden);
    }
}

fn arithmetic(text: &Config<'_>, d: &Decoder) -> Result<Arithmetic, ModelError> {
    Ok(Arithmetic {
        attention_softcap: cap(text, "attn_logit_softcapping", Some(50.0))?,
        final_softcap: cap(text, "final_logit_softcapping", Some(30.0))?,
        ..sandwich(text, d, RopeDefaults::default())?
    })
}

/// What Gemma 2 and 3 share beyond Gemma 1: norms on both sides of each half, and scores scaled by a field of
/// their own.
pub(super) fn sandwich(
    text: &Config<'_>,
    d: &Decoder,
    rope: RopeDefaults,
) -> Result<Arithmetic, ModelError> {
    let scalar = text.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(Arithmetic {
        residual: Residual::Sandwich,
        positions: Positions::rotary(text, d.head_dim, rope)?,
        attention_scale: 1.0 / scalar.sqrt(),
        ..gemma::arithmetic(text, d)?
    })
}

/// A soft cap; `null` switches it off.
pub(super) fn cap(
    text: &Config<'_>,
    key: &str,
    default: Option<f64>,
) -> Result<Option<f64>, ModelError> {
    if text.is_null(key) {
        return Ok(None);
    }
    Ok(text.positive(key)?.or(default))
}
