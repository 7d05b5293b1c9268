//! K-EXAONE: EXAONE 4's windows and norms on heads, with experts chosen by biased scores beside shared ones.
//!
//! Source: transformers `models/exaone_moe/{configuration,modeling}_exaone_moe.py`.

use plimsoll_units::DType;

use super::{Defaults, Family, decoder_or, exaone4, gated, moe, norms, reaches, stack, tie, window};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Moe, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "exaone_moe",
    architectures: &["ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"],
    model_types: &["exaone_moe"],
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
    let inner = text.dim_or(&["intermediate_size"], 16_384)?;
    let one = text.dim_or(&["moe_intermediate_size"], 1024)?;
    let shared = text.opt("num_shared_experts")?.unwrap_or(1).saturating_mul(one);
    let moe = moe(&text, &["num_experts", "num_local_experts"], &["moe_intermediate_size"], shared)?;
    let dense = text.opt("first_k_dense_replace")?.unwrap_or(1);
    let kinds = text.strings("mlp_layer_types")?;
    if kinds.as_ref().is_some_and(|k| u64::try_from(k.len()) != Ok(d.layers)) {
        return Err(text.reject("mlp_layer_types", format!("expected one entry for each of the {} layers", d.layers)));
    }
    let routes = |i: u64| match &kinds {
        Some(kinds) => usize::try_from(i).ok().and_then(|i| kinds.get(i)) == Some(&"sparse"),
        None => i >= dense,
    };
    tie(config, &text, b, false)?;
    let pattern = exaone4::pattern(&text)?;
    let reach = reaches(&text, d.layers, window(&text, Some(4096))?, |i| !(i + 1).is_multiple_of(pattern))?;
    let layers = (0..).zip(reach).map(|(i, reach)| {
        attention_layer(d.attention(reach), if routes(i) { Ffn::Moe(moe) } else { gated(inner) })
    });
    stack(b, "model.", &d, layers, |b, _, layer| {
        b.qkvo(d.hidden, &d.attention(Reach::Full), false, false);
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

/// The router, whose scores and bias stay in 32 bits, and the experts.
fn experts(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    let (role, one) = (Role::Router, Shard::Replicated);
    b.tensor_typed(role, "mlp.gate.weight", &[moe.experts, hidden], one, DType::F32);
    b.tensor_typed(role, "mlp.e_score_correction_bias", &[moe.experts], one, DType::F32);
    b.experts(moe.experts, |b| {
        b.gated_mlp(Role::Experts, "mlp.experts.{e}.", hidden, moe.intermediate, false);
        Ok(())
    })?;
    if moe.shared > 0 {
        b.gated_mlp(Role::SharedExperts, "mlp.shared_experts.", hidden, moe.shared, false);
    }
    Ok(())
}
