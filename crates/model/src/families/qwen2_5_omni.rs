//! Qwen2.5-Omni, the part that thinks: Qwen2.5 under Qwen2.5-VL's tower and Whisper's encoder. What speaks is a model
//! of its own and not described.
//!
//! Source: transformers `models/qwen2_5_omni/{configuration,modeling}_qwen2_5_omni.py`.

use super::bart::Half;
use super::qwen2_vl::{Visual, vision};
use super::{Defaults, Family, decoder_or, qwen2};
use crate::builder::heads;
use crate::{Config, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen2_5_omni",
    architectures: &[
        "Qwen2_5OmniModel",
        "Qwen2_5OmniForConditionalGeneration",
        "Qwen2_5OmniThinkerForConditionalGeneration",
    ],
    model_types: &["qwen2_5_omni", "qwen2_5_omni_thinker"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let thinker = thinker(config, b, &["talker_config", "token2wav_config"])?;
    let text = thinker.text()?;
    let (vision, audio) = (vision(&thinker)?, audio(&thinker)?);
    b.scope("thinker.", |b| {
        let d = decoder_or(&text, b, Defaults { kv_heads: Some(4), ..Defaults::default() })?;
        qwen2::stack(&thinker, &text, b, &d, 28)?;
        b.scope("visual.", |b| sees(&vision, b))?;
        let eyes = b.spec().encoder;
        b.scope("audio_tower.", |b| hears(&audio, b))?;
        // Of two towers, the spec keeps the one that images pass.
        b.spec().encoder = eyes;
        Ok(())
    })
}

/// The config of what thinks, which a checkpoint that also speaks nests; `speaks` are the fields of the rest.
pub(super) fn thinker<'a>(config: &Config<'a>, b: &mut SpecBuilder, speaks: &[&str]) -> Result<Config<'a>, ModelError> {
    let thinker = config.object("thinker_config")?.unwrap_or_else(|| config.clone());
    if thinker.object("text_config")?.is_none() {
        return Err(thinker.reject("text_config", "expected the text model's fields"));
    }
    if speaks.iter().any(|k| config.has(k)) {
        let fields: Vec<String> = speaks.iter().map(|k| format!("`{k}`")).collect();
        b.spec().notes.push(format!("what speaks ({}) is left out", fields.join(", ")));
    }
    Ok(thinker)
}

/// `audio_config`, which no default replaces.
pub(super) fn audio<'a>(thinker: &Config<'a>) -> Result<Config<'a>, ModelError> {
    thinker.object("audio_config")?.ok_or_else(|| ModelError::Missing {
        field: thinker.path_of("audio_config"),
        why: "it describes the audio tower",
    })
}

/// Qwen2.5-VL's tower, with queries, keys and values apart.
fn sees(vision: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let width = vision.dim_or(&["hidden_size"], 3584)?;
    let inner = vision.dim_or(&["intermediate_size"], 3420)?;
    let v = Visual::read(vision, width, inner, vision.dim_or(&["out_hidden_size"], 3584)?)?;
    let (e, split) = (Role::Encoder, heads(v.heads));
    v.patches(b);
    for i in 0..v.depth {
        b.scope(&format!("blocks.{i}."), |b| {
            v.norm(b, "norm1", false);
            v.norm(b, "norm2", false);
            for name in ["attn.q", "attn.k", "attn.v"] {
                b.out_split(e, name, [width, width], true, split);
            }
            b.in_split(e, "attn.proj", [width, width], true, split);
            b.gated_mlp(e, "mlp.", width, inner, true);
            Ok(())
        })?;
    }
    v.norm(b, "merger.ln_q", false);
    v.merger(b);
    b.encoder(v.encoder());
    Ok(())
}

/// Whisper's encoder without a table of positions, which are computed; what begins and ends a sound is learned.
fn hears(audio: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let half = Half::of_sounds(audio, false)?;
    let (e, one, w) = (Role::Encoder, Shard::Replicated, half.hidden);
    let (bands, out) = (audio.dim_or(&["num_mel_bins"], 128)?, audio.dim_or(&["output_dim"], 3584)?);
    for (name, inp) in [("conv1", bands), ("conv2", w)] {
        b.tensor(e, &format!("{name}.weight"), &[w, inp, 3], one);
        b.tensor(e, &format!("{name}.bias"), &[w], one);
    }
    b.tensor(e, "audio_bos_eos_token.weight", &[2, out], one);
    half.encode(b, "layers.", audio.dim_or(&["max_source_positions"], 1500)?, bands.saturating_mul(2))?;
    half.norm(b, e, "ln_post");
    b.whole(e, "proj", [out, w], true);
    Ok(())
}
