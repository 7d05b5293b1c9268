//! Swap or recompute: a grid of servers under pressure, each run with both fixed policies and with
//! `auto`, whose belief is true or wrong.
//!
//! **The metric is the makespan of a fixed offline batch**: every request is there at the start, and the
//! time until the last one has ended is compared. All runs of a pair do the same useful work, the device
//! is never idle, and a preemption costs either time of the link or time of the device; so what differs
//! between makespans is what giving way cost, and nothing else. Latencies answer another question (who
//! waits), and their means are moved by the order of requests more than by the policy.
//!
//! **Pairs.** A seed draws the lengths of a batch; every policy runs the same batch. A figure is the mean
//! over seeds of the ratio of two makespans, and the better fixed policy is that of the cell, not of the
//! seed: `auto` is not compared with an oracle.
//!
//! **Cells** are links × contexts × pools. A link here is a device with the way its blocks go to host
//! memory: GPUs over PCIe of several generations, one with the paper's layout (two transfers for each
//! layer of a block, section 7.3), and a CPU whose swap space is memory or a disk. The model has 8 billion
//! parameters and 128 KiB of keys and values per token. Pools are a few requests large, so that a run
//! takes milliseconds; what counts is their size in requests.
//!
//! The grid was laid out so that either policy wins a fifth of its cells; one link (a CPU with a slow disk)
//! is where a wrong choice that a two-fold error of belief causes costs the most, about a tenth.
//!
//! Not modelled: transfers that overlap with computing (the world charges them one after another, both
//! ways), noise of step times, and the prefix cache, which is off: under pressure a victim's blocks are used
//! again soon. So the scheduler, which learns rates from step times, has it easy here.
//!
//! Source of the question: Kwon et al. (SOSP 2023), section 4.5 and figure 19.

use std::convert::Infallible;
use std::fmt::Write as _;

use plimsoll_kv::{KvConfig, Layout};
use plimsoll_schedule::{
    AttentionWork, CostModel, Limits, NoLog, Preempt, Rates, SchedulerConfig, Work,
};
use plimsoll_units::{Bytes, Nanos};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Uniform};

use crate::arrival::{Arrival, Content, Fan};
use crate::paged::{self, Asked, Branching, Faults};
use crate::record::{Finished, Sink, State};

/// Bytes of keys and values per token of Llama 3.1 8B at 16 bits: 2 × 32 layers × 8 heads × 128 × 2.
const KV_BYTES: u64 = 131_072;

/// Tokens per block.
const BLOCK: u32 = 16;

/// Transfers per block where every layer's keys and values lie apart: 2 × 32 layers.
const PER_LAYER: u64 = 64;

/// A policy wins a cell where the other takes this many times as long.
pub const WIN: f64 = 1.2;

/// Why a grid cannot be computed.
pub type Error = paged::RunError<Infallible>;

/// How large a grid is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Seeds per cell.
    pub seeds: u64,
    /// Requests per batch, for each longest request that the pool holds.
    pub depth: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seeds: 20,
            depth: 8,
        }
    }
}

/// A device, and the way its blocks take to swap space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub name: &'static str,
    /// Its rates.
    pub rates: Rates,
}

/// The links of the full grid.
#[must_use]
pub fn links() -> Vec<Link> {
    // An H100 at 55 % of 989 TFLOP/s and 80 % of 3.35 TB/s, as `Rates::of` has them.
    let gpu = |link_bytes_per_s, transfers_per_block| Rates {
        flops_per_s: 544_000_000_000_000,
        memory_bytes_per_s: 2_680_000_000_000,
        link_bytes_per_s,
        transfer_ns: 10_000,
        transfers_per_block,
        step_ns: 2_000_000,
        row_ns: 5_000,
    };
    // A server CPU: matrix products at 2 TFLOP/s, 12 channels of memory.
    let cpu = |link_bytes_per_s| Rates {
        flops_per_s: 2_000_000_000_000,
        memory_bytes_per_s: 250_000_000_000,
        link_bytes_per_s,
        ..gpu(link_bytes_per_s, 1)
    };
    let link = |name, rates| Link { name, rates };
    vec![
        // A network of 2 Gbit/s, a slow disk, a fast one.
        link("GPU, 0.25 GB/s", gpu(250_000_000, 1)),
        link("GPU, 0.5 GB/s", gpu(500_000_000, 1)),
        link("GPU, 1 GB/s", gpu(1_000_000_000, 1)),
        // PCIe 4 at 16 lanes, in the paper's layout; then staged, at 8 lanes and 16.
        link("GPU, 25 GB/s by layer", gpu(25_000_000_000, PER_LAYER)),
        link("GPU, 10 GB/s", gpu(10_000_000_000, 1)),
        link("GPU, 25 GB/s", gpu(25_000_000_000, 1)),
        // A disk that others use, a fast one, memory.
        link("CPU, 0.05 GB/s", cpu(50_000_000)),
        link("CPU, 1 GB/s", cpu(1_000_000_000)),
        link("CPU, 20 GB/s", cpu(20_000_000_000)),
    ]
}

