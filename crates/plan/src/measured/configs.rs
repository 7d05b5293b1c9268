//! Configurations of the models in a file of reports.

use std::collections::BTreeMap;

use plimsoll_model::catalogue;
use serde_json::{Map, Value};

use super::gguf::config_of_gguf;
use super::published;
use super::record::{LineError, objects};

/// Configurations by model, as one JSON object per line gives them.
#[derive(Clone, Debug, Default)]
pub struct Configs {
    by_model: BTreeMap<String, Map<String, Value>>,
}

/// Fields of an entry that are about the entry, not the model.
const ABOUT: &[&str] = &[
    "model",
    "same_architecture_as",
    "source",
    "arithmetic_check",
    "note",
    "gguf_metadata",
    "rope_dim",
    "v_head_dim_gguf",
];

/// How many `same_architecture_as` links are followed.
const MAX_LINKS: usize = 8;

impl Configs {
    /// Reads a file with one configuration per line.
    ///
    /// # Errors
    /// [`LineError`] at the first line that is no object or names no model.
    pub fn parse(text: &str) -> Result<Self, LineError> {
        let mut by_model = BTreeMap::new();
        for (line, map) in objects(text)? {
            let name = map
                .get("model")
                .and_then(Value::as_str)
                .ok_or_else(|| LineError {
                    line,
                    reason: "`model` is missing".to_owned(),
                })?
                .to_owned();
            by_model.insert(name, map);
        }
        Ok(Self { by_model })
    }

    /// The configuration of `model`, and what was assumed to get it.
    ///
    /// Fields that an entry lacks are taken from the model it says it shares its architecture
    /// with, then from the built-in catalogue where that has this hub id and contradicts nothing
    /// that the entry says; a model without an entry is looked up in the catalogue. Only
    /// configurations that go with reports are filled so: a model's own files are read as they are.
    ///
    /// # Errors
    /// The reason where there is none.
    pub fn config(&self, model: &str) -> Result<(Value, Vec<String>), String> {
        let Some(entry) = self.by_model.get(model) else {
            let entry = catalogue::find(model)
                .ok_or_else(|| format!("no configuration of `{model}` is given"))?;
            return Ok((
                entry.config.clone(),
                vec!["configuration from the built-in catalogue".to_owned()],
            ));
        };
        let mut merged = entry.clone();
        let mut next = entry;
        for _ in 0..MAX_LINKS {
            let Some(other) = next
                .get("same_architecture_as")
                .and_then(Value::as_str)
                .and_then(|name| self.by_model.get(name))
            else {
                break;
            };
            for (key, value) in other {
                // Another checkpoint's weight format is not this one's.
                if key != "quantization_config" && !merged.contains_key(key) {
                    merged.insert(key.clone(), value.clone());
                }
            }
            next = other;
        }
        let mut assumed = Vec::new();
        if !merged.contains_key("model_type")
            && !merged.contains_key("architectures")
            && let Some(Value::Object(metadata)) = merged.get("gguf_metadata")
        {
            let Value::Object(from_gguf) = config_of_gguf(&with_own(metadata, &merged))? else {
                return Err("GGUF metadata gives no configuration".to_owned());
            };
            merged = from_gguf;
            assumed.push("configuration from GGUF metadata".to_owned());
        }
        if merged.keys().all(|k| ABOUT.contains(&k.as_str())) {
            return Err(format!("the configuration of `{model}` is empty"));
        }
        merged.retain(|k, _| !ABOUT.contains(&k.as_str()));
        if let Some(Value::Object(own)) = catalogue::find(model).map(|e| &e.config)
            && agrees(&merged, own)
            && fill(&mut merged, own)
        {
            assumed.push("fields that are left out from the built-in catalogue".to_owned());
        }
        assumed.extend(as_published(model, &mut merged));
        Ok((Value::Object(merged), assumed))
    }
}

