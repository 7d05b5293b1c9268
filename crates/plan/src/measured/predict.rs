//! [`predict`]: from a setup and a configuration to the figures that the engine will print.

use plimsoll_device::{Device, devices};
use plimsoll_model::quant::{self, QuantFormat, QuantScheme};
use plimsoll_model::{Assume, Config, Mixer, ModelSpec, Reach, from_config};
use plimsoll_program::Parallel;
use plimsoll_units::{Bytes, DType};
use serde_json::{Value, json};

use super::card::{candidates, device};
use super::configs::Configs;
use super::figure::Figure;
use super::llama::LlamaRun;
use super::quantisation::{self, Weights};
use super::record::Setup;
use super::version::{EngineName, Said, read_engine};
use super::{llama, sglang, trtllm, vllm};
use crate::engine::{Engine, Version};
use crate::error::PlanError;
use crate::evaluate::{Evaluation, StageEvaluation, Verdict};
use crate::settings::{Deployment, KvType, Settings};
use crate::term::{Region, Term};

/// A predicted figure with its interval, in the figure's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Expected.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// How well it is known: `exact`, `derived`, `calibrated` or `bound`.
    pub kind: &'static str,
}

/// Everything predicted for one setup.
pub struct Prediction {
    /// The engine read from the setup.
    pub engine: EngineName,
    /// What the setup says of its version.
    pub said: Said,
    /// The release predicted with (vLLM).
    pub release: Option<Version>,
    /// The kind of attention, or `unknown model`.
    pub attention: &'static str,
    /// Each figure that the engine prints, or why it is not predicted.
    pub figures: Vec<(Figure, Result<Estimate, String>)>,
    /// Whether one request of the longest length fits, or why that is not predicted.
    pub start: Result<Verdict, String>,
    /// What was assumed beyond the setup's own words.
    pub assumed: Vec<String>,
    /// The evaluation, for questions that go further than the figures.
    pub evaluation: Option<Evaluation>,
    /// The settings that it was made with.
    pub settings: Option<Settings>,
    /// The model.
    pub spec: Option<ModelSpec>,
    /// The process (llama.cpp).
    pub llama: Option<LlamaRun>,
}

/// The model of a setup.
pub enum Model {
    /// As a config.json says.
    Config(Value),
    /// As already read, from file headers perhaps.
    Spec(Box<ModelSpec>),
}

/// Predicts every figure of `setup`, with the configuration that `configs` has of its model and
/// the card that it names.
///
/// Where it names no release, or a class of cards, figures that depend on it are bounds that span the possible ones.
#[must_use]
pub fn predict(setup: &Setup, configs: &Configs) -> Prediction {
    let (engine, said) = read_engine(&setup.engine, setup.engine_version.as_deref());
    // SGLang's share of what is free is by card in most releases; in others what is free is all that matters.
    let share_by_card = engine == EngineName::SgLang
        && said
            .sglang_release()
            .is_none_or(|(v, _)| crate::engine::sglang::Defaults::depend_on_card(v));
    let cards: Vec<Result<Device, String>> = match device(setup) {
        Ok(card) => vec![Ok(card)],
        Err(reason) => match possible(setup, share_by_card).as_slice() {
            [] => vec![Err(reason)],
            some => some.iter().map(|d| Ok((*d).clone())).collect(),
        },
    };
    let versions = said.possible(engine, setup.engine_version.as_deref());
    let mut setups = vec![setup.clone()];
    if !versions.is_empty() {
        setups = versions
            .iter()
            .map(|v| Setup {
                engine_version: Some(v.to_string()),
                ..setup.clone()
            })
            .collect();
    }
    let mut all = Vec::new();
    for setup in &setups {
        for card in &cards {
            let (model, assumed) = match configs.config(&setup.model) {
                Ok((json, assumed)) => (Ok(Model::Config(json)), assumed),
                Err(reason) => (Err(reason), Vec::new()),
            };
            let mut p = predict_on(setup, model, card.clone());
            p.assumed.splice(0..0, assumed);
            all.push(p);
        }
    }
    let mut first = all.swap_remove(0);
    if !all.is_empty() {
        span(&mut first, &all);
    }
    check_length(setup, &mut first);
    if all.is_empty() {
        return first;
    }
    let names = |v: Vec<String>| v.join(", ");
    if !versions.is_empty() {
        first.said = said;
        first.release = None;
        let all = versions.iter().map(ToString::to_string).collect();
        first
            .assumed
            .push(format!("version: any of {}", names(all)));
    }
    if cards.len() > 1 {
        let all: Vec<String> = cards.iter().flatten().map(|d| d.name.clone()).collect();
        first.assumed.push(match all.len() {
            0..=MAX_NAMED => format!("card: any of {}", names(all)),
            n => format!("card: any of {n}, which have the memory that was free"),
        });
    }
    first
}

