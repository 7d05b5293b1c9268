//! From an answer to its wire form.

use plimsoll_device::Confidence;
use plimsoll_model::ModelSpec;
use plimsoll_plan::{
    self as plan, Engine, EngineVersion, Kind, PlanError, Question, Reserve, StageEvaluation,
    Verdict,
};
use plimsoll_program::GroupKind;
use plimsoll_units::Bytes;

use crate::flags::engine_flags;
use crate::numbers::{thousands, users};
use crate::wire::{
    Answer, Change, Device, EngineName, Group, Interval, Kv, LengthShare, Load, Model, Need,
    OneDevice, Parallel, PlanReport, Rank, SCHEMA, Term, Way, Ways,
};

/// What the caller knows of the model besides its spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// As asked for.
    pub name: String,
    /// What engines find it by, where that is not `name`: the hub id of a built-in model.
    pub hub: Option<String>,
    /// Where it was read.
    pub read_from: String,
    /// Whether the user said how many users there are.
    pub users_given: bool,
}

impl ModelFacts {
    /// What an engine is told to serve.
    pub(crate) fn served(&self) -> &str {
        self.hub.as_deref().unwrap_or(&self.name)
    }
}

/// The wire form of `answer` to `question` about `spec`.
///
/// # Errors
/// [`PlanError::Size`] where a total leaves 64 bits.
pub fn build(
    facts: &ModelFacts,
    spec: &ModelSpec,
    question: &Question,
    answer: &plan::Answer,
) -> Result<PlanReport, PlanError> {
    let e = &answer.evaluation;
    let ranks = e
        .stages
        .iter()
        .map(|s| rank(s, e, question))
        .collect::<Result<Vec<_>, _>>()?;
    let decisive = e
        .tightest()
        .ok_or_else(|| PlanError::Load("the plan has no stage".to_owned()))?;
    let quantization = spec.quant.as_ref().map(|q| q.name()).or_else(|| {
        question
            .settings
            .quantization
            .map(|f| format!("{} (while loading)", f.name()))
    });
    let mut notes = spec.notes.clone();
    if let Some(max) = spec.max_context
        && question.load.context > max
    {
        notes.push(format!(
            "{} tokens exceed the {} that the model was trained for: its answers degrade beyond that",
            thousands(question.load.context),
            thousands(max)
        ));
    }
    let swaps = matches!(question.settings.engine, Engine::Plimsoll);
    if question.settings.swap > Bytes::ZERO && !swaps {
        notes.push(
            "--swap-space is planned for Plimsoll only: vLLM's V1 engine recomputes, the others do not preempt"
                .to_owned(),
        );
    }
    let replicas = e.deployment.parallel.dp;
    if question.settings.engine == Engine::Plimsoll && replicas > 1 {
        notes.push(format!(
            "`plimsoll serve` is one replica: start {replicas}, and put a balancer before them"
        ));
    }
    for s in &e.stages {
        for n in &s.notes {
            if !notes.contains(n) {
                notes.push(n.clone());
            }
        }
    }
    let report = PlanReport {
        schema: SCHEMA.to_owned(),
        model: Model {
            name: facts.name.clone(),
            architecture: spec.architecture.clone(),
            family: spec.family.to_owned(),
            parameters: spec.parameters()?,
            stored_bytes: spec.stored_bytes()?.get(),
            dtype: spec.dtype.to_string(),
            quantization,
            layers: spec.layers.len() as u64,
            hidden: spec.hidden,
            vocab: spec.vocab,
            max_context: spec.max_context,
            read_from: facts.read_from.clone(),
        },
        engine: engine_name(question.settings.engine),
        load: wire_load(facts, question),
        device: question.device.as_ref().map(|d| Device {
            name: d.name.clone(),
            usable_bytes: d.usable.get(),
            confidence: confidence(d.confidence).to_owned(),
            source: d.memory_source.clone(),
            in_use_bytes: question.in_use.get(),
        }),
        answer: Answer {
            verdict: e.verdict.name().to_owned(),
            devices: e.deployment.parallel.devices(),
            chosen: answer.chosen,
            parallel: Parallel {
                tp: e.deployment.parallel.tp,
                pp: e.deployment.parallel.pp,
                dp: e.deployment.parallel.dp,
                ep: e.deployment.parallel.ep(),
            },
            max_users: answer.max_users,
            max_context: answer.max_context,
            one_device: answer.one.as_ref().map(|o| OneDevice {
                users: o.users,
                context: o.context,
            }),
            text: sentence(facts, question, answer)?,
        },
        ranks,
        kv: kv(decisive, e.max_model_len),
        ways: Ways {
            contiguous: way(answer.ways.contiguous),
            paged: way(answer.ways.paged),
            paged_shared: way(answer.ways.shared),
        },
        // The caller replays it.
        workload: None,
        changes: answer
            .changes
            .iter()
            .map(|c| Change {
                flag: c.flag.clone(),
                cost: c.cost.to_owned(),
                users: c.users,
                verdict: c.verdict.name().to_owned(),
            })
            .collect(),
        flags: engine_flags(facts, question, answer),
        notes,
    };
    Ok(report)
}

