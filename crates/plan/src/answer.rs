//! [`answer`]: a user's question, answered with the solver: how many devices, how many users, what
//! sharing saves, what would help.

use plimsoll_device::Device;
use plimsoll_model::ModelSpec;
use plimsoll_program::Parallel;
use plimsoll_units::Bytes;

use crate::engine::{Engine, Reserve, cast_to, served_kv};
use crate::error::PlanError;
use crate::evaluate::{Evaluation, Verdict, evaluate};
use crate::kinds::of_kinds;
use crate::settings::{Deployment, Load, Settings};
use crate::solve::{
    Change, MAX_DEVICES, best_division, changes_that_fit, max_context, max_users, smallest,
};

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The kind of device; `None` asks only what is needed.
    pub device: Option<Device>,
    /// The kinds of all pipeline stages, where they differ; `device` is the first, and `parallel` is fixed.
    pub kinds: Option<Vec<Device>>,
    /// How many devices there are; `None` asks for the fewest.
    pub devices: Option<u64>,
    /// Degrees, where the user fixes them.
    pub parallel: Option<Parallel>,
    /// What other processes use on each device.
    pub in_use: Bytes,
    /// Engine and flags.
    pub settings: Settings,
    /// The load.
    pub load: Load,
}

impl Question {
    /// Tokens of the longest sequence that the server is to take: as told, else the load's.
    #[must_use]
    pub fn longest(&self) -> u64 {
        let told = self.settings.max_model_len.unwrap_or(0);
        told.max(self.load.context)
    }
}

/// What is answered.
pub struct Answer {
    /// The deployment that the answer is about: the chosen one, the given one, or, where nothing
    /// fits, the largest tried.
    pub evaluation: Evaluation,
    /// Whether the number of devices was chosen here.
    pub chosen: bool,
    /// Users that the deployment carries at the load's context.
    pub max_users: u64,
    /// The longest context that it carries for the load's users.
    pub max_context: u64,
    /// The same for one device, where the deployment has more and one is legal.
    pub one: Option<OneDevice>,
    /// The KV cache three ways, over all ranks of one replica.
    pub ways: Ways,
    /// Single changes that would make it fit, where it does not.
    pub changes: Vec<Change>,
}

/// What one device carries.
#[derive(Clone, Debug, PartialEq)]
pub struct OneDevice {
    /// Users at the load's context.
    pub users: u64,
    /// Longest context for one user.
    pub context: u64,
}

/// KV bytes of the load, allocated three ways, and the users that the same pool would carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Contiguous runs of the longest length.
    pub contiguous: Way,
    /// Blocks, every sequence on its own.
    pub paged: Way,
    /// Blocks, with copy-on-write among a request's sequences and a shared prefix.
    pub shared: Way,
}

/// One way to allocate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Bytes that the load needs, over all ranks of one replica.
    pub bytes: Bytes,
    /// Users that the plan's pool carries.
    pub users: u64,
}

/// Answers `question` about `spec`.
///
/// # Errors
/// [`PlanError`] where no legal division exists, a setting is refused or sizes overflow.
pub fn answer(spec: &ModelSpec, question: &Question) -> Result<Answer, PlanError> {
    let q = question;
    let device = q.device.clone().unwrap_or_else(Device::unlimited);
    let at = |parallel| Deployment {
        device: device.clone(),
        kinds: None,
        parallel,
        in_use: q.in_use,
    };
    let kinds = q.kinds.as_ref().zip(q.parallel);
    let (evaluation, chosen) = match (q.parallel, q.devices) {
        _ if let Some((kinds, parallel)) = kinds => {
            let e = of_kinds(spec, kinds, &at(parallel), &q.settings, &q.load)?;
            (e, false)
        }
        (Some(parallel), _) => (evaluate(spec, &at(parallel), &q.settings, &q.load)?, false),
        (None, Some(n)) => (
            best_division(spec, &device, q.in_use, &q.settings, &q.load, n)?,
            false,
        ),
        (None, None) if device.is_unlimited() => (
            evaluate(spec, &at(Parallel::default()), &q.settings, &q.load)?,
            false,
        ),
        (None, None) => {
            match smallest(spec, &device, q.in_use, &q.settings, &q.load, MAX_DEVICES)? {
                Some(e) => (e, true),
                None => {
                    // Show the largest legal attempt, so that the reader sees what is missing.
                    let last = largest_legal(spec, &device, q)?;
                    (last, true)
                }
            }
        }
    };
    let fits = evaluation.verdict > Verdict::No;
    let users = max_users(&evaluation)?;
    let context = max_context(&evaluation)?;
    let one = if evaluation.deployment.parallel.devices() > 1 && q.kinds.is_none() {
        one_device(spec, &at(Parallel::default()), q)?
    } else {
        None
    };
    let ways = ways(spec, &evaluation, &q.settings)?;
    let changes = if fits || device.is_unlimited() {
        Vec::new()
    } else {
        changes_that_fit(spec, &evaluation, &q.settings, &q.load)?
    };
    Ok(Answer {
        evaluation,
        chosen,
        max_users: users,
        max_context: context,
        one,
        ways,
        changes,
    })
}

