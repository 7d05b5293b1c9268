//! Everything about vLLM that was fitted to published start-up reports rather than read in its source.
//!
//! Each constant belongs to releases and, where it matters, to a degree of parallelism; none to a
//! model. `plimsoll accuracy --constants` prints them.

use super::super::{Context, Version};
use super::Defaults;
use super::profile::Phase;

/// A fitted constant, for the list that users can check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constant {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// The unit.
    pub unit: &'static str,
    /// What causes it.
    pub cause: &'static str,
    /// The releases it was fitted on.
    pub versions: &'static str,
    /// Ids of the records that it was fitted to.
    pub records: &'static [&'static str],
    /// Mean absolute error of the term on them, percent.
    pub in_sample_error_pct: Option<f64>,
    /// The same with each model's records predicted by a fit without them.
    pub leave_one_out_error_pct: Option<f64>,
}

/// Bytes of one further captured size, per layer, full and piecewise mode together; half as much again
/// with experts.
pub(super) const GRAPH_PER_LAYER: u64 = 389 << 10;
/// First capture in full mode, beside `FlashAttention` 3's split outputs.
pub(super) const GRAPH_FIRST_FULL: u64 = 6 << 20;
/// First capture in piecewise mode, beside the pieces' buffers.
pub(super) const GRAPH_FIRST_PIECEWISE: u64 = 84 << 20;
/// Splits that `FlashAttention` 3 allots scratch for, and the largest batch it does so for (source: its
/// `num_splits` heuristic as vLLM calls it under graphs).
pub(super) const FA3_SPLITS: u64 = 32;
pub(super) const FA3_LARGEST_BATCH: u64 = 992;

/// GiB that a context takes before the first snapshot, communicators included: least and most.
///
/// Seen on H100: 0.5 on one device, 1.4 to 2.0 where ranks communicate, most of it for in-switch
/// buffers; without NVLink of that generation these are absent, and the rest is assumed.
pub(super) fn context(context: &Context<'_>) -> (f64, f64) {
    let p = &context.deployment.parallel;
    let device = &context.deployment.device;
    let switched = device.has_compute(9, 0)
        && device
            .link
            .as_ref()
            .is_some_and(|(kind, _)| kind == "nvlink");
    match p.tp.saturating_mul(p.pp) {
        0 | 1 => (0.45, 0.6),
        _ if switched => (1.4, 2.1),
        _ => (0.5, 1.1),
    }
}

/// GiB of non-torch memory on one device, with PP only, and with TP; and GiB per TP rank and layer.
const NON_TORCH_ONE: f64 = 0.234;
const NON_TORCH_PP: f64 = 0.066;
const NON_TORCH_TP: f64 = 2.046;
const NON_TORCH_PER_LAYER: f64 = 0.0005;
/// The same before the graph trial was inside the measured window.
const OLD_NON_TORCH_ONE: f64 = 0.116;
const OLD_NON_TORCH_TP: f64 = 0.476;

/// V0, which measured from the first snapshot on from 0.6.5 on, and took the context in before.
const V0_NON_TORCH_ONE: f64 = 0.05;
const V0_NON_TORCH_TP: f64 = 0.74;
const V0_CONTEXT_ONE: f64 = 0.41;
/// The first V0 that measures from a snapshot.
const V0_SNAPSHOT: Version = Version {
    major: 0,
    minor: 6,
    patch: 5,
};

/// Whether the card is the one that constants were fitted on.
fn measured_card(context: &Context<'_>) -> bool {
    context.deployment.device.name.starts_with("h100")
}

/// Whether the release is one that constants were fitted on.
fn measured_release(version: Version) -> bool {
    (Version::new(0, 18)..Version::new(0, 20)).contains(&version)
}

/// Where the constants were fitted and the laws checked, in words.
pub(super) const MEASURED_ON: &str = "vLLM 0.18 and 0.19 on H100, T 8192, R 1024";

/// In what a plan differs from [`MEASURED_ON`]; each widens the intervals.
pub(super) fn off_measured(
    context: &Context<'_>,
    version: Version,
    d: &Defaults,
) -> Vec<&'static str> {
    let mut off = Vec::new();
    if !measured_release(version) {
        off.push("the release");
    }
    if !measured_card(context) {
        off.push("the card");
    }
    if (d.batched_tokens, d.sequences) != (8192, 1024) {
        off.push("T or R");
    }
    off
}

/// GiB of non-torch memory: expected, and the interval.
pub(super) fn non_torch(context: &Context<'_>, version: Version, layers: u64) -> (f64, f64, f64) {
    let p = &context.deployment.parallel;
    #[allow(clippy::cast_precision_loss, reason = "a few thousand at most")]
    let slope = NON_TORCH_PER_LAYER * (p.tp.saturating_mul(layers)) as f64;
    if version < super::FIRST_V1 {
        return v0_non_torch(p.tp.saturating_mul(p.pp), version);
    }
    let old = version < Version::new(0, 18);
    let base = match (p.tp, p.pp, old) {
        (1, 1, true) => OLD_NON_TORCH_ONE,
        (1, 1, false) => NON_TORCH_ONE,
        (1, _, _) => NON_TORCH_PP,
        (_, _, true) => OLD_NON_TORCH_TP,
        (_, _, false) => NON_TORCH_TP,
    };
    let expected = base + slope;
    let known =
        measured_card(context) && (measured_release(version) || version < Version::new(0, 12));
    let (below, above) = match (p.tp, known) {
        (1, true) => (0.015, 0.03),
        (2..=4, true) => (0.05, 0.05),
        (_, true) => (0.4, 0.4),
        (1, false) => (expected - 0.05, 0.35),
        // Without NVLink there are no in-switch buffers, and much less is taken.
        (_, false) => (expected - 0.2, 0.55),
    };
    (expected, (expected - below).max(0.0), expected + above)
}

