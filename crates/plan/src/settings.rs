//! What the user asks for: devices, engine settings and the load. `None` means the engine's default.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use plimsoll_device::Device;
use plimsoll_model::ModelSpec;
use plimsoll_model::quant::QuantFormat;
use plimsoll_program::Parallel;
use plimsoll_units::{Bytes, DType, Weights};

use crate::engine::Engine;
use crate::kv::Lengths;

/// Devices and how the model is divided over them.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// The kind of device: of all, or of the first stage.
    pub device: Device,
    /// The kinds of all stages, where they differ.
    pub kinds: Option<Arc<Kinds>>,
    /// How the model is divided.
    pub parallel: Parallel,
    /// What other processes use on each device.
    pub in_use: Bytes,
}

/// Devices of several kinds, a kind to each pipeline stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Kinds {
    /// Of each stage; its ranks are alike.
    pub devices: Vec<Device>,
    /// Layers of each stage; `None` as the engine divides them.
    pub layers: Option<Vec<u64>>,
}

impl Deployment {
    /// The deployment as stage `i` sees it.
    #[must_use]
    pub fn of_stage(&self, i: u64) -> Cow<'_, Self> {
        let kind = usize::try_from(i).ok();
        let kind = kind.and_then(|i| self.kinds.as_ref()?.devices.get(i));
        match kind {
            Some(device) => Cow::Owned(Self {
                device: device.clone(),
                ..self.clone()
            }),
            None => Cow::Borrowed(self),
        }
    }
}

/// Type of the cached keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// As the model's activations, or as its checkpoint asks where the engine follows that.
    #[default]
    Auto,
    /// This type for both, without scales per token but for Plimsoll's int8.
    Plain(DType),
    /// 8-bit integers with an f32 scale per token and head.
    Int8PerTokenHead,
    /// 8-bit floats with an f32 scale per token and head.
    Fp8PerTokenHead,
    /// 4-bit integers with an f32 scale per token and head.
    Int4PerTokenHead,
    /// 4-bit floats with e4m3 scales per 16.
    Nvfp4,
    /// FlashMLA's latent row: 512 e4m3, 4 f32 scales, 64 bf16.
    Fp8DsMla,
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Plain(d) => d.fmt(f),
            Self::Int8PerTokenHead => f.pad("int8_per_token_head"),
            Self::Fp8PerTokenHead => f.pad("fp8_per_token_head"),
            Self::Int4PerTokenHead => f.pad("int4_per_token_head"),
            Self::Nvfp4 => f.pad("nvfp4"),
            Self::Fp8DsMla => f.pad("fp8_ds_mla"),
        }
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(match s.trim().to_ascii_lowercase().as_str() {
            "auto" => Self::Auto,
            "int8_per_token_head" => Self::Int8PerTokenHead,
            "fp8_per_token_head" => Self::Fp8PerTokenHead,
            "int4_per_token_head" | "int4" => Self::Int4PerTokenHead,
            "nvfp4" => Self::Nvfp4,
            "fp8_ds_mla" => Self::Fp8DsMla,
            "fp8_inc" => Self::Plain(DType::F8E4m3),
            other => Self::Plain(other.parse().map_err(|_| {
                format!(
                    "`{s}` is no KV cache type: use auto, bf16, f16, f32, fp8, fp8_e5m2, int8, int4, nvfp4, \
                     fp8_ds_mla, or a ggml type such as q8_0"
                )
            })?),
        })
    }
}

/// Which recurrent states vLLM keeps beside the running one (`--mamba-cache-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateMode {
    /// None.
    None,
    /// The last one at a block's end.
    Align,
    /// One at every block's end.
    All,
}

impl fmt::Display for StateMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Align => "align",
            Self::All => "all",
        })
    }
}

impl FromStr for StateMode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.trim().to_ascii_lowercase().as_str() {
            "none" => Ok(Self::None),
            "align" => Ok(Self::Align),
            "all" => Ok(Self::All),
            _ => Err(format!(
                "`{s}` is no state cache mode: use none, align or all"
            )),
        }
    }
}

/// How our server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http {
    /// Connections at once.
    pub connections: u64,
    /// The largest body.
    pub body: Bytes,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            connections: 1024,
            body: Bytes::new(1 << 20),
        }
    }
}

