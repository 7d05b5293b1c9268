//! [`WorkloadSpec`]: a workload as plain data, to be parsed into, changed for a sweep and opened.

use std::io::BufRead;

use super::Workload;
use super::error::{WorkloadError, bad};
use super::lengths::Lengths;
use super::random::Clock;
use super::shaping::Pipeline;
use super::synthetic::Synthetic;
use super::trace::Trace;

/// Everything that determines a workload, but for the bytes of a trace. Equal specs (and bytes)
/// give equal requests on every machine.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadSpec {
    /// Where requests come from.
    pub source: WorkloadSource,
    /// What is done to them.
    pub shaping: Shaping,
    /// Seeds everything that is drawn.
    pub seed: u64,
}

/// Where requests come from.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkloadSource {
    /// A recorded trace.
    Trace(TraceSpec),
    /// Requests drawn from distributions, without end.
    Synthetic(SyntheticSpec),
}

/// How to read a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceSpec {
    /// The format; recognised by the first line where `None`.
    pub format: Option<TraceFormat>,
    /// Tokens per entry of `hash_ids`: 512 in Mooncake's traces.
    pub block_tokens: u64,
}

impl Default for TraceSpec {
    fn default() -> Self {
        Self {
            format: None,
            block_tokens: 512,
        }
    }
}

/// A format of traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceFormat {
    /// CSV: `TIMESTAMP,ContextTokens,GeneratedTokens` (Azure LLM inference traces 2023 and 2024).
    Azure,
    /// JSON objects: `timestamp` in ms, `input_length`, `output_length`, `hash_ids` (Mooncake).
    Mooncake,
    /// CSV: `Timestamp` in seconds, `Request tokens`, `Response tokens` and others. A row with no
    /// response tokens is a failed request: it is skipped and counted.
    BurstGpt,
    /// CSV or JSON with lengths under their usual names, with or without arrival times in seconds
    /// (lengths of ShareGPT conversations, Vidur's processed traces).
    Lengths,
}

impl TraceFormat {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Azure => "azure",
            Self::Mooncake => "mooncake",
            Self::BurstGpt => "burstgpt",
            Self::Lengths => "lengths",
        }
    }
}

impl std::str::FromStr for TraceFormat {
    type Err = WorkloadError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::Azure, Self::Mooncake, Self::BurstGpt, Self::Lengths]
            .into_iter()
            .find(|f| f.name() == s)
            .ok_or_else(|| {
                bad(
                    "format",
                    format!("no trace format `{s}`: use azure, mooncake, burstgpt or lengths"),
                )
            })
    }
}

/// What is done to requests, in the order of the fields: skip, repeat, limit, clamp, re-time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shaping {
    /// Requests passed over at the start; the first one kept arrives at 0.
    pub skip: u64,
    /// Whether a trace starts again at its end. A synthetic workload has no end.
    pub repeat: Repeat,
    /// Requests after which the workload ends; a synthetic one without a limit never does.
    pub limit: Option<u64>,
    /// Prompt and output together are cut to this many tokens: first the prompt to one less, then
    /// the output to what is left. Requests cut are counted.
    pub max_model_tokens: Option<u64>,
    /// When they arrive.
    pub retime: Retime,
}

/// Whether a trace starts again at its end. Time goes on: a pass starts one mean gap after the
/// last arrival of the pass before.
///
/// The input cannot be read twice, so the rows of the first pass are held, in at most
/// [`REPEAT_BYTES_MAX`](super::REPEAT_BYTES_MAX) bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repeat {
    /// It ends.
    #[default]
    No,
    /// It starts again with new content: blocks are shared within a pass as recorded, and never
    /// between passes, so that repeating adds no reuse which the trace has not.
    FreshContent,
    /// It starts again with the same content: a cache meets every prompt of the pass before.
    SameContent,
}

/// When requests arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Retime {
    /// As recorded or drawn.
    #[default]
    Keep,
    /// This many times as fast.
    Speed(f64),
    /// As this process has it; recorded times are not used.
    Process(ArrivalProcess),
}

/// A renewal process of arrivals, the first of which is at 0. The rate is in requests per second;
/// an infinite one sends everything at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ArrivalProcess {
    /// Exponential gaps.
    Poisson {
        /// Mean rate.
        per_second: f64,
    },
    /// Gamma-distributed gaps (BurstGPT's model): burstier than Poisson where `cv` is above 1.
    Gamma {
        /// Mean rate.
        per_second: f64,
        /// Standard deviation over mean of the gaps.
        cv: f64,
    },
}

impl ArrivalProcess {
    /// Requests per second.
    #[must_use]
    pub const fn per_second(self) -> f64 {
        match self {
            Self::Poisson { per_second } | Self::Gamma { per_second, .. } => per_second,
        }
    }

