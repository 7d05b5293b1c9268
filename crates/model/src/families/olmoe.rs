//! OLMoE: experts in every layer, a norm over all query heads at once and one over all keys.
//!
//! Source: transformers `models/olmoe/{configuration,modeling}_olmoe.py`.

use super::{Family, decoder, moe, norms, stack, tie};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "olmoe",
    architectures: &["OlmoeForCausalLM"],
    model_types: &["olmoe"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let moe = moe(&text, &["num_experts"], &["intermediate_size"], 0)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|_| attention_layer(attention, Ffn::Moe(moe)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &attention, bias, bias);
        b.norm("self_attn.q_norm", d.q_heads * d.head_dim);
        b.norm("self_attn.k_norm", d.kv_heads * d.head_dim);
        b.whole(Role::Router, "mlp.gate", [moe.experts, d.hidden], false);
        b.experts(moe.experts, |b| {
            b.gated_mlp(Role::Experts, "mlp.experts.{e}.", d.hidden, moe.intermediate, false);
            Ok(())
        })?;
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
