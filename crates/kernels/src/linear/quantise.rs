//! Rows as whole numbers and scales: inputs as they come, weights when they are packed.
//!
//! An input is cut into groups of [`GROUP`] elements, each with its scale, the largest over 127; nothing but the
//! group itself decides it, so a row is the same in any batch. Weights have groups of their own: eight bits, of whole
//! numbers or of e4m3, share a scale over [`GROUP`] columns, four bits over [`NIBBLES`]. A group with NaN or an infinity has such a scale, and
//! so do all sums that it is part of.

#![allow(unsafe_code)]

use super::PANEL;
use crate::bf16::{bf16_from_f32, f32_from_bf16};
use crate::cpu::Level;
use crate::f8::{f8_from_f32, finite_f8};
use plimsoll_units::{GroupSize, WeightType};

/// Elements of an input that share a scale, and columns of eight-bit weights.
pub(super) const GROUP: usize = 128;
/// Columns of four-bit weights that share a scale.
pub(super) const NIBBLES: usize = 32;
/// Where the elements of a group of inputs begin: after its scale and the sums of its quarters.
pub(super) const HEAD: usize = 1 + GROUP / NIBBLES;
/// Of the word before a group of four bits as published, what its numbers are less.
pub(super) const ZERO: u32 = 31;
/// Bits of that word that are none of its scale.
pub(super) const BELOW_SCALE: u32 = (1 << 13) - 1;
/// Words of a group of inputs.
pub(super) const WORDS: usize = HEAD + GROUP / 4;

/// The largest e4m3.
const F8_TOP: f32 = 448.0;
/// Scales below this are those of zeros: their inverse could overflow.
const TINY: f32 = 1e-30;
/// 1.5 × 2²³: what is added rounds to whole numbers, ties to even, and leaves them in the low bits.
const ROUND: f32 = 12_582_912.0;

/// The nearest whole number, ties to even, for numbers below 2²².
#[inline(always)]
pub(crate) fn whole(x: f32) -> i32 {
    (x + ROUND)
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .cast_signed()
}

/// What whole numbers of −127 to 127 are to be multiplied by to stand for some elements, the largest over 127, and what
/// elements are multiplied by to become them. With NaN or an infinity among them the first is NaN.
#[inline(always)]
pub(crate) fn scale(x: &[f32]) -> (f32, f32) {
    scale_to(x, 127.0)
}

/// The same for numbers of up to `top`.
#[inline(always)]
fn scale_to(x: &[f32], top: f32) -> (f32, f32) {
    // By their bits NaN and infinities are the largest.
    let largest = x.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return (f32::NAN, 0.0);
    }
    let inverse = if largest > TINY { top / largest } else { 0.0 };
    (largest / top, inverse)
}

/// Whole numbers of −127 to 127 and what they are to be multiplied by.
#[inline(always)]
fn group(x: &[f32]) -> ([i32; GROUP], f32) {
    let mut v = [0.0; GROUP];
    v[..x.len()].copy_from_slice(x);
    let (scale, inverse) = scale(&v);
    if scale.is_nan() {
        return ([0; GROUP], scale);
    }
    (v.map(|x| whole(x * inverse)), scale)
}

