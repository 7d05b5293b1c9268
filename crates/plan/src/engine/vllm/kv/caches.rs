//! What each layer caches: kind, tokens per block, and the bytes of one block's page.
//!
//! Source: vLLM `v1/kv_cache_interface.py` (page sizes), `model_executor/layers/mamba/mamba_utils.py`
//! (state shapes), `v1/attention/backends/triton_attn.py` and `mla/flashmla_sparse.py` (formats).

use plimsoll_model::{
    Attention, CrossAttention, LatentAttention, LayerSpec, Mixer, Reach, StateKind, StateSpace,
    local_kv_heads,
};
use plimsoll_program::{GroupKind, state_bytes};
use plimsoll_units::{Bytes, DType, SizeOverflow};

use super::super::super::{Context, activation_dtype};
use super::blocks::{self, Blocks};
use super::compressed;
use super::refused;
use super::rules::Rules;
use crate::error::PlanError;
use crate::settings::KvType;

/// Bytes of a latent row in `FlashMLA`'s format: 512 e4m3, 4 f32 scales, 64 bf16 for the rotary key.
const FP8_DS_MLA_ROW: u64 = 512 + 4 * 4 + 64 * 2;
/// The latent row for which that format exists: its rank and its rotary part.
const FP8_DS_MLA_SHAPE: (u64, u64) = (512, 64);
/// One f32 scale for K and one for V.
const TOKEN_HEAD_SCALES: u64 = 2 * 4;

/// One layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cache {
    /// Which decoder layer.
    pub(super) layer: u64,
    /// How tokens are kept.
    pub(super) kind: GroupKind,
    /// The window or chunk that a layer treated as full attention computes with.
    pub(super) remembered: Option<GroupKind>,
    /// What is kept; equal shapes have equal pages.
    pub(super) shape: Shape,
    /// Tokens per block.
    pub(super) block: u64,
    /// Bytes of one block.
    pub(super) page: Bytes,
    /// Bytes that one token (one sequence, for a state) needs.
    pub(super) rate: Bytes,
}

/// What makes two caches of one kind the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Local KV heads, key size, value size.
    Heads(u64, u64, u64),
    /// Latent row.
    Latent(u64),
    /// An indexer's key.
    Index(u64),
    /// What a compressor keeps of a token, by the width of its entries.
    Candidates(u64),
    /// A state.
    State(StateSpace),
    /// Keys and values of an encoder's output: local KV heads, head size.
    Cross(u64, u64),
}

impl Cache {
    /// Whether it is the state of a Mamba 2 layer.
    pub(super) fn is_mamba2(&self) -> bool {
        matches!(self.shape, Shape::State(s) if s.kind == StateKind::Mamba2)
    }
}

/// How a version stores the model's keys, values and states on one rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format<'a> {
    rules: &'a Rules,
    kv: KvType,
    dtype: DType,
    ssm: Option<DType>,
    /// Whether an indexer chooses what latent attention reads.
    sparse: bool,
    tp: u64,
}

impl<'a> Format<'a> {
    pub(super) fn new(context: &Context<'_>, rules: &'a Rules) -> Result<Self, PlanError> {
        let settings = context.settings;
        let dtype = activation_dtype(context);
        let refuse = |reason: &str| {
            let flag = format!("--kv-cache-dtype {}", settings.kv_type);
            Err(refused(rules, flag, reason.to_owned()))
        };
        match settings.kv_type {
            KvType::Auto => {}
            KvType::Plain(d) if d == dtype => {}
            KvType::Plain(DType::Bf16 | DType::F16 | DType::F8E4m3 | DType::F8E5m2) => {}
            KvType::Plain(DType::I8) => {
                return refuse("its 8-bit integers have scales: int8_per_token_head");
            }
            KvType::Plain(_) => {
                return refuse("it stores the model's type, bf16, f16 or fp8");
            }
            KvType::Int8PerTokenHead | KvType::Fp8PerTokenHead | KvType::Nvfp4 => {
                if !rules.packed_types {
                    return refuse("this type came with 0.21");
                }
            }
            KvType::Int4PerTokenHead => {
                if !rules.int4 {
                    return refuse("0.32 is the first release read that has this type");
                }
            }
            KvType::Fp8DsMla => {}
        }
        let sparse = context.spec.layers.iter().any(is_sparse);
        let eight = [KvType::Auto, KvType::Plain(DType::F8E4m3), KvType::Fp8DsMla];
        let kv = match settings.kv_type {
            given if compressed::is_in(context) && !eight.contains(&given) => {
                return refuse(
                    "the kernels for compressed entries keep them in 8 bits: auto or fp8",
                );
            }
            _ if compressed::is_in(context) => KvType::Fp8DsMla,
            // Sparse latent kernels have an 8-bit format of their own, but for FlashInfer's.
            KvType::Plain(DType::F8E4m3) if sparse && !blocks::plain_sparse(context, rules) => {
                KvType::Fp8DsMla
            }
            other => other,
        };
        Ok(Self {
            rules,
            kv,
            dtype,
            ssm: settings.mamba_ssm_cache_dtype,
            sparse,
            tp: context.deployment.parallel.tp,
        })
    }

