//! Models, and the programs that they lower to.

use plimsoll_model::{Assume, ModelSpec, catalogue, from_config};
use plimsoll_program::{KvRules, Limits, LowerError, Program, lower};
use plimsoll_units::{DType, WeightType, Weights};
use serde_json::Value;

use super::{fixtures, name, spec};

pub(crate) const RULES: KvRules = KvRules {
    dtype: DType::Bf16,
    state_dtype: DType::F32,
    block_size: 16,
};

pub(crate) const LIMITS: Limits = Limits {
    tokens: 48,
    outputs: 4,
    context: 64,
    weights: Weights::As(WeightType::Bf16),
};

pub(crate) fn config(json: &Value) -> ModelSpec {
    from_config(json, Assume::Nothing).unwrap()
}

/// All models that lower: the fixtures and the built-in ones.
pub(crate) fn programs() -> Vec<(String, ModelSpec, Program)> {
    let mut all = Vec::new();
    for folder in fixtures() {
        let spec = spec(&folder);
        let program = lower(&spec, &LIMITS, &RULES).unwrap();
        all.push((name(&folder), spec, program));
    }
    for entry in catalogue::entries() {
        let spec = config(&entry.config);
        let limits = Limits {
            tokens: 2048,
            outputs: 256,
            // ALiBi and states have no last position.
            context: spec.max_context.unwrap_or(2048),
            weights: LIMITS.weights,
        };
        match lower(&spec, &limits, &RULES) {
            Ok(program) => all.push((entry.name.clone(), spec, program)),
            Err(LowerError::NotYet { .. } | LowerError::Unsupported { .. }) => {}
            Err(e) => panic!("{}: {e}", entry.name),
        }
    }
    all
}