/// Printed metadata with what an entry has of it under a config's names: logs print the vocabulary apart, and cut lists of
/// all layers short.
fn with_own(metadata: &Map<String, Value>, entry: &Map<String, Value>) -> Map<String, Value> {
    let mut all = metadata.clone();
    let Some(arch) = metadata.keys().find_map(|k| k.strip_suffix(".block_count")) else {
        return all;
    };
    let mut put = |key: &str, value: &Value| {
        let key = format!("{arch}.{key}");
        all.entry(key).or_insert_with(|| value.clone());
    };
    if let Some(rows) = entry.get("vocab_size") {
        put("vocab_size", rows);
    }
    for (key, name) in [
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("feed_forward_length", "intermediate_size"),
    ] {
        if let Some(value @ Value::Array(_)) = entry.get(name) {
            put(key, value);
        }
    }
    all
}

/// Whether nothing that `config` states is otherwise in `from`: then both are of one model, and what one leaves out the
/// other may tell. A text model's fields may stand at the root of one and in a part of the other.
fn agrees(config: &Map<String, Value>, from: &Map<String, Value>) -> bool {
    let of = |key: &str| {
        from.get(key)
            .or_else(|| from.get("text_config").and_then(|t| t.get(key)))
    };
    config.iter().all(|(key, value)| match (value, of(key)) {
        // Written out and left to its default are the same to a reader, and whole parts are never merged.
        (Value::Null, _) | (_, None | Some(Value::Null)) => true,
        (Value::Object(own), Some(Value::Object(theirs))) if key == "text_config" => {
            agrees(own, theirs)
        }
        (Value::Object(_), Some(Value::Object(_))) => true,
        (Value::Number(a), Some(Value::Number(b))) => a.as_f64() == b.as_f64(),
        (own, Some(theirs)) => own == theirs,
    })
}

/// Puts in what `from` has and `config` lacks, in the text model's part too; whether anything was.
fn fill(config: &mut Map<String, Value>, from: &Map<String, Value>) -> bool {
    let mut filled = false;
    for (key, value) in from {
        match (config.get_mut(key), value) {
            (Some(Value::Object(own)), Value::Object(value)) if key == "text_config" => {
                filled |= fill(own, value);
            }
            (Some(_), _) => {}
            (None, value) => {
                config.insert(key.clone(), value.clone());
                filled = true;
            }
        }
    }
    filled
}

