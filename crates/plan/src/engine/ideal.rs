//! `ideal`: weights as stored, and the keys, values and states of live tokens. Nothing else.
//!
//! A lower bound that no engine reaches; the difference to an engine is that engine's overhead.

use plimsoll_program::{KvRules, PoolGeometry, WeightRules};
use plimsoll_units::DType;

use super::{Budget, Context, EngineStage, Takes, in_use, plain_kv_dtype, weight_terms};
use crate::error::PlanError;
use crate::kv::TokenLaw;
use crate::settings::KvType;

pub(super) fn stage(context: &Context<'_>) -> Result<EngineStage, PlanError> {
    let rules = WeightRules {
        dtype: context.settings.dtype,
        ..WeightRules::stored()
    };
    Ok(EngineStage {
        layers: None,
        budget: whole_device(context),
        terms: weight_terms(context, &rules, "checkpoint")?,
        outside: in_use(context).into_iter().collect(),
        host: Vec::new(),
        kv: Box::new(token_law(context, "ideal")?),
        takes: Takes::Rest,
        notes: vec!["a lower bound: no activations, buffers, driver or rounding".to_owned()],
    })
}

/// Everything that the device offers and no other process uses.
pub(super) fn whole_device(context: &Context<'_>) -> Budget {
    let device = &context.deployment.device;
    Budget {
        bytes: device.usable.saturating_sub(context.deployment.in_use),
        formula: "usable memory - other processes".to_owned(),
        source: device.memory_source.clone(),
    }
}

/// What the layers of this stage keep, per token and per sequence.
pub(super) fn token_law(context: &Context<'_>, engine: &str) -> Result<TokenLaw, PlanError> {
    let rules = KvRules {
        dtype: plain_kv_dtype(context, engine)?,
        state_dtype: state_dtype(context),
        block_size: 1,
    };
    let parallel = &context.deployment.parallel;
    let geometry = PoolGeometry::new(context.spec, parallel, context.stage, &rules)?;
    Ok(TokenLaw::of(&geometry))
}

/// States without a type of their own are kept as activations are.
fn state_dtype(context: &Context<'_>) -> DType {
    match context.settings.kv_type {
        KvType::Plain(d @ (DType::F32 | DType::F16 | DType::Bf16)) => d,
        _ => super::activation_dtype(context),
    }
}
