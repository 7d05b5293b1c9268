//! Qwen2-Audio and Voxtral: a text model behind Whisper's encoder, whose positions are joined, two or four at a time.
//!
//! Source: transformers `models/qwen2_audio` and `models/voxtral` (`{configuration,modeling}_*.py`).

use plimsoll_units::DType;

use super::bart::Half;
use super::{Family, llama, nested, qwen2, whisper};
use crate::{Config, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen2_audio",
    architectures: &["Qwen2AudioForConditionalGeneration", "VoxtralForConditionalGeneration"],
    model_types: &["qwen2_audio", "voxtral"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let is_voxtral = config.str("model_type") == Some("voxtral")
        || config.architecture() == Some("VoxtralForConditionalGeneration");
    let text = if is_voxtral { llama::FAMILY } else { qwen2::FAMILY };
    b.scope("language_model.", |b| nested(config, b, text))?;
    let hidden = b.spec().hidden;
    let audio = config.object("audio_config")?.ok_or_else(|| ModelError::Missing {
        field: config.path_of("audio_config"),
        why: "it describes the audio tower",
    })?;
    let half = Half::of_sounds(&audio, false)?;
    let positions = audio.dim_or(&["max_source_positions"], 1500)?;
    let bands = audio.dim_or(&["num_mel_bins"], 128)?;
    // Voxtral's table of positions stays in 32 bits.
    let kept = if is_voxtral { DType::F32 } else { b.spec().dtype };
    whisper::encoder(b, "audio_tower.", &half, [positions, bands], kept)?;
    let e = Role::Encoder;
    if is_voxtral {
        // Four positions, as many as the feed-forward is wider.
        b.whole(e, "multi_modal_projector.linear_1", [hidden, half.inner], false);
        b.whole(e, "multi_modal_projector.linear_2", [hidden, hidden], false);
    } else {
        b.whole(e, "multi_modal_projector.linear", [hidden, half.hidden], true);
    }
    let joined = if is_voxtral { half.inner / half.hidden.max(1) } else { 2 };
    if let Some(encoder) = &mut b.spec().encoder {
        encoder.tokens_per_image = Some((positions / joined.max(1)).max(1));
    }
    Ok(())
}
