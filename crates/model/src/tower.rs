//! Vision towers that several families share: CLIP, SigLIP and Pixtral.
//!
//! Source: transformers `models/{clip,siglip,pixtral}/modeling_*.py`. Names are those of published
//! checkpoints, which keep CLIP and SigLIP under `vision_model`; transformers 5 drops that part when
//! it writes a model that it did not load.

pub(crate) mod conformer;
pub(crate) mod gemma4;
pub(crate) mod mobilenet_v5;
pub(crate) mod phi4;
pub(crate) mod step;

use crate::builder::{columns, heads};
use crate::config::shorten;
use crate::{Config, Encoder, ModelError, Role, Shard, SpecBuilder};

/// The tower of a wrapper, by the `model_type` of its `vision_config`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tower {
    /// With a class token.
    Clip(Body),
    /// Without one.
    Siglip(Siglip),
    /// Images of any shape up to a largest.
    Pixtral(Body),
}

impl Tower {
    /// Reads `vision_config`; `default` is its type where it states none.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`] for another tower, which is refused, not left out.
    pub(crate) fn read(config: &Config<'_>, default: &str) -> Result<Self, ModelError> {
        let vision = vision(config)?;
        match vision.str("model_type").unwrap_or(default) {
            "clip_vision_model" => Ok(Self::Clip(Body::read(&vision)?)),
            "siglip_vision_model" => Ok(Self::Siglip(Siglip::read(config)?)),
            "pixtral" => Ok(Self::Pixtral(Body::read(&vision)?)),
            other => Err(ModelError::UnknownArchitecture {
                architecture: format!("with vision tower {}", shorten(other)),
                missing: "the tensors of that tower are not in a config, only in its code"
                    .to_owned(),
            }),
        }
    }

    fn body(&self) -> Body {
        match self {
            Self::Clip(b) | Self::Pixtral(b) => *b,
            Self::Siglip(s) => s.body,
        }
    }

    /// Hidden size.
    pub(crate) fn width(&self) -> u64 {
        self.body().hidden
    }

    /// Tower tokens of an image of the size that the tower takes; `None` where that varies.
    pub(crate) fn tokens(&self) -> Option<u64> {
        match self {
            Self::Clip(b) => Some(b.patches() + 1),
            Self::Siglip(s) => Some(s.body.patches()),
            Self::Pixtral(_) => None,
        }
    }

    /// All tensors, `vision_tower` before their names.
    pub(crate) fn tensors(&self, b: &mut SpecBuilder) -> Result<(), ModelError> {
        match self {
            Self::Clip(body) => b.scope("vision_tower.vision_model.", |b| clip(b, body)),
            Self::Siglip(s) => b.scope("vision_tower.vision_model.", |b| s.tensors(b)),
            Self::Pixtral(body) => b.scope("vision_tower.", |b| pixtral(b, body)),
        }
    }

    /// What its activations depend on.
    pub(crate) fn encoder(&self, tokens_per_image: Option<u64>) -> Encoder {
        let body = self.body();
        Encoder {
            patches: Some(self.tokens().unwrap_or(body.patches())),
            ..body.encoder(tokens_per_image)
        }
    }
}

/// The two-layer projector of LLaVA and Mistral 3.
pub(crate) fn projector(
    b: &mut SpecBuilder,
    features: u64,
    hidden: u64,
    bias: bool,
) -> Result<(), ModelError> {
    b.scope("multi_modal_projector.", |b| {
        let cols = columns(hidden);
        b.out_split(Role::Encoder, "linear_1", [hidden, features], bias, cols);
        b.in_split(Role::Encoder, "linear_2", [hidden, hidden], bias, cols);
        Ok(())
    })
}

/// The sizes that every such tower has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body {
    pub(crate) hidden: u64,
    pub(crate) layers: u64,
    pub(crate) inner: u64,
    pub(crate) heads: u64,
    pub(crate) image: u64,
    pub(crate) patch: u64,
    pub(crate) channels: u64,
}

