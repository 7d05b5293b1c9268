//! The oracle: one fused multiply-add after the other.

#![allow(unsafe_code)]

use super::quantise::{HEAD, NIBBLES, WORDS};
use super::{PANEL, ROW, sums};

/// # Safety
/// That of a [kernel](super::Kernel).
pub(super) unsafe fn multiply(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
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
pub(super) unsafe fn multiply_whole<const FOUR: bool>(words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    for i in 0..words.len() * y.len() {
        let (panel, r) = (i / y.len(), i % y.len());
        // SAFETY: the caller's.
        let acc = unsafe { sums(y[r], panel) };
        let (words, x) = (words[panel], &x[r * ROW..]);
        let x = |word: usize| x[word];
        let groups = words.chunks(PANEL * super::group_lines(FOUR));
        for (group, words) in groups.enumerate() {
            let (scale, first) = (x(group * WORDS), group * WORDS + HEAD);
            if FOUR {
                let parts = words.chunks(PANEL * (1 + 2 * NIBBLES / 8));
                for (pair, words) in parts.enumerate() {
                    let (scales, words) = words.split_at(PANEL);
                    for (part, words) in words.chunks(PANEL * NIBBLES / 8).enumerate() {
                        let mut c = [0; PANEL];
                        let first = first + (2 * pair + part) * (NIBBLES / 4);
                        for (line, words) in words.chunks_exact(PANEL).enumerate() {
                            for (quad, shift) in [(2 * line, 0), (2 * line + 1, 4)] {
                                let nibbles = words.iter().map(|w| w >> shift & 0x0f0f_0f0f);
                                products(&mut c, nibbles, 8, x(first + quad));
                            }
                        }
                        let bits = |w: u32| f32::from_bits(w >> (16 * part) << 16);
                        add(acc, &c, scales.iter().map(|w| bits(*w)), scale);
                    }
                }
            } else {
                let (scales, words) = words.split_at(PANEL);
                let mut c = [0; PANEL];
                for (quad, words) in words.chunks_exact(PANEL).enumerate() {
                    products(&mut c, words.iter().copied(), 128, x(first + quad));
                }
                add(acc, &c, scales.iter().map(|w| f32::from_bits(*w)), scale);
            }
        }
    }
}

/// Adds four products to each sum: bytes less `zero` times bytes with signs.
fn products(c: &mut [i32; PANEL], words: impl Iterator<Item = u32>, zero: i32, x: f32) {
    let x = x
        .to_bits()
        .to_le_bytes()
        .map(|x| i32::from(x.cast_signed()));
    for (c, word) in c.iter_mut().zip(words) {
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
