//! [`to_config`]: GGUF metadata as the `config.json` that a checkpoint of the same model has.
//!
//! llama.cpp's converters write each architecture's hyperparameters under `<architecture>.` keys;
//! this is the way back, for the architectures whose layers the family files know. Sources: the
//! `load_arch_hparams` of `src/models/*.cpp` and the key names of `src/llama-arch.cpp`.

use serde_json::{Map, Value as Json, json};

use super::value::Value;
use super::{Header, ValueType, fields, gemma4, routed};
use crate::config::MAX_LAYERS;
use crate::json::printable;
use crate::{Assume, ModelError};
use plimsoll_units::DType;

/// How an architecture's config is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// The names that most decoders share.
    Common,
    /// GPT-2's own names.
    Gpt2,
}

/// One architecture of llama.cpp.
struct Arch {
    /// `general.architecture`.
    gguf: &'static str,
    architecture: &'static str,
    model_type: &'static str,
    style: Style,
    /// Whether widths and KV heads may differ from layer to layer.
    layers_differ: bool,
    /// What it has beyond the shared fields.
    extra: fn(&Keys<'_>, &mut Map<String, Json>) -> Result<(), ModelError>,
}

const fn common(
    gguf: &'static str,
    architecture: &'static str,
    model_type: &'static str,
    extra: fn(&Keys<'_>, &mut Map<String, Json>) -> Result<(), ModelError>,
) -> Arch {
    Arch {
        gguf,
        architecture,
        model_type,
        style: Style::Common,
        layers_differ: false,
        extra,
    }
}

/// The same, whose layers may differ.
const fn differing(arch: Arch) -> Arch {
    Arch {
        layers_differ: true,
        ..arch
    }
}

const ARCHITECTURES: &[Arch] = &[
    common("llama", "LlamaForCausalLM", "llama", fields::llama),
    common("qwen2", "Qwen2ForCausalLM", "qwen2", fields::nothing),
    common(
        "qwen2moe",
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        fields::qwen_moe,
    ),
    common("qwen3", "Qwen3ForCausalLM", "qwen3", fields::nothing),
    common(
        "qwen3moe",
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        fields::qwen_moe,
    ),
    common(
        "qwen3next",
        "Qwen3NextForCausalLM",
        "qwen3_next",
        fields::qwen3_next,
    ),
    // The text half of these; the tower is in a file of its own (`mmproj`).
    common("qwen2vl", "Qwen2ForCausalLM", "qwen2", fields::nothing),
    common("qwen3vl", "Qwen3ForCausalLM", "qwen3", fields::nothing),
    common(
        "qwen3vlmoe",
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        fields::qwen_moe,
    ),
    common("gemma", "GemmaForCausalLM", "gemma", fields::nothing),
    common("gemma2", "Gemma2ForCausalLM", "gemma2", fields::gemma2),
    common("gemma3", "Gemma3ForCausalLM", "gemma3_text", fields::gemma3),
    common("phi2", "PhiForCausalLM", "phi", fields::nothing),
    common("phi3", "Phi3ForCausalLM", "phi3", fields::nothing),
    Arch {
        gguf: "gpt2",
        architecture: "GPT2LMHeadModel",
        model_type: "gpt2",
        style: Style::Gpt2,
        layers_differ: false,
        extra: fields::nothing,
    },
    common(
        "gptneox",
        "GPTNeoXForCausalLM",
        "gpt_neox",
        fields::gpt_neox,
    ),
    common("granite", "GraniteForCausalLM", "granite", fields::granite),
    common(
        "granitemoe",
        "GraniteMoeForCausalLM",
        "granitemoe",
        fields::granite_moe,
    ),
    common(
        "deepseek2",
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        fields::deepseek2,
    ),
    common("gpt-oss", "GptOssForCausalLM", "gpt_oss", fields::gpt_oss),
    differing(common(
        "gemma4",
        "Gemma4ForCausalLM",
        "gemma4_text",
        gemma4::fields,
    )),
    common(
        "qwen35",
        "Qwen3_5ForCausalLM",
        "qwen3_5_text",
        fields::qwen35,
    ),
    common(
        "qwen35moe",
        "Qwen3_5MoeForCausalLM",
        "qwen3_5_moe_text",
        fields::qwen35,
    ),
    common("glm4", "Glm4ForCausalLM", "glm4", fields::glm4),
    differing(common(
        "deci",
        "DeciLMForCausalLM",
        "nemotron-nas",
        fields::deci,
    )),
    common(
        "glm4moe",
        "Glm4MoeForCausalLM",
        "glm4_moe",
        routed::glm4_moe,
    ),
    common("dots1", "Dots1ForCausalLM", "dots1", routed::dots1),
    common(
        "ernie4_5",
        "Ernie4_5ForCausalLM",
        "ernie4_5",
        fields::nothing,
    ),
    common(
        "ernie4_5-moe",
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5_moe",
        routed::ernie4_5,
    ),
    common(
        "hunyuan-dense",
        "HunYuanDenseV1ForCausalLM",
        "hunyuan_v1_dense",
        fields::nothing,
    ),
    common(
        "hunyuan-moe",
        "HunYuanMoEV1ForCausalLM",
        "hunyuan_v1_moe",
        routed::hunyuan,
    ),
    common("llama4", "Llama4ForCausalLM", "llama4_text", routed::llama4),
    common(
        "minimax-m2",
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        routed::minimax_m2,
    ),
    common("olmoe", "OlmoeForCausalLM", "olmoe", routed::olmoe),
    common("olmo2", "Olmo2ForCausalLM", "olmo2", fields::nothing),
    common(
        "seed_oss",
        "SeedOssForCausalLM",
        "seed_oss",
        fields::nothing,
    ),
    common("smollm3", "SmolLM3ForCausalLM", "smollm3", fields::nothing),
    common("command-r", "CohereForCausalLM", "cohere", fields::nothing),
    common(
        "starcoder2",
        "Starcoder2ForCausalLM",
        "starcoder2",
        fields::nothing,
    ),
    common(
        "nemotron",
        "NemotronForCausalLM",
        "nemotron",
        fields::nothing,
    ),
];

/// What an unknown architecture is taken for where the user says so.
const LLAMA_LIKE: Arch = common("", "LlamaForCausalLM", "llama", fields::nothing);

/// Access to the keys of one architecture.
pub(super) struct Keys<'a> {
    pub(super) header: &'a Header,
    pub(super) arch: &'a str,
    /// Decoder layers, multi-token-prediction layers not among them.
    pub(super) layers: u64,
    /// Multi-token-prediction layers.
    pub(super) nextn: u64,
    layers_differ: bool,
}

impl Keys<'_> {
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.header.get(&self.name(key))
    }

    fn invalid(&self, key: &str, value: &Value, reason: &str) -> ModelError {
        let text = match value {
            Value::Unsigned(n, _) => n.to_string(),
            Value::Negative(n, _) => n.to_string(),
            Value::Float(f, _) => f.to_string(),
            Value::Bool(b) => b.to_string(),
            Value::String(s) => printable(s),
            Value::LongString { bytes } => format!("a string of {bytes} bytes"),
            Value::Array(a) => format!("an array of {}", a.len),
        };
        ModelError::Invalid {
            field: self.name(key),
            value: text,
            reason: reason.to_owned(),
        }
    }

    /// A number, or an array with one for each layer.
    pub(super) fn per_layer(&self, key: &str) -> Result<Option<Vec<u64>>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = |v: &Value| {
            // `sliding_window_pattern` has booleans.
            v.as_u64().or_else(|| v.as_bool().map(u64::from))
        };
        let all = self.layers.saturating_add(self.nextn);
        let list: Option<Vec<u64>> = match value {
            Value::Array(a) => match &a.values {
                Some(v) if a.len >= self.layers && a.len <= all => v.iter().map(number).collect(),
                _ => None,
            },
            one => number(one).map(|n| vec![n; usize::try_from(self.layers).unwrap_or(0)]),
        };
        match list {
            Some(mut list) => {
                list.truncate(usize::try_from(self.layers).unwrap_or(0));
                Ok(Some(list))
            }
            None => {
                let reason = "expected a whole number, 0 or more, or one for each layer";
                Err(self.invalid(key, value, reason))
            }
        }
    }

    /// A number that is the same in every layer where it is not 0.
    pub(super) fn opt(&self, key: &str) -> Result<Option<u64>, ModelError> {
        let Some(list) = self.per_layer(key)? else {
            return Ok(None);
        };
        let mut some = list.iter().copied().filter(|&n| n > 0);
        let first = some.next().unwrap_or(0);
        if some.all(|n| n == first) {
            return Ok(Some(first));
        }
        match self.get(key) {
            Some(value) => Err(self.invalid(
                key,
                value,
                "it differs from layer to layer, which the configs of this architecture cannot say",
            )),
            None => Ok(None),
        }
    }

    /// A number that is the same in every layer where it is not 0; of an architecture whose layers differ, the largest.
    fn widest(&self, key: &str) -> Result<Option<u64>, ModelError> {
        if !self.layers_differ {
            return self.opt(key);
        }
        Ok(self.per_layer(key)?.and_then(|l| l.into_iter().max()))
    }

    pub(super) fn req(&self, key: &str, why: &'static str) -> Result<u64, ModelError> {
        match self.opt(key)? {
            Some(n) if n > 0 => Ok(n),
            Some(_) => match self.get(key) {
                Some(value) => Err(self.invalid(key, value, "expected 1 or more")),
                None => Err(ModelError::Missing {
                    field: self.name(key),
                    why,
                }),
            },
            None => Err(ModelError::Missing {
                field: self.name(key),
                why,
            }),
        }
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.header.tensor(name).is_some()
    }

    /// Whether any layer has a tensor of this name.
    pub(super) fn any_layer(&self, suffix: &str) -> bool {
        self.header
            .tensors
            .iter()
            .any(|t| t.name.starts_with("blk.") && t.name.splitn(3, '.').nth(2) == Some(suffix))
    }

    /// The kind of every layer: `n − 1` with a window, then one without, unless the file lists it.
    pub(super) fn layer_types(&self, n: u64) -> Result<Json, ModelError> {
        const KEY: &str = "attention.sliding_window_pattern";
        let listed = self.get(KEY).is_some_and(|v| v.kind() == ValueType::Array);
        let windowed: Vec<bool> = if listed {
            self.per_layer(KEY)?
                .unwrap_or_default()
                .into_iter()
                .map(|n| n > 0)
                .collect()
        } else {
            let n = self.opt(KEY)?.unwrap_or(n);
            (0..self.layers).map(|i| n == 0 || i % n < n - 1).collect()
        };
        let name = |w| {
            if w {
                "sliding_attention"
            } else {
                "full_attention"
            }
        };
        Ok(windowed.into_iter().map(name).collect::<Vec<_>>().into())
    }
}

