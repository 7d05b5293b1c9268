//! Latent attention that an indexer chooses for (DeepSeek V3.2, GLM-5): its rows, its page, and the type that `auto` means.
//!
//! Sources, all `srt/`: `server_args.py` (`_handle_model_specific_adjustments`, `_set_default_nsa_kv_cache_dtype`,
//! `_set_default_nsa_backends`), `mem_cache/memory_pool.py` (`NSATokenToKVPool`, later `DSATokenToKVPool`),
//! `calculate_mla_kv_cache_dim`, and what divides the pool: `model_runner_kv_cache_mixin.py` (`get_cell_size_per_token`),
//! from 0.5.11 on `pool_configurator.py` (`_compute_cell_size`). Read in 0.5.5, 0.5.6, 0.5.8 to 0.5.20 and 0.5.23.

use plimsoll_model::{LatentAttention, Mixer, ModelSpec};
use plimsoll_units::{Bytes, DType, SizeOverflow};

use super::super::{Context, Version, plain_kv_dtype};
use crate::error::PlanError;
use crate::settings::KvType;

/// 0.5 and a patch.
const fn v(patch: u32) -> Version {
    Version {
        major: 0,
        minor: 5,
        patch,
    }
}

/// Tokens of a page.
const PAGE: u64 = 64;
/// From here on a page is one token on AMD's cards: in 0.5.8, not in 0.5.6.
const PAGE_OF_ONE: Version = v(7);
/// From here on the kernels chosen on AMD's cards, and for 8 bits on Blackwell, read rows without scales.
const PLAIN_ROWS: Version = v(10);
/// From here on the pool is divided by what a row takes; before, by its elements, so that 8-bit rows' scales and
/// 16-bit positions came on top.
const SCALES_COUNTED: Version = v(17);
/// From here on a layer without an indexer of its own has no keys for one.
const KEYS_OF_INDEXERS: Version = v(18);
/// Elements of a latent that share an f32 scale (`quant_block_size`).
const SCALED: u64 = 128;
/// Bytes of a position's element: bf16 whatever the latents are (`rope_storage_dtype`).
const WIDE: u64 = 2;

/// How a release stores such rows.
pub(super) struct Rows {
    /// The type of the latents.
    pub(super) dtype: DType,
    /// Whether rows are as long as their elements, without scales.
    plain: bool,
    /// Whether scales are counted when the pool is divided.
    counted: bool,
    /// Bytes of an indexer's key, for layers that have none of their own.
    shared_key: Bytes,
}

/// Whether an indexer chooses what a model's latent attention reads.
pub(super) fn is_sparse(spec: &ModelSpec) -> bool {
    key(spec).is_some()
}

/// Bytes of an indexer's key.
fn key(spec: &ModelSpec) -> Option<Bytes> {
    spec.layers.iter().find_map(|l| match l.mixer {
        Mixer::Latent(a) => a.indexer.map(|i| i.key_bytes()),
        Mixer::Attention(_) | Mixer::State(_) | Mixer::None => None,
    })
}

/// `--page-size` of such a model; other values are overridden.
pub(super) fn page(context: &Context<'_>, version: Version) -> Option<u64> {
    let one = context.deployment.device.vendor == "amd" && version >= PAGE_OF_ONE;
    is_sparse(context.spec).then_some(if one { 1 } else { PAGE })
}

/// The rows of such a model; `None` for others.
pub(super) fn rows(context: &Context<'_>, version: Version) -> Result<Option<Rows>, PlanError> {
    let Some(key) = key(context.spec) else {
        return Ok(None);
    };
    let device = &context.deployment.device;
    let blackwell = device.has_compute(10, 0);
    let dtype = match context.settings.kv_type {
        KvType::Auto if blackwell => DType::F8E4m3,
        // vLLM's name of the very row of these kernels.
        KvType::Fp8DsMla => DType::F8E4m3,
        _ => plain_kv_dtype(context, "sglang")?,
    };
    Ok(Some(Rows {
        dtype,
        plain: version >= PLAIN_ROWS && (blackwell || device.vendor == "amd"),
        counted: version >= SCALES_COUNTED,
        shared_key: if version >= KEYS_OF_INDEXERS {
            Bytes::ZERO
        } else {
            key
        },
    }))
}

impl Rows {
    /// Bytes of a token in one layer: as counted when the pool is divided, and as stored.
    pub(super) fn of(&self, a: &LatentAttention) -> Result<(Bytes, Bytes), SizeOverflow> {
        let elements = a.rank.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
        let plain = self.dtype.bytes(elements)?;
        let stored = if self.dtype == DType::F8E4m3 && !self.plain {
            let scales = Bytes::product([a.rank / SCALED, 4])?;
            let positions = Bytes::product([a.rope_dim, WIDE])?;
            Bytes::new(a.rank).add(scales)?.add(positions)?
        } else {
            plain
        };
        let key = a.indexer.map_or(self.shared_key, |i| i.key_bytes());
        let counted = if self.counted { stored } else { plain };
        Ok((counted.add(key)?, stored.add(key)?))
    }
}
