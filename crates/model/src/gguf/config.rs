//! [`to_config`]: GGUF metadata as the `config.json` that a checkpoint of the same model has.
//!
//! llama.cpp's converters write each architecture's hyperparameters under `<architecture>.` keys;
//! this is the way back, for the architectures whose layers the family files know. Sources: the
//! `load_arch_hparams` of `src/models/*.cpp` and the key names of `src/llama-arch.cpp`.

use serde_json::{Map, Value as Json, json};

use super::value::Value;
use super::{Header, ValueType, gemma4, routed};
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
        extra,
    }
}

const ARCHITECTURES: &[Arch] = &[
    common("llama", "LlamaForCausalLM", "llama", llama),
    common("qwen2", "Qwen2ForCausalLM", "qwen2", nothing),
    common("qwen2moe", "Qwen2MoeForCausalLM", "qwen2_moe", qwen_moe),
    common("qwen3", "Qwen3ForCausalLM", "qwen3", nothing),
    common("qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe", qwen_moe),
    common(
        "qwen3next",
        "Qwen3NextForCausalLM",
        "qwen3_next",
        qwen3_next,
    ),
    // The text half of these; the tower is in a file of its own (`mmproj`).
    common("qwen2vl", "Qwen2ForCausalLM", "qwen2", nothing),
    common("qwen3vl", "Qwen3ForCausalLM", "qwen3", nothing),
    common("qwen3vlmoe", "Qwen3MoeForCausalLM", "qwen3_moe", qwen_moe),
    common("gemma", "GemmaForCausalLM", "gemma", nothing),
    common("gemma2", "Gemma2ForCausalLM", "gemma2", gemma2),
    common("gemma3", "Gemma3ForCausalLM", "gemma3_text", gemma3),
    common("phi2", "PhiForCausalLM", "phi", nothing),
    common("phi3", "Phi3ForCausalLM", "phi3", nothing),
    Arch {
        gguf: "gpt2",
        architecture: "GPT2LMHeadModel",
        model_type: "gpt2",
        style: Style::Gpt2,
        extra: nothing,
    },
    common("gptneox", "GPTNeoXForCausalLM", "gpt_neox", gpt_neox),
    common("granite", "GraniteForCausalLM", "granite", granite),
    common(
        "granitemoe",
        "GraniteMoeForCausalLM",
        "granitemoe",
        granite_moe,
    ),
    common(
        "deepseek2",
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        deepseek2,
    ),
    common("gpt-oss", "GptOssForCausalLM", "gpt_oss", gpt_oss),
    common("gemma4", "Gemma4ForCausalLM", "gemma4_text", gemma4::fields),
    common("qwen35", "Qwen3_5ForCausalLM", "qwen3_5_text", qwen35),
    common(
        "qwen35moe",
        "Qwen3_5MoeForCausalLM",
        "qwen3_5_moe_text",
        qwen35,
    ),
    common("glm4", "Glm4ForCausalLM", "glm4", glm4),
    common("deci", "DeciLMForCausalLM", "nemotron-nas", deci),
    common(
        "glm4moe",
        "Glm4MoeForCausalLM",
        "glm4_moe",
        routed::glm4_moe,
    ),
    common("dots1", "Dots1ForCausalLM", "dots1", routed::dots1),
    common("ernie4_5", "Ernie4_5ForCausalLM", "ernie4_5", nothing),
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
        nothing,
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
    common("olmo2", "Olmo2ForCausalLM", "olmo2", nothing),
    common("seed_oss", "SeedOssForCausalLM", "seed_oss", nothing),
    common("smollm3", "SmolLM3ForCausalLM", "smollm3", nothing),
    common("command-r", "CohereForCausalLM", "cohere", nothing),
    common("starcoder2", "Starcoder2ForCausalLM", "starcoder2", nothing),
    common("nemotron", "NemotronForCausalLM", "nemotron", nothing),
];

/// What an unknown architecture is taken for where the user says so.
const LLAMA_LIKE: Arch = common("", "LlamaForCausalLM", "llama", nothing);

/// Access to the keys of one architecture.
pub(super) struct Keys<'a> {
    header: &'a Header,
    arch: &'a str,
    /// Decoder layers, multi-token-prediction layers not among them.
    layers: u64,
    /// Multi-token-prediction layers.
    pub(super) nextn: u64,
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
        if !["deci", "gemma4"].contains(&self.arch) {
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

    fn has_tensor(&self, name: &str) -> bool {
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
    fn layer_types(&self, n: u64) -> Result<Json, ModelError> {
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
fn floats(keys: &Keys<'_>, map: &mut Map<String, Json>, names: &[(&str, &str)]) {
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

fn nothing(_: &Keys<'_>, _: &mut Map<String, Json>) -> Result<(), ModelError> {
    Ok(())
}

pub(super) const EXPERTS: &str = "it is the number of experts";
pub(super) const TOP_K: &str = "it is the number of experts that a token passes";

fn rename(map: &mut Map<String, Json>, architecture: &str, model_type: &str) {
    map.insert("architectures".into(), json!([architecture]));
    map.insert("model_type".into(), model_type.into());
}

/// LLaMA and Mistral; with experts, Mixtral.
fn llama(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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

fn qwen_moe(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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

fn qwen3_next(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    qwen_moe(keys, map)?;
    // Said even where there are none: a checkpoint's config is silent, and one is then assumed.
    map.insert("num_nextn_predict_layers".into(), keys.nextn.into());
    delta_net(keys, map)
}

/// Qwen3.5, dense and with experts.
fn qwen35(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    if keys.arch == "qwen35moe" {
        qwen_moe(keys, map)?;
    }
    map.remove("num_nextn_predict_layers");
    map.insert("mtp_num_hidden_layers".into(), keys.nextn.into());
    delta_net(keys, map)
}

/// The recurrent layers of Qwen3-Next and Qwen3.5, and where they are.
fn delta_net(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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

fn soft_cap(
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
fn gemma2(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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
fn gemma_scale(keys: &Keys<'_>, map: &mut Map<String, Json>, shared_at: u64) {
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

fn gemma3(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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

fn gpt_neox(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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
fn granite(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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

fn granite_moe(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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

fn deepseek2(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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
fn glm4(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
    map.insert(
        "attention_bias".into(),
        keys.any_layer("attn_q.bias").into(),
    );
    Ok(())
}

/// What each layer has, as a checkpoint's config says it: a layer without KV heads has a matrix in place of attention
/// where it has query heads, else nothing.
fn deci(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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

fn gpt_oss(keys: &Keys<'_>, map: &mut Map<String, Json>) -> Result<(), ModelError> {
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
