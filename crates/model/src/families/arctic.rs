//! Snowflake Arctic: in layers with experts, a dense feed-forward as wide as the hidden state beside them, which every
//! token passes, as it would a shared expert.
//!
//! Source: vLLM 0.28 `models/arctic.py`, for names also its `load_weights`, and `transformers_utils/configs/arctic.py`
//! for defaults; transformers has no such class.

use super::{Defaults, Family, decoder_or, moe, norms, reaches, stack, tie, window};
use crate::builder::{attention_layer, columns};
use crate::{Config, Ffn, ModelError, Moe, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "arctic",
    architectures: &["ArcticForCausalLM"],
    model_types: &["arctic"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder_or(&text, b, Defaults { vocab: Some(32000), max_context: Some(4096), ..Defaults::default() })?;
    tie(config, &text, b, false)?;
    let inner = text.dim(&["intermediate_size"], "it sizes an expert and the feed-forward of other layers")?;
    // Where a layer has experts, it may also have what is dense: both read the layer's input, not each other.
    let shared = if text.flag("use_residual", false)? { d.hidden } else { 0 };
    let experts = moe(&text, &["num_local_experts"], &["intermediate_size"], shared)?;
    let every = text.dim_or(&["moe_layer_frequency"], 2)?;
    let reach = reaches(&text, d.layers, window(&text, None)?, |_| true)?;
    let layers = (1..).zip(reach).map(|(nth, reach): (u64, _)| {
        let ffn = if nth.is_multiple_of(every) {
            Ffn::Moe(experts)
        } else {
            Ffn::Dense { intermediate: inner, gated: true }
        };
        attention_layer(d.attention(reach), ffn)
    });
    let h = d.hidden;
    stack(b, "model.", &d, layers, |b, _, layer| {
        b.qkvo(h, &d.attention(Reach::Full), false, false);
        match layer.ffn {
            Ffn::Moe(moe) => routed(b, h, &moe)?,
            _ => three(b, Role::Mlp, "block_sparse_moe.mlp.", [inner, h]),
        }
        norms(b, h);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, h);
    Ok(())
}

/// The router, its experts, and what is dense beside them.
fn routed(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    b.whole(Role::Router, "block_sparse_moe.gate", [moe.experts, hidden], false);
    b.experts(moe.experts, |b| {
        three(b, Role::Experts, "block_sparse_moe.experts.{e}.", [moe.intermediate, hidden]);
        Ok(())
    })?;
    if moe.shared > 0 {
        three(b, Role::SharedExperts, "residual_mlp.", [moe.shared, hidden]);
        b.norm("residual_layernorm", hidden);
    }
    Ok(())
}

/// A gated feed-forward under Mixtral's names: gate, down and up.
fn three(b: &mut SpecBuilder, role: Role, at: &str, [inner, hidden]: [u64; 2]) {
    let cols = columns(inner);
    b.out_split(role, &format!("{at}w1"), [inner, hidden], false, cols);
    b.in_split(role, &format!("{at}w2"), [hidden, inner], false, cols);
    b.out_split(role, &format!("{at}w3"), [inner, hidden], false, cols);
}
