//! GLM-4: gate and up projections in one matrix; the 0414 models also normalise each half of a layer before it is added.
//!
//! Source: transformers `models/glm/{configuration,modeling}_glm.py` and `models/glm4`.

use super::{Defaults, Family, decoder_or, gated, norms, stack, tie};
use crate::builder::{attention_layer, columns};
use crate::{Config, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "glm4",
    architectures: &["GlmForCausalLM", "Glm4ForCausalLM"],
    model_types: &["glm", "glm4", "glm4v_text"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(2),
        head_dim: (text.str("model_type") != Some("glm4v_text")).then_some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = text.flag("attention_bias", true)?;
    let sandwich = config.architecture() == Some("Glm4ForCausalLM")
        || text.str("model_type").is_some_and(|t| ["glm4", "glm4v_text"].contains(&t));
    tie(config, &text, b, false)?;
    b.rotary_share(0.5);
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|_| attention_layer(attention, gated(inner)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &attention, bias, false);
        let cols = columns(inner);
        b.out_split(Role::Mlp, "mlp.gate_up_proj", [2 * inner, d.hidden], false, cols);
        b.in_split(Role::Mlp, "mlp.down_proj", [d.hidden, inner], false, cols);
        norms(b, d.hidden);
        if sandwich {
            b.norm("post_self_attn_layernorm", d.hidden);
            b.norm("post_mlp_layernorm", d.hidden);
        }
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
