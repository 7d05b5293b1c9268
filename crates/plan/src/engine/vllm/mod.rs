//! `vllm`: what vLLM's V1 engine allocates, version by version.
//!
//! Start-up in order (`v1/worker/gpu_worker.py: determine_available_memory`): weights are loaded, a
//! profile run measures the activation peak, graphs are estimated, and the KV cache takes the rest of
//! `total x gpu_memory_utilization`. Each step is one module here: `weights`, `profile`
//! for activations, non-torch memory and graphs, `kv` for blocks and groups, `defaults` for what an
//! unset flag means on a card.

mod buffers;
pub mod constants;
mod defaults;
mod kv;
mod padding;
mod profile;
mod weights;

use plimsoll_model::ModelSpec;
use plimsoll_program::{Parallel, Stage};
use plimsoll_units::Bytes;

use super::{Budget, Context, EngineStage, Takes, Version, extras, in_use};
use crate::error::PlanError;
use crate::settings::{Deployment, Settings};
use crate::term::{Region, Term, total};

pub use constants::{Constant, constants};
pub use defaults::Defaults;
pub(in crate::engine) use profile::activation_bound;
pub(crate) use weights::as_loaded;
pub(in crate::engine) use weights::tensors;

/// The newest release whose rules were read.
pub const NEWEST: Version = Version {
    major: 0,
    minor: 32,
    patch: 0,
};

/// The first release whose default engine is the one modelled here.
pub(crate) const FIRST_V1: Version = Version::new(0, 8);

pub(super) fn stage(context: &Context<'_>, version: Version) -> Result<EngineStage, PlanError> {
    let outside: Vec<Term> = in_use(context)
        .into_iter()
        .chain(profile::outside(context, version)?)
        .collect();
    let mut notes = kv::notes(version);
    let mut defaults = Defaults::new(context, version);
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
    if context.settings.gpu_memory_utilization.is_none() {
        share_the_card(context, &outside, &mut defaults, &mut notes)?;
    }
    let mut terms = weights::terms(context, version)?;
    terms.extend(draft(context, version)?);
    terms.extend(extras::adapters(context)?);
    terms.extend(profile::terms(context, version, &defaults)?);
    terms.extend(buffers::terms(context, version, defaults.batched_tokens)?);
    let cached = extras::with_speculation(context);
    let stage = speculating_stage(context, &cached);
    let law = kv::law(
        &Context {
            spec: &cached,
            stage: &stage,
            ..*context
        },
        version,
        &defaults,
    )?;
    let budget = if is_cpu(context) {
        notes.push(
            "on processors: one NUMA node is assumed, and what Python and torch take beside these terms is not planned"
                .to_owned(),
        );
        cpu_budget(context, version, &defaults, &terms)?
    } else {
        budget(context, &defaults)?
    };
    if context.users > defaults.sequences {
        notes.push(format!(
            "at most {} sequences run at once (--max-num-seqs); further ones wait in the queue",
            defaults.sequences
        ));
    }
    if version < FIRST_V1 {
        notes.push(format!(
            "vLLM {version} had another engine (V0): its budget and KV blocks are planned, its activation peak is a bound"
        ));
    }
    let off = constants::off_measured(context, version, &defaults);
    if !off.is_empty() && !is_cpu(context) {
        notes.push(format!(
            "calibrated terms were measured with {}; {} differ{} here, so their intervals are wider",
            constants::MEASURED_ON,
            off.join(" and "),
            if off.len() == 1 { "s" } else { "" }
        ));
    }
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
        host: Vec::new(),
        kv: Box::new(law),
        takes: Takes::Rest,
        notes,
    })
}

/// Whether this is vLLM's CPU backend.
fn is_cpu(context: &Context<'_>) -> bool {
    context.deployment.device.vendor.eq_ignore_ascii_case("cpu")
}

