//! Qwen3-VL: Qwen3, dense or with experts, under a tower whose middle layers also reach the text model (`deepstack`).
//!
//! Source: transformers `models/qwen3_vl/{configuration,modeling}_qwen3_vl.py` and `models/qwen3_vl_moe`.

use super::qwen2_vl::{Visual, vision};
use super::{Decoder, Defaults, Family, SparseLayers, decoder_or, gated, norms, stack, tie};
use crate::builder::{attention_layer, columns};
use crate::{Axis, Config, Ffn, Linear, ModelError, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_vl",
    architectures: &["Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"],
    model_types: &["qwen3_vl", "qwen3_vl_moe"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let sparse = if text.has("moe_intermediate_size") {
        Some(SparseLayers::read(&text, 0)?)
    } else {
        None
    };
    // Heads of the dense class are 128 wide where the config is silent; the other derives them.
    let defaults = Defaults {
        head_dim: sparse.is_none().then_some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let inner = match &sparse {
        Some(s) => s.dense_inner(&text, d.layers, 5632)?,
        None => text.dim(&["intermediate_size"], "it sizes the feed-forward")?,
    };
    let attention = d.attention(Reach::Full);
    let layers = (0..d.layers).map(|i| {
        let ffn = sparse.as_ref().map_or(gated(inner), |s| s.ffn(i, inner));
        attention_layer(attention, ffn)
    });
    stack(b, "model.language_model.", &d, layers, |b, _, layer| {
        b.qkvo(d.hidden, &attention, bias, bias);
        b.norm("self_attn.q_norm", d.head_dim);
        b.norm("self_attn.k_norm", d.head_dim);
        match layer.ffn {
            Ffn::Moe(_) => experts(b, &d, &layer.ffn)?,
            _ => b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false),
        }
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    let vision = vision(config)?;
    let stacked = match vision.numbers("deepstack_visual_indexes")? {
        Some(list) => u64::try_from(list.len()).unwrap_or(u64::MAX),
        None => 3,
    };
    if stacked > d.layers {
        return Err(vision.reject("deepstack_visual_indexes", "expected no more than there are layers"));
    }
    tower(&vision, b, stacked)
}

/// All experts of a layer in two tensors.
pub(super) fn experts(b: &mut SpecBuilder, d: &Decoder, ffn: &Ffn) -> Result<(), ModelError> {
    let Ffn::Moe(moe) = ffn else { return Ok(()) };
    let (h, inner) = (d.hidden, moe.intermediate);
    b.whole(Role::Router, "mlp.gate", [moe.experts, h], false);
    b.experts(moe.experts, |b| {
        let up = Linear { out: 2 * inner, inp: h, axis: Axis::Out };
        let down = Linear { out: h, inp: inner, axis: Axis::In };
        for (name, l) in [("gate_up_proj", up), ("down_proj", down)] {
            let name = format!("mlp.experts.{name}");
            b.matrix_as(Role::Experts, &name, &[l.out, l.inp], l, columns(inner));
        }
        Ok(())
    })
}

/// The tower of Qwen3-VL and Qwen3.5, with a merger of its own for each of `stacked` layers.
pub(super) fn tower(vision: &Config<'_>, b: &mut SpecBuilder, stacked: u64) -> Result<(), ModelError> {
    let v = Visual {
        patch: vision.dim_or(&["patch_size"], 16)?,
        depth: if vision.has("depth") { vision.layers(&["depth"])? } else { 27 },
        ..Visual::read(
            vision,
            vision.dim_or(&["hidden_size"], 1152)?,
            vision.dim_or(&["intermediate_size"], 4304)?,
            vision.dim_or(&["out_hidden_size"], 3584)?,
        )?
    };
    let rows = vision.dim_or(&["num_position_embeddings"], 2304)?;
    let (e, one, w, inner) = (Role::Encoder, Shard::Replicated, v.width, v.inner);
    let joined = w.saturating_mul(v.merge).saturating_mul(v.merge);
    let merger = |b: &mut SpecBuilder, name: &str, norm: u64| {
        for part in ["weight", "bias"] {
            b.tensor(e, &format!("{name}norm.{part}"), &[norm], one);
        }
        let cols = columns(joined);
        b.out_split(e, &format!("{name}linear_fc1"), [joined, joined], true, cols);
        b.in_split(e, &format!("{name}linear_fc2"), [v.text, joined], true, cols);
    };
    b.scope("model.visual.", |b| {
        v.patches(b);
        b.tensor(e, "patch_embed.proj.bias", &[w], one);
        b.tensor(e, "pos_embed.weight", &[rows, w], one);
        for i in 0..v.depth {
            b.scope(&format!("blocks.{i}."), |b| {
                v.norm(b, "norm1", true);
                v.norm(b, "norm2", true);
                v.attention(b);
                b.out_split(e, "mlp.linear_fc1", [inner, w], true, columns(inner));
                b.in_split(e, "mlp.linear_fc2", [w, inner], true, columns(inner));
                Ok(())
            })?;
        }
        merger(b, "merger.", w);
        for i in 0..stacked {
            merger(b, &format!("deepstack_merger_list.{i}."), joined);
        }
        Ok(())
    })?;
    b.encoder(v.encoder());
    Ok(())
}
