//! LLaMA 3.2 Vision: LLaMA some of whose layers read the images in place of the text, behind a tower of two stages over
//! tiles of an image.
//!
//! Source: transformers `models/mllama/{configuration,modeling}_mllama.py`.

use super::{Family, decoder, gated, norms, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::tower::{Body, vision};
use crate::{Config, CrossAttention, Encoder, LayerSpec, Mixer, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "mllama",
    architectures: &["MllamaForConditionalGeneration"],
    model_types: &["mllama"],
    towers: true,
    lower,
};

/// Rows of the embedding beyond the vocabulary, for the image's token.
const IMAGE_ROWS: u64 = 8;

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let vision = vision(config)?;
    let body = Body::read(&vision)?;
    let tiles = vision.dim_or(&["max_num_tiles"], 4)?;
    let per_tile = body.patches().saturating_add(1);
    let d = decoder(&text, b)?;
    let inner = text.dim(&["intermediate_size"], "it sizes the feed-forward")?;
    let crossed = text.numbers("cross_attention_layers")?.unwrap_or_else(|| vec![3, 8, 13, 18, 23, 28, 33, 38]);
    tie(config, &text, b, false)?;
    let attention = d.attention(Reach::Full);
    let cross = CrossAttention {
        q_heads: d.q_heads,
        kv_heads: d.kv_heads,
        head_dim: d.head_dim,
        positions: tiles.saturating_mul(per_tile),
    };
    let (h, one) = (d.hidden, Shard::Replicated);
    b.scope("language_model.", |b| {
        b.embedding("model.embed_tokens.weight", d.vocab + IMAGE_ROWS, h);
        for i in 0..d.layers {
            let plain = attention_layer(attention, gated(inner));
            let reads = crossed.contains(&i);
            let layer = if reads { LayerSpec { mixer: Mixer::None, cross: Some(cross), ..plain } } else { plain };
            b.layer(&format!("model.layers.{i}."), layer, |b| {
                if reads {
                    b.qkvo_as("cross_attn", h, &attention, [false, false]);
                    b.norm("cross_attn.q_norm", d.head_dim);
                    b.norm("cross_attn.k_norm", d.head_dim);
                    b.tensor(Role::Attention, "cross_attn_attn_gate", &[1], one);
                    b.tensor(Role::Attention, "cross_attn_mlp_gate", &[1], one);
                } else {
                    b.qkvo(h, &attention, false, false);
                }
                b.gated_mlp(Role::Mlp, "mlp.", h, inner, false);
                norms(b, h);
                Ok(())
            })?;
        }
        b.norm("model.norm", h);
        b.head("lm_head", d.vocab, h);
        Ok(())
    })?;
    let kept = vision.numbers("intermediate_layers_indices")?.map_or(5, |l| u64::try_from(l.len()).unwrap_or(u64::MAX));
    let out = vision.dim_or(&["vision_output_dim"], body.hidden.saturating_mul(kept.saturating_add(1)))?;
    b.whole(Role::Encoder, "multi_modal_projector", [h, out], true);
    let ratios = vision.get("supported_aspect_ratios").and_then(serde_json::Value::as_array);
    let ratios = ratios.map_or(8, |l| u64::try_from(l.len()).unwrap_or(u64::MAX)).saturating_add(1);
    b.scope("vision_model.", |b| tower(&vision, b, &body, [tiles, ratios]))?;
    b.encoder(Encoder { patches: Some(cross.positions), ..body.encoder(Some(cross.positions)) });
    Ok(())
}

fn tower(vision: &Config<'_>, b: &mut SpecBuilder, v: &Body, [tiles, ratios]: [u64; 2]) -> Result<(), ModelError> {
    let (e, one, w, rows) = (Role::Encoder, Shard::Replicated, v.hidden, v.patches() + 1);
    let tiled = tiles.saturating_mul(w);
    b.tensor(e, "class_embedding", &[w], one);
    b.tensor(e, "patch_embedding.weight", &[w, v.channels, v.patch, v.patch], one);
    b.tensor(e, "gated_positional_embedding.gate", &[1], one);
    b.tensor(e, "gated_positional_embedding.embedding", &[rows, w], one);
    let table = "gated_positional_embedding.tile_embedding.weight";
    b.tensor(e, table, &[ratios, tiled.saturating_mul(rows)], one);
    for name in ["pre", "post"] {
        b.tensor(e, &format!("{name}_tile_positional_embedding.embedding.weight"), &[ratios, tiled], one);
        b.tensor(e, &format!("{name}_tile_positional_embedding.gate"), &[1], one);
        v.norm(b, &format!("layernorm_{name}"), true);
    }
    let global = vision.layers(&["num_global_layers"])?;
    for (stage, layers) in [("transformer", v.layers), ("global_transformer", global)] {
        for i in 0..layers {
            b.scope(&format!("{stage}.layers.{i}."), |b| {
                for name in ["q_proj", "k_proj", "v_proj"] {
                    b.out_split(e, &format!("self_attn.{name}"), [w, w], false, heads(v.heads));
                }
                b.in_split(e, "self_attn.o_proj", [w, w], false, heads(v.heads));
                b.out_split(e, "mlp.fc1", [v.inner, w], true, columns(v.inner));
                b.in_split(e, "mlp.fc2", [w, v.inner], true, columns(v.inner));
                v.norm(b, "input_layernorm", true);
                v.norm(b, "post_attention_layernorm", true);
                if stage == "global_transformer" {
                    b.tensor(e, "gate_attn", &[1], one);
                    b.tensor(e, "gate_ffn", &[1], one);
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}
