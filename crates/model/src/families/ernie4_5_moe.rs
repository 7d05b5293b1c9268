//! ERNIE 4.5 with experts: dense layers first, then experts chosen by biased scores beside shared ones.
//!
//! Source: transformers `models/ernie4_5_moe/{configuration,modeling}_ernie4_5_moe.py`.

use plimsoll_units::DType;

use super::{Decoder, Defaults, Family, MAX_EXPERTS, decoder_or, gated, norms, stack, tie};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Moe, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "ernie4_5_moe",
    architectures: &["Ernie4_5_MoeForCausalLM"],
    model_types: &["ernie4_5_moe"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(4),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the dense feed-forward")?;
    let moe = routed(&text)?;
    let first = text.opt("moe_layer_start_index")?.unwrap_or(1);
    let every = text.dim_or(&["moe_layer_interval"], 1)?;
    // −1 is the last layer.
    let end = "moe_layer_end_index";
    let last = match text.float(end) {
        None | Some(-1.0) => d.layers,
        Some(_) => text.opt(end)?.unwrap_or(d.layers),
    };
    let routes = |i: u64| (first..=last).contains(&i) && (i + 1).is_multiple_of(every);
    let bias = text.flag("use_bias", false)?;
    tie(config, &text, b, true)?;
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|i| {
        let ffn = if routes(i) { Ffn::Moe(moe) } else { gated(inner) };
        attention_layer(attention, ffn)
    });
    stack(b, "model.", &d, layers, |b, i, _| {
        b.qkvo(d.hidden, &attention, bias, bias);
        if routes(i) {
            experts(b, &d, &moe, bias)?;
        } else {
            b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, bias);
        }
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    if bias {
        b.tensor(Role::Head, "lm_head.bias", &[d.vocab], Shard::Vocab { rows: d.vocab });
    }
    Ok(())
}

fn routed(text: &Config<'_>) -> Result<Moe, ModelError> {
    let inner = text.dim(&["moe_intermediate_size"], "it sizes a routed expert")?;
    let experts = text.dim_or(&["moe_num_experts"], 64)?;
    let top_k = text.dim_or(&["moe_k"], 6)?;
    if top_k > experts || experts > MAX_EXPERTS {
        return Err(text.reject("moe_num_experts", format!("expected {top_k} to {MAX_EXPERTS}")));
    }
    let shared = text.opt("moe_num_shared_experts")?.unwrap_or(2).saturating_mul(inner);
    Ok(Moe { experts, top_k, intermediate: inner, shared })
}

/// The router and its bias stay in 32 bits.
fn experts(b: &mut SpecBuilder, d: &Decoder, moe: &Moe, bias: bool) -> Result<(), ModelError> {
    let (role, one) = (Role::Router, Shard::Replicated);
    b.tensor_typed(role, "mlp.gate.weight", &[moe.experts, d.hidden], one, DType::F32);
    let correction = "mlp.moe_statics.e_score_correction_bias";
    b.tensor_typed(role, correction, &[1, moe.experts], one, DType::F32);
    b.experts(moe.experts, |b| {
        b.gated_mlp(Role::Experts, "mlp.experts.{e}.", d.hidden, moe.intermediate, false);
        Ok(())
    })?;
    if moe.shared > 0 {
        b.gated_mlp(Role::SharedExperts, "mlp.shared_experts.", d.hidden, moe.shared, bias);
    }
    Ok(())
}
