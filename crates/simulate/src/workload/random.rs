//! The named generator, its separate streams, and the processes drawn from it.
//!
//! The generator is PCG64 (`Lcg128Xsl64`, O'Neill 2014) from `rand_pcg`, pinned: its output is
//! documented as portable. Every purpose has a stream of its own, so that a change to one (say
//! the lengths) leaves the others (say the arrivals) where they were. Transcendental functions
//! come from `libm`, which is the same code on every machine, and never from the platform.
//! `rand_distr` is not used: it takes its logarithms from the platform, and its rejection loops
//! draw a varying number of values per request.

use plimsoll_units::Nanos;
use rand_pcg::Pcg64;
use rand_pcg::rand_core::Rng as _;

use super::error::{WorkloadError, bad};
use super::spec::ArrivalProcess;

/// What a stream of random numbers is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Arrivals = 1,
    Input = 2,
    Output = 3,
    Prefix = 4,
    Fan = 5,
    Tenant = 6,
}

/// Uniform numbers of one stream.
#[derive(Clone, Debug)]
pub(super) struct Uniform(Pcg64);

impl Uniform {
    pub(super) fn new(seed: u64, stream: Stream) -> Self {
        let n = stream as u64;
        let high = mix(seed ^ mix(n));
        let low = mix(high ^ seed);
        let state = (u128::from(high) << 64) | u128::from(low);
        Self(Pcg64::new(state, u128::from(n)))
    }

    /// A number inside (0, 1), both ends excluded, in steps of 2^-53.
    pub(super) fn next(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1_u64 << 53) as f64;
        ((self.0.next_u64() >> 11) as f64 + 0.5) * STEP
    }
}

/// SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): a bijection that scatters bits.
pub(super) const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Arrival times, one after another; the first is 0, as that of a trace is.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    uniform: Uniform,
    process: ArrivalProcess,
    at: u64,
    index: u64,
}

impl Clock {
    pub(super) fn new(process: ArrivalProcess, seed: u64) -> Result<Self, WorkloadError> {
        let rate = process.per_second();
        // An infinite rate is allowed: everything arrives at once.
        if rate.is_nan() || rate <= 0.0 {
            return Err(bad(
                "rate",
                format!("{rate} requests per second: must be above 0"),
            ));
        }
        if let ArrivalProcess::Gamma { cv, .. } = process
            && !(0.01..=100.0).contains(&cv)
        {
            return Err(bad(
                "cv",
                format!("{cv}: the gaps' coefficient of variation must be in 0.01 to 100"),
            ));
        }
        Ok(Self {
            uniform: Uniform::new(seed, Stream::Arrivals),
            process,
            at: 0,
            index: 0,
        })
    }

    pub(super) fn next(&mut self) -> Result<Nanos, WorkloadError> {
        if self.index > 0 {
            let unit = match self.process {
                ArrivalProcess::Poisson { .. } => -libm::log(self.uniform.next()),
                ArrivalProcess::Gamma { cv, .. } => {
                    let shape = 1.0 / (cv * cv);
                    gamma(&mut self.uniform, shape) / shape
                }
            };
            let gap = unit / self.process.per_second() * 1e9;
            let overflow = WorkloadError::TimeOverflow { index: self.index };
            let gap = to_u64(gap).ok_or_else(|| overflow.clone())?;
            self.at = self.at.checked_add(gap).ok_or(overflow)?;
        }
        self.index += 1;
        Ok(Nanos(self.at))
    }
}

/// A non-negative real number rounded to the nearest integer, where it fits.
pub(super) fn to_u64(x: f64) -> Option<u64> {
    const LIMIT: f64 = 18_446_744_073_709_551_616.0; // 2^64
    let x = libm::round(x);
    (0.0..LIMIT).contains(&x).then_some(x as u64)
}

/// A Gamma number of this shape and scale 1 (Marsaglia and Tsang 2000, with their boost below 1).
fn gamma(uniform: &mut Uniform, shape: f64) -> f64 {
    if shape < 1.0 {
        let boost = libm::pow(uniform.next(), 1.0 / shape);
        return gamma(uniform, shape + 1.0) * boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / libm::sqrt(9.0 * d);
    loop {
        let x = normal_quantile(uniform.next());
        let v = 1.0 + c * x;
        if v <= 0.0 {
            continue;
        }
        let v = v * v * v;
        if libm::log(uniform.next()) < 0.5 * x * x + d - d * v + d * libm::log(v) {
            return d * v;
        }
    }
}

/// The standard normal's distribution function.
pub(super) fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2)
}

