//! OLMo 2 and 3: norms behind each half of a layer, over all query heads at once and over all keys; the third has three
//! layers with a window to one without.
//!
//! Source: transformers `models/olmo2/{configuration,modeling}_olmo2.py` and `models/olmo3`.

use super::{Family, decoder, gated, reaches, stack, tie, window};
use crate::builder::attention_layer;
use crate::{Config, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "olmo2",
    architectures: &["Olmo2ForCausalLM", "Olmo3ForCausalLM"],
    model_types: &["olmo2", "olmo3"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = text.flag("attention_bias", false)?;
    let third = config.architecture() == Some("Olmo3ForCausalLM") || text.str("model_type") == Some("olmo3");
    tie(config, &text, b, false)?;
    let width = if third { window(&text, Some(4096))? } else { None };
    let reach = if third {
        reaches(&text, d.layers, width, |i| !(i + 1).is_multiple_of(4))?
    } else {
        (0..d.layers).map(|_| Reach::Full).collect()
    };
    let layers = reach.into_iter().map(|r| attention_layer(d.attention(r), gated(inner)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &d.attention(Reach::Full), bias, bias);
        b.norm("self_attn.q_norm", d.q_heads * d.head_dim);
        b.norm("self_attn.k_norm", d.kv_heads * d.head_dim);
        b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
        b.norm("post_attention_layernorm", d.hidden);
        b.norm("post_feedforward_layernorm", d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
