//! Whisper: BART's layers over half a minute of sound, which two convolutions halve.
//!
//! Source: transformers `models/whisper/{configuration,modeling}_whisper.py`.

use plimsoll_units::DType;

use super::bart::{Half, halves};
use super::{Family, tie};
use crate::{Config, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "whisper",
    architectures: &["WhisperForConditionalGeneration"],
    model_types: &["whisper"],
    towers: false,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let vocab = text.dim(&["vocab_size"], "it sizes the embedding and the output head")?;
    let (source, target) = (text.dim_or(&["max_source_positions"], 1500)?, text.dim_or(&["max_target_positions"], 448)?);
    let bands = text.dim_or(&["num_mel_bins"], 80)?;
    let (half, decoder) = halves(&text, false)?;
    let h = half.hidden;
    tie(config, &text, b, true)?;
    let spec = b.spec();
    (spec.hidden, spec.vocab, spec.max_context) = (h, vocab, Some(target));
    let kept = b.spec().dtype;
    encoder(b, "model.encoder.", &half, [source, bands], kept)?;
    // vLLM does not divide it (`models/whisper.py`).
    b.tensor(Role::Embedding, "model.decoder.embed_tokens.weight", &[vocab, h], Shard::Replicated);
    b.tensor(Role::Position, "model.decoder.embed_positions.weight", &[target, h], Shard::Replicated);
    decoder.decode(b, "model.decoder.layers.", source)?;
    decoder.norm(b, Role::Norm, "model.decoder.layer_norm");
    b.head("proj_out", vocab, h);
    Ok(())
}

/// The encoder: two convolutions over so many bands of sound, its table of so many positions in a type of its own.
pub(super) fn encoder(
    b: &mut SpecBuilder,
    at: &str,
    half: &Half,
    [positions, bands]: [u64; 2],
    kept: DType,
) -> Result<(), ModelError> {
    let (e, one, h) = (Role::Encoder, Shard::Replicated, half.hidden);
    for (name, inp) in [("conv1", bands), ("conv2", h)] {
        b.tensor(e, &format!("{at}{name}.weight"), &[h, inp, 3], one);
        b.tensor(e, &format!("{at}{name}.bias"), &[h], one);
    }
    b.tensor_typed(e, &format!("{at}embed_positions.weight"), &[positions, h], one, kept);
    // Each position sees two frames of sound.
    half.encode(b, &format!("{at}layers."), positions, bands.saturating_mul(2))?;
    half.norm(b, e, &format!("{at}layer_norm"));
    Ok(())
}