/// The same of V0: expected, and the interval.
fn v0_non_torch(ranks: u64, version: Version) -> (f64, f64, f64) {
    match (ranks, version < V0_SNAPSHOT) {
        (0 | 1, false) => (V0_NON_TORCH_ONE, 0.02, 0.15),
        (0 | 1, true) => (V0_CONTEXT_ONE, 0.3, 0.55),
        (_, false) => (V0_NON_TORCH_TP, 0.3, 2.2),
        (_, true) => (V0_NON_TORCH_TP + V0_CONTEXT_ONE, 0.6, 2.6),
    }
}

/// What the interval of the activation peak depends on.
pub(super) struct Measured {
    /// The phase that decides.
    pub(super) phase: Phase,
    /// Expected bytes.
    pub(super) total: u64,
    /// Bytes with a warm compilation cache.
    pub(super) warm: u64,
    /// Whether an expert workspace is part of it.
    pub(super) experts: bool,
}

/// Bytes between which 90 % of reports lie.
///
/// Narrow where the sampler decides on the measured releases; wider for the forward pass, off the
/// measured T and R, card and release; down to the warm figure where a cold cache decides.
#[allow(clippy::cast_precision_loss, reason = "an interval")]
pub(super) fn activation_interval(
    context: &Context<'_>,
    version: Version,
    d: &Defaults,
    m: &Measured,
) -> (f64, f64) {
    let usual = (d.batched_tokens, d.sequences) == (8192, 1024);
    let mut share = match m.phase {
        Phase::Sampler if usual => 0.004,
        Phase::Sampler => 0.026,
        Phase::Forward | Phase::Compile if usual => 0.02,
        Phase::Forward | Phase::Compile => 0.1,
    };
    if m.experts {
        share += 0.02;
    }
    if !measured_card(context) {
        share += 0.01;
    }
    if version >= Version::new(0, 22) {
        // The second model runner samples without top-k and top-p; unread and unmeasured.
        share += 0.15;
    } else if !measured_release(version) {
        share += 0.015;
    }
    let total = m.total as f64;
    // Print rounding alone is 5 MiB either way.
    let slack = (total * share).max(f64::from(8 << 20));
    let low = match m.phase {
        Phase::Sampler => total - slack,
        Phase::Forward | Phase::Compile => (m.warm as f64 - slack).min(total - slack),
    };
    (low.max(0.0), total + slack)
}

/// GiB below and above the expected graph estimate.
pub(super) fn graph_interval(context: &Context<'_>) -> (f64, f64) {
    if measured_card(context) {
        (0.25, 0.2)
    } else {
        (0.3, 0.5)
    }
}

/// Every fitted constant.
#[must_use]
pub fn constants() -> Vec<Constant> {
    let of = |name, value, unit, cause, versions| Constant {
        name,
        value,
        unit,
        cause,
        versions,
        records: &[],
        in_sample_error_pct: None,
        leave_one_out_error_pct: None,
    };
    let new = "vLLM 0.18 to 0.20";
    #[allow(clippy::cast_precision_loss, reason = "small numbers, for print")]
    let graph = |n: u64| n as f64 / f64::from(1 << 20);
    vec![
        of(
            "non_torch_one_device",
            NON_TORCH_ONE,
            "GiB",
            "handles and kernel modules loaded after the first snapshot",
            new,
        ),
        of(
            "non_torch_pp_only",
            NON_TORCH_PP,
            "GiB",
            "the same where communicators loaded the library before",
            new,
        ),
        of(
            "non_torch_tp",
            NON_TORCH_TP,
            "GiB",
            "a second communicator, made by the first gather, with in-switch buffers",
            new,
        ),
        of(
            "non_torch_per_layer",
            NON_TORCH_PER_LAYER,
            "GiB per TP rank and layer",
            "what the driver keeps of the graph trial",
            new,
        ),
        of(
            "non_torch_one_device_old",
            OLD_NON_TORCH_ONE,
            "GiB",
            "as above, before the graph trial was measured along",
            "vLLM 0.11 to 0.17",
        ),
        of(
            "non_torch_tp_old",
            OLD_NON_TORCH_TP,
            "GiB",
            "as above, with that time's communicator",
            "vLLM 0.11 to 0.17",
        ),
        of(
            "non_torch_v0_one_device",
            V0_NON_TORCH_ONE,
            "GiB",
            "handles made after the first snapshot",
            "vLLM 0.6.5 to 0.7 (V0)",
        ),
        of(
            "non_torch_v0_tp",
            V0_NON_TORCH_TP,
            "GiB",
            "the same, with a communicator",
            "vLLM 0.6.5 to 0.7 (V0)",
        ),
        of(
            "non_torch_v0_with_context",
            V0_CONTEXT_ONE,
            "GiB",
            "everything that torch did not allocate, the context among it",
            "vLLM 0.6.3 and 0.6.4 (V0)",
        ),
        of(
            "graph_per_layer",
            graph(GRAPH_PER_LAYER),
            "MiB per layer and size",
            "kernel nodes and parameters of one captured layer",
            "vLLM 0.18 on",
        ),
        of(
            "graph_first_full",
            graph(GRAPH_FIRST_FULL),
            "MiB",
            "pool of the first full capture",
            "vLLM 0.18 on",
        ),
        of(
            "graph_first_piecewise",
            graph(GRAPH_FIRST_PIECEWISE),
            "MiB",
            "pool of the first piecewise capture",
            "vLLM 0.18 on",
        ),
    ]
}
