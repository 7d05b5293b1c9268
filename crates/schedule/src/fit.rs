//! [`fit`]: the rates of a machine from steps that were timed on it.
//!
//! A step takes what [`CostModel::step`](crate::CostModel::step) says: a fixed time, a time per row, the larger of computing
//! its linear layers and streaming the weights, and attention. In the reciprocals of the rates that is linear but for
//! the larger of the two; which of them it is depends on the operations alone, so there is a number of operations
//! below which steps stream. Every such number is tried, each by least squares of relative errors, and the best kept.

use crate::cost::Rates;

/// A step that was timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimedStep {
    /// Rows.
    pub rows: u64,
    /// Operations of its linear layers, the output head among them.
    pub linear_flops: u64,
    /// Operations of its attention.
    pub attention_flops: u64,
    /// Bytes of keys and values that it read.
    pub kv_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// A swap that was timed, one way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimedSwap {
    /// Transfers that it took.
    pub transfers: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Rates, and how well they tell the times they were fitted to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fitted {
    /// The rates; a block is one transfer.
    pub rates: Rates,
    /// Mean of the relative errors of all times, of 1.
    pub error: f64,
}

/// Why there are no rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FitError {
    /// A time is not one.
    #[error("{what} {number} took no positive time")]
    NoTime {
        /// A step or a swap.
        what: &'static str,
        /// Its place, from 1.
        number: usize,
    },
    /// The steps are too alike.
    #[error(
        "the steps do not tell computing, memory and fixed times apart: time steps of few and of many rows and tokens, \
         over short and over long contexts"
    )]
    StepsAlike,
    /// No swap, or swaps that take the less time the more they move.
    #[error("the swaps do not tell the link's rate: time swaps of few and of many bytes")]
    NoLink,
}

/// Fits rates to `steps`, all of a model that streams `weight_bytes`, and to `swaps`.
///
/// # Errors
/// [`FitError`] where a time is not positive or the measurements do not determine the rates.
pub fn fit(
    weight_bytes: u64,
    steps: &[TimedStep],
    swaps: &[TimedSwap],
) -> Result<Fitted, FitError> {
    for (what, times) in [
        ("step", steps.iter().map(|s| s.seconds).collect::<Vec<_>>()),
        ("swap", swaps.iter().map(|s| s.seconds).collect()),
    ] {
        let bad = |t: &f64| !(t.is_finite() && *t > 0.0);
        if let Some(i) = times.iter().position(bad) {
            let number = i + 1;
            return Err(FitError::NoTime { what, number });
        }
    }
    let [flop, byte, step, row] = fit_steps(weight_bytes, steps).ok_or(FitError::StepsAlike)?;
    let [link, transfer, ..] = fit_swaps(swaps).ok_or(FitError::NoLink)?;
    let told_step = |s: &TimedStep| {
        let linear = (s.linear_flops as f64 * flop).max(weight_bytes as f64 * byte);
        step + s.rows as f64 * row
            + linear
            + s.kv_bytes as f64 * byte
            + s.attention_flops as f64 * flop
    };
    let told_swap = |s: &TimedSwap| s.transfers as f64 * transfer + s.bytes as f64 * link;
    let errors = steps
        .iter()
        .map(|s| (told_step(s) / s.seconds - 1.0).abs())
        .chain(swaps.iter().map(|s| (told_swap(s) / s.seconds - 1.0).abs()));
    Ok(Fitted {
        rates: Rates {
            flops_per_s: whole(1.0 / flop).max(1),
            memory_bytes_per_s: whole(1.0 / byte).max(1),
            link_bytes_per_s: whole(1.0 / link).max(1),
            transfer_ns: whole(transfer * 1e9),
            transfers_per_block: 1,
            step_ns: whole(step * 1e9),
            row_ns: whole(row * 1e9),
        },
        error: errors.sum::<f64>() / (steps.len() + swaps.len()) as f64,
    })
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts of floats saturate"
)]
fn whole(x: f64) -> u64 {
    x.round() as u64
}