/// What the flags say about the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Engine and version.
    pub engine: Engine,
    /// `--dtype`: type of activations and of unquantised weights.
    pub dtype: Option<DType>,
    /// `--quantization`: quantise an unquantised checkpoint while loading.
    pub quantization: Option<QuantFormat>,
    /// `--weights`: what matrices are kept as (plimsoll).
    pub weights: Weights,
    /// `--kv-cache-dtype`, for K (and V unless `kv_type_v` is set).
    pub kv_type: KvType,
    /// `--cache-type-v` (llama.cpp).
    pub kv_type_v: Option<KvType>,
    /// `--block-size`.
    pub block_size: Option<u64>,
    /// `--max-model-len`.
    pub max_model_len: Option<u64>,
    /// `--max-num-seqs` (R).
    pub max_num_seqs: Option<u64>,
    /// `--max-num-batched-tokens` (T).
    pub max_num_batched_tokens: Option<u64>,
    /// `--ubatch-size` (llama.cpp's physical batch).
    pub ubatch: Option<u64>,
    /// `--gpu-memory-utilization`.
    pub gpu_memory_utilization: Option<f64>,
    /// `--kv-memory`: the KV budget per device, taken as given.
    pub kv_memory: Option<Bytes>,
    /// `--max-total-tokens`: most tokens of the pool (SGLang).
    pub max_total_tokens: Option<u64>,
    /// `--cuda-graph-max-bs`: the largest captured batch (SGLang).
    pub graph_batch: Option<u64>,
    /// What the engine found free on each device before it loaded anything, where that is known (SGLang prints it).
    pub free_before_loading: Option<Bytes>,
    /// `--enforce-eager`: no CUDA graphs.
    pub enforce_eager: bool,
    /// `--enable-prefix-caching`: whether cached prefixes are kept and shared; `None` for the
    /// engine's default for the model.
    pub prefix_caching: Option<bool>,
    /// `--disable-hybrid-kv-cache-manager` (vLLM); `None` for its own choice.
    pub disable_hybrid_kv_cache_manager: Option<bool>,
    /// `--mamba-cache-mode` (vLLM), used with prefix caching; `None` for its default.
    pub mamba_cache_mode: Option<StateMode>,
    /// `--decode-context-parallel-size` (vLLM): ranks of a tensor-parallel group over which a sequence's tokens are dealt.
    pub decode_context_parallel: Option<u64>,
    /// `--mamba-block-size` (vLLM).
    pub mamba_block_size: Option<u64>,
    /// `--mamba-ssm-cache-dtype` (vLLM); `None` for what the config says, else `dtype`.
    pub mamba_ssm_cache_dtype: Option<DType>,
    /// Whether scheduling runs one step ahead; `None` for the engine version's default.
    pub async_scheduling: Option<bool>,
    /// Whether flash attention is used (llama.cpp); `None` for its default.
    pub flash_attention: Option<bool>,
    /// One KV buffer for all sequences (llama.cpp `--kv-unified`).
    pub kv_unified: bool,
    /// Full-size cache for window layers (llama.cpp `--swa-full`).
    pub swa_full: bool,
    /// `--swap-space` on the host, per device.
    pub swap: Bytes,
    /// `--swap-dir`: swap space is a file.
    pub swap_file: bool,
    /// `--threads` of a server on processors; `None` for one.
    pub threads: Option<u64>,
    /// Alternatives told with the log probability of each token; `None` where none are told.
    pub logprobs: Option<u64>,
    /// What is served over HTTP; `None` where nothing is.
    pub http: Option<Http>,
    /// `--mtp`: load the checkpoint's multi-token-prediction layers and speculate with them.
    pub mtp: bool,
    /// `--speculative-model`: a draft model beside the target.
    pub draft: Option<Arc<ModelSpec>>,
    /// `--lengths`: a mix of lengths in place of one context; the load's context is the longest.
    pub lengths: Option<Lengths>,
    /// `--max-loras` and `--max-lora-rank`: slots for adapters.
    pub lora: Option<Lora>,
}

/// Slots for LoRA adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lora {
    /// Adapters in one batch.
    pub slots: u64,
    /// Largest rank.
    pub rank: u64,
}

impl Settings {
    /// All defaults of `engine`.
    #[must_use]
    pub const fn new(engine: Engine) -> Self {
        Self {
            engine,
            dtype: None,
            quantization: None,
            weights: Weights::Stored,
            kv_type: KvType::Auto,
            kv_type_v: None,
            block_size: None,
            max_model_len: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            ubatch: None,
            gpu_memory_utilization: None,
            kv_memory: None,
            max_total_tokens: None,
            graph_batch: None,
            free_before_loading: None,
            enforce_eager: false,
            prefix_caching: None,
            disable_hybrid_kv_cache_manager: None,
            mamba_cache_mode: None,
            decode_context_parallel: None,
            mamba_block_size: None,
            mamba_ssm_cache_dtype: None,
            async_scheduling: None,
            flash_attention: None,
            kv_unified: false,
            swa_full: false,
            swap: Bytes::ZERO,
            swap_file: false,
            threads: None,
            logprobs: None,
            http: None,
            mtp: false,
            draft: None,
            lora: None,
            lengths: None,
        }
    }
}

/// What is to be served at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Concurrent requests.
    pub users: u64,
    /// Tokens of one sequence at its longest: prompt and output.
    pub context: u64,
    /// Tokens of the prompt, the part that the sequences of one request share.
    pub prompt: u64,
    /// Sequences per request (`n`, or the beam width).
    pub sequences: u64,
    /// Leading tokens that requests have in common.
    pub shared_prefix: u64,
    /// The share of requests that have them, 0 to 1.
    pub prefix_hit: f64,
}

impl Load {
    /// `users` requests of `context` tokens, one sequence each, nothing in common.
    #[must_use]
    pub const fn plain(users: u64, context: u64) -> Self {
        Self {
            users,
            context,
            prompt: context,
            sequences: 1,
            shared_prefix: 0,
            prefix_hit: 1.0,
        }
    }

    /// The same with another number of users.
    #[must_use]
    pub const fn with_users(self, users: u64) -> Self {
        Self { users, ..self }
    }

    /// The same at another length; prompt and shared prefix keep their share of it only as far as
    /// they fit.
    #[must_use]
    pub fn with_context(self, context: u64) -> Self {
        let prompt = if self.prompt == self.context {
            context
        } else {
            self.prompt.min(context)
        };
        Self {
            context,
            prompt,
            shared_prefix: self.shared_prefix.min(context),
            ..self
        }
    }

    /// Requests that share the prefix.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "users are bounded by the flag's range; a fraction of them is not a size"
    )]
    pub fn sharing_users(&self) -> u64 {
        if self.shared_prefix == 0 {
            return 0;
        }
        ((self.users as f64 * self.prefix_hit.clamp(0.0, 1.0)).floor() as u64).min(self.users)
    }
}
