//! 16 lanes: half a panel.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "registers, by number")]

use std::arch::x86_64::*;

use super::{PANEL, ROW};

/// Bytes ahead of what is read now that are asked for: about what comes in during one memory access.
const AHEAD: usize = 2048;

/// # Safety
/// That of a [kernel](super::Kernel); AVX-512 F.
pub(super) unsafe fn multiply(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    let len = words.first().map_or(0, |w| w.len());
    assert!(words.iter().all(|w| w.len() == len));
    assert!(x.len() >= y.len() * ROW && 2 * len <= PANEL * ROW);
    macro_rules! by_size {
        ($(($p:literal, $r:literal)),*) => {
            match (words.len(), y.len()) {
                // SAFETY: the caller's; sizes are checked above.
                $(($p, $r) => unsafe { some::<$p, $r>(words, x, y) },)*
                // SAFETY: as above.
                _ => unsafe { super::each(multiply, words, x, y) },
            }
        };
    }
    super::sizes!(by_size);
}

/// # Safety
/// AVX-512 F; `words` has `P` panels of the same length, `x` `R` rows of at least as many pairs, [`ROW`] words apart, and
/// `y` `R` rows with these panels' outputs, which nobody else touches.
#[target_feature(enable = "avx512f")]
unsafe fn some<const P: usize, const R: usize>(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    // SAFETY: pointers stay inside the slices, by the caller's word.
    unsafe {
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut c = [[[_mm512_setzero_ps(); 2]; R]; P];
        for g in 0..P {
            for r in 0..R {
                let at = y[r].add(g * PANEL);
                c[g][r] = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))];
            }
        }
        let mut w = [std::ptr::null(); P];
        for g in 0..P {
            w[g] = words[g].as_ptr();
        }
        let mut x = x.as_ptr();
        for _ in 0..words[0].len() / PANEL {
            for g in 0..P {
                let at = w[g];
                w[g] = at.add(PANEL);
                _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD + 64));
                let w0 = _mm512_loadu_si512(at.cast());
                let w1 = _mm512_loadu_si512(at.add(16).cast());
                let a0 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w0));
                let a1 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w1));
                for r in 0..R {
                    let a = _mm512_set1_ps(*x.add(r * ROW));
                    c[g][r][0] = _mm512_fmadd_ps(a0, a, c[g][r][0]);
                    c[g][r][1] = _mm512_fmadd_ps(a1, a, c[g][r][1]);
                }
                let b0 = _mm512_castsi512_ps(_mm512_and_si512(w0, high));
                let b1 = _mm512_castsi512_ps(_mm512_and_si512(w1, high));
                for r in 0..R {
                    let b = _mm512_set1_ps(*x.add(r * ROW + 1));
                    c[g][r][0] = _mm512_fmadd_ps(b0, b, c[g][r][0]);
                    c[g][r][1] = _mm512_fmadd_ps(b1, b, c[g][r][1]);
                }
            }
            x = x.add(2);
        }
        for g in 0..P {
            for r in 0..R {
                let at = y[r].add(g * PANEL);
                _mm512_storeu_ps(at, c[g][r][0]);
                _mm512_storeu_ps(at.add(16), c[g][r][1]);
            }
        }
    }
}