/// The `config.json` that a checkpoint of the same model has.
///
/// With [`Assume::Gqa`] an unknown architecture is taken for a LLaMA-like decoder.
///
/// # Errors
/// [`ModelError`] where the architecture is unknown, or a key is missing or unusable.
pub fn to_config(header: &Header, assume: Assume) -> Result<Json, ModelError> {
    let text = |key: &str| header.get(key).and_then(Value::as_str);
    let Some(name) = text("general.architecture") else {
        return Err(ModelError::Missing {
            field: "general.architecture".to_owned(),
            why: "it says which keys describe the layers",
        });
    };
    if let Some(kind) = text("general.type").filter(|t| *t != "model") {
        return Err(ModelError::Contradiction(format!(
            "the file holds a {} for {}, not a model: give the model's own file",
            printable(kind),
            printable(name)
        )));
    }
    let known = ARCHITECTURES.iter().find(|a| a.gguf == name);
    let Some(arch) = known.or((assume == Assume::Gqa).then_some(&LLAMA_LIKE)) else {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.gguf).collect();
        return Err(ModelError::UnknownArchitecture {
            architecture: format!("`{}` of a GGUF file", printable(name)),
            missing: format!(
                "which layers keep what is only in the architecture's code; known are {}",
                known.join(", ")
            ),
        });
    };

    let all = Keys {
        header,
        arch: name,
        layers: 1,
        nextn: 0,
        layers_differ: arch.layers_differ,
    };
    let nextn = all.opt("nextn_predict_layers")?.unwrap_or(0);
    let blocks = all.req("block_count", "it is the number of layers")?;
    let layers = blocks
        .checked_sub(nextn)
        .filter(|&n| n > 0 && n <= MAX_LAYERS);
    let Some(layers) = layers else {
        let value = Value::Unsigned(blocks, ValueType::U32);
        let reason = format!("expected 1 to {MAX_LAYERS} layers beside {nextn} that predict ahead");
        return Err(all.invalid("block_count", &value, &reason));
    };
    let keys = Keys {
        header,
        arch: name,
        layers,
        nextn,
        layers_differ: arch.layers_differ,
    };

    let mut map = Map::new();
    map.insert("architectures".into(), json!([arch.architecture]));
    map.insert("model_type".into(), arch.model_type.into());
    match arch.style {
        Style::Common => common_fields(&keys, &mut map)?,
        Style::Gpt2 => gpt2_fields(&keys, &mut map)?,
    }
    map.insert("vocab_size".into(), vocab(&keys)?.into());
    map.insert(
        "tie_word_embeddings".into(),
        (!keys.has_tensor("output.weight")).into(),
    );
    let bf16 = header.tensors.iter().any(|t| t.dtype == DType::Bf16);
    map.insert(
        "torch_dtype".into(),
        if bf16 { "bfloat16" } else { "float16" }.into(),
    );
    (arch.extra)(&keys, &mut map)?;
    Ok(Json::Object(map))
}

