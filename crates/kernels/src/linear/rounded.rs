//! bfloat16 weights times inputs rounded to bfloat16, by the arithmetic of the processors' dot product of pairs.
//!
//! `VDPBF16PS` (Intel SDM; the same was measured on Zen 4) adds a pair's products to an f32 sum by two fused
//! multiply-adds, the second of the pair first, each rounded to nearest even; numbers below the smallest normal one are
//! zeros of their sign, as inputs and as results. Other levels do the same step by step: they are there to give the
//! same bits, and are slower than f32 inputs are.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "registers, by number")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{Kernel, PANEL, ROW, sums};
use crate::bf16::bf16_from_f32;
use crate::cpu::{Level, fused};

const SIGN: u32 = 1 << 31;
const EXPONENT: u32 = 0x7f80_0000;
/// The bits of the smallest normal number.
const NORMAL: u32 = 0x0080_0000;

/// Whether this processor has the instruction.
pub(super) fn is_native() -> bool {
    #[cfg(target_arch = "x86_64")]
    return Level::Avx512.is_available() && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

pub(super) fn kernel(level: Level) -> Kernel {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if is_x86_feature_detected!("avx512bf16") => dot,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx2 => emulated,
        _ => scalar,
    }
}

/// Rounds some columns of a row of inputs into pairs; an odd last one has a partner of zero.
pub(super) fn row(level: Level, x: &[f32], out: &mut [f32]) {
    match level {
        // SAFETY: the processor has the instruction.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if is_x86_feature_detected!("avx512bf16") => unsafe { row_native(x, out) },
        // SAFETY: these levels are chosen only where the processor has them.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { row_avx512(x, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { row_avx2(x, out) },
        _ => pairs(x, out),
    }
}

