//! What the PagedAttention paper prints of contiguous allocation, beside what comes out here.
//!
//! [`facts`] are exact: slots of a pool, chunks that fit. [`contiguous_rows`] are one fit and its
//! predictions. The paper gives mean lengths, not their spread, so **one** parameter is fitted: the
//! coefficient of variation of output lengths, to **one** figure, the share of token states of Orca
//! (Max) on ShareGPT. A running request is seen in proportion to the steps it takes, so it has
//! `E[prompt × output] / E[output] + E[output²] / (2 E[output])` live tokens on average, whatever
//! the clock; seven of them must be 20.4 % of 15,728 slots. Everything else is predicted by
//! simulation, the Alpaca rows with ShareGPT's spread.
//!
//! Lengths are lognormal, a prompt's independent of its output's; what exceeds the maximum length
//! in sum is left out, and the means are those of what remains. Arrivals are Poisson.
//!
//! Two predictions miss, and nothing was tuned to hide it:
//!
//! - Orca (Pow2) loses less to external fragmentation than in the paper. An output of more than half
//!   the maximum length reserves the maximum, a chunk of its own size, and the allocator rounds nothing
//!   up; how many of these run, neither the means nor the fitted figure tell. [`shape_rows`] fits other
//!   [`Shape`]s of output lengths to the same figure: the paper lies among them.
//! - Orca (Oracle) on Alpaca runs fewer requests: our steps are so short that the load needs no more.
//!   [`Row::overloaded_batch`] was added after the miss was seen, to tell time from memory.
//!
//! Source: Kwon et al. (SOSP 2023), table 1, figures 2, 11 and 13, section 6.1.

mod lengths;
mod ours;

use std::convert::Infallible;
use std::fmt::Write as _;

use plimsoll_model::{Assume, ModelError, ModelSpec, ShardError, catalogue};
use plimsoll_program::{KvRules, Parallel, PoolGeometry};
use plimsoll_schedule::{CostModel, Rates, Work};
use plimsoll_units::{Bytes, DType, Nanos, SizeOverflow};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Exp1};

use crate::arrival::{Arrival, Content, Fan};
use crate::contiguous::buddy::Buddy;
use crate::contiguous::{self, Config, Reservation, RunError, Server};
use crate::record::{Finished, Sink, Slots, State};

pub use lengths::{Lengths, Shape};
pub use ours::{Hour, page, paged};

/// Longest sequence of an OPT model, in tokens.
pub const MAX_TOKENS: u64 = 2048;

/// Spread of prompt lengths over their mean, ShareGPT and Alpaca alike. The paper prints none; this
/// is that of the conversation trace of Azure 2023 (standard deviation 1108.79, mean 1154.70).
pub const PROMPT_CV: f64 = 1108.79 / 1154.70;

/// Share of token states that the one parameter is fitted to: Orca (Max), figure 2.
const FITTED_SHARE: f64 = 0.204;

/// One hour, as long as the paper's traces.
pub(crate) const HOUR: Nanos = Nanos(3_600_000_000_000);

/// Seeds of the hours that a row is the mean of. One hour of Orca (Max) ends some 3,000 requests, and
/// hours differ by about half a point of share and 2 % of batch.
pub(crate) const SEEDS: [u64; 4] = [1, 2, 3, 4];

/// Draws by which long outputs are counted.
const LONG_DRAWS: u64 = 100_000;

/// What the paper prints of two servers on ShareGPT: shares, as in [`Outcome`], and batched requests.
const PAPER_POW2: ([f64; 4], f64) = ([26.8, 17.9, 13.6, 41.6], 9.81);
const PAPER_ORACLE: ([f64; 4], f64) = ([38.2, 25.2, 0.0, 36.6], 13.62);

/// Percent of the time below which a server does not count as saturated.
const SATURATED: f64 = 95.0;

/// How many times the paper's rate shows what memory alone allows.
pub const OVERLOAD: f64 = 2.0;

