//! GLM-4.5 and 4.6: dense layers first, then experts chosen by biased scores beside a shared one; multi-token-prediction
//! layers after the last.
//!
//! Source: transformers `models/glm4_moe/{configuration,modeling}_glm4_moe.py`; the multi-token-prediction layers,
//! which transformers drops on loading, from vLLM `models/glm4_moe_mtp.py`.

use plimsoll_units::DType;

use super::{Decoder, Defaults, Family, decoder_or, gated, moe, norms, stack, tie};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Moe, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "glm4_moe",
    architectures: &["Glm4MoeForCausalLM"],
    model_types: &["glm4_moe", "glm4v_moe_text"],
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
    let inner = text.dim(&["intermediate_size"], "it sizes the dense feed-forward")?;
    let moe = routed(&text)?;
    let dense = text.opt("first_k_dense_replace")?.unwrap_or(1);
    let bias = text.flag("attention_bias", text.str("model_type") == Some("glm4v_moe_text"))?;
    let qk_norm = text.flag("use_qk_norm", false)?;
    tie(config, &text, b, false)?;
    b.rotary_share(0.5);
    let attention = d.attention(Reach::Full);
    let mixer = |b: &mut SpecBuilder| {
        b.qkvo(d.hidden, &attention, bias, false);
        if qk_norm {
            b.norm("self_attn.q_norm", d.head_dim);
            b.norm("self_attn.k_norm", d.head_dim);
        }
        norms(b, d.hidden);
    };
    let layers = (0..d.layers).map(|i| {
        let ffn = if i < dense { gated(inner) } else { Ffn::Moe(moe) };
        attention_layer(attention, ffn)
    });
    stack(b, "model.", &d, layers, |b, i, _| {
        mixer(b);
        if i < dense {
            b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
            return Ok(());
        }
        experts(b, d.hidden, &moe)
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    predictors(&text, b, &d, 1, |b| {
        mixer(b);
        experts(b, d.hidden, &moe)
    })
}

/// The routed experts and, as one, the shared ones.
pub(super) fn routed(text: &Config<'_>) -> Result<Moe, ModelError> {
    let inner = "moe_intermediate_size";
    let one = text.dim(&[inner], "it sizes a routed expert")?;
    let shared = text.opt("n_shared_experts")?.unwrap_or(1).saturating_mul(one);
    moe(text, &["n_routed_experts", "num_local_experts"], &[inner], shared)
}

/// The router, whose scores and bias stay in 32 bits, and the experts.
pub(super) fn experts(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    let (role, one) = (Role::Router, Shard::Replicated);
    b.tensor_typed(role, "mlp.gate.weight", &[moe.experts, hidden], one, DType::F32);
    let bias = "mlp.gate.e_score_correction_bias";
    b.tensor_typed(role, bias, &[moe.experts], one, DType::F32);
    b.experts(moe.experts, |b| {
        b.gated_mlp(Role::Experts, "mlp.experts.{e}.", hidden, moe.intermediate, false);
        Ok(())
    })?;
    if moe.shared > 0 {
        b.gated_mlp(Role::SharedExperts, "mlp.shared_experts.", hidden, moe.shared, false);
    }
    Ok(())
}

/// Multi-token-prediction layers: `layer` with copies of the embedding and the head, numbered on from the last;
/// `default` of them where the config is silent.
pub(super) fn predictors(
    text: &Config<'_>,
    b: &mut SpecBuilder,
    d: &Decoder,
    default: u64,
    layer: impl Fn(&mut SpecBuilder) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let key = "num_nextn_predict_layers";
    let count = text.opt(key)?.unwrap_or(default);
    if count > d.layers {
        return Err(text.reject(key, "expected no more than there are layers"));
    }
    b.spec().mtp_layers = count;
    for i in d.layers..d.layers + count {
        b.mtp(&format!("model.layers.{i}."), |b| {
            let table = Shard::Vocab { rows: d.vocab };
            for name in ["embed_tokens.weight", "shared_head.head.weight"] {
                b.tensor(Role::Mtp, name, &[d.vocab, d.hidden], table);
            }
            let joined = [d.hidden, 2 * d.hidden];
            b.tensor(Role::Mtp, "eh_proj.weight", &joined, Shard::Replicated);
            for name in ["enorm", "hnorm", "shared_head.norm"] {
                b.norm(name, d.hidden);
            }
            layer(b)
        })?;
    }
    Ok(())
}
