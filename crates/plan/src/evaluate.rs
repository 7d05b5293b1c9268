//! [`evaluate`]: one model, one deployment, one load: every rank's map, and whether it fits.

use std::borrow::Cow;

use plimsoll_model::{Ffn, ModelSpec, quant};
use plimsoll_program::{Stage, is_cast};
use plimsoll_units::{Bytes, Weights};

use crate::engine::plimsoll::{batched_tokens_of, outputs_of};
use crate::engine::{self, Budget, Context, Engine, EngineStage, Takes};
use crate::error::PlanError;
use crate::kv::{Capacity, KvLaw, MixedLaw, Need};
use crate::settings::{Deployment, Load, Settings};
use crate::term::{Kind, Region, Term, total};

/// Longest sequence of our own server unless told, where the model was trained for longer ones.
pub const OWN_MODEL_LEN: u64 = 8192;

/// Whether a load fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Not by the expected figures.
    No,
    /// By the expected figures, but not by the upper ends of the intervals.
    Tight,
    /// By the upper ends of all intervals.
    Yes,
}

impl Verdict {
    /// The word in reports and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Tight => "tight",
            Self::Yes => "yes",
        }
    }
}

/// What one stage's rank looks like. TP ranks of a stage are alike.
pub struct StageEvaluation {
    /// Which stage.
    pub stage: Stage,
    /// The engine's budget.
    pub budget: Budget,
    /// Terms inside the budget, without the KV cache.
    pub terms: Vec<Term>,
    /// Terms outside the budget.
    pub outside: Vec<Term>,
    /// Memory on the host that belongs to this rank; not in its device's total.
    pub host: Vec<Term>,
    /// The KV cache or pool.
    pub kv_term: Term,
    /// What is left for the KV cache: expected, and at the ends of the intervals. Memory that the
    /// planned load takes beside the cache is taken off.
    pub pool: Bytes,
    /// With every other term at its upper end.
    pub pool_low: Bytes,
    /// With every other term at its lower end.
    pub pool_high: Bytes,
    /// What is left for the cache and what a load takes beside it: expected.
    room: Bytes,
    /// The same with every other term at its upper end.
    room_low: Bytes,
    /// Whether weights and the rest alone exceed the budget.
    pub over_budget: bool,
    /// What the load needs of the pool (the share of one replica).
    pub need: Need,
    /// The pool in the engine's own words.
    pub capacity: Capacity,
    /// The KV law.
    pub kv: Box<dyn KvLaw>,
    /// Remarks.
    pub notes: Vec<String>,
}

/// One deployment judged.
pub struct Evaluation {
    /// Devices and division.
    pub deployment: Deployment,
    /// Stage by stage.
    pub stages: Vec<StageEvaluation>,
    /// The load of one replica.
    pub load: Load,
    /// The longest sequence that the engine is told to accept.
    pub max_model_len: u64,
    /// Whether it fits.
    pub verdict: Verdict,
}

impl StageEvaluation {
    /// Everything that this rank's device holds, pool included.
    ///
    /// # Errors
    /// [`PlanError::Size`].
    pub fn total(&self) -> Result<Bytes, PlanError> {
        let fixed = total(self.terms.iter().chain(&self.outside))?;
        Ok(fixed.add(self.kv_term.bytes)?)
    }

    /// Terms of one region, added up.
    ///
    /// # Errors
    /// [`PlanError::Size`].
    pub fn region(&self, region: Region) -> Result<Bytes, PlanError> {
        let terms = self
            .terms
            .iter()
            .chain(&self.outside)
            .chain([&self.kv_term]);
        Ok(total(terms.filter(|t| t.region == region))?)
    }

    /// The same rank with a cache of `pool` bytes, whatever the budget says: a measured one.
    pub(crate) const fn measured(&mut self, pool: Bytes) {
        self.pool = pool;
        self.room = pool;
        self.over_budget = false;
    }

    /// What is left for the cache and for what a load takes beside it: expected; nothing where the rest is too much.
    pub(crate) const fn room(&self) -> Bytes {
        if self.over_budget {
            Bytes::ZERO
        } else {
            self.room
        }
    }

