//! Qwen2-VL: Qwen2 with a tower for images and video of any size.
//!
//! Source: transformers `models/qwen2_vl/{configuration,modeling}_qwen2_vl.py`. Published configs have
//! the text model's fields at the top; transformers 5 writes them into `text_config`.

use super::{Defaults, Family, decoder_or, qwen2};
use crate::builder::{columns, heads};
use crate::{Config, Encoder, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen2_vl",
    architectures: &["Qwen2VLForConditionalGeneration"],
    model_types: &["qwen2_vl"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let vision = vision(config)?;
    let width = vision.dim_or(&["embed_dim"], 1280)?;
    let ratio = vision.dim_or(&["mlp_ratio"], 4)?;
    let out = vision.dim_or(&["hidden_size"], 3584)?;
    let v = Visual::read(&vision, width, width.saturating_mul(ratio), out)?;
    text(config, b)?;
    let e = Role::Encoder;
    b.scope("visual.", |b| {
        v.patches(b);
        for i in 0..v.depth {
            b.scope(&format!("blocks.{i}."), |b| {
                v.norm(b, "norm1", true);
                v.norm(b, "norm2", true);
                v.attention(b);
                b.out_split(e, "mlp.fc1", [v.inner, width], true, columns(v.inner));
                b.in_split(e, "mlp.fc2", [width, v.inner], true, columns(v.inner));
                Ok(())
            })?;
        }
        v.norm(b, "merger.ln_q", true);
        v.merger(b);
        Ok(())
    })?;
    b.encoder(v.encoder());
    Ok(())
}

/// The text model of Qwen2-VL and Qwen2.5-VL.
pub(super) fn text(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let d = decoder_or(
        &text,
        b,
        Defaults {
            kv_heads: Some(8),
            ..Defaults::default()
        },
    )?;
    qwen2::stack(config, &text, b, &d, 80)
}

/// `vision_config`, which no default replaces.
pub(super) fn vision<'a>(config: &Config<'a>) -> Result<Config<'a>, ModelError> {
    config
        .object("vision_config")?
        .ok_or_else(|| ModelError::Missing {
            field: config.path_of("vision_config"),
            why: "it describes the vision tower",
        })
}

/// The sizes of a Qwen vision tower.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visual {
    pub(super) width: u64,
    pub(super) inner: u64,
    pub(super) text: u64,
    pub(super) depth: u64,
    pub(super) heads: u64,
    pub(super) channels: u64,
    pub(super) patch: u64,
    pub(super) frames: u64,
    pub(super) merge: u64,
}

impl Visual {
    /// The two generations call the widths by different names, and the rest by the same.
    pub(super) fn read(
        vision: &Config<'_>,
        width: u64,
        inner: u64,
        text: u64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            width,
            inner,
            text,
            depth: if vision.has("depth") {
                vision.layers(&["depth"])?
            } else {
                32
            },
            heads: vision.dim_or(&["num_heads"], 16)?,
            channels: vision.dim_or(&["in_channels", "in_chans"], 3)?,
            patch: vision.dim_or(&["patch_size", "spatial_patch_size"], 14)?,
            frames: vision.dim_or(&["temporal_patch_size"], 2)?,
            merge: vision.dim_or(&["spatial_merge_size"], 2)?,
        })
    }

    pub(super) fn patches(self, b: &mut SpecBuilder) {
        let shape = [
            self.width,
            self.channels,
            self.frames,
            self.patch,
            self.patch,
        ];
        b.tensor(
            Role::Encoder,
            "patch_embed.proj.weight",
            &shape,
            Shard::Replicated,
        );
    }

    pub(super) fn norm(self, b: &mut SpecBuilder, name: &str, bias: bool) {
        b.tensor(
            Role::Encoder,
            &format!("{name}.weight"),
            &[self.width],
            Shard::Replicated,
        );
        if bias {
            b.tensor(
                Role::Encoder,
                &format!("{name}.bias"),
                &[self.width],
                Shard::Replicated,
            );
        }
    }

    pub(super) fn attention(self, b: &mut SpecBuilder) {
        let (w, h) = (self.width, heads(self.heads));
        b.out_split(Role::Encoder, "attn.qkv", [3 * w, w], true, h);
        b.in_split(Role::Encoder, "attn.proj", [w, w], true, h);
    }

    /// Joins `merge` × `merge` patches into one token of the text model.
    pub(super) fn merger(self, b: &mut SpecBuilder) {
        let joined = self
            .width
            .saturating_mul(self.merge)
            .saturating_mul(self.merge);
        b.out_split(
            Role::Encoder,
            "merger.mlp.0",
            [joined, joined],
            true,
            columns(joined),
        );
        b.in_split(
            Role::Encoder,
            "merger.mlp.2",
            [self.text, joined],
            true,
            columns(joined),
        );
    }

    pub(super) fn encoder(self) -> Encoder {
        Encoder {
            hidden: self.width,
            layers: self.depth,
            intermediate: self.inner,
            patches: None,
            patch_elements: [self.channels, self.frames, self.patch, self.patch]
                .into_iter()
                .fold(1, u64::saturating_mul),
            tokens_per_image: None,
        }
    }
}
