//! Routed experts that a model class makes wider than they are stored.

use plimsoll_model::{Axis, Role};
use plimsoll_program::{WeightRules, rank_tensors};
use plimsoll_units::{Bytes, SizeOverflow};

use super::super::{Context, Engine, Version, activation_dtype};
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

/// From here on Kimi Linear's class does so (read in 0.28 and 0.32; 0.19 does not).
const FROM: Version = Version::new(0, 28);
/// Columns of an expert that a rank has at least (`min_moe_intermediate_per_partition`).
const LEAST: u64 = 256;

/// What a rank's experts take more, where their columns are fewer than [`LEAST`].
///
/// Source: vLLM 0.32 `models/kimi_k3/amd/linear.py` (`KimiMoE`, the class of Kimi Linear on all cards).
pub(super) fn experts(context: &Context<'_>) -> Result<Option<Term>, PlanError> {
    let tp = context.deployment.parallel.tp;
    let new = matches!(context.settings.engine, Engine::Vllm(v) if v >= FROM);
    if !new || tp < 2 || context.spec.family != "kimi_linear" {
        return Ok(None);
    }
    let rules = WeightRules {
        dtype: Some(activation_dtype(context)),
        ..WeightRules::stored()
    };
    let parallel = &context.deployment.parallel;
    let mut more = 0_u64;
    for part in rank_tensors(context.spec, parallel, context.stage, &rules)? {
        let Some(l) = part.tensor.linear.filter(|_| part.role == Role::Experts) else {
            continue;
        };
        let columns = match l.axis {
            Axis::Out => l.out,
            Axis::In => l.inp,
        };
        let wide = LEAST.checked_mul(tp).ok_or(SizeOverflow)?;
        if columns == 0 || columns / tp >= LEAST {
            continue;
        }
        // In proportion: 128 bits hold the product of two sizes.
        let bytes = u128::from(part.each.times(part.copies)?.get());
        let grown = bytes * u128::from(wide) / u128::from(columns);
        let added = u64::try_from(grown - bytes).map_err(|_| SizeOverflow)?;
        more = more.checked_add(added).ok_or(SizeOverflow)?;
    }
    Ok((more > 0).then(|| {
        Term::exact(Region::Weights, "expert padding", Bytes::new(more))
            .kind(Kind::Derived)
            .formula("routed experts with 256 columns on every rank, less their own")
            .input("tp", tp)
            .source("vLLM models/kimi_k3/amd/linear.py: min_moe_intermediate_per_partition")
    }))
}
