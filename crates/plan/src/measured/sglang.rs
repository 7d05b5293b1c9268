//! SGLang's figures.

use plimsoll_device::Device;
use plimsoll_units::Bytes;

use super::figure::Figure;
use super::predict::{
    Estimate, Loaded, Prediction, asked, capacities, deployed, of_regions, parallel, pool, release,
};
use super::record::Setup;
use crate::engine::{Engine, sglang};
use crate::evaluate::{Evaluation, evaluate};
use crate::settings::{Load, Settings};
use crate::term::Region;

/// Weights, what the pool takes, and its tokens.
pub(super) fn figures(
    setup: &Setup,
    loaded: Loaded,
    device: Result<Device, String>,
    p: &mut Prediction,
) -> Result<(), String> {
    let spec = loaded.spec;
    let parallel = if setup.tensor_parallel.is_none() && setup.gpu_count.is_none() {
        p.assumed.push("one card".to_owned());
        plimsoll_program::Parallel::default()
    } else {
        parallel(setup, &mut p.assumed)?
    };
    let (release, unknown_release) = release(setup, p, sglang::NEWEST);
    let mut settings = Settings {
        max_total_tokens: setup.max_total_tokens,
        free_before_loading: setup.free_before_gib.and_then(|g| Bytes::from_gib(g).ok()),
        enforce_eager: setup.enforce_eager,
        ..asked(setup, loaded.online, Engine::Sglang(release))?
    };
    let deployment = deployed(&device, parallel);
    let context = setup.max_model_len.or(spec.max_context).unwrap_or(1);
    let load = Load::plain(1, context);
    let mut e = evaluate(&spec, &deployment, &settings, &load).map_err(|e| e.to_string())?;
    // What was free before is what was free after, and the weights.
    if let (None, Some(after), None) =
        (setup.free_before_gib, setup.free_after_gib, &loaded.unknown)
    {
        let first = e.stages.first().ok_or("no stage")?;
        let weights = of_regions(first.terms.iter(), &[Region::Weights, Region::Adapters])?;
        let before = after + weights.value;
        // What loading takes beside the tensors is known less well than this.
        if before > deployment.device.usable.gib() + weights.high - weights.low {
            return Err(format!(
                "{before:.2} GiB were free before loading, more than {} has",
                deployment.device.name
            ));
        }
        settings.free_before_loading = Bytes::from_gib(before).ok();
        p.assumed.push(format!(
            "{before:.2} GiB free before loading: {after} after it, and the weights"
        ));
        e = evaluate(&spec, &deployment, &settings, &load).map_err(|e| e.to_string())?;
    }
    let first = e.stages.first().ok_or("no stage")?;

    let share_given = setup.gpu_memory_utilization.is_some();
    // What stands in the way of the pool: nobody knows what was free, or which share of it was taken.
    let no_card = device.err();
    let no_share = (!share_given && sglang::Defaults::depend_on_card(release))
        .then(|| {
            no_card
                .as_ref()
                .map(|why| format!("mem_fraction_static defaults by card, and {why}"))
        })
        .flatten();
    let no_free = no_card.filter(|_| settings.free_before_loading.is_none());
    let gap = if setup.max_total_tokens.is_some() {
        None
    } else {
        let release = unknown_release.filter(|_| !share_given);
        let format = loaded.unknown.clone();
        [release, no_share, no_free, format]
            .into_iter()
            .flatten()
            .next()
    };
    let mut put = |f: Figure, r: Result<Estimate, String>| p.figures.push((f, r));
    put(
        Figure::Weights,
        loaded.unknown.clone().map_or_else(
            || of_regions(first.terms.iter(), &[Region::Weights, Region::Adapters]),
            Err,
        ),
    );
    let tokens = gap.map_or_else(|| tokens(&e), Err);
    let cell = first.capacity.bytes_per_block.gib() / to_f64(first.capacity.block_size.max(1));
    // Keys and values are printed, and rounded, apart.
    let rounding = 0.005;
    put(
        Figure::KvPool,
        tokens.clone().map(|t| Estimate {
            value: t.value * cell,
            low: t.low.mul_add(cell, -rounding),
            high: t.high.mul_add(cell, rounding),
            kind: t.kind,
        }),
    );
    put(Figure::KvTokens, tokens);
    p.start = Err("SGLang does not say whether one request of the longest length fits".to_owned());
    p.evaluation = Some(e);
    p.settings = Some(settings);
    p.spec = Some(spec);
    Ok(())
}

/// All stages have the tokens of the one that has the fewest.
fn tokens(e: &Evaluation) -> Result<Estimate, String> {
    let c = capacities(e).map_err(|e| e.to_string())?;
    let [value, low, high] = c.tokens;
    let kind = e.stages.first().map_or("bound", |s| pool(s).kind);
    Ok(Estimate {
        value,
        low,
        high,
        kind,
    })
}

#[allow(clippy::cast_precision_loss, reason = "tokens of a page")]
const fn to_f64(n: u64) -> f64 {
    n as f64
}
