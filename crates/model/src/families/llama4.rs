//! LLaMA 4: three layers of attention in chunks for each layer that sees everything, one expert of many beside a
//! shared one, and a vision tower.
//!
//! Source: transformers `models/llama4/{configuration,modeling}_llama4.py`.

use super::{Defaults, Family, decoder_or, gated, moe, norms, stack, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::tower::{Body, vision};
use crate::{
    Axis, Config, Encoder, Ffn, Linear, ModelError, Moe, Reach, Role, Shard, SpecBuilder,
};

pub(super) const FAMILY: Family = Family {
    name: "llama4",
    architectures: &["Llama4ForCausalLM", "Llama4ForConditionalGeneration"],
    model_types: &["llama4_text", "llama4"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    if !config.has("vision_config") {
        return text(config, b);
    }
    b.scope("language_model.", |b| text(config, b))?;
    let hidden = b.spec().hidden;
    tower(&vision(config)?, b, hidden)
}

fn text(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(8),
        head_dim: Some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim(&["intermediate_size"], "it sizes an expert")?;
    let dense = text.dim_or(&["intermediate_size_mlp"], 16_384)?;
    let moe = moe(&text, &["num_local_experts"], &["intermediate_size"], inner)?;
    let step = text.dim_or(&["interleave_moe_layer_step"], 1)?;
    let sparse = text.numbers("moe_layers")?;
    let routes = |i: u64| match &sparse {
        Some(list) => list.contains(&i),
        None => (i + 1).is_multiple_of(step),
    };
    let bias = text.flag("attention_bias", false)?;
    tie(config, &text, b, false)?;
    let reach = reaches(&text, d.layers)?;
    let layers = (0..).zip(&reach).map(|(i, reach)| {
        let ffn = if routes(i) { Ffn::Moe(moe) } else { gated(dense) };
        attention_layer(d.attention(*reach), ffn)
    });
    stack(b, "model.", &d, layers, |b, _, layer| {
        b.qkvo(d.hidden, &d.attention(Reach::Full), bias, bias);
        match layer.ffn {
            Ffn::Moe(moe) => experts(b, d.hidden, &moe)?,
            _ => b.gated_mlp(Role::Mlp, "feed_forward.", d.hidden, dense, false),
        }
        norms(b, d.hidden);
        Ok(())
    })?;
    b.head("lm_head", d.vocab, d.hidden);
    Ok(())
}

/// Layers that rotate see their chunk, those that do not (`no_rope_layers` has 0) see everything.
fn reaches(text: &Config<'_>, layers: u64) -> Result<Vec<Reach>, ModelError> {
    let chunk = match text.opt("attention_chunk_size")? {
        None if !text.is_null("attention_chunk_size") => Some(8192),
        chunk => chunk.filter(|c| *c > 0),
    };
    let every = text.dim_or(&["no_rope_layer_interval"], 4)?;
    let rotates = text.numbers("no_rope_layers")?.filter(|l| !l.is_empty());
    let chunked = |i: u64| match &rotates {
        Some(list) => usize::try_from(i).ok().and_then(|i| list.get(i)) != Some(&0),
        None => !(i + 1).is_multiple_of(every),
    };
    let kinds = text.strings("layer_types")?;
    if kinds.as_ref().is_some_and(|k| u64::try_from(k.len()) != Ok(layers)) {
        return Err(text.reject("layer_types", format!("expected one entry for each of the {layers} layers")));
    }
    let of = |yes: bool| chunk.filter(|_| yes).map_or(Reach::Full, Reach::Chunk);
    let Some(kinds) = kinds else {
        return Ok((0..layers).map(|i| of(chunked(i))).collect());
    };
    let named = kinds.into_iter().map(|kind| match kind {
        "chunked_attention" => Ok(of(true)),
        "full_attention" => Ok(Reach::Full),
        _ => Err(text.reject("layer_types", "expected full_attention or chunked_attention")),
    });
    named.collect()
}

/// All experts of a layer in two tensors, stored `[inputs, outputs]`.
fn experts(b: &mut SpecBuilder, hidden: u64, moe: &Moe) -> Result<(), ModelError> {
    let inner = moe.intermediate;
    b.experts(moe.experts, |b| {
        let up = Linear { out: 2 * inner, inp: hidden, axis: Axis::Out };
        let down = Linear { out: hidden, inp: inner, axis: Axis::In };
        for (name, l) in [("gate_up_proj", up), ("down_proj", down)] {
            let name = format!("feed_forward.experts.{name}");
            b.matrix_as(Role::Experts, &name, &[l.inp, l.out], l, columns(inner));
        }
        Ok(())
    })?;
    b.whole(Role::Router, "feed_forward.router", [moe.experts, hidden], false);
    let shared = "feed_forward.shared_expert.";
    b.gated_mlp(Role::SharedExperts, shared, hidden, moe.shared, false);
    Ok(())
}

fn tower(vision: &Config<'_>, b: &mut SpecBuilder, hidden: u64) -> Result<(), ModelError> {
    let v = Body::read(vision)?;
    let (e, one, w, split) = (Role::Encoder, Shard::Replicated, v.hidden, heads(v.heads));
    let out = vision.dim_or(&["vision_output_dim"], 7680)?;
    let adapter = vision.dim_or(&["projector_input_dim"], 4096)?;
    let adapted = vision.dim_or(&["projector_output_dim"], 4096)?;
    let encoder = v.encoder(None);
    // Patches are shuffled into a quarter of their number where the ratio is one half.
    let ratio = vision.positive("pixel_shuffle_ratio")?.unwrap_or(0.5);
    let tokens = (ratio == 0.5).then_some(v.patches() / 4);
    b.scope("vision_model.", |b| {
        b.tensor(e, "class_embedding", &[w], one);
        b.tensor(e, "positional_embedding_vlm", &[v.patches() + 1, w], one);
        b.whole(e, "patch_embedding.linear", [w, encoder.patch_elements], false);
        v.norm(b, "layernorm_pre", true);
        v.norm(b, "layernorm_post", true);
        for i in 0..v.layers {
            b.scope(&format!("model.layers.{i}."), |b| {
                for name in ["q_proj", "k_proj", "v_proj"] {
                    b.out_split(e, &format!("self_attn.{name}"), [w, w], true, split);
                }
                b.in_split(e, "self_attn.o_proj", [w, w], true, split);
                b.out_split(e, "mlp.fc1", [v.inner, w], true, columns(v.inner));
                b.in_split(e, "mlp.fc2", [w, v.inner], true, columns(v.inner));
                v.norm(b, "input_layernorm", true);
                v.norm(b, "post_attention_layernorm", true);
                Ok(())
            })?;
        }
        b.out_split(e, "vision_adapter.mlp.fc1", [adapter, v.inner], false, columns(adapter));
        b.in_split(e, "vision_adapter.mlp.fc2", [adapted, adapter], false, columns(adapter));
        Ok(())
    })?;
    b.whole(e, "multi_modal_projector.linear_1", [hidden, out], false);
    b.encoder(Encoder { tokens_per_image: tokens, patches: Some(v.patches() + 1), ..encoder });
    Ok(())
}
