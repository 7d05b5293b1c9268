//! Idefics 3 and SmolVLM: LLaMA behind SigLIP without its pooling, whose patches are joined and projected by one matrix.
//!
//! Source: transformers `models/idefics3` and `models/smolvlm` (`{configuration,modeling}_*.py`).

use super::{Family, llama, nested};
use crate::tower::{Siglip, vision};
use crate::{Config, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "idefics3",
    architectures: &["Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"],
    model_types: &["idefics3", "smolvlm"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let tower = Siglip::read_bare(&vision(config)?)?;
    let factor = config.dim_or(&["scale_factor"], 2)?;
    let joined = tower.body.hidden.saturating_mul(factor).saturating_mul(factor);
    b.renamed(["model.", "model.text_model."], |b| nested(config, b, llama::FAMILY))?;
    let hidden = b.spec().hidden;
    b.scope("model.vision_model.", |b| tower.tensors(b))?;
    b.whole(Role::Encoder, "model.connector.modality_projection.proj", [hidden, joined], false);
    b.encoder(tower.encoder(Some((tower.body.patches() / (factor * factor)).max(1))));
    Ok(())
}