    /// What `load` (one replica's share) needs of it.
    ///
    /// # Errors
    /// [`PlanError::Size`].
    pub(crate) fn needs(&self, load: &Load) -> Result<Bytes, PlanError> {
        Ok(self.kv.need(load)?.pool.add(self.kv.beside(load)?)?)
    }

    /// Whether `room` bytes carry `load`: its cache and what it takes beside.
    fn carries(&self, room: Bytes, load: &Load) -> Result<bool, PlanError> {
        if self.over_budget {
            return Ok(false);
        }
        let pool = self.kv.need(load)?.pool;
        // The second law may be costly, and a cache too large decides alone.
        Ok(pool <= room && pool.add(self.kv.beside(load)?)? <= room)
    }
}

impl Evaluation {
    /// Whether every stage carries `load` (one replica's share) by the expected figures.
    ///
    /// # Errors
    /// [`PlanError::Size`].
    pub fn carries(&self, load: &Load) -> Result<bool, PlanError> {
        for s in &self.stages {
            if !s.carries(s.room, load)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The stage with the smallest margin: it decides.
    #[must_use]
    pub fn tightest(&self) -> Option<&StageEvaluation> {
        self.stages.iter().min_by(|a, b| {
            let margin = |s: &StageEvaluation| (!s.over_budget, ratio(s.pool, s.need.pool));
            let (x, y) = (margin(a), margin(b));
            x.0.cmp(&y.0).then(x.1.total_cmp(&y.1))
        })
    }

    /// T and R of our own server with these settings.
    #[must_use]
    pub fn own_sizes(&self, settings: &Settings) -> (u64, u64) {
        let on_cpu = self.deployment.device.vendor == "cpu";
        let users = self.load.users.saturating_mul(self.load.sequences);
        (
            batched_tokens_of(settings, on_cpu, users),
            outputs_of(settings, on_cpu, users),
        )
    }

    /// The share of users of one replica.
    #[must_use]
    pub fn replica_users(users: u64, dp: u64) -> u64 {
        users.div_ceil(dp.max(1))
    }
}

#[allow(clippy::cast_precision_loss, reason = "an order, not a size")]
fn ratio(a: Bytes, b: Bytes) -> f64 {
    a.get() as f64 / (b.get() as f64).max(1.0)
}

/// The model after what the flags do to it while loading.
///
/// # Errors
/// [`PlanError`] where it cannot be quantised so.
pub fn prepared<'a>(
    spec: &'a ModelSpec,
    settings: &Settings,
) -> Result<Cow<'a, ModelSpec>, PlanError> {
    if settings.weights != Weights::default() && settings.engine != Engine::Plimsoll {
        return Err(PlanError::Refused {
            engine: settings.engine.to_string(),
            setting: format!("--weights {}", settings.weights),
            reason: "it is for `--engine plimsoll`; others have `--quantization`".to_owned(),
        });
    }
    let dealt = settings.decode_context_parallel.filter(|n| *n > 1);
    if let (Some(n), false) = (dealt, matches!(settings.engine, Engine::Vllm(_))) {
        return Err(PlanError::Refused {
            engine: settings.engine.to_string(),
            setting: format!("--decode-context-parallel-size {n}"),
            reason: "it is for `--engine vllm`".to_owned(),
        });
    }
    match settings.quantization {
        Some(format) if spec.quant.is_none() => {
            let mut changed = spec.clone();
            let format = match settings.engine {
                Engine::Vllm(version) => engine::vllm::as_loaded(version, format),
                _ => format,
            };
            quant::apply(&mut changed, quant::QuantScheme::online(format))?;
            Ok(Cow::Owned(changed))
        }
        _ => Ok(Cow::Borrowed(spec)),
    }
}

/// The model as `settings` serve it: quantised as [`prepared`] does it, and plain tensors in the type that the engine casts
/// them to, which is then the model's.
///
/// # Errors
/// Those of [`prepared`].
pub fn served<'a>(
    spec: &'a ModelSpec,
    settings: &Settings,
) -> Result<Cow<'a, ModelSpec>, PlanError> {
    let mut served = prepared(spec, settings)?;
    if let Some(dtype) = engine::cast_to(settings, &served) {
        let changed = served.to_mut();
        let stored = std::mem::replace(&mut changed.dtype, dtype);
        for t in &mut changed.tensors {
            if is_cast(t, stored) {
                t.dtype = dtype;
            }
        }
    }
    Ok(served)
}

