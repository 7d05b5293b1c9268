//! PaliGemma 1 and 2: Gemma behind SigLIP without its pooling, and one matrix between them.
//!
//! Source: transformers `models/paligemma/{configuration,modeling}_paligemma.py`.

use super::{Family, gemma, nested};
use crate::tower::{Siglip, vision};
use crate::{Config, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "paligemma",
    architectures: &["PaliGemmaForConditionalGeneration"],
    model_types: &["paligemma"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let tower = Siglip::read_bare(&vision(config)?)?;
    b.scope("language_model.", |b| nested(config, b, gemma::FAMILY))?;
    let out = config.dim_or(&["projection_dim"], 2048)?;
    b.scope("vision_tower.vision_model.", |b| tower.tensors(b))?;
    b.whole(Role::Encoder, "multi_modal_projector.linear", [out, tower.body.hidden], true);
    b.encoder(tower.encoder(Some(tower.body.patches())));
    Ok(())
}
