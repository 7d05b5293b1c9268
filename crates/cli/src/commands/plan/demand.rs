//! [`Demand`]: what a workload asks of a plan: its requests, and how long they are.

use plimsoll_model::ModelSpec;
use plimsoll_plan::Load;
use plimsoll_plan::kv::Lengths;
use plimsoll_report::{Fleets, Replay, Workload, quoted};
use plimsoll_simulate::workload::LengthMix;

use crate::args::{PlanArgs, WorkloadArgs};
use crate::error::{Exit, Failure};
use crate::simulated::{MODEL_LEN_UNKNOWN, Traffic};

/// Requests whose lengths are drawn from a workload that has no end.
const DRAWN: u64 = 20_000;
/// Classes of equally many requests that stand for the lengths of all.
const CLASSES: u64 = 16;
/// Requests of a replay unless told.
const REPLAYED: u64 = 2000;
/// With a rate there are as many as come in this time, for the longest answers to pile up and queues to grow, ...
const REPLAYED_S: f64 = 600.0;
/// ... but no more than this.
const REPLAYED_MAX: u64 = 20_000;
/// Arrivals per second that are all at once.
const AT_ONCE: f64 = 1e9;

/// A workload whose lengths were read.
pub(super) struct Demand<'a> {
    args: &'a WorkloadArgs,
    traffic: Traffic,
    mix: LengthMix,
    /// Requests cut to the longest that the model takes.
    clamped: u64,
}

impl<'a> Demand<'a> {
    /// Reads the workload of the command line once; `None` where it names none.
    pub(super) fn read(args: &'a PlanArgs, spec: &ModelSpec) -> Result<Option<Self>, Failure> {
        let typed = &args.workload;
        let mut traffic = match (&typed.workload, &typed.trace) {
            (Some(text), _) => Traffic::synthetic(text)?,
            (None, Some(path)) => Traffic::trace(path),
            (None, None) => return Ok(None),
        }
        .seeded(typed.seed);
        traffic.hold()?;
        let mut all = traffic.clone().at_rate(AT_ONCE)?;
        if typed.workload.is_some() {
            all = all.limited(DRAWN);
        }
        let longest = args.engine.max_model_len.or(spec.max_context);
        let mut mix = LengthMix::default();
        let mut arrivals = all.open(longest.unwrap_or(MODEL_LEN_UNKNOWN))?;
        for arrival in arrivals.by_ref() {
            mix.add(&arrival.map_err(|e| traffic.failure(&e))?);
        }
        if mix.requests() == 0 {
            return Err(Failure::new(
                Exit::Corrupt,
                "E-SIM-010",
                format!("{}: no request was read", traffic.name),
            )
            .hint("give a workload with at least one request"));
        }
        Ok(Some(Self {
            args: typed,
            traffic,
            mix,
            clamped: arrivals.notes().clamped,
        }))
    }

    /// The load of `users` such requests, each at its end.
    pub(super) fn load(&self, users: Option<u64>) -> Load {
        let context = self.mix.longest();
        let sequences = u64::from(self.mix.sequences());
        Load {
            sequences,
            prompt: if sequences > 1 {
                // Sequences of one request share its prompt.
                (self.mix.prompt_mean().round() as u64).clamp(1, context)
            } else {
                context
            },
            ..Load::plain(users.unwrap_or(1), context)
        }
    }

    /// The lengths and their shares.
    pub(super) fn lengths(&self) -> Lengths {
        let all = self.mix.requests() as f64;
        let lengths = self.mix.lengths(CLASSES).into_iter();
        lengths
            .map(|(length, n)| (length, n as f64 / all))
            .collect()
    }

    /// Tokens of the longest request.
    pub(super) fn longest(&self) -> u64 {
        self.mix.longest()
    }

    /// Requests cut to the longest that the model takes.
    pub(super) fn clamped(&self) -> u64 {
        self.clamped
    }

    /// Whether prompts have parts in common, which the lengths do not tell.
    pub(super) fn shared(&self) -> bool {
        self.mix.shared()
    }

    /// Requests of a replay.
    pub(super) fn requests(&self) -> u64 {
        match (self.args.requests, self.args.rate) {
            (Some(n), _) => n,
            (None, Some(rate)) => ((rate * REPLAYED_S).ceil() as u64).clamp(REPLAYED, REPLAYED_MAX),
            (None, None) => REPLAYED.min(self.mix.requests()),
        }
    }

    /// The requests of a replay: at the rate asked for, or all at once.
    pub(super) fn traffic(&self) -> Result<Traffic, Failure> {
        let n = self.requests();
        self.at(self.args.rate.unwrap_or(AT_ONCE), n)
    }

    /// Requests that come all at once and show how many per second a server carries.
    pub(super) fn crowd(&self) -> Result<Traffic, Failure> {
        self.at(AT_ONCE, self.requests().min(REPLAYED))
    }

    fn at(&self, rate: f64, n: u64) -> Result<Traffic, Failure> {
        Ok(self.traffic.clone().at_rate(rate)?.limited(n))
    }

    /// The flags by which `simulate` is given the requests of a replay.
    pub(super) fn flags(&self) -> String {
        let source = match &self.args.trace {
            Some(path) => format!("--trace {}", quoted(&path.display().to_string())),
            None => format!("--workload {}", quoted(&self.traffic.name)),
        };
        let rate = self.args.rate.unwrap_or(AT_ONCE);
        let seed = match self.args.seed {
            0 => String::new(),
            n => format!(" --seed {n}"),
        };
        format!(
            "{source} --rate {rate} --requests {}{seed}",
            self.requests()
        )
    }

    pub(super) fn rate(&self) -> Option<f64> {
        self.args.rate
    }

    pub(super) fn has_slo(&self) -> bool {
        self.args.slo.is_some()
    }

    pub(super) fn seed(&self) -> u64 {
        self.args.seed
    }

    pub(super) fn wire(&self, replay: Option<Replay>, fleets: Option<Fleets>) -> Workload {
        Workload {
            name: self.traffic.name.clone(),
            requests: self.mix.requests(),
            prompt_tokens_mean: self.mix.prompt_mean(),
            output_tokens_mean: self.mix.output_mean(),
            longest_tokens: self.mix.longest(),
            replay,
            fleets,
        }
    }
}