/// Judges one deployment. `load` is that of the whole deployment; replicas share its users.
///
/// # Errors
/// [`PlanError`] where the model cannot be divided so or the engine refuses a setting. Not fitting
/// is a verdict, not an error.
pub fn evaluate(
    spec: &ModelSpec,
    deployment: &Deployment,
    settings: &Settings,
    load: &Load,
) -> Result<Evaluation, PlanError> {
    let spec = prepared(spec, settings)?;
    evaluate_prepared(&spec, deployment, settings, load, Stop::Never)
}

/// Whether judging goes on once the answer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Every stage is judged: the evaluation is to be shown.
    Never,
    /// The first stage that does not fit ends it: only the verdict counts.
    AtNo,
}

/// As [`evaluate`], for a model that is [`prepared`] already.
pub(crate) fn evaluate_prepared(
    spec: &ModelSpec,
    deployment: &Deployment,
    settings: &Settings,
    load: &Load,
    stop: Stop,
) -> Result<Evaluation, PlanError> {
    let stages = stages(spec, deployment)?;
    let kv_type = engine::served_kv(settings, spec);
    let asked = (kv_type != settings.kv_type).then(|| Settings {
        kv_type,
        ..settings.clone()
    });
    let settings = asked.as_ref().unwrap_or(settings);
    let users = Evaluation::replica_users(load.users, deployment.parallel.dp);
    let share = load.with_users(users);
    let own = settings.engine == Engine::Plimsoll;
    let max_model_len = settings.max_model_len.unwrap_or_else(|| {
        // An engine told nothing takes the trained context; a longer load must be asked for.
        let trained = spec.max_context.unwrap_or(load.context);
        let taken = if own {
            trained.min(OWN_MODEL_LEN)
        } else {
            trained
        };
        taken.max(load.context).max(1)
    });
    let mut out = Vec::with_capacity(stages.len());
    let mut verdict = Verdict::Yes;
    for stage in stages {
        let here = deployment.of_stage(stage.index);
        let deployment = here.as_ref();
        let context = Context {
            spec,
            deployment,
            settings,
            stage: &stage,
            max_model_len,
            users: users.saturating_mul(load.sequences),
        };
        let mut engine = engine::stage(&context)?;
        if asked.is_some() {
            engine.notes.push(format!(
                "the checkpoint asks for keys and values in {kv_type}, and this release follows it"
            ));
        }
        let engine = EngineStage {
            takes: if deployment.device.is_unlimited() && settings.kv_memory.is_none() {
                Takes::Need
            } else {
                engine.takes
            },
            kv: match &settings.lengths {
                Some(lengths) => Box::new(MixedLaw {
                    inner: engine.kv,
                    lengths: lengths.clone(),
                }),
                None => engine.kv,
            },
            ..engine
        };
        // A contiguous server's run is as long as the request; others are asked for their longest.
        let length = match settings.engine {
            Engine::Contiguous(_) => share.context,
            _ => max_model_len,
        };
        let shown = Stage {
            layers: engine
                .layers
                .clone()
                .unwrap_or_else(|| stage.layers.clone()),
            ..stage.clone()
        };
        let evaluated = judge(shown, engine, settings, &share, length)?;
        let fits = |room| evaluated.carries(room, &share);
        let here = if fits(evaluated.room_low)? {
            Verdict::Yes
        } else if fits(evaluated.room)? {
            Verdict::Tight
        } else {
            Verdict::No
        };
        let given = settings.kv_memory.is_some();
        verdict = verdict.min(here).min(room(&evaluated, deployment, given)?);
        // Told a longest length, an engine refuses to start where one such request does not fit.
        if let Some(len) = settings.max_model_len.or(own.then_some(max_model_len))
            && let Some(least) = evaluated.kv.start(len)?
            && (evaluated.over_budget || least > evaluated.pool)
        {
            verdict = Verdict::No;
        }
        out.push(evaluated);
        if stop == Stop::AtNo && verdict == Verdict::No {
            break;
        }
    }
    same_blocks(&mut out)?;
    Ok(Evaluation {
        deployment: deployment.clone(),
        stages: out,
        load: share,
        max_model_len,
        verdict,
    })
}

