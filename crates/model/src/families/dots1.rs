//! dots.llm1: GLM-4.5's experts, chosen by biased scores beside shared ones, behind attention with norms on heads; the
//! last layers may have a window.
//!
//! Source: transformers `models/dots1/{configuration,modeling}_dots1.py`.

use super::glm4_moe::experts;
use super::{Defaults, Family, decoder_or, gated, moe, norms, reaches, stack, tie, window};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "dots1",
    architectures: &["Dots1ForCausalLM"],
    model_types: &["dots1"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(32),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let one = text.dim_or(&["moe_intermediate_size"], 1408)?;
    let shared = text.opt("n_shared_experts")?.unwrap_or(0).saturating_mul(one);
    let moe = moe(&text, &["n_routed_experts", "num_local_experts"], &["moe_intermediate_size"], shared)?;
    let dense = text.opt("first_k_dense_replace")?.unwrap_or(0);
    let inner = text.dim_or(&["intermediate_size"], 10_944)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let from = text.opt("max_window_layers")?.unwrap_or(62);
    let reach = reaches(&text, d.layers, window(&text, Some(4096))?, |i| i >= from)?;
    let layers = (0..).zip(reach).map(|(i, reach)| {
        let ffn = if i >= dense { Ffn::Moe(moe) } else { gated(inner) };
        attention_layer(d.attention(reach), ffn)
    });
    stack(b, "model.", &d, layers, |b, _, layer| {
        b.qkvo(d.hidden, &d.attention(Reach::Full), bias, bias);
        b.norm("self_attn.q_norm", d.head_dim);
        b.norm("self_attn.k_norm", d.head_dim);
        norms(b, d.hidden);
        match layer.ffn {
            Ffn::Moe(moe) => experts(b, d.hidden, &moe),
            _ => {
                b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
                Ok(())
            }
        }
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