    fn plain(&self) -> DType {
        match self.kv {
            KvType::Plain(d) => d,
            _ => self.dtype,
        }
    }

    fn refuse_kv(&self, reason: &str) -> PlanError {
        let flag = format!("--kv-cache-dtype {}", self.kv);
        refused(self.rules, flag, reason.to_owned())
    }

    /// Bytes of one token in one head's vector of `size` elements, per-token scales excluded.
    fn vector(&self, size: u64) -> Result<u64, PlanError> {
        Ok(match self.kv {
            KvType::Auto | KvType::Plain(_) => self.plain().bytes(size)?.get(),
            KvType::Int8PerTokenHead | KvType::Fp8PerTokenHead => size,
            KvType::Int4PerTokenHead => size / 2,
            // Two elements a byte, and an e4m3 scale per 16.
            KvType::Nvfp4 => size / 2 + size / 16,
            KvType::Fp8DsMla => {
                return Err(self.refuse_kv("it is a format of latent rows; this model has heads"));
            }
        })
    }

    /// Bytes of one token in one layer that keeps keys and values.
    pub(super) fn attention(
        &self,
        a: &Attention,
        by_key: bool,
    ) -> Result<(Shape, Bytes), PlanError> {
        let heads = local_kv_heads(a.kv_heads, self.tp)?;
        let v_dim = if by_key { a.k_dim } else { a.v_dim };
        let scales = match self.kv {
            KvType::Int8PerTokenHead | KvType::Fp8PerTokenHead | KvType::Int4PerTokenHead => {
                TOKEN_HEAD_SCALES
            }
            _ => 0,
        };
        let head = self
            .vector(a.k_dim)?
            .checked_add(self.vector(v_dim)?)
            .and_then(|n| n.checked_add(scales))
            .ok_or(SizeOverflow)?;
        Ok((
            Shape::Heads(heads, a.k_dim, v_dim),
            Bytes::product([heads, head])?,
        ))
    }

    /// Bytes of one token's latent row, whole on every rank.
    pub(super) fn latent(&self, a: &LatentAttention) -> Result<(Shape, Bytes), PlanError> {
        let width = a.rank.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
        let row = match self.kv {
            KvType::Auto | KvType::Plain(_) => self.plain().bytes(width)?,
            KvType::Fp8DsMla if (a.rank, a.rope_dim) == FP8_DS_MLA_SHAPE => {
                Bytes::new(FP8_DS_MLA_ROW)
            }
            _ => return Err(self.refuse_kv("no latent attention backend has this format")),
        };
        Ok((Shape::Latent(width), row))
    }

    /// Bytes of one position of an encoder's output in one layer.
    fn cross(&self, c: &CrossAttention) -> Result<(Shape, Bytes), PlanError> {
        let a = Attention {
            q_heads: c.q_heads,
            kv_heads: c.kv_heads,
            k_dim: c.head_dim,
            v_dim: c.head_dim,
            reach: Reach::Full,
            shared: false,
        };
        let heads = local_kv_heads(c.kv_heads, self.tp)?;
        Ok((Shape::Cross(heads, c.head_dim), self.attention(&a, true)?.1))
    }

    /// Bytes of one sequence's state in one layer.
    pub(super) fn state(&self, s: &StateSpace) -> Result<(Shape, Bytes), PlanError> {
        let asked = self
            .ssm
            .filter(|_| self.rules.delta_types || s.kind != StateKind::GatedDelta);
        let typed = StateSpace {
            state_dtype: asked.or(s.state_dtype),
            ..*s
        };
        let bytes = state_bytes(&typed, self.tp, self.dtype, self.dtype)?;
        Ok((Shape::State(*s), bytes))
    }

    /// Whether keys and values take one byte or less.
    pub(super) fn is_quantized(&self) -> bool {
        match self.kv {
            KvType::Auto => false,
            KvType::Plain(d) => matches!(d, DType::F8E4m3 | DType::F8E5m2),
            _ => true,
        }
    }