/// Lengths of requests: even between a quarter and seven quarters of these means, prompt and output
/// apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Mean prompt, in tokens.
    pub prompt: u64,
    /// Mean output, in tokens.
    pub output: u64,
}

impl Context {
    const fn least(mean: u64) -> u64 {
        mean / 4
    }

    const fn most(mean: u64) -> u64 {
        mean * 7 / 4
    }

    /// The longest request, in tokens.
    #[must_use]
    pub const fn longest(&self) -> u64 {
        Self::most(self.prompt) + Self::most(self.output)
    }
}

/// Short, middling and long ones.
pub const CONTEXTS: [Context; 3] = [
    Context {
        prompt: 64,
        output: 256,
    },
    Context {
        prompt: 256,
        output: 512,
    },
    Context {
        prompt: 1024,
        output: 1024,
    },
];

/// Sizes of the pool, in longest requests: the smaller, the higher the pressure.
pub const POOLS: [u64; 2] = [4, 12];

/// One server and the lengths that it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Device and link.
    pub link: Link,
    /// Lengths.
    pub context: Context,
    /// Pool, in longest requests.
    pub pool: u64,
}

/// The cells of the full grid, in the order of its rows.
#[must_use]
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for link in links() {
        for context in CONTEXTS {
            for pool in POOLS {
                cells.push(Cell {
                    link,
                    context,
                    pool,
                });
            }
        }
    }
    cells
}

/// What `auto` believes of a rate, as a share of the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// The truth.
    True,
    /// Copies go half as fast.
    CopyHalf,
    /// Copies go twice as fast.
    CopyDouble,
    /// Computing goes half as fast.
    PrefillHalf,
    /// Computing goes twice as fast.
    PrefillDouble,
}

impl Belief {
    /// All of them; [`Outcome::auto`] has this order.
    pub const ALL: [Self; 5] = [
        Self::True,
        Self::CopyHalf,
        Self::CopyDouble,
        Self::PrefillHalf,
        Self::PrefillDouble,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::True => "true",
            Self::CopyHalf => "copy × 0.5",
            Self::CopyDouble => "copy × 2",
            Self::PrefillHalf => "prefill × 0.5",
            Self::PrefillDouble => "prefill × 2",
        }
    }

    /// Most that `auto` may take, over the better fixed policy.
    #[must_use]
    pub const fn bar(self) -> f64 {
        match self {
            Self::True => 1.02,
            _ => 1.10,
        }
    }

    const fn of(self, truth: Rates) -> Rates {
        let mut r = truth;
        match self {
            Self::True => {}
            Self::CopyHalf => {
                r.link_bytes_per_s /= 2;
                r.transfer_ns *= 2;
            }
            Self::CopyDouble => {
                r.link_bytes_per_s *= 2;
                r.transfer_ns /= 2;
            }
            Self::PrefillHalf => r.flops_per_s /= 2,
            Self::PrefillDouble => r.flops_per_s *= 2,
        }
        r
    }
}

/// A mean over seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub error: f64,
}

impl Mean {
    fn of(values: &[f64]) -> Self {
        let n = float(values.len().max(1) as u64);
        let mean = values.iter().sum::<f64>() / n;
        let square = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
        Self {
            mean,
            error: (square / (n - 1.0).max(1.0) / n).sqrt(),
        }
    }
}

