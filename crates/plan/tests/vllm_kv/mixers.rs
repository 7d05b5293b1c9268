//! Layers of golden rows whose family the model crate does not lower: what each layer caches, read
//! by hand from the config, and nothing else. It tests the allocation rules, not the families.

use plimsoll_model::{
    Assume, Attention, Ffn, LatentAttention, LayerSpec, Mixer, ModelSpec, Reach, StateKind,
    StateSpace, attention_layer, from_config,
};
use plimsoll_units::DType;
use serde_json::{Value, json};

/// The layers of `config`, in a spec without tensors; `None` for kinds that the spec has no word for.
pub(crate) fn spec(config: &Value) -> Option<ModelSpec> {
    let c = Fields(config);
    let layers = match config["model_type"].as_str()? {
        "granitemoehybrid" => c.by_layer_types("attention", c.mamba2(c.wide()))?,
        "bamba" => {
            let at: Vec<u64> = c.list("attn_layer_indices")?;
            c.each(|i| {
                if at.contains(&i) {
                    c.attention(Reach::Full)
                } else {
                    state(c.mamba2(c.wide()))
                }
            })
        }
        "jamba" => {
            let (offset, period) = (c.n("attn_layer_offset"), c.n("attn_layer_period"));
            c.each(|i| {
                if i % period == offset {
                    c.attention(Reach::Full)
                } else {
                    state(c.mamba1())
                }
            })
        }
        "nemotron_h" => {
            let pattern = config["hybrid_override_pattern"].as_str()?.as_bytes();
            c.each(|i| match pattern[at(i)] {
                b'M' => state(c.nemotron()),
                b'*' => c.attention(Reach::Full),
                _ => plain(Mixer::None),
            })
        }
        "falcon_h1" => c.each(|_| LayerSpec {
            parallel: Some(c.mamba2(c.n("mamba_d_ssm"))),
            ..c.attention(Reach::Full)
        }),
        "mamba2" => c.each(|_| state(c.pure_mamba2())),
        "lfm2" => c.by_layer_types("full_attention", c.short_conv())?,
        "kimi_linear" => {
            let full: Vec<u64> = Fields(&config["linear_attn_config"]).list("full_attn_layers")?;
            // Counted from 1.
            c.each(|i| {
                if full.contains(&(i + 1)) {
                    c.latent()
                } else {
                    state(c.kda())
                }
            })
        }
        "gemma3n_text" => {
            let local = c.words("layer_types")?;
            let own =
                c.n("num_hidden_layers") - config["num_kv_shared_layers"].as_u64().unwrap_or(0);
            c.each(|i| c.local_or_full(local[at(i)] == "sliding_attention", i / own))
        }
        "llama4_text" => {
            let rope: Vec<u64> = c.list("no_rope_layers")?;
            let chunk = c.n("attention_chunk_size");
            c.each(|i| {
                let local = rope[at(i)] != 0;
                c.attention(if local {
                    Reach::Chunk(chunk)
                } else {
                    Reach::Full
                })
            })
        }
        "gemma4_text" => {
            let window = c.n("sliding_window");
            let types = c.words("layer_types")?;
            c.each(|i| {
                if types[at(i)] == "sliding_attention" {
                    c.attention(Reach::Window(window))
                } else {
                    attention_layer(
                        Attention {
                            kv_heads: c.n("num_global_key_value_heads"),
                            k_dim: c.n("global_head_dim"),
                            v_dim: c.n("global_head_dim"),
                            ..c.heads(Reach::Full)
                        },
                        Ffn::None,
                    )
                }
            })
        }
        "qwen3_5" => {
            let text = Fields(&config["text_config"]);
            text.by_layer_types("full_attention", text.delta(Some(DType::F32)))?
        }
        _ => return None,
    };
    let mut spec = bare()?;
    spec.layers = layers;
    Some(spec)
}

/// A spec to put layers into: any small model, without its tensors.
fn bare() -> Option<ModelSpec> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 64,
        "torch_dtype": "bfloat16",
    });
    let mut spec = from_config(&config, Assume::Nothing).ok()?;
    spec.tensors.clear();
    Some(spec)
}

fn plain(mixer: Mixer) -> LayerSpec {
    LayerSpec {
        mixer,
        parallel: None,
        ffn: Ffn::None,
    }
}

fn state(s: StateSpace) -> LayerSpec {
    plain(Mixer::State(s))
}

fn at(layer: u64) -> usize {
    usize::try_from(layer).expect("layers are few")
}

