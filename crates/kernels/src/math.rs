//! Functions of one number that every device computes alike: from operations that are rounded the same everywhere, in one
//! order. The kernels of GPUs have the same ones (`plimsoll-cuda`, `prelude.cuh`).

use crate::lanes::{LANES, Lanes, Scalar};

/// e^x, as kernels compute it lane by lane.
pub(crate) fn exp(x: f32) -> f32 {
    Scalar::splat(x).exp().array()[LANES - 1]
}

/// The hyperbolic tangent, as kernels compute it lane by lane.
#[must_use]
pub fn tanh(x: f32) -> f32 {
    Scalar::splat(x).tanh().array()[LANES - 1]
}

/// ln(1 + y) of a number that is not negative.
///
/// 1 + y = 2^n m with m below √2, and with s = f / (2 + f) for f = m − 1 the series of 2 artanh s.
pub(crate) fn ln_1p(y: f32) -> f32 {
    if !y.is_finite() {
        return y;
    }
    let y = f64::from(y);
    let (mut m, mut n) = (1.0 + y, 0.0);
    while m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        n += 1.0;
    }
    let f = if n > 0.0 { m - 1.0 } else { y };
    let s = f / (2.0 + f);
    let z = s * s;
    let mut p = 1.0 / 17.0;
    for i in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = f64::mul_add(p, z, 1.0 / i);
    }
    #[allow(clippy::cast_possible_truncation, reason = "rounds to f32")]
    let sum = f64::mul_add(n, std::f64::consts::LN_2, 2.0 * s * p) as f32;
    sum
}

/// Cosine and sine of an angle that is not negative and below 2³¹, to 3 · 10⁻¹⁵.
///
/// The angle less whole quarters of a turn, which are taken off in two parts, and Taylor's series of both.
#[must_use]
pub fn cos_sin(x: f64) -> (f64, f64) {
    const QUARTER: [f64; 2] = [std::f64::consts::FRAC_PI_2, 6.123_233_995_736_766e-17];
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = f64::mul_add(-n, QUARTER[0], x);
    let r = f64::mul_add(-n, QUARTER[1], r);
    let z = r * r;
    let mut s = 1.0 / 1_307_674_368_000.0;
    for f in [
        6_227_020_800.0,
        39_916_800.0,
        362_880.0,
        5_040.0,
        120.0,
        6.0,
    ] {
        s = f64::mul_add(-s, z, 1.0 / f);
    }
    let s = f64::mul_add(-(s * z), r, r);
    let mut c = 1.0 / 87_178_291_200.0;
    for f in [479_001_600.0, 3_628_800.0, 40_320.0, 720.0, 24.0, 2.0] {
        c = f64::mul_add(-c, z, 1.0 / f);
    }
    let c = f64::mul_add(-c, z, 1.0);
    #[allow(clippy::cast_possible_truncation, reason = "below 2^31")]
    match n as i64 & 3 {
        0 => (c, s),
        1 => (-s, c),
        2 => (-c, -s),
        _ => (s, -c),
    }
}

/// Polynomials of erf(x) / x in 2x² − 1 below 1, and of erf(x) in 2x − 3, 2x − 5 and 2x − 7 between whole numbers
/// after it: Chebyshev's sums of degree 8 and 9, written out.
const ERF: [[f32; 10]; 4] = [
    [
        0.96546876,
        -0.14053608,
        0.019852497,
        -0.0022854856,
        0.00021751717,
        -1.7536824e-5,
        1.2233627e-6,
        -7.5574924e-8,
        4.1387667e-9,
        0.0,
    ],
    [
        0.96610516,
        0.059465144,
        -0.044598855,
        0.017344026,
        -0.0027874655,
        -0.00046471384,
        0.00030208484,
        -3.672784e-5,
        -9.38254e-6,
        3.0086162e-6,
    ],
    [
        0.999593,
        0.0010891422,
        -0.0013614342,
        0.0010437603,
        -0.0005388449,
        0.00019117187,
        -4.3878314e-5,
        4.2271654e-6,
        1.1965309e-6,
        -4.792871e-7,
    ],
    [
        0.9999993,
        2.6997145e-6,
        -4.724086e-6,
        5.2869145e-6,
        -4.235677e-6,
        2.5662764e-6,
        -1.2054018e-6,
        4.542747e-7,
        -1.4467747e-7,
        3.0359473e-8,
    ],
];

/// The error function, to about one unit in the last place.
pub(crate) fn erf(x: f32) -> f32 {
    let size = x.abs();
    let (of, t) = if size < 1.0 {
        (0, f32::mul_add(2.0, size * size, -1.0))
    } else if size < 2.0 {
        (1, f32::mul_add(2.0, size, -3.0))
    } else if size < 3.0 {
        (2, f32::mul_add(2.0, size, -5.0))
    } else if size < 4.0 {
        (3, f32::mul_add(2.0, size, -7.0))
    } else if x.is_nan() {
        return x;
    } else {
        return 1.0_f32.copysign(x);
    };
    let [rest @ .., last] = ERF[of];
    let p = rest.iter().rev().fold(last, |p, c| f32::mul_add(p, t, *c));
    if of == 0 { x * p } else { p.copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_those_of_a_library() {
        for i in -400_000..400_000 {
            let x = i as f32 / 10_000.0;
            let error = (f64::from(erf(x)) - libm::erf(f64::from(x))).abs();
            assert!(error < 1.3e-7, "erf({x}): {error}");
            let y = x.exp();
            let want = libm::log1p(f64::from(y));
            let error = (f64::from(ln_1p(y)) - want).abs();
            assert!(error <= 6e-8 * want, "ln(1 + {y}): {error}");
        }
        assert!(erf(f32::NAN).is_nan() && ln_1p(f32::INFINITY).is_infinite());
        assert_eq!(
            [erf(9.0), erf(-9.0), erf(0.0), ln_1p(0.0)],
            [1.0, -1.0, 0.0, 0.0]
        );
    }

    #[test]
    fn angles_of_long_contexts_are_exact() {
        let mut angle = 0.0_f64;
        while angle < 2e9 {
            let (cos, sin) = cos_sin(angle);
            let error = (cos - libm::cos(angle))
                .abs()
                .max((sin - libm::sin(angle)).abs());
            assert!(error < 3e-15, "{angle}: {error}");
            angle = angle * 1.000_37 + 0.001_3;
        }
    }
}