/// Puts in how the checkpoint is published, where its configuration does not say how its weights are stored, or says it
/// without the modules that keep their type; tells so.
fn as_published(model: &str, config: &mut Map<String, Value>) -> Option<String> {
    let published = published::quantization(model)?;
    let text = |c: &Map<String, Value>| {
        let text = c.get("text_config")?;
        text.get("quantization_config").cloned()
    };
    let said = config
        .get("quantization_config")
        .cloned()
        .or_else(|| text(config));
    match said {
        Some(said) if published::names_modules(&said) => return None,
        // Another method is another checkpoint's.
        Some(said) if said.get("quant_method") != published.get("quant_method") => return None,
        _ => {}
    }
    config.insert("quantization_config".to_owned(), published.clone());
    Some("quantization_config as the checkpoint is published".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_of_all_layers_come_from_beside_the_metadata() {
        let c = Configs::parse(
            "{\"model\":\"a\",\"vocab_size\":9,\"num_attention_heads\":[4,0],\"num_key_value_heads\":[2,0],\
              \"intermediate_size\":[512,256],\"gguf_metadata\":{\"deci.block_count\":\"2\",\
              \"deci.embedding_length\":\"64\",\"deci.context_length\":\"128\"}}",
        )
        .expect("an object");
        let (config, _) = c.config("a").expect("a");
        assert_eq!(config["architectures"][0], "DeciLMForCausalLM");
        assert_eq!(
            config["block_configs"][0]["attention"]["n_heads_in_group"],
            2
        );
        assert_eq!(config["block_configs"][1]["attention"]["no_op"], true);
        assert_eq!(config["block_configs"][1]["ffn"]["intermediate_size"], 256);
        assert_eq!(config["intermediate_size"], 512);
    }

    #[test]
    fn what_a_copy_leaves_out_is_as_published() {
        let c = Configs::parse(
            "{\"model\":\"nvidia/Gemma-4-31B-IT-NVFP4\",\"model_type\":\"gemma4\",\
              \"quantization_config\":{\"quant_method\":\"modelopt\",\"quant_algo\":\"NVFP4\"}}\n\
             {\"model\":\"moonshotai/Kimi-K2-Thinking\",\"model_type\":\"kimi_k2\"}\n\
             {\"model\":\"nvidia/GLM-5-NVFP4\",\"model_type\":\"glm_moe_dsa\",\
              \"quantization_config\":{\"quant_method\":\"modelopt\",\"ignore\":[\"lm_head\"]}}\n\
             {\"model\":\"nvidia/GLM-5.1-NVFP4\",\"model_type\":\"glm_moe_dsa\",\
              \"quantization_config\":{\"quant_method\":\"fp8\"}}",
        )
        .expect("four objects");
        let said = |model: &str| {
            let (config, assumed) = c.config(model).expect(model);
            (config["quantization_config"].clone(), assumed.len())
        };
        let (gemma, assumed) = said("nvidia/Gemma-4-31B-IT-NVFP4");
        assert!(gemma["exclude_modules"].is_array() && assumed == 1);
        let (kimi, assumed) = said("moonshotai/Kimi-K2-Thinking");
        assert_eq!(
            kimi["config_groups"]["group_0"]["weights"]["group_size"],
            32
        );
        assert_eq!(assumed, 1);
        // What says it itself, or says another thing, stays.
        assert_eq!(said("nvidia/GLM-5-NVFP4").1, 0);
        assert_eq!(said("nvidia/GLM-5.1-NVFP4").1, 0);
    }

    #[test]
    fn the_catalogue_contradicts_nobody() {
        let config = |text: &str| {
            let text = format!("{{\"model\":\"Qwen/Qwen3-0.6B\",\"model_type\":\"qwen3\",{text}}}");
            let c = Configs::parse(&text).expect("an object");
            c.config("Qwen/Qwen3-0.6B").expect("an entry")
        };
        let (filled, assumed) = config("\"hidden_size\":1024.0,\"num_hidden_layers\":28");
        assert_eq!(
            (&filled["num_key_value_heads"], assumed.len()),
            (&json!(8), 1)
        );
        for other in [
            "\"hidden_size\":2048,\"num_hidden_layers\":28",
            "\"text_config\":{\"hidden_size\":2048},\"num_hidden_layers\":29",
            "\"architectures\":[\"Other\"]",
        ] {
            let (own, assumed) = config(other);
            assert!(assumed.is_empty(), "{other}: {assumed:?}");
            assert!(own.get("num_key_value_heads").is_none(), "{other}");
        }
        // A wrapper's part is looked into as well.
        let c = Configs::parse(
            "{\"model\":\"google/gemma-3-4b-it\",\"model_type\":\"gemma3\",\"text_config\":{\"hidden_size\":7}}\n\
             {\"model\":\"google/gemma-3-12b-it\",\"hidden_size\":7}",
        )
        .expect("two objects");
        for model in ["google/gemma-3-4b-it", "google/gemma-3-12b-it"] {
            assert!(c.config(model).expect("an entry").1.is_empty(), "{model}");
        }
    }

    #[test]
    fn missing_fields_come_from_the_named_twin() {
        let c = Configs::parse(
            "{\"model\":\"a\",\"model_type\":\"llama\",\"hidden_size\":8,\"quantization_config\":{}}\n\
             {\"model\":\"b\",\"same_architecture_as\":\"a\",\"hidden_size\":16}\n\
             {\"model\":\"c\",\"source\":\"nowhere\"}",
        )
        .expect("three objects");
        let (b, _) = c.config("b").expect("b");
        assert_eq!(
            b,
            serde_json::json!({"hidden_size": 16, "model_type": "llama"})
        );
        assert!(c.config("c").is_err());
        assert!(c.config("d").is_err());
    }
}
