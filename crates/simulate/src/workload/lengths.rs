//! [`Lengths`]: distributions of token counts, and [`Sampler`], one made ready to draw from.
//!
//! Every draw is a quantile: one uniform number gives one length, so a stream never falls out of
//! step, and a larger number never gives a shorter length.

use std::borrow::Cow;

use super::error::{WorkloadError, bad};
use super::random::{normal_cdf, normal_quantile, to_u64};

/// A distribution of token counts, all at least 1 and below 2^32.
#[derive(Clone, Debug, PartialEq)]
pub enum Lengths {
    /// Always this many.
    Fixed(u64),
    /// Every count from `min` to `max`, both included, equally likely.
    Uniform {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Lognormal, drawn between `min` and `max` only. **`mean` is that of what is drawn**: the
    /// location is solved for it. `cv` is that of the whole lognormal before the ends are cut
    /// off, so what is drawn spreads somewhat less.
    LogNormal {
        /// Mean tokens of what is drawn.
        mean: f64,
        /// Standard deviation over mean, before truncation.
        cv: f64,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Given by some of its quantiles.
    Quantiles(Quantiles),
}

/// A distribution known by some of its quantiles, and perhaps its mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantiles {
    /// Probability and tokens, both increasing; the first probability is 0 and the last is 1.
    pub knots: Cow<'static, [(f64, u64)]>,
    /// Mean tokens. Between two knots the quantile is `low + (high - low) t^g`, with the one `g`
    /// that gives this mean; it is a straight line (`g` = 1) where the mean is not known.
    pub mean: Option<f64>,
}

/// Counts at and beyond this are refused.
const LIMIT: u64 = 1 << 32;

/// A distribution ready to be drawn from.
#[derive(Clone, Debug)]
pub(super) enum Sampler {
    Fixed(u64),
    Uniform { min: u64, max: u64 },
    LogNormal(Truncated),
    Quantiles { knots: Vec<(f64, u64)>, power: f64 },
}

/// A lognormal of location `mu` and scale `sigma`, kept between `min` and `max`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Truncated {
    mu: f64,
    sigma: f64,
    min: u64,
    max: u64,
}

impl Sampler {
    /// Prepares `lengths`. Draws will be held below `caps`, equally likely each, or have no cap
    /// where there are none; a lognormal is solved to have its mean over all of them.
    pub(super) fn new(
        what: &'static str,
        lengths: &Lengths,
        caps: &[u64],
    ) -> Result<Self, WorkloadError> {
        let range = |min: u64, max: u64| {
            if min == 0 || min > max || max >= LIMIT {
                return Err(bad(
                    what,
                    format!("{min} to {max} tokens: must be 1 <= min <= max < 2^32"),
                ));
            }
            Ok(())
        };
        match lengths {
            &Lengths::Fixed(n) => {
                range(n, n)?;
                Ok(Self::Fixed(n))
            }
            &Lengths::Uniform { min, max } => {
                range(min, max)?;
                Ok(Self::Uniform { min, max })
            }
            &Lengths::LogNormal { mean, cv, min, max } => {
                range(min, max)?;
                Truncated::solve(what, mean, cv, (min, max), caps).map(Self::LogNormal)
            }
            Lengths::Quantiles(q) => {
                let (Some(&(p_first, low)), Some(&(p_last, high))) =
                    (q.knots.first(), q.knots.last())
                else {
                    return Err(bad(what, "a table of quantiles needs at least two"));
                };
                range(low, high)?;
                let increasing = q
                    .knots
                    .windows(2)
                    .all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1);
                if p_first != 0.0 || p_last != 1.0 || !increasing {
                    return Err(bad(
                        what,
                        "quantiles must increase from probability 0 to probability 1",
                    ));
                }
                Ok(Self::Quantiles {
                    knots: q.knots.to_vec(),
                    power: power(what, q)?,
                })
            }
        }
    }

    /// The smallest count that can be drawn.
    pub(super) fn min(&self) -> u64 {
        match self {
            Self::Fixed(n) => *n,
            Self::Uniform { min, .. } => *min,
            Self::LogNormal(t) => t.min,
            Self::Quantiles { knots, .. } => knots.first().map_or(1, |k| k.1),
        }
    }

    /// The count at probability `u` in (0, 1). With a cap, a lognormal is truncated there, and
    /// any other distribution is cut to it.
    pub(super) fn quantile(&self, u: f64, cap: Option<u64>) -> u64 {
        let cap = cap.unwrap_or(LIMIT);
        let n = match self {
            Self::Fixed(n) => *n,
            Self::Uniform { min, max } => {
                let width = (max - min + 1) as f64;
                (min + to_u64(libm::floor(u * width)).unwrap_or(0)).min(*max)
            }
            Self::LogNormal(t) => t.quantile(u, cap),
            Self::Quantiles { knots, power } => {
                let above = knots
                    .partition_point(|k| k.0 <= u)
                    .clamp(1, knots.len() - 1);
                let ((p0, low), (p1, high)) = (knots[above - 1], knots[above]);
                let t = libm::pow((u - p0) / (p1 - p0), *power);
                to_u64(low as f64 + (high - low) as f64 * t).unwrap_or(low)
            }
        };
        n.min(cap)
    }
}

