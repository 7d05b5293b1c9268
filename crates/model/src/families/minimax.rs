//! MiniMax-Text-01 and M1: seven layers of lightning attention, whose state has a fixed decay for each head, to one of
//! softmax attention; experts in every layer.
//!
//! Source: transformers `models/minimax/{configuration,modeling}_minimax.py`; the published class, which keeps no decays
//! in its files, from vLLM `models/minimax_text_01.py`.

use super::{Decoder, Defaults, Family, LayerKind, decoder_or, layer_types, minimax_m2, moe, norms, stack, tie};
use crate::builder::{attention_layer, heads};
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, Reach, Role, Shard, SpecBuilder, StateKind, StateSpace};

pub(super) const FAMILY: Family = Family {
    name: "minimax",
    architectures: &["MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM", "MiniMaxForCausalLM"],
    model_types: &["minimax_text_01", "minimax_m1", "minimax"],
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
    if text.opt("shared_intermediate_size")?.is_some_and(|n| n > 0) {
        return Err(text.reject("shared_intermediate_size", "expected 0: no published model has a shared expert"));
    }
    tie(config, &text, b, false)?;
    let lightning = StateSpace {
        kind: StateKind::Lightning,
        conv_taps: 0,
        conv_channels: 0,
        heads: d.q_heads,
        rows: d.head_dim,
        cols: d.head_dim,
        groups: d.q_heads,
        state_dtype: None,
    };
    let attention = d.attention(Reach::Full);
    let layers = attends(&text, d.layers)?.into_iter().map(|attends| {
        if attends {
            return attention_layer(attention, Ffn::Moe(moe));
        }
        LayerSpec { mixer: Mixer::State(lightning), parallel: None, cross: None, ffn: Ffn::Moe(moe) }
    });
    // transformers' own class stores the decays of blocks of this length.
    let is_own = config.architecture().or(config.str("model_type")).is_some_and(|n| {
        ["MiniMaxForCausalLM", "minimax"].contains(&n)
    });
    let block = if is_own { Some(text.dim_or(&["block_size"], 256)?) } else { None };
    stack(b, "model.", &d, layers, |b, _, layer| {
        match layer.mixer {
            Mixer::State(_) => tensors(b, &d, block),
            _ => b.qkvo(d.hidden, &attention, false, false),
        }
        minimax_m2::experts(b, d.hidden, &moe)?;
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// Which layers have softmax attention: by kind, by `attn_type_list`, in which it is 1, or every second from the first.
fn attends(text: &Config<'_>, layers: u64) -> Result<Vec<bool>, ModelError> {
    if let Some(kinds) = layer_types(text, layers)? {
        return Ok(kinds.iter().map(|k| *k != LayerKind::Linear).collect());
    }
    let key = "attn_type_list";
    match text.numbers(key)? {
        Some(list) if u64::try_from(list.len()) == Ok(layers) && list.iter().all(|n| *n < 2) => {
            Ok(list.iter().map(|n| *n == 1).collect())
        }
        Some(_) => Err(text.reject(key, format!("expected 0 or 1 for each of the {layers} layers"))),
        None => Ok((0..layers).map(|i| i % 2 == 0).collect()),
    }
}

fn tensors(b: &mut SpecBuilder, d: &Decoder, block: Option<u64>) {
    let (state, h, wide, split) = (Role::State, d.hidden, d.q_heads * d.head_dim, heads(d.q_heads));
    b.out_split(state, "self_attn.qkv_proj", [3 * wide, h], false, split);
    b.out_split(state, "self_attn.output_gate", [wide, h], false, split);
    b.in_split(state, "self_attn.out_proj", [h, wide], false, split);
    b.tensor(Role::Norm, "self_attn.norm.weight", &[wide], split);
    if let Some(n) = block {
        let count = d.q_heads;
        b.tensor(state, "self_attn.slope_rate", &[count, 1, 1], split);
        b.tensor(state, "self_attn.query_decay", &[count, n, 1], split);
        b.tensor(state, "self_attn.key_decay", &[count, n, 1], split);
        b.tensor(state, "self_attn.diagonal_decay", &[1, count, n, n], Shard::Replicated);
    }
}
