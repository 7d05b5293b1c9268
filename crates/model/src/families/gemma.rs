//! Gemma 1, 2 and 3 (text), and the vision-language wrapper of Gemma 3.
//!
//! Source: transformers `models/gemma{,2,3}/modeling_*.py`, `models/siglip/modeling_siglip.py`. Gemma 2
//! alternates window and full layers, starting with a window; Gemma 3 has a full layer every
//! `sliding_window_pattern` (6). Published Gemma 3 configs leave fields to class defaults, which
//! `defaults` repeats.

use super::{Family, decoder, tie};
use crate::builder::attention_layer;
use crate::{Config, Encoder, Ffn, ModelError, Reach, Role, Rotary, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gemma",
    architectures: &[
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
    ],
    model_types: &["gemma", "gemma2", "gemma3", "gemma3_text"],
    lower,
};

/// Which of the three it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Generation {
    One,
    Two,
    Three,
}

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let named = config.architecture().or(config.str("model_type")).unwrap_or("");
    let named = named.to_ascii_lowercase();
    let generation = match () {
        () if named.contains("gemma3") => Generation::Three,
        () if named.contains("gemma2") => Generation::Two,
        () => Generation::One,
    };
    let vision = config.object("vision_config")?;
    let prefix = if vision.is_some() { "language_model.model." } else { "model." };
    let d = decoder(&text, b)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, true)?;
    b.spec().final_softcap = text.has("final_logit_softcapping");
    let reach = reaches(&text, generation, d.layers)?;
    if generation == Generation::Three && !text.has("rope_scaling") && !text.has("rope_parameters") {
        default_rotary(d.head_dim, b);
    }

    b.embedding(&format!("{prefix}embed_tokens.weight"), d.vocab, d.hidden);
    for (i, reach) in reach.into_iter().enumerate() {
        let attention = d.attention(reach);
        let layer = attention_layer(attention, Ffn::Dense { intermediate: inner, gated: true });
        b.layer(&format!("{prefix}layers.{i}."), layer, |b| {
            b.qkvo(d.hidden, &attention, bias, bias);
            if generation == Generation::Three {
                b.norm("self_attn.q_norm", d.head_dim);
                b.norm("self_attn.k_norm", d.head_dim);
            }
            b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false);
            b.norm("input_layernorm", d.hidden);
            b.norm("post_attention_layernorm", d.hidden);
            if generation >= Generation::Two {
                b.norm("pre_feedforward_layernorm", d.hidden);
                b.norm("post_feedforward_layernorm", d.hidden);
            }
            Ok(())
        })?;
    }
    b.norm(&format!("{prefix}norm"), d.hidden);
    b.head(if vision.is_some() { "language_model.lm_head" } else { "lm_head" }, d.vocab, d.hidden);
    if let Some(v) = vision {
        tower(config, &v, d.hidden, b)?;
    }
    Ok(())
}

fn reaches(text: &Config<'_>, generation: Generation, layers: u64) -> Result<Vec<Reach>, ModelError> {
    if generation == Generation::One {
        return Ok(vec![Reach::Full; usize::try_from(layers).unwrap_or(0)]);
    }
    let default = if generation == Generation::Two { 2 } else { 6 };
    let window = text.dim_or(&["sliding_window"], 4096)?;
    let pattern = text.dim_or(&["sliding_window_pattern", "_sliding_window_pattern"], default)?;
    if let Some(types) = text.strings("layer_types")? {
        return super::reaches_of(text, &types, layers, window);
    }
    Ok((1..=layers)
        .map(|i| if i.is_multiple_of(pattern) { Reach::Full } else { Reach::Window(window) })
        .collect())
}

/// Context that Gemma 3 was pre-trained at, and the factor by which the global layers' positions are
/// interpolated beyond it (Gemma 3 Technical Report, 2025, section 2.2).
const PRETRAINED_CONTEXT: u64 = 32_768;
const INTERPOLATION: u64 = 8;

/// The tables of a config that leaves its rotary fields out: windows rotate at their own base, and
/// the global layers' table is stretched where the context exceeds the pre-trained one.
fn default_rotary(head_dim: u64, b: &mut SpecBuilder) {
    let spec = b.spec();
    let Some(positions) = spec.max_context else { return };
    let factor = if positions > PRETRAINED_CONTEXT { INTERPOLATION } else { 1 };
    let table = |positions| Rotary { dim: head_dim, positions };
    spec.rotary = vec![table(positions.saturating_mul(factor)), table(positions)];
}

/// SigLIP, and the projector that pools its patches to a fixed number of tokens.
fn tower(c: &Config<'_>, v: &Config<'_>, hidden: u64, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let width = v.dim_or(&["hidden_size"], 1152)?;
    let layers = v.dim_or(&["num_hidden_layers"], 27)?;
    let inner = v.dim_or(&["intermediate_size"], 4304)?;
    let (image, patch) = (v.dim_or(&["image_size"], 896)?, v.dim_or(&["patch_size"], 14)?);
    let channels = v.dim_or(&["num_channels"], 3)?;
    let tokens = c.dim_or(&["mm_tokens_per_image"], 256)?;
    let side = image / patch;
    let patches = side.saturating_mul(side);
    let en = Role::Encoder;
    b.scope("vision_tower.vision_model.", |b| {
        let e = "embeddings.";
        let whole = Shard::Replicated;
        b.tensor(en, &format!("{e}patch_embedding.weight"), &[width, channels, patch, patch], whole);
        b.tensor(en, &format!("{e}patch_embedding.bias"), &[width], whole);
        b.tensor(en, &format!("{e}position_embedding.weight"), &[patches, width], whole);
        for i in 0..layers.min(4096) {
            b.scope(&format!("encoder.layers.{i}."), |b| {
                for m in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                    b.whole(en, &format!("self_attn.{m}"), [width, width], true);
                }
                for n in ["layer_norm1", "layer_norm2"] {
                    b.tensor(en, &format!("{n}.weight"), &[width], whole);
                    b.tensor(en, &format!("{n}.bias"), &[width], whole);
                }
                b.whole(en, "mlp.fc1", [inner, width], true);
                b.whole(en, "mlp.fc2", [width, inner], true);
                Ok(())
            })?;
        }
        b.tensor(en, "post_layernorm.weight", &[width], whole);
        b.tensor(en, "post_layernorm.bias", &[width], whole);
        Ok(())
    })?;
    b.tensor(en, "multi_modal_projector.mm_input_projection_weight", &[width, hidden], Shard::Replicated);
    b.tensor(en, "multi_modal_projector.mm_soft_emb_norm.weight", &[width], Shard::Replicated);
    b.encoder(Encoder {
        hidden: width,
        layers,
        intermediate: inner,
        patches: Some(patches),
        patch_elements: channels.saturating_mul(patch).saturating_mul(patch),
        tokens_per_image: Some(tokens),
    });
    Ok(())
}
