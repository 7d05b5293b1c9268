//! Everything about vLLM that was fitted to published start-up reports rather than read in its source.
//!
//! Each constant belongs to releases and, where it matters, to a degree of parallelism; none to a
//! model. `plimsoll accuracy --constants` prints them.

use super::super::{Context, Version};
use super::Defaults;

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

/// Rows of hidden size that stay allocated beside the widest layer during the forward pass: residual,
/// normed input, layer output, and the buffer that Inductor reuses last.
pub(super) const RESIDENT_ROWS: u64 = 4;

/// Bytes of one captured graph piece (a layer at one size), full and piecewise mode together.
pub(super) const GRAPH_BYTES_PER_PIECE: u64 = 480 << 10;

/// GiB that a context takes before the first snapshot: least and most seen.
pub(super) const CONTEXT_GIB: (f64, f64) = (0.5, 1.6);

/// GiB of non-torch memory: expected, and the interval.
pub(super) fn non_torch(version: Version, tp: u64, pp: u64) -> (f64, f64, f64) {
    if version < Version::new(0, 17) {
        return if tp > 1 {
            (0.55, 0.4, 1.2)
        } else {
            (0.13, 0.05, 0.35)
        };
    }
    match (tp, pp) {
        (1, 1) => (0.25, 0.235, 0.265),
        (1, _) => (0.07, 0.05, 0.1),
        (2, _) => (2.07, 2.04, 2.105),
        (3..=4, _) => (2.15, 2.1, 2.22),
        _ => (2.3, 1.8, 2.9),
    }
}

/// Shares below and above the expected activation peak that hold 90 % of reports.
///
/// Narrow where the sampler decides on the measured releases; wider for the forward pass, for expert
/// workspaces, off the measured releases, and where T or R are not the ones measured.
pub(super) fn activation_spread(
    context: &Context<'_>,
    version: Version,
    d: &Defaults,
    sampler: bool,
    experts: bool,
) -> (f64, f64) {
    let mut spread: f64 = if sampler { 0.005 } else { 0.025 };
    if experts {
        spread += 0.03;
    }
    if (d.batched_tokens, d.sequences) != (8192, 1024) {
        spread += 0.06;
    }
    if !context.deployment.device.name.starts_with("h100") {
        spread += 0.03;
    }
    let measured = version >= Version::new(0, 17) && version < Version::new(0, 21);
    if !measured {
        spread += 0.15;
    }
    (spread, spread)
}

/// Every fitted constant.
#[must_use]
pub fn constants() -> Vec<Constant> {
    let of = |name, value, unit, cause| Constant {
        name,
        value,
        unit,
        cause,
        versions: "0.17 to 0.20",
        records: &[],
        in_sample_error_pct: None,
        leave_one_out_error_pct: None,
    };
    #[allow(clippy::cast_precision_loss, reason = "small numbers, for print")]
    let list = vec![
        of(
            "resident_rows",
            RESIDENT_ROWS as f64,
            "rows of T x hidden",
            "residual, normed input, layer output and one reused buffer during the forward pass",
        ),
        of(
            "graph_bytes_per_piece",
            GRAPH_BYTES_PER_PIECE as f64,
            "bytes",
            "kernel nodes and parameters of one captured layer at one batch size",
        ),
        of(
            "non_torch_tp1",
            0.25,
            "GiB",
            "kernel modules loaded after the first snapshot",
        ),
        of(
            "non_torch_pp",
            0.07,
            "GiB",
            "the same under PP, where communicators are made before the snapshot",
        ),
        of(
            "non_torch_tp2",
            2.07,
            "GiB",
            "communicators, custom all-reduce and symmetric-memory buffers",
        ),
        of("non_torch_tp4", 2.15, "GiB", "the same with four ranks"),
    ];
    list
}