/// The standard normal's quantile for `p` in (0, 1), to about 1e-16: Wichura, algorithm AS 241.
pub(super) fn normal_quantile(p: f64) -> f64 {
    let horner = |c: &[f64], r: f64| c.iter().fold(0.0, |sum, &k| sum * r + k);
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180_625 - q * q;
        return q * horner(&CENTRE.0, r) / horner(&CENTRE.1, r);
    }
    let r = libm::sqrt(-libm::log(if q <= 0.0 { p } else { 1.0 - p }));
    let (table, r) = if r <= 5.0 {
        (&MIDDLE, r - 1.6)
    } else {
        (&TAIL, r - 5.0)
    };
    let x = horner(&table.0, r) / horner(&table.1, r);
    if q < 0.0 { -x } else { x }
}

type Rational = ([f64; 8], [f64; 8]);

#[rustfmt::skip]
const CENTRE: Rational = (
    [2.509_080_928_730_122_7e3, 3.343_057_558_358_813e4, 6.726_577_092_700_87e4,
     4.592_195_393_154_987e4, 1.373_169_376_550_946_2e4, 1.971_590_950_306_551_3e3,
     1.331_416_678_917_843_8e2, 3.387_132_872_796_366_5],
    [5.226_495_278_852_854e3, 2.872_908_573_572_194_3e4, 3.930_789_580_009_271e4,
     2.121_379_430_158_659_7e4, 5.394_196_021_424_751e3, 6.871_870_074_920_579e2,
     4.231_333_070_160_091e1, 1.0],
);
#[rustfmt::skip]
const MIDDLE: Rational = (
    [7.745_450_142_783_414e-4, 2.272_384_498_926_918_4e-2, 2.417_807_251_774_506e-1,
     1.270_458_252_452_368_4, 3.647_848_324_763_204_5, 5.769_497_221_460_691,
     4.630_337_846_156_546, 1.423_437_110_749_683_5],
    [1.050_750_071_644_416_9e-9, 5.475_938_084_995_345e-4, 1.519_866_656_361_645_7e-2,
     1.481_039_764_274_800_8e-1, 6.897_673_349_851e-1, 1.676_384_830_183_803_8,
     2.053_191_626_637_759, 1.0],
);
#[rustfmt::skip]
const TAIL: Rational = (
    [2.010_334_399_292_288_1e-7, 2.711_555_568_743_487_6e-5, 1.242_660_947_388_078_4e-3,
     2.653_218_952_657_612_4e-2, 2.965_605_718_285_048_7e-1, 1.784_826_539_917_291_3,
     5.463_784_911_164_114, 6.657_904_643_501_104],
    [2.044_263_103_389_939_8e-15, 1.421_511_758_316_446e-7, 1.846_318_317_510_054_8e-5,
     7.868_691_311_456_133e-4, 1.487_536_129_085_061_5e-2, 1.369_298_809_227_358e-1,
     5.998_322_065_558_88e-1, 1.0],
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_quantile_inverts_the_distribution() {
        for i in 1..1000 {
            let p = f64::from(i) / 1000.0;
            assert!((normal_cdf(normal_quantile(p)) - p).abs() < 1e-14, "{p}");
        }
        for p in [1e-12, 1e-20, 1e-100] {
            let back = normal_cdf(normal_quantile(p));
            assert!((back / p - 1.0).abs() < 1e-9, "{p}: {back}");
        }
        assert!((normal_quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-14);
    }

    #[test]
    fn gaps_have_the_rate_and_the_spread_asked_for() {
        for (process, cv) in [
            (ArrivalProcess::Poisson { per_second: 4.0 }, 1.0),
            (
                ArrivalProcess::Gamma {
                    per_second: 4.0,
                    cv: 0.5,
                },
                0.5,
            ),
            (
                ArrivalProcess::Gamma {
                    per_second: 4.0,
                    cv: 2.0,
                },
                2.0,
            ),
        ] {
            let mut clock = Clock::new(process, 7).unwrap();
            assert_eq!(clock.next(), Ok(Nanos(0)));
            let (n, mut before, mut sum, mut squares) = (200_000_u32, 0, 0.0, 0.0);
            for _ in 0..n {
                let at = clock.next().unwrap().get();
                let gap = (at - before) as f64 / 1e9;
                before = at;
                sum += gap;
                squares += gap * gap;
            }
            let mean = sum / f64::from(n);
            let sd = (squares / f64::from(n) - mean * mean).sqrt();
            assert!((mean - 0.25).abs() < 0.005, "{process:?}: mean {mean}");
            assert!((sd / mean / cv - 1.0).abs() < 0.03, "{process:?}: sd {sd}");
        }
    }

    #[test]
    fn an_infinite_rate_sends_everything_at_once() {
        let rate = f64::INFINITY;
        let mut clock = Clock::new(ArrivalProcess::Poisson { per_second: rate }, 0).unwrap();
        assert!((0..5).all(|_| clock.next() == Ok(Nanos(0))));
    }
}
