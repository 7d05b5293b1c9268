//! A config from GGUF metadata, for logs and reports that show only that.
//!
//! The keys are those of llama.cpp's `gguf-py` (`constants.py`); the fields are Hugging Face's. An
//! architecture that has no counterpart here is refused by name.

use serde_json::{Map, Value, json};

/// Architectures of GGUF files and the `model_type` that reads the same shapes.
const TYPES: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen2moe", "qwen2_moe"),
    ("qwen3", "qwen3"),
    ("qwen3moe", "qwen3_moe"),
    ("qwen3next", "qwen3_next"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("phi2", "phi"),
    ("phi3", "phi3"),
    ("gpt2", "gpt2"),
    ("gptneox", "gpt_neox"),
    ("opt", "opt"),
    ("granite", "granite"),
    ("glm4", "glm4"),
    ("gpt-oss", "gpt_oss"),
];

/// GGUF keys under the architecture's prefix, and the config fields they fill.
const FIELDS: &[(&str, &[&str])] = &[
    ("block_count", &["num_hidden_layers"]),
    ("embedding_length", &["hidden_size"]),
    ("feed_forward_length", &["intermediate_size"]),
    ("context_length", &["max_position_embeddings"]),
    ("vocab_size", &["vocab_size"]),
    ("attention.head_count", &["num_attention_heads"]),
    ("attention.head_count_kv", &["num_key_value_heads"]),
    ("attention.key_length", &["head_dim"]),
    ("attention.sliding_window", &["sliding_window"]),
    (
        "expert_count",
        &["num_experts", "num_local_experts", "n_routed_experts"],
    ),
    ("expert_used_count", &["num_experts_per_tok"]),
    ("expert_feed_forward_length", &["moe_intermediate_size"]),
    (
        "expert_shared_feed_forward_length",
        &["shared_expert_intermediate_size"],
    ),
    ("expert_shared_count", &["n_shared_experts"]),
    ("leading_dense_block_count", &["first_k_dense_replace"]),
    ("attention.kv_lora_rank", &["kv_lora_rank"]),
    ("attention.q_lora_rank", &["q_lora_rank"]),
];

/// The config that GGUF `metadata` describes. Values may be numbers or, as logs print them, text.
///
/// # Errors
/// The reason where the architecture is missing or has no counterpart.
pub fn config_of_gguf(metadata: &Map<String, Value>) -> Result<Value, String> {
    let architecture = match metadata.get("general.architecture").and_then(Value::as_str) {
        Some(a) => a.to_owned(),
        None => metadata
            .keys()
            .find_map(|k| k.strip_suffix(".block_count"))
            .ok_or("the GGUF metadata names no architecture")?
            .to_owned(),
    };
    let get = |key: &str| whole(metadata.get(&format!("{architecture}.{key}"))?);
    let mut config = Map::new();
    for (key, fields) in FIELDS {
        if let Some(n) = get(key) {
            for field in *fields {
                config.insert((*field).to_owned(), json!(n));
            }
        }
    }
    let model_type = match architecture.as_str() {
        "deepseek2" => {
            let rope = get("rope.dimension_count").unwrap_or(64);
            // Files since 2025 keep the sizes of the expanded heads under *_mla.
            let key = get("attention.key_length_mla").or(get("attention.key_length"));
            let value = get("attention.value_length_mla").or(get("attention.value_length"));
            config.remove("head_dim");
            config.insert("qk_rope_head_dim".to_owned(), json!(rope));
            if let Some(k) = key {
                config.insert("qk_nope_head_dim".to_owned(), json!(k.saturating_sub(rope)));
            }
            if let Some(v) = value {
                config.insert("v_head_dim".to_owned(), json!(v));
            }
            // Every expanded head has its own key and value, whatever the file says of its cache.
            if let Some(h) = get("attention.head_count") {
                config.insert("num_key_value_heads".to_owned(), json!(h));
            }
            // Gating function 2 is the sigmoid of V3 and its descendants.
            if get("expert_gating_func") == Some(2) {
                "deepseek_v3"
            } else {
                "deepseek_v2"
            }
        }
        "llama" if config.contains_key("num_local_experts") => "mixtral",
        other => TYPES
            .iter()
            .find(|(a, _)| *a == other)
            .map(|(_, t)| *t)
            .ok_or_else(|| format!("GGUF architecture `{other}` has no family here"))?,
    };
    config.insert("model_type".to_owned(), json!(model_type));
    config.insert("torch_dtype".to_owned(), json!("float16"));
    Ok(Value::Object(config))
}

/// A whole number, also written as text.
fn whole(v: &Value) -> Option<u64> {
    v.as_u64()
        .or_else(|| v.as_str().and_then(|s| s.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latent_attention_is_read_from_expanded_heads() {
        let v = json!({
            "deepseek2.block_count": "27", "deepseek2.embedding_length": "2048",
            "deepseek2.attention.head_count": "16", "deepseek2.attention.key_length": "192",
            "deepseek2.attention.value_length": "128", "deepseek2.rope.dimension_count": "64",
            "deepseek2.attention.kv_lora_rank": "512"
        });
        let c = config_of_gguf(v.as_object().expect("an object")).expect("a known architecture");
        assert_eq!(c["qk_nope_head_dim"], 128);
        assert_eq!(c["model_type"], "deepseek_v2");
    }

    #[test]
    fn unknown_architectures_are_refused_by_name() {
        let v = json!({"deci.block_count": "162"});
        let e = config_of_gguf(v.as_object().expect("an object")).expect_err("no family");
        assert!(e.contains("deci"), "{e}");
    }
}
