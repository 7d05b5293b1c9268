//! `vllm`: what vLLM's V1 engine allocates, version by version.
//!
//! Start-up in order (`v1/worker/gpu_worker.py: determine_available_memory`): weights are loaded, a
//! profile run measures the activation peak, graphs are estimated, and the KV cache takes the rest of
//! `total x gpu_memory_utilization`. Each step is one module here: `weights`, `profile`
//! for activations, non-torch memory and graphs, `kv` for blocks and groups, `defaults` for what an
//! unset flag means on a card.

pub mod constants;
mod defaults;
mod kv;
mod profile;
mod weights;

use plimsoll_units::Bytes;

use super::{Budget, Context, EngineStage, Version, in_use};
use crate::error::PlanError;
use crate::term::Term;

pub use constants::{Constant, constants};
pub use defaults::Defaults;

/// The newest release whose rules were read.
pub const NEWEST: Version = Version {
    major: 0,
    minor: 32,
    patch: 0,
};

pub(super) fn stage(context: &Context<'_>, version: Version) -> Result<EngineStage, PlanError> {
    let defaults = Defaults::new(context, version);
    // Source: vLLM config/scheduler.py: SchedulerConfig.verify_max_model_len.
    if defaults.sequences > defaults.batched_tokens {
        return Err(PlanError::Refused {
            engine: format!("vllm {version}"),
            setting: format!("--max-num-seqs {}", defaults.sequences),
            reason: format!(
                "it exceeds --max-num-batched-tokens {}",
                defaults.batched_tokens
            ),
        });
    }
    let mut terms = weights::terms(context)?;
    terms.extend(profile::terms(context, version, &defaults)?);
    let law = kv::law(context, version, &defaults)?;
    let budget = budget(context, &defaults)?;
    let outside: Vec<Term> = in_use(context)
        .into_iter()
        .chain(profile::outside(context, version)?)
        .collect();
    let mut notes = kv::notes(version);
    if version < Version::new(0, 17) {
        notes.push(format!(
            "vLLM {version} measured its activation peak differently: that term is a bound"
        ));
    }
    Ok(EngineStage {
        layers: None,
        budget,
        terms,
        outside,
        kv: Box::new(law),
        takes_rest: true,
        notes,
    })
}

/// `ceil(total x u)`: context and communicators made before the first snapshot are outside it.
///
/// Where other processes leave less than that free, vLLM refuses to start, whatever `--kv-memory`
/// says: the budget is then nothing.
fn budget(context: &Context<'_>, defaults: &Defaults) -> Result<Budget, PlanError> {
    let total = context.deployment.device.usable;
    let in_use = context.deployment.in_use;
    let free = total.saturating_sub(in_use);
    let u = defaults.gpu_memory_utilization;
    #[allow(
        clippy::cast_precision_loss,
        reason = "vLLM computes this in floating point too"
    )]
    let bytes = Bytes::from_f64((total.get() as f64 * u).ceil())?;
    if in_use > Bytes::ZERO && free < bytes {
        return Ok(Budget {
            bytes: Bytes::ZERO,
            formula: format!(
                "vLLM does not start: other processes leave {free} free, less than {total} x {u} \
                 gpu_memory_utilization; lower --gpu-memory-utilization"
            ),
            source: "vLLM v1/worker/utils.py: request_memory".to_owned(),
        });
    }
    if context.settings.kv_memory.is_some() {
        return Ok(Budget {
            bytes: free,
            formula: "free memory (--kv-memory bypasses the utilisation)".to_owned(),
            source: "vLLM v1/worker/gpu_worker.py: determine_available_memory".to_owned(),
        });
    }
    Ok(Budget {
        bytes,
        formula: format!("ceil({total} x {u} gpu_memory_utilization)"),
        source: "vLLM v1/worker/utils.py: request_memory".to_owned(),
    })
}
