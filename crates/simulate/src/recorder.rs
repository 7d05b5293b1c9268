//! [`Recorder`]: the [`Sink`] that turns a run into figures, in memory that does not grow with it.
//!
//! Means are weighted by time, over the whole window, over *busy* time (something runs) and over
//! *saturated* time (something waits or was preempted). Saturation is what Kwon et al. (SOSP 2023,
//! figure 2) measure: a share of live tokens says nothing of an allocator that nobody asks for more.
//!
//! **The window.** Warm-up and cool-down are cut by `from` and `to`. Means, steps, preemptions,
//! tokens and refusals count by when they happened. Throughput counts requests by when they ended;
//! latency by when they *arrived*, so that slow requests are not left out because they end late. The
//! series covers the whole run.

mod series;
mod spread;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use plimsoll_units::Nanos;

pub use self::series::{Bucket, Counts, FIELDS, Field, Series, Weighted, fields};
pub use self::spread::Spread;
pub use self::wire::RunFacts;
use crate::record::{Finished, Sink, State};

/// Buckets of the series unless told.
pub const BUCKETS: usize = 400;

/// First width of a bucket, in nanoseconds: one millisecond, shorter than any step.
const FIRST_WIDTH: u64 = 1_000_000;

/// What to record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecorderConfig {
    /// Where warm-up ends.
    pub from: Nanos,
    /// Where cool-down begins; `None` for the end of the run.
    pub to: Option<Nanos>,
    /// Most buckets of the series.
    pub buckets: usize,
    /// What a request must keep to count as good.
    pub slo: Option<Slo>,
}

impl Default for RecorderConfig {
    fn default() -> Self {
        Self {
            from: Nanos(0),
            to: None,
            buckets: BUCKETS,
            slo: None,
        }
    }
}

/// A service level: what bounds there are must hold, for a share of the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slo {
    /// Longest time to the first token.
    pub ttft: Option<Nanos>,
    /// Longest mean gap between a request's tokens after the first.
    pub per_token: Option<Nanos>,
    /// Share of the requests that must keep it, of 1.
    pub attain: f64,
}

impl Slo {
    /// Whether `f` keeps it.
    #[must_use]
    pub fn kept(&self, f: &Finished) -> bool {
        self.kept_ttft(f) && self.kept_per_token(f)
    }

    /// Whether the first token of `f` came in time.
    #[must_use]
    pub fn kept_ttft(&self, f: &Finished) -> bool {
        let wait = f.first_token.0.saturating_sub(f.arrived.0);
        self.ttft.is_none_or(|most| wait <= most.0)
    }

    /// Whether the later tokens of `f` came in time.
    #[must_use]
    pub fn kept_per_token(&self, f: &Finished) -> bool {
        let decode = u128::from(f.ended.0.saturating_sub(f.first_token.0));
        let gaps = u128::from(f.longest_output.saturating_sub(1));
        self.per_token
            .is_none_or(|most| decode <= u128::from(most.0) * gaps)
    }

    /// Whether `good` requests of `all` are enough.
    #[must_use]
    pub fn attained(&self, good: u64, all: u64) -> bool {
        // A share written in decimals is not exact in binary.
        good as f64 >= self.attain * all as f64 * (1.0 - 1e-12)
    }
}

/// Figures of one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tenant {
    finished: u64,
    output_tokens: u64,
    good: u64,
    /// Finished requests that arrived in the window, and their times added up, in nanoseconds.
    measured: u64,
    ttft: u128,
    ttft_max: u64,
    e2e: u128,
}

/// Turns a run into figures.
#[derive(Clone, Debug)]
pub struct Recorder {
    config: RecorderConfig,
    /// When the first state was told.
    start: Option<Nanos>,
    /// When `current` began to hold.
    now: Nanos,
    current: State,
    whole: Weighted,
    busy: Weighted,
    saturated: Weighted,
    series: Series,
    ttft: Spread,
    gaps: Spread,
    e2e: Spread,
    /// End-to-end over longest output, nanoseconds per token.
    normalised: Spread,
    counts: Counts,
    saturated_steps: u64,
    finished: u64,
    output_tokens: u64,
    good: u64,
    refused: u64,
    cancelled: u64,
    reasons: BTreeMap<String, u64>,
    tenants: BTreeMap<u32, Tenant>,
    pages_peak: Option<u64>,
    slots_peak: u64,
}

impl Recorder {
    /// A recorder that has seen nothing.
    #[must_use]
    pub fn new(config: RecorderConfig) -> Self {
        Self {
            config,
            start: None,
            now: Nanos(0),
            current: State::default(),
            whole: Weighted::default(),
            busy: Weighted::default(),
            saturated: Weighted::default(),
            series: Series::new(config.buckets, FIRST_WIDTH),
            ttft: Spread::default(),
            gaps: Spread::default(),
            e2e: Spread::default(),
            normalised: Spread::default(),
            counts: Counts::default(),
            saturated_steps: 0,
            finished: 0,
            output_tokens: 0,
            good: 0,
            refused: 0,
            cancelled: 0,
            reasons: BTreeMap::new(),
            tenants: BTreeMap::new(),
            pages_peak: None,
            slots_peak: 0,
        }
    }