/// Why a row cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum PaperError {
    /// The catalogue lacks what the paper used.
    #[error("{0} is not in the catalogue")]
    Missing(&'static str),
    /// The model's config does not lower.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model does not split.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A size is absurd.
    #[error(transparent)]
    Size(#[from] SizeOverflow),
    /// The simulation stopped.
    #[error(transparent)]
    Run(#[from] RunError<Infallible>),
    /// Our own simulation stopped.
    #[error(transparent)]
    Paged(#[from] crate::paged::RunError<Infallible>),
}

/// One exact figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// What it is.
    pub what: &'static str,
    /// As the paper prints it.
    pub paper: &'static str,
    /// As it comes out here.
    pub ours: String,
    /// What explains a difference; empty for none.
    pub note: &'static str,
}

/// Figures that follow from shapes and sizes alone: slots of table 1, chunks of Orca (Max).
///
/// # Errors
/// [`PaperError`] where the catalogue lacks a model.
pub fn facts() -> Result<Vec<Fact>, PaperError> {
    let mut rows = Vec::new();
    for (name, what, gib, paper, note) in [
        ("opt-13b", "slots, OPT-13B, 12 GiB", 12, "15.7K", ""),
        (
            "opt-66b",
            "slots, OPT-66B, 21 GiB",
            21,
            "9.7K",
            "the paper's 21 is rounded down: 9.7K slots take 21.3 GiB",
        ),
        ("opt-175b", "slots, OPT-175B, 264 GiB", 264, "60.1K", ""),
    ] {
        rows.push(Fact {
            what,
            paper,
            ours: slots(name, gib)?.to_string(),
            note,
        });
    }
    let pool = slots("opt-13b", 12)?;
    let chunks = Buddy::capacity(pool, MAX_TOKENS);
    rows.push(Fact {
        what: "chunks of Orca (Max), OPT-13B",
        paper: "7.00",
        ours: chunks.to_string(),
        note: "",
    });
    rows.push(Fact {
        what: "external share of Orca (Max), %",
        paper: "8.9",
        ours: format!("{:.2}", percent(pool - chunks * MAX_TOKENS, pool)),
        note: "",
    });
    Ok(rows)
}

/// Means of a data set (figure 11) and the load it is sent at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dataset {
    /// Its name.
    pub name: &'static str,
    /// Mean prompt, in tokens.
    pub prompt_mean: f64,
    /// Mean output, in tokens.
    pub output_mean: f64,
    /// Requests per second in figure 13.
    pub rate: f64,
}

/// ShareGPT: conversations.
pub const SHAREGPT: Dataset = Dataset {
    name: "ShareGPT",
    prompt_mean: 161.31,
    output_mean: 337.99,
    rate: 2.0,
};

/// Alpaca: instructions.
pub const ALPACA: Dataset = Dataset {
    name: "Alpaca",
    prompt_mean: 19.31,
    output_mean: 58.45,
    rate: 30.0,
};

/// What a simulated hour came to, averaged over its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Token states, reserved, internal, and external with free, in percent of the pool.
    pub shares: [f64; 4],
    /// Sequences that ran.
    pub batch: f64,
    /// Percent of the time in which requests waited. Below 100 the batch is what the load asks for,
    /// and free slots are not all lost.
    pub saturated: f64,
}

impl Outcome {
    pub(crate) fn mean(hours: &[Self]) -> Self {
        let n = float(hours.len().max(1) as u64);
        let mean = |f: &dyn Fn(&Self) -> f64| hours.iter().map(f).sum::<f64>() / n;
        Self {
            shares: [0, 1, 2, 3].map(|i| mean(&|h| h.shares[i])),
            batch: mean(&|h| h.batch),
            saturated: mean(&|h| h.saturated),
        }
    }
}

/// A row of figure 2 or 13 beside its prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Which data set.
    pub dataset: &'static str,
    /// Which server.
    pub reservation: Reservation,
    /// Shares that figure 2 prints (ShareGPT only).
    pub paper_shares: Option<[f64; 4]>,
    /// Batched requests that figure 13 prints.
    pub paper_batch: f64,
    /// Ours, the mean of a few hours that differ by their seed.
    pub ours: Outcome,
    /// Where ours was not saturated: our batch at [`OVERLOAD`] times the rate, which memory alone
    /// decides.
    pub overloaded_batch: Option<f64>,
}

