//! vLLM's figures.

use plimsoll_device::Device;
use plimsoll_model::ModelSpec;
use plimsoll_units::Bytes;

use super::figure::Figure;
use super::predict::{
    Capacities, Estimate, Loaded, Prediction, asked, capacities, deployed, of_regions, parallel,
    pool, release, tokens_follow_length,
};
use super::record::Setup;
use crate::engine::Engine;
use crate::evaluate::{StageEvaluation, evaluate};
use crate::settings::{Load, Settings};
use crate::term::{Region, Term};

/// Weights, activations, what torch does not see, the pool, its tokens and requests.
pub(super) fn figures(
    setup: &Setup,
    loaded: Loaded,
    device: Result<Device, String>,
    p: &mut Prediction,
) -> Result<(), String> {
    let spec = loaded.spec;
    let parallel = parallel(setup, &mut p.assumed)?;
    let (release, unknown_release) = release(setup, p, crate::engine::vllm::NEWEST);
    let settings = Settings {
        decode_context_parallel: setup.decode_context_parallel,
        enforce_eager: setup.enforce_eager,
        ..asked(setup, loaded.online, Engine::Vllm(release))?
    };
    let deployment = deployed(&device, parallel);
    let context = setup.max_model_len.or(spec.max_context);
    let load = Load::plain(1, context.unwrap_or(1));
    let e = evaluate(&spec, &deployment, &settings, &load).map_err(|e| e.to_string())?;
    let first = e.stages.first().ok_or("no stage")?;

    // Which of the setup's gaps stand in the way of which figure.
    let no_card = device.err();
    // V0's batch sizes, and what it measures beside torch, are the same on every card.
    let by_card = release >= crate::engine::vllm::FIRST_V1;
    let open = setup.max_num_seqs.is_none() || setup.max_num_batched_tokens.is_none();
    let defaults_open = (by_card && open)
        .then(|| {
            no_card
                .as_ref()
                .map(|why| format!("batch sizes default by card, and {why}"))
        })
        .flatten();
    let no_weights = loaded
        .unknown
        .or_else(|| weights_open(setup, &spec, first, &deployment.device));
    let needs = |gaps: &[&Option<String>]| -> Result<(), String> {
        gaps.iter().find_map(|g| (*g).clone()).map_or(Ok(()), Err)
    };
    let profile_gaps: &[&Option<String>] = &[&unknown_release, &defaults_open];
    let pool_gaps: &[&Option<String>] = &[&unknown_release, &no_card, &no_weights];
    let length_gap = context
        .is_none()
        .then(|| "no longest length is given".to_owned());

    let mut put = |f: Figure, r: Result<Estimate, String>| p.figures.push((f, r));
    put(
        Figure::Weights,
        needs(&[&no_weights]).and_then(|()| {
            let regions = [Region::Weights, Region::Adapters, Region::Draft];
            of_regions(first.terms.iter(), &regions)
        }),
    );
    put(
        Figure::Activation,
        needs(profile_gaps).and_then(|()| {
            let regions = [Region::Activations, Region::Workspace, Region::EncoderCache];
            of_regions(first.terms.iter(), &regions)
        }),
    );
    put(
        Figure::NonTorch,
        needs(&[&unknown_release, if by_card { &no_card } else { &None }]).and_then(|()| {
            let regions = [Region::Driver, Region::Collectives];
            if !first.terms.iter().any(|t| regions.contains(&t.region)) {
                return Err("the engine's model has no such term yet".to_owned());
            }
            of_regions(first.terms.iter(), &regions)
        }),
    );
    // Where nothing is left, none of these is printed: the report has a cause that the setup does not show.
    let starts = || {
        let left = pool(first).value;
        if left > 0.0 {
            return Ok(());
        }
        Err(format!(
            "it would not start: everything but the KV cache needs {:.2} GiB more than its budget",
            -left
        ))
    };
    put(
        Figure::KvPool,
        needs(pool_gaps)
            .and_then(|()| starts())
            .map(|()| pool(first)),
    );
    let capacity = |pick: fn(&Capacities) -> [f64; 3]| -> Result<Estimate, String> {
        let c = capacities(&e).map_err(|e| e.to_string())?;
        let [value, low, high] = pick(&c);
        if setup.max_model_len.is_none() && tokens_follow_length(&e) {
            return Err("no `max_model_len`, which the tokens of such caches depend on".to_owned());
        }
        Ok(Estimate {
            value,
            low,
            high,
            kind: pool(first).kind,
        })
    };
    put(
        Figure::KvTokens,
        needs(pool_gaps)
            .and_then(|()| starts())
            .and_then(|()| capacity(|c| c.tokens)),
    );
    put(
        Figure::MaxConcurrency,
        needs(pool_gaps)
            .and_then(|()| starts())
            .and_then(|()| needs(&[&length_gap]))
            .and_then(|()| capacity(|c| c.concurrency)),
    );
    p.start = needs(pool_gaps)
        .and_then(|()| needs(&[&length_gap]))
        .map(|()| e.verdict);
    p.evaluation = Some(e);
    p.settings = Some(settings);
    p.spec = Some(spec);
    Ok(())
}

/// Why the format of a setup's weights is open: it names none, nor does the configuration, and in the configuration's own
/// type they alone exceed the card. Then nothing would have been printed: figures come after loading. Where they fit and
/// nothing is left for the cache, a refusal is as likely as another format, and is predicted.
fn weights_open(
    setup: &Setup,
    spec: &ModelSpec,
    first: &StageEvaluation,
    card: &Device,
) -> Option<String> {
    let said = setup.quantization.is_some() || spec.quant.is_some();
    let weights = first.terms.iter().filter(|t| t.region == Region::Weights);
    let least = Bytes::sum(weights.map(Term::low)).ok()?;
    (!said && least > card.usable).then(|| {
        "no weight format is given, and in the configuration's own type the weights alone exceed the card".to_owned()
    })
}