/// What a cell came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The cell.
    pub cell: Cell,
    /// Makespan of always swapping, in seconds.
    pub swap_s: Mean,
    /// Makespan of recomputing over that of swapping, by pairs.
    pub recompute_over_swap: Mean,
    /// Makespan of swapping over that of recomputing, by pairs.
    pub swap_over_recompute: Mean,
    /// Makespan of `auto` over that of the better fixed policy, by pairs, for each [`Belief`].
    pub auto: [Mean; 5],
    /// Share of `auto`'s preemptions that were swaps, its belief true.
    pub swaps: f64,
    /// Preemptions per request, swapping.
    pub preemptions: f64,
    /// Tokens computed again over all tokens computed: always recomputing, and `auto`.
    pub tax: [f64; 2],
}

/// One policy's run of one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Run {
    makespan: f64,
    swaps: u64,
    recomputes: u64,
    recomputed: u64,
    tokens: u64,
}

impl Cell {
    fn truth(&self) -> CostModel {
        CostModel {
            work: Work {
                weight_bytes: 16_000_000_000,
                token_flops: 16_000_000_000,
                // 4096 × 128,256 parameters.
                head_flops: 1_050_000_000,
                attention: vec![AttentionWork {
                    reach: None,
                    token_bytes: KV_BYTES,
                    // 32 layers × 32 heads × 2 × (128 + 128).
                    pair_flops: 524_288,
                }],
            },
            rates: self.link.rates,
        }
    }

    /// Runs a batch of `requests`, drawn by `seed`.
    fn run(&self, seed: u64, requests: u64, policy: Preempt, belief: Belief) -> Result<Run, Error> {
        let longest = u32::try_from(self.context.longest()).unwrap_or(u32::MAX);
        let limits = Limits {
            max_model_len: longest,
            vocab: 128_256,
            max_width: 1,
            tenants: 1,
        };
        let pages = u64::from(longest.div_ceil(BLOCK)).saturating_mul(self.pool);
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let mut kv = KvConfig::new(Layout::full(BLOCK, Bytes::new(KV_BYTES)), pages);
        // Whatever gives way finds a place, or swapping would recompute too.
        let requests_most = u32::try_from(requests).unwrap_or(u32::MAX);
        kv.swap_pages = longest.div_ceil(BLOCK).saturating_mul(requests_most);
        let mut scheduler = SchedulerConfig::new(limits);
        scheduler.preempt = policy;
        let truth = self.truth();
        let config = paged::Config {
            scheduler,
            kv,
            belief: CostModel {
                rates: belief.of(truth.rates),
                work: truth.work.clone(),
            },
            truth,
            asked: Asked::Most,
            branching: Branching::default(),
            faults: Faults::default(),
            measure_sharing: false,
            seed,
            until: None,
        };
        let batch = self.batch(seed, requests);
        let (summary, NoLog) = paged::run(&config, batch, |_, _, _| (), &mut Silent, NoLog)?;
        let s = summary.stats;
        Ok(Run {
            makespan: float(summary.ended.0) / 1e9,
            swaps: s.swaps,
            recomputes: s.recomputes,
            recomputed: s.recomputed_tokens,
            tokens: s.tokens,
        })
    }

    /// The requests, all there at the start.
    fn batch(
        &self,
        seed: u64,
        requests: u64,
    ) -> impl Iterator<Item = Result<Arrival, Infallible>> + use<> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let Context { prompt, output } = self.context;
        let mut draw = move |mean: u64| {
            let (least, most) = (Context::least(mean).max(1), Context::most(mean).max(1));
            // Bounds in order make a distribution.
            Uniform::new_inclusive(least, most).map_or(mean, |u| u.sample(&mut rng))
        };
        (0..requests).map(move |_| {
            Ok(Arrival {
                at: Nanos(0),
                prompt_tokens: draw(prompt),
                output_tokens: draw(output),
                content: Content::Unique,
                fan: Fan::One,
                tenant: 0,
                priority: 0,
            })
        })
    }

    /// Runs every policy on every seed.
    ///
    /// # Errors
    /// [`Error`] where a run stands still.
    pub fn measure(&self, options: &Options) -> Result<Outcome, Error> {
        let runs = |policy, belief| -> Result<Vec<Run>, Error> {
            (1..=options.seeds)
                .map(|seed| self.run(seed, options.depth * self.pool, policy, belief))
                .collect()
        };
        let swap = runs(Preempt::Swap, Belief::True)?;
        let recompute = runs(Preempt::Recompute, Belief::True)?;
        let total = |runs: &[Run]| runs.iter().map(|r| r.makespan).sum::<f64>();
        let best = if total(&swap) <= total(&recompute) {
            &swap
        } else {
            &recompute
        };
        let mut auto = [Mean::default(); 5];
        let mut believing = Vec::new();
        for (mean, belief) in auto.iter_mut().zip(Belief::ALL) {
            let own = runs(Preempt::Auto, belief)?;
            *mean = ratio(&own, best);
            if belief == Belief::True {
                believing = own;
            }
        }
        let sum = |runs: &[Run], f: fn(&Run) -> u64| float(runs.iter().map(f).sum());
        let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
        let tax = |runs: &[Run]| share(sum(runs, |r| r.recomputed), sum(runs, |r| r.tokens));
        let makespans: Vec<f64> = swap.iter().map(|r| r.makespan).collect();
        Ok(Outcome {
            cell: *self,
            swap_s: Mean::of(&makespans),
            recompute_over_swap: ratio(&recompute, &swap),
            swap_over_recompute: ratio(&swap, &recompute),
            auto,
            swaps: share(
                sum(&believing, |r| r.swaps),
                sum(&believing, |r| r.swaps + r.recomputes),
            ),
            preemptions: share(
                sum(&swap, |r| r.swaps + r.recomputes),
                float(options.seeds * options.depth * self.pool),
            ),
            tax: [tax(&recompute), tax(&believing)],
        })
    }
}

