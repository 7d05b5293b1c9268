//! Blocks and groups.

use plimsoll_program::{GroupKind, KvRules, PoolGeometry};

use super::super::{Context, Version, plain_kv_dtype};
use super::Defaults;
use crate::error::PlanError;
use crate::kv::{Held, LogRule, PagedGroup, PagedLaw};

/// The KV law of one rank.
pub(super) fn law(
    context: &Context<'_>,
    version: Version,
    _: &Defaults,
) -> Result<PagedLaw, PlanError> {
    let dtype = plain_kv_dtype(context, "vllm")?;
    let block = context.settings.block_size.unwrap_or(16);
    let rules = KvRules {
        dtype,
        state_dtype: dtype,
        block_size: block,
    };
    let g = PoolGeometry::new(
        context.spec,
        &context.deployment.parallel,
        context.stage,
        &rules,
    )?;
    let groups = g
        .groups
        .iter()
        .map(|x| PagedGroup {
            kind: x.kind,
            layers: x.layers,
            padding_layers: 0,
            block_size: block,
            page: g.page,
            rate: x.rate,
            held: Held::PerToken,
            shares: matches!(x.kind, GroupKind::Full | GroupKind::Latent),
        })
        .collect();
    Ok(PagedLaw {
        block_bytes: g.page,
        null_blocks: 1,
        groups,
        log: if version >= Version::new(0, 21) {
            LogRule::ConcurrencyTimesLength
        } else {
            LogRule::BlocksOverGroups
        },
    })
}