/// The wire form of a question's load.
pub(crate) fn wire_load(facts: &ModelFacts, question: &Question) -> Load {
    Load {
        users: facts.users_given.then_some(question.load.users),
        context: question.load.context,
        lengths: question
            .settings
            .lengths
            .iter()
            .flat_map(|l| l.iter())
            .map(|&(tokens, share)| LengthShare { tokens, share })
            .collect(),
        prompt: question.load.prompt,
        sequences: question.load.sequences,
        shared_prefix: question.load.shared_prefix,
        prefix_hit: question.load.prefix_hit,
    }
}

fn way(w: plan::Way) -> Way {
    Way {
        bytes: w.bytes.get(),
        users: w.users,
    }
}

fn confidence(c: Confidence) -> &'static str {
    match c {
        Confidence::Printed => "printed",
        Confidence::Datasheet => "datasheet",
        Confidence::Derived => "derived",
        Confidence::Given => "given",
    }
}

pub(crate) fn engine_name(engine: Engine) -> EngineName {
    let of = |name: &str, version: Option<String>| EngineName {
        name: name.to_owned(),
        version,
    };
    match engine {
        Engine::Ideal => of("ideal", None),
        Engine::Contiguous(Reserve::Max) => of("contiguous", Some("max".to_owned())),
        Engine::Contiguous(Reserve::Pow2) => of("contiguous", Some("pow2".to_owned())),
        Engine::Contiguous(Reserve::Oracle) => of("contiguous", Some("oracle".to_owned())),
        Engine::Vllm(v) => of("vllm", Some(v.to_string())),
        Engine::Sglang(v) => of("sglang", Some(v.to_string())),
        Engine::TrtLlm => of("trtllm", None),
        Engine::LlamaCpp(EngineVersion::Mainline) => of("llama.cpp", None),
        Engine::LlamaCpp(v) => of("llama.cpp", Some(v.to_string())),
        Engine::Plimsoll => of("plimsoll", None),
    }
}

fn rank(s: &StageEvaluation, e: &plan::Evaluation, q: &Question) -> Result<Rank, PlanError> {
    let here = e.deployment.of_stage(s.stage.index);
    let device = q.device.as_ref().map(|_| &here.device);
    let inside = s.terms.iter().chain([&s.kv_term]).map(|t| term(t, true));
    let outside = s.outside.iter().map(|t| term(t, false));
    Ok(Rank {
        stage: s.stage.index,
        layers: [s.stage.layers.start, s.stage.layers.end],
        copies: e.deployment.parallel.tp,
        device: device.map(|d| d.name.clone()),
        usable_bytes: device.map(|d| d.usable.get()),
        budget_bytes: q.device.as_ref().map(|_| s.budget.bytes.get()),
        budget_formula: s.budget.formula.clone(),
        total_bytes: s.total()?.get(),
        terms: inside.chain(outside).collect(),
        host_terms: s.host.iter().map(|t| term(t, false)).collect(),
    })
}

fn term(t: &plan::Term, inside: bool) -> Term {
    let interval = match t.kind {
        Kind::Exact | Kind::Derived => None,
        Kind::Calibrated { .. } | Kind::Bound => Some(Interval {
            low: t.low().get(),
            high: t.high().get(),
        }),
    };
    Term {
        region: t.region.name().to_owned(),
        name: t.name.clone(),
        bytes: t.bytes.get(),
        kind: t.kind.name().to_owned(),
        interval,
        inside,
        formula: t.formula.clone(),
        inputs: t
            .inputs
            .iter()
            .map(|(n, v)| [n.clone(), v.clone()])
            .collect(),
        source: t.source.clone(),
    }
}