/// Quantises one row, into words of the same size.
#[inline(always)]
fn row(x: &[f32], out: &mut [f32]) {
    for (x, out) in x.chunks(GROUP).zip(out.chunks_exact_mut(WORDS)) {
        let (q, scale) = group(x);
        out[0] = scale;
        for (sum, q) in out[1..HEAD].iter_mut().zip(q.chunks_exact(NIBBLES)) {
            *sum = f32::from_bits(q.iter().sum::<i32>().cast_unsigned());
        }
        let bytes = q.map(|q| q.to_le_bytes()[0]);
        for (word, four) in out[HEAD..].iter_mut().zip(bytes.as_chunks().0) {
            *word = f32::from_bits(u32::from_le_bytes(*four));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn row_avx512(x: &[f32], out: &mut [f32]) {
    row(x, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn row_avx2(x: &[f32], out: &mut [f32]) {
    row(x, out);
}

/// Quantises one row of inputs; every level gives the same.
pub(super) fn input(level: Level, x: &[f32], out: &mut [f32]) {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level is chosen only where the processor has these instructions.
        Level::Avx512 => unsafe { row_avx512(x, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { row_avx2(x, out) },
        _ => row(x, out),
    }
}

/// The codes of a group of e4m3, and what they are to be multiplied by.
fn floats(x: &[f32], codes: &mut [u8]) -> f32 {
    let (scale, inverse) = scale_to(x, F8_TOP);
    if scale.is_nan() {
        codes.fill(0);
        return scale;
    }
    for (code, x) in codes.iter_mut().zip(x) {
        *code = f8_from_f32(x * inverse);
    }
    scale
}

/// Quantises output row `lane` of a panel of eight- or four-bit weights.
///
/// # Panics
/// Where the panel has not the words of as many columns as there are `values`, or of another type.
pub fn quantise_row(form: WeightType, panel: &mut [u32], lane: usize, values: &[f32]) {
    let lines = form.row_words(values.len() as u64);
    assert!(lane < PANEL && panel.len() as u64 == lines * PANEL as u64);
    if let WeightType::Grouped(group) = form {
        let mut numbers = vec![0; values.len()];
        let each = columns(group);
        let groups = values.chunks(each).zip(numbers.chunks_mut(each));
        let words: Vec<u32> = groups.map(|(v, n)| grouped(v, n)).collect();
        return pack_group_row(group, panel, lane, &numbers, &words);
    }
    if form == WeightType::Fp8 {
        let mut codes = vec![0; values.len()];
        let groups = values.chunks(GROUP).zip(codes.chunks_mut(GROUP));
        let scales: Vec<f32> = groups.map(|(v, c)| floats(v, c)).collect();
        return pack_f8_row(panel, lane, &codes, &scales);
    }
    let mut lines = panel.chunks_exact_mut(PANEL).map(|line| &mut line[lane]);
    // The words are as many as were counted.
    let mut next = || lines.next().expect("counted above");
    match form {
        WeightType::Bf16 | WeightType::Fp8 | WeightType::Grouped(_) => {
            panic!("bfloat16 is packed, not quantised")
        }
        WeightType::Int8 => {
            for values in values.chunks(GROUP) {
                let (q, scale) = group(values);
                *next() = scale.to_bits();
                for four in q[..values.len().next_multiple_of(4)].as_chunks::<4>().0 {
                    *next() = u32::from_le_bytes(four.map(|q| q.to_le_bytes()[0] ^ 0x80));
                }
            }
        }
        WeightType::Int4 => {
            for values in values.chunks(2 * NIBBLES) {
                let mut q = [8; 2 * NIBBLES];
                let scales = next();
                *scales = 0;
                for (i, (values, q)) in values
                    .chunks(NIBBLES)
                    .zip(q.chunks_mut(NIBBLES))
                    .enumerate()
                {
                    *scales |= u32::from(nibbles(values, q)) << (16 * i);
                }
                for eight in q[..values.len().next_multiple_of(8)].as_chunks::<8>().0 {
                    let byte = |i: usize| eight[i] | eight[i + 4] << 4;
                    *next() = u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]);
                }
            }
        }
    }
}

/// The word before a group of four bits: its scale, and what its numbers are less. None where the scale has more than
/// the ten bits of a mantissa that f16 and bfloat16 have, or the zero is more than 31.
#[must_use]
pub fn group_word(scale: f32, zero: u8) -> Option<u32> {
    let (bits, zero) = (scale.to_bits(), u32::from(zero));
    (bits & BELOW_SCALE == 0 && zero <= ZERO).then_some(bits | zero)
}

/// Packs output row `lane` of a panel of published groups of four bits: numbers of 0 to 15, and the word of each group.
///
/// # Panics
/// Where the panel has not the words of as many columns as there are numbers.
pub fn pack_group_row(
    group: GroupSize,
    panel: &mut [u32],
    lane: usize,
    numbers: &[u8],
    words: &[u32],
) {
    let lines = WeightType::Grouped(group).row_words(numbers.len() as u64);
    assert!(lane < PANEL && panel.len() as u64 == lines * PANEL as u64);
    let mut lines = panel.chunks_exact_mut(PANEL).map(|line| &mut line[lane]);
    let mut next = |word| *lines.next().expect("counted above") = word;
    for (numbers, word) in numbers.chunks(columns(group)).zip(words) {
        next(*word);
        for eight in numbers.chunks(8) {
            let number = |i: usize| u32::from(eight.get(i).copied().unwrap_or(0) & 15);
            let byte = |i: usize| (number(i) | number(i + 4) << 4) << (8 * i);
            next((0..4).fold(0, |word, i| word | byte(i)));
        }
    }
}

/// Packs output row `lane` of a panel of e4m3: codes that are numbers, and the scale of each `GROUP` of them.
///
/// # Panics
/// Where the panel has not the words of as many columns as there are codes.
pub fn pack_f8_row(panel: &mut [u32], lane: usize, codes: &[u8], scales: &[f32]) {
    let lines = WeightType::Fp8.row_words(codes.len() as u64);
    assert!(lane < PANEL && panel.len() as u64 == lines * PANEL as u64);
    let mut lines = panel.chunks_exact_mut(PANEL).map(|line| &mut line[lane]);
    let mut next = |word| *lines.next().expect("counted above") = word;
    for (codes, scale) in codes.chunks(GROUP).zip(scales) {
        next(scale.to_bits());
        for four in codes.chunks(4) {
            let code = |i: usize| four.get(i).copied().unwrap_or(0);
            next(u32::from_le_bytes([code(0), code(1), code(2), code(3)]));
        }
    }
}

fn columns(group: GroupSize) -> usize {
    match group {
        GroupSize::G32 => 32,
        GroupSize::G64 => 64,
        GroupSize::G128 => 128,
    }
}

/// The word of a group of elements, and their numbers: between the smallest and the largest of them and 0.
fn grouped(values: &[f32], numbers: &mut [u8]) -> u32 {
    let low = values.iter().fold(0.0_f32, |a, x| a.min(*x));
    let high = values.iter().fold(0.0_f32, |a, x| a.max(*x));
    let bad = values.iter().any(|x| !x.is_finite());
    let scale = if bad { f32::NAN } else { (high - low) / 15.0 };
    let scale = f32_from_bf16(bf16_from_f32(scale));
    let inverse = if scale > TINY { 1.0 / scale } else { 0.0 };
    let zero = whole((-low * inverse).clamp(0.0, 15.0)).to_le_bytes()[0];
    for (q, x) in numbers.iter_mut().zip(values) {
        // What NaN becomes does not matter.
        *q = whole((x * inverse + f32::from(zero)).clamp(0.0, 15.0)).to_le_bytes()[0] & 15;
    }
    scale.to_bits() & !BELOW_SCALE | u32::from(zero)
}

/// Numbers of 0 to 15, 8 more than what is meant, and the bits of their scale. The number that is largest becomes −8,
/// of which there is no opposite, so that all sixteen are used.
fn nibbles(values: &[f32], out: &mut [u8]) -> u16 {
    let size = |x: f32| x.to_bits() & 0x7fff_ffff;
    let largest = values
        .iter()
        .fold(0.0, |m, x| if size(*x) > size(m) { *x } else { m });
    let scale = bf16_from_f32(largest / -8.0);
    let inverse = if largest.abs() > TINY {
        1.0 / f32_from_bf16(scale)
    } else {
        0.0
    };
    for (q, x) in out.iter_mut().zip(values) {
        // The scale was rounded: the largest may be a little beyond. What NaN becomes does not matter.
        *q = whole((x * inverse).clamp(-8.0, 7.0) + 8.0).to_le_bytes()[0] & 15;
    }
    scale
}

/// The element of row `lane` and column `i` in a panel.
pub(super) fn element(form: WeightType, panel: &[u32], lane: usize, i: usize) -> f32 {
    let word = |line: usize| panel[line * PANEL + lane];
    match form {
        WeightType::Bf16 => f32_from_bf16((word(i / 2) >> (16 * (i % 2))) as u16),
        WeightType::Fp8 => {
            let code = word(i / 4 + i / GROUP + 1).to_le_bytes()[i % 4];
            let scale = word(i / GROUP * (GROUP / 4 + 1));
            finite_f8(code) * f32::from_bits(scale)
        }
        WeightType::Int8 => {
            let byte = word(i / 4 + i / GROUP + 1).to_le_bytes()[i % 4];
            let scale = word(i / GROUP * (GROUP / 4 + 1));
            f32::from((byte ^ 0x80).cast_signed()) * f32::from_bits(scale)
        }
        WeightType::Int4 => {
            let scales = i / 64 * 9;
            let nibble = word(scales + 1 + i % 64 / 8) >> (8 * (i % 4) + 4 * (i % 8 / 4)) & 15;
            let scale = word(scales) >> (16 * (i % 64 / NIBBLES));
            (nibble as f32 - 8.0) * f32_from_bf16(scale as u16)
        }
        WeightType::Grouped(group) => {
            let each = columns(group);
            let first = i / each * (each / 8 + 1);
            let word_of = word(first + 1 + i % each / 8);
            let nibble = word_of >> (8 * (i % 4) + 4 * (i % 8 / 4)) & 15;
            let group = word(first);
            let zero = (group & ZERO) as f32;
            (nibble as f32 - zero) * f32::from_bits(group & !BELOW_SCALE)
        }
    }
}