/// Most cards that an assumption lists.
const MAX_NAMED: usize = 12;

/// The cards that a setup without a named one leaves open: those that its text describes, or (`by_free`) that have at
/// least the memory that was free on it. One of a kind stands for all that the engines treat alike.
fn possible(setup: &Setup, by_free: bool) -> Vec<&'static Device> {
    let free = setup.free_before_gib.or(setup.free_after_gib);
    let mut cards = candidates(setup.gpu.as_deref());
    if cards.is_empty() && setup.gpu.is_none() && by_free && free.is_some() {
        cards = devices().iter().collect();
    }
    // Two printed decimals.
    cards.retain(|d| free.is_none_or(|g| g <= d.usable.gib() + 0.01));
    let kind = |d: &Device| {
        (
            d.driver_total,
            d.usable,
            d.compute_capability,
            d.vendor.clone(),
        )
    };
    let mut seen = std::collections::BTreeSet::new();
    cards.retain(|d| seen.insert(kind(d)));
    cards
}

/// The release whose rules apply, and why it is not known where the newest stands in for it.
pub(super) fn release(setup: &Setup, p: &Prediction, newest: Version) -> (Version, Option<String>) {
    match p.release {
        Some(v) => (v, None),
        None => (
            newest,
            Some(match &setup.engine_version {
                Some(t) => format!("`{t}` names no engine version"),
                None => "no engine version is given".to_owned(),
            }),
        ),
    }
}

/// Requests of the longest length are not predicted where the setup leaves that length out and a server would perhaps not
/// start with the trained one: then it was started with another.
fn check_length(setup: &Setup, p: &mut Prediction) {
    if setup.max_model_len.is_some() {
        return;
    }
    for (figure, estimate) in &mut p.figures {
        if *figure == Figure::MaxConcurrency && estimate.as_ref().is_ok_and(|e| e.low < 1.0) {
            let reason = "no `max_model_len` is given, and it is not certain that one request of the trained length fits";
            *estimate = Err(reason.to_owned());
        }
    }
}

/// Makes figures that differ between `first` and `others` bounds that span all of them.
fn span(first: &mut Prediction, others: &[Prediction]) {
    for (figure, estimate) in &mut first.figures {
        let theirs = others
            .iter()
            .filter_map(|p| p.figures.iter().find(|(f, _)| f == figure).map(|(_, e)| e));
        for other in theirs {
            match (&mut *estimate, other) {
                // An engine that would not start so is no possibility.
                (_, Err(_)) => {}
                (Err(_), Ok(o)) => *estimate = Ok(*o),
                (Ok(e), Ok(o)) if o == e => {}
                (Ok(e), Ok(o)) => {
                    e.low = e.low.min(o.low);
                    e.high = e.high.max(o.high);
                    e.value = e.high;
                    e.kind = "bound";
                }
            }
        }
    }
    // Those looked at need not be the one that it was.
    first.start = Err("the release or the card is open".to_owned());
}

/// As [`predict`], with model and device at hand, or why they are not.
#[must_use]
pub fn predict_on(
    setup: &Setup,
    model: Result<Model, String>,
    device: Result<Device, String>,
) -> Prediction {
    let (engine, said) = read_engine(&setup.engine, setup.engine_version.as_deref());
    let mut p = Prediction {
        engine,
        said,
        release: None,
        attention: "unknown model",
        figures: Vec::new(),
        start: Err("not predicted".to_owned()),
        assumed: Vec::new(),
        evaluation: None,
        settings: None,
        spec: None,
        llama: None,
    };
    // The release is a fact of the setup, known or not before the model is.
    let release = match engine {
        EngineName::Vllm => said.vllm_release(),
        EngineName::SgLang => said.sglang_release(),
        EngineName::LlamaCpp
        | EngineName::IkLlamaCpp
        | EngineName::TensorRtLlm
        | EngineName::Other => None,
    };
    if let Some((version, note)) = release {
        p.release = Some(version);
        p.assumed.extend(note.map(|n| format!("version: {n}")));
    }
    let loaded = model.and_then(|m| load(setup, engine, m, &mut p.assumed));
    if let Ok(m) = &loaded {
        p.attention = attention_kind(&m.spec);
    }
    let result = match engine {
        EngineName::Vllm => loaded.and_then(|m| vllm::figures(setup, m, device, &mut p)),
        EngineName::LlamaCpp | EngineName::IkLlamaCpp => {
            loaded.and_then(|m| llama::figures(setup, m, device, &mut p))
        }
        EngineName::SgLang => loaded.and_then(|m| sglang::figures(setup, m, device, &mut p)),
        EngineName::TensorRtLlm => loaded.and_then(|m| trtllm::figures(setup, m, device, &mut p)),
        EngineName::Other => Err(format!("engine `{}` is not modelled", setup.engine)),
    };
    if let Err(reason) = result {
        let all = match engine {
            EngineName::LlamaCpp | EngineName::IkLlamaCpp => Figure::LLAMA_CPP,
            EngineName::SgLang => Figure::SGLANG,
            EngineName::TensorRtLlm => Figure::TENSORRT_LLM,
            EngineName::Vllm | EngineName::Other => Figure::VLLM,
        };
        p.figures = all.iter().map(|f| (*f, Err(reason.clone()))).collect();
        p.start = Err(reason);
    }
    p
}

