//! Kimi K2.5 and Kimi-VL: DeepSeek-V3's text model behind a tower that takes images at their own size (MoonViT).
//!
//! Source: transformers `models/kimi_k25/{configuration,modeling}_kimi_k25.py` and, for published names,
//! `conversion_mapping.py`; Kimi-VL, which transformers does not know, from vLLM `models/kimi_vl.py` and
//! `models/moonvit.py`: the same tensors but for the projector's names.

use super::{Family, deepseek, nested};
use crate::builder::{columns, heads};
use crate::tower::vision;
use crate::{Config, Encoder, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "kimi_k25",
    architectures: &[
        "KimiK25ForConditionalGeneration",
        "Kimi_K25ForConditionalGeneration",
        "KimiVLForConditionalGeneration",
    ],
    model_types: &["kimi_k25", "kimi_vl"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    b.scope("language_model.", |b| nested(config, b, deepseek::FAMILY))?;
    let hidden = b.spec().hidden;
    let vision = vision(config)?;
    let v = Tower::read(&vision)?;
    b.scope("vision_tower.", |b| v.tensors(b))?;
    let is_vl = config.str("model_type") == Some("kimi_vl")
        || config.architecture() == Some("KimiVLForConditionalGeneration");
    let [scope, first, second] = if is_vl {
        ["multi_modal_projector.", "linear_1", "linear_2"]
    } else {
        ["mm_projector.", "proj.0", "proj.2"]
    };
    let joined = v.hidden.saturating_mul(v.merged);
    b.scope(scope, |b| {
        v.norm(b, "pre_norm");
        b.out_split(Role::Encoder, first, [joined, joined], true, columns(joined));
        b.in_split(Role::Encoder, second, [hidden, joined], true, columns(joined));
        Ok(())
    })?;
    b.encoder(Encoder {
        hidden: v.hidden,
        layers: v.layers,
        intermediate: v.inner,
        patches: None,
        patch_elements: v.patch.saturating_mul(v.patch).saturating_mul(3),
        tokens_per_image: None,
    });
    Ok(())
}

/// MoonViT, under the field names of either model.
#[derive(Clone, Copy, Debug)]
struct Tower {
    hidden: u64,
    layers: u64,
    inner: u64,
    heads: u64,
    patch: u64,
    positions: [u64; 2],
    /// Patches that become one token.
    merged: u64,
}

impl Tower {
    fn read(vision: &Config<'_>) -> Result<Self, ModelError> {
        let merge = vision.numbers("merge_kernel_size")?.unwrap_or_else(|| vec![2, 2]);
        let side = |name: [&'static str; 2]| vision.dim_or(&name, 64);
        Ok(Self {
            hidden: vision.dim_or(&["hidden_size", "vt_hidden_size"], 1152)?,
            layers: vision.dim_or(&["num_hidden_layers", "vt_num_hidden_layers"], 27)?,
            inner: vision.dim_or(&["intermediate_size", "vt_intermediate_size"], 4304)?,
            heads: vision.dim_or(&["num_attention_heads", "vt_num_attention_heads"], 16)?,
            patch: vision.dim_or(&["patch_size"], 14)?,
            positions: [
                side(["pos_emb_height", "init_pos_emb_height"])?,
                side(["pos_emb_width", "init_pos_emb_width"])?,
            ],
            merged: merge.into_iter().fold(1, u64::saturating_mul),
        })
    }

    fn norm(self, b: &mut SpecBuilder, name: &str) {
        for part in ["weight", "bias"] {
            b.tensor(Role::Encoder, &format!("{name}.{part}"), &[self.hidden], Shard::Replicated);
        }
    }

    fn tensors(self, b: &mut SpecBuilder) -> Result<(), ModelError> {
        let (e, one, w, inner) = (Role::Encoder, Shard::Replicated, self.hidden, self.inner);
        b.tensor(e, "patch_embed.proj.weight", &[w, 3, self.patch, self.patch], one);
        b.tensor(e, "patch_embed.proj.bias", &[w], one);
        let [high, wide] = self.positions;
        b.tensor(e, "patch_embed.pos_emb.weight", &[high, wide, w], one);
        for i in 0..self.layers {
            b.scope(&format!("encoder.blocks.{i}."), |b| {
                self.norm(b, "norm0");
                self.norm(b, "norm1");
                b.out_split(e, "wqkv", [3 * w, w], true, heads(self.heads));
                b.in_split(e, "wo", [w, w], true, heads(self.heads));
                b.out_split(e, "mlp.fc0", [inner, w], true, columns(inner));
                b.in_split(e, "mlp.fc1", [w, inner], true, columns(inner));
                Ok(())
            })?;
        }
        self.norm(b, "encoder.final_layernorm");
        Ok(())
    }
}
