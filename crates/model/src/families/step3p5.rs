//! Step 3.5 Flash and Step 3.7: layers with a window, which may have more query heads, a gate for each head, experts chosen by
//! biased scores beside a shared one; in the later model a tower whose patches two convolutions join.
//!
//! Source: transformers `models/step3p7/{configuration,modeling}_step3p7.py`. Multi-token-prediction layers, for which
//! published lists have entries at their end, are not described.

use super::{Defaults, Family, LayerKind, decoder_or, gated, moe, norms, stack, tie};
use crate::builder::{attention_layer, columns, heads};
use crate::tower;
use crate::{Attention, Axis, Config, Ffn, Linear, Mixer, ModelError, Moe, Reach, Role, Shard, SpecBuilder};

pub(super) const FAMILY: Family = Family {
    name: "step3p5",
    architectures: &["Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"],
    model_types: &["step3p5", "step3p7"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let defaults = Defaults {
        kv_heads: Some(text.dim_or(&["num_attention_groups"], 8)?),
        head_dim: Some(128),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = text.dim_or(&["intermediate_size"], 11_264)?;
    let shared = text.dim_or(&["share_expert_dim", "share_expert_dims"], 1280)?;
    let one = ["moe_intermediate_size"];
    let moe = moe(&text, &["n_routed_experts", "moe_num_experts", "num_local_experts"], &one, shared)?;
    let local = match text.object("attention_other_setting")? {
        Some(set) => set.opt("num_attention_heads")?,
        None => text.opt("num_sliding_attention_heads")?,
    };
    let local = Attention {
        q_heads: local.unwrap_or(d.q_heads),
        reach: text.opt("sliding_window")?.map_or(Reach::Full, Reach::Window),
        ..d.attention(Reach::Full)
    };
    if !local.q_heads.is_multiple_of(local.kv_heads) {
        let reason = format!("expected a multiple of the {} KV heads", local.kv_heads);
        return Err(text.reject("num_sliding_attention_heads", reason));
    }
    let predicted = text.opt("num_nextn_predict_layers")?.unwrap_or(0);
    let kinds = kinds(&text, d.layers, predicted)?;
    let sparse = sparse(&text, d.layers, predicted)?;
    tie(config, &text, b, false)?;
    let layers = kinds.iter().zip(&sparse).map(|(kind, sparse)| {
        let attention = if *kind == LayerKind::Window { local } else { d.attention(Reach::Full) };
        attention_layer(attention, if *sparse { Ffn::Moe(moe) } else { gated(inner) })
    });
    let h = d.hidden;
    stack(b, "model.", &d, layers, |b, _, layer| {
        if let Mixer::Attention(a) = &layer.mixer {
            b.qkvo(h, a, false, false);
            b.out_split(Role::Attention, "self_attn.g_proj", [a.q_heads, h], false, heads(a.q_heads));
        }
        b.norm("self_attn.q_norm", d.head_dim);
        b.norm("self_attn.k_norm", d.head_dim);
        norms(b, h);
        match layer.ffn {
            Ffn::Moe(moe) => experts(b, h, &moe),
            _ => {
                b.gated_mlp(Role::Mlp, "mlp.", h, inner, false);
                Ok(())
            }
        }
    })?;
    b.head("lm_head", d.vocab, h);
    match config.object("vision_config")? {
        Some(vision) => tower::step::tensors(&vision, b, config.flag("projector_bias", false)?),
        None => Ok(()),
    }
}

/// What the entries of a list say, with or without those of prediction layers at its end.
fn entries<'a>(text: &Config<'a>, key: &str, layers: u64, predicted: u64) -> Result<Option<Vec<&'a str>>, ModelError> {
    let Some(mut list) = text.strings(key)? else {
        return Ok(None);
    };
    let count = u64::try_from(list.len()).unwrap_or(u64::MAX);
    if count != layers && Some(count) != layers.checked_add(predicted) {
        return Err(text.reject(key, format!("expected one entry for each of the {layers} layers")));
    }
    list.truncate(usize::try_from(layers).unwrap_or(usize::MAX));
    Ok(Some(list))
}

fn kinds(text: &Config<'_>, layers: u64, predicted: u64) -> Result<Vec<LayerKind>, ModelError> {
    let key = "layer_types";
    let Some(names) = entries(text, key, layers, predicted)? else {
        return Ok((0..layers).map(|_| LayerKind::Full).collect());
    };
    let kind = |name: &str| match name {
        "full_attention" => Ok(LayerKind::Full),
        "sliding_attention" => Ok(LayerKind::Window),
        _ => Err(text.reject(key, "expected full_attention or sliding_attention")),
    };
    names.into_iter().map(kind).collect()
}

/// Which layers route: by kind, by a row of numbers, or all but the first three.
fn sparse(text: &Config<'_>, layers: u64, predicted: u64) -> Result<Vec<bool>, ModelError> {
    if let Some(names) = entries(text, "mlp_layer_types", layers, predicted)? {
        return Ok(names.iter().map(|n| *n == "sparse").collect());
    }
    let key = "moe_layers_enum";
    let listed: Option<Vec<u64>> = match text.str(key) {
        Some(row) => {
            let numbers: Result<Vec<u64>, _> = row.split(',').map(|n| n.trim().parse()).collect();
            Some(numbers.map_err(|_| text.reject(key, "expected numbers with commas between them"))?)
        }
        None => text.numbers(key)?,
    };
    Ok((0..layers).map(|i| listed.as_ref().map_or(i >= 3, |l| l.contains(&i))).collect())
}

fn experts(b: &mut SpecBuilder, h: u64, moe: &Moe) -> Result<(), ModelError> {
    b.whole(Role::Router, "moe.gate", [moe.experts, h], false);
    b.tensor(Role::Router, "moe.router_bias", &[moe.experts], Shard::Replicated);
    let inner = moe.intermediate;
    b.experts(moe.experts, |b| {
        let up = Linear { out: inner, inp: h, axis: Axis::Out };
        let down = Linear { out: h, inp: inner, axis: Axis::In };
        for (name, l) in [("gate_proj", up), ("up_proj", up), ("down_proj", down)] {
            b.matrix_as(Role::Experts, &format!("moe.{name}.weight"), &[l.out, l.inp], l, columns(inner));
        }
        Ok(())
    })?;
    b.gated_mlp(Role::SharedExperts, "share_expert.", h, moe.shared, false);
    Ok(())
}
