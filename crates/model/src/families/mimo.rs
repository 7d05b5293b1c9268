//! MiMo: Qwen 2 with prediction layers; MiMo V2 Flash: five layers with a window, twice the KV heads and a sink to one that
//! sees everything, experts chosen by biased scores.
//!
//! Source: transformers `models/mimo_v2_flash/{configuration,modeling}_mimo_v2_flash.py`; MiMo, which it does not know, and
//! both models' prediction layers from vLLM `models/mimo.py`, `models/mimo_mtp.py` and `models/mimo_v2.py`. How many of
//! these V2 Flash has is not in its config: they are not described. `MiMoV2ForCausalLM`'s files have queries', keys' and
//! values' matrices as one (vLLM 0.32 `models/mimo_v2.py`), of the same size.

use super::glm4_moe::experts;
use super::{Decoder, Defaults, Family, LayerKind, decoder_or, gated, layer_types, moe, norms, qwen2, stack, tie};
use crate::builder::{attention_layer, heads};
use crate::{Attention, Config, Ffn, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mimo",
    architectures: &["MiMoForCausalLM", "MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"],
    model_types: &["mimo", "mimo_v2_flash", "mimo_v2"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let v1_alone = config.architecture() == Some("MiMoForCausalLM") || config.str("model_type") == Some("mimo");
    if v1_alone { v1(config, b) } else { v2(config, b) }
}

fn v1(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    (qwen2::FAMILY.lower)(config, b)?;
    let key = "num_nextn_predict_layers";
    let (count, h) = (config.opt(key)?.unwrap_or(0), b.spec().hidden);
    let Some(crate::LayerSpec { mixer: crate::Mixer::Attention(a), ffn: Ffn::Dense { intermediate, .. }, .. }) =
        b.spec().layers.last().copied()
    else {
        return Ok(());
    };
    if usize::try_from(count).is_ok_and(|n| n > b.spec().layers.len()) {
        return Err(config.reject(key, "expected no more than there are layers"));
    }
    b.spec().mtp_layers = count;
    for i in 0..count {
        b.mtp(&format!("model.mtp_layers.{i}."), |b| {
            b.tensor(Role::Mtp, "input_proj.weight", &[h, 2 * h], Shard::Replicated);
            for name in ["token_layernorm", "hidden_layernorm", "final_layernorm"] {
                b.norm(name, h);
            }
            b.qkvo(h, &a, true, false);
            b.gated_mlp(Role::Mtp, "mlp.", h, intermediate, false);
            norms(b, h);
            Ok(())
        })?;
    }
    Ok(())
}

fn v2(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(4),
        head_dim: Some(192),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the dense feed-forward")?;
    let moe = moe(&text, &["n_routed_experts", "num_local_experts"], &["moe_intermediate_size"], 0)?;
    let bias = text.flag("attention_bias", false)?;
    let sinks = text.flag("add_swa_attention_sink_bias", true)?;
    tie(config, &text, b, false)?;
    b.rotary_local();
    b.rotary_share(0.334);
    let (full, local) = attentions(&text, &d)?;
    let attention = pattern(&text, d.layers, "layer_types", "hybrid_layer_pattern", |i| i > 0 && (i + 1) % 6 > 0)?;
    let routes = pattern(&text, d.layers, "mlp_layer_types", "moe_layer_freq", |i| i > 0)?;
    let layers = attention.iter().zip(&routes).map(|(windowed, routes)| {
        let ffn = if *routes { Ffn::Moe(moe) } else { gated(inner) };
        attention_layer(if *windowed { local } else { full }, ffn)
    });
    stack(b, "model.", &d, layers, |b, i, layer| {
        let windowed = usize::try_from(i).ok().and_then(|i| attention.get(i)) == Some(&true);
        b.qkvo(d.hidden, if windowed { &local } else { &full }, bias, false);
        if windowed && sinks {
            b.tensor(Role::Attention, "self_attn.attention_sink_bias", &[d.q_heads], heads(d.q_heads));
        }
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

/// Attention without a window and with one.
fn attentions(text: &Config<'_>, d: &Decoder) -> Result<(Attention, Attention), ModelError> {
    let full = Attention { v_dim: text.dim_or(&["v_head_dim"], 128)?, ..d.attention(Reach::Full) };
    for (key, same) in [
        ("swa_num_attention_heads", d.q_heads),
        ("swa_head_dim", full.k_dim),
        ("swa_v_head_dim", full.v_dim),
    ] {
        if text.opt(key)?.is_some_and(|n| n != same) {
            return Err(text.reject(key, format!("expected {same}, as in layers without a window")));
        }
    }
    let key = "swa_num_key_value_heads";
    let kv = text.dim_or(&[key], d.kv_heads.saturating_mul(2))?;
    if !d.q_heads.is_multiple_of(kv) {
        return Err(text.reject(key, format!("expected a divisor of the {} attention heads", d.q_heads)));
    }
    // So vLLM reads the published field; transformers reads as many before the token, and writes one more.
    let window = text.dim_or(&["sliding_window_size", "sliding_window"], 129)?;
    Ok((full, Attention { kv_heads: kv, reach: Reach::Window(window), ..full }))
}

/// A pattern over layers: names (windows, or sparse), or ones and noughts, or the class's own.
fn pattern(
    text: &Config<'_>,
    layers: u64,
    names: &'static str,
    numbers: &str,
    default: impl Fn(u64) -> bool,
) -> Result<Vec<bool>, ModelError> {
    let all = |list: &[bool]| u64::try_from(list.len()) == Ok(layers);
    let reason = || format!("expected one entry for each of the {layers} layers");
    if names == "layer_types" && text.has(names) {
        let kinds = layer_types(text, layers)?.unwrap_or_default();
        return Ok(kinds.iter().map(|k| *k == LayerKind::Window).collect());
    }
    if let Some(kinds) = text.strings(names)? {
        let list: Vec<bool> = kinds.iter().map(|k| *k == "sparse").collect();
        return if all(&list) { Ok(list) } else { Err(text.reject(names, reason())) };
    }
    match text.numbers(numbers)? {
        Some(list) => {
            let list: Vec<bool> = list.iter().map(|n| *n == 1).collect();
            if all(&list) { Ok(list) } else { Err(text.reject(numbers, reason())) }
        }
        None => Ok((0..layers).map(default).collect()),
    }
}