    /// The same process at another rate: the same pattern, stretched.
    #[must_use]
    pub const fn at(self, per_second: f64) -> Self {
        match self {
            Self::Poisson { .. } => Self::Poisson { per_second },
            Self::Gamma { cv, .. } => Self::Gamma { per_second, cv },
        }
    }
}

/// Distributions that requests are drawn from. Each has a random stream of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticSpec {
    /// When they arrive.
    pub arrivals: ArrivalProcess,
    /// Prompt tokens, a shared prefix not counted.
    pub input: Lengths,
    /// Generated tokens.
    pub output: Lengths,
    /// Input and output together never exceed this (a shared prefix not counted): the output is
    /// drawn below what the input leaves. A lognormal still has the mean asked for.
    pub max_total: Option<u64>,
    /// Prefixes that requests have in common.
    pub prefix: Option<PrefixSpec>,
    /// Sequences per request.
    pub fan: Option<FanSpec>,
    /// Who sends; nobody in particular where empty.
    pub tenants: Vec<Tenant>,
}

/// Prefixes that requests have in common, such as system prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefixSpec {
    /// How many there are.
    pub count: u64,
    /// Tokens of each; they come before the tokens drawn from the input lengths.
    pub tokens: u64,
    /// Share of the requests that have one, 0 to 1.
    pub share: f64,
    /// Exponent of a Zipf choice among them: 0 is uniform.
    pub zipf: f64,
}

/// Sequences per request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FanSpec {
    /// How a request that fans out does.
    pub fan: crate::Fan,
    /// Share of the requests that do, 0 to 1.
    pub share: f64,
}

/// A sender of requests; its number is its place in the list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tenant {
    /// Its part of the requests, relative to the others'.
    pub weight: f64,
    /// Priority of its requests: lower goes first.
    pub priority: i32,
}

impl WorkloadSpec {
    /// A trace as recorded, its format recognised by the first line.
    #[must_use]
    pub fn trace() -> Self {
        Self {
            source: WorkloadSource::Trace(TraceSpec::default()),
            shaping: Shaping::default(),
            seed: 0,
        }
    }

    /// Requests drawn from distributions.
    #[must_use]
    pub fn synthetic(spec: SyntheticSpec) -> Self {
        Self {
            source: WorkloadSource::Synthetic(spec),
            shaping: Shaping::default(),
            seed: 0,
        }
    }

    /// The same at a rate in requests per second: its own process if it has one, with the same
    /// pattern of gaps stretched, and Poisson in place of recorded times.
    #[must_use]
    pub fn at_rate(mut self, per_second: f64) -> Self {
        let poisson = ArrivalProcess::Poisson { per_second };
        match (&mut self.shaping.retime, &mut self.source) {
            (Retime::Process(p), _) => *p = p.at(per_second),
            (retime, WorkloadSource::Trace(_)) => *retime = Retime::Process(poisson),
            (retime, WorkloadSource::Synthetic(s)) => {
                *retime = Retime::Keep;
                s.arrivals = s.arrivals.at(per_second);
            }
        }
        self
    }

    /// Whether it needs an input to read.
    #[must_use]
    pub const fn needs_source(&self) -> bool {
        matches!(self.source, WorkloadSource::Trace(_))
    }

    /// Starts the workload. `source` is the trace, for a spec that needs one.
    ///
    /// Memory does not grow with the length of the trace, except that a repeated one is held (see
    /// [`Repeat`]).
    ///
    /// # Errors
    /// [`WorkloadError::BadSpec`] where the spec makes no sense; `NoSource` and `UnusedSource`;
    /// and what the first line of a trace shows to be wrong. Later lines err when they are read.
    pub fn open(&self, source: Option<Box<dyn BufRead + Send>>) -> Result<Workload, WorkloadError> {
        let clock = match self.shaping.retime {
            Retime::Process(process) => Some(Clock::new(process, self.seed)?),
            Retime::Keep | Retime::Speed(_) => None,
        };
        let requests = match (&self.source, source) {
            (WorkloadSource::Trace(_), None) => return Err(WorkloadError::NoSource),
            (WorkloadSource::Synthetic(_), Some(_)) => return Err(WorkloadError::UnusedSource),
            (WorkloadSource::Trace(spec), Some(source)) => {
                if spec.block_tokens == 0 {
                    return Err(bad("block_tokens", "0: a block holds at least 1 token"));
                }
                super::Requests::Trace(Box::new(Trace::open(spec, clock.is_none(), source)?))
            }
            (WorkloadSource::Synthetic(spec), None) => {
                super::Requests::Synthetic(Box::new(Synthetic::new(spec, self.seed)?))
            }
        };
        Ok(Workload::new(Pipeline::new(
            requests,
            &self.shaping,
            clock,
        )?))
    }
}
