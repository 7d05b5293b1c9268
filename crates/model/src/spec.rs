//! [`ModelSpec`]: everything that later floors may know of a model.

use plimsoll_units::{Bytes, DType, SizeOverflow};

use crate::arithmetic::{Arithmetic, NotRunnable};
use crate::quant::QuantScheme;
use crate::tensor::{Role, TensorSpec};

/// A model: its layers, its stored tensors, its vocabulary and limits.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// `architectures[0]` of the config, else the family's first; informative only.
    pub architecture: String,
    /// Which family file lowered it.
    pub family: &'static str,
    /// Hidden size of the residual stream.
    pub hidden: u64,
    /// Vocabulary rows of the output head.
    pub vocab: u64,
    /// Trained context: the largest position that the config allows.
    pub max_context: Option<u64>,
    /// Type of activations, and of weights that no quantisation changes.
    pub dtype: DType,
    /// Whether the output head is the embedding table.
    pub tied_embeddings: bool,
    /// Decoder layers in order; multi-token-prediction layers are not among them.
    pub layers: Vec<LayerSpec>,
    /// What is stored.
    pub tensors: Vec<TensorSpec>,
    /// Weight quantisation of the checkpoint.
    pub quant: Option<QuantScheme>,
    /// Vision or audio tower.
    pub encoder: Option<Encoder>,
    /// Multi-token-prediction layers in the checkpoint (loaded only when speculating).
    pub mtp_layers: u64,
    /// Tables of rotary embeddings; empty for models with learned or no positions.
    pub rotary: Vec<Rotary>,
    /// Set where the final logits are soft-capped, which costs a buffer in some engines.
    pub final_softcap: bool,
    /// What is computed around the matrices, or why the model cannot be run.
    pub arithmetic: Result<Arithmetic, NotRunnable>,
    /// Set where the weights were read from file headers, not computed from the config.
    pub from_headers: bool,
    /// Things the reader should know: assumptions made, fields ignored.
    pub notes: Vec<String>,
}

/// A table of sines and cosines that engines precompute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotary {
    /// Rotated elements of a head: half are sines, half cosines.
    pub dim: u64,
    /// Positions in the table.
    pub positions: u64,
}

/// One decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// What mixes positions.
    pub mixer: Mixer,
    /// A second mixer that runs beside the first in the same layer (Falcon-H1).
    pub parallel: Option<StateSpace>,
    /// Attention to what an encoder gave, after the mixer (Whisper) or in its place (LLaMA 3.2 Vision).
    pub cross: Option<CrossAttention>,
    /// What follows it.
    pub ffn: Ffn,
}

/// How a layer mixes positions, and so what it must remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mixer {
    /// Keys and values per token.
    Attention(Attention),
    /// One latent vector per token (MLA).
    Latent(LatentAttention),
    /// A state of fixed size per sequence.
    State(StateSpace),
    /// Nothing (a pruned layer).
    None,
}

/// Attention over cached keys and values: MHA, GQA or MQA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attention {
    /// Query heads.
    pub q_heads: u64,
    /// KV heads.
    pub kv_heads: u64,
    /// Key head size.
    pub k_dim: u64,
    /// Value head size.
    pub v_dim: u64,
    /// Which cached tokens it reads.
    pub reach: Reach,
    /// Set where it reads an earlier layer's cache and allocates none (Gemma 3n).
    pub shared: bool,
}

/// Attention to an encoder's output, whose keys and values are made once for a request and kept until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CrossAttention {
    /// Query heads.
    pub q_heads: u64,
    /// KV heads.
    pub kv_heads: u64,
    /// Size of a head.
    pub head_dim: u64,
    /// Most positions that the encoder gives.
    pub positions: u64,
}

/// Which cached tokens a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// All of them.
    Full,
    /// The last `n`.
    Window(u64),
    /// Those of the current chunk of `n`.
    Chunk(u64),
}