    /// Whether the sparse latent kernels run.
    pub(super) fn is_sparse(&self) -> bool {
        self.sparse || self.kv == KvType::Fp8DsMla
    }

    /// Bytes of one token of the first layer with attention, which hybrids are aligned by.
    pub(super) fn first_attention(
        &self,
        context: &Context<'_>,
    ) -> Result<Option<Bytes>, PlanError> {
        for layer in &context.spec.layers {
            match layer.mixer {
                Mixer::Attention(a) if !a.shared => {
                    // The alignment reads one head size.
                    return Ok(Some(self.attention(&a, true)?.1));
                }
                // Compressed entries have blocks of their own size.
                Mixer::Latent(a) if a.compressed.is_none() => return Ok(Some(self.latent(&a)?.1)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Bytes of the largest state of a layer.
    pub(super) fn largest_state(&self, context: &Context<'_>) -> Result<Option<Bytes>, PlanError> {
        let mut largest = None;
        for s in states(context) {
            largest = largest.max(Some(self.state(&s)?.1));
        }
        Ok(largest)
    }
}

/// Whether an indexer chooses what a layer reads.
fn is_sparse(layer: &LayerSpec) -> bool {
    matches!(layer.mixer, Mixer::Latent(a) if a.indexer.is_some())
}

/// The states of all layers.
pub(super) fn states<'a>(context: &Context<'a>) -> impl Iterator<Item = StateSpace> + use<'a> {
    let layers: &'a [_] = &context.spec.layers;
    layers.iter().flat_map(|l| {
        let main = match l.mixer {
            Mixer::State(s) => Some(s),
            _ => None,
        };
        main.into_iter().chain(l.parallel)
    })
}

/// Whether any layer keeps latent rows.
pub(super) fn has_latent(context: &Context<'_>) -> bool {
    let layers = &context.spec.layers;
    layers.iter().any(|l| matches!(l.mixer, Mixer::Latent(_)))
}

/// The caches of all layers of all stages, in order. Layers that read another's cache have none.
pub(super) fn all(
    context: &Context<'_>,
    rules: &Rules,
    format: &Format<'_>,
    blocks: &Blocks,
) -> Result<Vec<Cache>, PlanError> {
    let mut out = Vec::new();
    for (index, layer) in context.spec.layers.iter().enumerate() {
        let mut add = |kind, (shape, rate): (Shape, Bytes), block, page| {
            out.push(Cache {
                layer: index as u64,
                kind,
                remembered: None,
                shape,
                block,
                page,
                rate,
            });
        };
        match layer.mixer {
            Mixer::Attention(a) if a.shared => {}
            Mixer::Attention(a) => {
                let (kind, by_key) = match a.reach {
                    Reach::Full => (GroupKind::Full, rules.full_by_key),
                    Reach::Window(w) => (GroupKind::Window(w), rules.window_by_key),
                    Reach::Chunk(c) => (GroupKind::Chunk(c), true),
                };
                let kept = format.attention(&a, by_key)?;
                add(
                    kind,
                    kept,
                    blocks.attention,
                    kept.1.times(blocks.attention)?,
                );
            }
            Mixer::Latent(a) if a.compressed.is_some() => {
                for (kind, shape, block, page, rate) in compressed::caches(&a)? {
                    add(kind, (shape, rate), block, page);
                }
            }
            Mixer::Latent(a) => {
                let kept = format.latent(&a)?;
                let page = kept.1.times(blocks.attention)?;
                add(GroupKind::Latent, kept, blocks.attention, page);
                if let Some(i) = a.indexer {
                    let kept = (Shape::Index(i.dim), i.key_bytes());
                    let page = kept.1.times(blocks.attention)?;
                    add(GroupKind::Latent, kept, blocks.attention, page);
                }
            }
            Mixer::State(s) => {
                let kept = format.state(&s)?;
                add(
                    GroupKind::State,
                    kept,
                    blocks.state,
                    blocks.state_page(kept.1),
                );
            }
            Mixer::None => {}
        }
        if let Some(s) = layer.parallel {
            let kept = format.state(&s)?;
            add(
                GroupKind::State,
                kept,
                blocks.state,
                blocks.state_page(kept.1),
            );
        }
        if let Some(c) = layer.cross {
            let kept = format.cross(&c)?;
            let page = kept.1.times(blocks.attention)?;
            add(GroupKind::State, kept, blocks.attention, page);
        }
    }
    Ok(out)
}
