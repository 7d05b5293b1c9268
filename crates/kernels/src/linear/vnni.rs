//! Whole numbers, 16 lanes: four products of bytes and their sum in one instruction.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "registers, by number")]

use std::arch::x86_64::*;

use super::quantise::{BELOW_SCALE, GROUP, HEAD, NIBBLES, WORDS, ZERO};
use super::{EIGHT, FOUR, PANEL, ROW, has_line, part_columns, per_word};

/// Bytes ahead of what is read now that are asked for: about what comes in during one memory access.
const AHEAD: usize = 1024;

/// # Safety
/// That of a [kernel](super::Kernel); AVX-512 F and VNNI.
pub(super) unsafe fn multiply<const KIND: usize>(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    let len = words.first().map_or(0, |w| w.len());
    assert!(words.iter().all(|w| w.len() == len) && x.len() >= y.len() * ROW);
    assert!(WORDS * len.div_ceil(PANEL * super::group_lines(KIND)) <= ROW);
    macro_rules! by_size {
        ($(($p:literal, $r:literal)),*) => {
            match (words.len(), y.len()) {
                // SAFETY: the caller's; sizes are checked above.
                $(($p, $r) => unsafe { some::<$p, $r, KIND>(words, x, y) },)*
                // SAFETY: as above.
                _ => unsafe { super::each(multiply::<KIND>, words, x, y) },
            }
        };
    }
    super::sizes!(by_size);
}

/// # Safety
/// AVX-512 F and VNNI; `words` has `P` panels of the same length, `x` `R` rows of as many groups, [`ROW`] words apart, and
/// `y` `R` rows with these panels' outputs, which nobody else touches.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn some<const P: usize, const R: usize, const KIND: usize>(
    words: &[&[u32]],
    x: &[f32],
    y: &[*mut f32],
) {
    // SAFETY: pointers stay inside the slices, by the caller's word; those that are only asked for may leave them.
    unsafe {
        let low = _mm512_set1_epi8(15);
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let zeros = _mm512_set1_epi32(ZERO.cast_signed());
        let below = _mm512_set1_epi32(BELOW_SCALE.cast_signed());
        let mut w = [std::ptr::null::<u32>(); P];
        for p in 0..P {
            w[p] = words[p].as_ptr();
        }
        // Rows of y may lie a power of two apart: their sums have a place of their own until the end.
        let mut sums = [[[_mm512_setzero_ps(); 2]; R]; P];
        for p in 0..P {
            for r in 0..R {
                let at = y[r].add(p * PANEL);
                sums[p][r] = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))];
            }
        }
        let mut x = x.as_ptr();
        let mut left = words[0].len() / PANEL;
        while left > 0 {
            let mut scales = w;
            for part in 0..GROUP / part_columns(KIND) {
                if left == 0 {
                    break;
                }
                if has_line(KIND, part) {
                    scales = w;
                    for p in 0..P {
                        w[p] = w[p].add(PANEL);
                    }
                    left -= 1;
                }
                let lines = left.min(part_columns(KIND) / per_word(KIND));
                left -= lines;
                let mut c = [[[_mm512_setzero_si512(); 2]; R]; P];
                let quarters = part_columns(KIND) / NIBBLES;
                for r in 0..R {
                    let sum = |i: usize| (*x.add(r * ROW + i)).to_bits().cast_signed();
                    let first = 1 + part * quarters;
                    let all = (first..first + quarters).fold(0, |a: i32, i| a.wrapping_add(sum(i)));
                    for p in 0..P {
                        c[p][r] = [0, 16].map(|half| match KIND {
                            EIGHT => _mm512_set1_epi32(all.wrapping_mul(-128)),
                            FOUR => _mm512_set1_epi32(all.wrapping_mul(-8)),
                            _ => {
                                let word = _mm512_loadu_si512(scales[p].add(half).cast());
                                let zero = _mm512_and_si512(word, zeros);
                                _mm512_mullo_epi32(zero, _mm512_set1_epi32(-all))
                            }
                        });
                    }
                }
                let mut at = x.add(HEAD + part * (part_columns(KIND) / 4)).cast::<i32>();
                for _ in 0..lines {
                    for p in 0..P {
                        let from = w[p];
                        w[p] = from.add(PANEL);
                        _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(AHEAD));
                        _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(AHEAD + 64));
                        let w0 = _mm512_loadu_si512(from.cast());
                        let w1 = _mm512_loadu_si512(from.add(16).cast());
                        if KIND != EIGHT {
                            let a0 = _mm512_and_si512(w0, low);
                            let a1 = _mm512_and_si512(w1, low);
                            for r in 0..R {
                                let a = _mm512_set1_epi32(*at.add(r * ROW));
                                c[p][r][0] = _mm512_dpbusd_epi32(c[p][r][0], a0, a);
                                c[p][r][1] = _mm512_dpbusd_epi32(c[p][r][1], a1, a);
                            }
                            let b0 = _mm512_and_si512(_mm512_srli_epi32::<4>(w0), low);
                            let b1 = _mm512_and_si512(_mm512_srli_epi32::<4>(w1), low);
                            for r in 0..R {
                                let b = _mm512_set1_epi32(*at.add(r * ROW + 1));
                                c[p][r][0] = _mm512_dpbusd_epi32(c[p][r][0], b0, b);
                                c[p][r][1] = _mm512_dpbusd_epi32(c[p][r][1], b1, b);
                            }
                        } else {
                            for r in 0..R {
                                let a = _mm512_set1_epi32(*at.add(r * ROW));
                                c[p][r][0] = _mm512_dpbusd_epi32(c[p][r][0], w0, a);
                                c[p][r][1] = _mm512_dpbusd_epi32(c[p][r][1], w1, a);
                            }
                        }
                    }
                    at = at.add(per_word(KIND) / 4);
                }
                for p in 0..P {
                    let s = [0, 16].map(|half| {
                        let s = _mm512_loadu_si512(scales[p].add(half).cast());
                        _mm512_castsi512_ps(match (KIND, part % 2) {
                            (EIGHT, _) => s,
                            (FOUR, 0) => _mm512_slli_epi32::<16>(s),
                            (FOUR, _) => _mm512_and_si512(s, high),
                            _ => _mm512_andnot_si512(below, s),
                        })
                    });
                    for r in 0..R {
                        let scale = _mm512_set1_ps(*x.add(r * ROW));
                        for h in 0..2 {
                            let c = _mm512_cvtepi32_ps(c[p][r][h]);
                            let s = _mm512_mul_ps(s[h], scale);
                            sums[p][r][h] = _mm512_fmadd_ps(c, s, sums[p][r][h]);
                        }
                    }
                }
            }
            x = x.add(WORDS);
        }
        for p in 0..P {
            for r in 0..R {
                let at = y[r].add(p * PANEL);
                _mm512_storeu_ps(at, sums[p][r][0]);
                _mm512_storeu_ps(at.add(16), sums[p][r][1]);
            }
        }
    }
}
