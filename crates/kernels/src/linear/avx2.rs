//! 8 lanes: a quarter of a panel.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "registers, by number")]

use std::arch::x86_64::*;

use super::quantise::{BELOW_SCALE, GROUP, HEAD, NIBBLES, WORDS, ZERO};
use super::{EIGHT, FOUR, PANEL, ROW, has_line, part_columns, per_word};

/// Rows that a pass computes: what 16 registers hold the sums of, with what they wait for.
const PASS: usize = 4;

/// # Safety
/// That of a [kernel](super::Kernel); AVX2 and FMA.
pub(super) unsafe fn multiply(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    assert!(x.len() >= y.len() * ROW);
    for (panel, words) in words.iter().enumerate() {
        assert!(2 * words.len() <= PANEL * ROW);
        for (y, x) in y.chunks(PASS).zip(x.chunks(PASS * ROW)) {
            for half in [0, 16] {
                // SAFETY: the caller's; sizes are checked above.
                unsafe {
                    match y.len() {
                        4 => some::<4>(words, x, y, panel, half),
                        3 => some::<3>(words, x, y, panel, half),
                        2 => some::<2>(words, x, y, panel, half),
                        _ => some::<1>(words, x, y, panel, half),
                    }
                }
            }
        }
    }
}

/// Half a panel, from its output `half` on.
///
/// # Safety
/// AVX2 and FMA; `x` has `R` rows, [`ROW`] words apart, of as many pairs as `words` has lines, and `y` `R` rows with
/// these outputs, which nobody else touches.
#[target_feature(enable = "avx2,fma")]
unsafe fn some<const R: usize>(
    words: &[u32],
    x: &[f32],
    y: &[*mut f32],
    panel: usize,
    half: usize,
) {
    // SAFETY: pointers stay inside the slices, by the caller's word.
    unsafe {
        let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut c = [[_mm256_setzero_ps(); 2]; R];
        let outputs = panel * PANEL + half;
        for r in 0..R {
            let y = y[r].add(outputs);
            c[r] = [_mm256_loadu_ps(y), _mm256_loadu_ps(y.add(8))];
        }
        let (w, x) = (words.as_ptr().add(half), x.as_ptr());
        for p in 0..words.len() / PANEL {
            let w0 = _mm256_loadu_si256(w.add(p * PANEL).cast());
            let w1 = _mm256_loadu_si256(w.add(p * PANEL + 8).cast());
            let a0 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w0));
            let a1 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w1));
            for r in 0..R {
                let a = _mm256_set1_ps(*x.add(r * ROW + 2 * p));
                c[r][0] = _mm256_fmadd_ps(a0, a, c[r][0]);
                c[r][1] = _mm256_fmadd_ps(a1, a, c[r][1]);
            }
            let b0 = _mm256_castsi256_ps(_mm256_and_si256(w0, high));
            let b1 = _mm256_castsi256_ps(_mm256_and_si256(w1, high));
            for r in 0..R {
                let b = _mm256_set1_ps(*x.add(r * ROW + 2 * p + 1));
                c[r][0] = _mm256_fmadd_ps(b0, b, c[r][0]);
                c[r][1] = _mm256_fmadd_ps(b1, b, c[r][1]);
            }
        }
        for r in 0..R {
            let y = y[r].add(outputs);
            _mm256_storeu_ps(y, c[r][0]);
            _mm256_storeu_ps(y.add(8), c[r][1]);
        }
    }
}

/// As [`multiply`], of whole numbers: bytes of even and of odd k become words of 16 bits, whose products are added in
/// pairs. (Bytes times bytes in one instruction would saturate.)
///
/// # Safety
/// That of a [kernel](super::Kernel); AVX2 and FMA.
pub(super) unsafe fn multiply_whole<const KIND: usize>(
    words: &[&[u32]],
    x: &[f32],
    y: &[*mut f32],
) {
    assert!(x.len() >= y.len() * ROW);
    for (panel, words) in words.iter().enumerate() {
        let groups = (words.len() / PANEL).div_ceil(super::group_lines(KIND));
        assert!(WORDS * groups <= ROW);
        for (y, x) in y.chunks(PASS).zip(x.chunks(PASS * ROW)) {
            for half in [0, 16] {
                // SAFETY: the caller's; sizes are checked above.
                unsafe {
                    match y.len() {
                        4 => whole::<4, KIND>(words, x, y, panel, half),
                        3 => whole::<3, KIND>(words, x, y, panel, half),
                        2 => whole::<2, KIND>(words, x, y, panel, half),
                        _ => whole::<1, KIND>(words, x, y, panel, half),
                    }
                }
            }
        }
    }
}

