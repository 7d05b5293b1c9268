//! Workloads: everything that yields [`Arrival`]s, be it read from a trace or drawn from a seed.
//!
//! [`WorkloadSpec`] says which, as plain data; [`WorkloadSpec::open`] gives a [`Workload`], an
//! iterator. Promises: a workload is a function of its spec and the bytes of its trace, on every
//! machine; a trace is streamed, whatever its length; arrivals never go back in time; whatever the
//! bytes, a reader returns an error and does not panic.
//!
//! Formats are those of Azure's public dataset, Mooncake (FAST 2025), BurstGPT and Vidur; see
//! [`TraceFormat`]. Files are opened by the binary.

mod content;
mod csv;
mod describe;
mod error;
mod input;
mod json;
mod lengths;
mod mix;
mod presets;
mod random;
mod shaping;
mod spec;
mod synthetic;
mod text;
mod time;
mod trace;

pub use content::fill_tokens;
pub use describe::{Description, LengthStatistics, describe};
pub use error::WorkloadError;
pub use lengths::{Lengths, Quantiles};
pub use mix::LengthMix;
pub use presets::{PRESETS, Preset};
pub use shaping::REPEAT_BYTES_MAX;
pub use spec::{
    ArrivalProcess, FanSpec, PrefixSpec, Repeat, Retime, Shaping, SyntheticSpec, Tenant,
    TraceFormat, TraceSpec, WorkloadSource, WorkloadSpec,
};
pub use trace::LATE_MAX;

use crate::Arrival;
use shaping::Pipeline;
use synthetic::Synthetic;
use trace::Trace;

/// Requests, one after another, by time. Ends after its last request or its first error.
#[derive(Debug)]
pub struct Workload {
    pipeline: Pipeline,
    ended: bool,
}

/// What happened to requests on the way, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Rows of failed requests, passed over.
    pub failed_skipped: u64,
    /// Rows that were up to [`LATE_MAX`] before an earlier row, and arrive together with it.
    pub reordered: u64,
    /// Requests cut to the longest that the model takes.
    pub clamped: u64,
    /// Passes over a trace that were begun; more than 1 where it is repeated.
    pub passes: u64,
}

impl Workload {
    fn new(pipeline: Pipeline) -> Self {
        Self {
            pipeline,
            ended: false,
        }
    }

    /// What happened to the requests that were given out.
    #[must_use]
    pub fn notes(&self) -> Notes {
        self.pipeline.notes
    }
}

impl Iterator for Workload {
    type Item = Result<Arrival, WorkloadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.pipeline.next();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

/// Where requests come from.
#[derive(Debug)]
enum Requests {
    Trace(Box<Trace>),
    Synthetic(Box<Synthetic>),
}

impl Requests {
    fn next(&mut self, notes: &mut Notes) -> Result<Option<Arrival>, WorkloadError> {
        match self {
            Self::Trace(trace) => trace.next(notes),
            Self::Synthetic(synthetic) => synthetic.next().map(Some),
        }
    }
}
