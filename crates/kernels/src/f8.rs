//! float8 e4m3: four bits of significand, exponents from −6 to 8, subnormals below, no infinity and one NaN of each sign
//! (OCP 8-bit Floating Point Specification 1.0, section 5).

/// NaN, the largest of all codes.
const NAN: u8 = 0x7f;
/// The largest finite number, 448.
const MAX: u32 = 0x7e;
/// 2⁻⁶, the least normal number, as an f32.
const NORMAL: u32 = 0x3c80_0000;

/// The value of an e4m3.
#[inline]
#[must_use]
pub(crate) const fn f32_from_f8(bits: u8) -> f32 {
    let special = if bits & NAN == NAN { 0x7fc0_0000 } else { 0 };
    f32::from_bits(finite_f8(bits).to_bits() | special)
}

/// 2¹²⁰: what exponents of e4m3 lack where those of f32 are.
pub(crate) const LACK: f32 = f32::from_bits((127 + 120) << 23);

/// The value of an e4m3 that is a number.
#[inline]
#[must_use]
pub(crate) const fn finite_f8(bits: u8) -> f32 {
    let sign = ((bits & 0x80) as u32) << 24;
    let rest = (bits & 0x7f) as u32;
    // Exponent and mantissa in their places: exact, also for what is subnormal.
    f32::from_bits(sign | rest << 20) * LACK
}

/// The nearest e4m3, ties to even. Numbers beyond 448 become that, the nearest that there is; infinities and NaN become
/// NaN, so that an overflow shows.
#[inline]
#[must_use]
pub(crate) const fn f8_from_f32(x: f32) -> u8 {
    let bits = x.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    let size = bits & 0x7fff_ffff;
    let code = if size >= 0x7f80_0000 {
        NAN
    } else if size < NORMAL {
        // The last bit of 2^14 is worth 2⁻⁹, as that of a subnormal: the sum is rounded to it.
        ((f32::from_bits(size) + 16_384.0).to_bits() - 16_384_f32.to_bits()) as u8
    } else {
        let odd = (size >> 20) & 1;
        let near = (size - (120 << 23) + 0x7_ffff + odd) >> 20;
        (if near < MAX { near } else { MAX }) as u8
    };
    sign | code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_definition() {
        for bits in 0..=u8::MAX {
            let (e, m) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
            let sign = if bits >> 7 == 1 { -1.0 } else { 1.0 };
            let got = f32_from_f8(bits);
            if bits & 0x7f == 0x7f {
                assert!(got.is_nan());
                continue;
            }
            let want = match e {
                0 => sign * m * 2_f64.powi(-9),
                _ => sign * (1.0 + m / 8.0) * 2_f64.powi(e - 7),
            };
            assert_eq!(f64::from(got).to_bits(), want.to_bits(), "{bits:02x}");
        }
    }

    #[test]
    fn the_nearest_is_found_and_ties_go_to_even() {
        // Codes of finite numbers that are not negative, in order.
        let value = |code: u8| f64::from(f32_from_f8(code));
        for code in 0..0x7e_u8 {
            assert_eq!(f8_from_f32(f32_from_f8(code)), code);
            let middle = (value(code) + value(code + 1)) / 2.0;
            let even = code + code % 2;
            // Sums of neighbours have few bits: all of these are exact.
            for (x, want) in [
                (middle as f32, even),
                ((middle as f32).next_down(), code),
                ((middle as f32).next_up(), code + 1),
            ] {
                assert_eq!(f8_from_f32(x), want, "{code:02x}: {x}");
                assert_eq!(f8_from_f32(-x), want | 0x80, "{code:02x}: -{x}");
            }
        }
    }

    #[test]
    fn what_is_too_large_is_the_largest_and_what_is_no_number_is_none() {
        for x in [448.0, 464.0, 465.0, 1e6, f32::MAX] {
            assert_eq!((f8_from_f32(x), f8_from_f32(-x)), (0x7e, 0xfe));
        }
        for x in [f32::INFINITY, f32::NAN] {
            assert_eq!((f8_from_f32(x), f8_from_f32(-x)), (0x7f, 0xff));
        }
        for x in [0.0, f32::from_bits(1), 1e-30] {
            assert_eq!((f8_from_f32(x), f8_from_f32(-x)), (0, 0x80));
        }
    }
}
