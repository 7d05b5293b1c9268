//! GLM-4.1V and GLM-4.5V: GLM-4, dense or with experts, behind a tower that takes images at their own size.
//!
//! Source: transformers `models/glm4v` and `models/glm4v_moe` (`{configuration,modeling}_*.py`).

use super::{Family, glm4, glm4_moe, nested};
use crate::builder::{columns, heads};
use crate::tower::vision;
use crate::{Config, Encoder, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "glm4v",
    architectures: &["Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration"],
    model_types: &["glm4v", "glm4v_moe"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = if config.text()?.has("n_routed_experts") { glm4_moe::FAMILY } else { glm4::FAMILY };
    b.renamed(["model.", "model.language_model."], |b| nested(config, b, text))?;
    let vision = vision(config)?;
    let (e, one) = (Role::Encoder, Shard::Replicated);
    let w = vision.dim_or(&["hidden_size"], 1536)?;
    let depth = if vision.has("depth") { vision.layers(&["depth"])? } else { 24 };
    let count = vision.dim_or(&["num_heads", "num_attention_heads"], 12)?;
    let out = vision.dim_or(&["out_hidden_size"], 4096)?;
    let inner = vision.dim_or(&["intermediate_size"], 13_696)?;
    let (image, patch) = (vision.dim_or(&["image_size"], 336)?, vision.dim_or(&["patch_size"], 14)?);
    let (merge, frames) = (vision.dim_or(&["spatial_merge_size"], 2)?, vision.dim_or(&["temporal_patch_size"], 2)?);
    let channels = vision.dim_or(&["in_channels"], 3)?;
    let bias = vision.flag("attention_bias", false)?;
    let positions = (image / patch).saturating_mul(image / patch);
    b.scope("model.visual.", |b| {
        b.tensor(e, "embeddings.position_embedding.weight", &[positions, w], one);
        b.tensor(e, "patch_embed.proj.weight", &[w, channels, frames, patch, patch], one);
        b.tensor(e, "patch_embed.proj.bias", &[w], one);
        for name in ["post_conv_layernorm", "post_layernorm"] {
            b.tensor(e, &format!("{name}.weight"), &[w], one);
        }
        for i in 0..depth {
            b.scope(&format!("blocks.{i}."), |b| {
                b.out_split(e, "attn.qkv", [3 * w, w], bias, heads(count));
                b.in_split(e, "attn.proj", [w, w], false, heads(count));
                b.gated_mlp(e, "mlp.", w, out, false);
                b.tensor(e, "norm1.weight", &[w], one);
                b.tensor(e, "norm2.weight", &[w], one);
                Ok(())
            })?;
        }
        b.tensor(e, "downsample.weight", &[out, w, merge, merge], one);
        b.tensor(e, "downsample.bias", &[out], one);
        b.out_split(e, "merger.proj", [out, out], false, columns(out));
        for part in ["weight", "bias"] {
            b.tensor(e, &format!("merger.post_projection_norm.{part}"), &[out], one);
        }
        b.gated_mlp(e, "merger.", out, inner, false);
        Ok(())
    })?;
    b.encoder(Encoder {
        hidden: w,
        layers: depth,
        intermediate: out,
        patches: None,
        patch_elements: [channels, frames, patch, patch].into_iter().fold(1, u64::saturating_mul),
        tokens_per_image: None,
    });
    Ok(())
}