impl Body {
    pub(crate) fn read(vision: &Config<'_>) -> Result<Self, ModelError> {
        let heads = ["num_attention_heads", "attention_heads"];
        let it = Self {
            hidden: vision.dim(&["hidden_size"], "it is the width of the vision tower")?,
            layers: vision.layers(&["num_hidden_layers"])?,
            inner: vision.dim(&["intermediate_size"], "it sizes the tower's feed-forward")?,
            heads: vision.dim(&heads, "it decides how the tower splits")?,
            image: vision.dim(&["image_size"], "it gives the number of patches")?,
            patch: vision.dim(&["patch_size"], "it gives the number of patches")?,
            channels: vision.dim_or(&["num_channels"], 3)?,
        };
        if it.image < it.patch {
            return Err(vision.reject("image_size", "expected at least one patch"));
        }
        Ok(it)
    }

    pub(crate) fn patches(self) -> u64 {
        (self.image / self.patch).saturating_mul(self.image / self.patch)
    }

    pub(crate) fn encoder(self, tokens_per_image: Option<u64>) -> Encoder {
        Encoder {
            hidden: self.hidden,
            layers: self.layers,
            intermediate: self.inner,
            patches: Some(self.patches()),
            patch_elements: [self.channels, self.patch, self.patch]
                .into_iter()
                .fold(1, u64::saturating_mul),
            tokens_per_image,
        }
    }

    pub(crate) fn norm(self, b: &mut SpecBuilder, name: &str, bias: bool) {
        let mut part = |part: &str| {
            let name = format!("{name}.{part}");
            b.tensor(Role::Encoder, &name, &[self.hidden], Shard::Replicated);
        };
        part("weight");
        if bias {
            part("bias");
        }
    }

    fn patch_weight(self, b: &mut SpecBuilder, name: &str) {
        let shape = [self.hidden, self.channels, self.patch, self.patch];
        b.tensor(Role::Encoder, name, &shape, Shard::Replicated);
    }