fn kv(s: &StageEvaluation, max_model_len: u64) -> Kv {
    let c = &s.capacity;
    Kv {
        pool_bytes: s.kv_term.bytes.get(),
        blocks: c.blocks,
        bytes_per_block: c.bytes_per_block.get(),
        block_size: c.block_size,
        tokens: c.tokens,
        max_concurrency: c.max_concurrency,
        max_model_len,
        groups: c
            .groups
            .iter()
            .map(|g| {
                let (kind, span) = match g.kind {
                    GroupKind::Full => ("full", None),
                    GroupKind::Window(n) => ("window", Some(n)),
                    GroupKind::Chunk(n) => ("chunk", Some(n)),
                    GroupKind::Latent => ("latent", None),
                    GroupKind::State => ("state", None),
                };
                Group {
                    kind: kind.to_owned(),
                    span,
                    layers: g.layers,
                    padding_layers: g.padding_layers,
                    block_size: g.block_size,
                    page_bytes: g.page.get(),
                    blocks_per_request: g.blocks_per_request,
                }
            })
            .collect(),
        need: Need {
            pool_bytes: s.need.pool.get(),
            token_states_bytes: s.need.token_states.get(),
            reserved_bytes: s.need.reserved.get(),
            internal_bytes: s.need.internal.get(),
            external_bytes: s.need.external.get(),
        },
    }
}

/// Devices of several kinds, as they were typed: neighbours of a kind together.
fn told(kinds: &[plimsoll_device::Device], tp: u64) -> String {
    let mut all: Vec<(&str, u64)> = Vec::new();
    for d in kinds {
        match all.last_mut() {
            Some((name, n)) if *name == d.name => *n = n.saturating_add(tp),
            _ => all.push((&d.name, tp)),
        }
    }
    let parts: Vec<String> = all.iter().map(|(d, n)| format!("{n} x {d}")).collect();
    parts.join(" + ")
}

/// The first line of every output.
fn sentence(facts: &ModelFacts, q: &Question, a: &plan::Answer) -> Result<String, PlanError> {
    let e = &a.evaluation;
    let p = e.deployment.parallel;
    let mixed = if q.settings.lengths.is_some() {
        "up to "
    } else {
        ""
    };
    let context = format!("{mixed}{}", thousands(q.load.context));
    let Some(device) = &q.device else {
        let weights = e.stages.iter().try_fold(Bytes::ZERO, |acc, s| {
            acc.add(s.region(plan::Region::Weights).unwrap_or(Bytes::ZERO))
        })?;
        let text = match q.settings.kv_memory {
            Some(kv) => format!(
                "{} in {kv} of KV memory: {} of {context} tokens",
                facts.name,
                users(a.max_users)
            ),
            None => {
                let mut kv = Bytes::ZERO;
                for s in &e.stages {
                    kv = kv.add(s.need.pool.times(p.tp)?)?;
                }
                format!(
                    "{}: {weights} of weights and {kv} of KV cache for {} of {context} tokens",
                    facts.name,
                    users(q.load.users)
                )
            }
        };
        return Ok(text);
    };
    let devices = match &q.kinds {
        Some(kinds) => told(kinds, p.tp),
        None => format!("{} x {}", p.devices(), device.name),
    };
    let division = if p.devices() > 1 {
        format!(" ({p})")
    } else {
        String::new()
    };
    let load = format!("{} of {context} tokens", users(q.load.users));
    Ok(match e.verdict {
        Verdict::Yes if facts.users_given => {
            format!("{} for {load}: {devices}{division}", facts.name)
        }
        Verdict::Tight if facts.users_given => format!(
            "{} for {load}: {devices}{division}, but tight: it fits by the expected figures, not by \
             the upper ends of their intervals",
            facts.name
        ),
        Verdict::Yes | Verdict::Tight => format!(
            "{} on {devices}{division}: {} of {context} tokens",
            facts.name,
            users(a.max_users)
        ),
        Verdict::No if a.chosen => {
            format!(
                "{} for {load}: does not fit on up to {devices}{division}",
                facts.name
            )
        }
        Verdict::No => format!(
            "{} for {load} does not fit on {devices}{division}",
            facts.name
        ),
    })
}