/// Seconds per operation, per byte, per step and per row.
fn fit_steps(weight_bytes: u64, steps: &[TimedStep]) -> Option<[f64; 4]> {
    let mut sorted = steps.to_vec();
    sorted.sort_by_key(|s| s.linear_flops);
    let equation = |s: &TimedStep, streams: bool| {
        let (linear, weights) = if streams {
            (0, weight_bytes)
        } else {
            (s.linear_flops, 0)
        };
        let flops = linear as f64 + s.attention_flops as f64;
        let bytes = weights as f64 + s.kv_bytes as f64;
        ([flops, bytes, 1.0, s.rows as f64], s.seconds)
    };
    // Equations of the steps from each one on, as if they computed.
    let mut computing = vec![Equations::default(); sorted.len() + 1];
    for (i, s) in sorted.iter().enumerate().rev() {
        let mut sum = computing[i + 1];
        let (x, y) = equation(s, false);
        sum.add(x, y);
        computing[i] = sum;
    }
    let mut streaming = Equations::default();
    let mut best: Option<(f64, [f64; 4])> = None;
    for i in 0..=sorted.len() {
        let neighbours =
            i == 0 || i == sorted.len() || sorted[i - 1].linear_flops != sorted[i].linear_flops;
        let both = streaming.and(&computing[i]);
        // Fixed times may be none; rates may not.
        let solved = both
            .solve([true, true, false, false])
            .filter(|_| neighbours);
        if let Some((residual, x)) = solved
            && best.is_none_or(|(b, _)| residual < b)
        {
            best = Some((residual, x));
        }
        if let Some(s) = sorted.get(i) {
            let (x, y) = equation(s, true);
            streaming.add(x, y);
        }
    }
    best.map(|(_, x)| x)
}

/// Seconds per byte and per transfer, first of four. Where every transfer moves as many bytes, its fixed time cannot
/// be told from that of its bytes and is part of it.
fn fit_swaps(swaps: &[TimedSwap]) -> Option<[f64; 4]> {
    let all = |with_transfers: f64| {
        let mut all = Equations::default();
        for s in swaps {
            let transfers = s.transfers as f64 * with_transfers;
            all.add([s.bytes as f64, transfers, 0.0, 0.0], s.seconds);
        }
        all.solve([true, false, false, false])
    };
    all(1.0).or_else(|| all(0.0)).map(|(_, x)| x)
}

/// Normal equations of a least-squares fit of relative errors in four unknowns.
#[derive(Clone, Copy, Debug, Default)]
struct Equations {
    a: [[f64; 4]; 4],
    b: [f64; 4],
    c: f64,
}

impl Equations {
    /// `x` times the unknowns is `y`.
    fn add(&mut self, x: [f64; 4], y: f64) {
        let x = x.map(|v| v / y);
        for i in 0..4 {
            for j in 0..4 {
                self.a[i][j] += x[i] * x[j];
            }
            self.b[i] += x[i];
        }
        self.c += 1.0;
    }

    fn and(&self, other: &Self) -> Self {
        let mut sum = *self;
        for i in 0..4 {
            for j in 0..4 {
                sum.a[i][j] += other.a[i][j];
            }
            sum.b[i] += other.b[i];
        }
        sum.c += other.c;
        sum
    }

    /// The sum of squared relative errors and the unknowns, none of them negative; those that are `needed` are
    /// positive. `None` where that cannot be. Unknowns that would be negative, or that nothing tells, are 0.
    fn solve(&self, needed: [bool; 4]) -> Option<(f64, [f64; 4])> {
        let mut used = [0, 1, 2, 3].map(|i| self.a[i][i] > 0.0);
        loop {
            let x = self.solve_some(used)?;
            if let Some(worst) = (0..4)
                .filter(|i| x[*i] < 0.0)
                .min_by(|i, j| (x[*i] * self.scale(*i)).total_cmp(&(x[*j] * self.scale(*j))))
            {
                used[worst] = false;
                continue;
            }
            if (0..4).any(|i| needed[i] && x[i] <= 0.0) {
                return None;
            }
            let explained: f64 = (0..4).map(|i| self.b[i] * x[i]).sum();
            return Some((self.c - explained, x));
        }
    }