fn ratio(one: &[Run], other: &[Run]) -> Mean {
    let ratios: Vec<f64> = one
        .iter()
        .zip(other)
        .map(|(a, b)| a.makespan / b.makespan)
        .collect();
    Mean::of(&ratios)
}

/// All cells.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// How large it is.
    pub options: Options,
    /// What each cell came to.
    pub cells: Vec<Outcome>,
}

/// Measures all [`cells`], one after another. They do not depend on each other: a caller with many cores
/// measures them itself.
///
/// # Errors
/// [`Error`] where a run stands still.
pub fn grid(options: Options) -> Result<Grid, Error> {
    let cells = cells()
        .iter()
        .map(|c| c.measure(&options))
        .collect::<Result<_, _>>()?;
    Ok(Grid { options, cells })
}

impl Grid {
    /// Cells that swapping wins, and cells that recomputing wins, by [`WIN`].
    #[must_use]
    pub fn won(&self) -> [usize; 2] {
        let count = |f: fn(&Outcome) -> f64| self.cells.iter().filter(|o| f(o) >= WIN).count();
        [
            count(|o| o.recompute_over_swap.mean),
            count(|o| o.swap_over_recompute.mean),
        ]
    }

    /// The cell in which `auto` does worst against the better fixed policy, for each [`Belief`].
    #[must_use]
    pub fn worst(&self) -> [Option<&Outcome>; 5] {
        [0, 1, 2, 3, 4].map(|i| {
            self.cells
                .iter()
                .max_by(|a, b| a.auto[i].mean.total_cmp(&b.auto[i].mean))
        })
    }

    /// A summary and a row for each cell, in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let [swap, recompute] = self.won();
        let all = self.cells.len();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{all} cells, {} seeds each, {} × pool requests a batch; makespans, paired by seed.\n\n\
             - Swapping wins {swap} cells by 20 % ({:.0} %), recomputing {recompute} ({:.0} %).",
            self.options.seeds,
            self.options.depth,
            percent(swap, all),
            percent(recompute, all),
        );
        for (i, (worst, belief)) in self.worst().into_iter().zip(Belief::ALL).enumerate() {
            let Some(w) = worst else { continue };
            let over = self
                .cells
                .iter()
                .filter(|o| o.auto[i].mean > belief.bar())
                .count();
            let _ = writeln!(
                out,
                "- `auto`, belief {}: at worst {:.3} of the better fixed policy ({}); above {:.2} in {over} cells.",
                belief.name(),
                w.auto[i].mean,
                w.cell.name(),
                belief.bar(),
            );
        }
        out.push_str(
            "\n| link | prompt, output | pool | preempted | swap s | recompute ÷ swap | auto ÷ best \
             | copy × 0.5 | copy × 2 | prefill × 0.5 | prefill × 2 | swaps % | tax of recompute % | tax of auto % |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for o in &self.cells {
            let c = &o.cell;
            let _ = write!(
                out,
                "| {} | {}, {} | {} | {:.2} | {:.1} | {:.3} ± {:.3} ",
                c.link.name,
                c.context.prompt,
                c.context.output,
                c.pool,
                o.preemptions,
                o.swap_s.mean,
                o.recompute_over_swap.mean,
                o.recompute_over_swap.error,
            );
            for m in &o.auto {
                let _ = write!(out, "| {:.3} ± {:.3} ", m.mean, m.error);
            }
            let _ = writeln!(
                out,
                "| {:.0} | {:.1} | {:.1} |",
                100.0 * o.swaps,
                100.0 * o.tax[0],
                100.0 * o.tax[1]
            );
        }
        out
    }
}

