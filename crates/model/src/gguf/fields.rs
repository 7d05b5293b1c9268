//! What each architecture has beyond the fields that most share.
//!
//! Source: the `load_arch_hparams` of llama.cpp's `src/models/*.cpp`.

use serde_json::{Map, Value as Json, json};

use super::config::{Keys, floats};
use super::value::Value;
use crate::ModelError;

pub(super) fn nothing(_: &Keys<'_>, _: &mut Map<String, Json>) -> Result<(), ModelError> {
    Ok(())
}

pub(super) const EXPERTS: &str = "it is the number of experts";
pub(super) const TOP_K: &str = "it is the number of experts that a token passes";

pub(super) fn rename(map: &mut Map<String, Json>, architecture: &str, model_type: &str) {
    map.insert("architectures".into(), json!([architecture]));
    map.insert("model_type".into(), model_type.into());
}

/// LLaMA and Mistral; with experts, Mixtral.
pub(super) fn llama(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    let Some(experts) = keys.opt("expert_count")?.filter(|&n| n > 0) else {
        return Ok(());
    };
    rename(map, "MixtralForCausalLM", "mixtral");
    map.insert("num_local_experts".into(), experts.into());
    map.insert(
        "num_experts_per_tok".into(),
        keys.req("expert_used_count", TOP_K)?.into(),
    );
    Ok(())
}

/// The inner size of an expert: its key, or the shape of its down projection.
pub(super) fn expert_inner(keys: &Keys<'_>) -> Result<u64, ModelError> {
    if let Some(n) = keys.opt("expert_feed_forward_length")?.filter(|&n| n > 0) {
        return Ok(n);
    }
    let down = keys
        .header
        .tensors
        .iter()
        .find(|t| t.name.ends_with("ffn_down_exps.weight"));
    down.and_then(|t| t.shape.last().copied())
        .ok_or_else(|| ModelError::Missing {
            field: keys.name("expert_feed_forward_length"),
            why: "it sizes the experts",
        })
}

pub(super) fn qwen_moe(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    map.insert(
        "num_experts".into(),
        keys.req("expert_count", EXPERTS)?.into(),
    );
    map.insert(
        "num_experts_per_tok".into(),
        keys.req("expert_used_count", TOP_K)?.into(),
    );
    map.insert("moe_intermediate_size".into(), expert_inner(keys)?.into());
    map.insert("decoder_sparse_step".into(), 1.into());
    map.insert("mlp_only_layers".into(), json!([]));
    let shared = match keys
        .opt("expert_shared_feed_forward_length")?
        .filter(|&n| n > 0)
    {
        Some(n) => Some(n),
        None => keys
            .header
            .tensors
            .iter()
            .find(|t| t.name.ends_with("ffn_down_shexp.weight"))
            .and_then(|t| t.shape.last().copied()),
    };
    if let Some(n) = shared {
        map.insert("shared_expert_intermediate_size".into(), n.into());
    }
    Ok(())
}

pub(super) fn qwen3_next(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    qwen_moe(keys, map)?;
    // Said even where there are none: a checkpoint's config is silent, and one is then assumed.
    map.insert("num_nextn_predict_layers".into(), keys.nextn.into());
    delta_net(keys, map)
}

/// Qwen3.5, dense and with experts.
pub(super) fn qwen35(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    if keys.arch == "qwen35moe" {
        qwen_moe(keys, map)?;
    }
    map.remove("num_nextn_predict_layers");
    map.insert("mtp_num_hidden_layers".into(), keys.nextn.into());
    delta_net(keys, map)
}

