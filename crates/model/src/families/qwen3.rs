//! Qwen 3, dense and with experts: per-head norms on queries and keys, no biases.
//!
//! Source: transformers `models/qwen3/modeling_qwen3.py`, `models/qwen3_moe/modeling_qwen3_moe.py`.

use super::{Family, decoder, expert_layers, tie, windows_from};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Moe, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM", "Qwen3MoeForCausalLM"],
    model_types: &["qwen3", "qwen3_moe"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let experts = text.opt_any(&["num_experts", "num_local_experts"])?.unwrap_or(0);
    let is_moe = expert_layers(&text, d.layers, experts)?;
    let dense = match is_moe.iter().all(|m| *m) {
        true => text.dim_or(&["intermediate_size"], 1)?,
        false => text.dim(&["intermediate_size"], "it sizes the feed-forward")?,
    };
    let moe = Moe {
        experts,
        top_k: if experts > 0 { text.dim(&["num_experts_per_tok"], "it is the experts per token")? } else { 0 },
        intermediate: if experts > 0 { text.dim(&["moe_intermediate_size"], "it sizes an expert")? } else { 0 },
        shared: 0,
    };
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, reach) in windows_from(&text, d.layers)?.into_iter().enumerate() {
        let attention = d.attention(reach);
        let ffn = if is_moe[i] { Ffn::Moe(moe) } else { Ffn::Dense { intermediate: dense, gated: true } };
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, ffn), |b| {
            b.qkvo(d.hidden, &attention, bias, bias);
            b.norm("self_attn.q_norm", d.head_dim);
            b.norm("self_attn.k_norm", d.head_dim);
            if is_moe[i] {
                b.whole(Role::Router, "mlp.gate", [experts, d.hidden], false);
                b.experts(experts, |b| {
                    b.gated_mlp(Role::Experts, "mlp.experts.{e}.", d.hidden, moe.intermediate, false);
                    Ok(())
                })?;
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