/// The fit and its predictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Width of the logarithm of output lengths, the one fitted parameter.
    pub output_width: f64,
    /// ShareGPT, then Alpaca.
    pub rows: Vec<Row>,
}

/// Figures 2 and 13 as far as they are about contiguous allocation: OPT-13B on an A100-40GB, one
/// simulated hour each.
///
/// # Errors
/// [`PaperError`].
pub fn contiguous_rows() -> Result<Rows, PaperError> {
    use Reservation::{Max, Oracle, Pow2};
    let output_width = fit(Shape::Lognormal)?;
    let cost = opt_13b_on_a100()?;
    let mut rows = Vec::new();
    for (dataset, reservation, paper_shares, paper_batch) in [
        (SHAREGPT, Max, Some([20.4, 13.3, 57.3, 8.9]), 7.00),
        (SHAREGPT, Pow2, Some(PAPER_POW2.0), PAPER_POW2.1),
        (SHAREGPT, Oracle, Some(PAPER_ORACLE.0), PAPER_ORACLE.1),
        (ALPACA, Max, None, 7.00),
        (ALPACA, Pow2, None, 43.24),
        (ALPACA, Oracle, None, 72.75),
    ] {
        let lengths = Lengths::new(&dataset, PROMPT_CV, Shape::Lognormal, output_width);
        let hours = |rate: f64| hours(&lengths, rate, reservation, &cost);
        let ours = hours(dataset.rate)?;
        let overloaded_batch = if ours.saturated < SATURATED {
            Some(hours(OVERLOAD * dataset.rate)?.batch)
        } else {
            None
        };
        rows.push(Row {
            dataset: dataset.name,
            reservation,
            paper_shares,
            paper_batch,
            ours,
            overloaded_batch,
        });
    }
    Ok(Rows { output_width, rows })
}

/// Orca on ShareGPT with outputs of another shape, fitted to the same figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShapeRow {
    /// Which shape.
    pub shape: Shape,
    /// Percent of the requests running at any time whose outputs are longer than half the maximum length.
    pub long: f64,
    /// Under Orca (Pow2).
    pub pow2: Outcome,
    /// Under Orca (Oracle).
    pub oracle: Outcome,
}

/// What the two figures that follow from reservations would be, had outputs another shape.
///
/// # Errors
/// [`PaperError`].
pub fn shape_rows() -> Result<Vec<ShapeRow>, PaperError> {
    let cost = opt_13b_on_a100()?;
    let row = |shape| {
        let lengths = Lengths::new(&SHAREGPT, PROMPT_CV, shape, fit(shape)?);
        let outcome = |reservation| hours(&lengths, SHAREGPT.rate, reservation, &cost);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        // A request runs for as many steps as its output has tokens.
        let (mut long, mut all) = (0, 0);
        for _ in 0..LONG_DRAWS {
            let (_, output) = lengths.sample(&mut rng);
            all += output;
            long += if output > MAX_TOKENS / 2 { output } else { 0 };
        }
        Ok(ShapeRow {
            shape,
            long: percent(long, all),
            pow2: outcome(Reservation::Pow2)?,
            oracle: outcome(Reservation::Oracle)?,
        })
    };
    [Shape::Lognormal, Shape::Weibull, Shape::Power]
        .into_iter()
        .map(row)
        .collect()
}

/// A Markdown table of the shapes; the paper last.
#[must_use]
pub fn shapes_markdown(rows: &[ShapeRow]) -> String {
    let mut out = format!(
        "| outputs | running, above {} tokens % | Pow2 batch | Pow2 external % | Oracle batch | Oracle external % |\n\
         |---|--:|--:|--:|--:|--:|\n",
        MAX_TOKENS / 2
    );
    for r in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {:?} | {:.1} | {:.2} | {:.1} | {:.2} | {:.1} |",
            r.shape, r.long, r.pow2.batch, r.pow2.shares[3], r.oracle.batch, r.oracle.shares[3]
        );
    }
    let ((pow2, pow2_batch), (oracle, oracle_batch)) = (PAPER_POW2, PAPER_ORACLE);
    let _ = writeln!(
        out,
        "| the paper's | | {pow2_batch:.2} | {:.1} | {oracle_batch:.2} | {:.1} |",
        pow2[3], oracle[3]
    );
    out
}

