//! Gemma 4: layers with a window and layers with heads of another size that see everything, late ones that read earlier
//! ones' keys and values; in some models an embedding of its own in each layer, in some experts beside the dense
//! feed-forward; a tower for images and one for sound.
//!
//! Source: transformers `models/gemma4/{configuration,modeling}_gemma4.py`.

use super::gemma3n::{layer_embeddings, own_layers, per_layer, projections};
use super::{Defaults, Family, LayerKind, decoder_or, gated, gemma2, layer_types, moe, stack, tie, window};
use crate::builder::{attention_layer, columns};
use crate::tower::{self, conformer};
use crate::{Attention, Axis, Config, Ffn, Linear, Mixer, ModelError, Moe, Reach, Role, Rotary, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gemma4",
    architectures: &["Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"],
    model_types: &["gemma4", "gemma4_text"],
    towers: true,
    lower,
};

/// What the class takes where a config is silent: the width of each layer's own embedding, window and context.
pub(super) struct Silent { pub(super) each: u64, pub(super) window: u64, pub(super) max_context: u64 }

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let silent = Silent { each: 256, window: 512, max_context: 131_072 };
    if !config.has("text_config") {
        return text(config, b, "model.", silent);
    }
    text(config, b, "model.language_model.", silent)?;
    let hidden = b.spec().hidden;
    if let Some(audio) = config.object("audio_config")? {
        let width = conformer::tensors(conformer::Kind::Gemma4, &audio, b)?;
        b.whole(Role::Encoder, "model.embed_audio.embedding_projection", [hidden, width], false);
    }
    match config.object("vision_config")? {
        Some(vision) => tower::gemma4::tensors(&vision, b, config.opt("vision_soft_tokens_per_image")?),
        None => Ok(()),
    }
}

pub(super) fn text(config: &Config<'_>, b: &mut SpecBuilder, at: &str, silent: Silent) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        vocab: Some(262_144),
        q_heads: Some(8),
        kv_heads: Some(4),
        head_dim: Some(256),
        max_context: Some(silent.max_context),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    tie(config, &text, b, true)?;
    b.spec().final_softcap = text.has("final_logit_softcapping");
    let inner = text.dim_or(&["intermediate_size"], 9216)?;
    let by_key = text.flag("attention_k_eq_v", false)?;
    let local = window(&text, Some(silent.window))?.map_or(Reach::Full, Reach::Window);
    let mut kinds = layer_types(&text, d.layers)?.unwrap_or_else(|| {
        (1..=d.layers).map(|n| if n % 6 == 0 { LayerKind::Full } else { LayerKind::Window }).collect()
    });
    // The class makes the last one full, whatever its config says.
    kinds.last_mut().into_iter().for_each(|last| *last = LayerKind::Full);
    let own = own_layers(&text, d.layers, 0)?;
    // Configs that others copied out leave the switch away where they name experts.
    let moe = if text.flag("enable_moe_block", text.has("num_experts"))? {
        Some(moe(&text, &["num_experts"], &["moe_intermediate_size"], inner)?)
    } else {
        None
    };
    let wide = if text.flag("use_double_wide_mlp", false)? { 2 * inner } else { inner };
    let inner_of = |i: u64| if i >= own { wide } else { inner };
    let attention = (0..).zip(&kinds).map(|(i, kind)| {
        let reach = if *kind == LayerKind::Full { Reach::Full } else { local };
        sized(&text, i, Attention { shared: i >= own, ..d.attention(reach) }, by_key)
    });
    let attention = attention.collect::<Result<Vec<_>, _>>()?;
    if let Some(positions) = b.spec().max_context {
        let wide = attention.iter().map(|a| a.k_dim).max().unwrap_or(d.head_dim);
        b.spec().rotary = [wide, d.head_dim].map(|dim| Rotary { dim, positions }).to_vec();
    }
    let layers = (0..).zip(attention).map(|(i, a)| {
        attention_layer(a, moe.map_or(gated(inner_of(i)), Ffn::Moe))
    });
    let (h, each) = (d.hidden, text.opt("hidden_size_per_layer_input")?.unwrap_or(silent.each));
    stack(b, at, &d, layers, |b, i, layer| {
        if let Mixer::Attention(a) = &layer.mixer {
            projections(b, h, a, !by_key || a.reach != Reach::Full);
        }
        let role = if moe.is_some() { Role::SharedExperts } else { Role::Mlp };
        b.gated_mlp(role, "mlp.", h, inner_of(i), false);
        gemma2::norms(b, h);
        if let Some(moe) = &moe {
            experts(b, h, moe)?;
        }
        if each > 0 {
            per_layer(b, h, each);
        }
        b.tensor(Role::Norm, "layer_scalar", &[1], Shard::Replicated);
        Ok(())
    })?;
    if each > 0 {
        let rows = text.dim_or(&["vocab_size_per_layer_input"], 262_144)?;
        b.scope(at, |b| {
            layer_embeddings(b, &d, each, rows);
            Ok(())
        })?;
    }
    b.head("lm_head", d.vocab, h);
    Ok(())
}

/// Attention of layer `i` with heads of its own sizes: those of layers that see everything have two fields of the
/// config, or each layer has an entry.
fn sized(text: &Config<'_>, i: u64, a: Attention, by_key: bool) -> Result<Attention, ModelError> {
    let (dim, kv) = match text.object("per_layer_config")? {
        Some(all) => match all.object(&i.to_string())? {
            Some(own) => (own.dim_or(&["head_dim"], a.k_dim)?, own.dim_or(&["num_key_value_heads"], a.kv_heads)?),
            None => (a.k_dim, a.kv_heads),
        },
        None if a.reach == Reach::Full => {
            let kv = if by_key { text.opt("num_global_key_value_heads")? } else { None };
            (text.dim_or(&["global_head_dim"], 512)?, kv.filter(|n| *n > 0).unwrap_or(a.kv_heads))
        }
        None => (a.k_dim, a.kv_heads),
    };
    if !a.q_heads.is_multiple_of(kv) {
        let reason = format!("expected a divisor of the {} attention heads", a.q_heads);
        return Err(text.reject("num_global_key_value_heads", reason));
    }
    Ok(Attention { kv_heads: kv, k_dim: dim, v_dim: dim, ..a })
}

/// All experts of a layer in two tensors, with norms around them of their own.
fn experts(b: &mut SpecBuilder, h: u64, moe: &Moe) -> Result<(), ModelError> {
    let inner = moe.intermediate;
    b.tensor(Role::Router, "router.scale", &[h], Shard::Replicated);
    b.tensor(Role::Router, "router.per_expert_scale", &[moe.experts], Shard::Replicated);
    b.whole(Role::Router, "router.proj", [moe.experts, h], false);
    for name in ["post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"] {
        b.norm(name, h);
    }
    b.experts(moe.experts, |b| {
        let up = Linear { out: 2 * inner, inp: h, axis: Axis::Out };
        let down = Linear { out: h, inp: inner, axis: Axis::In };
        for (name, l) in [("experts.gate_up_proj", up), ("experts.down_proj", down)] {
            b.matrix_as(Role::Experts, name, &[l.out, l.inp], l, columns(inner));
        }
        Ok(())
    })
}