    fn scale(&self, i: usize) -> f64 {
        self.a[i][i].sqrt()
    }

    /// The unknowns that are `used`, the others 0; `None` where the equations do not determine them.
    fn solve_some(&self, used: [bool; 4]) -> Option<[f64; 4]> {
        /// Below this share of its scale a pivot is rounding.
        const ROUNDING: f64 = 1e-10;
        let at: Vec<usize> = (0..4).filter(|i| used[*i]).collect();
        let n = at.len();
        // Scaled to ones on the diagonal: operations and seconds are 20 orders apart.
        let mut m: Vec<Vec<f64>> = at
            .iter()
            .map(|i| {
                let row = at
                    .iter()
                    .map(|j| self.a[*i][*j] / self.scale(*i) / self.scale(*j));
                row.chain([self.b[*i] / self.scale(*i)]).collect()
            })
            .collect();
        for k in 0..n {
            let pivot = (k..n).max_by(|i, j| m[*i][k].abs().total_cmp(&m[*j][k].abs()))?;
            m.swap(k, pivot);
            if m[k][k].abs() < ROUNDING {
                return None;
            }
            let pivot = m[k].clone();
            for row in &mut m[k + 1..] {
                let factor = row[k] / pivot[k];
                for (v, p) in row.iter_mut().zip(&pivot).skip(k) {
                    *v -= factor * p;
                }
            }
        }
        let mut x = [0.0; 4];
        for k in (0..n).rev() {
            let known: f64 = (k + 1..n)
                .map(|j| m[k][j] * x[at[j]] * self.scale(at[j]))
                .sum();
            x[at[k]] = (m[k][n] - known) / m[k][k] / self.scale(at[k]);
        }
        x.iter().all(|v| v.is_finite()).then_some(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{AttentionWork, CostModel, StepLoad, Work};

    fn truth() -> CostModel {
        CostModel {
            work: Work {
                weight_bytes: 26_000_000_000,
                token_flops: 26_000_000_000,
                head_flops: 330_000_000,
                attention: vec![AttentionWork {
                    reach: None,
                    token_bytes: 819_200,
                    pair_flops: 819_200,
                }],
            },
            rates: Rates {
                flops_per_s: 171_600_000_000_000,
                memory_bytes_per_s: 1_631_000_000_000,
                link_bytes_per_s: 25_000_000_000,
                transfer_ns: 10_000,
                transfers_per_block: 1,
                step_ns: 2_000_000,
                row_ns: 5_000,
            },
        }
    }

    /// Steps of many shapes, their times off by up to `noise` of 1.
    fn timed(cost: &CostModel, n: u64, noise: f64) -> (Vec<TimedStep>, Vec<TimedSwap>) {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        let off = |ns: u64, r: u64| ns as f64 / 1e9 * (1.0 + noise * (r as f64 / 500.0 - 1.0));
        let mut steps = Vec::new();
        let mut swaps = Vec::new();
        for i in 0..n {
            let mut load = StepLoad::default();
            for _ in 0..random(120) {
                cost.add_row(&mut load, random(4000), 1, 1);
            }
            if i % 2 == 0 {
                cost.add_row(&mut load, random(2000), 1 + random(2000), 1);
            }
            if load.tokens == 0 {
                continue;
            }
            steps.push(TimedStep {
                rows: load.rows,
                linear_flops: load.tokens * cost.work.token_flops
                    + load.sampled * cost.work.head_flops,
                attention_flops: load.attention_flops as u64,
                kv_bytes: load.kv_bytes,
                seconds: off(cost.step(&load).0, random(1000)),
            });
            let blocks = 1 + random(50);
            let bytes = plimsoll_units::Bytes::new(blocks * 1000 * (1 + random(13_000)));
            swaps.push(TimedSwap {
                transfers: blocks,
                bytes: bytes.get(),
                seconds: off(cost.swap(bytes, blocks).0, random(1000)),
            });
        }
        (steps, swaps)
    }

    fn close(fitted: &Rates, truth: &Rates, by: f64) {
        for (name, a, b) in [
            ("flops", fitted.flops_per_s, truth.flops_per_s),
            (
                "memory",
                fitted.memory_bytes_per_s,
                truth.memory_bytes_per_s,
            ),
            ("link", fitted.link_bytes_per_s, truth.link_bytes_per_s),
            ("transfer", fitted.transfer_ns, truth.transfer_ns),
            ("step", fitted.step_ns, truth.step_ns),
            ("row", fitted.row_ns, truth.row_ns),
        ] {
            let error = (a as f64 / b as f64 - 1.0).abs();
            assert!(error <= by, "{name}: {a} for {b}");
        }
    }

    #[test]
    fn exact_times_give_the_rates_back() {
        let cost = truth();
        let (steps, swaps) = timed(&cost, 200, 0.0);
        let fitted = fit(cost.work.weight_bytes, &steps, &swaps).unwrap();
        close(&fitted.rates, &cost.rates, 0.001);
        assert!(fitted.error < 1e-4, "{}", fitted.error);
    }

    #[test]
    fn noisy_times_give_them_nearly() {
        let cost = truth();
        let (steps, swaps) = timed(&cost, 3000, 0.05);
        let fitted = fit(cost.work.weight_bytes, &steps, &swaps).unwrap();
        let (r, t) = (&fitted.rates, &cost.rates);
        for (a, b, by) in [
            (r.flops_per_s, t.flops_per_s, 0.01),
            (r.memory_bytes_per_s, t.memory_bytes_per_s, 0.02),
            (r.link_bytes_per_s, t.link_bytes_per_s, 0.02),
        ] {
            assert!((a as f64 / b as f64 - 1.0).abs() < by, "{r:?}");
        }
        assert!(fitted.error < 0.03, "{}", fitted.error);
    }

    #[test]
    fn a_fixed_time_that_would_be_negative_is_none() {
        let mut cost = truth();
        (cost.rates.step_ns, cost.rates.row_ns) = (0, 0);
        let (steps, swaps) = timed(&cost, 300, 0.02);
        let fitted = fit(cost.work.weight_bytes, &steps, &swaps).unwrap();
        assert!(
            fitted.rates.step_ns < 500_000 && fitted.rates.row_ns < 5_000,
            "{fitted:?}"
        );
    }

    #[test]
    fn blocks_of_one_size_have_their_fixed_time_in_the_rate() {
        let cost = truth();
        let (steps, _) = timed(&cost, 100, 0.0);
        let swap = |blocks: u64| TimedSwap {
            transfers: blocks,
            bytes: blocks * 12_500_000,
            seconds: blocks as f64 * (10e-6 + 500e-6),
        };
        let swaps: Vec<TimedSwap> = (1..50).map(swap).collect();
        let rates = fit(cost.work.weight_bytes, &steps, &swaps).unwrap().rates;
        let expected = 12_500_000.0 / 510e-6;
        assert!((rates.link_bytes_per_s as f64 / expected - 1.0).abs() < 1e-6);
        assert_eq!(rates.transfer_ns, 0);
    }

    #[test]
    fn measurements_that_tell_nothing_are_refused() {
        let cost = truth();
        let weights = cost.work.weight_bytes;
        let (steps, swaps) = timed(&cost, 100, 0.0);
        assert_eq!(fit(weights, &[], &swaps), Err(FitError::StepsAlike));
        assert_eq!(
            fit(weights, &[steps[0]; 50], &swaps),
            Err(FitError::StepsAlike)
        );
        assert_eq!(fit(weights, &steps, &[]), Err(FitError::NoLink));
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let mut bad = steps.clone();
            bad[3].seconds = seconds;
            let error = FitError::NoTime {
                what: "step",
                number: 4,
            };
            assert_eq!(fit(weights, &bad, &swaps), Err(error));
        }
    }
}
