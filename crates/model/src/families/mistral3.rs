//! Mistral Small 3.1 and later: a Pixtral tower whose patches are merged before the projector.
//!
//! Source: transformers `models/mistral3/{configuration,modeling}_mistral3.py`.

use super::{Family, mistral, nested};
use crate::tower::{Tower, projector};
use crate::{Config, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mistral3",
    architectures: &["Mistral3ForConditionalGeneration"],
    model_types: &["mistral3"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let tower = Tower::read(config, "pixtral")?;
    let bias = config.flag("multimodal_projector_bias", false)?;
    let merge = config.dim_or(&["spatial_merge_size"], 2)?;
    b.scope("language_model.", |b| nested(config, b, mistral::FAMILY))?;
    let hidden = b.spec().hidden;
    let width = tower.width();
    tower.tensors(b)?;
    b.scope("multi_modal_projector.", |b| {
        b.tensor(Role::Encoder, "norm.weight", &[width], Shard::Replicated);
        let merged = width.saturating_mul(merge).saturating_mul(merge);
        b.whole(
            Role::Encoder,
            "patch_merger.merging_layer",
            [width, merged],
            false,
        );
        Ok(())
    })?;
    projector(b, width, hidden, bias)?;
    b.encoder(tower.encoder(None));
    Ok(())
}
