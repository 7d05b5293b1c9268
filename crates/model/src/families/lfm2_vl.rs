//! LFM2-VL: LFM2 behind SigLIP 2, which takes images at their own size and whose patches are joined.
//!
//! Source: transformers `models/lfm2_vl/{configuration,modeling}_lfm2_vl.py`, `models/siglip2`.

use super::{Family, lfm2};
use crate::builder::columns;
use crate::tower::{Siglip, vision};
use crate::{Config, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "lfm2_vl",
    architectures: &["Lfm2VlForConditionalGeneration"],
    model_types: &["lfm2_vl", "lfm2-vl"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    if config.object("text_config")?.is_none() {
        return Err(config.reject("text_config", "expected the text model's fields"));
    }
    lfm2::text(config, b, "model.language_model.")?;
    let hidden = b.spec().hidden;
    let tower = Siglip::read_unsized(&vision(config)?)?;
    b.scope("model.vision_tower.vision_model.", |b| tower.tensors(b))?;
    let factor = config.dim_or(&["downsample_factor"], 2)?;
    let joined = tower.body.hidden.saturating_mul(factor).saturating_mul(factor);
    let inner = config.dim_or(&["projector_hidden_size"], 2560)?;
    let bias = config.flag("projector_bias", true)?;
    b.scope("model.multi_modal_projector.", |b| {
        let (e, cols) = (Role::Encoder, columns(inner));
        if config.flag("projector_use_layernorm", true)? {
            b.tensor(e, "layer_norm.weight", &[joined], Shard::Replicated);
            b.tensor(e, "layer_norm.bias", &[joined], Shard::Replicated);
        }
        b.out_split(e, "linear_1", [inner, joined], bias, cols);
        b.in_split(e, "linear_2", [hidden, inner], bias, cols);
        Ok(())
    })?;
    b.encoder(tower.encoder(None));
    Ok(())
}
