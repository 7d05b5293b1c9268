//! Granite 3 mixture-of-experts: all experts of a layer in one tensor, gate and up projections
//! together.
//!
//! Source: transformers `models/granitemoe/modeling_granitemoe.py`.

use super::{Family, decoder, granite, moe, tie};
use crate::builder::{attention_layer, columns};
use crate::{Axis, Config, Ffn, Linear, ModelError, Moe, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "granite_moe",
    architectures: &["GraniteMoeForCausalLM"],
    model_types: &["granitemoe"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    tie(config, &text, b, false)?;
    b.arithmetic(granite::arithmetic(&text, &d));
    let moe = moe(&text, &["num_local_experts"], &["intermediate_size"], 0)?;
    let bias = text.flag("attention_bias", false)?;
    let attention = d.attention(Reach::Full);
    let h = d.hidden;

    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for i in 0..d.layers {
        let layer = attention_layer(attention, Ffn::Moe(moe));
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.qkvo(h, &attention, bias, bias);
            experts(b, h, &moe)?;
            b.norm("input_layernorm", h);
            b.norm("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}

/// A layer's experts and their router.
pub(super) fn experts(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    let inner = moe.intermediate;
    b.experts(moe.experts, |b| {
        let up = Linear {
            out: 2 * inner,
            inp: hidden,
            axis: Axis::Out,
        };
        let down = Linear {
            out: hidden,
            inp: inner,
            axis: Axis::In,
        };
        for (name, l) in [("input_linear", up), ("output_linear", down)] {
            let name = format!("block_sparse_moe.{name}.weight");
            b.matrix_as(Role::Experts, &name, &[l.out, l.inp], l, columns(inner));
        }
        Ok(())
    })?;
    b.whole(
        Role::Router,
        "block_sparse_moe.router.layer",
        [moe.experts, hidden],
        false,
    );
    Ok(())
}
