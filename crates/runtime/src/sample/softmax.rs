//! Exponentials and their sums, the same on every machine.
//!
//! Only additions, multiplications and comparisons in a fixed order: no fused multiply-add, no library's
//! exponential, so that a seed gives the same text everywhere.

/// Elements in a row that are added up before their sum is added to those before: whoever looks for an element by the
/// sums up to it passes most of them by the sums of spans.
pub(super) const SPAN: usize = 1024;
/// Sums of a span that run side by side: element i goes to sum i mod this, and they are added in order.
const LANES: usize = 32;

/// e^x for x of at most 0, to about one unit in the last place; 0 below −87.
///
/// x = n ln 2 + r, and a polynomial for e^r (Cephes, `expf`).
#[inline]
#[allow(clippy::excessive_precision, reason = "the constants as published")]
pub(super) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.0;
    // 1.5 × 2^23: adding it rounds to whole numbers, which then stand in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Not `max`, which would ask for NaN: this is one instruction.
    let y = if x > LEAST { x } else { LEAST };
    let shifted = y * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = y - n * 0.693_359_375 - n * -2.121_944_40e-4;
    let p = 1.987_569_15e-4;
    let p = p * r + 1.398_199_95e-3;
    let p = p * r + 8.333_451_91e-3;
    let p = p * r + 4.166_579_59e-2;
    let p = p * r + 1.666_666_55e-1;
    let p = p * r + 5.000_000_12e-1;
    let e = p * r * r + r + 1.0;
    // n is at least −126: the exponent's bits stay above 0.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LEAST { 0.0 } else { e * scale }
}

/// The sum of `f` over `x`, in the fixed order: of spans, first to last.
#[inline]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    x.chunks(SPAN).map(|x| sum_of_span(x, &f)).sum()
}

/// The sum of `f` over a span.
#[inline]
pub(super) fn sum_of_span(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0.0; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        // Apart, so that each of the loops becomes vectors.
        let mut values = [0.0_f32; LANES];
        for (v, x) in values.iter_mut().zip(x) {
            *v = f(*x);
        }
        for (s, v) in sums.iter_mut().zip(values) {
            *s += f64::from(v);
        }
    }
    for (s, x) in sums.iter_mut().zip(rest) {
        *s += f64::from(f(*x));
    }
    sums.into_iter().sum()
}

/// What is taken off a logit to get its log probability.
pub(super) fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    log_of_sum(sum(logits, |x| exp(x - max)), max)
}

/// The same, of the sum of e^(x − max).
pub(super) fn log_of_sum(sum: f64, max: f32) -> f64 {
    f64::from(max) + libm::log(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_close_and_never_odd() {
        let mut worst = 0.0_f64;
        for i in 0..2_000_000 {
            let x = -87.0 * (i as f32) / 2_000_000.0;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 1.5e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(
            [exp(-87.1), exp(f32::MIN), exp(f32::NEG_INFINITY)],
            [0.0; 3]
        );
    }

    #[test]
    fn the_order_of_the_sum_is_fixed() {
        let x: Vec<f32> = (0..3003).map(|i| (i * 7919 % 1000) as f32 * 0.37).collect();
        let mut want = 0.0;
        for span in x.chunks(1024) {
            let mut sums = [0.0_f64; 32];
            for (i, x) in span.iter().enumerate() {
                sums[i % 32] += f64::from(*x);
            }
            want += sums.iter().fold(0.0, |a, b| a + b);
        }
        assert_eq!(sum(&x, |x| x).to_bits(), f64::to_bits(want));
    }
}
