//! [`Learned`]: what step times have taught about the belief.
//!
//! Two rates decide how a victim gives way, and both may be wrong: how fast blocks move, and how fast
//! prompts are computed. A step without transfers that computes for longer than its weights stream tells
//! the second; a step with transfers tells the first, by how much longer it took than it would have without.
//! Of each, what was seen and what was told are summed, older steps counting less, and their quotient
//! corrects the rate. A correction is at most [`MOST`]-fold: beyond that, steps are long for other reasons
//! (another process, a page fault), and a rate that is so wrong was of another machine.
//!
//! Integers only, and nothing but the executor's outputs as input: a replay learns the same.

use plimsoll_units::Bytes;

use crate::cost::{CostModel, Rates, StepLoad};
use crate::step::Step;

/// Rates are corrected by this factor at most, either way.
const MOST: u128 = 4;

/// Both sums are halved when one gets here, so that some ten seconds of work are remembered.
const REMEMBERED_NS: u128 = 10_000_000_000;

/// A step tells how fast it computes where it does so for this many times as long as its weights stream:
/// then it does even if computing is believed half as fast as it is.
const CLEARLY: u64 = 2;

/// Nanoseconds of one kind of work, as seen and as told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    seen: u128,
    told: u128,
}

impl Sums {
    fn add(&mut self, seen: u64, told: u64) {
        self.seen += u128::from(seen);
        self.told += u128::from(told);
        while self.told > REMEMBERED_NS || self.seen > MOST * REMEMBERED_NS {
            self.seen /= 2;
            self.told /= 2;
        }
    }

    /// By what to multiply times: a fraction.
    fn longer(&self) -> (u128, u128) {
        if self.told == 0 {
            return (1, 1);
        }
        let least = self.told.div_ceil(MOST);
        (self.seen.clamp(least, self.told * MOST), self.told)
    }
}

fn times(value: u64, (by, over): (u128, u128)) -> u64 {
    u64::try_from(u128::from(value) * by / over.max(1)).unwrap_or(u64::MAX)
}

/// What step times have taught about the belief.
#[derive(Clone, Debug)]
pub(crate) struct Learned {
    told: CostModel,
    link: Sums,
    prefill: Sums,
}

impl Learned {
    /// Nothing yet: what was `told` is believed.
    pub(crate) fn new(told: CostModel) -> Self {
        Self {
            told,
            link: Sums::default(),
            prefill: Sums::default(),
        }
    }

    /// Somebody is computed again though there was room to swap: what was seen of the link counts half.
    /// A link that was slow for a moment is tried again after some dozens of these.
    pub(crate) fn age_link(&mut self, believed: &mut CostModel) {
        self.link.seen /= 2;
        self.link.told /= 2;
        if self.link.told == 0 {
            self.link = Sums::default();
        }
        self.correct(believed);
    }

    /// Whether no transfer has been seen, or not for long.
    pub(crate) const fn is_link_unseen(&self) -> bool {
        self.link.told == 0
    }

    /// Whether a step tells anything: it moves blocks, or its linear layers compute for clearly longer than
    /// the weights stream.
    pub(crate) fn is_told_by(believed: &CostModel, step: &Step) -> bool {
        let moves = !(step.kv.swaps_out.is_empty() && step.kv.swaps_in.is_empty());
        let prompt = StepLoad {
            tokens: step.tokens.len() as u64,
            ..StepLoad::default()
        };
        let streaming = CLEARLY.saturating_mul(believed.streaming().0);
        moves || prompt.tokens > 0 && believed.computing(&prompt).0 >= streaming
    }

    /// A step of `load`, which [tells something](Self::is_told_by), took `elapsed_ns`; corrects what is
    /// `believed`.
    pub(crate) fn step(&mut self, believed: &mut CostModel, load: &StepLoad, elapsed_ns: u64) {
        let rest = StepLoad {
            swapped_bytes: 0,
            swapped_blocks: 0,
            ..*load
        };
        let without = believed.step(&rest).0;
        if load.swapped_blocks > 0 {
            let told = self
                .told
                .swap(Bytes::new(load.swapped_bytes), load.swapped_blocks);
            self.link.add(elapsed_ns.saturating_sub(without), told.0);
        } else {
            let other = without.saturating_sub(believed.computing(load).0);
            let told = self.told.computing(load);
            self.prefill.add(elapsed_ns.saturating_sub(other), told.0);
        }
        self.correct(believed);
    }