impl Rows {
    /// The fit as a coefficient of variation.
    #[must_use]
    pub fn output_cv(&self) -> f64 {
        (self.output_width * self.output_width).exp_m1().sqrt()
    }

    /// A Markdown table: ours, and the paper's in brackets.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| data set | Orca | batch | ratio | token states % | reserved % | internal % | external % | saturated % | batch, overloaded |\n\
             |---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for r in &self.rows {
            let (name, o) = (r.dataset, &r.ours);
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "| {name} | {:?} | {:.2} ({:.2}) | {:.2} ",
                r.reservation,
                o.batch,
                r.paper_batch,
                o.batch / r.paper_batch
            );
            for (i, share) in o.shares.iter().enumerate() {
                let _ = match r.paper_shares {
                    Some(p) => write!(out, "| {share:.1} ({:.1}) ", p[i]),
                    None => write!(out, "| {share:.1} "),
                };
            }
            let overloaded = r.overloaded_batch.map(|b| format!("{b:.2} "));
            let _ = writeln!(
                out,
                "| {:.0} | {}|",
                o.saturated,
                overloaded.unwrap_or_default()
            );
        }
        out
    }
}

/// A Markdown table of exact figures.
#[must_use]
pub fn facts_markdown(facts: &[Fact]) -> String {
    let mut out = String::from("| figure | paper | ours | note |\n|---|--:|--:|---|\n");
    for f in facts {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} |",
            f.what, f.paper, f.ours, f.note
        );
    }
    out
}

/// The width of the logarithm of output lengths at which Orca (Max) on ShareGPT has the paper's share of
/// token states. By bisection: live tokens grow with the width.
///
/// # Errors
/// [`PaperError`] where the catalogue lacks OPT-13B.
pub fn fit(shape: Shape) -> Result<f64, PaperError> {
    let pool = slots("opt-13b", 12)?;
    let live = FITTED_SHARE * float(pool) / float(Buddy::capacity(pool, MAX_TOKENS));
    let (mut low, mut high) = (0.1, 4.0);
    for _ in 0..30 {
        let middle = f64::midpoint(low, high);
        if Lengths::new(&SHAREGPT, PROMPT_CV, shape, middle).live_mean() < live {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(f64::midpoint(low, high))
}

/// The cost model of the paper's first column: OPT-13B on one A100-40GB, at the catalogue's rates.
///
/// # Errors
/// [`PaperError`] where a catalogue lacks either.
pub fn opt_13b_on_a100() -> Result<CostModel, PaperError> {
    let (spec, geometry) = opt("opt-13b")?;
    let rates = plimsoll_device::find("a100-40g").and_then(Rates::of);
    Ok(CostModel {
        work: Work::new(&spec, &geometry, 1)?,
        rates: rates.ok_or(PaperError::Missing("a100-40g"))?,
    })
}

pub(crate) fn opt(name: &'static str) -> Result<(ModelSpec, PoolGeometry), PaperError> {
    let entry = catalogue::find(name).ok_or(PaperError::Missing(name))?;
    let spec = plimsoll_model::from_config(&entry.config, Assume::Nothing)?;
    let whole = Parallel::default();
    let stages = whole.stages(spec.layers.len() as u64);
    let stage = stages.first().ok_or(PaperError::Missing(name))?;
    let rules = KvRules {
        dtype: DType::F16,
        state_dtype: DType::F16,
        block_size: 1,
    };
    let geometry = PoolGeometry::new(&spec, &whole, stage, &rules)?;
    Ok((spec, geometry))
}

/// Tokens that `gib` GiB of KV cache hold, all devices together.
pub(crate) fn slots(name: &'static str, gib: u64) -> Result<u64, PaperError> {
    let (_, geometry) = opt(name)?;
    Ok(Bytes::from_mib(gib * 1024)?.whole(geometry.bytes_per_token()?))
}

/// The mean of a few hours.
fn hours(
    lengths: &Lengths,
    rate: f64,
    reservation: Reservation,
    cost: &CostModel,
) -> Result<Outcome, PaperError> {
    let hours: Result<Vec<Outcome>, PaperError> = SEEDS
        .into_iter()
        .map(|seed| simulate(lengths, rate, reservation, cost, seed))
        .collect();
    Ok(Outcome::mean(&hours?))
}

/// One hour of Poisson arrivals at `rate` per second through Orca. `seed` draws it.
///
/// # Errors
/// [`PaperError`].
pub fn simulate(
    lengths: &Lengths,
    rate: f64,
    reservation: Reservation,
    cost: &CostModel,
    seed: u64,
) -> Result<Outcome, PaperError> {
    let config = Config {
        slots: slots("opt-13b", 12)?,
        max_tokens: MAX_TOKENS,
        server: Server::Orca(reservation),
        max_batch: None,
        until: Some(HOUR),
    };
    let mut tally = Tally::default();
    contiguous::run(&config, arrivals(lengths, rate, seed), cost, &mut tally)?;
    Ok(tally.outcome(config.slots))
}

/// Poisson arrivals at `rate` per second, for ever.
pub(crate) fn arrivals(
    lengths: &Lengths,
    rate: f64,
    seed: u64,
) -> impl Iterator<Item = Result<Arrival, Infallible>> + '_ {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut at = 0.0;
    std::iter::from_fn(move || {
        let gap: f64 = Exp1.sample(&mut rng);
        at += gap / rate;
        let (prompt_tokens, output_tokens) = lengths.sample(&mut rng);
        Some(Ok(Arrival {
            at: Nanos(whole(at * 1e9)),
            prompt_tokens,
            output_tokens,
            content: Content::Unique,
            fan: Fan::One,
            tenant: 0,
            priority: 0,
        }))
    })
}

/// Averages over time.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    since: Nanos,
    state: State,
    /// Slots times nanoseconds, by class.
    classes: [u128; 4],
    running: u128,
    saturated: u128,
    time: u128,
}