/// The `g` of [`Quantiles::mean`]. A segment of weight `w` has mean `low + (high - low)/(g + 1)`,
/// so `1/(g + 1) = (mean - sum of w low) / (sum of w (high - low))`.
fn power(what: &'static str, q: &Quantiles) -> Result<f64, WorkloadError> {
    let Some(mean) = q.mean else {
        return Ok(1.0);
    };
    let (mut lows, mut rises) = (0.0, 0.0);
    for w in q.knots.windows(2) {
        let weight = w[1].0 - w[0].0;
        lows += weight * w[0].1 as f64;
        rises += weight * (w[1].1 - w[0].1) as f64;
    }
    let part = (mean - lows) / rises;
    if !(part > 0.01 && part < 0.99) {
        return Err(bad(
            what,
            format!(
                "mean {mean}: with these quantiles it must lie between {lows} and {}",
                lows + rises
            ),
        ));
    }
    Ok(1.0 / part - 1.0)
}

impl Truncated {
    fn solve(
        what: &'static str,
        mean: f64,
        cv: f64,
        (min, max): (u64, u64),
        caps: &[u64],
    ) -> Result<Self, WorkloadError> {
        if !(0.001..=10.0).contains(&cv) {
            return Err(bad(
                what,
                format!("cv {cv}: must be in 0.001 to 10; `fixed` has none"),
            ));
        }
        let sigma = libm::sqrt(libm::log1p(cv * cv));
        let at = |mu| Self {
            mu,
            sigma,
            min,
            max,
        };
        let mean_at = |mu: f64| {
            let t = at(mu);
            if caps.is_empty() {
                return t.mean(max);
            }
            caps.iter().map(|&cap| t.mean(cap.min(max))).sum::<f64>() / caps.len() as f64
        };
        // The mean grows with the location. Beyond six sigma from an end, what is left is a spike
        // at that end, which is no lognormal to speak of.
        let mut low = libm::log(min as f64) - 6.0 * sigma;
        let mut high = libm::log(max as f64) + 6.0 * sigma;
        let (least, most) = (mean_at(low), mean_at(high));
        if !(least < mean && mean < most) {
            return Err(bad(
                what,
                format!(
                    "mean {mean}: a lognormal of cv {cv} between {min} and {max} has means from \
                     {least:.1} to {most:.1}"
                ),
            ));
        }
        // Halving 60 times leaves less than the spacing of numbers.
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if mean_at(middle) < mean {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(at(0.5 * (low + high)))
    }

    /// `x` in units of sigma.
    fn z(&self, x: f64) -> f64 {
        (libm::log(x) - self.mu) / self.sigma
    }

    /// Ends in units of sigma, for draws up to `max`. A count `n` stands for `n - 0.5` to
    /// `n + 0.5`, hence the halves.
    fn ends(&self, max: u64) -> (f64, f64) {
        (self.z(self.min as f64 - 0.5), self.z(max as f64 + 0.5))
    }

    /// The mean of what is drawn below `max`, in whole tokens.
    ///
    /// The integral of `x` over the lognormal between two points is `exp(mu + sigma^2/2)` times
    /// the normal mass between them after moving both by sigma (Johnson, Kotz and Balakrishnan,
    /// Continuous Univariate Distributions, ch. 14). The first [`Self::HEAD`] counts, where
    /// rounding to whole tokens matters, are summed one by one.
    fn mean(&self, max: u64) -> f64 {
        let (za, zb) = self.ends(max);
        let mass = between(za, zb);
        if mass <= 0.0 {
            // All of it lies beyond one end.
            return if za > 0.0 { self.min } else { max } as f64;
        }
        let head_end = (self.min + Self::HEAD).min(max + 1);
        let (mut sum, mut z) = (0.0, za);
        for n in self.min..head_end {
            let above = self.z(n as f64 + 0.5);
            sum += n as f64 * between(z, above);
            z = above;
        }
        let tail = between(z - self.sigma, zb - self.sigma).max(0.0);
        sum += libm::exp(self.mu + 0.5 * self.sigma * self.sigma) * tail;
        (sum / mass).clamp(self.min as f64, max as f64)
    }

    /// From here on, rounding changes the mean by less than one part in a thousand.
    const HEAD: u64 = 16;

    fn quantile(&self, u: f64, cap: u64) -> u64 {
        let max = self.max.min(cap).max(self.min);
        let (za, zb) = self.ends(max);
        // In whichever tail the numbers are small, and so exact.
        let z = if za > 0.0 {
            let (qa, qb) = (normal_cdf(-za), normal_cdf(-zb));
            -normal_quantile((qa + u * (qb - qa)).max(f64::MIN_POSITIVE))
        } else {
            let (pa, pb) = (normal_cdf(za), normal_cdf(zb));
            normal_quantile((pa + u * (pb - pa)).clamp(f64::MIN_POSITIVE, 1.0 - f64::EPSILON))
        };
        let x = libm::exp(self.mu + self.sigma * z);
        to_u64(x).unwrap_or(max).clamp(self.min, max)
    }
}

/// The normal mass between two points, taken from the tail where it is exact.
fn between(za: f64, zb: f64) -> f64 {
    if za > 0.0 {
        normal_cdf(-za) - normal_cdf(-zb)
    } else {
        normal_cdf(zb) - normal_cdf(za)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean by the midpoint rule over the quantile function.
    fn mean_of(sampler: &Sampler) -> f64 {
        const N: u32 = 100_000;
        let u = |i| (f64::from(i) + 0.5) / f64::from(N);
        (0..N)
            .map(|i| sampler.quantile(u(i), None) as f64)
            .sum::<f64>()
            / f64::from(N)
    }

    #[test]
    fn a_truncated_lognormal_has_the_mean_asked_for() {
        for (mean, cv, min, max) in [
            (338.0, 0.87, 1, 2047),
            (338.0, 0.87, 4, 1024),
            (19.31, 0.7, 1, 2047),
            (100.0, 0.01, 1, 1000),
            (5.0, 3.0, 1, 100),
            (850.0, 1.0, 1, 1000),
            (50_000.0, 2.0, 1, 1_000_000),
        ] {
            let lengths = Lengths::LogNormal { mean, cv, min, max };
            let sampler = Sampler::new("in", &lengths, &[]).unwrap();
            let got = mean_of(&sampler);
            assert!((got / mean - 1.0).abs() < 1e-3, "{lengths:?}: {got}");
        }
    }

    #[test]
    fn a_table_of_quantiles_has_its_quantiles_and_its_mean() {
        let q = Quantiles {
            knots: Cow::Borrowed(&[(0.0, 6), (0.5, 13), (0.9, 55), (1.0, 1899)]),
            mean: Some(60.0),
        };
        let sampler = Sampler::new("out", &Lengths::Quantiles(q), &[]).unwrap();
        assert!((mean_of(&sampler) - 60.0).abs() < 0.1);
        assert_eq!(sampler.quantile(0.5, None), 13);
        assert_eq!(sampler.quantile(0.9, None), 55);
        assert_eq!(sampler.quantile(1.0 - 1e-12, None), 1899);
        assert_eq!(sampler.quantile(1e-12, None), 6);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_range() {
        let log = |mean, cv, min, max| Lengths::LogNormal { mean, cv, min, max };
        for lengths in [
            log(2000.0, 1.0, 1, 1000),
            log(f64::NAN, 1.0, 1, 1000),
            log(10.0, 0.0, 1, 1000),
            log(10.0, f64::INFINITY, 1, 1000),
            log(10.0, 1.0, 0, 1000),
            Lengths::Fixed(0),
            Lengths::Fixed(1 << 32),
            Lengths::Uniform { min: 3, max: 2 },
        ] {
            assert!(Sampler::new("in", &lengths, &[]).is_err(), "{lengths:?}");
        }
    }

    #[test]
    fn a_uniform_reaches_both_ends() {
        let s = Sampler::new("in", &Lengths::Uniform { min: 3, max: 5 }, &[]).unwrap();
        assert_eq!(s.quantile(1e-9, None), 3);
        assert_eq!(s.quantile(1.0 - 1e-9, None), 5);
        assert!((mean_of(&s) - 4.0).abs() < 1e-3);
        assert_eq!(s.quantile(0.9, Some(4)), 4);
    }
}
