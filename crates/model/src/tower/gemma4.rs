//! Gemma 4's eyes: images of any shape, whose patches are pooled into so many tokens.
//!
//! Source: transformers `models/gemma4/modeling_gemma4.py`.

use super::conformer::clip;
use crate::builder::{columns, heads};
use crate::{Config, Encoder, ModelError, Role, Shard, SpecBuilder};

/// All tensors with their projection to the text model's width, and the encoder.
///
/// # Errors
/// [`ModelError`] where a size is unusable.
pub(crate) fn tensors(
    vision: &Config<'_>,
    b: &mut SpecBuilder,
    tokens: Option<u64>,
) -> Result<(), ModelError> {
    let w = vision.dim_or(&["hidden_size"], 768)?;
    let inner = vision.dim_or(&["intermediate_size"], 3072)?;
    let layers = if vision.has("num_hidden_layers") {
        vision.layers(&["num_hidden_layers"])?
    } else {
        16
    };
    let q = vision.dim_or(&["num_attention_heads"], 12)?;
    let kv = vision.dim_or(&["num_key_value_heads"], 12)?;
    let size = vision.dim_or(&["head_dim"], 64)?;
    let patch = vision.dim_or(&["patch_size"], 16)?;
    let pooled = vision.dim_or(&["pooling_kernel_size"], 3)?;
    let positions = vision.dim_or(&["position_embedding_size"], 10 * 1024)?;
    let clipped = vision.flag("use_clipped_linears", false)?;
    let patch_elements = patch.saturating_mul(patch).saturating_mul(3);
    let (e, one, hidden) = (Role::Encoder, Shard::Replicated, b.spec().hidden);
    b.scope("model.vision_tower.", |b| {
        b.tensor(
            e,
            "patch_embedder.position_embedding_table",
            &[2, positions, w],
            one,
        );
        b.whole(e, "patch_embedder.input_proj", [w, patch_elements], false);
        for i in 0..layers {
            b.scope(&format!("encoder.layers.{i}."), |b| {
                let shard = Shard::KvHeads { heads: kv };
                clip(
                    b,
                    "self_attn.q_proj",
                    [q.saturating_mul(size), w],
                    heads(q),
                    clipped,
                );
                clip(
                    b,
                    "self_attn.k_proj",
                    [kv.saturating_mul(size), w],
                    shard,
                    clipped,
                );
                clip(
                    b,
                    "self_attn.v_proj",
                    [kv.saturating_mul(size), w],
                    shard,
                    clipped,
                );
                clip(
                    b,
                    "self_attn.o_proj",
                    [w, q.saturating_mul(size)],
                    heads(q),
                    clipped,
                );
                clip(b, "mlp.gate_proj", [inner, w], columns(inner), clipped);
                clip(b, "mlp.up_proj", [inner, w], columns(inner), clipped);
                clip(b, "mlp.down_proj", [w, inner], columns(inner), clipped);
                let norms = [
                    ("self_attn.q_norm", size),
                    ("self_attn.k_norm", size),
                    ("input_layernorm", w),
                    ("post_attention_layernorm", w),
                    ("pre_feedforward_layernorm", w),
                    ("post_feedforward_layernorm", w),
                ];
                for (name, width) in norms {
                    b.tensor(e, &format!("{name}.weight"), &[width], one);
                }
                Ok(())
            })?;
        }
        if vision.flag("standardize", false)? {
            b.tensor(e, "std_bias", &[w], one);
            b.tensor(e, "std_scale", &[w], one);
        }
        Ok(())
    })?;
    b.whole(
        e,
        "model.embed_vision.embedding_projection",
        [hidden, w],
        false,
    );
    b.encoder(Encoder {
        hidden: w,
        layers,
        intermediate: inner,
        patches: tokens.map(|n| n.saturating_mul(pooled).saturating_mul(pooled)),
        patch_elements,
        tokens_per_image: tokens,
    });
    Ok(())
}
