//! Bamba: Mamba 2 layers, a few with attention in their place, a dense feed-forward behind each.
//!
//! Source: transformers `models/bamba/{configuration,modeling}_bamba.py`.

use super::granite_hybrid::Mamba;
use super::{Defaults, Family, decoder_or, gated, layer_types, tie};
use crate::builder::attention_layer;
use crate::families::LayerKind;
use crate::{Config, LayerSpec, Mixer, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "bamba",
    architectures: &["BambaForCausalLM"],
    model_types: &["bamba"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(8),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let (h, inner) = (d.hidden, text.dim(&["intermediate_size"], "it sizes the feed-forward")?);
    let bias = text.flag("attention_bias", false)?;
    let mlp_bias = text.flag("mlp_bias", false)?;
    let mamba = Mamba::read(&text, h)?;
    tie(config, &text, b, false)?;
    b.rotary_share(0.5);
    let listed = text.numbers("attn_layer_indices")?.unwrap_or_default();
    let types = layer_types(&text, d.layers)?;
    let attention = d.attention(Reach::Full);
    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for i in 0..d.layers {
        let kind = types.as_ref().and_then(|t| t.get(usize::try_from(i).ok()?));
        let attends = kind.map_or(listed.contains(&i), |k| *k != LayerKind::Linear);
        let layer = if attends {
            attention_layer(attention, gated(inner))
        } else {
            LayerSpec { mixer: Mixer::State(mamba.state()), parallel: None, cross: None, ffn: gated(inner) }
        };
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            if attends {
                b.qkvo(h, &attention, bias, bias);
            } else {
                mamba.tensors(b, "mamba.", h);
                mamba.norm(b, "mamba.");
            }
            b.gated_mlp(Role::Mlp, "feed_forward.", h, inner, mlp_bias);
            b.norm("input_layernorm", h);
            b.norm("pre_ff_layernorm", h);
            Ok(())
        })?;
    }
    b.norm("model.final_layernorm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}