/// The pipeline stages, with the layers that each runs.
fn stages(spec: &ModelSpec, deployment: &Deployment) -> Result<Vec<Stage>, PlanError> {
    slices_alone(deployment)?;
    let mut stages = engine::check(spec, &deployment.parallel)?;
    let Some(layers) = deployment.kinds.as_ref().and_then(|k| k.layers.as_ref()) else {
        return Ok(stages);
    };
    let all = spec.layers.len() as u64;
    let sum = layers.iter().try_fold(0_u64, |sum, n| sum.checked_add(*n));
    if layers.len() != stages.len() || sum != Some(all) || layers.contains(&0) {
        return Err(PlanError::Load(format!(
            "layers {layers:?} are no division of {all} over {} stages",
            stages.len()
        )));
    }
    let mut start = 0;
    for (stage, n) in stages.iter_mut().zip(layers) {
        stage.layers = start..start + n;
        start += n;
    }
    Ok(stages)
}

/// Refuses a replica of several slices of cards, and experts spread over replicas there.
fn slices_alone(deployment: &Deployment) -> Result<(), PlanError> {
    let p = &deployment.parallel;
    let kinds = deployment.kinds.iter().flat_map(|k| &k.devices);
    let slice = kinds.chain([&deployment.device]).find_map(|d| {
        let card = d.slice_of.as_ref()?;
        Some((d.name.clone(), card.clone()))
    });
    let spread = [
        ("TP", p.tp),
        ("PP", p.pp),
        ("EP", if p.expert_parallel { p.ep() } else { 1 }),
    ];
    let degrees: Vec<String> = spread
        .iter()
        .filter(|(_, n)| *n > 1)
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    match slice {
        Some((slice, card)) if !degrees.is_empty() => Err(PlanError::Slices {
            degrees: degrees.join(", "),
            slice,
            card,
        }),
        _ => Ok(()),
    }
}

fn judge(
    stage: Stage,
    engine: EngineStage,
    settings: &Settings,
    share: &Load,
    max_model_len: u64,
) -> Result<StageEvaluation, PlanError> {
    let expected = total(&engine.terms)?;
    let low = Bytes::sum(engine.terms.iter().map(Term::low))?;
    let high = Bytes::sum(engine.terms.iter().map(Term::high))?;
    let budget = engine.budget.bytes;
    let rest = |fixed: Bytes| budget.saturating_sub(fixed);
    let (room, room_low, room_high, over) = match settings.kv_memory {
        Some(kv) => (kv, kv, kv, expected.add(kv)? > budget),
        None => (rest(expected), rest(high), rest(low), expected > budget),
    };
    let cap = match engine.takes {
        Takes::Capped(most) => most,
        Takes::Need | Takes::Rest | Takes::Blocks | Takes::AtMost(_) => Bytes::new(u64::MAX),
    };
    let [room, room_low, room_high] = [room, room_low, room_high].map(|r| r.min(cap));
    let need = engine.kv.need(share)?;
    let beside_terms = engine.kv.beside_terms(share)?;
    let beside = Bytes::sum(beside_terms.iter().map(Term::high))?;
    let mut pools = [room, room_low, room_high].map(|r| r.saturating_sub(beside));
    let most = match engine.takes {
        Takes::AtMost(most) if settings.kv_memory.is_none() => Some(most),
        Takes::AtMost(_) => Some(pools[0]),
        Takes::Blocks => Some(pools[2]),
        Takes::Need | Takes::Rest | Takes::Capped(_) => None,
    };
    if let Some(most) = most {
        let block = engine.kv.capacity(most, max_model_len)?.bytes_per_block;
        for pool in &mut pools {
            *pool = block.times((*pool).min(most).whole(block))?;
        }
    }
    let [pool, pool_low, pool_high] = pools;
    let capacity = engine.kv.capacity(pool, max_model_len)?;
    let takes_rest = engine.takes != Takes::Need;
    let taken = if takes_rest { pool } else { need.pool };
    let exact = engine.terms.iter().all(|t| t.kind == Kind::Exact)
        || settings.kv_memory.is_some()
        || pool_low == pool_high;
    let kv_term = Term::exact(Region::KvCache, "kv cache", taken)
        .kind(if exact || !takes_rest {
            Kind::Exact
        } else {
            Kind::Calibrated {
                low: pool_low,
                high: pool_high,
            }
        })
        .formula(match settings.kv_memory {
            Some(_) if matches!(engine.takes, Takes::AtMost(_) | Takes::Blocks) => {
                "whole blocks of --kv-memory".to_owned()
            }
            Some(_) => "given (--kv-memory)".to_owned(),
            None if matches!(engine.takes, Takes::AtMost(_)) => format!(
                "the smaller of R sequences of the longest length and budget ({}) - all other terms",
                engine.budget.formula
            ),
            None if matches!(engine.takes, Takes::Capped(_)) => format!(
                "the smaller of --max-total-tokens and budget ({}) - all other terms",
                engine.budget.formula
            ),
            None if engine.takes == Takes::Blocks => format!(
                "whole blocks of budget ({}) - all other terms",
                engine.budget.formula
            ),
            None if takes_rest => {
                format!("budget ({}) - all other terms", engine.budget.formula)
            }
            None => "what the load needs".to_owned(),
        })
        .input("bytes per block", capacity.bytes_per_block.get())
        .input("tokens", capacity.tokens)
        .source(engine.budget.source.clone());
    let mut terms = engine.terms;
    terms.extend(beside_terms);
    Ok(StageEvaluation {
        stage,
        budget: engine.budget,
        terms,
        outside: engine.outside,
        host: engine.host,
        kv_term,
        pool,
        pool_low,
        pool_high,
        room,
        room_low,
        over_budget: over,
        need,
        capacity,
        kv: engine.kv,
        notes: engine.notes,
    })
}

