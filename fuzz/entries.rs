//! What the fuzz targets call, and the plain tests with them (`crates/model/tests/corpus.rs`).
//!
//! Each takes bytes from a stranger as far as this program would: parse, lower, sum. None may panic,
//! whatever the bytes; what parses must also keep the promises that the asserts name.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each target uses one of them"
)]

use plimsoll_model::gguf::{self, Header};
use plimsoll_model::safetensors::{Index, SafetensorsHeader, spec_with_headers};
use plimsoll_model::{Assume, ModelSpec, from_config, json};

/// A model of one small layer, which the seeds of `safetensors` hold.
pub const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
"num_key_value_heads": 1, "vocab_size": 8, "tie_word_embeddings": true, "torch_dtype": "float16"}"#;

pub fn gguf(data: &[u8]) {
    let Ok(header) = Header::read(data) else {
        return;
    };
    let vocabulary = gguf::Vocabulary::read(data).unwrap_or_default();
    let bytes: usize = vocabulary.tokens.iter().map(String::len).sum();
    assert!(bytes <= 3 * data.len(), "more text than the file holds");
    for t in &header.tensors {
        assert!(
            header.data_start + t.end <= data.len() as u64,
            "a tensor leaves the file"
        );
        assert_eq!(t.begin % header.alignment, 0);
    }
    for assume in [Assume::Nothing, Assume::Gqa] {
        if let Ok((_, spec)) = gguf::spec(&header, assume) {
            sums(&spec);
        }
    }
}

pub fn safetensors(data: &[u8]) {
    let Ok(header) = SafetensorsHeader::read(&data) else {
        return;
    };
    let held: u64 = header.tensors.iter().map(|t| t.end - t.begin).sum();
    assert_eq!(
        header.data_start + held,
        data.len() as u64,
        "the tensors tile the file"
    );
    let spec = json::parse_config(CONFIG.as_bytes())
        .ok()
        .and_then(|c| from_config(&c, Assume::Nothing).ok());
    if let Some(Ok(spec)) = spec.map(|s| spec_with_headers(s, &[header])) {
        sums(&spec);
    }
}

pub fn config(data: &[u8]) {
    let Ok(value) = json::parse_config(data) else {
        return;
    };
    for assume in [Assume::Nothing, Assume::Gqa] {
        if let Ok(spec) = from_config(&value, assume) {
            sums(&spec);
        }
    }
}

pub fn index(data: &[u8]) {
    let Ok(index) = Index::parse(data) else {
        return;
    };
    for shard in index.shards() {
        assert!(
            !shard.contains(['/', '\\', '\0']) && shard != "..",
            "a shard leaves its folder"
        );
    }
    assert!(index.check(&[]).is_err(), "an index has shards");
}

/// Sums that must be found, or refused, without a wrap.
fn sums(spec: &ModelSpec) {
    let stored = spec
        .stored_bytes()
        .expect("a model that was accepted has a size");
    let by_role = spec.bytes_by_role().expect("so have its parts");
    let sum: u64 = by_role.iter().map(|(_, b)| b.get()).sum();
    assert_eq!(sum, stored.get(), "the roles cover all tensors");
    let _ = spec.parameters();
}
