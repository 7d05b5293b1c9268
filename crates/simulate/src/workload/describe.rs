//! [`describe`]: the statistics by which a workload is known and compared.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_units::Nanos;

use super::WorkloadError;
use crate::{Arrival, Content};

/// A workload in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Requests.
    pub requests: u64,
    /// From the first arrival to the last.
    pub span: Nanos,
    /// Requests per second: gaps over span; `None` where all arrive at once.
    pub per_second: Option<f64>,
    /// Prompt tokens.
    pub input: LengthStatistics,
    /// Generated tokens.
    pub output: LengthStatistics,
    /// Recorded blocks ([`Content::Blocks`]) of all prompts, a partly filled last one included.
    pub blocks: u64,
    /// Different ids among them.
    pub blocks_distinct: u64,
}

impl Description {
    /// The share of recorded blocks that a cache without limits has seen before, 0 to 1; `None`
    /// where the workload records no blocks.
    #[must_use]
    pub fn reuse(&self) -> Option<f64> {
        let seen_before = self.blocks - self.blocks_distinct;
        (self.blocks > 0).then(|| seen_before as f64 / self.blocks as f64)
    }
}

/// Token counts in numbers. A quantile is the smallest count that at least this share of the
/// requests does not exceed (nearest rank), hence one that occurs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LengthStatistics {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the population.
    pub sd: f64,
    /// Smallest.
    pub min: u64,
    /// First quartile.
    pub p25: u64,
    /// Median.
    pub p50: u64,
    /// Third quartile.
    pub p75: u64,
    /// 90 of 100.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

/// Reads a workload to its end. Memory grows with the number of different lengths and block ids,
/// not with that of requests.
///
/// # Errors
/// The first error of the workload.
pub fn describe(
    workload: impl IntoIterator<Item = Result<Arrival, WorkloadError>>,
) -> Result<Description, WorkloadError> {
    let (mut input, mut output) = (Counts::default(), Counts::default());
    let (mut first, mut last) = (None, Nanos(0));
    let (mut blocks, mut distinct) = (0, BTreeSet::new());
    for arrival in workload {
        let arrival = arrival?;
        first.get_or_insert(arrival.at);
        last = arrival.at;
        input.add(arrival.prompt_tokens);
        output.add(arrival.output_tokens);
        if let Content::Blocks { ids, .. } = &arrival.content {
            blocks += ids.len() as u64;
            distinct.extend(ids.iter().copied());
        }
    }
    let span = last.get().saturating_sub(first.unwrap_or(last).get());
    let gaps = input.total.saturating_sub(1);
    Ok(Description {
        requests: input.total,
        span: Nanos(span),
        per_second: (span > 0).then(|| gaps as f64 / (span as f64 / 1e9)),
        input: input.statistics(),
        output: output.statistics(),
        blocks,
        blocks_distinct: distinct.len() as u64,
    })
}

/// How often each count occurs.
#[derive(Debug, Default)]
struct Counts {
    of: BTreeMap<u64, u64>,
    total: u64,
}

impl Counts {
    fn add(&mut self, n: u64) {
        *self.of.entry(n).or_default() += 1;
        self.total += 1;
    }

    fn statistics(&self) -> LengthStatistics {
        if self.total == 0 {
            return LengthStatistics::default();
        }
        let total = self.total as f64;
        let weighted = |f: &dyn Fn(f64) -> f64| {
            let sum: f64 = self.of.iter().map(|(&n, &k)| f(n as f64) * k as f64).sum();
            sum / total
        };
        let mean = weighted(&|n| n);
        let variance = weighted(&|n| (n - mean) * (n - mean));
        let quantile = |percent: u64| {
            let rank = u128::from(percent) * u128::from(self.total);
            let rank = rank.div_ceil(100).max(1);
            let mut passed = 0_u128;
            for (&n, &k) in &self.of {
                passed += u128::from(k);
                if passed >= rank {
                    return n;
                }
            }
            0
        };
        LengthStatistics {
            mean,
            sd: libm::sqrt(variance),
            min: quantile(0),
            p25: quantile(25),
            p50: quantile(50),
            p75: quantile(75),
            p90: quantile(90),
            p99: quantile(99),
            max: quantile(100),
        }
    }
}
