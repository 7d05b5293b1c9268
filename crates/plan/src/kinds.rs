//! [`of_kinds`]: pipeline stages on devices of several kinds.

use std::sync::Arc;

use plimsoll_device::Device;
use plimsoll_model::ModelSpec;

use crate::engine::Engine;
use crate::error::PlanError;
use crate::evaluate::{Evaluation, Stop, evaluate_prepared, prepared};
use crate::settings::{Deployment, Kinds, Load, Settings};
use crate::solve::max_users;
use crate::term::total;

/// `load` on devices of several kinds, one to each pipeline stage of `deployment`, with layers dealt out so that most users
/// are carried. llama.cpp deals them out itself.
///
/// # Errors
/// [`PlanError`] where the model cannot be divided so or the engine refuses a setting.
pub fn of_kinds(
    spec: &ModelSpec,
    devices: &[Device],
    deployment: &Deployment,
    settings: &Settings,
    load: &Load,
) -> Result<Evaluation, PlanError> {
    let spec = prepared(spec, settings)?;
    let at = |layers: Option<Vec<u64>>| {
        let d = Deployment {
            kinds: Some(Arc::new(Kinds {
                devices: devices.to_vec(),
                layers,
            })),
            ..deployment.clone()
        };
        evaluate_prepared(&spec, &d, settings, load, Stop::Never)
    };
    if let Engine::LlamaCpp(_) = settings.engine {
        return at(None);
    }
    let mut layers = proportional(spec.layers.len() as u64, devices)?;
    let mut best = at(Some(layers.clone()))?;
    let mut value = worth(&best)?;
    // From what is free: a layer from the fullest stage to another, as long as that is better. No division is seen twice,
    // for each is better than the one before.
    loop {
        let Some(from) = best.tightest().map(|s| s.stage.index) else {
            return Ok(best);
        };
        let mut better = None;
        for to in (0..layers.len()).filter(|to| *to as u64 != from) {
            let mut other = layers.clone();
            let from = usize::try_from(from).unwrap_or(0);
            if other[from] < 2 {
                continue;
            }
            other[from] -= 1;
            other[to] += 1;
            let e = at(Some(other.clone()))?;
            let w = worth(&e)?;
            if w > value {
                value = w;
                better = Some((e, other));
            }
        }
        match better {
            Some((e, other)) => (best, layers) = (e, other),
            None => return Ok(best),
        }
    }
}

/// Layers by the memory of each stage's device, at least one each; what is left over goes to the last ones, whose shares
/// were cut most.
fn proportional(layers: u64, devices: &[Device]) -> Result<Vec<u64>, PlanError> {
    let n = devices.len() as u64;
    let total: u128 = devices.iter().map(|d| u128::from(d.usable.get())).sum();
    if n == 0 || n > layers || total == 0 {
        return Err(PlanError::Load(format!(
            "{layers} layers are not divided over {n} stages"
        )));
    }
    let spare = u128::from(layers - n);
    let mut out: Vec<u64> = devices
        .iter()
        .map(|d| {
            let share = spare * u128::from(d.usable.get()) / total;
            1 + u64::try_from(share).unwrap_or(0)
        })
        .collect();
    let mut left = layers - out.iter().sum::<u64>();
    for place in out.iter_mut().rev() {
        if left == 0 {
            break;
        }
        *place += 1;
        left -= 1;
    }
    Ok(out)
}

/// What a division is worth: users carried, then the least that a stage has free beyond the load.
fn worth(e: &Evaluation) -> Result<(u64, i128), PlanError> {
    let mut least = i128::MAX;
    for s in &e.stages {
        let used = i128::from(s.needs(&e.load)?.get());
        let fixed = i128::from(total(s.terms.iter())?.get()) - i128::from(s.budget.bytes.get());
        least = least.min(if s.over_budget {
            -fixed - used
        } else {
            i128::from(s.room().get()) - used
        });
    }
    Ok((max_users(e)?, least))
}

#[cfg(test)]
mod tests {
    use plimsoll_units::Bytes;

    use super::*;

    #[test]
    fn layers_follow_memory_and_none_is_lost() {
        let of = |gib: &[u64], layers| {
            let devices: Vec<Device> = gib
                .iter()
                .map(|n| Device::of_size(Bytes::new(n << 30)))
                .collect();
            proportional(layers, &devices)
        };
        assert_eq!(of(&[80, 80], 32).unwrap(), [16, 16]);
        assert_eq!(of(&[24, 8], 32).unwrap(), [23, 9]);
        assert_eq!(of(&[80, 1, 1], 3).unwrap(), [1, 1, 1]);
        assert!(of(&[80, 80, 80], 2).is_err());
        assert!(of(&[], 2).is_err());
    }
}
