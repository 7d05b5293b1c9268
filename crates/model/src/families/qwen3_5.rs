//! Qwen3.5: Qwen3-Next's layers with projections apart, dense or with experts, under Qwen3-VL's tower.
//!
//! Source: transformers `models/qwen3_5/{configuration,modeling}_qwen3_5.py` and `models/qwen3_5_moe`; the
//! multi-token-prediction layers, which transformers drops on loading, from vLLM `models/qwen3_5_mtp.py`.

use plimsoll_units::DType;

use super::qwen3_next::{DeltaNet, gated_attention};
use super::{
    Defaults, Family, LayerKind, SparseLayers, decoder_or, gated, layer_types, norms, qwen2_vl, qwen3_moe, qwen3_vl,
    stack, tie,
};
use crate::builder::{attention_layer, columns};
use crate::{Config, Ffn, LayerSpec, Mixer, ModelError, Reach, Role, Shard, SpecBuilder, StateSpace};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_5",
    architectures: &[
        "Qwen3_5ForCausalLM",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    ],
    model_types: &["qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe"],
    towers: true,
    lower,
};

fn lower(config: &Config<'_>, b: &mut SpecBuilder) -> Result<(), ModelError> {
    let text = config.text()?;
    let sparse = if text.has("moe_intermediate_size") {
        let shared = text.dim_or(&["shared_expert_intermediate_size"], 512)?;
        Some(SparseLayers::read(&text, shared)?)
    } else {
        None
    };
    let defaults = Defaults {
        kv_heads: Some(if sparse.is_some() { 2 } else { 4 }),
        head_dim: Some(256),
        ..Defaults::default()
    };
    let d = decoder_or(&text, b, defaults)?;
    let inner = match &sparse {
        Some(_) => 0,
        None => text.dim(&["intermediate_size"], "it sizes the feed-forward")?,
    };
    let bias = text.flag("attention_bias", false)?;
    let delta = DeltaNet::read(&text)?;
    // The state's own type, which engines follow (vLLM `models/config.py`, `Qwen3_5ForConditionalGenerationConfig`).
    let key = "mamba_ssm_dtype";
    let kept = match text.get(key).map(|v| v.as_str().and_then(|name| name.parse::<DType>().ok())) {
        Some(Some(kept)) if kept.is_scalar() => Some(kept),
        Some(_) => return Err(text.reject(key, "expected a type such as float32")),
        None => None,
    };
    tie(config, &text, b, false)?;
    b.rotary_share(0.25);
    let every = text.dim_or(&["full_attention_interval"], 4)?;
    let kinds = layer_types(&text, d.layers)?.unwrap_or_else(|| {
        let full = |i: u64| (i + 1).is_multiple_of(every);
        let kind = |i| if full(i) { LayerKind::Full } else { LayerKind::Linear };
        (0..d.layers).map(kind).collect()
    });
    if kinds.contains(&LayerKind::Window) {
        return Err(text.reject("layer_types", "expected full_attention or linear_attention"));
    }
    let ffn = sparse.as_ref().map_or(gated(inner), |s| Ffn::Moe(s.moe));
    let attention = d.attention(Reach::Full);
    let layers = kinds.into_iter().map(|kind| match kind {
        LayerKind::Linear => LayerSpec {
            mixer: Mixer::State(StateSpace { state_dtype: kept, ..delta.state() }),
            parallel: None,
            cross: None,
            ffn,
        },
        _ => attention_layer(attention, ffn),
    });
    let each = |b: &mut SpecBuilder, _: u64, layer: &LayerSpec| {
        if matches!(layer.mixer, Mixer::State(_)) {
            delta_net(b, d.hidden, delta);
        } else {
            gated_attention(b, &d, &attention, bias);
        }
        match &sparse {
            Some(s) => {
                qwen3_moe::experts(b, d.hidden, s)?;
                qwen3_moe::shared_expert(b, d.hidden, s);
            }
            None => b.gated_mlp(Role::Mlp, "mlp.", d.hidden, inner, false),
        }
        norms(b, d.hidden);
        Ok(())
    };
    stack(b, "model.language_model.", &d, layers, each)?;
    b.head("lm_head", d.vocab, d.hidden);

    let count = text.opt("mtp_num_hidden_layers")?.unwrap_or(0);
    if count > d.layers {
        return Err(text.reject("mtp_num_hidden_layers", "expected no more than there are layers"));
    }
    b.spec().mtp_layers = count;
    if count > 0 {
        b.mtp("mtp.", |b| {
            b.out_split(Role::Mtp, "fc", [d.hidden, 2 * d.hidden], false, columns(d.hidden));
            for name in ["pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"] {
                b.norm(name, d.hidden);
            }
            let layer = attention_layer(attention, ffn);
            (0..count).try_for_each(|i| b.scope(&format!("layers.{i}."), |b| each(b, i, &layer)))
        })?;
    }
    if config.has("vision_config") {
        qwen3_vl::tower(&qwen2_vl::vision(config)?, b, 0)?;
    }
    Ok(())
}

fn delta_net(b: &mut SpecBuilder, hidden: u64, net: DeltaNet) {
    let split = |units, what| Shard::Split { units, what };
    let keys = split(net.key_heads, "linear-attention key heads");
    let values = split(net.value_heads, "linear-attention value heads");
    let (state, n) = (Role::State, net.value_heads);
    b.tensor(state, "linear_attn.dt_bias", &[n], values);
    b.tensor(state, "linear_attn.A_log", &[n], values);
    let conv = [net.channels(), 1, net.taps];
    b.tensor(state, "linear_attn.conv1d.weight", &conv, keys);
    b.out_split(state, "linear_attn.in_proj_qkv", [net.channels(), hidden], false, keys);
    b.out_split(state, "linear_attn.in_proj_z", [net.values(), hidden], false, values);
    b.out_split(state, "linear_attn.in_proj_b", [n, hidden], false, values);
    b.out_split(state, "linear_attn.in_proj_a", [n, hidden], false, values);
    b.norm("linear_attn.norm", net.value_dim);
    b.in_split(state, "linear_attn.out_proj", [hidden, net.values()], false, values);
}