#[derive(Clone, Copy)]
struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn n(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("{key}"))
    }

    fn list(&self, key: &str) -> Option<Vec<u64>> {
        self.0[key].as_array()?.iter().map(Value::as_u64).collect()
    }

    fn words(&self, key: &str) -> Option<Vec<&str>> {
        self.0[key].as_array()?.iter().map(Value::as_str).collect()
    }

    fn each(&self, f: impl Fn(u64) -> LayerSpec) -> Vec<LayerSpec> {
        (0..self.n("num_hidden_layers")).map(f).collect()
    }

    fn by_layer_types(&self, attention: &str, s: StateSpace) -> Option<Vec<LayerSpec>> {
        let types = self.0["layer_types"].as_array()?;
        Some(
            types
                .iter()
                .map(|t| {
                    if t == attention {
                        self.attention(Reach::Full)
                    } else {
                        state(s)
                    }
                })
                .collect(),
        )
    }

    fn heads(&self, reach: Reach) -> Attention {
        let q_heads = self.n("num_attention_heads");
        let size = self.0["head_dim"]
            .as_u64()
            .unwrap_or_else(|| self.n("hidden_size") / q_heads);
        Attention {
            q_heads,
            kv_heads: self.n("num_key_value_heads"),
            k_dim: size,
            v_dim: size,
            reach,
            shared: false,
        }
    }

    fn attention(&self, reach: Reach) -> LayerSpec {
        attention_layer(self.heads(reach), Ffn::None)
    }

    /// A window layer or a full one; `shared` is 0 where it has its own cache.
    fn local_or_full(&self, local: bool, shared: u64) -> LayerSpec {
        let reach = if local {
            Reach::Window(self.n("sliding_window"))
        } else {
            Reach::Full
        };
        let a = Attention {
            shared: shared > 0,
            ..self.heads(reach)
        };
        attention_layer(a, Ffn::None)
    }

    fn latent(&self) -> LayerSpec {
        plain(Mixer::Latent(LatentAttention {
            q_heads: self.n("num_attention_heads"),
            rank: self.n("kv_lora_rank"),
            rope_dim: self.n("qk_rope_head_dim"),
            nope_dim: self.n("qk_nope_head_dim"),
            v_dim: self.n("v_head_dim"),
            q_rank: self.0["q_lora_rank"].as_u64(),
            indexer: None,
        }))
    }

    /// Only the tail of a convolution: a state of no elements.
    fn short_conv(&self) -> StateSpace {
        StateSpace {
            kind: StateKind::GatedDelta,
            conv_taps: self.n("conv_L_cache"),
            conv_channels: self.n("hidden_size"),
            heads: 0,
            rows: 0,
            cols: 0,
            groups: 1,
            state_dtype: None,
        }
    }

    /// Kimi's delta attention: three convolutions and a square state per head, in f32.
    fn kda(&self) -> StateSpace {
        let linear = Fields(&self.0["linear_attn_config"]);
        let (heads, size) = (linear.n("num_heads"), linear.n("head_dim"));
        StateSpace {
            kind: StateKind::GatedDelta,
            conv_taps: linear.n("short_conv_kernel_size"),
            conv_channels: 3 * heads * size,
            heads,
            rows: size,
            cols: size,
            groups: heads,
            state_dtype: Some(DType::F32),
        }
    }

    fn wide(&self) -> u64 {
        self.n("mamba_expand") * self.n("hidden_size")
    }

    fn mamba1(&self) -> StateSpace {
        let inner = self.wide();
        StateSpace {
            kind: StateKind::Mamba1,
            conv_taps: self.n("mamba_d_conv"),
            conv_channels: inner,
            heads: inner,
            rows: 1,
            cols: self.n("mamba_d_state"),
            groups: 1,
            state_dtype: None,
        }
    }

    fn mamba2(&self, inner: u64) -> StateSpace {
        let (groups, cols) = (self.n("mamba_n_groups"), self.n("mamba_d_state"));
        StateSpace {
            kind: StateKind::Mamba2,
            conv_taps: self.n("mamba_d_conv"),
            conv_channels: inner + 2 * groups * cols,
            heads: self.n("mamba_n_heads"),
            rows: self.n("mamba_d_head"),
            cols,
            groups,
            state_dtype: None,
        }
    }

    fn nemotron(&self) -> StateSpace {
        let (heads, rows) = (self.n("mamba_num_heads"), self.n("mamba_head_dim"));
        let (groups, cols) = (self.n("n_groups"), self.n("ssm_state_size"));
        StateSpace {
            kind: StateKind::Mamba2,
            conv_taps: self.n("conv_kernel"),
            conv_channels: heads * rows + 2 * groups * cols,
            heads,
            rows,
            cols,
            groups,
            // vLLM's default for this family.
            state_dtype: Some(DType::F32),
        }
    }

    fn pure_mamba2(&self) -> StateSpace {
        let (groups, cols) = (self.n("n_groups"), self.n("state_size"));
        StateSpace {
            kind: StateKind::Mamba2,
            conv_taps: self.n("conv_kernel"),
            conv_channels: self.n("expand") * self.n("hidden_size") + 2 * groups * cols,
            heads: self.n("num_heads"),
            rows: self.n("head_dim"),
            cols,
            groups,
            state_dtype: None,
        }
    }

    fn delta(&self, state_dtype: Option<DType>) -> StateSpace {
        let (keys, k_dim) = (
            self.n("linear_num_key_heads"),
            self.n("linear_key_head_dim"),
        );
        let (values, v_dim) = (
            self.n("linear_num_value_heads"),
            self.n("linear_value_head_dim"),
        );
        StateSpace {
            kind: StateKind::GatedDelta,
            conv_taps: self.n("linear_conv_kernel_dim"),
            conv_channels: 2 * keys * k_dim + values * v_dim,
            heads: values,
            rows: v_dim,
            cols: k_dim,
            groups: keys,
            state_dtype,
        }
    }
}
