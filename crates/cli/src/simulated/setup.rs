//! What a run rests on, in words: [`Seen`] and the wire form's `Setup`.

use plimsoll_report::simulation::{Named, Setup, SloBounds};
use plimsoll_report::thousands;
use plimsoll_schedule::Rates;
use plimsoll_simulate::{Arrival, Slo};
use plimsoll_units::Nanos;

use super::{Prepared, RateChanges, Traffic};
use crate::error::Failure;

/// The requests that a server was given, in sums.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    last: Nanos,
}

impl Seen {
    pub(super) fn add(&mut self, a: &Arrival) {
        self.requests += 1;
        self.prompt_tokens = self.prompt_tokens.saturating_add(a.prompt_tokens);
        self.output_tokens = self.output_tokens.saturating_add(a.output_tokens);
        self.last = a.at;
    }

    /// Tokens of all prompts and answers.
    pub(crate) fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.output_tokens)
    }

    /// How long they were.
    pub(crate) fn lengths(&self) -> String {
        let n = self.requests;
        let mean = |tokens: u64| thousands(tokens.saturating_add(n / 2) / n.max(1));
        format!(
            "prompts of {} and answers of {} tokens on average",
            mean(self.prompt_tokens),
            mean(self.output_tokens)
        )
    }

    /// How fast they came and how long they were.
    fn words(&self) -> String {
        let n = self.requests;
        // The first one arrives at 0.
        let span_s = self.last.0 as f64 / 1e9;
        let rate = (n.saturating_sub(1)) as f64 / span_s;
        let arrivals = match rate {
            _ if n <= 1 => String::new(),
            r if r >= 1e6 => ", all at once".to_owned(),
            r if r >= 1000.0 => format!(", {} per second", thousands(r.round() as u64)),
            r if r >= 1.0 => format!(", {r:.2} per second"),
            r if r >= 0.001 => format!(", {r:.4} per second"),
            _ => format!(", one in {} s", thousands((1.0 / rate).round() as u64)),
        };
        format!("{arrivals}; {}", self.lengths())
    }
}

pub(super) fn named(name: &str, value: impl Into<String>) -> Named {
    Named {
        name: name.to_owned(),
        value: value.into(),
    }
}

/// The wire form of a service level.
pub(crate) fn bounds(slo: &Slo) -> SloBounds {
    let seconds = |ns: Nanos| ns.0 as f64 / 1e9;
    SloBounds {
        ttft_s: slo.ttft.map(seconds),
        per_token_s: slo.per_token.map(seconds),
        attain: slo.attain,
    }
}

impl Prepared {
    /// The requests of `traffic`, without serving them.
    pub(crate) fn survey(&self, traffic: &Traffic) -> Result<Seen, Failure> {
        let mut seen = Seen::default();
        for arrival in traffic.open(u64::from(self.max_model_len))? {
            seen.add(&arrival.map_err(|e| traffic.failure(&e))?);
        }
        Ok(seen)
    }

    /// What was simulated: `model` by name, given the requests of `traffic` that were `seen`.
    pub(crate) fn setup(
        &self,
        model: &str,
        traffic: &Traffic,
        seen: &Seen,
        slo: Option<Slo>,
    ) -> Setup {
        let case = &self.case;
        let workload = format!(
            "{} {} of {}{}",
            thousands(seen.requests),
            if seen.requests == 1 {
                "request"
            } else {
                "requests"
            },
            traffic.name,
            seen.words()
        );
        let mut costs = rates(&self.truth.rates, "");
        costs.extend([
            ("weight_bytes".to_owned(), self.truth.work.weight_bytes),
            ("token_flops".to_owned(), self.truth.work.token_flops),
        ]);
        if self.belief != self.truth {
            costs.extend(rates(&self.belief.rates, "believed "));
        }
        Setup {
            model: model.to_owned(),
            device: case.devices(),
            kv_bytes: self.pool.get(),
            swap_bytes: case.swap_space.get(),
            max_batched_tokens: case.max_num_batched_tokens,
            max_sequences: u64::from(case.max_num_seqs),
            seed: traffic.spec.seed,
            workload,
            requests: seen.requests,
            costs: costs
                .iter()
                .map(|(name, value)| named(name, thousands(*value)))
                .collect(),
            slo: slo.map(|s| bounds(&s)),
            modelled: [
                "The scheduler and the block manager of the paged run are the ones that serve; their \
                 decisions are real.",
                "A step takes the larger of streaming the weights and computing linear layers, plus \
                 attention, copies, transfers and fixed costs, one after the other.",
                &self.rates_words(),
                "Contiguous servers reserve as the paper's baselines do; none of them splits prompts or \
                 preempts.",
            ]
            .map(str::to_owned)
            .to_vec(),
            not_modelled: [
                "What a model says: answers end where the workload says, whatever was generated.",
                "Collectives between tensor-parallel devices, and kernels' efficiency at small sizes.",
                "Tokenising, the network, and clients that go away.",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }

    /// Where the rates come from, as a sentence.
    fn rates_words(&self) -> String {
        let case = &self.case;
        let base = match &case.profile {
            Some(measured) => format!("Rates are {}", measured.words),
            None => "Rates are 55 % of the device's dense 16-bit operations and 80 % of its memory bandwidth, and 25 \
                     GB/s to host memory"
                .to_owned(),
        };
        let given = if case.rates == RateChanges::default() {
            ""
        } else {
            ", but for those given"
        };
        let believed = if self.belief == self.truth {
            ""
        } else {
            "; the scheduler believes others"
        };
        format!("{base}{given}{believed}.")
    }
}

/// Rates by name.
fn rates(r: &Rates, before: &str) -> Vec<(String, u64)> {
    let all = [
        ("flops_per_s", r.flops_per_s),
        ("memory_bytes_per_s", r.memory_bytes_per_s),
        ("link_bytes_per_s", r.link_bytes_per_s),
        ("transfer_ns", r.transfer_ns),
        ("transfers_per_block", r.transfers_per_block),
        ("step_ns", r.step_ns),
        ("row_ns", r.row_ns),
    ];
    all.into_iter()
        .map(|(name, value)| (format!("{before}{name}"), value))
        .collect()
}
