//! Aya Vision and Command A Vision: Command R7B behind SigLIP, four patches of which are joined before a gated projector.
//!
//! Source: transformers `models/aya_vision` and `models/cohere2_vision` (`{configuration,modeling}_*.py`).

use super::{Family, cohere, nested};
use crate::builder::columns;
use crate::tower::Siglip;
use crate::{Config, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "aya_vision",
    architectures: &["AyaVisionForConditionalGeneration", "Cohere2VisionForConditionalGeneration"],
    model_types: &["aya_vision", "cohere2_vision"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let is_aya = config.str("model_type") == Some("aya_vision")
        || config.architecture() == Some("AyaVisionForConditionalGeneration");
    let tower = Siglip::read(config)?;
    let factor = config.dim_or(&["downsample_factor"], 2)?;
    let joined = tower.body.hidden.saturating_mul(factor).saturating_mul(factor);
    // The newer class keeps everything under one name more.
    let [text, outer] = if is_aya { ["language_model.model.", ""] } else { ["model.language_model.", "model."] };
    b.renamed(["model.", text], |b| nested(config, b, cohere::FAMILY))?;
    let hidden = b.spec().hidden;
    let inner = config.dim_or(&["alignment_intermediate_size"], if is_aya { hidden } else { 36_864 })?;
    b.scope(&format!("{outer}vision_tower.vision_model."), |b| tower.tensors(b))?;
    b.scope(&format!("{outer}multi_modal_projector."), |b| {
        let e = Role::Encoder;
        if is_aya {
            for part in ["weight", "bias"] {
                b.tensor(e, &format!("layernorm.{part}"), &[joined], Shard::Replicated);
            }
        }
        // The first half gates the second.
        b.out_split(e, "linear_1", [inner, joined], true, columns(inner));
        b.in_split(e, "linear_2", [hidden, inner / 2], true, columns(inner / 2));
        Ok(())
    })?;
    b.encoder(tower.encoder(Some((tower.body.patches() / (factor * factor)).max(1))));
    Ok(())
}