/// One block id means the same block on every stage, so each allocates as many as the smallest pool has;
/// what a larger pool could hold beyond that stays unused.
///
/// Source: vLLM `v1/core/kv_cache_utils.py: get_kv_cache_configs`, the minimum over workers.
fn same_blocks(stages: &mut [StageEvaluation]) -> Result<(), PlanError> {
    let fewest = stages.iter().filter_map(|s| s.capacity.blocks).min();
    let Some(fewest) = fewest.filter(|_| stages.len() > 1) else {
        return Ok(());
    };
    for s in stages {
        let whole = s.capacity.bytes_per_block.times(fewest)?;
        // Only where the engine fills its budget: others allocate what the load needs.
        if s.kv_term.bytes != s.pool || whole >= s.pool {
            continue;
        }
        s.kv_term.bytes = whole;
        if let Kind::Calibrated { low, high } = s.kv_term.kind {
            s.kv_term.kind = Kind::Calibrated {
                low: low.min(whole),
                high: high.max(whole),
            };
        }
        s.kv_term
            .formula
            .push_str("; as many blocks as the smallest stage has");
    }
    Ok(())
}

/// Whether what an engine asks for and what lies outside it fit the device together: one with a budget rule refuses to
/// start where less is free than its budget. Of one whose pool is `given` the budget is all that is free, and what it
/// holds has to fit beside the rest.
fn room(s: &StageEvaluation, deployment: &Deployment, given: bool) -> Result<Verdict, PlanError> {
    let device = &deployment.device;
    if device.is_unlimited() {
        return Ok(Verdict::Yes);
    }
    let asked = if given {
        total(&s.terms)?.add(s.kv_term.bytes)?
    } else {
        s.budget.bytes
    };
    let with = |outside: Bytes| Ok::<bool, PlanError>(asked.add(outside)? <= device.usable);
    Ok(if with(Bytes::sum(s.outside.iter().map(Term::high))?)? {
        Verdict::Yes
    } else if with(Bytes::sum(s.outside.iter().map(Term::low))?)? {
        Verdict::Tight
    } else {
        Verdict::No
    })
}

/// Whether any layer routes tokens to experts.
#[must_use]
pub(crate) fn has_experts(spec: &ModelSpec) -> bool {
    spec.layers.iter().any(|l| matches!(l.ffn, Ffn::Moe(_)))
}
