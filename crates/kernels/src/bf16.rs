//! bfloat16: the high half of an f32.

/// The value of a bfloat16.
#[inline]
#[must_use]
pub const fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The nearest bfloat16, ties to even; NaN stays NaN.
#[inline]
#[must_use]
pub const fn bf16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        // Quiet, and never an infinity.
        return (bits >> 16) as u16 | 0x40;
    }
    // Only a NaN could wrap; unchecked, so that loops over it become vectors.
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_nearest_even() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                assert!(f32_from_bf16(bf16_from_f32(x)).is_nan());
                continue;
            }
            let b = bf16_from_f32(x);
            let down = f32_from_bf16((bits >> 16) as u16);
            let up = f32_from_bf16((bits >> 16) as u16 + 1);
            let y = f32_from_bf16(b);
            assert!(y == down || y == up || y.to_bits() == down.to_bits());
            if up.is_finite() {
                let (low, high) = (f64::from(x) - f64::from(down), f64::from(up) - f64::from(x));
                let nearest = if low.abs() < high.abs() {
                    down
                } else if low.abs() > high.abs() {
                    up
                } else if (bits >> 16) & 1 == 0 {
                    down
                } else {
                    up
                };
                assert_eq!(y.to_bits(), nearest.to_bits(), "{x}");
            }
        }
    }
}
