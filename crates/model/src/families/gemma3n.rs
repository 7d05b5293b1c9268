//! Gemma 3n: Gemma 3's windows over four streams at once, an embedding of its own in each layer, late layers that read
//! earlier ones' keys and values; a MobileNet for images and a conformer for sound.
//!
//! Source: transformers `models/gemma3n/{configuration,modeling}_gemma3n.py`. Published files also have the key and value
//! matrices of layers that read others', which nobody loads.

use super::{Decoder, Defaults, Family, decoder_or, gated, gemma2, reaches, stack, tie, window};
use crate::builder::{attention_layer, columns, heads};
use crate::tower::conformer::{self, Kind};
use crate::tower::mobilenet_v5::{self, embedder};
use crate::{Attention, Config, Ffn, Mixer, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gemma3n",
    architectures: &["Gemma3nForConditionalGeneration", "Gemma3nForCausalLM"],
    model_types: &["gemma3n", "gemma3n_text"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        vocab: Some(262_400),
        q_heads: Some(8),
        kv_heads: Some(2),
        head_dim: Some(256),
        max_context: Some(32_768),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    tie(config, &text, b, true)?;
    b.rotary_local();
    b.spec().final_softcap = !text.is_null("final_logit_softcapping");
    let inner = widths(&text, d.layers)?;
    let width = window(&text, Some(512))?;
    let reach = reaches(&text, d.layers, width, |i| !(i + 1).is_multiple_of(5))?;
    let own = own_layers(&text, d.layers, 15)?;
    let layers = (0..).zip(reach).zip(&inner).map(|((i, reach), inner)| {
        attention_layer(Attention { shared: i >= own, ..d.attention(reach) }, gated(*inner))
    });
    let (h, each) = (d.hidden, text.dim_or(&["hidden_size_per_layer_input"], 256)?);
    let streams = text.dim_or(&["altup_num_inputs"], 4)?;
    let low = text.dim_or(&["laurel_rank"], 64)?;
    let (one, role) = (Shard::Replicated, Role::Mlp);
    let at = "model.language_model.";
    stack(b, at, &d, layers, |b, _, layer| {
        if let (Mixer::Attention(a), Ffn::Dense { intermediate, .. }) = (&layer.mixer, layer.ffn) {
            projections(b, h, a, true);
            b.gated_mlp(Role::Mlp, "mlp.", h, intermediate, false);
        }
        b.tensor(role, "altup.correct_output_scale", &[h], one);
        b.whole(role, "altup.correction_coefs", [streams, streams], false);
        b.whole(role, "altup.prediction_coefs", [streams.saturating_mul(streams), streams], false);
        b.whole(role, "altup.modality_router", [streams, h], false);
        b.norm("altup.router_norm", h);
        b.out_split(role, "laurel.linear_left", [low, h], false, columns(low));
        b.in_split(role, "laurel.linear_right", [h, low], false, columns(low));
        b.norm("laurel.post_laurel_norm", h);
        per_layer(b, h, each);
        gemma2::norms(b, h);
        Ok(())
    })?;
    b.scope(at, |b| {
        for i in 1..streams {
            b.out_split(role, &format!("altup_projections.{}", i - 1), [h, h], false, columns(h));
            b.out_split(role, &format!("altup_unembed_projections.{}", i - 1), [h, h], false, columns(h));
        }
        layer_embeddings(b, &d, each, text.dim_or(&["vocab_size_per_layer_input"], 262_144)?);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, h);
    if config.has("text_config") { towers(config, b, h) } else { Ok(()) }
}

/// Inner sizes of all layers' feed-forwards: one for all, or one for each.
fn widths(text: &Config<'_>, layers: u64) -> Result<Vec<u64>, ModelError> {
    let key = "intermediate_size";
    let listed = match text.get(key).filter(|v| v.is_array()) {
        Some(_) => text.numbers(key)?.unwrap_or_default(),
        None => vec![text.dim_or(&[key], 16_384)?; usize::try_from(layers).unwrap_or_default()],
    };
    if u64::try_from(listed.len()) != Ok(layers) {
        return Err(text.reject(key, format!("expected one for each of the {layers} layers")));
    }
    Ok(listed)
}

/// How many layers keep keys and values of their own; the others, behind them, read theirs.
pub(super) fn own_layers(text: &Config<'_>, layers: u64, default: u64) -> Result<u64, ModelError> {
    let key = "num_kv_shared_layers";
    match layers.checked_sub(text.opt(key)?.unwrap_or(default)) {
        Some(own) if own > 0 => Ok(own),
        _ => Err(text.reject(key, format!("expected fewer than the {layers} layers"))),
    }
}

/// Attention with norms on heads. A layer that reads another's keys and values has queries and output alone; where keys
/// are values too, there is one projection for both.
pub(super) fn projections(b: &mut SpecBuilder, hidden: u64, a: &Attention, values: bool) {
    let (at, q, kv) = (Role::Attention, a.q_heads.saturating_mul(a.k_dim), a.kv_heads.saturating_mul(a.k_dim));
    b.out_split(at, "self_attn.q_proj", [q, hidden], false, heads(a.q_heads));
    let kept: &[&str] = match (a.shared, values) {
        (true, _) => &[],
        (false, true) => &["self_attn.k_proj", "self_attn.v_proj"],
        (false, false) => &["self_attn.k_proj"],
    };
    for name in kept {
        b.out_split(at, name, [kv, hidden], false, Shard::KvHeads { heads: a.kv_heads });
    }
    b.in_split(at, "self_attn.o_proj", [hidden, q], false, heads(a.q_heads));
    b.norm("self_attn.q_norm", a.k_dim);
    if !a.shared {
        b.norm("self_attn.k_norm", a.k_dim);
    }
}

/// What a layer makes of its own embedding.
pub(super) fn per_layer(b: &mut SpecBuilder, hidden: u64, each: u64) {
    b.whole(Role::Mlp, "per_layer_input_gate", [each, hidden], false);
    b.whole(Role::Mlp, "per_layer_projection", [hidden, each], false);
    b.norm("post_per_layer_input_norm", hidden);
}

/// The table of all layers' own embeddings, and their projection from the first.
pub(super) fn layer_embeddings(b: &mut SpecBuilder, d: &Decoder, each: u64, rows: u64) {
    let wide = d.layers.saturating_mul(each);
    b.embedding("embed_tokens_per_layer.weight", rows, wide);
    b.out_split(Role::Mlp, "per_layer_model_projection", [wide, d.hidden], false, columns(wide));
    b.norm("per_layer_projection_norm", each);
}

fn towers(config: &Config<'_>, b: &mut SpecBuilder, hidden: u64) -> Result<(), ModelError> {
    if let Some(audio) = config.object("audio_config")? {
        let width = conformer::tensors(Kind::Gemma3n, &audio, b)?;
        embedder(b, "model.embed_audio.", audio.dim_or(&["vocab_size"], 128)?, [width, hidden])?;
    }
    let Some(vision) = config.object("vision_config")? else {
        return Ok(());
    };
    if vision.str("architecture").is_some_and(|a| a != "mobilenetv5_300m_enc") {
        return Err(vision.reject("architecture", "expected mobilenetv5_300m_enc"));
    }
    mobilenet_v5::tensors(b, config.dim_or(&["vision_soft_tokens_per_image"], 256)?)?;
    let rows = vision.dim_or(&["vocab_size"], 128)?;
    embedder(b, "model.embed_vision.", rows, [mobilenet_v5::WIDTH, hidden])
}
