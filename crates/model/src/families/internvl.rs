//! InternVL 2 to 3.5: a text model of another family behind InternViT, whose patches are joined by four.
//!
//! Source: transformers `models/internvl/{configuration,modeling}_internvl.py`; names of the published class, which it
//! does not know, from vLLM `models/internvl.py` and `models/intern_vit.py`: the same matrices, queries, keys and values
//! in one.

use super::{Family, nested, qwen2};
use crate::builder::{columns, heads};
use crate::tower::vision;
use crate::{Config, Encoder, ModelError, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "internvl",
    architectures: &["InternVLChatModel", "InternVLForConditionalGeneration"],
    model_types: &["internvl_chat", "internvl"],
    towers: true,
    lower,
};

/// What the two classes call the same tensors.
#[derive(Clone, Copy, Debug)]
struct Names {
    tower: &'static str,
    class: &'static str,
    patch: &'static str,
    positions: &'static str,
    layers: &'static str,
    attention: [&'static str; 2],
    norms: [&'static str; 2],
    scales: [&'static str; 2],
    projector: [&'static str; 3],
}

const PUBLISHED: Names = Names {
    tower: "vision_model.",
    class: "embeddings.class_embedding",
    patch: "embeddings.patch_embedding",
    positions: "embeddings.position_embedding",
    layers: "encoder.layers",
    attention: ["attn.", "attn.proj"],
    norms: ["norm1", "norm2"],
    scales: ["ls1", "ls2"],
    projector: ["mlp1.0", "mlp1.1", "mlp1.3"],
};

const CONVERTED: Names = Names {
    tower: "vision_tower.",
    class: "embeddings.cls_token",
    patch: "embeddings.patch_embeddings.projection",
    positions: "embeddings.position_embeddings",
    layers: "encoder.layer",
    attention: ["attention.", "attention.projection_layer"],
    norms: ["layernorm_before", "layernorm_after"],
    scales: ["lambda_1", "lambda_2"],
    projector: ["multi_modal_projector.layer_norm", "multi_modal_projector.linear_1", "multi_modal_projector.linear_2"],
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let published = config.architecture().or(config.str("model_type")).is_some_and(|n| {
        ["InternVLChatModel", "internvl_chat"].contains(&n)
    });
    let n = if published { PUBLISHED } else { CONVERTED };
    b.scope("language_model.", |b| nested(config, b, qwen2::FAMILY))?;
    let hidden = b.spec().hidden;
    let vision = vision(config)?;
    let w = vision.dim_or(&["hidden_size"], 1024)?;
    let layers = if vision.has("num_hidden_layers") { vision.layers(&["num_hidden_layers"])? } else { 24 };
    let inner = vision.dim_or(&["intermediate_size"], 4096)?;
    let split = heads(vision.dim_or(&["num_attention_heads"], 16)?);
    let (image, patch) = (side(&vision, "image_size", 448)?, side(&vision, "patch_size", 14)?);
    let channels = vision.dim_or(&["num_channels"], 3)?;
    let patches = (image / patch).saturating_mul(image / patch);
    let either = |names: [&'static str; 2], default| match names.into_iter().find(|k| vision.has(k)) {
        Some(key) => vision.flag(key, default),
        None => Ok(default),
    };
    let bias = either(["qkv_bias", "attention_bias"], published)?;
    let normed = either(["qk_normalization", "use_qk_norm"], false)?;
    let centred = vision.str("norm_type").is_none_or(|t| t == "layer_norm");
    let (e, one) = (Role::Encoder, Shard::Replicated);
    b.scope(n.tower, |b| {
        b.tensor(e, n.class, &[1, 1, w], one);
        b.tensor(e, &format!("{}.weight", n.patch), &[w, channels, patch, patch], one);
        b.tensor(e, &format!("{}.bias", n.patch), &[w], one);
        b.tensor(e, n.positions, &[1, patches + 1, w], one);
        for i in 0..layers {
            b.scope(&format!("{}.{i}.", n.layers), |b| {
                let [at, out] = n.attention;
                if published {
                    b.out_split(e, &format!("{at}qkv"), [3 * w, w], bias, split);
                } else {
                    for name in ["q_proj", "k_proj", "v_proj"] {
                        b.out_split(e, &format!("{at}{name}"), [w, w], bias, split);
                    }
                }
                b.in_split(e, out, [w, w], true, split);
                for name in ["q_norm", "k_norm"].iter().filter(|_| normed) {
                    b.tensor(e, &format!("{at}{name}.weight"), &[w], one);
                }
                b.out_split(e, "mlp.fc1", [inner, w], true, columns(inner));
                b.in_split(e, "mlp.fc2", [w, inner], true, columns(inner));
                for (norm, scale) in n.norms.iter().zip(n.scales) {
                    b.tensor(e, scale, &[w], one);
                    b.tensor(e, &format!("{norm}.weight"), &[w], one);
                    if centred {
                        b.tensor(e, &format!("{norm}.bias"), &[w], one);
                    }
                }
                Ok(())
            })?;
        }
        if !published && !vision.flag("use_mean_pooling", true)? {
            b.tensor(e, "layernorm.weight", &[w], one);
            b.tensor(e, "layernorm.bias", &[w], one);
        }
        Ok(())
    })?;
    // Patches are joined where the ratio is one half, the only one published.
    if config.positive("downsample_ratio")?.is_some_and(|r| r != 0.5) {
        return Err(config.reject("downsample_ratio", "expected 0.5"));
    }
    let joined = w.saturating_mul(4);
    let [norm, first, second] = n.projector;
    b.tensor(e, &format!("{norm}.weight"), &[joined], one);
    b.tensor(e, &format!("{norm}.bias"), &[joined], one);
    b.out_split(e, first, [hidden, joined], true, columns(hidden));
    b.in_split(e, second, [hidden, hidden], true, columns(hidden));
    b.encoder(Encoder {
        hidden: w,
        layers,
        intermediate: inner,
        patches: Some(patches + 1),
        patch_elements: [channels, patch, patch].into_iter().fold(1, u64::saturating_mul),
        tokens_per_image: Some((patches / 4).max(1)),
    });
    Ok(())
}

/// A side of a square, given once or twice.
fn side(vision: &Config<'_>, key: &'static str, default: u64) -> Result<u64, ModelError> {
    if !vision.get(key).is_some_and(serde_json::Value::is_array) {
        return vision.dim_or(&[key], default);
    }
    match vision.numbers(key)?.unwrap_or_default()[..] {
        [a, b] if a == b && a > 0 => Ok(a),
        _ => Err(vision.reject(key, "expected two equal sides")),
    }
}