/// Rows of the embedding; without one (the first part of a split), what the keys say.
fn vocab(keys: &Keys<'_>) -> Result<u64, ModelError> {
    if let Some(&rows) = keys
        .header
        .tensor("token_embd.weight")
        .and_then(|t| t.shape.first())
    {
        return Ok(rows);
    }
    if let Some(n) = keys.opt("vocab_size")?.filter(|&n| n > 0) {
        return Ok(n);
    }
    match keys
        .header
        .get("tokenizer.ggml.tokens")
        .and_then(Value::as_array)
    {
        Some(words) if words.len > 0 => Ok(words.len),
        _ => Err(ModelError::Missing {
            field: "token_embd.weight".to_owned(),
            why: "neither it nor a vocabulary says how many tokens there are",
        }),
    }
}

fn common_fields(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    let hidden = keys.req("embedding_length", "it is the width of every matrix")?;
    let heads = keys.req("attention.head_count", "it decides the head size")?;
    let kv_heads = keys
        .widest("attention.head_count_kv")?
        .filter(|&n| n > 0)
        .unwrap_or(heads);
    let mut put = |key: &str, value: u64| map.insert(key.to_owned(), value.into());
    put("hidden_size", hidden);
    put("num_hidden_layers", keys.layers);
    put("num_attention_heads", heads);
    put("num_key_value_heads", kv_heads);
    let k_dim = keys.opt("attention.key_length")?.filter(|&n| n > 0);
    let v_dim = keys.opt("attention.value_length")?.filter(|&n| n > 0);
    if let (Some(k), Some(v)) = (k_dim, v_dim)
        && k != v
        && keys.arch != "deepseek2"
    {
        return Err(ModelError::Contradiction(format!(
            "`{}` is {k} and `{}` is {v}: the {} architecture has one head size",
            keys.name("attention.key_length"),
            keys.name("attention.value_length"),
            keys.arch
        )));
    }
    if let Some(k) = k_dim.filter(|_| keys.arch != "deepseek2") {
        put("head_dim", k);
    }
    if let Some(n) = keys.widest("feed_forward_length")?.filter(|&n| n > 0) {
        put("intermediate_size", n);
    }
    if let Some(n) = keys.opt("context_length")?.filter(|&n| n > 0) {
        put("max_position_embeddings", n);
    }
    if let Some(n) = keys.opt("attention.sliding_window")?.filter(|&n| n > 0) {
        put("sliding_window", n);
    }
    if keys.nextn > 0 {
        put("num_nextn_predict_layers", keys.nextn);
    }
    if let Some(n) = keys
        .opt("rope.dimension_count")?
        .filter(|&n| n > 0 && keys.arch != "deepseek2")
    {
        put("rotary_dim", n);
    }
    floats(
        keys,
        map,
        &[
            ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            ("attention.layer_norm_epsilon", "layer_norm_eps"),
            ("rope.freq_base", "rope_theta"),
            ("rope.freq_base_swa", "rope_local_base_freq"),
        ],
    );
    rope_scaling(keys, map)?;
    if keys.arch != "qwen2" && keys.any_layer("attn_q.bias") {
        map.insert("attention_bias".into(), true.into());
    }
    if keys.any_layer("ffn_gate.bias") {
        map.insert("mlp_bias".into(), true.into());
    }
    Ok(())
}