impl Tally {
    pub(crate) fn outcome(&self, slots: u64) -> Outcome {
        let over = |sum: u128, whole: u128| {
            #[allow(
                clippy::cast_precision_loss,
                reason = "averages to print, far from the last digit"
            )]
            let share = sum as f64 / whole.max(1) as f64;
            share
        };
        let pool = self.time * u128::from(slots);
        Outcome {
            shares: self.classes.map(|c| 100.0 * over(c, pool)),
            batch: over(self.running, self.time),
            saturated: 100.0 * over(self.saturated, self.time),
        }
    }
}

impl Sink for Tally {
    fn state(&mut self, at: Nanos, state: &State) {
        let span = u128::from(at.0.saturating_sub(self.since.0));
        let Slots {
            token_states,
            reserved,
            internal,
            external,
            cached,
            free,
        } = self.state.slots;
        let classes = [token_states, reserved, internal, external + cached + free];
        for (sum, class) in self.classes.iter_mut().zip(classes) {
            *sum += span * u128::from(class);
        }
        self.running += span * u128::from(self.state.running);
        self.saturated += span * u128::from(self.state.waiting.min(1));
        self.time += span;
        (self.since, self.state) = (at, *state);
    }

    fn token(&mut self, _gap: Nanos) {}
    fn finished(&mut self, _f: &Finished) {}
    fn refused(&mut self, _at: Nanos) {}
}

fn percent(part: u64, all: u64) -> f64 {
    100.0 * float(part) / float(all)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "token counts, far below 2^53 here"
)]
const fn float(n: u64) -> f64 {
    n as f64
}

