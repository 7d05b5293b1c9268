//! Everything about SGLang that was fitted to published start-up reports rather than read in its source.

use plimsoll_units::Bytes;

use super::super::Context;
use super::super::vllm::Constant;
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

/// GiB that loading takes from the driver beside the tensors: least, expected, most.
const LOADING: (f64, f64, f64) = (0.02, 0.06, 0.15);
/// GiB taken before loading on one device: least, expected, most.
const BEFORE_ONE: (f64, f64, f64) = (0.3, 0.6, 0.8);
/// The same where ranks communicate, with in-switch buffers (NVLink of Hopper) and without.
const BEFORE_SWITCHED: (f64, f64, f64) = (1.4, 2.0, 2.4);
const BEFORE_MANY: (f64, f64, f64) = (0.5, 0.9, 1.4);

fn calibrated(term: Term, (low, _, high): (f64, f64, f64)) -> Result<Term, PlanError> {
    Ok(term.kind(Kind::Calibrated {
        low: Bytes::from_gib(low)?,
        high: Bytes::from_gib(high)?,
    }))
}

/// What loading takes beside the tensors.
pub(super) fn loading() -> Result<Term, PlanError> {
    let term = Term::exact(
        Region::Weights,
        "allocator segments and modules",
        Bytes::from_gib(LOADING.1)?,
    )
    .formula("fitted: see `plimsoll accuracy --constants`")
    .source("SGLang srt/model_executor/model_runner.py: load_model prints the driver's difference");
    calibrated(term, LOADING)
}

/// What the context and the communicators take before anything is loaded. Nothing is to be estimated where it is known
/// what was free.
pub(in crate::engine) fn before_loading(context: &Context<'_>) -> Result<Term, PlanError> {
    let device = &context.deployment.device;
    let ranks = context
        .deployment
        .parallel
        .tp
        .saturating_mul(context.deployment.parallel.pp);
    let term = |bytes: Bytes| {
        Term::exact(Region::Driver, "context and communicators", bytes)
            .formula("total - free before loading")
            .input("ranks that communicate", ranks)
            .source("SGLang srt/model_executor/model_runner.py: init_torch_distributed")
    };
    if let Some(free) = context.settings.free_before_loading {
        let taken = device.usable.saturating_sub(context.deployment.in_use);
        return Ok(term(taken.saturating_sub(free)));
    }
    let switched = device.has_compute(9, 0)
        && device
            .link
            .as_ref()
            .is_some_and(|(kind, _)| kind == "nvlink");
    let range = match ranks {
        0 | 1 => BEFORE_ONE,
        _ if switched => BEFORE_SWITCHED,
        _ => BEFORE_MANY,
    };
    calibrated(term(Bytes::from_gib(range.1)?), range)
}

/// Every fitted constant.
#[must_use]
pub fn constants() -> Vec<Constant> {
    let of = |name, value, cause| Constant {
        name,
        value,
        unit: "GiB",
        cause,
        versions: "SGLang 0.4.4 to 0.5",
        records: &[],
        in_sample_error_pct: None,
        leave_one_out_error_pct: None,
    };
    vec![
        of(
            "sglang_loading",
            LOADING.1,
            "whole segments of the allocator, and modules of the kernels that loading starts",
        ),
        of(
            "sglang_before_one_device",
            BEFORE_ONE.1,
            "context and handles made before what is free is looked at",
        ),
        of(
            "sglang_before_ranks",
            BEFORE_SWITCHED.1,
            "the same, with communicators and their in-switch buffers",
        ),
    ]
}