/// The recurrent layers of Qwen3-Next and Qwen3.5, and where they are.
pub(super) fn delta_net(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    let state = keys.req(
        "ssm.state_size",
        "it is the key size of the recurrent layers",
    )?;
    let inner = keys.req("ssm.inner_size", "it is the width of the recurrent layers")?;
    let v_heads = keys.req(
        "ssm.time_step_rank",
        "it is the number of their value heads",
    )?;
    let k_heads = keys.req("ssm.group_count", "it is the number of their key heads")?;
    let taps = keys.req("ssm.conv_kernel", "it is the length of their convolution")?;
    if !inner.is_multiple_of(v_heads) {
        return Err(ModelError::Contradiction(format!(
            "`{}` is {inner}, no multiple of the {v_heads} value heads",
            keys.name("ssm.inner_size")
        )));
    }
    for (key, value) in [
        ("linear_conv_kernel_dim", taps),
        ("linear_num_key_heads", k_heads),
        ("linear_num_value_heads", v_heads),
        ("linear_key_head_dim", state),
        ("linear_value_head_dim", inner / v_heads),
    ] {
        map.insert(key.to_owned(), value.into());
    }
    let recurrent: Vec<bool> = match keys.per_layer("attention.recurrent_layers")? {
        Some(list) => list.into_iter().map(|n| n > 0).collect(),
        None => {
            let every = keys
                .opt("full_attention_interval")?
                .filter(|&n| n > 0)
                .unwrap_or(4);
            map.insert("full_attention_interval".into(), every.into());
            (0..keys.layers).map(|i| (i + 1) % every != 0).collect()
        }
    };
    let name = |r| {
        if r {
            "linear_attention"
        } else {
            "full_attention"
        }
    };
    let types: Vec<&str> = recurrent.into_iter().map(name).collect();
    map.insert("layer_types".into(), types.into());
    Ok(())
}

pub(super) fn soft_cap(
    keys: &Keys<'_>,
    map: &mut Map<String, Json>,
    name: &str,
    key: &str,
    default: Option<f64>,
) {
    if let Some(cap) = keys.float(key).or(default).filter(|&c| c > 0.0) {
        map.insert(name.to_owned(), cap.into());
    }
}

/// Windows in every other layer; window and caps have defaults in llama.cpp.
pub(super) fn gemma2(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    gemma_scale(keys, map, 46);
    map.entry("sliding_window").or_insert_with(|| 4096.into());
    map.insert("layer_types".into(), keys.layer_types(2)?);
    soft_cap(
        keys,
        map,
        "attn_logit_softcapping",
        "attn_logit_softcapping",
        Some(50.0),
    );
    soft_cap(
        keys,
        map,
        "final_logit_softcapping",
        "final_logit_softcapping",
        Some(30.0),
    );
    Ok(())
}

/// What the root of scores is taken of. No key says it: llama.cpp (`src/models/gemma{2,3}*.cpp`) takes the width of
/// a head's share of the hidden size in the models with this many layers, else the head size.
pub(super) fn gemma_scale(keys: &Keys<'_>, map: &mut Map<String, Json>, shared_at: u64) {
    let field = |key: &str| map.get(key).and_then(Json::as_u64);
    let (heads, hidden) = (field("num_attention_heads"), field("hidden_size"));
    let share = match (hidden, heads) {
        (Some(hidden), Some(heads)) if heads > 0 => hidden / heads,
        _ => 0,
    };
    let scalar = match field("head_dim") {
        Some(size) if keys.layers != shared_at => size,
        _ => share,
    };
    map.insert("query_pre_attn_scalar".into(), scalar.into());
}

pub(super) fn gemma3(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    gemma_scale(keys, map, 62);
    if map.contains_key("sliding_window") {
        map.insert("layer_types".into(), keys.layer_types(6)?);
    } else {
        map.insert("sliding_window".into(), Json::Null);
        let all = vec!["full_attention"; usize::try_from(keys.layers).unwrap_or(0)];
        map.insert("layer_types".into(), all.into());
    }
    soft_cap(
        keys,
        map,
        "final_logit_softcapping",
        "final_logit_softcapping",
        None,
    );
    Ok(())
}

pub(super) fn gpt_neox(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    if let Some(parallel) = keys.get("use_parallel_residual").and_then(Value::as_bool) {
        map.insert("use_parallel_residual".into(), parallel.into());
    }
    // The fused projection has its bias under another name.
    map.insert(
        "attention_bias".into(),
        keys.any_layer("attn_qkv.bias").into(),
    );
    Ok(())
}

/// The multipliers.
pub(super) fn granite(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    floats(
        keys,
        map,
        &[
            ("attention.scale", "attention_multiplier"),
            ("embedding_scale", "embedding_multiplier"),
            ("residual_scale", "residual_multiplier"),
            ("logit_scale", "logits_scaling"),
        ],
    );
    Ok(())
}

pub(super) fn granite_moe(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    map.insert(
        "num_local_experts".into(),
        keys.req("expert_count", EXPERTS)?.into(),
    );
    map.insert(
        "num_experts_per_tok".into(),
        keys.req("expert_used_count", TOP_K)?.into(),
    );
    if let Some(n) = keys
        .opt("expert_shared_feed_forward_length")?
        .filter(|&n| n > 0)
    {
        rename(map, "GraniteMoeSharedForCausalLM", "granitemoeshared");
        map.insert("shared_intermediate_size".into(), n.into());
    }
    Ok(())
}

