//! LLaVA: a CLIP, SigLIP or Pixtral tower before a text model of any family without a tower of its own.
//!
//! Source: transformers `models/llava/{configuration,modeling}_llava.py`.

use super::{Family, llama, nested};
use crate::tower::{Tower, projector};
use crate::{Config, ModelError, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "llava",
    architectures: &["LlavaForConditionalGeneration"],
    model_types: &["llava"],
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
