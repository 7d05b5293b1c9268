//! A config from printed GGUF metadata, for logs and reports that show only that.
//!
//! The translation itself is the model crate's; this turns printed text back into typed values.

use plimsoll_model::Assume;
use plimsoll_model::gguf::{Array, Header, Value as Gguf, ValueType, to_config};
use serde_json::{Map, Value};

/// The config that GGUF `metadata` describes. Values may be numbers or, as logs print them, text.
///
/// # Errors
/// The reason where the architecture is missing or unknown, or a key that it needs is.
pub fn config_of_gguf(metadata: &Map<String, Value>) -> Result<Value, String> {
    let mut header = Header::default();
    for (key, value) in metadata {
        if let Some(v) = typed(value) {
            header.metadata.insert(key.clone(), v);
        }
    }
    if header.get("general.architecture").is_none() {
        // Excerpts often begin after the first line; every other key carries its prefix.
        let prefix = metadata.keys().find_map(|k| k.strip_suffix(".block_count"));
        if let Some(a) = prefix {
            header.metadata.insert(
                "general.architecture".to_owned(),
                Gguf::String(a.to_owned()),
            );
        }
    }
    to_config(&header, Assume::Nothing).map_err(|e| e.to_string())
}

fn typed(value: &Value) -> Option<Gguf> {
    match value {
        Value::Null | Value::Object(_) => None,
        Value::Bool(b) => Some(Gguf::Bool(*b)),
        Value::Number(n) => match (n.as_u64(), n.as_f64()) {
            (Some(n), _) => Some(Gguf::Unsigned(n, ValueType::U32)),
            (None, Some(f)) => Some(Gguf::Float(f, ValueType::F32)),
            (None, None) => None,
        },
        Value::String(s) => {
            let t = s.trim();
            Some(
                match (t.parse::<u64>(), t.replace(',', ".").parse::<f64>(), t) {
                    (Ok(n), _, _) => Gguf::Unsigned(n, ValueType::U32),
                    // Printed with six decimals, after a point or a comma.
                    (_, Ok(f), _) if f.is_finite() => Gguf::Float(f, ValueType::F32),
                    (_, _, "true") => Gguf::Bool(true),
                    (_, _, "false") => Gguf::Bool(false),
                    _ => Gguf::String(t.to_owned()),
                },
            )
        }
        Value::Array(items) => {
            let values: Option<Vec<Gguf>> = items.iter().map(typed).collect();
            let element = values
                .as_ref()
                .and_then(|v| v.first())
                .map_or(ValueType::U32, Gguf::kind);
            Some(Gguf::Array(Array {
                element,
                len: items.len() as u64,
                values,
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn latent_attention_is_read_from_expanded_heads() {
        let v = json!({
            "deepseek2.block_count": "27", "deepseek2.embedding_length": "2048",
            "deepseek2.feed_forward_length": "10944", "deepseek2.vocab_size": "102400",
            "deepseek2.attention.head_count": "16", "deepseek2.attention.head_count_kv": "16",
            "deepseek2.attention.key_length": "192", "deepseek2.attention.value_length": "128",
            "deepseek2.rope.dimension_count": "64", "deepseek2.attention.kv_lora_rank": "512",
            "deepseek2.expert_count": "64", "deepseek2.expert_used_count": "6",
            "deepseek2.expert_feed_forward_length": "1408", "deepseek2.expert_shared_count": "2",
            "deepseek2.leading_dense_block_count": "1", "deepseek2.rope.freq_base": "10000,000000"
        });
        let c = config_of_gguf(v.as_object().expect("an object")).expect("a known architecture");
        assert_eq!(c["qk_nope_head_dim"], 128);
        assert_eq!(c["kv_lora_rank"], 512);
    }

    #[test]
    fn unknown_architectures_are_refused_by_name() {
        let v = json!({"potato.block_count": "162"});
        let e = config_of_gguf(v.as_object().expect("an object")).expect_err("no family");
        assert!(e.contains("potato"), "{e}");
    }
}
