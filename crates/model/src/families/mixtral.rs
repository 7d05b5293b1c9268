//! Mixtral: Mistral with routed experts in every layer.
//!
//! Source: transformers `models/mixtral/modeling_mixtral.py`; names as in the published checkpoints.

use super::{Family, decoder, tie};
use crate::builder::{attention_layer, columns};
use crate::{Config, Ffn, ModelError, Moe, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mixtral",
    architectures: &["MixtralForCausalLM"],
    model_types: &["mixtral"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let d = decoder(config, b)?;
    tie(config, config, b, false)?;
    let inner = config.dim(&["intermediate_size"], "it sizes an expert")?;
    let moe = Moe {
        experts: config.dim(&["num_local_experts", "num_experts"], "it is the number of experts")?,
        top_k: config.dim(&["num_experts_per_tok"], "it is the experts per token")?,
        intermediate: inner,
        shared: 0,
    };
    let reach = match config.opt("sliding_window")? {
        Some(w) if w > 0 => Reach::Window(w),
        _ => Reach::Full,
    };
    let attention = d.attention(reach);
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for i in 0..d.layers {
        b.layer(&format!("model.layers.{i}."), attention_layer(attention, Ffn::Moe(moe)), |b| {
            b.qkvo(d.hidden, &attention, false, false);
            let at = "block_sparse_moe.";
            b.whole(Role::Router, &format!("{at}gate"), [moe.experts, d.hidden], false);
            b.experts(moe.experts, |b| {
                let (up, down) = ([inner, d.hidden], [d.hidden, inner]);
                b.out_split(Role::Experts, &format!("{at}experts.{{e}}.w1"), up, false, columns(inner));
                b.in_split(Role::Experts, &format!("{at}experts.{{e}}.w2"), down, false, columns(inner));
                b.out_split(Role::Experts, &format!("{at}experts.{{e}}.w3"), up, false, columns(inner));
                Ok(())
            })?;
            b.norm("input_layernorm", d.hidden);
            b.norm("post_attention_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}
