//! The eyes of Step 3.7: a tower whose patches two convolutions join, by four in each direction.
//!
//! Source: transformers `models/step3p7/modeling_step3p7.py`.

use crate::builder::{columns, heads, scaled};
use crate::{Config, Encoder, ModelError, Role, Shard, SpecBuilder};

/// What the feed-forward is wider by, where the config does not say.
const RATIO: f64 = 8960.0 / 1536.0;

/// All tensors with their projection to the text model's width, and the encoder.
///
/// # Errors
/// [`ModelError`] where a size is unusable.
pub(crate) fn tensors(
    vision: &Config<'_>,
    b: &mut SpecBuilder,
    bias: bool,
) -> Result<(), ModelError> {
    let (e, one, hidden) = (Role::Encoder, Shard::Replicated, b.spec().hidden);
    let w = vision.dim_or(&["width", "hidden_size"], 1536)?;
    let keys = ["layers", "num_hidden_layers"];
    let layers = if keys.iter().any(|k| vision.has(k)) {
        vision.layers(&keys)?
    } else {
        47
    };
    let split = heads(vision.dim_or(&["heads", "num_attention_heads"], 16)?);
    let (image, patch) = (
        vision.dim_or(&["image_size"], 728)?,
        vision.dim_or(&["patch_size"], 14)?,
    );
    let inner = scaled(w, vision.positive("mlp_ratio")?.unwrap_or(RATIO));
    let (side, channels) = (image / patch, vision.dim_or(&["num_channels"], 3)?);
    b.scope("vision_model.", |b| {
        b.tensor(e, "conv1.weight", &[w, channels, patch, patch], one);
        b.tensor(
            e,
            "positional_embedding",
            &[side.saturating_mul(side), w],
            one,
        );
        let norm = |b: &mut SpecBuilder, name: &str| {
            for part in ["weight", "bias"] {
                b.tensor(e, &format!("{name}.{part}"), &[w], one);
            }
        };
        norm(b, "ln_pre");
        for i in 0..layers {
            b.scope(&format!("transformer.resblocks.{i}."), |b| {
                norm(b, "ln_1");
                norm(b, "ln_2");
                b.tensor(e, "ls_1.gamma", &[w], one);
                b.tensor(e, "ls_2.gamma", &[w], one);
                b.tensor(e, "attn.in_proj_weight", &[3 * w, w], split);
                b.tensor(e, "attn.in_proj_bias", &[3 * w], split);
                b.in_split(e, "attn.out_proj", [w, w], true, split);
                b.out_split(e, "mlp.c_fc", [inner, w], true, columns(inner));
                b.in_split(e, "mlp.c_proj", [w, inner], true, columns(inner));
                Ok(())
            })?;
        }
        for (name, [out, inp]) in [
            ("vit_downsampler1", [2 * w, w]),
            ("vit_downsampler2", [4 * w, 2 * w]),
        ] {
            b.tensor(e, &format!("{name}.weight"), &[out, inp, 3, 3], one);
            b.tensor(e, &format!("{name}.bias"), &[out], one);
        }
        Ok(())
    })?;
    b.whole(e, "vit_large_projector", [hidden, 4 * w], bias);
    b.encoder(Encoder {
        hidden: w,
        layers,
        intermediate: inner,
        patches: Some(side.saturating_mul(side)),
        patch_elements: [channels, patch, patch]
            .into_iter()
            .fold(1, u64::saturating_mul),
        tokens_per_image: Some(side.div_ceil(4).saturating_mul(side.div_ceil(4))),
    });
    Ok(())
}