/// What the layers of a model keep, as one word for breakdowns.
#[must_use]
pub fn attention_kind(spec: &ModelSpec) -> &'static str {
    let mixers = || spec.layers.iter().map(|l| &l.mixer);
    let state = spec.layers.iter().any(|l| l.parallel.is_some())
        || mixers().any(|m| matches!(m, Mixer::State(_)));
    let attention = mixers().any(|m| matches!(m, Mixer::Attention(_) | Mixer::Latent(_)));
    let latent = mixers().any(|m| matches!(m, Mixer::Latent(_)));
    let reaches = || {
        mixers().filter_map(|m| match m {
            Mixer::Attention(a) => Some(a.reach),
            Mixer::Latent(_) | Mixer::State(_) | Mixer::None => None,
        })
    };
    let limited = reaches().any(|r| r != Reach::Full);
    let full = reaches().any(|r| r == Reach::Full);
    match (state, attention, latent, limited, full) {
        (true, true, ..) => "hybrid with state",
        (true, false, ..) => "state",
        (_, _, true, ..) => "latent (MLA)",
        (_, _, _, true, true) => "hybrid with windows",
        (_, _, _, true, false) => "windows",
        _ => "full",
    }
}

/// A model as an engine loads it.
pub(super) struct Loaded {
    pub(super) spec: ModelSpec,
    /// Quantised while loading.
    pub(super) online: Option<QuantFormat>,
    /// Why its weights' format is not known.
    pub(super) unknown: Option<String>,
}

fn load(
    setup: &Setup,
    engine: EngineName,
    model: Model,
    assumed: &mut Vec<String>,
) -> Result<Loaded, String> {
    let gguf = matches!(engine, EngineName::LlamaCpp | EngineName::IkLlamaCpp);
    let spec = match model {
        Model::Spec(spec) => *spec,
        Model::Config(mut json) => {
            // A GGUF file has its own types, whatever the checkpoint it was made from had.
            if gguf && let Value::Object(map) = &mut json {
                map.shift_remove("quantization_config");
            }
            from_config(&json, Assume::Nothing).map_err(|e| e.to_string())?
        }
    };
    let mut loaded = Loaded {
        spec,
        online: None,
        unknown: None,
    };
    if gguf {
        return Ok(loaded);
    }
    let configured = loaded.spec.quant.is_some();
    let (weights, note) =
        quantisation::weights(configured, setup.quantization.as_deref(), &setup.model);
    assumed.extend(note);
    match weights {
        Weights::AsConfigured => {}
        Weights::Stored(q) => {
            let json = json!({"quantization_config": q});
            let scheme = Config::root(&json)
                .and_then(|c| QuantScheme::from_config(&c))
                .map_err(|e| e.to_string())?;
            if let Some(scheme) = scheme {
                quant::apply(&mut loaded.spec, scheme).map_err(|e| e.to_string())?;
            }
        }
        Weights::Online(format) => loaded.online = Some(format),
        Weights::Unknown(reason) => loaded.unknown = Some(reason),
    }
    Ok(loaded)
}

pub(super) fn parallel(setup: &Setup, assumed: &mut Vec<String>) -> Result<Parallel, String> {
    let pp = setup.pipeline_parallel.unwrap_or(1).max(1);
    let dp = setup.data_parallel.unwrap_or(1).max(1);
    let tp = match (setup.tensor_parallel, setup.gpu_count) {
        (Some(tp), _) => tp,
        (None, Some(n)) if n > 1 => {
            let tp = n / pp / dp;
            assumed.push(format!("TP {tp} from {n} cards"));
            tp
        }
        (None, Some(_)) => 1,
        (None, None) => return Err("neither cards nor tensor-parallel size are given".to_owned()),
    };
    Ok(Parallel {
        tp: tp.max(1),
        pp,
        dp,
        expert_parallel: setup.expert_parallel,
    })
}

pub(super) fn text_dtype(text: Option<&String>) -> Result<Option<DType>, String> {
    match text.map(|t| t.trim().to_ascii_lowercase()) {
        None => Ok(None),
        Some(t) if t == "auto" || t.is_empty() => Ok(None),
        Some(t) => {
            let bare = t.trim_start_matches("torch.");
            bare.parse()
                .map(Some)
                .map_err(|_| format!("dtype `{t}` is not known"))
        }
    }
}