/// Half a panel, from its output `half` on.
///
/// # Safety
/// AVX2 and FMA; `x` has `R` rows, [`ROW`] words apart, of as many groups as `words`, and `y` `R` rows with these
/// outputs, which nobody else touches.
#[target_feature(enable = "avx2,fma")]
unsafe fn whole<const R: usize, const KIND: usize>(
    words: &[u32],
    x: &[f32],
    y: &[*mut f32],
    panel: usize,
    half: usize,
) {
    // SAFETY: pointers stay inside the slices, by the caller's word.
    unsafe {
        let (low, even) = (_mm256_set1_epi8(15), _mm256_set1_epi16(255));
        let zeros = _mm256_set1_epi32(ZERO.cast_signed());
        let below = _mm256_set1_epi32(BELOW_SCALE.cast_signed());
        let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut w = words.as_ptr().add(half);
        let mut x = x.as_ptr();
        let outputs = panel * PANEL + half;
        let mut left = words.len() / PANEL;
        while left > 0 {
            let mut scales = w;
            for part in 0..GROUP / part_columns(KIND) {
                if left == 0 {
                    break;
                }
                if has_line(KIND, part) {
                    scales = w;
                    w = w.add(PANEL);
                    left -= 1;
                }
                let lines = left.min(part_columns(KIND) / per_word(KIND));
                left -= lines;
                let mut c = [[_mm256_setzero_si256(); 2]; R];
                let quarters = part_columns(KIND) / NIBBLES;
                for r in 0..R {
                    let sum = |i: usize| (*x.add(r * ROW + i)).to_bits().cast_signed();
                    let first = 1 + part * quarters;
                    let all = (first..first + quarters).fold(0, |a: i32, i| a.wrapping_add(sum(i)));
                    c[r] = [0, 8].map(|half| match KIND {
                        EIGHT => _mm256_set1_epi32(all.wrapping_mul(-128)),
                        FOUR => _mm256_set1_epi32(all.wrapping_mul(-8)),
                        _ => {
                            let word = _mm256_loadu_si256(scales.add(half).cast());
                            let zero = _mm256_and_si256(word, zeros);
                            _mm256_mullo_epi32(zero, _mm256_set1_epi32(-all))
                        }
                    });
                }
                let mut at = x.add(HEAD + part * (part_columns(KIND) / 4)).cast::<i32>();
                for _ in 0..lines {
                    let loaded = [
                        _mm256_loadu_si256(w.cast()),
                        _mm256_loadu_si256(w.add(8).cast()),
                    ];
                    w = w.add(PANEL);
                    for quad in 0..per_word(KIND) / 4 {
                        let bytes = match (KIND, quad) {
                            (EIGHT, _) => loaded,
                            (_, 0) => loaded.map(|w| _mm256_and_si256(w, low)),
                            _ => loaded.map(|w| _mm256_and_si256(_mm256_srli_epi32::<4>(w), low)),
                        };
                        let evens = bytes.map(|w| _mm256_and_si256(w, even));
                        let odds = bytes.map(|w| _mm256_srli_epi16::<8>(w));
                        for r in 0..R {
                            let a = _mm256_set1_epi32(*at.add(r * ROW));
                            let a0 = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
                            let a1 = _mm256_srai_epi16::<8>(a);
                            for h in 0..2 {
                                let sum = _mm256_add_epi32(
                                    _mm256_madd_epi16(evens[h], a0),
                                    _mm256_madd_epi16(odds[h], a1),
                                );
                                c[r][h] = _mm256_add_epi32(c[r][h], sum);
                            }
                        }
                        at = at.add(1);
                    }
                }
                for h in 0..2 {
                    let s = _mm256_loadu_si256(scales.add(8 * h).cast());
                    let s = match (KIND, part % 2) {
                        (EIGHT, _) => s,
                        (FOUR, 0) => _mm256_slli_epi32::<16>(s),
                        (FOUR, _) => _mm256_and_si256(s, high),
                        _ => _mm256_andnot_si256(below, s),
                    };
                    let s = _mm256_castsi256_ps(s);
                    for r in 0..R {
                        let y = y[r].add(outputs + 8 * h);
                        let s = _mm256_mul_ps(s, _mm256_set1_ps(*x.add(r * ROW)));
                        let c = _mm256_cvtepi32_ps(c[r][h]);
                        _mm256_storeu_ps(y, _mm256_fmadd_ps(c, s, _mm256_loadu_ps(y)));
                    }
                }
            }
            x = x.add(WORDS);
        }
    }
}
