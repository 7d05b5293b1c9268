//! Architectures with routed experts whose hyperparameters differ by name alone.
//!
//! Source: llama.cpp's `load_arch_hparams` of `src/models/{glm4-moe,dots1,ernie4-5-moe,hunyuan-moe,llama4,minimax-m2,olmoe}.cpp`
//! and the keys of `src/llama-arch.cpp`; the fields are those that the families read.

use serde_json::{Map, Value as Json};

use super::config::Keys;
use super::fields::{EXPERTS, TOP_K, expert_inner};
use crate::ModelError;

type Fields = Map<String, Json>;

/// Writes the number of experts, how many a token passes and their inner size under these names.
fn named(keys: &Keys<'_>, map: &mut Fields, names: [&str; 3]) -> Result<(), ModelError> {
    let values = [
        keys.req("expert_count", EXPERTS)?,
        keys.req("expert_used_count", TOP_K)?,
        expert_inner(keys)?,
    ];
    for (name, value) in names.into_iter().zip(values) {
        map.insert(name.to_owned(), value.into());
    }
    Ok(())
}

/// Writes the numbers under llama.cpp's keys, 0 where a file leaves them out.
fn counts(keys: &Keys<'_>, map: &mut Fields, names: &[(&str, &str)]) -> Result<(), ModelError> {
    for (key, name) in names {
        let value = keys.opt(key)?.unwrap_or(0);
        map.insert((*name).to_owned(), value.into());
    }
    Ok(())
}

const DEEPSEEK: [&str; 3] = [
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
];

/// GLM-4.5 and 4.6, whose large models normalise queries and keys.
pub(super) fn glm4_moe(keys: &Keys<'_>, map: &mut Fields) -> Result<(), ModelError> {
    map.insert(
        "use_qk_norm".into(),
        keys.any_layer("attn_q_norm.weight").into(),
    );
    // Said even where there are none: a checkpoint's config is silent, and one is then assumed.
    map.insert("num_nextn_predict_layers".into(), keys.nextn.into());
    dots1(keys, map)
}

pub(super) fn dots1(keys: &Keys<'_>, map: &mut Fields) -> Result<(), ModelError> {
    named(keys, map, DEEPSEEK)?;
    let both = [
        ("expert_shared_count", "n_shared_experts"),
        ("leading_dense_block_count", "first_k_dense_replace"),
    ];
    counts(keys, map, &both)
}

pub(super) fn ernie4_5(keys: &Keys<'_>, map: &mut Fields) -> Result<(), ModelError> {
    named(
        keys,
        map,
        ["moe_num_experts", "moe_k", "moe_intermediate_size"],
    )?;
    let both = [
        ("expert_shared_count", "moe_num_shared_experts"),
        ("leading_dense_block_count", "moe_layer_start_index"),
    ];
    counts(keys, map, &both)?;
    let every = keys.opt("interleave_moe_layer_step")?.filter(|n| *n > 0);
    map.insert("moe_layer_interval".into(), every.unwrap_or(1).into());
    Ok(())
}

/// Hunyuan's shared experts are told by their width together; its config counts them.
pub(super) fn hunyuan(keys: &Keys<'_>, map: &mut Fields) -> Result<(), ModelError> {
    named(
        keys,
        map,
        ["num_experts", "moe_topk", "moe_intermediate_size"],
    )?;
    let inner = expert_inner(keys)?;
    let shared = keys.opt("expert_shared_feed_forward_length")?.unwrap_or(0);
    if !shared.is_multiple_of(inner.max(1)) {
        return Err(ModelError::Contradiction(format!(
            "the shared experts are {shared} wide, no multiple of the {inner} of one"
        )));
    }
    if shared > 0 {
        let count = shared / inner.max(1);
        map.insert("num_shared_expert".into(), count.into());
    }
    // No layer is dense, and transformers' class takes one width for both.
    map.insert("intermediate_size".into(), inner.into());
    Ok(())
}

/// LLaMA 4: `feed_forward_length` is the dense layers', and three layers of four see a chunk.
pub(super) fn llama4(keys: &Keys<'_>, map: &mut Fields) -> Result<(), ModelError> {
    if let Some(dense) = map.get("intermediate_size").cloned() {
        map.insert("intermediate_size_mlp".into(), dense);
    }
    let names = [
        "num_local_experts",
        "num_experts_per_tok",
        "intermediate_size",
    ];
    named(keys, map, names)?;
    let every = keys.req(
        "interleave_moe_layer_step",
        "it says which layers have experts",
    )?;
    map.insert("interleave_moe_layer_step".into(), every.into());
    let chunk = match keys.get("attention.sliding_window") {
        Some(_) => keys.opt("attention.sliding_window")?.unwrap_or(0),
        None => CHUNK,
    };
    map.remove("sliding_window");
    map.insert(
        "attention_chunk_size".into(),
        if chunk > 0 { chunk.into() } else { Json::Null },
    );
    Ok(())
}

/// What llama.cpp takes where a file does not say it.
const CHUNK: u64 = 8192;

pub(super) fn minimax_m2(keys: &Keys<'_>, map: &mut Fields) -> Result<(), ModelError> {
    let names = [
        "num_local_experts",
        "num_experts_per_tok",
        "intermediate_size",
    ];
    named(keys, map, names)
}

pub(super) fn olmoe(keys: &Keys<'_>, map: &mut Fields) -> Result<(), ModelError> {
    let names = ["num_experts", "num_experts_per_tok", "intermediate_size"];
    let dense = map.get("intermediate_size").cloned();
    match keys.opt("expert_feed_forward_length")?.filter(|n| *n > 0) {
        Some(_) => named(keys, map, names),
        // Its files have the experts' width under the plain key.
        None => {
            let inner = dense.ok_or_else(|| ModelError::Missing {
                field: keys.name("feed_forward_length"),
                why: "it sizes the experts",
            })?;
            let (experts, used) = (
                keys.req("expert_count", EXPERTS)?,
                keys.req("expert_used_count", TOP_K)?,
            );
            let values = [experts.into(), used.into(), inner];
            for (name, value) in names.into_iter().zip(values) {
                map.insert(name.to_owned(), value);
            }
            Ok(())
        }
    }
}