    fn correct(&self, believed: &mut CostModel) {
        let told = &self.told.rates;
        let prefill = self.prefill.longer();
        let link = self.link.longer();
        believed.rates = Rates {
            flops_per_s: times(told.flops_per_s, (prefill.1, prefill.0)).max(1),
            link_bytes_per_s: times(told.link_bytes_per_s, (link.1, link.0)).max(1),
            transfer_ns: times(told.transfer_ns, link),
            ..*told
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Work;

    fn model(flops_per_s: u64, link_bytes_per_s: u64) -> CostModel {
        CostModel {
            work: Work {
                weight_bytes: 1_000_000,
                token_flops: 1_000_000,
                head_flops: 0,
                attention: Vec::new(),
            },
            rates: Rates {
                flops_per_s,
                memory_bytes_per_s: 1_000_000_000,
                link_bytes_per_s,
                transfer_ns: 1000,
                transfers_per_block: 1,
                step_ns: 1000,
                row_ns: 10,
            },
        }
    }

    fn prompt(tokens: u64) -> StepLoad {
        StepLoad {
            rows: 1,
            tokens,
            ..StepLoad::default()
        }
    }

    fn moving(bytes: u64) -> StepLoad {
        StepLoad {
            swapped_bytes: bytes,
            swapped_blocks: 4,
            ..prompt(100)
        }
    }

    #[test]
    fn wrong_rates_come_right_and_wild_ones_only_by_the_most() {
        let truth = model(10_000_000_000, 1_000_000_000);
        for (flops, link, want) in [
            (
                5_000_000_000,
                2_000_000_000,
                (10_000_000_000, 1_000_000_000),
            ),
            (20_000_000_000, 500_000_000, (10_000_000_000, 1_000_000_000)),
            (100_000_000_000, 1_000_000, (25_000_000_000, 4_000_000)),
        ] {
            let told = model(flops, link);
            let mut believed = told.clone();
            let mut learned = Learned::new(told);
            for _ in 0..50 {
                for load in [prompt(100), prompt(1000), moving(10_000_000)] {
                    learned.step(&mut believed, &load, truth.step(&load).0);
                }
            }
            let near = |a: u64, b: u64| a.abs_diff(b) <= b / 50;
            let r = believed.rates;
            assert!(near(r.flops_per_s, want.0), "{r:?}");
            if want.0 == truth.rates.flops_per_s {
                assert!(near(r.link_bytes_per_s, want.1), "{r:?}");
            }
        }
    }

    #[test]
    fn a_link_that_was_slow_for_a_moment_is_a_guess_again() {
        let truth = model(10_000_000_000, 1_000_000_000);
        let mut believed = truth.clone();
        let mut learned = Learned::new(truth.clone());
        let load = moving(10_000_000);
        learned.step(&mut believed, &load, 100 * truth.step(&load).0);
        assert_eq!(believed.rates.link_bytes_per_s, 250_000_000);
        assert!(!learned.is_link_unseen());
        for _ in 0..24 {
            learned.age_link(&mut believed);
        }
        assert!(learned.is_link_unseen());
        assert_eq!(believed.rates, truth.rates);
        learned.step(&mut believed, &load, truth.step(&load).0);
        assert_eq!(believed.rates, truth.rates);
    }

    #[test]
    fn a_true_belief_stays_true() {
        let truth = model(10_000_000_000, 1_000_000_000);
        let mut believed = truth.clone();
        let mut learned = Learned::new(truth.clone());
        for n in 1..2000 {
            let load = if n % 7 == 0 {
                moving(n * 999)
            } else {
                prompt(20 + n)
            };
            learned.step(&mut believed, &load, truth.step(&load).0);
        }
        assert_eq!(believed.rates, truth.rates);
    }
}