/// Multi-head latent attention (DeepSeek-V2, 2024): the cache holds one vector per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LatentAttention {
    /// Query heads.
    pub q_heads: u64,
    /// Size of the compressed vector (`kv_lora_rank`).
    pub rank: u64,
    /// Size of the shared rotary key (`qk_rope_head_dim`).
    pub rope_dim: u64,
    /// Size of a key head without the rotary part (`qk_nope_head_dim`).
    pub nope_dim: u64,
    /// Size of a value head.
    pub v_dim: u64,
    /// Query compression, where there is one.
    pub q_rank: Option<u64>,
    /// What chooses the tokens that it reads, where these are not all.
    pub indexer: Option<Indexer>,
    /// What it keeps in place of a vector for every token, where it does.
    pub compressed: Option<Compressed>,
}

/// What attention over compressed entries keeps (DeepSeek-V4, 2026): a vector for each of the last `window` tokens and,
/// where there is a ratio, one for every `ratio` tokens of the sequence, which a compressor makes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compressed {
    /// Tokens of which the vectors themselves are kept.
    pub window: u64,
    /// Tokens that one compressed entry stands for; 0 in layers that have the window alone.
    pub ratio: u64,
    /// Whether an entry is made of its own tokens and as many before them.
    pub overlaps: bool,
}

/// The indexer of sparse latent attention (DeepSeek-V3.2, 2025): it scores every token of the sequence by one small
/// key, so that attention reads the best alone. Its keys are a cache of their own beside the latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Indexer {
    /// Query heads.
    pub heads: u64,
    /// Size of a head, and of the one key.
    pub dim: u64,
    /// Tokens, or compressed entries, that attention reads.
    pub best: u64,
}

/// Which recurrence a state layer runs: its convolution and state shapes split differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Gated delta rule (Qwen3-Next, Qwen3.5).
    GatedDelta,
    /// Selective state space, first form (Jamba).
    Mamba1,
    /// Selective state space, second form (Bamba, Granite 4, Nemotron-H).
    Mamba2,
    /// A short convolution alone: its tail is all that is kept (LFM2).
    ShortConv,
    /// Linear attention with a fixed decay for each head, without a convolution (MiniMax 01 and M1).
    Lightning,
}

/// A layer whose memory is a state of fixed size per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateSpace {
    /// Which recurrence.
    pub kind: StateKind,
    /// Taps of the causal convolution; `taps − 1` past inputs are kept.
    pub conv_taps: u64,
    /// Channels of the convolution, before any split.
    pub conv_channels: u64,
    /// Heads of the recurrent state (value heads for the delta rule).
    pub heads: u64,
    /// Rows of one head's state (value size, or head size).
    pub rows: u64,
    /// Columns of one head's state (key size, or state size).
    pub cols: u64,
    /// Groups that share B and C (Mamba 2); they replicate where the degree does not divide them.
    pub groups: u64,
    /// Type of the recurrent state, where the config fixes one; else the model's type.
    pub state_dtype: Option<DType>,
}

/// What follows the mixer in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ffn {
    /// A dense feed-forward.
    Dense {
        /// Inner size.
        intermediate: u64,
        /// Whether a gate of the same size multiplies it (SwiGLU, GeGLU).
        gated: bool,
    },
    /// Routed experts.
    Moe(Moe),
    /// Nothing.
    None,
}

/// A mixture-of-experts feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moe {
    /// Routed experts.
    pub experts: u64,
    /// Experts per token.
    pub top_k: u64,
    /// Inner size of one routed expert.
    pub intermediate: u64,
    /// Inner size of the shared expert(s) together; 0 where there are none.
    pub shared: u64,
}

/// A vision or audio tower, as far as its activations matter; its weights are in the inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoder {
    /// Hidden size.
    pub hidden: u64,
    /// Layers.
    pub layers: u64,
    /// Inner size of its feed-forward.
    pub intermediate: u64,
    /// Patches (tower tokens) of one image at the largest size that the config fixes; `None` where
    /// images keep their own size.
    pub patches: Option<u64>,
    /// Input elements of one patch: channels x patch height x width (x frames).
    pub patch_elements: u64,
    /// Tokens that one image becomes in the text model, where fixed.
    pub tokens_per_image: Option<u64>,
}

