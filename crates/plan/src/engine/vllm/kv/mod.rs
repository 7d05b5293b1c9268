//! Blocks and groups: vLLM's V1 KV cache allocation, version by version.
//!
//! In order: how the version stores a token ([`caches`]), tokens per block ([`blocks`]), layers to
//! groups ([`groups`]), what a request holds, and the log's words. Everything is integer but the
//! concurrency. [`rules`] is the table of what differs between versions.
//!
//! Source: vLLM `v1/core/kv_cache_utils.py` (`get_kv_cache_configs`), `v1/kv_cache_interface.py`.
//! Not modelled: speculative drafts and their cache, KV connectors, prefill context parallelism.

mod blocks;
mod caches;
mod compressed;
mod dealt;
mod groups;
mod rules;

use plimsoll_program::GroupKind;
use plimsoll_units::{Bytes, SizeOverflow};

use super::super::{Context, Version};
use super::Defaults;
use crate::error::PlanError;
use crate::kv::{Held, PagedGroup, PagedLaw};
use crate::settings::StateMode;
use blocks::Blocks;
use caches::{Cache, Shape};
use rules::Rules;

/// The KV law of one rank.
///
/// # Errors
/// [`PlanError::Refused`] where this version does not start so; [`PlanError::Shard`] where heads do
/// not split.
pub(super) fn law(
    context: &Context<'_>,
    version: Version,
    defaults: &Defaults,
) -> Result<PagedLaw, PlanError> {
    let rules = Rules::of(version);
    let format = caches::Format::new(context, &rules)?;
    let blocks = blocks::choose(context, &rules, &format)?;
    let caches = caches::all(context, &rules, &format, &blocks)?;
    let hybrid = hybrid_manager(context, &rules, &caches)?;
    let packed = hybrid && compressed::is_packed(&caches);
    let groups = groups::of(caches, &rules, hybrid)?;
    let (parts, mut block_bytes) = groups::project(&groups, &context.stage.layers)?;
    if packed {
        block_bytes = compressed::block(&groups, &context.stage.layers, rules.packing)?;
    }
    if parts.iter().all(|p| p.layers == 0) && !parts.is_empty() {
        let pp = context.deployment.parallel.pp;
        return Err(refused(
            &rules,
            format!("--pipeline-parallel-size {pp}"),
            format!("stage {} would cache nothing", context.stage.index),
        ));
    }
    let in_flight = in_flight(context, &rules, defaults)?;
    let ranks = dealt::ranks(context, &rules, &parts)?;
    let widest = parts.iter().map(|p| p.layers).max().unwrap_or(0);
    let groups = parts
        .iter()
        .map(|p| PagedGroup {
            kind: p.like.kind,
            own_pages: p.own_pages,
            layers: p.layers,
            padding_layers: if packed { 0 } else { widest - p.layers },
            // A block of each rank together holds so many tokens of a sequence.
            block_size: p.like.block.saturating_mul(ranks),
            page: p.page,
            row: Bytes::new(p.row.get().div_ceil(ranks)),
            held: held(
                &p.like,
                &rules,
                &blocks,
                [in_flight, defaults.batched_tokens],
            ),
            shares: blocks.prefixes && matches!(p.like.kind, GroupKind::Full | GroupKind::Latent),
        })
        .collect();
    Ok(PagedLaw {
        block_bytes,
        null_blocks: 1,
        groups,
        log: rules.log,
        start: rules.start,
    })
}

/// What the reader should know of the rules followed.
pub(super) fn notes(version: Version) -> Vec<String> {
    Rules::of(version)
        .nearest()
        .map(|read| {
            format!(
                "vLLM {version}: the KV cache rules are those of {read}, the nearest release read"
            )
        })
        .into_iter()
        .collect()
}

/// Whether groups of several kinds are kept, or all layers as if they were full.
fn hybrid_manager(
    context: &Context<'_>,
    rules: &Rules,
    caches: &[Cache],
) -> Result<bool, PlanError> {
    let off = rules.chunks_alone && caches.iter().any(|c| matches!(c.kind, GroupKind::Chunk(_)));
    match context.settings.disable_hybrid_kv_cache_manager {
        Some(false) if off => Err(refused(
            rules,
            "--no-disable-hybrid-kv-cache-manager".to_owned(),
            "it has no hybrid manager for chunked local attention".to_owned(),
        )),
        Some(disable) => Ok(!disable),
        None => Ok(!off),
    }
}

/// Tokens scheduled and not yet settled, which window and chunk layers keep.
fn in_flight(
    context: &Context<'_>,
    rules: &Rules,
    defaults: &Defaults,
) -> Result<u64, SizeOverflow> {
    let batches = if rules.all_batches {
        let pp = context.deployment.parallel.pp.max(1);
        pp + u64::from(defaults.async_scheduling)
    } else {
        1
    };
    defaults
        .batched_tokens
        .checked_mul(batches)
        .ok_or(SizeOverflow)
}

/// Blocks that a sequence holds.
fn held(cache: &Cache, rules: &Rules, blocks: &Blocks, [in_flight, batched]: [u64; 2]) -> Held {
    match cache.kind {
        GroupKind::Full | GroupKind::Latent => Held::PerToken,
        GroupKind::Window(w) => Held::Capped {
            cap: w.saturating_sub(1).saturating_add(in_flight),
            // The window may begin inside a block.
            extra: 1,
            always_extra: true,
        },
        GroupKind::Chunk(c) => Held::Capped {
            cap: c.saturating_add(in_flight),
            extra: 0,
            always_extra: true,
        },
        // As many as one step's encoders may give, whatever one request's does.
        GroupKind::State if matches!(cache.shape, Shape::Cross(..)) => {
            Held::Fixed(batched.div_ceil(cache.block.max(1)))
        }
        GroupKind::State => match blocks.mode {
            StateMode::None => Held::Fixed(1),
            StateMode::Align => {
                let checkpoint = rules.checkpoint && cache.is_mamba2();
                Held::Fixed(2 + u64::from(checkpoint))
            }
            StateMode::All => Held::PerToken,
        },
    }
}

fn refused(rules: &Rules, setting: String, reason: String) -> PlanError {
    PlanError::Refused {
        engine: format!("vLLM {}", rules.version),
        setting,
        reason,
    }
}
