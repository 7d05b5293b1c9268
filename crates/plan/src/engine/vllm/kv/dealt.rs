//! Decode context parallelism: a sequence's tokens are dealt over ranks that would keep the same keys and values.
//!
//! Source: vLLM `v1/kv_cache_interface.py` (`FullAttentionSpec.max_memory_usage_bytes`), `v1/core/single_type_kv_cache_manager.py`
//! (a manager's block is `block_size x dcp_world_size`), `v1/core/kv_cache_coordinator.py` (one group only),
//! `config/model.py` and `config/parallel.py` (which degrees are taken).

use plimsoll_model::Mixer;
use plimsoll_program::GroupKind;

use super::super::super::{Context, Version};
use super::groups::Part;
use super::refused;
use super::rules::Rules;
use crate::error::PlanError;

/// The first release that has it.
const FIRST: Version = Version {
    major: 0,
    minor: 10,
    patch: 2,
};

/// Over how many ranks a sequence's tokens are dealt.
///
/// # Errors
/// [`PlanError::Refused`] where this version does not start so: with windows or states, and beyond the ranks that keep
/// the same heads.
pub(super) fn ranks(
    context: &Context<'_>,
    rules: &Rules,
    parts: &[Part],
) -> Result<u64, PlanError> {
    let ranks = context.settings.decode_context_parallel.unwrap_or(1).max(1);
    if ranks == 1 {
        return Ok(1);
    }
    let refuse = |reason: String| {
        let flag = format!("--decode-context-parallel-size {ranks}");
        Err(refused(rules, flag, reason))
    };
    if rules.version < FIRST {
        return refuse(format!("it came with {FIRST}"));
    }
    let tp = context.deployment.parallel.tp.max(1);
    if !tp.is_multiple_of(ranks) {
        return refuse(format!("it does not divide --tensor-parallel-size {tp}"));
    }
    let plain = |kind| matches!(kind, GroupKind::Full | GroupKind::Latent);
    if parts.len() > 1 || parts.iter().any(|p| !plain(p.like.kind)) {
        return refuse(
            "windows and states are not dealt: all layers must be of one kind".to_owned(),
        );
    }
    let heads = context.spec.layers.iter().filter_map(|l| match &l.mixer {
        Mixer::Attention(a) => Some(a.kv_heads),
        Mixer::Latent(_) | Mixer::State(_) | Mixer::None => None,
    });
    let most = heads.max().map_or(tp, |heads| tp / heads.max(1));
    if ranks > most {
        return refuse(format!(
            "at most {most} of {tp} ranks keep the same heads: lower it, or raise --tensor-parallel-size"
        ));
    }
    Ok(ranks)
}
