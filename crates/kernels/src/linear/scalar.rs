//! The oracle: one fused multiply-add after the other.

use super::PANEL;

pub(super) fn multiply(words: &[&[u32]], x: &[f32], rows: usize, acc: &mut [[f32; PANEL]]) {
    for (i, acc) in acc.iter_mut().enumerate() {
        let (words, r) = (words[i / rows], i % rows);
        for (p, words) in words.chunks_exact(PANEL).enumerate() {
            let (a, b) = (x[2 * p * rows + r], x[(2 * p + 1) * rows + r]);
            for (acc, w) in acc.iter_mut().zip(words) {
                *acc = f32::from_bits(w << 16).mul_add(a, *acc);
                *acc = f32::from_bits(w & 0xffff_0000).mul_add(b, *acc);
            }
        }
    }
}
