//! Nemotron Super 49B, Ultra 253B and 51B (DeciLM): LLaMA after a search over its layers, of which each has KV heads and a
//! feed-forward of its own size, or none, or one matrix in its place.
//!
//! Source: vLLM 0.32 `models/nemotron_nas.py`; matrices in place of attention, which it does not run, llama.cpp
//! `conversion/deci.py` and `src/models/deci.cpp`. transformers has no class of it.

use super::{Decoder, Family, decoder, gated, tie};
use crate::builder::{attention_layer, scaled};
use crate::{Attention, Config, Ffn, LayerSpec, Mixer, ModelError, Reach, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "nemotron_nas",
    architectures: &["DeciLMForCausalLM"],
    model_types: &["nemotron-nas"],
    towers: false,
    lower,
};

/// What a layer has in place of attention or a feed-forward.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part<T> {
    Own(T),
    Linear,
    Nothing,
}

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder(&text, b)?;
    let key = "block_configs";
    let blocks = text.objects(key)?.ok_or_else(|| ModelError::Missing {
        field: text.path_of(key),
        why: "it says what each layer has",
    })?;
    if blocks.len() as u64 != d.layers {
        return Err(text.reject(key, format!("expected one for each of the {} layers", d.layers)));
    }
    let bias = text.flag("attention_bias", false)?;
    let mlp_bias = text.flag("mlp_bias", false)?;
    tie(config, &text, b, false)?;
    b.embedding("model.embed_tokens.weight", d.vocab, d.hidden);
    for (i, block) in (0..d.layers).zip(&blocks) {
        let (attention, ffn) = (attention(block, &d)?, feed_forward(block, d.hidden)?);
        b.layer(&format!("model.layers.{i}."), layer(attention, ffn), |b| {
            match attention {
                Part::Own(a) => b.qkvo(d.hidden, &a, bias, bias),
                Part::Linear => b.whole(Role::Attention, "self_attn.linear_attn", [d.hidden, d.hidden], false),
                Part::Nothing => {}
            }
            if attention != Part::Nothing {
                b.norm("input_layernorm", d.hidden);
            }
            match ffn {
                Part::Own(inner) => b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, mlp_bias),
                Part::Linear => b.whole(Role::Mlp, "mlp.linear_mlp", [d.hidden, d.hidden], false),
                Part::Nothing => return Ok(()),
            }
            b.norm("post_attention_layernorm", d.hidden);
            Ok(())
        })?;
    }
    b.norm("model.norm", d.hidden);
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// What is computed: a matrix alone mixes no positions, and is no feed-forward with an inner size.
fn layer(attention: Part<Attention>, ffn: Part<u64>) -> LayerSpec {
    let ffn = match ffn {
        Part::Own(inner) => gated(inner),
        Part::Linear | Part::Nothing => Ffn::None,
    };
    match attention {
        Part::Own(a) => attention_layer(a, ffn),
        Part::Linear | Part::Nothing => LayerSpec { mixer: Mixer::None, parallel: None, cross: None, ffn },
    }
}

/// The part `key` of a block, unless it is a matrix or nothing; older files leave its size out then, newer ones say so.
fn part<'a, T>(
    block: &Config<'a>,
    key: &str,
    own: impl FnOnce(&Config<'a>) -> Result<Option<T>, ModelError>,
) -> Result<Part<T>, ModelError> {
    let Some(part) = block.object(key)? else {
        return Ok(Part::Nothing);
    };
    if part.flag("replace_with_linear", false)? {
        return Ok(Part::Linear);
    }
    if part.flag("no_op", false)? {
        return Ok(Part::Nothing);
    }
    Ok(own(&part)?.map_or(Part::Nothing, Part::Own))
}

fn attention(block: &Config<'_>, d: &Decoder) -> Result<Part<Attention>, ModelError> {
    part(block, "attention", |own| {
        let key = "n_heads_in_group";
        let Some(group) = own.opt(key)? else {
            return Ok(None);
        };
        if group == 0 || !d.q_heads.is_multiple_of(group) {
            return Err(own.reject(key, format!("expected a divisor of the {} attention heads", d.q_heads)));
        }
        Ok(Some(Attention { kv_heads: d.q_heads / group, ..d.attention(Reach::Full) }))
    })
}

/// The inner size: stated, or two thirds of a multiple of the hidden size, filled up to a multiple of 256.
fn feed_forward(block: &Config<'_>, hidden: u64) -> Result<Part<u64>, ModelError> {
    part(block, "ffn", |own| {
        Ok(match (own.float("ffn_mult"), own.opt("intermediate_size")?) {
            (Some(times), _) if times > 0.0 => Some(scaled(hidden, 2.0 * times / 3.0).next_multiple_of(256)),
            (_, inner) => inner.filter(|n| *n > 0),
        })
    })
}
