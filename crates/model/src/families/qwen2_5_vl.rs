//! Qwen2.5-VL: Qwen2.5 with a tower of gated feed-forwards and windowed attention.
//!
//! Source: transformers `models/qwen2_5_vl/{configuration,modeling}_qwen2_5_vl.py`.

use super::Family;
use super::qwen2_vl::{Visual, text, vision};
use crate::{Config, ModelError, Role, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen2_5_vl",
    architectures: &["Qwen2_5_VLForConditionalGeneration"],
    model_types: &["qwen2_5_vl"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let vision = vision(config)?;
    let width = vision.dim_or(&["hidden_size"], 3584)?;
    let inner = vision.dim_or(&["intermediate_size"], 3420)?;
    let out = vision.dim_or(&["out_hidden_size"], 3584)?;
    let v = Visual::read(&vision, width, inner, out)?;
    text(config, b)?;
    b.scope("visual.", |b| {
        v.patches(b);
        for i in 0..v.depth {
            b.scope(&format!("blocks.{i}."), |b| {
                v.norm(b, "norm1", false);
                v.norm(b, "norm2", false);
                v.attention(b);
                b.gated_mlp(Role::Encoder, "mlp.", v.width, v.inner, true);
                Ok(())
            })?;
        }
        v.norm(b, "merger.ln_q", false);
        v.merger(b);
        Ok(())
    })?;
    b.encoder(v.encoder());
    Ok(())
}
