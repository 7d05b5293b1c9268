//! Gemma 4: heads of two sizes and numbers, late layers that read earlier ones' keys and values.
//!
//! Source: llama.cpp `src/models/gemma4.cpp` (`load_arch_hparams`) and `conversion/gemma.py`: the plain keys are those of
//! layers that see everything, `_swa` those of layers with a window.

use serde_json::{Map, Value as Json};

use super::config::Keys;
use super::fields::{EXPERTS, TOP_K, expert_inner};
use crate::ModelError;

pub(super) fn fields(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    keys.req("attention.sliding_window", "most layers have a window")?;
    let windowed = keys
        .per_layer(PATTERN)?
        .ok_or_else(|| ModelError::Missing {
            field: keys.name(PATTERN),
            why: "it says which layers have a window",
        })?;
    let kv_heads = keys
        .per_layer("attention.head_count_kv")?
        .unwrap_or_default();
    // Heads of layers of one kind are alike.
    let of = |kind: bool| {
        let mut own = windowed
            .iter()
            .zip(&kv_heads)
            .filter(|(w, _)| (**w > 0) == kind)
            .map(|(_, n)| *n);
        let first = own.next();
        match own.all(|n| Some(n) == first) {
            true => Ok(first),
            false => Err(ModelError::Contradiction(format!(
                "`{}` differs among layers of one kind",
                keys.name("attention.head_count_kv")
            ))),
        }
    };
    let (local, full) = (of(true)?, of(false)?);
    let mut put = |key: &str, value: Json| map.insert(key.to_owned(), value);
    if let Some(size) = keys.opt("attention.key_length")?.filter(|n| *n > 0) {
        put("global_head_dim", size.into());
    }
    if let Some(size) = keys.opt("attention.key_length_swa")?.filter(|n| *n > 0) {
        put("head_dim", size.into());
    }
    if let Some(n) = local.or(full) {
        put("num_key_value_heads", n.into());
    }
    // Where numbers differ values are read from keys' matrix, and files have no other.
    let by_key = local.is_some() && full.is_some() && local != full;
    put("attention_k_eq_v", by_key.into());
    if let (true, Some(n)) = (by_key, full) {
        put("num_global_key_value_heads", n.into());
    }
    let shared = keys.opt("attention.shared_kv_layers")?.unwrap_or(0);
    put("num_kv_shared_layers", shared.into());
    let each = keys.opt("embedding_length_per_layer_input")?.unwrap_or(0);
    put("hidden_size_per_layer_input", each.into());
    let inner = keys.per_layer("feed_forward_length")?.unwrap_or_default();
    if let (Some(least), Some(most)) = (inner.iter().min(), inner.iter().max()) {
        put("intermediate_size", (*least).into());
        put("use_double_wide_mlp", (most > least).into());
    }
    let kind = |w: &u64| match w {
        0 => "full_attention",
        _ => "sliding_attention",
    };
    let kinds: Vec<&str> = windowed.iter().map(kind).collect();
    put("layer_types", kinds.into());
    if keys.opt("expert_count")?.is_some_and(|n| n > 0) {
        put("enable_moe_block", true.into());
        put("num_experts", keys.req("expert_count", EXPERTS)?.into());
        put(
            "top_k_experts",
            keys.req("expert_used_count", TOP_K)?.into(),
        );
        put("moe_intermediate_size", expert_inner(keys)?.into());
    }
    if let Some(cap) = keys.float("final_logit_softcapping") {
        put("final_logit_softcapping", cap.into());
    }
    map.remove("rotary_dim");
    Ok(())
}
