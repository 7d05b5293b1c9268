//! [`Net`]: a model as llama.cpp sees it: its architecture there, and what each layer holds.
//!
//! llama.cpp has one graph per architecture, and its converter chooses the architecture by
//! `architectures[0]` of the config; so does this table. A model whose architecture is not in it
//! still has a KV cache by the common rules, but only a bound for the compute buffer.

use plimsoll_model::{Ffn, LayerSpec, Mixer, ModelSpec, Reach, StateKind};

/// An architecture of llama.cpp whose graph is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "llama.cpp's own names")]
pub enum Arch {
    Llama,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Qwen3Next,
    Gemma2,
    Gemma3,
    Gemma4,
    Phi3,
    Gpt2,
    GptNeoX,
    DeepSeek2,
    GptOss,
    Granite,
    Glm4,
}

/// Class names of configs, `model_type` values and GGUF architectures, and the graph behind them.
const ARCHES: &[(Arch, &[&str])] = &[
    (
        Arch::Llama,
        &[
            "LlamaForCausalLM",
            "LLaMAForCausalLM",
            "MistralForCausalLM",
            "MixtralForCausalLM",
            "llama",
            "mistral",
            "mixtral",
        ],
    ),
    (Arch::Qwen2, &["Qwen2ForCausalLM", "qwen2"]),
    (Arch::Qwen3, &["Qwen3ForCausalLM", "qwen3"]),
    (
        Arch::Qwen3Moe,
        &["Qwen3MoeForCausalLM", "qwen3_moe", "qwen3moe"],
    ),
    (
        Arch::Qwen3Next,
        &["Qwen3NextForCausalLM", "qwen3_next", "qwen3next"],
    ),
    (Arch::Gemma2, &["Gemma2ForCausalLM", "gemma2"]),
    (
        Arch::Gemma3,
        &[
            "Gemma3ForCausalLM",
            "Gemma3ForConditionalGeneration",
            "gemma3",
            "gemma3_text",
        ],
    ),
    (
        Arch::Gemma4,
        &[
            "Gemma4ForCausalLM",
            "Gemma4ForConditionalGeneration",
            "Gemma4UnifiedForConditionalGeneration",
            "gemma4_unified",
            "gemma4",
            "gemma4_text",
        ],
    ),
    (Arch::Phi3, &["Phi3ForCausalLM", "phi3"]),
    (Arch::Gpt2, &["GPT2LMHeadModel", "gpt2"]),
    (
        Arch::GptNeoX,
        &["GPTNeoXForCausalLM", "gpt_neox", "gptneox"],
    ),
    (
        Arch::DeepSeek2,
        &[
            "DeepseekV2ForCausalLM",
            "DeepseekV3ForCausalLM",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek2",
        ],
    ),
    (Arch::GptOss, &["GptOssForCausalLM", "gpt_oss", "gpt-oss"]),
    (Arch::Granite, &["GraniteForCausalLM", "granite"]),
    (Arch::Glm4, &["Glm4ForCausalLM", "glm4"]),
];

impl Arch {
    /// The architecture of a model, where its graph is modelled.
    #[must_use]
    pub fn of(spec: &ModelSpec) -> Option<Self> {
        ARCHES
            .iter()
            .find(|(_, names)| names.contains(&spec.architecture.as_str()))
            .map(|(arch, _)| *arch)
    }

    /// LayerNorm with a bias instead of RMS norm.
    pub(super) const fn layer_norm(self) -> bool {
        matches!(self, Self::Gpt2 | Self::GptNeoX)
    }

    /// A table of positions, added to the embedding, instead of rotation.
    pub(super) const fn learned_positions(self) -> bool {
        matches!(self, Self::Gpt2)
    }

    /// The embedding is scaled before the first layer.
    pub(super) const fn scales_embedding(self) -> bool {
        matches!(
            self,
            Self::Gemma2 | Self::Gemma3 | Self::Gemma4 | Self::Granite
        )
    }

    /// One matrix projects queries, keys and values.
    pub(super) const fn fused_qkv(self) -> bool {
        matches!(self, Self::Phi3 | Self::Gpt2 | Self::GptNeoX)
    }

