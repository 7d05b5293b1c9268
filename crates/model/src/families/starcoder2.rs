//! StarCoder 2: biases everywhere, a feed-forward without a gate, a window in the smaller models.
//!
//! Source: transformers `models/starcoder2/{configuration,modeling}_starcoder2.py`.

use super::{Defaults, Family, decoder_or, tie, window};
use crate::builder::{attention_layer, columns};
use crate::{Config, Ffn, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "starcoder2",
    architectures: &["Starcoder2ForCausalLM"],
    model_types: &["starcoder2"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(2),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let (h, inner) = (d.hidden, text.dim(&["intermediate_size"], "it sizes the feed-forward")?);
    let bias = text.flag("use_bias", true)?;
    tie(config, &text, b, true)?;
    let attention = d.attention(window(&text, None)?.map_or(Reach::Full, Reach::Window));
    let ffn = Ffn::Dense {
        intermediate: inner,
        gated: false,
    };
    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, ffn), |b| {
            b.qkvo(h, &attention, bias, bias);
            b.out_split(Role::Mlp, "mlp.c_fc", [inner, h], bias, columns(inner));
            b.in_split(Role::Mlp, "mlp.c_proj", [h, inner], bias, columns(inner));
            b.norm_bias("input_layernorm", h);
            b.norm_bias("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm_bias("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}
