//! Whisper: BART's layers over half a minute of sound, which two convolutions halve.
//!
//! Source: transformers `models/whisper/{configuration,modeling}_whisper.py`.

use super::bart::halves;
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
    let (encoder, decoder) = halves(&text, false)?;
    let (h, e, one) = (encoder.hidden, Role::Encoder, Shard::Replicated);
    tie(config, &text, b, true)?;
    let spec = b.spec();
    (spec.hidden, spec.vocab, spec.max_context) = (h, vocab, Some(target));
    for (name, inp) in [("conv1", bands), ("conv2", h)] {
        b.tensor(e, &format!("model.encoder.{name}.weight"), &[h, inp, 3], one);
        b.tensor(e, &format!("model.encoder.{name}.bias"), &[h], one);
    }
    b.tensor(e, "model.encoder.embed_positions.weight", &[source, h], one);
    // Each position sees two frames of sound.
    encoder.encode(b, "model.encoder.layers.", source, bands.saturating_mul(2))?;
    encoder.norm(b, e, "model.encoder.layer_norm");
    b.embedding("model.decoder.embed_tokens.weight", vocab, h);
    b.tensor(Role::Position, "model.decoder.embed_positions.weight", &[target, h], one);
    decoder.decode(b, "model.decoder.layers.", source)?;
    decoder.norm(b, Role::Norm, "model.decoder.layer_norm");
    b.head("proj_out", vocab, h);
    Ok(())
}
