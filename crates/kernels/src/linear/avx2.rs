//! 8 lanes: a quarter of a panel.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "registers, by number")]

use std::arch::x86_64::*;

use super::PANEL;

/// Rows that a pass computes: what 16 registers hold the sums of, with what they wait for.
const PASS: usize = 4;

pub(super) fn multiply(words: &[&[u32]], x: &[f32], rows: usize, acc: &mut [[f32; PANEL]]) {
    for (words, acc) in words.iter().zip(acc.chunks_mut(rows)) {
        panel(words, x, acc);
    }
}

fn panel(words: &[u32], x: &[f32], acc: &mut [[f32; PANEL]]) {
    let rows = acc.len();
    assert!(x.len() >= rows * 2 * (words.len() / PANEL));
    for (i, acc) in acc.chunks_mut(PASS).enumerate() {
        let first = i * PASS;
        // SAFETY: this level is chosen only where the processor has AVX2 and FMA; sizes are checked above.
        unsafe {
            for half in [0, 16] {
                match acc.len() {
                    4 => some::<4>(words, half, x, rows, first, acc),
                    3 => some::<3>(words, half, x, rows, first, acc),
                    2 => some::<2>(words, half, x, rows, first, acc),
                    _ => some::<1>(words, half, x, rows, first, acc),
                }
            }
        }
    }
}

/// Half a panel, from output `half` on.
///
/// # Safety
/// AVX2 and FMA; `acc` has `R` of the `rows` rows of `x`, from `first` on, and `words` as many pairs as `x`.
#[target_feature(enable = "avx2,fma")]
unsafe fn some<const R: usize>(
    words: &[u32],
    half: usize,
    x: &[f32],
    rows: usize,
    first: usize,
    acc: &mut [[f32; PANEL]],
) {
    // SAFETY: pointers stay inside the slices, by the caller's word.
    unsafe {
        let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut c = [[_mm256_setzero_ps(); 2]; R];
        for r in 0..R {
            c[r][0] = _mm256_loadu_ps(acc[r].as_ptr().add(half));
            c[r][1] = _mm256_loadu_ps(acc[r].as_ptr().add(half + 8));
        }
        let (w, x) = (words.as_ptr().add(half), x.as_ptr().add(first));
        for p in 0..words.len() / PANEL {
            let w0 = _mm256_loadu_si256(w.add(p * PANEL).cast());
            let w1 = _mm256_loadu_si256(w.add(p * PANEL + 8).cast());
            let a0 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w0));
            let a1 = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w1));
            for r in 0..R {
                let a = _mm256_set1_ps(*x.add(2 * p * rows + r));
                c[r][0] = _mm256_fmadd_ps(a0, a, c[r][0]);
                c[r][1] = _mm256_fmadd_ps(a1, a, c[r][1]);
            }
            let b0 = _mm256_castsi256_ps(_mm256_and_si256(w0, high));
            let b1 = _mm256_castsi256_ps(_mm256_and_si256(w1, high));
            for r in 0..R {
                let b = _mm256_set1_ps(*x.add((2 * p + 1) * rows + r));
                c[r][0] = _mm256_fmadd_ps(b0, b, c[r][0]);
                c[r][1] = _mm256_fmadd_ps(b1, b, c[r][1]);
            }
        }
        for r in 0..R {
            _mm256_storeu_ps(acc[r].as_mut_ptr().add(half), c[r][0]);
            _mm256_storeu_ps(acc[r].as_mut_ptr().add(half + 8), c[r][1]);
        }
    }
}