    /// Names why a request was refused; call it beside [`Sink::refused`].
    pub fn reason(&mut self, at: Nanos, reason: &str) {
        if self.inside(at) {
            *self.reasons.entry(reason.to_owned()).or_default() += 1;
        }
    }

    /// A client went away at `at`.
    pub fn cancelled(&mut self, at: Nanos) {
        self.cancelled += u64::from(self.inside(at));
    }

    /// Ends the run at `at`: what holds now held until then.
    pub fn finish(&mut self, at: Nanos) {
        self.advance(at);
    }

    /// Share of live tokens in the pool while something waits; `None` where nothing ever did.
    #[must_use]
    pub fn live_share_at_saturation(&self) -> Option<f64> {
        let all = self.saturated.slots();
        (all > 0).then(|| self.saturated.sums[Field::TokenStates as usize] as f64 / all as f64)
    }

    /// The window's states added up: over all of it, while busy, while saturated.
    #[must_use]
    pub fn weighted(&self) -> [&Weighted; 3] {
        [&self.whole, &self.busy, &self.saturated]
    }

    /// The run over time.
    #[must_use]
    pub fn series(&self) -> &Series {
        &self.series
    }

    fn inside(&self, at: Nanos) -> bool {
        at >= self.config.from && self.config.to.is_none_or(|to| at < to)
    }

    /// What holds now held until `at`. Time that runs backwards stands still.
    fn advance(&mut self, at: Nanos) {
        let (from, to) = (self.now.0, at.0.max(self.now.0));
        self.now = Nanos(to);
        if self.start.is_none() || from == to {
            return;
        }
        let values = fields(&self.current);
        self.series.add(from, to, &values);
        let held = values[..Field::Cached as usize]
            .iter()
            .fold(0, |a: u64, v| a.saturating_add(*v));
        self.slots_peak = self.slots_peak.max(held);
        let start = from.max(self.config.from.0);
        let end = self.config.to.map_or(to, |t| to.min(t.0));
        let time = end.saturating_sub(start);
        if time == 0 {
            return;
        }
        self.whole.add(time, &values);
        if self.current.running > 0 || self.current.batch > 0 {
            self.busy.add(time, &values);
        }
        if saturated(&self.current) {
            self.saturated.add(time, &values);
        }
    }
}

impl Sink for Recorder {
    fn state(&mut self, at: Nanos, state: &State) {
        if self.start.is_none() {
            self.start = Some(at);
            self.now = at;
        }
        self.advance(at);
        self.current = *state;
    }

    fn token(&mut self, gap: Nanos) {
        if self.inside(self.now) {
            self.gaps.add(gap.0);
        }
    }

    fn finished(&mut self, f: &Finished) {
        if self.inside(f.arrived) {
            let e2e = f.ended.0.saturating_sub(f.arrived.0);
            let ttft = f.first_token.0.saturating_sub(f.arrived.0);
            self.ttft.add(ttft);
            self.e2e.add(e2e);
            let tenant = self.tenants.entry(f.tenant).or_default();
            tenant.measured += 1;
            tenant.ttft += u128::from(ttft);
            tenant.ttft_max = tenant.ttft_max.max(ttft);
            tenant.e2e += u128::from(e2e);
            self.normalised.add(e2e / f.longest_output.max(1));
        }
        if self.inside(f.ended) {
            let good = u64::from(self.config.slo.is_some_and(|s| s.kept(f)));
            self.finished += 1;
            self.output_tokens = self.output_tokens.saturating_add(f.output_tokens);
            self.good += good;
            let tenant = self.tenants.entry(f.tenant).or_default();
            tenant.finished += 1;
            tenant.output_tokens = tenant.output_tokens.saturating_add(f.output_tokens);
            tenant.good += good;
        }
    }

    fn refused(&mut self, at: Nanos) {
        self.refused += u64::from(self.inside(at));
    }

    fn count(&mut self, at: Nanos, counts: &Counts) {
        self.series.count(at.0, counts);
        if !self.inside(at) {
            return;
        }
        self.counts.add(counts);
        if saturated(&self.current) {
            self.saturated_steps = self.saturated_steps.saturating_add(counts.steps);
        }
    }

    fn pages(&mut self, held: u64) {
        self.pages_peak = Some(self.pages_peak.unwrap_or(0).max(held));
    }
}

/// Whether something waits for memory.
fn saturated(s: &State) -> bool {
    s.waiting > 0 || s.preempted > 0
}