    /// The graph visits Q, V, K, not Q, K, V.
    pub(super) const fn value_before_key(self) -> bool {
        matches!(
            self,
            Self::Llama | Self::Qwen2 | Self::Qwen3 | Self::Qwen3Moe | Self::Granite | Self::Glm4
        )
    }

    /// Queries and keys are normalised per head.
    pub(super) const fn norms_qk(self) -> bool {
        matches!(
            self,
            Self::Qwen3 | Self::Qwen3Moe | Self::Gemma3 | Self::Gemma4
        )
    }

    /// The output of attention and of the feed-forward is normalised before the residual sum.
    pub(super) const fn post_norms(self) -> bool {
        matches!(
            self,
            Self::Gemma2 | Self::Gemma3 | Self::Gemma4 | Self::Glm4
        )
    }

    /// The rows to be sampled are picked after the last layer, which therefore runs all rows.
    pub(super) const fn picks_rows_late(self) -> bool {
        matches!(self, Self::Qwen3Next | Self::Gemma4 | Self::GptOss)
    }

    /// Gate and up projection are one matrix.
    pub(super) const fn fused_gate_up(self) -> bool {
        matches!(self, Self::Phi3 | Self::Glm4)
    }

    /// Whether llama.cpp keeps windows for this architecture: Mistral's and Phi-3's it ignores.
    pub(super) const fn keeps_windows(self) -> bool {
        matches!(
            self,
            Self::Gemma2 | Self::Gemma3 | Self::Gemma4 | Self::GptOss
        )
    }
}

/// Architectures outside [`ARCHES`] whose windows llama.cpp keeps in a cache of their own
/// (`swa_type` in `models/*.cpp`); all others get a full cache.
const WINDOWED: &[&str] = &[
    "Cohere2ForCausalLM",
    "Exaone4ForCausalLM",
    "Gemma3nForCausalLM",
    "Gemma3nForConditionalGeneration",
    "Llama4ForCausalLM",
    "Llama4ForConditionalGeneration",
    "Olmo3ForCausalLM",
    "AfmoeForCausalLM",
    "MiMoV2FlashForCausalLM",
    "SmallThinkerForCausalLM",
    "cohere2",
    "exaone4",
    "gemma3n",
    "gemma3n_text",
    "llama4",
    "llama4_text",
    "olmo3",
    "afmoe",
    "mimo2",
    "smallthinker",
];

/// A model for llama.cpp.
#[derive(Clone, Debug, PartialEq)]
pub struct Net {
    /// Its graph, where modelled.
    pub arch: Option<Arch>,
    /// Why the graph is not modelled, in words.
    pub uncovered: Option<String>,
    /// Width of the residual stream.
    pub width: u64,
    /// Rows of the output head.
    pub vocab: u64,
    /// The layers, with windows removed where llama.cpp ignores them.
    pub layers: Vec<LayerSpec>,
    /// Widest row of values of any layer: without flash attention all are stored that wide.
    pub value_row_max: u64,
    /// Key and value sizes of the first attention layer's heads: they decide whether quantised
    /// caches are rotated.
    pub first_heads: (u64, u64),
    /// Whether values are read from the keys' projection where a layer has full attention
    /// (Gemma 4: it stores no value matrix there).
    pub values_from_keys: bool,
    /// Whether experts are chosen by biased scores, and their weights normalised, as in
    /// `DeepSeek` V3; V2 does neither.
    pub expert_bias: bool,
}

