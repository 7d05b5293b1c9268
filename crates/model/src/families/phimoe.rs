//! Phi-3.5-MoE: Mixtral's experts, norms and a head with biases.
//!
//! Source: transformers `models/phimoe/{configuration,modeling}_phimoe.py`.

use super::{Defaults, Family, decoder_or, minimax_m2, moe, tie, window};
use crate::builder::attention_layer;
use crate::{Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "phimoe",
    architectures: &["PhimoeForCausalLM", "PhiMoEForCausalLM"],
    model_types: &["phimoe"],
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
    let moe = moe(&text, &["num_local_experts"], &["intermediate_size"], 0)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let reach = window(&text, None)?.map_or(Reach::Full, Reach::Window);
    let attention = d.attention(reach);
    let h = d.hidden;
    b.embedding("model.embed_tokens.weight", d.vocab, h);
    let layers = (0..d.layers).map(|_| attention_layer(attention, Ffn::Moe(moe)));
    for (i, layer) in layers.enumerate() {
        b.layer(&format!("model.layers.{i}."), layer, |b| {
            b.qkvo(h, &attention, bias, bias);
            minimax_m2::experts(b, h, &moe)?;
            b.norm_bias("input_layernorm", h);
            b.norm_bias("post_attention_layernorm", h);
            Ok(())
        })?;
    }
    b.norm_bias("model.norm", h);
    b.head("lm_head", d.vocab, h);
    if text.flag("lm_head_bias", false)? {
        b.tensor(Role::Head, "lm_head.bias", &[d.vocab], Shard::Vocab { rows: d.vocab });
    }
    Ok(())
}