impl ModelSpec {
    /// Bytes of every stored tensor, multi-token-prediction layers included.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn stored_bytes(&self) -> Result<Bytes, SizeOverflow> {
        self.tensors
            .iter()
            .try_fold(Bytes::ZERO, |acc, t| acc.add(t.bytes()?))
    }

    /// Parameters: elements of unquantised tensors, or what a quantised matrix stands for.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn parameters(&self) -> Result<u64, SizeOverflow> {
        self.tensors.iter().try_fold(0_u64, |acc, t| {
            let one = match t.linear {
                Some(l) => l.out.checked_mul(l.inp).ok_or(SizeOverflow)?,
                // Scales and zero points of a quantised matrix are not parameters.
                None if crate::quant::is_auxiliary(&t.name) => 0,
                None => t.elements()?,
            };
            let all = one.checked_mul(t.copies()).ok_or(SizeOverflow)?;
            acc.checked_add(all).ok_or(SizeOverflow)
        })
    }

    /// Bytes as stored, by role, in report order; roles with nothing are left out.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes_by_role(&self) -> Result<Vec<(Role, Bytes)>, SizeOverflow> {
        let mut rows = Vec::new();
        for &role in Role::ALL {
            let bytes = self
                .tensors
                .iter()
                .filter(|t| t.role == role)
                .try_fold(Bytes::ZERO, |acc, t| acc.add(t.bytes()?))?;
            if bytes > Bytes::ZERO {
                rows.push((role, bytes));
            }
        }
        Ok(rows)
    }

    /// The largest number of query heads of any layer; 0 for a model without attention.
    #[must_use]
    pub fn q_heads(&self) -> u64 {
        self.layers
            .iter()
            .map(|l| match l.mixer {
                Mixer::Attention(a) => a.q_heads,
                Mixer::Latent(a) => a.q_heads,
                Mixer::State(_) | Mixer::None => 0,
            })
            .max()
            .unwrap_or(0)
    }
}

impl Compressed {
    /// Bytes that the compressor of entries `dim` wide keeps of one token until its entry is made: a candidate and a score
    /// in f32, both twice where entries overlap.
    ///
    /// Source: vLLM `models/deepseek_v4/compressor.py` (`CompressorStateCache`); transformers' cache keeps the same
    /// (`models/deepseek_v4/modeling_deepseek_v4.py`, `DeepseekV4CSACache`).
    #[must_use]
    pub const fn state_row(&self, dim: u64) -> Bytes {
        Bytes::new(dim.saturating_mul(2 * 4).saturating_mul(self.spans()))
    }

    /// Tokens of which the compressor keeps that: those of one entry.
    #[must_use]
    pub const fn state_tokens(&self) -> u64 {
        self.ratio.saturating_mul(self.spans())
    }

    const fn spans(&self) -> u64 {
        if self.overlaps { 2 } else { 1 }
    }
}

impl Indexer {
    /// Elements that share a scale.
    const SCALED: u64 = 128;

    /// Bytes of one token's key: e4m3 elements, and an f32 scale for each 128.
    ///
    /// Source: vLLM `models/deepseek_v2.py` (`DeepseekV32IndexerCache`), SGLang `mem_cache/memory_pool.py`; both keep
    /// it so whatever type the latents have.
    #[must_use]
    pub const fn key_bytes(&self) -> Bytes {
        Bytes::new(self.dim.saturating_add(self.dim / Self::SCALED * 4))
    }
}

impl Attention {
    /// Elements of K and V that one token leaves in one layer's cache, over `kv_heads` heads.
    #[must_use]
    pub const fn elements_per_token(&self, kv_heads: u64) -> u64 {
        kv_heads.saturating_mul(self.k_dim.saturating_add(self.v_dim))
    }
}
