//! LLaVA, LLaVA-NeXT and LLaVA-OneVision: a CLIP, SigLIP or Pixtral tower before a text model of any family without a
//! tower of its own; the later ones cut images into tiles and mark the ends of their rows.
//!
//! Source: transformers `models/llava`, `models/llava_next` and `models/llava_onevision` (`{configuration,modeling}_*.py`).

use super::{Family, llama, nested};
use crate::tower::{Tower, projector};
use crate::{Config, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "llava",
    architectures: &[
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
    ],
    model_types: &["llava", "llava_next", "llava_onevision"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let tower = Tower::read(config, "clip_vision_model")?;
    let bias = config.flag("multimodal_projector_bias", true)?;
    b.scope("language_model.", |b| nested(config, b, llama::FAMILY))?;
    let hidden = b.spec().hidden;
    tower.tensors(b)?;
    let features = tower.width().saturating_mul(feature_layers(config));
    projector(b, features, hidden, bias)?;
    // The default strategy drops the tower's first token.
    let first = u64::from(config.str("vision_feature_select_strategy") != Some("full"));
    let tokens = tower.tokens().map(|n| n.saturating_sub(first).max(1));
    let tiled = ["LlavaNext", "LlavaOnevision", "llava_next", "llava_onevision"];
    let class = config.architecture().or(config.str("model_type")).unwrap_or_default();
    if tiled.iter().any(|name| class.starts_with(name)) {
        b.tensor(Role::Encoder, "image_newline", &[hidden], Shard::Replicated);
        // Of each tile; how many there are follows from the image.
        b.encoder(tower.encoder(None));
        return Ok(());
    }
    b.encoder(tower.encoder(tokens));
    Ok(())
}

/// The features of how many tower layers are joined: a list where there is more than one.
fn feature_layers(config: &Config<'_>) -> u64 {
    let listed = config
        .get("vision_feature_layer")
        .and_then(serde_json::Value::as_array);
    listed.map_or(1, |l| u64::try_from(l.len()).unwrap_or(1).max(1))
}
