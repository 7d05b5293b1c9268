//! Qwen 1.5 MoE and Qwen 2 MoE: routed experts and one gated shared expert.
//!
//! Source: transformers `models/qwen2_moe/modeling_qwen2_moe.py`.

use super::{Family, decoder, expert_layers, tie, windows_from};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Moe, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen2_moe",
    architectures: &["Qwen2MoeForCausalLM"],
    model_types: &["qwen2_moe"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    let dense = config.dim(&["intermediate_size"], "it sizes the dense feed-forward")?;
    let bias = config.flag("qkv_bias", true)?;
    tie(config, config, b, false)?;
    let moe = Moe {
        experts: config.dim(&["num_experts"], "it is the number of routed experts")?,
        top_k: config.dim(&["num_experts_per_tok"], "it is the experts per token")?,
        intermediate: config.dim(&["moe_intermediate_size"], "it sizes an expert")?,
        shared: config.dim(&["shared_expert_intermediate_size"], "it sizes the shared expert")?,
    };
    let is_moe = expert_layers(config, d.layers, moe.experts)?;
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in windows_from(config, d.layers)?.into_iter().enumerate() {
        let attention = d.attention(reach);
        let ffn = if is_moe[i] { Ffn::Moe(moe) } else { Ffn::Dense { intermediate: dense, gated: true } };
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, ffn), |b| {
            b.qkvo(d.hidden, &attention, bias, false);
            if is_moe[i] {
                b.whole(Role::Router, "mlp.gate", [moe.experts, d.hidden], false);
                b.experts(moe.experts, |b| {
                    b.gated_mlp(Role::Experts, "mlp.experts.{e}.", d.hidden, moe.intermediate, false);
                    Ok(())
                })?;
                b.gated_mlp(Role::SharedExperts, "mlp.shared_expert.", d.hidden, moe.shared, false);
                b.whole(Role::Router, "mlp.shared_expert_gate", [1, d.hidden], false);
            } else {
                b.gated_mlp(Role::Mlp, "mlp.", d.hidden, dense, false);
            }
            b.norm("input_layernorm", d.hidden);
            b.norm("post_attention_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
