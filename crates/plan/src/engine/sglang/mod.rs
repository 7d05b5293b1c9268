//! `sglang`: what SGLang allocates, release by release.
//!
//! Start-up in order (`srt/model_executor/model_runner.py`): what is free is looked at, weights are loaded, and the
//! token pool takes what is left of `free x mem_fraction_static`. Nothing is profiled: activations, graphs and the
//! table of requests must do with the rest. Each step is one module here: `defaults` for what an unset flag means on
//! a card, `weights`, `kv` for the pools, `constants` for what was fitted.

pub mod constants;
mod defaults;
mod kv;
mod sparse;
mod weights;

use plimsoll_units::Bytes;

use super::{Budget, Context, EngineStage, Takes, Version, extras, in_use};
use crate::error::PlanError;
use crate::term::{Kind, Region, Term, total};

pub use defaults::Defaults;
pub use kv::TokenPools;

/// The newest release whose rules were read.
pub const NEWEST: Version = Version {
    major: 0,
    minor: 5,
    patch: 23,
};
/// The first release whose rules were read.
pub const FIRST: Version = Version::new(0, 4);

/// The first release that takes bf16 as the pool's type by name: its parser does in 0.5.4, not in 0.5.3. Before, a pool is
/// bf16 where the model is.
pub const BF16_BY_NAME: Version = Version {
    major: 0,
    minor: 5,
    patch: 4,
};

/// The table of requests has a 4-byte index for every position of every request.
const INDEX: u64 = 4;

pub(super) fn stage(context: &Context<'_>, version: Version) -> Result<EngineStage, PlanError> {
    let settings = context.settings;
    if settings.draft.is_some() || settings.mtp {
        return Err(PlanError::Refused {
            engine: format!("sglang {version}"),
            setting: "a draft".to_owned(),
            reason: "the pools of SGLang's drafts are not modelled yet".to_owned(),
        });
    }
    let mut notes = Vec::new();
    if version < FIRST {
        notes.push(format!(
            "SGLang {version} is older than what was read: the rules are those of {FIRST}"
        ));
    }
    let defaults = Defaults::new(context, version);
    let before = constants::before_loading(context)?;
    let free = free_before(context, before.bytes);
    let mut terms = vec![before];
    terms.extend(weights::terms(context)?);
    terms.extend(extras::adapters(context)?);
    let law = kv::law(context, version, &defaults)?;
    let budget = budget(context, version, &defaults, free, terms[0].bytes)?;
    let reserve = context
        .deployment
        .device
        .usable
        .saturating_sub(context.deployment.in_use)
        .saturating_sub(budget.bytes);
    let pool = settings
        .kv_memory
        .unwrap_or(budget.bytes.saturating_sub(total(&terms)?));
    let (table, rest) = beside(context, &law, pool, reserve, &defaults)?;
    if table.bytes > reserve {
        notes.push(format!(
            "the table of requests alone ({}) is more than the reserve: lower --max-running-requests or --context-length",
            table.bytes
        ));
    }
    let takes = match settings.max_total_tokens {
        Some(tokens) => Takes::Capped(law.bytes(tokens)?),
        None => Takes::Rest,
    };
    let requests = law.requests(pool, context.max_model_len)?;
    if context.users > requests {
        notes.push(format!(
            "at most {requests} requests run at once (--max-running-requests); further ones wait in the queue"
        ));
    }
    Ok(EngineStage {
        layers: None,
        budget,
        terms,
        outside: in_use(context).into_iter().chain([table, rest]).collect(),
        host: Vec::new(),
        kv: Box::new(law),
        takes,
        notes,
    })
}

/// What is free before loading: as told, else all that nobody has taken.
fn free_before(context: &Context<'_>, before: Bytes) -> Bytes {
    let device = &context.deployment.device;
    context.settings.free_before_loading.unwrap_or_else(|| {
        device
            .usable
            .saturating_sub(context.deployment.in_use)
            .saturating_sub(before)
    })
}

/// `free x mem_fraction_static`, and what was taken before, which is a term of its own.
#[allow(
    clippy::cast_precision_loss,
    reason = "SGLang computes this in floating point too"
)]
fn budget(
    context: &Context<'_>,
    version: Version,
    defaults: &Defaults,
    free: Bytes,
    before: Bytes,
) -> Result<Budget, PlanError> {
    let source = "SGLang srt/model_executor/model_runner.py: profile_max_num_token; server_args.py: mem_fraction_static";
    if context.settings.kv_memory.is_some() {
        return Ok(Budget {
            bytes: free.add(before)?,
            formula: "free before loading (the pool is given)".to_owned(),
            source: source.to_owned(),
        });
    }
    let fraction = defaults.fraction;
    let share = Bytes::from_f64((free.get() as f64 * fraction).floor())?;
    Ok(Budget {
        bytes: share.add(before)?,
        formula: format!(
            "{free} free before loading x {fraction:.3} mem_fraction_static{} + {before} taken before",
            match context.settings.gpu_memory_utilization {
                Some(_) => String::new(),
                None => format!(" (the default of {version} on this card)"),
            }
        ),
        source: source.to_owned(),
    })
}

/// What the share leaves: the table of requests, and what remains for activations and graphs.
fn beside(
    context: &Context<'_>,
    law: &TokenPools,
    pool: Bytes,
    reserve: Bytes,
    defaults: &Defaults,
) -> Result<(Term, Term), PlanError> {
    let requests = law.requests(pool, context.max_model_len)?;
    // A row more, and a few positions more than the longest length.
    let row = context.max_model_len.saturating_add(INDEX);
    let table = Bytes::product([requests.saturating_add(1), row, INDEX])?;
    // Latents' scales, in releases that do not count them.
    let beyond = law.beyond(pool)?;
    let rest = Term::exact(
        Region::Reserve,
        "activations and graphs",
        reserve.saturating_sub(table).saturating_sub(beyond),
    )
    .kind(Kind::Bound)
    .formula("what mem_fraction_static leaves, less the table of requests")
    .input("chunked_prefill_size", defaults.chunk)
    .input(
        "cuda_graph_max_bs",
        defaults
            .graph_batch
            .map_or_else(|| "-".to_owned(), |n| n.to_string()),
    )
    .source("SGLang srt/server_args.py: the reserve that mem_fraction_static is computed from");
    let table = Term::exact(Region::Workspace, "table of requests", table)
        .kind(Kind::Derived)
        .formula("(requests + 1) x (longest length + 4) x 4 bytes")
        .input("requests", requests)
        .input("longest length", context.max_model_len)
        .source("SGLang srt/mem_cache/memory_pool.py: ReqToTokenPool");
    Ok((table, rest))
}