pub(super) fn deepseek2(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    let rank = keys.req(
        "attention.kv_lora_rank",
        "it is the size of the cached vector",
    )?;
    let rope = keys.req("rope.dimension_count", "it is the size of the rotary key")?;
    // Files with the latent form state the sizes of the decompressed heads apart; in older ones
    // the plain keys are those sizes.
    let first = |a: &str, b: &str, why: &'static str| match keys.opt(a)?.filter(|&n| n > 0) {
        Some(n) => Ok(n),
        None => keys.req(b, why),
    };
    let why = "it is the head size";
    let k = first("attention.key_length_mla", "attention.key_length", why)?;
    let v = first("attention.value_length_mla", "attention.value_length", why)?;
    let Some(nope) = k.checked_sub(rope).filter(|&n| n > 0) else {
        return Err(ModelError::Contradiction(format!(
            "`{}` is {rope}, not below the key head size {k}",
            keys.name("rope.dimension_count")
        )));
    };
    // A cache of one latent head is written as one KV head; the config counts decompressed heads.
    if let Some(heads) = map.get("num_attention_heads").cloned() {
        map.insert("num_key_value_heads".into(), heads);
    }
    let q_rank = keys.opt("attention.q_lora_rank")?.filter(|&n| n > 0);
    map.insert("q_lora_rank".into(), q_rank.map_or(Json::Null, Json::from));
    for (key, value) in [
        ("kv_lora_rank", rank),
        ("qk_rope_head_dim", rope),
        ("qk_nope_head_dim", nope),
        ("v_head_dim", v),
        ("n_routed_experts", keys.req("expert_count", EXPERTS)?),
        ("num_experts_per_tok", keys.req("expert_used_count", TOP_K)?),
        (
            "n_shared_experts",
            keys.opt("expert_shared_count")?.unwrap_or(0),
        ),
        ("moe_intermediate_size", expert_inner(keys)?),
        (
            "first_k_dense_replace",
            keys.opt("leading_dense_block_count")?.unwrap_or(0),
        ),
        ("moe_layer_freq", 1),
    ] {
        map.insert(key.to_owned(), value.into());
    }
    // The third version chooses experts by a sigmoid with a bias.
    if keys.any_layer("exp_probs_b.bias") {
        rename(map, "DeepseekV3ForCausalLM", "deepseek_v3");
    }
    Ok(())
}

/// Biases where the file has them: of the models of 2025 the small one.
pub(super) fn glm4(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    map.insert(
        "attention_bias".into(),
        keys.any_layer("attn_q.bias").into(),
    );
    Ok(())
}

/// What each layer has, as a checkpoint's config says it: a layer without KV heads has a matrix in place of attention
/// where it has query heads, else nothing.
pub(super) fn deci(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    let of = |key: &str, why: &'static str| {
        keys.per_layer(key)?.ok_or_else(|| ModelError::Missing {
            field: keys.name(key),
            why,
        })
    };
    let heads = of("attention.head_count", "it says which layers attend")?;
    let kv_heads = of("attention.head_count_kv", "it says which layers attend")?;
    let inner = of("feed_forward_length", "it sizes each layer's feed-forward")?;
    let mut blocks = Vec::new();
    for ((&q, &kv), &inner) in heads.iter().zip(&kv_heads).zip(&inner) {
        if kv > 0 && !q.is_multiple_of(kv) {
            return Err(ModelError::Contradiction(format!(
                "a layer has {q} attention heads, no multiple of its {kv} KV heads"
            )));
        }
        blocks.push(json!({
            "attention": {
                "n_heads_in_group": q.checked_div(kv),
                "no_op": q == 0,
                "replace_with_linear": q > 0 && kv == 0,
            },
            "ffn": { "intermediate_size": inner, "no_op": inner == 0, "replace_with_linear": false },
        }));
    }
    map.insert("block_configs".into(), blocks.into());
    Ok(())
}

pub(super) fn gpt_oss(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    map.insert(
        "num_local_experts".into(),
        keys.req("expert_count", EXPERTS)?.into(),
    );
    map.insert(
        "num_experts_per_tok".into(),
        keys.req("expert_used_count", TOP_K)?.into(),
    );
    map.insert("intermediate_size".into(), expert_inner(keys)?.into());
    keys.req("attention.sliding_window", "every other layer has a window")?;
    map.insert("layer_types".into(), keys.layer_types(2)?);
    Ok(())
}
