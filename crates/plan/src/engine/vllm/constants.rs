//! Constants that no source states: fitted to published start-up reports.
//!
//! Each belongs to an engine version range and a cause, never to a model, and carries the records
//! behind it and its errors inside and outside the fit.

/// One fitted constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constant {
    /// Short name.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// In which unit.
    pub unit: &'static str,
    /// What it stands for.
    pub cause: &'static str,
    /// Engine versions that it holds for.
    pub versions: &'static str,
    /// Ids of the records that it was fitted to.
    pub records: &'static [&'static str],
    /// Mean absolute error of the term on them, percent.
    pub in_sample_error_pct: Option<f64>,
    /// The same with each model's records predicted by a fit without them.
    pub leave_one_out_error_pct: Option<f64>,
}

/// Every fitted constant.
#[must_use]
pub const fn constants() -> &'static [Constant] {
    CONSTANTS
}

const CONSTANTS: &[Constant] = &[];
