//! MiniMax M2: experts chosen by biased scores in every layer, a norm over all query heads at once and one over all keys.
//!
//! Source: transformers `models/minimax_m2/{configuration,modeling}_minimax_m2.py`. Multi-token-prediction modules,
//! which transformers does not know, are not described.

use super::{Defaults, Family, decoder_or, moe, norms, stack, tie};
use crate::builder::{attention_layer, columns};
use crate::{Config, Ffn, ModelError, Moe, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "minimax_m2",
    architectures: &["MiniMaxM2ForCausalLM"],
    model_types: &["minimax_m2"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(8),
        head_dim: Some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let moe = moe(&text, &["num_local_experts"], &["intermediate_size"], 0)?;
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|_| attention_layer(attention, Ffn::Moe(moe)));
    stack(b, "model.", &d, layers, |b, _, _| {
        b.qkvo(d.hidden, &attention, false, false);
        b.norm("self_attn.q_norm", d.q_heads * d.head_dim);
        b.norm("self_attn.k_norm", d.kv_heads * d.head_dim);
        let bias = "block_sparse_moe.e_score_correction_bias";
        b.tensor(Role::Router, bias, &[moe.experts], Shard::Replicated);
        experts(b, d.hidden, &moe)?;
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// Router and experts under Mixtral's names.
pub(super) fn experts(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    b.whole(Role::Router, "block_sparse_moe.gate", [moe.experts, hidden], false);
    routed(b, hidden, moe)
}

/// The experts alone.
pub(super) fn routed(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    let (inner, role) = (moe.intermediate, Role::Experts);
    b.experts(moe.experts, |b| {
        for name in ["w1", "w3"] {
            let name = format!("block_sparse_moe.experts.{{e}}.{name}");
            b.out_split(role, &name, [inner, hidden], false, columns(inner));
        }
        let name = "block_sparse_moe.experts.{e}.w2";
        b.in_split(role, name, [hidden, inner], false, columns(inner));
        Ok(())
    })
}
