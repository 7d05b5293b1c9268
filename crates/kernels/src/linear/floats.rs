//! e4m3 weights times f32 inputs: one kernel for every level.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "registers, by number")]

use std::array::from_fn;

use super::quantise::GROUP;
use super::{Kernel, PANEL, ROW, sums};
use crate::cpu::{Level, fused};
use crate::lanes::{LANES, Lanes, Scalar};
#[cfg(target_arch = "x86_64")]
use crate::lanes::{avx2::Avx2, avx512::Avx512};

/// Words of a panel that a group of columns takes: a line of scales, then of four columns each.
const WORDS: usize = PANEL * (1 + GROUP / 4);
/// Rows that a pass of 8 lanes computes: what 16 registers hold the sums of, with what they wait for.
#[cfg(target_arch = "x86_64")]
const PASS: usize = 4;

pub(super) fn kernel(level: Level) -> Kernel {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2,
        _ => scalar,
    }
}

/// # Safety
/// That of a [kernel](super::Kernel).
unsafe fn scalar(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    // SAFETY: the caller's.
    fused(
        #[inline(always)]
        || unsafe { scalar_here(words, x, y) },
    );
}

/// # Safety
/// That of a [kernel](super::Kernel).
#[inline(always)]
unsafe fn scalar_here(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    for (panel, words) in words.iter().enumerate() {
        for (r, y) in y.iter().enumerate() {
            // SAFETY: the caller's.
            let y = [[unsafe { sums(*y, panel) }]];
            some::<Scalar, 1, 1, 2>([words], &x[r * ROW..], y, 0);
        }
    }
}

/// # Safety
/// That of a [kernel](super::Kernel); AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    for (panel, words) in words.iter().enumerate() {
        for (y, x) in y.chunks(PASS).zip(x.chunks(PASS * ROW)) {
            for half in [0, LANES] {
                macro_rules! by_rows {
                    ($($r:literal),*) => {
                        match y.len() {
                            $($r => {
                                // SAFETY: the caller's.
                                let y = from_fn(|r| unsafe { sums(y[r], panel) });
                                some::<Avx2, 1, $r, 1>([words], x, [y], half);
                            })*
                            _ => unreachable!("no more rows than a pass has"),
                        }
                    };
                }
                by_rows!(1, 2, 3, 4);
            }
        }
    }
}

/// # Safety
/// That of a [kernel](super::Kernel); AVX-512 F, BW and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    macro_rules! by_size {
        ($(($p:literal, $r:literal)),*) => {
            match (words.len(), y.len()) {
                $(($p, $r) => {
                    // SAFETY: the caller's.
                    let y = from_fn(|p| from_fn(|r| unsafe { sums(y[r], p) }));
                    some::<Avx512, $p, $r, 2>(from_fn(|p| words[p]), x, y, 0);
                })*
                // SAFETY: the caller's.
                _ => unsafe { super::each(avx512, words, x, y) },
            }
        };
    }
    super::sizes!(by_size);
}

/// The sums `y` of `R` rows of x, [`ROW`] words apart, and `P` panels of the same length: `H` halves of each panel, from
/// its output `first` on.
#[inline(always)]
fn some<V: Lanes, const P: usize, const R: usize, const H: usize>(
    words: [&[u32]; P],
    x: &[f32],
    y: [[&mut [f32; PANEL]; R]; P],
    first: usize,
) {
    let at = |h: usize| first + h * LANES..first + (h + 1) * LANES;
    let mut all: [[[V; H]; R]; P] = from_fn(|p| from_fn(|r| from_fn(|h| V::load(&y[p][r][at(h)]))));
    for group in 0..words[0].len().div_ceil(WORDS) {
        let words = words.map(|w| {
            let from = &w[group * WORDS..];
            &from[..from.len().min(WORDS)]
        });
        let x: [&[[f32; 4]]; R] = from_fn(|r| x[r * ROW + group * GROUP..][..GROUP].as_chunks().0);
        let mut c = [[[V::splat(0.0); H]; R]; P];
        for line in 0..words[0].len() / PANEL - 1 {
            let x: [[f32; 4]; R] = from_fn(|r| x[r][line]);
            for p in 0..P {
                let words = &words[p][(1 + line) * PANEL + first..][..H * LANES];
                column::<V, R, H, 0>(words, &x, &mut c[p]);
                column::<V, R, H, 1>(words, &x, &mut c[p]);
                column::<V, R, H, 2>(words, &x, &mut c[p]);
                column::<V, R, H, 3>(words, &x, &mut c[p]);
            }
        }
        for p in 0..P {
            for h in 0..H {
                let scales = &words[p][at(h)];
                let scale = V::load(&from_fn::<f32, LANES, _>(|i| f32::from_bits(scales[i])));
                for r in 0..R {
                    all[p][r][h] = c[p][r][h].fma(scale, all[p][r][h]);
                }
            }
        }
    }
    for (y, all) in y.into_iter().zip(all) {
        for (y, all) in y.into_iter().zip(all) {
            for h in 0..H {
                all[h].store(&mut y[at(h)]);
            }
        }
    }
}

/// Adds the products of one of the four columns of a line.
#[inline(always)]
fn column<V: Lanes, const R: usize, const H: usize, const BYTE: usize>(
    words: &[u32],
    x: &[[f32; 4]; R],
    c: &mut [[V; H]; R],
) {
    let w: [V; H] = from_fn(|h| V::load_bytes_f8::<BYTE>(&words[h * LANES..]));
    for r in 0..R {
        let x = V::splat(x[r][BYTE]);
        for h in 0..H {
            c[r][h] = w[h].fma(x, c[r][h]);
        }
    }
}