pub(super) fn kv_type(text: Option<&String>) -> Result<KvType, String> {
    match text {
        None => Ok(KvType::Auto),
        Some(t) => t
            .parse()
            .map_err(|_| format!("KV cache type `{t}` is not known")),
    }
}

/// What a report says of its settings that every engine of GPUs has.
pub(super) fn asked(
    setup: &Setup,
    quantization: Option<QuantFormat>,
    engine: Engine,
) -> Result<Settings, String> {
    Ok(Settings {
        dtype: text_dtype(setup.dtype.as_ref())?,
        quantization,
        kv_type: kv_type(setup.kv_cache_dtype.as_ref())?,
        block_size: setup.block_size,
        max_model_len: setup.max_model_len,
        max_num_seqs: setup.max_num_seqs,
        max_num_batched_tokens: setup.max_num_batched_tokens,
        gpu_memory_utilization: setup.gpu_memory_utilization,
        ..Settings::new(engine)
    })
}

/// Cards of a report that nobody else uses; without limit where they are not known.
pub(super) fn deployed(device: &Result<Device, String>, parallel: Parallel) -> Deployment {
    Deployment {
        kinds: None,
        device: device.clone().unwrap_or_else(|_| Device::unlimited()),
        parallel,
        in_use: Bytes::ZERO,
    }
}

/// Terms of some regions in GiB, added up; the interval is as wide as all of them together.
pub(super) fn of_regions<'a>(
    terms: impl Iterator<Item = &'a Term> + Clone,
    regions: &[Region],
) -> Result<Estimate, String> {
    let mine = terms.filter(|t| regions.contains(&t.region));
    let sum = |f: fn(&Term) -> Bytes| {
        Bytes::sum(mine.clone().map(f))
            .map(Bytes::gib)
            .map_err(|e| PlanError::from(e).to_string())
    };
    // The worst-known part speaks for the sum.
    let kind = mine
        .clone()
        .map(|t| t.kind.name())
        .max_by_key(|k| KINDS.iter().position(|x| x == k))
        .unwrap_or(KINDS[0]);
    Ok(Estimate {
        value: sum(|t| t.bytes)?,
        low: sum(Term::low)?,
        high: sum(Term::high)?,
        kind,
    })
}

/// Kinds from the best known to the least.
const KINDS: [&str; 4] = ["exact", "derived", "calibrated", "bound"];

/// What is left for the KV cache. Where everything else already exceeds the budget, the engine
/// prints a negative figure; so does this.
pub(super) fn pool(s: &StageEvaluation) -> Estimate {
    let rest = |f: fn(&Term) -> Bytes| {
        let used: f64 = s.terms.iter().map(|t| f(t).gib()).sum();
        s.budget.bytes.gib() - used
    };
    Estimate {
        value: rest(|t| t.bytes),
        low: rest(Term::high),
        high: rest(Term::low),
        kind: s.kv_term.kind.name(),
    }
}

/// Tokens and requests: expected, low, high.
pub(super) struct Capacities {
    pub(super) tokens: [f64; 3],
    pub(super) concurrency: [f64; 3],
}

/// All stages have the blocks of the stage that has the fewest.
pub(super) fn capacities(e: &Evaluation) -> Result<Capacities, PlanError> {
    let mut out = Capacities {
        tokens: [f64::INFINITY; 3],
        concurrency: [f64::INFINITY; 3],
    };
    for s in &e.stages {
        for (i, pool) in [s.pool, s.pool_low, s.pool_high].into_iter().enumerate() {
            let c = s.kv.capacity(pool, e.max_model_len)?;
            #[allow(clippy::cast_precision_loss, reason = "a figure for comparison")]
            let tokens = c.tokens as f64;
            out.tokens[i] = out.tokens[i].min(tokens);
            out.concurrency[i] = out.concurrency[i].min(c.max_concurrency);
        }
    }
    Ok(out)
}

/// Whether a pool's printed tokens are others where requests are shorter: those of windows and compressed caches are.
pub(super) fn tokens_follow_length(e: &Evaluation) -> bool {
    // Any length that is far from the longest, and a pool of which neither rounding shows.
    let (long, short) = (e.max_model_len, (e.max_model_len / 16).max(1));
    let pool = Bytes::new(1 << 40);
    e.stages.iter().any(|s| {
        let tokens = |length| s.kv.capacity(pool, length).map(|c| c.tokens);
        let (Ok(a), Ok(b)) = (tokens(long), tokens(short)) else {
            return false;
        };
        a.abs_diff(b) > a.max(b) / 8
    })
}
