//! Mixtral: Mistral with eight routed experts in place of the feed-forward.
//!
//! Source: transformers `models/mixtral/{configuration,modeling}_mixtral.py`; the checkpoint's names
//! from the reverse conversion in `conversion_mapping.py` (`w1` gate, `w3` up, `w2` down).

use super::{Defaults, Family, decoder_or, moe, reaches, tie, window};
use crate::builder::{attention_layer, columns};
use crate::{Arithmetic, Config, Ffn, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mixtral",
    architectures: &["MixtralForCausalLM"],
    model_types: &["mixtral"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder_or(
        &text,
        b,
        Defaults {
            kv_heads: Some(8),
            ..Defaults::default()
        },
    )?;
    tie(config, &text, b, false)?;
    b.arithmetic(Arithmetic::llama(&text, d.head_dim));
    let moe = moe(&text, &["num_local_experts"], &["intermediate_size"], 0)?;
    let reach = reaches(&text, d.layers, window(&text, None)?, |_| true)?;
    let (h, inner) = (d.hidden, moe.intermediate);

    b.embedding("model.embed_tokens.weight", d.vocab, h);
    for (i, reach) in reach.iter().enumerate() {
        let attention = d.attention(*reach);
        let layer = attention_layer(attention, Ffn::Moe(moe));
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.qkvo(h, &attention, false, false);
            b.whole(
                Role::Router,
                "block_sparse_moe.gate",
                [moe.experts, h],
                false,
            );
            b.experts(moe.experts, |b| {
                let name = |w: &str| format!("block_sparse_moe.experts.{{e}}.{w}");
                let cols = columns(inner);
                b.out_split(Role::Experts, &name("w1"), [inner, h], false, cols);
                b.in_split(Role::Experts, &name("w2"), [h, inner], false, cols);
                b.out_split(Role::Experts, &name("w3"), [inner, h], false, cols);
                Ok(())
            })?;
            b.norm("input_layernorm", h);
            b.norm("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm("model.norm", h);
    b.head("lm_head", d.vocab, h);
    Ok(())
}