impl Cell {
    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> String {
        let Context { prompt, output } = self.context;
        format!("{}; {prompt}, {output}; pool {}", self.link.name, self.pool)
    }
}

/// The full grid in Markdown.
///
/// # Errors
/// [`Error`] where a run stands still.
pub fn report() -> Result<String, Error> {
    Ok(grid(Options::default())?.markdown())
}

/// Nobody listens: a summary is enough.
struct Silent;

impl Sink for Silent {
    fn state(&mut self, _at: Nanos, _state: &State) {}
    fn token(&mut self, _gap: Nanos) {}
    fn finished(&mut self, _f: &Finished) {}
    fn refused(&mut self, _at: Nanos) {}
}

fn percent(part: usize, all: usize) -> f64 {
    100.0 * float(part as u64) / float(all.max(1) as u64)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "ratios and counts to print, far from the last digit"
)]
const fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small enough for an unoptimised build: short requests, the smaller pool, few seeds.
    fn reduced() -> Grid {
        let options = Options { seeds: 4, depth: 8 };
        let cells = cells()
            .iter()
            .filter(|c| c.context == CONTEXTS[0] && c.pool == POOLS[0])
            .map(|c| c.measure(&options).unwrap())
            .collect();
        Grid { options, cells }
    }

    #[test]
    fn either_policy_wins_somewhere_and_auto_keeps_to_the_better_one() {
        let grid = reduced();
        println!("{}", grid.markdown());
        let [swap, recompute] = grid.won();
        assert!(swap >= 2 && recompute >= 2, "{swap} {recompute}");
        for (i, belief) in Belief::ALL.into_iter().enumerate() {
            for o in &grid.cells {
                let (name, m) = (o.cell.name(), o.auto[i]);
                assert!(m.mean <= belief.bar(), "{name}, {}: {m:?}", belief.name());
            }
        }
    }

    #[test]
    fn swapped_tokens_are_not_computed_again_and_forgotten_ones_are() {
        let cell = Cell {
            link: links()[8],
            context: CONTEXTS[0],
            pool: POOLS[0],
        };
        let swap = cell.run(1, 32, Preempt::Swap, Belief::True).unwrap();
        let recompute = cell.run(1, 32, Preempt::Recompute, Belief::True).unwrap();
        // Prompts that stalled lose their last blocks under any policy.
        assert!(swap.swaps > 8 && swap.recomputes == 0);
        assert!(4 * swap.recomputed < recompute.recomputed, "{swap:?}");
        assert!(recompute.recomputes > 8 && recompute.swaps == 0);
        // Useful work is the same.
        assert_eq!(
            swap.tokens - swap.recomputed,
            recompute.tokens - recompute.recomputed
        );
        // The same seed gives the same run.
        let again = cell.run(1, 32, Preempt::Swap, Belief::True).unwrap();
        assert_eq!(swap, again);
    }

    #[test]
    fn the_full_grid_is_large_enough() {
        assert_eq!(cells().len(), links().len() * CONTEXTS.len() * POOLS.len());
        assert!(Options::default().seeds >= 20);
    }

    /// A minute of an optimised build: `cargo test --release -p plimsoll-simulate full_grid -- --ignored
    /// --nocapture` prints the table.
    #[test]
    #[ignore = "takes a minute"]
    fn full_grid_keeps_its_bars() {
        let grid = grid(Options::default()).unwrap();
        println!("{}", grid.markdown());
        let all = grid.cells.len();
        let [swap, recompute] = grid.won();
        assert!(5 * swap >= all && 5 * recompute >= all);
        for (i, belief) in Belief::ALL.into_iter().enumerate() {
            let worst = grid.worst()[i].unwrap();
            assert!(worst.auto[i].mean <= belief.bar(), "{worst:?}");
        }
    }
}