/// Numbers under the names that a config has for them.
pub(super) fn floats(keys: &Keys<'_>, map: &mut Map<String, Json>, names: &[(&str, &str)]) {
    for (key, name) in names {
        if let Some(n) = keys.float(key) {
            map.insert((*name).to_owned(), n.into());
        }
    }
}

/// `rope.scaling.*` as a config's `rope_scaling`. LongRoPE has its divisors as tensors; so has Llama 3.1, whose
/// keys then say nothing of a scaling.
fn rope_scaling(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    let kind = match keys.get("rope.scaling.type") {
        _ if keys.has_tensor("rope_factors_long.weight") => "longrope",
        Some(value) => match value.as_str() {
            Some("none") => return Ok(()),
            Some(kind) => kind,
            None => return Err(keys.invalid("rope.scaling.type", value, "expected a name")),
        },
        None => return Ok(()),
    };
    let mut set = Map::new();
    set.insert("rope_type".into(), printable(kind).into());
    floats(
        keys,
        &mut set,
        &[
            ("rope.scaling.factor", "factor"),
            ("rope.scaling.attn_factor", "attention_factor"),
            ("rope.scaling.yarn_beta_fast", "beta_fast"),
            ("rope.scaling.yarn_beta_slow", "beta_slow"),
        ],
    );
    if let Some(n) = keys
        .opt("rope.scaling.original_context_length")?
        .filter(|&n| n > 0)
    {
        set.insert("original_max_position_embeddings".into(), n.into());
    }
    map.insert("rope_scaling".into(), Json::Object(set));
    Ok(())
}

fn gpt2_fields(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    let mut put = |key: &str, value: u64| map.insert(key.to_owned(), value.into());
    put(
        "n_embd",
        keys.req("embedding_length", "it is the width of every matrix")?,
    );
    put("n_layer", keys.layers);
    put(
        "n_head",
        keys.req("attention.head_count", "it decides the head size")?,
    );
    let positions = keys.req("context_length", "it sizes the position embeddings")?;
    put("n_positions", positions);
    if let Some(n) = keys.opt("feed_forward_length")?.filter(|&n| n > 0) {
        put("n_inner", n);
    }
    floats(
        keys,
        map,
        &[("attention.layer_norm_epsilon", "layer_norm_epsilon")],
    );
    Ok(())
}
