//! Qwen2.5-VL: Qwen 2.5 behind a vision tower with windows, images of any size.
//!
//! Source: transformers `models/qwen2_5_vl/modeling_qwen2_5_vl.py`; names as in the published checkpoints.

use super::{Family, qwen2};
use crate::{Config, Encoder, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen2_5_vl",
    architectures: &["Qwen2_5_VLForConditionalGeneration"],
    model_types: &["qwen2_5_vl"],
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    qwen2::lower_at(config, b, "model.", "lm_head")?;
    let v = config.object("vision_config")?.ok_or_else(|| ModelError::Missing {
        field: config.path_of("vision_config"),
        why: "it sizes the vision tower",
    })?;
    let width = v.dim_or(&["hidden_size"], 1280)?;
    let depth = v.dim_or(&["depth"], 32)?;
    let inner = v.dim_or(&["intermediate_size"], 3420)?;
    let out = v.dim_or(&["out_hidden_size"], 3584)?;
    let patch = v.dim_or(&["patch_size", "spatial_patch_size"], 14)?;
    let channels = v.dim_or(&["in_channels", "in_chans"], 3)?;
    let frames = v.dim_or(&["temporal_patch_size"], 2)?;
    let merge = v.dim_or(&["spatial_merge_size"], 2)?;
    let merged = width.saturating_mul(merge).saturating_mul(merge);
    let en = Role::Encoder;
    b.scope("visual.", |b| {
        let shape = [width, channels, frames, patch, patch];
        b.tensor(en, "patch_embed.proj.weight", &shape, Shard::Replicated);
        for i in 0..depth.min(4096) {
            b.scope(&format!("blocks.{i}."), |b| {
                b.tensor(en, "norm1.weight", &[width], Shard::Replicated);
                b.tensor(en, "norm2.weight", &[width], Shard::Replicated);
                b.whole(en, "attn.qkv", [3 * width, width], true);
                b.whole(en, "attn.proj", [width, width], true);
                b.whole(en, "mlp.gate_proj", [inner, width], true);
                b.whole(en, "mlp.up_proj", [inner, width], true);
                b.whole(en, "mlp.down_proj", [width, inner], true);
                Ok(())
            })?;
        }
        b.tensor(en, "merger.ln_q.weight", &[width], Shard::Replicated);
        b.whole(en, "merger.mlp.0", [merged, merged], true);
        b.whole(en, "merger.mlp.2", [out, merged], true);
        Ok(())
    })?;
    b.encoder(Encoder {
        hidden: width,
        layers: depth,
        intermediate: inner,
        patches: None,
        patch_elements: channels.saturating_mul(frames).saturating_mul(patch).saturating_mul(patch),
        tokens_per_image: None,
    });
    Ok(())
}