impl Net {
    /// The model as llama.cpp loads it.
    #[must_use]
    pub fn new(spec: &ModelSpec) -> Self {
        let arch = Arch::of(spec);
        let windows = match arch {
            Some(a) => a.keeps_windows(),
            None => WINDOWED.contains(&spec.architecture.as_str()),
        };
        let layers: Vec<LayerSpec> = spec
            .layers
            .iter()
            .map(|l| {
                let mut l = *l;
                if let (Mixer::Attention(a), false) = (&mut l.mixer, windows) {
                    a.reach = Reach::Full;
                }
                l
            })
            .collect();
        let value_row_max = layers
            .iter()
            .map(|l| match l.mixer {
                Mixer::Attention(a) => a.kv_heads.saturating_mul(a.v_dim),
                Mixer::Latent(_) | Mixer::State(_) | Mixer::None => 0,
            })
            .max()
            .unwrap_or(0);
        let first_heads = layers.iter().find_map(|l| match l.mixer {
            Mixer::Attention(a) => Some((a.k_dim, a.v_dim)),
            Mixer::Latent(_) | Mixer::State(_) | Mixer::None => None,
        });
        let uncovered = match arch {
            None => Some(format!("no graph of `{}` is modelled", spec.architecture)),
            Some(arch) => unlike_its_arch(spec, arch, &layers),
        };
        Self {
            arch: arch.filter(|_| uncovered.is_none()),
            uncovered,
            width: spec.hidden,
            vocab: spec.vocab,
            layers,
            value_row_max,
            first_heads: first_heads.unwrap_or((0, 0)),
            values_from_keys: arch == Some(Arch::Gemma4),
            expert_bias: spec.tensors.iter().any(|t| {
                t.name.contains("e_score_correction_bias") || t.name.contains("exp_probs_b")
            }),
        }
    }

    /// The window of a layer, where it has one.
    pub(super) const fn window(layer: &LayerSpec) -> Option<u64> {
        match layer.mixer {
            Mixer::Attention(a) => match a.reach {
                Reach::Window(n) | Reach::Chunk(n) => Some(n),
                Reach::Full => None,
            },
            Mixer::Latent(_) | Mixer::State(_) | Mixer::None => None,
        }
    }
}

/// Experts per token above which no graph is written down; published models use up to 22.
const MOST_EXPERTS_USED: u64 = 256;

/// What keeps a model of a known architecture from having the graph that is modelled for it.
fn unlike_its_arch(spec: &ModelSpec, arch: Arch, layers: &[LayerSpec]) -> Option<String> {
    for l in layers {
        if l.parallel.is_some() {
            return Some("a layer runs two mixers at once".to_owned());
        }
        if l.cross.is_some() {
            return Some("a layer reads an encoder's output".to_owned());
        }
        let fits = match l.mixer {
            Mixer::Attention(a) => {
                if a.shared {
                    return Some("layers share their keys and values".to_owned());
                }
                arch != Arch::DeepSeek2
            }
            Mixer::Latent(_) => arch == Arch::DeepSeek2,
            Mixer::State(s) => {
                arch == Arch::Qwen3Next
                    && s.kind == StateKind::GatedDelta
                    && s.rows == s.cols
                    && s.rows > 0
                    && s.heads > 0
                    && key_heads(&s).is_some_and(|k| k > 0 && s.heads.is_multiple_of(k))
            }
            Mixer::None => false,
        };
        let routes = matches!(
            arch,
            Arch::Llama | Arch::Qwen3Moe | Arch::DeepSeek2 | Arch::GptOss | Arch::Qwen3Next
        );
        let gates = !matches!(arch, Arch::Gpt2 | Arch::GptNeoX);
        let feeds = match l.ffn {
            Ffn::Dense { gated, .. } => gated == gates,
            Ffn::Moe(m) => routes && (1..=m.experts.min(MOST_EXPERTS_USED)).contains(&m.top_k),
            Ffn::None => false,
        };
        if !fits || !feeds {
            return Some("a layer is unlike those of its architecture's graph".to_owned());
        }
    }
    spec.tensors
        .iter()
        .any(|t| t.name.contains("per_layer_"))
        .then(|| "embeddings per layer are not modelled".to_owned())
}

/// Key heads of a gated delta layer: what its convolution's channels leave for queries and keys.
pub(super) fn key_heads(s: &plimsoll_model::StateSpace) -> Option<u64> {
    let values = s.heads.checked_mul(s.rows)?;
    s.conv_channels
        .checked_sub(values)?
        .checked_div(s.cols.checked_mul(2)?)
}
