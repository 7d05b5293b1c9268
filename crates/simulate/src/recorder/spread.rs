//! [`Spread`]: how durations are distributed, in memory that does not grow with their number.

use hdrhistogram::Histogram;
use plimsoll_report::simulation::Percentiles;

/// Nanoseconds in a second.
pub(super) const SECOND: f64 = 1e9;

/// A distribution of durations in nanoseconds. Percentiles are within 0.1 %, mean and maximum exact.
#[derive(Clone, Debug)]
pub struct Spread {
    histogram: Histogram<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Default for Spread {
    fn default() -> Self {
        Self {
            histogram: Histogram::new(3).expect("three digits are a legal precision"),
            count: 0,
            sum: 0,
            max: 0,
        }
    }
}

impl Spread {
    /// Adds a duration.
    pub fn add(&mut self, ns: u64) {
        // It grows as needed; were that ever refused, its last bucket takes the value.
        if self.histogram.record(ns).is_err() {
            self.histogram.saturating_record(ns);
        }
        self.count += 1;
        self.sum += u128::from(ns);
        self.max = self.max.max(ns);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The wire form, in seconds; `None` where nothing was added.
    #[must_use]
    pub fn percentiles(&self) -> Option<Percentiles> {
        if self.count == 0 {
            return None;
        }
        // A bucket's upper end may lie above the largest value in it.
        let at = |q: f64| self.histogram.value_at_quantile(q).min(self.max) as f64 / SECOND;
        Some(Percentiles {
            count: self.count,
            mean_s: self.sum as f64 / self.count as f64 / SECOND,
            p50_s: at(0.50),
            p90_s: at(0.90),
            p99_s: at(0.99),
            max_s: self.max as f64 / SECOND,
        })
    }
}
