//! TensorRT-LLM's figures: weights, and bounds for what its trial run takes and what that leaves.
//!
//! The pool is `(total - peak) x free_gpu_memory_fraction`, where the peak is what torch and everything outside it took
//! (`_torch/pyexecutor/_util.py: configure_kv_cache_capacity`); graphs, collectives and attention workspaces outside torch
//! are in no source that could be counted, so a pool has an upper end alone: as if weights were all that there is.

use plimsoll_device::Device;
use plimsoll_units::Bytes;

use super::figure::Figure;
use super::predict::{Estimate, Loaded, Prediction, asked, deployed, of_regions, parallel};
use super::record::Setup;
use crate::engine::Engine;
use crate::evaluate::{StageEvaluation, evaluate};
use crate::settings::Load;
use crate::term::{Region, Term};

/// Share of free memory that the pool takes unless told (`llmapi/llm_args.py: KvCacheConfig`).
const FREE_FRACTION: f64 = 0.9;

/// Weights, activations, what the pool takes, and its tokens.
pub(super) fn figures(
    setup: &Setup,
    loaded: Loaded,
    device: Result<Device, String>,
    p: &mut Prediction,
) -> Result<(), String> {
    let spec = loaded.spec;
    let parallel = parallel(setup, &mut p.assumed)?;
    let settings = asked(setup, loaded.online, Engine::TrtLlm)?;
    let deployment = deployed(&device, parallel);
    let context = setup.max_model_len.or(spec.max_context).unwrap_or(1);
    let e = evaluate(&spec, &deployment, &settings, &Load::plain(1, context))
        .map_err(|e| e.to_string())?;
    let first = e.stages.first().ok_or("no stage")?;
    let unknown = loaded.unknown.clone();
    let mut put = |f: Figure, r: Result<Estimate, String>| p.figures.push((f, r));
    put(
        Figure::Weights,
        unknown
            .clone()
            .map_or_else(|| of_regions(first.terms.iter(), &[Region::Weights]), Err),
    );
    put(
        Figure::Activation,
        of_regions(first.terms.iter(), &[Region::Activations]),
    );
    let gap = device.err().or(unknown);
    let bounds = gap.map_or_else(
        || {
            let share = setup.gpu_memory_utilization.unwrap_or(FREE_FRACTION);
            let all: Result<Vec<_>, String> = e.stages.iter().map(|s| bound(s, share)).collect();
            all
        },
        Err,
    );
    let least =
        |pick: fn(&Bound) -> f64, all: &[Bound]| all.iter().map(pick).fold(f64::INFINITY, f64::min);
    put(
        Figure::KvPool,
        bounds.as_ref().map_err(Clone::clone).map(|all| {
            // The first rank's is printed.
            let high = all.first().map_or(0.0, |b| b.gib);
            under(high)
        }),
    );
    put(
        Figure::KvTokens,
        bounds.map(|all| {
            let tokens = least(|b| b.tokens, &all);
            #[allow(clippy::cast_precision_loss, reason = "a figure for comparison")]
            let capped = setup.max_total_tokens.map_or(tokens, |n| {
                // What is asked for is filled up to whole blocks.
                let block = first.capacity.block_size.max(1);
                tokens.min(n.div_ceil(block).saturating_mul(block) as f64)
            });
            under(capped)
        }),
    );
    p.start = Err("what TensorRT-LLM takes outside torch is not modelled".to_owned());
    p.evaluation = Some(e);
    p.settings = Some(settings);
    p.spec = Some(spec);
    Ok(())
}

/// The most that a stage's pool can be.
struct Bound {
    gib: f64,
    tokens: f64,
}

fn bound(s: &StageEvaluation, share: f64) -> Result<Bound, String> {
    let weights = s.terms.iter().filter(|t| t.region == Region::Weights);
    let weights: f64 = weights.map(|t: &Term| t.bytes.gib()).sum();
    let gib = ((s.budget.bytes.gib() - weights) * share).max(0.0);
    let pool = Bytes::from_gib(gib).map_err(|e| e.to_string())?;
    let c = s.kv.capacity(pool, 1).map_err(|e| e.to_string())?;
    #[allow(clippy::cast_precision_loss, reason = "a figure for comparison")]
    Ok(Bound {
        gib,
        tokens: c.tokens as f64,
    })
}

/// Not above `high`.
const fn under(high: f64) -> Estimate {
    Estimate {
        value: high,
        low: 0.0,
        high,
        kind: "bound",
    }
}
