//! A golden row's GGUF metadata as a `ModelSpec`, and as the `config.json` that it came from.

use plimsoll_model::{
    Attention, Ffn, LatentAttention, LayerSpec, Mixer, ModelSpec, Moe, NotRunnable, Reach, Role,
    Shard, StateKind, StateSpace, TensorSpec,
};
use plimsoll_units::DType;
use serde_json::{Value, json};

/// Typed access to one architecture's keys.
pub(crate) struct Meta<'a> {
    map: &'a Value,
    pub(crate) arch: String,
}

impl<'a> Meta<'a> {
    pub(crate) fn new(map: &'a Value) -> Self {
        let arch = map["general.architecture"]
            .as_str()
            .expect("an architecture");
        Self {
            map,
            arch: arch.to_owned(),
        }
    }

    fn raw(&self, key: &str) -> &'a Value {
        &self.map[&format!("{}.{key}", self.arch)]
    }

    pub(crate) fn opt(&self, key: &str) -> Option<u64> {
        self.raw(key).as_u64()
    }

    pub(crate) fn get(&self, key: &str) -> u64 {
        self.opt(key).unwrap_or_else(|| panic!("{key} is missing"))
    }

    /// A value that may differ by layer.
    fn at(&self, key: &str, i: u64) -> Option<u64> {
        match self.raw(key) {
            Value::Array(list) => list[usize::try_from(i).expect("small")].as_u64(),
            v => v.as_u64(),
        }
    }

    /// The window of layer `i`: a pattern by layer, or the architecture's own.
    fn window(&self, i: u64) -> Option<u64> {
        let window = self.opt("attention.sliding_window")?;
        let every = match self.arch.as_str() {
            "gemma2" | "gpt-oss" => 2,
            "gemma3" => 6,
            _ => 0,
        };
        let windowed = match self.raw("attention.sliding_window_pattern") {
            Value::Array(list) => list[usize::try_from(i).expect("small")] == true,
            _ if every > 0 => i % every < every - 1,
            // Phi-3 states a window; which engine keeps it is not the model's business.
            _ => true,
        };
        windowed.then_some(window)
    }

    fn mixer(&self, i: u64) -> Mixer {
        let heads = self.get("attention.head_count");
        if self.opt("ssm.conv_kernel").is_some() && !(i + 1).is_multiple_of(4) {
            let (values, keys) = (self.get("ssm.time_step_rank"), self.get("ssm.group_count"));
            let dim = self.get("ssm.state_size");
            return Mixer::State(StateSpace {
                kind: StateKind::GatedDelta,
                conv_taps: self.get("ssm.conv_kernel"),
                conv_channels: dim * (2 * keys + values),
                heads: values,
                rows: dim,
                cols: dim,
                groups: keys,
                state_dtype: None,
            });
        }
        if let Some(key) = self.opt("attention.key_length_mla") {
            let rope = self.get("rope.dimension_count");
            return Mixer::Latent(LatentAttention {
                q_heads: heads,
                rank: self.get("attention.kv_lora_rank"),
                rope_dim: rope,
                nope_dim: key - rope,
                v_dim: self.get("attention.value_length_mla"),
                q_rank: self.opt("attention.q_lora_rank"),
                indexer: None,
                compressed: None,
            });
        }
        let window = self.window(i);
        let plain = self.get("embedding_length") / heads;
        let dim = |key: &str| {
            let own = window.and_then(|_| self.opt(&format!("attention.{key}_swa")));
            own.or(self.opt(&format!("attention.{key}")))
                .unwrap_or(plain)
        };
        Mixer::Attention(Attention {
            q_heads: heads,
            kv_heads: self.at("attention.head_count_kv", i).expect("KV heads"),
            k_dim: dim("key_length"),
            v_dim: dim("value_length"),
            reach: window.map_or(Reach::Full, Reach::Window),
            shared: false,
        })
    }

    fn ffn(&self, i: u64) -> Ffn {
        let dense = self.get("feed_forward_length");
        let experts = self.opt("expert_count").unwrap_or(0);
        if experts == 0 || i < self.opt("leading_dense_block_count").unwrap_or(0) {
            return Ffn::Dense {
                intermediate: dense,
                gated: !matches!(self.arch.as_str(), "gpt2" | "gptneox"),
            };
        }
        let each = self.opt("expert_feed_forward_length").unwrap_or(dense);
        let shared = self
            .opt("expert_shared_feed_forward_length")
            .or(self.opt("expert_shared_count").map(|n| n * each));
        Ffn::Moe(Moe {
            experts,
            top_k: self.get("expert_used_count"),
            intermediate: each,
            shared: shared.unwrap_or(0),
        })
    }

    fn layers(&self) -> Vec<LayerSpec> {
        (0..self.get("block_count"))
            .map(|i| LayerSpec {
                mixer: self.mixer(i),
                parallel: None,
                cross: None,
                ffn: self.ffn(i),
            })
            .collect()
    }

    /// The row's tensors, one by one, with shapes in the order of a checkpoint.
    fn tensors(tensors: &Value) -> Vec<TensorSpec> {
        let mut out = Vec::new();
        for t in tensors.as_array().expect("tensors") {
            let name = t[0].as_str().expect("a name");
            let dtype: DType = t[1].as_str().expect("a type").parse().expect("a ggml type");
            let mut shape: Vec<u64> = t[2]
                .as_array()
                .expect("a shape")
                .iter()
                .map(|d| d.as_u64().expect("a size"))
                .collect();
            shape.reverse();
            let role = match name {
                "token_embd.weight" => Role::Embedding,
                "position_embd.weight" => Role::Position,
                "output.weight" => Role::Head,
                n if n.contains("norm") => Role::Norm,
                _ => Role::Other,
            };
            let one = |layer: Option<u32>| TensorSpec {
                name: layer
                    .map_or_else(|| name.to_owned(), |i| name.replace("{i}", &i.to_string())),
                shape: shape.clone(),
                dtype,
                role,
                layer,
                shard: Shard::Replicated,
                experts: None,
                linear: None,
            };
            match t[3].as_array() {
                Some(list) => out.extend(list.iter().map(|i| {
                    one(Some(
                        u32::try_from(i.as_u64().expect("a layer")).expect("small"),
                    ))
                })),
                None => out.push(one(None)),
            }
        }
        out
    }

    /// The model as its file header tells it.
    pub(crate) fn spec(&self, tensors: &Value) -> ModelSpec {
        let tensors = Self::tensors(tensors);
        let tied = !tensors.iter().any(|t| t.role == Role::Head);
        ModelSpec {
            architecture: self.arch.clone(),
            family: "test",
            hidden: self.get("embedding_length"),
            vocab: self.get("vocab_size"),
            max_context: self.opt("context_length"),
            dtype: DType::F16,
            tied_embeddings: tied,
            layers: self.layers(),
            tensors,
            quant: None,
            encoder: None,
            mtp_layers: 0,
            rotary: Vec::new(),
            final_softcap: false,
            arithmetic: Err(NotRunnable::Family),
            from_headers: true,
            notes: Vec::new(),
        }
    }

    /// A config of the same model, in the common names, for families that use no others.
    pub(crate) fn config(&self, tied: bool) -> Option<Value> {
        let class = match self.arch.as_str() {
            "llama" if self.opt("expert_count").is_some() => "MixtralForCausalLM",
            "llama" => "LlamaForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            "qwen3moe" => "Qwen3MoeForCausalLM",
            "gpt2" => "GPT2LMHeadModel",
            "gptneox" => "GPTNeoXForCausalLM",
            "phi3" => "Phi3ForCausalLM",
            "granite" => "GraniteForCausalLM",
            "gemma2" => "Gemma2ForCausalLM",
            "gemma3" => "Gemma3ForCausalLM",
            "gpt-oss" => "GptOssForCausalLM",
            "deepseek2" => "DeepseekV3ForCausalLM",
            "qwen3next" => "Qwen3NextForCausalLM",
            _ => return None,
        };
        let width = self.get("embedding_length");
        let heads = self.get("attention.head_count");
        let inner = self.get("feed_forward_length");
        let latent = self.opt("attention.key_length_mla").is_some();
        let mut c = json!({
            "architectures": [class], "torch_dtype": "float16", "tie_word_embeddings": tied,
            "hidden_size": width, "num_hidden_layers": self.get("block_count"),
            "vocab_size": self.get("vocab_size"), "num_attention_heads": heads,
            "num_key_value_heads": if latent { Some(heads) } else { self.opt("attention.head_count_kv") },
            "intermediate_size": inner,
            "max_position_embeddings": self.get("context_length"),
        });
        let mut set = |key: &str, v: Option<u64>| {
            if let Some(v) = v {
                c[key] = json!(v);
            }
        };
        if !latent {
            set("head_dim", self.opt("attention.key_length"));
        }
        set("num_experts", self.opt("expert_count"));
        set("num_local_experts", self.opt("expert_count"));
        set("n_routed_experts", self.opt("expert_count"));
        set("num_experts_per_tok", self.opt("expert_used_count"));
        set(
            "moe_intermediate_size",
            self.opt("expert_feed_forward_length"),
        );
        set("sliding_window", self.opt("attention.sliding_window"));
        if latent {
            let rope = self.get("rope.dimension_count");
            set("q_lora_rank", self.opt("attention.q_lora_rank"));
            set("kv_lora_rank", self.opt("attention.kv_lora_rank"));
            set("qk_rope_head_dim", Some(rope));
            set(
                "qk_nope_head_dim",
                Some(self.get("attention.key_length_mla") - rope),
            );
            set("v_head_dim", self.opt("attention.value_length_mla"));
            set(
                "first_k_dense_replace",
                self.opt("leading_dense_block_count"),
            );
            set("n_shared_experts", self.opt("expert_shared_count"));
            set("n_group", self.opt("expert_group_count"));
            set("topk_group", self.opt("expert_group_used_count"));
        }
        if self.arch == "qwen3next" {
            set(
                "shared_expert_intermediate_size",
                self.opt("expert_shared_feed_forward_length"),
            );
            set("linear_conv_kernel_dim", self.opt("ssm.conv_kernel"));
            set("linear_key_head_dim", self.opt("ssm.state_size"));
            set("linear_value_head_dim", self.opt("ssm.state_size"));
            set("linear_num_key_heads", self.opt("ssm.group_count"));
            set("linear_num_value_heads", self.opt("ssm.time_step_rank"));
            set("full_attention_interval", Some(4));
            set("decoder_sparse_step", Some(1));
        }
        if matches!(self.arch.as_str(), "qwen2") {
            set("sliding_window", None);
        }
        if self.arch == "gpt2" {
            set("n_positions", self.opt("context_length"));
        }
        if matches!(self.arch.as_str(), "gemma2" | "gemma3" | "gpt-oss") {
            let types: Vec<&str> = (0..self.get("block_count"))
                .map(|i| match self.window(i) {
                    Some(_) => "sliding_attention",
                    None => "full_attention",
                })
                .collect();
            c["layer_types"] = json!(types);
        }
        Some(c)
    }
}