/// By the instruction that rounds, which treats small numbers as the dot product does.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn row_native(x: &[f32], out: &mut [f32]) {
    let (many, rest) = x.as_chunks::<32>();
    let (outs, last) = out.split_at_mut(many.len() * 16);
    for (x, out) in many.iter().zip(outs.as_chunks_mut::<16>().0) {
        // SAFETY: 32 elements, and room for as many of half their size.
        unsafe {
            let low = _mm512_loadu_ps(x.as_ptr());
            let high = _mm512_loadu_ps(x.as_ptr().add(16));
            let all: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), all);
        }
    }
    pairs(rest, last);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn row_avx512(x: &[f32], out: &mut [f32]) {
    pairs(x, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn row_avx2(x: &[f32], out: &mut [f32]) {
    pairs(x, out);
}

#[inline(always)]
fn pairs(x: &[f32], out: &mut [f32]) {
    let (two, odd) = x.as_chunks::<2>();
    let pair = |[a, b]: [f32; 2]| {
        let half = |x: f32| u32::from(bf16_from_f32(flushed(x)));
        f32::from_bits(half(a) | half(b) << 16)
    };
    let (out, rest) = out.split_at_mut(two.len());
    out.iter_mut().zip(two).for_each(|(o, x)| *o = pair(*x));
    if let Some(x) = odd.first() {
        rest[0] = pair([*x, 0.0]);
    }
}

/// A number, or a zero of its sign where it is smaller than normal ones.
#[inline(always)]
const fn flushed(x: f32) -> f32 {
    let bits = x.to_bits();
    let kept = if bits & EXPONENT == 0 { SIGN } else { u32::MAX };
    f32::from_bits(bits & kept)
}

/// `a b + c` of normal numbers and zeros, rounded once.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    let y = a.mul_add(b, c);
    if y.abs() == f32::from_bits(NORMAL) {
        // Exact: the product has 16 bits, and is as small as that only beside a sum that is.
        let exact = f64::from(a) * f64::from(b) + f64::from(c);
        // What rounds to the smallest normal number here may round to less where exponents have no end.
        let least = f64::from(f32::from_bits(NORMAL)) * (1.0 - f64::from(f32::EPSILON) / 4.0);
        return if exact.abs() < least {
            0.0_f32.copysign(y)
        } else {
            y
        };
    }
    flushed(y)
}

/// # Safety
/// That of a [kernel](Kernel).
unsafe fn scalar(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    // SAFETY: the caller's.
    fused(
        #[inline(always)]
        || unsafe { scalar_here(words, x, y) },
    );
}

/// # Safety
/// That of a [kernel](Kernel).
#[inline(always)]
unsafe fn scalar_here(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    for i in 0..words.len() * y.len() {
        let (panel, r) = (i / y.len(), i % y.len());
        // SAFETY: the caller's.
        let acc = unsafe { sums(y[r], panel) };
        for (x, words) in x[r * ROW..].iter().zip(words[panel].chunks_exact(PANEL)) {
            let x = halves(x.to_bits());
            for (acc, w) in acc.iter_mut().zip(words) {
                let w = halves(*w).map(flushed);
                *acc = multiply_add(w[1], x[1], flushed(*acc));
                *acc = multiply_add(w[0], x[0], *acc);
            }
        }
    }
}

#[inline(always)]
fn halves(word: u32) -> [f32; 2] {
    [
        f32::from_bits(word << 16),
        f32::from_bits(word & 0xffff_0000),
    ]
}

/// Eight lanes that do what the instruction does.
///
/// # Safety
/// That of a [kernel](Kernel); AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
unsafe fn emulated(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    for i in 0..words.len() * y.len() {
        let (panel, r) = (i / y.len(), i % y.len());
        // SAFETY: the caller's.
        unsafe { emulate(words[panel], &x[r * ROW..][..ROW], sums(y[r], panel)) };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn emulate(words: &[u32], x: &[f32], acc: &mut [f32; PANEL]) {
    let bits = |b: u32| _mm256_set1_epi32(b.cast_signed());
    let (sign, exponent, normal) = (bits(SIGN), bits(EXPONENT), bits(NORMAL));
    let flush = |x: __m256i| {
        let zero = _mm256_cmpeq_epi32(_mm256_and_si256(x, exponent), _mm256_setzero_si256());
        _mm256_andnot_si256(_mm256_andnot_si256(sign, zero), x)
    };
    let float = |x: __m256i| _mm256_castsi256_ps(x);
    let step = |w: __m256i, x: f32, c: __m256i| {
        let y = _mm256_fmadd_ps(float(w), _mm256_set1_ps(x), float(c));
        let y = _mm256_castps_si256(y);
        let edge = _mm256_cmpeq_epi32(_mm256_andnot_si256(sign, y), normal);
        if _mm256_movemask_epi8(edge) == 0 {
            return flush(y);
        }
        let (w, c) = (array(w), array(c));
        let y: [f32; 8] =
            std::array::from_fn(|i| multiply_add(f32::from_bits(w[i]), x, f32::from_bits(c[i])));
        // SAFETY: eight elements.
        unsafe { _mm256_loadu_si256(y.as_ptr().cast()) }
    };
    for part in (0..PANEL).step_by(8) {
        let acc = &mut acc[part..part + 8];
        // SAFETY: eight elements.
        let mut c = unsafe { _mm256_loadu_si256(acc.as_ptr().cast()) };
        for (x, words) in x.iter().zip(words.chunks_exact(PANEL)) {
            let x = halves(x.to_bits());
            // SAFETY: eight of a panel's elements.
            let w = unsafe { _mm256_loadu_si256(words[part..part + 8].as_ptr().cast()) };
            let high = _mm256_and_si256(w, bits(0xffff_0000));
            c = step(flush(high), x[1], flush(c));
            c = step(flush(_mm256_slli_epi32::<16>(w)), x[0], c);
        }
        // SAFETY: eight elements.
        unsafe { _mm256_storeu_si256(acc.as_mut_ptr().cast(), c) };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn array(x: __m256i) -> [u32; 8] {
    let mut out = [0; 8];
    // SAFETY: eight elements.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) };
    out
}

/// Bytes ahead of what is read now that are asked for: about what comes in during one memory access.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2048;

/// # Safety
/// That of a [kernel](Kernel); AVX-512 F and BF16.
#[cfg(target_arch = "x86_64")]
unsafe fn dot(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    let len = words.first().map_or(0, |w| w.len());
    assert!(words.iter().all(|w| w.len() == len));
    assert!(x.len() >= y.len() * ROW && len <= PANEL * ROW);
    macro_rules! by_size {
        ($(($p:literal, $r:literal)),*) => {
            match (words.len(), y.len()) {
                // SAFETY: the caller's; sizes are checked above.
                $(($p, $r) => unsafe { some::<$p, $r>(words, x, y) },)*
                // SAFETY: as above.
                _ => unsafe { super::each(dot, words, x, y) },
            }
        };
    }
    super::sizes!(by_size);
}

/// # Safety
/// AVX-512 F and BF16; `words` has `P` panels of the same length, `x` `R` rows of at least as many pairs, [`ROW`] words
/// apart, and `y` `R` rows with these panels' outputs, which nobody else touches.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn some<const P: usize, const R: usize>(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    // SAFETY: pointers stay inside the slices, by the caller's word; those that are only asked for may leave them.
    unsafe {
        let mut c = [[[_mm512_setzero_ps(); 2]; R]; P];
        for p in 0..P {
            for r in 0..R {
                let at = y[r].add(p * PANEL);
                c[p][r] = [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))];
            }
        }
        let mut w = [std::ptr::null(); P];
        for p in 0..P {
            w[p] = words[p].as_ptr();
        }
        let mut x = x.as_ptr();
        for _ in 0..words[0].len() / PANEL {
            for p in 0..P {
                let at = w[p];
                w[p] = at.add(PANEL);
                _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD + 64));
                let w0 = pairs_of(_mm512_loadu_si512(at.cast()));
                let w1 = pairs_of(_mm512_loadu_si512(at.add(16).cast()));
                for r in 0..R {
                    let pair = _mm512_set1_epi32((*x.add(r * ROW)).to_bits().cast_signed());
                    c[p][r][0] = _mm512_dpbf16_ps(c[p][r][0], w0, pairs_of(pair));
                    c[p][r][1] = _mm512_dpbf16_ps(c[p][r][1], w1, pairs_of(pair));
                }
            }
            x = x.add(1);
        }
        for p in 0..P {
            for r in 0..R {
                let at = y[r].add(p * PANEL);
                _mm512_storeu_ps(at, c[p][r][0]);
                _mm512_storeu_ps(at.add(16), c[p][r][1]);
            }
        }
    }
}

/// Rounds of dot products that wait for nothing but each other, and the operations of a round; none where the level has
/// not the instruction.
pub(crate) fn chains(level: Level) -> Option<(fn(usize), u64)> {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 && is_native() {
        // SAFETY: the processor has it.
        let run = |rounds| unsafe { dot_chains(rounds) };
        return Some((run, (CHAINS * 16 * 4) as u64));
    }
    let _ = level;
    None
}

/// Sums that are worked on at once.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_chains(rounds: usize) {
    use std::hint::black_box;
    // Numbers that the compiler does not see, so that it cannot tell the end from the start.
    let pair = |bits: i32| pairs_of(_mm512_set1_epi32(black_box(bits)));
    let (a, b) = (pair(0x3f00_3f00), pair(0x3e80_3e80));
    let mut sums = [_mm512_set1_ps(black_box(0.5)); CHAINS];
    for _ in 0..rounds {
        for s in &mut sums {
            *s = _mm512_dpbf16_ps(*s, a, b);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs_of(x: __m512i) -> __m512bh {
    // SAFETY: 32 elements of 16 bits each, whatever they are.
    unsafe { std::mem::transmute(x) }
}
