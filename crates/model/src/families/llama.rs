//! LLaMA 1, 2, 3 and what is built the same way: Mistral (sliding window) and SmolLM.
//!
//! Source: transformers `models/llama/modeling_llama.py`, `models/mistral/modeling_mistral.py`.

use super::{Family, decoder, tie};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"],
    model_types: &["llama", "mistral"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let qkvo_bias = text.flag("attention_bias", false)?;
    let mlp_bias = text.flag("mlp_bias", false)?;
    tie(config, &text, b, false)?;
    let reach = match text.opt("sliding_window")? {
        Some(w) if w > 0 => Reach::Window(w),
        _ => Reach::Full,
    };
    let attention = d.attention(reach);
    let layer = attention_layer(attention, Ffn::Dense { intermediate: inner, gated: true });

    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.qkvo(d.hidden, &attention, qkvo_bias, qkvo_bias);
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