fn largest_legal(spec: &ModelSpec, device: &Device, q: &Question) -> Result<Evaluation, PlanError> {
    let mut error = None;
    for n in (1..=MAX_DEVICES).rev() {
        match best_division(spec, device, q.in_use, &q.settings, &q.load, n) {
            Ok(e) => return Ok(e),
            Err(e) => error = Some(e),
        }
    }
    Err(error.unwrap_or_else(|| PlanError::Load("no number of devices is legal".to_owned())))
}

fn one_device(
    spec: &ModelSpec,
    deployment: &Deployment,
    q: &Question,
) -> Result<Option<OneDevice>, PlanError> {
    match evaluate(spec, deployment, &q.settings, &q.load) {
        Ok(e) => {
            let users = max_users(&e)?;
            let single = Evaluation {
                load: q.load.with_users(1),
                ..e
            };
            Ok(Some(OneDevice {
                users,
                context: max_context(&single)?,
            }))
        }
        Err(PlanError::Size(e)) => Err(PlanError::Size(e)),
        Err(_) => Ok(None),
    }
}

/// The same pool, three allocators.
fn ways(spec: &ModelSpec, e: &Evaluation, settings: &Settings) -> Result<Ways, PlanError> {
    let ranks = |stage_bytes: Bytes| stage_bytes.times(e.deployment.parallel.tp);
    let mut out = Ways::default();
    // Contiguous: the longest length for every sequence, on this division.
    let contiguous = Settings {
        engine: Engine::Contiguous(Reserve::Max),
        kv_type: served_kv(settings, spec),
        dtype: cast_to(settings, spec),
        max_model_len: Some(e.max_model_len),
        kv_memory: None,
        lengths: settings.lengths.clone(),
        ..Settings::new(Engine::Contiguous(Reserve::Max))
    };
    let load = e.load;
    let unshared = Load {
        users: load.users.saturating_mul(load.sequences),
        sequences: 1,
        shared_prefix: 0,
        ..load
    };
    if let Ok(c) = evaluate(spec, &e.deployment, &contiguous, &load) {
        out.contiguous = way(e, &load, |i, l| Ok(c.stages[i].kv.need(l)?.pool))?;
        out.contiguous.bytes = ranks(out.contiguous.bytes)?;
    }
    // Where the engine itself does not page, Plimsoll's pages stand beside it.
    let own = Settings {
        engine: Engine::Plimsoll,
        kv_memory: None,
        ..settings.clone()
    };
    let paged = match settings.engine {
        Engine::Contiguous(_) | Engine::Ideal | Engine::LlamaCpp(_) => {
            evaluate(spec, &e.deployment, &own, &load).ok()
        }
        Engine::Vllm(_) | Engine::Sglang(_) | Engine::TrtLlm | Engine::Plimsoll => None,
    };
    let pages = paged.as_ref().unwrap_or(e);
    out.paged = way(e, &unshared, |i, l| Ok(pages.stages[i].kv.need(l)?.pool))?;
    out.paged.bytes = ranks(out.paged.bytes)?;
    out.paged.users /= load.sequences.max(1);
    out.shared = way(e, &load, |i, l| Ok(pages.stages[i].kv.need(l)?.pool))?;
    out.shared.bytes = ranks(out.shared.bytes)?;
    Ok(out)
}

/// Bytes of `load` over the stages, and the users that the stages' pools carry, by `need`.
fn way(
    e: &Evaluation,
    load: &Load,
    need: impl Fn(usize, &Load) -> Result<Bytes, PlanError>,
) -> Result<Way, PlanError> {
    let mut bytes = Bytes::ZERO;
    for i in 0..e.stages.len() {
        bytes = bytes.add(need(i, load)?)?;
    }
    let users = crate::solve::largest_users(|n| {
        for (i, s) in e.stages.iter().enumerate() {
            if s.over_budget || need(i, &load.with_users(n))? > s.pool {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    Ok(Way {
        bytes,
        users: users.saturating_mul(e.deployment.parallel.dp),
    })
}