/// The nearest whole number; negative numbers give 0, too large ones the largest.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, as documented"
)]
fn whole(x: f64) -> u64 {
    x.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_facts_of_the_paper() {
        let facts = facts().unwrap();
        let ours: Vec<&str> = facts.iter().map(|f| f.ours.as_str()).collect();
        assert_eq!(ours, ["15728", "9557", "60074", "7", "8.85"]);
        let table = facts_markdown(&facts);
        assert_eq!(table.lines().count(), 2 + facts.len());
        // What "21" must have been for 9.7K slots: 21.3 GiB.
        let per_token = opt("opt-66b").unwrap().1.bytes_per_token().unwrap();
        assert_eq!(per_token.get(), 2_359_296);
        assert_eq!((9_700 * per_token.get()).div_ceil(1 << 20), 21_825);
    }

    #[test]
    fn the_fit_has_the_means_and_the_live_tokens_of_the_paper() {
        for shape in [Shape::Lognormal, Shape::Weibull, Shape::Power] {
            has_the_means_and_the_live_tokens(shape);
        }
    }

    fn has_the_means_and_the_live_tokens(shape: Shape) {
        let lengths = Lengths::new(&SHAREGPT, PROMPT_CV, shape, fit(shape).unwrap());
        assert!((lengths.live_mean() - 0.204 * 15_728.0 / 7.0).abs() < 0.01);
        // The draws have the moments of the quadrature: means within 1 %, and the cut holds.
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let n = 100_000;
        let (mut prompts, mut outputs) = (0, 0);
        for _ in 0..n {
            let (p, o) = lengths.sample(&mut rng);
            assert!(p >= 1 && o >= 1 && p + o <= MAX_TOKENS);
            prompts += p;
            outputs += o;
        }
        let near = |sum: u64, mean: f64| (float(sum) / float(n) / mean - 1.0).abs() < 0.01;
        assert!(near(prompts, 161.31) && near(outputs, 337.99), "{shape:?}");
    }

    #[test]
    fn the_papers_pow2_lies_among_the_shapes_of_outputs_and_oracle_near_all_of_them() {
        let rows = shape_rows().unwrap();
        let table = shapes_markdown(&rows);
        println!("{table}");
        assert_eq!(table.lines().count(), 3 + rows.len());
        // The fewer long outputs, the more is lost.
        assert!(rows.is_sorted_by(|a, b| a.long > b.long
            && a.pow2.shares[3] < b.pow2.shares[3]
            && a.pow2.batch > b.pow2.batch));
        let (most, least) = (&rows[0].pow2, &rows[rows.len() - 1].pow2);
        let (paper, batch) = PAPER_POW2;
        assert!(most.shares[3] < paper[3] && paper[3] < least.shares[3]);
        assert!(most.batch > batch && batch > least.batch);
        for r in &rows {
            for (ours, paper) in r.oracle.shares.iter().zip(PAPER_ORACLE.0) {
                assert!((ours - paper).abs() < 2.0, "{r:?}");
            }
        }
    }

    #[test]
    fn predictions_are_within_their_bars_and_misses_are_the_known_ones() {
        let rows = contiguous_rows().unwrap();
        assert_eq!(rows.markdown().lines().count(), 2 + rows.rows.len());
        println!("{:.4}\n{}", rows.output_cv(), rows.markdown());
        for r in &rows.rows {
            let which = (r.dataset, r.reservation);
            for (class, (ours, paper)) in r
                .ours
                .shares
                .iter()
                .zip(r.paper_shares.iter().flatten())
                .enumerate()
            {
                // Known miss: Orca (Pow2) loses less to external fragmentation.
                let bar = match (which, class) {
                    (("ShareGPT", Reservation::Pow2), 3) => 6.5,
                    _ => 3.0,
                };
                assert!(
                    (ours - paper).abs() < bar,
                    "{which:?} class {class}: {ours} {paper}"
                );
            }
            // Known miss: at our step times Alpaca's load needs fewer sequences than fit, 39 % below
            // the paper's batch. Overloaded, it is what memory allows, which comes near.
            let error = |batch: f64| (batch / r.paper_batch - 1.0).abs();
            if let Some(overloaded) = r.overloaded_batch {
                assert_eq!(which, ("Alpaca", Reservation::Oracle));
                assert!(error(r.ours.batch) < 0.42 && error(overloaded) < 0.15);
            } else {
                assert!(error(r.ours.batch) < 0.15, "{which:?}: {:?}", r.ours);
            }
        }
    }
}
