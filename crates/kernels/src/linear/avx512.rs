//! 16 lanes: half a panel.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "registers, by number")]

use std::arch::x86_64::*;

use super::{GROUP, PANEL, ROWS};

/// Bytes ahead of what is read now that are asked for: about what comes in during one memory access.
const AHEAD: usize = 2048;

pub(super) fn rows(words: &[u32], x: &[f32], acc: &mut [[f32; PANEL]]) {
    let pairs = words.len() / PANEL;
    assert!(acc.len() <= ROWS && x.len() >= acc.len() * 2 * pairs);
    // SAFETY: this level is chosen only where the processor has AVX-512 F, BW and VL; sizes are checked above.
    unsafe {
        match acc.len() {
            12 => some::<12>(words, pairs, x, acc),
            11 => some::<11>(words, pairs, x, acc),
            10 => some::<10>(words, pairs, x, acc),
            9 => some::<9>(words, pairs, x, acc),
            8 => some::<8>(words, pairs, x, acc),
            7 => some::<7>(words, pairs, x, acc),
            6 => some::<6>(words, pairs, x, acc),
            5 => some::<5>(words, pairs, x, acc),
            4 => some::<4>(words, pairs, x, acc),
            3 => some::<3>(words, pairs, x, acc),
            2 => some::<2>(words, pairs, x, acc),
            1 => some::<1>(words, pairs, x, acc),
            _ => {}
        }
    }
}

/// # Safety
/// AVX-512 F; `acc` has `R` rows, `x` as many for `pairs` pairs, and `words` holds those.
#[target_feature(enable = "avx512f")]
unsafe fn some<const R: usize>(words: &[u32], pairs: usize, x: &[f32], acc: &mut [[f32; PANEL]]) {
    // SAFETY: pointers stay inside the slices, by the caller's word.
    unsafe {
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut c = [[_mm512_setzero_ps(); 2]; R];
        for r in 0..R {
            c[r][0] = _mm512_loadu_ps(acc[r].as_ptr());
            c[r][1] = _mm512_loadu_ps(acc[r].as_ptr().add(16));
        }
        let (w, x) = (words.as_ptr(), x.as_ptr());
        for p in 0..pairs {
            let at = w.add(p * PANEL);
            _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
            _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD + 64));
            let w0 = _mm512_loadu_si512(at.cast());
            let w1 = _mm512_loadu_si512(at.add(16).cast());
            let a0 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w0));
            let a1 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w1));
            let b0 = _mm512_castsi512_ps(_mm512_and_si512(w0, high));
            let b1 = _mm512_castsi512_ps(_mm512_and_si512(w1, high));
            for r in 0..R {
                let a = _mm512_set1_ps(*x.add(2 * p * R + r));
                c[r][0] = _mm512_fmadd_ps(a0, a, c[r][0]);
                c[r][1] = _mm512_fmadd_ps(a1, a, c[r][1]);
            }
            for r in 0..R {
                let b = _mm512_set1_ps(*x.add((2 * p + 1) * R + r));
                c[r][0] = _mm512_fmadd_ps(b0, b, c[r][0]);
                c[r][1] = _mm512_fmadd_ps(b1, b, c[r][1]);
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(acc[r].as_mut_ptr(), c[r][0]);
            _mm512_storeu_ps(acc[r].as_mut_ptr().add(16), c[r][1]);
        }
    }
}

pub(super) fn group(words: [&[u32]; GROUP], x: &[f32], acc: &mut [[f32; PANEL]; GROUP]) {
    let pairs = x.len() / 2;
    assert!(words.iter().all(|w| w.len() >= pairs * PANEL));
    // SAFETY: this level is chosen only where the processor has AVX-512 F, BW and VL; sizes are checked above.
    unsafe { one(words, pairs, x, acc) }
}

/// # Safety
/// AVX-512 F; `x` has `2 * pairs` elements and `words` as many pairs.
#[target_feature(enable = "avx512f")]
unsafe fn one(words: [&[u32]; GROUP], pairs: usize, x: &[f32], acc: &mut [[f32; PANEL]; GROUP]) {
    // SAFETY: pointers stay inside the slices, by the caller's word.
    unsafe {
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut c = [[_mm512_setzero_ps(); 2]; GROUP];
        for g in 0..GROUP {
            c[g][0] = _mm512_loadu_ps(acc[g].as_ptr());
            c[g][1] = _mm512_loadu_ps(acc[g].as_ptr().add(16));
        }
        let w = words.map(<[u32]>::as_ptr);
        let x = x.as_ptr();
        for p in 0..pairs {
            let a = _mm512_set1_ps(*x.add(2 * p));
            let b = _mm512_set1_ps(*x.add(2 * p + 1));
            for g in 0..GROUP {
                let at = w[g].add(p * PANEL);
                _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD + 64));
                let w0 = _mm512_loadu_si512(at.cast());
                let w1 = _mm512_loadu_si512(at.add(16).cast());
                c[g][0] =
                    _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(w0)), a, c[g][0]);
                c[g][1] =
                    _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(w1)), a, c[g][1]);
                c[g][0] =
                    _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(w0, high)), b, c[g][0]);
                c[g][1] =
                    _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(w1, high)), b, c[g][1]);
            }
        }
        for g in 0..GROUP {
            _mm512_storeu_ps(acc[g].as_mut_ptr(), c[g][0]);
            _mm512_storeu_ps(acc[g].as_mut_ptr().add(16), c[g][1]);
        }
    }
}
