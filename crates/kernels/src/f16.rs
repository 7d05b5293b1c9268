//! IEEE half: eleven bits of significand, exponents from −14 to 15, and subnormals below.

/// The largest finite half, 65,504.
const MAX: u32 = 0x7bff;
/// Infinity, as an f32 and as a half.
const INFINITE: (u32, u16) = (0x7f80_0000, 0x7c00);
/// 2⁻¹⁴, the least normal half, as an f32.
const NORMAL: u32 = 0x3880_0000;

/// The value of an IEEE half.
#[inline]
#[must_use]
pub const fn f32_from_f16(bits: u16) -> f32 {
    let sign = ((bits & 0x8000) as u32) << 16;
    let rest = (bits & 0x7fff) as u32;
    // Exponent and mantissa in their places, the exponent 112 too small: exact, also for what is subnormal.
    let number = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    // Infinities and NaN keep the largest exponent. No branch: the loop becomes vectors.
    let special = if rest >= 0x7c00 { INFINITE.0 } else { 0 };
    f32::from_bits(number.to_bits() | special | sign)
}

/// The nearest half, ties to even. Numbers beyond 65,504 become that, the nearest that there is; infinities and NaN
/// stay what they are.
#[inline]
#[must_use]
pub const fn f16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let size = bits & 0x7fff_ffff;
    let half = if size > INFINITE.0 {
        0x7e00
    } else if size == INFINITE.0 {
        INFINITE.1
    } else if size < NORMAL {
        // The last bit of 0.5 is worth 2⁻²⁴, as that of a subnormal half: the sum is rounded to it.
        ((f32::from_bits(size) + 0.5).to_bits() - 0.5_f32.to_bits()) as u16
    } else {
        let odd = (size >> 13) & 1;
        let near = (size - (112 << 23) + 0xfff + odd) >> 13;
        (if near < MAX { near } else { MAX }) as u16
    };
    sign | half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_definition() {
        for bits in 0..=u16::MAX {
            let (e, m) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let want = match e {
                31 if m == 0.0 => sign * f64::INFINITY,
                31 => f64::NAN,
                0 => sign * m * 2_f64.powi(-24),
                _ => sign * (1.0 + m / 1024.0) * 2_f64.powi(e - 15),
            };
            let got = f32_from_f16(bits);
            if want.is_nan() {
                assert!(got.is_nan() && f32_from_f16(f16_from_f32(got)).is_nan());
            } else {
                assert_eq!(f64::from(got).to_bits(), want.to_bits(), "{bits:#x}");
                // And back: every half is the nearest to itself.
                assert_eq!(f16_from_f32(got), bits, "{got}");
            }
        }
    }

    /// Between two neighbours, the nearer one, and of two as near the even one: subnormals, powers of two and the largest.
    #[test]
    fn rounds_to_nearest_even() {
        for low in 0..0x7bff_u16 {
            let [a, b] = [low, low + 1].map(|h| f64::from(f32_from_f16(h)));
            #[allow(clippy::cast_possible_truncation, reason = "exact")]
            let middle = ((a + b) / 2.0) as f32;
            assert_eq!(f64::from(middle), (a + b) / 2.0);
            let even = low + (low & 1);
            for (x, want) in [
                (middle.next_down(), low),
                (middle, even),
                (middle.next_up(), low + 1),
            ] {
                assert_eq!(f16_from_f32(x), want, "{x:e}");
                assert_eq!(f16_from_f32(-x), want | 0x8000, "-{x:e}");
            }
        }
    }

    #[test]
    fn numbers_beyond_the_largest_become_it_and_infinities_stay() {
        for x in [65_504.0, 65_505.0, 65_520.0, 65_536.0, 1e9, f32::MAX] {
            assert_eq!(f32_from_f16(f16_from_f32(x)), 65_504.0);
            assert_eq!(f32_from_f16(f16_from_f32(-x)), -65_504.0);
        }
        for x in [f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(f32_from_f16(f16_from_f32(x)), x);
        }
        assert_eq!(f16_from_f32(f32::from_bits(1)), 0);
        assert_eq!(f16_from_f32(-0.0), 0x8000);
    }
}
