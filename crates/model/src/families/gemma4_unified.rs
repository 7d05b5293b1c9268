//! Gemma 4 12B: Gemma 4's text model with images' patches and sound read by one matrix each, without a tower.
//!
//! Source: transformers `models/gemma4_unified/{configuration,modeling}_gemma4_unified.py`.

use super::{Family, gemma4};
use crate::{Config, Encoder, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "gemma4_unified",
    architectures: &["Gemma4UnifiedForConditionalGeneration"],
    model_types: &["gemma4_unified", "gemma4_unified_text"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    // No embeddings in each layer; a window of its own where the config is silent.
    let silent = gemma4::Silent { each: 0, window: 1024, max_context: 262_144 };
    if !config.has("text_config") {
        return gemma4::text(config, b, "model.", silent);
    }
    gemma4::text(config, b, "model.language_model.", silent)?;
    let hidden = b.spec().hidden;
    if let Some(audio) = config.object("audio_config")? {
        let width = audio.dim_or(&["audio_embed_dim"], 640)?;
        b.whole(Role::Encoder, "model.embed_audio.embedding_projection", [hidden, width], false);
    }
    match config.object("vision_config")? {
        Some(vision) => patches(&vision, b, hidden),
        None => Ok(()),
    }
}

/// A square of patches becomes one token: two norms around a matrix, a table of positions by row and column, a norm.
fn patches(vision: &Config<'_>, b: &mut SpecBuilder, hidden: u64) -> Result<(), ModelError> {
    let side = vision.dim_or(&["patch_size"], 16)?.saturating_mul(vision.dim_or(&["pooling_kernel_size"], 3)?);
    let (read, width) = (side.saturating_mul(side).saturating_mul(3), vision.dim_or(&["mm_embed_dim"], 3840)?);
    let rows = vision.dim_or(&["mm_posemb_size"], 1120)?;
    let out = vision.dim_or(&["output_proj_dims"], width)?;
    b.scope("model.vision_embedder.", |b| {
        b.whole(Role::Encoder, "patch_dense", [width, read], true);
        for (name, width) in [("patch_ln1", read), ("patch_ln2", width), ("pos_norm", width)] {
            for part in ["weight", "bias"] {
                b.tensor(Role::Encoder, &format!("{name}.{part}"), &[width], Shard::Replicated);
            }
        }
        b.tensor(Role::Encoder, "pos_embedding", &[rows, 2, width], Shard::Replicated);
        Ok(())
    })?;
    b.whole(Role::Encoder, "model.embed_vision.embedding_projection", [hidden, out], false);
    b.encoder(Encoder {
        hidden: width, layers: 0, intermediate: 0, patches: None, patch_elements: read, tokens_per_image: None,
    });
    Ok(())
}