    /// The layers of CLIP and SigLIP.
    fn stack(self, b: &mut SpecBuilder) -> Result<(), ModelError> {
        let (e, h, inner) = (Role::Encoder, self.hidden, self.inner);
        let split = heads(self.heads);
        for i in 0..self.layers {
            b.scope(&format!("encoder.layers.{i}."), |b| {
                for name in ["q_proj", "k_proj", "v_proj"] {
                    b.out_split(e, &format!("self_attn.{name}"), [h, h], true, split);
                }
                b.in_split(e, "self_attn.out_proj", [h, h], true, split);
                self.norm(b, "layer_norm1", true);
                self.norm(b, "layer_norm2", true);
                b.out_split(e, "mlp.fc1", [inner, h], true, columns(inner));
                b.in_split(e, "mlp.fc2", [h, inner], true, columns(inner));
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn clip(b: &mut SpecBuilder, body: &Body) -> Result<(), ModelError> {
    let (e, one) = (Role::Encoder, Shard::Replicated);
    b.tensor(e, "embeddings.class_embedding", &[body.hidden], one);
    body.patch_weight(b, "embeddings.patch_embedding.weight");
    let rows = [body.patches() + 1, body.hidden];
    b.tensor(e, "embeddings.position_embedding.weight", &rows, one);
    body.norm(b, "pre_layrnorm", true);
    body.stack(b)?;
    body.norm(b, "post_layernorm", true);
    Ok(())
}

fn pixtral(b: &mut SpecBuilder, body: &Body) -> Result<(), ModelError> {
    let (e, h, inner) = (Role::Encoder, body.hidden, body.inner);
    let split = heads(body.heads);
    body.patch_weight(b, "patch_conv.weight");
    body.norm(b, "ln_pre", false);
    for i in 0..body.layers {
        b.scope(&format!("transformer.layers.{i}."), |b| {
            body.norm(b, "attention_norm", false);
            b.gated_mlp(e, "feed_forward.", h, inner, false);
            for name in ["q_proj", "k_proj", "v_proj"] {
                b.out_split(e, &format!("attention.{name}"), [h, h], false, split);
            }
            b.in_split(e, "attention.o_proj", [h, h], false, split);
            body.norm(b, "ffn_norm", false);
            Ok(())
        })?;
    }
    Ok(())
}

/// SigLIP, with or without its pooling head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Siglip {
    pub(crate) body: Body,
    pooling: bool,
    /// Rows of the table of positions where images keep their own size (`SigLIP` 2), whose patches come as rows.
    positions: Option<u64>,
}

impl Siglip {
    /// Reads the `vision_config` of a wrapper.
    ///
    /// # Errors
    /// [`ModelError`] where a size is absent or unusable.
    pub(crate) fn read(config: &Config<'_>) -> Result<Self, ModelError> {
        let vision = vision(config)?;
        Ok(Self {
            body: Body::read(&vision)?,
            pooling: vision.flag("vision_use_head", true)?,
            positions: None,
        })
    }

    /// One of these sizes with a pooling head.
    pub(crate) const fn pooled(body: Body) -> Self {
        Self {
            body,
            pooling: true,
            positions: None,
        }
    }

    /// Reads a `vision_config` whose tower never has a pooling head.
    ///
    /// # Errors
    /// As [`Siglip::read`].
    pub(crate) fn read_bare(vision: &Config<'_>) -> Result<Self, ModelError> {
        Ok(Self {
            body: Body::read(vision)?,
            pooling: false,
            positions: None,
        })
    }

    /// Reads the `vision_config` of `SigLIP` 2 for images of any size.
    ///
    /// # Errors
    /// As [`Siglip::read`].
    pub(crate) fn read_unsized(vision: &Config<'_>) -> Result<Self, ModelError> {
        let patch = vision.dim_or(&["patch_size"], 16)?;
        let body = Body {
            hidden: vision.dim_or(&["hidden_size"], 768)?,
            layers: vision.layers(&["num_hidden_layers"])?,
            inner: vision.dim_or(&["intermediate_size"], 3072)?,
            heads: vision.dim_or(&["num_attention_heads"], 12)?,
            image: patch,
            patch,
            channels: vision.dim_or(&["num_channels"], 3)?,
        };
        Ok(Self {
            body,
            pooling: vision.flag("vision_use_head", true)?,
            positions: Some(vision.dim_or(&["num_patches"], 256)?),
        })
    }

    /// What its activations depend on.
    pub(crate) fn encoder(&self, tokens_per_image: Option<u64>) -> Encoder {
        let encoder = self.body.encoder(tokens_per_image);
        Encoder {
            patches: encoder.patches.filter(|_| self.positions.is_none()),
            ..encoder
        }
    }

    /// All tensors, without a prefix.
    pub(crate) fn tensors(&self, b: &mut SpecBuilder) -> Result<(), ModelError> {
        let (e, one, body) = (Role::Encoder, Shard::Replicated, self.body);
        let (h, inner) = (body.hidden, body.inner);
        let patch = "embeddings.patch_embedding.weight";
        match self.positions {
            Some(_) => b.tensor(e, patch, &[h, body.encoder(None).patch_elements], one),
            None => body.patch_weight(b, patch),
        }
        b.tensor(e, "embeddings.patch_embedding.bias", &[h], one);
        let rows = self.positions.unwrap_or(body.patches());
        b.tensor(e, "embeddings.position_embedding.weight", &[rows, h], one);
        body.stack(b)?;
        body.norm(b, "post_layernorm", true);
        if self.pooling {
            b.tensor(e, "head.probe", &[1, 1, h], one);
            b.tensor(e, "head.attention.in_proj_weight", &[3 * h, h], one);
            b.tensor(e, "head.attention.in_proj_bias", &[3 * h], one);
            b.whole(e, "head.attention.out_proj", [h, h], true);
            body.norm(b, "head.layernorm", true);
            b.whole(e, "head.mlp.fc1", [inner, h], true);
            b.whole(e, "head.mlp.fc2", [h, inner], true);
        }
        Ok(())
    }
}

/// `vision_config`, which no default replaces.
pub(crate) fn vision<'a>(config: &Config<'a>) -> Result<Config<'a>, ModelError> {
    config
        .object("vision_config")?
        .ok_or_else(|| ModelError::Missing {
            field: config.path_of("vision_config"),
            why: "it describes the vision tower",
        })
}
