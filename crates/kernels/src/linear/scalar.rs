//! The oracle: one fused multiply-add after the other.

#![allow(unsafe_code)]

use crate::cpu::fused;

use super::quantise::{BELOW_SCALE, GROUP, HEAD, WORDS, ZERO};
use super::{EIGHT, FOUR, PANEL, ROW, has_line, part_columns, per_word, sums};

/// # Safety
/// That of a [kernel](super::Kernel).
pub(super) unsafe fn multiply(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    // SAFETY: the caller's.
    fused(
        #[inline(always)]
        || unsafe { multiply_here(words, x, y) },
    );
}

/// # Safety
/// That of a [kernel](super::Kernel).
#[inline(always)]
unsafe fn multiply_here(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    for i in 0..words.len() * y.len() {
        let (panel, r) = (i / y.len(), i % y.len());
        // SAFETY: the caller's.
        let acc = unsafe { sums(y[r], panel) };
        let (words, x) = (words[panel], &x[r * ROW..]);
        for (words, x) in words.chunks_exact(PANEL).zip(x.chunks_exact(2)) {
            let (a, b) = (x[0], x[1]);
            for (acc, w) in acc.iter_mut().zip(words) {
                *acc = f32::from_bits(w << 16).mul_add(a, *acc);
                *acc = f32::from_bits(w & 0xffff_0000).mul_add(b, *acc);
            }
        }
    }
}

/// As [`multiply`], of whole numbers: sums of a scale's columns are exact, and each becomes one fused multiply-add.
///
/// # Safety
/// That of a [kernel](super::Kernel).
pub(super) unsafe fn multiply_whole<const KIND: usize>(
    words: &[&[u32]],
    x: &[f32],
    y: &[*mut f32],
) {
    for i in 0..words.len() * y.len() {
        let (panel, r) = (i / y.len(), i % y.len());
        // SAFETY: the caller's.
        let acc = unsafe { sums(y[r], panel) };
        let (words, x) = (words[panel], &x[r * ROW..]);
        let x = |word: usize| x[word];
        let groups = words.chunks(PANEL * super::group_lines(KIND));
        for (group, mut words) in groups.enumerate() {
            let (scale, first) = (x(group * WORDS), group * WORDS + HEAD);
            let mut scales = words;
            for part in 0..GROUP / part_columns(KIND) {
                if words.is_empty() {
                    break;
                }
                if has_line(KIND, part) {
                    (scales, words) = words.split_at(PANEL);
                }
                let lines = PANEL * part_columns(KIND) / per_word(KIND);
                let (mine, rest) = words.split_at(lines.min(words.len()));
                words = rest;
                let mut zeros = [0; PANEL];
                for (zero, word) in zeros.iter_mut().zip(scales) {
                    *zero = match KIND {
                        EIGHT => 128,
                        FOUR => 8,
                        _ => (word & ZERO).cast_signed(),
                    };
                }
                let mut c = [0; PANEL];
                let first = first + part * part_columns(KIND) / 4;
                for (line, words) in mine.chunks_exact(PANEL).enumerate() {
                    for quad in 0..per_word(KIND) / 4 {
                        let bytes = words.iter().map(|w| match KIND {
                            EIGHT => *w,
                            _ => w >> (4 * quad) & 0x0f0f_0f0f,
                        });
                        let x = x(first + line * per_word(KIND) / 4 + quad);
                        products(&mut c, bytes, &zeros, x);
                    }
                }
                let scales = scales.iter().map(|w| match KIND {
                    EIGHT => f32::from_bits(*w),
                    FOUR => f32::from_bits(w >> (16 * (part % 2)) << 16),
                    _ => f32::from_bits(w & !BELOW_SCALE),
                });
                add(acc, &c, scales, scale);
            }
        }
    }
}

/// Adds four products to each sum: bytes less their zero times bytes with signs.
fn products(c: &mut [i32; PANEL], words: impl Iterator<Item = u32>, zeros: &[i32; PANEL], x: f32) {
    let x = x
        .to_bits()
        .to_le_bytes()
        .map(|x| i32::from(x.cast_signed()));
    for ((c, word), zero) in c.iter_mut().zip(words).zip(zeros) {
        for (w, x) in word.to_le_bytes().into_iter().zip(x) {
            *c += (i32::from(w) - zero) * x;
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "sums of a group are below 2²³")]
fn add(acc: &mut [f32; PANEL], c: &[i32; PANEL], scales: impl Iterator<Item = f32>, scale: f32) {
    for ((acc, c), s) in acc.iter_mut().zip(c).zip(scales) {
        *acc = (*c as f32).mul_add(s * scale, *acc);
    }
}