/// The draft model's weights, on the last stage, split as the target is.
fn draft(context: &Context<'_>, version: Version) -> Result<Option<Term>, PlanError> {
    let (Some(spec), true) = (&context.settings.draft, context.stage.is_last()) else {
        return Ok(None);
    };
    let parallel = Parallel {
        pp: 1,
        ..context.deployment.parallel
    };
    let deployment = Deployment {
        parallel,
        ..context.deployment.clone()
    };
    let Some(stage) = parallel.stages(spec.layers.len() as u64).into_iter().next() else {
        return Ok(None);
    };
    let settings = Settings {
        draft: None,
        mtp: false,
        ..context.settings.clone()
    };
    let own = Context {
        spec,
        deployment: &deployment,
        settings: &settings,
        stage: &stage,
        ..*context
    };
    let bytes = total(&weights::terms(&own, version)?)?;
    Ok(Some(
        Term::exact(Region::Draft, "draft model", bytes)
            .formula("weights of the draft model, split as the target's")
            .input("parameters", spec.parameters()?)
            .input("tp", parallel.tp)
            .source("vLLM v1/spec_decode: the proposer loads the draft on the target's ranks"),
    ))
}

/// The stage with the layers that speculation adds: they run last.
fn speculating_stage(context: &Context<'_>, cached: &ModelSpec) -> Stage {
    let mut stage = context.stage.clone();
    if stage.is_last() {
        stage.layers.end = cached.layers.len() as u64;
    }
    stage
}

/// Beside another process the default share is more than is free, and the engine would not start: take
/// what is left, in hundredths as the flag is written.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share between 0 and 1, in hundredths"
)]
fn share_the_card(
    context: &Context<'_>,
    outside: &[Term],
    defaults: &mut Defaults,
    notes: &mut Vec<String>,
) -> Result<(), PlanError> {
    if context.deployment.in_use == Bytes::ZERO {
        return Ok(());
    }
    let usable = context.deployment.device.usable;
    let taken = Bytes::sum(outside.iter().map(Term::high))?;
    let left = usable.saturating_sub(taken).get() as f64 / usable.get().max(1) as f64;
    let share = (left * 100.0).floor() / 100.0;
    if share < defaults.gpu_memory_utilization {
        notes.push(format!(
            "beside {} in use, vLLM starts with --gpu-memory-utilization {share:.2} at most",
            context.deployment.in_use
        ));
        defaults.gpu_memory_utilization = share.max(0.01);
    }
    Ok(())
}

/// What vLLM's CPU backend gives the KV cache where `VLLM_CPU_KVCACHE_SPACE` says nothing, up to 0.16.
const CPU_KV_BYTES: u64 = 4 << 30;

/// The CPU backend takes its share of a NUMA node's memory: in 0.32, the first release read that does.
const CPU_SHARE: Version = Version::new(0, 20);
/// From here on the default is half of a node's memory; before, 4 GiB.
const CPU_HALF: Version = Version::new(0, 17);

/// The KV cache of the CPU backend is `VLLM_CPU_KVCACHE_SPACE`, which is `--kv-memory` here. Where nobody gives it, it
/// was 4 GiB up to 0.16, half of a node's memory whatever else needs it in 0.17 to 0.19, and is what the process leaves
/// of `--gpu-memory-utilization` of the node from 0.20 on.
#[allow(
    clippy::cast_precision_loss,
    reason = "vLLM computes this in floating point too"
)]
fn cpu_budget(
    context: &Context<'_>,
    version: Version,
    defaults: &Defaults,
    terms: &[Term],
) -> Result<Budget, PlanError> {
    let source = "vLLM platforms/cpu.py: VLLM_CPU_KVCACHE_SPACE".to_owned();
    if context.settings.kv_memory.is_some() {
        return Ok(Budget {
            bytes: context.deployment.device.usable,
            formula: "host memory (the KV cache is given)".to_owned(),
            source,
        });
    }
    if version >= CPU_SHARE {
        let node = context.deployment.device.usable;
        let share = defaults.gpu_memory_utilization;
        return Ok(Budget {
            bytes: Bytes::from_f64((node.get() as f64 * share).ceil())?,
            formula: format!("ceil({node} x {share} gpu_memory_utilization), of host memory"),
            source: "vLLM v1/worker/cpu_worker.py: determine_available_memory".to_owned(),
        });
    }
    if version >= CPU_HALF {
        let node = context.deployment.device.usable;
        return Ok(Budget {
            bytes: total(terms)?.add(Bytes::new(node.get() / 2))?,
            formula: format!("all other terms + half of {node} for the KV cache"),
            source: "vLLM platforms/cpu.py: get_device_total_memory".to_owned(),
        });
    }
    Ok(Budget {
        bytes: total(terms)?.add(Bytes::new(CPU_KV_BYTES))?,
        formula: "all other terms + 4 GiB of KV cache".to_owned(),
        source,
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
