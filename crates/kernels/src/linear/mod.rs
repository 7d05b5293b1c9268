//! `y = x W^T`, the weights packed in panels of [`PANEL`] output rows.
//!
//! A panel holds its rows' elements k by k, pairs of k together: 32 words of 32 bits for k and k + 1, each the
//! bfloat16 of k in its low half and of k + 1 in its high half. So one load of 16 words, shifted or masked,
//! gives 16 outputs' weights as f32, and every output is one lane's chain over k, in order. Rows and k are
//! padded with zeros, which change no sum.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;
mod scalar;

pub use pack::{pack_columns, pack_rows};

use std::ops::Range;

use crate::cpu::Level;
use crate::pool::Pool;

/// Output rows of a panel.
pub const PANEL: usize = 32;

/// Rows of x that one kernel call computes together.
const ROWS: usize = 12;
/// Panels of a tile at most: what stays in a core's cache while rows of x pass.
const TILE: usize = 8;
/// Panels that one row of x meets together.
const GROUP: usize = 4;
/// k that a panel's pass covers before the next rows of x: what stays in the cache.
const BLOCK: usize = 512;

/// A packed matrix of `n` output rows and `k` columns.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    words: &'a [u32],
    n: usize,
    k: usize,
}

/// Bytes of a packed matrix of `n` output rows and `k` columns; `None` where they overflow.
#[must_use]
pub fn packed_bytes(n: usize, k: usize) -> Option<usize> {
    n.div_ceil(PANEL)
        .checked_mul(PANEL)?
        .checked_mul(k.div_ceil(2))?
        .checked_mul(4)
}

/// Packs output row `row`, whose elements are `values` in order, into `words` of an `n` × `k` matrix.
///
/// # Panics
/// Where the row lies outside.
pub fn pack_row(words: &mut [u32], k: usize, row: usize, values: impl IntoIterator<Item = u16>) {
    let panel = row / PANEL * PANEL * k.div_ceil(2);
    for (i, v) in values.into_iter().take(k).enumerate() {
        let word = &mut words[panel + i / 2 * PANEL + row % PANEL];
        let shift = 16 * (i % 2);
        *word = *word & !(0xffff << shift) | u32::from(v) << shift;
    }
}

impl<'a> Linear<'a> {
    /// A matrix that lies packed in `words`.
    ///
    /// # Panics
    /// Where the sizes do not agree.
    #[must_use]
    pub fn new(words: &'a [u32], n: usize, k: usize) -> Self {
        assert_eq!(
            Some(words.len() * 4),
            packed_bytes(n, k),
            "a packed matrix of {n} x {k}"
        );
        Self { words, n, k }
    }

    /// Output rows.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        self.n
    }

    /// Columns.
    #[must_use]
    pub const fn inputs(&self) -> usize {
        self.k
    }

    /// `y = x W^T` for `m` rows of x; rows of x are `k` and rows of y `n` elements apart.
    ///
    /// # Panics
    /// Where the slices are too short.
    pub fn run(
        &self,
        pool: &mut Pool,
        level: Level,
        x: &[f32],
        m: usize,
        y: &mut [f32],
        start: Start<'_>,
    ) {
        assert!(x.len() >= m * self.k && y.len() >= m * self.n);
        if let Start::Bias(b) = start {
            assert!(b.len() >= self.n);
        }
        let panels = self.n.div_ceil(PANEL);
        // Some tiles per thread, so that a slow core takes fewer; no more panels than stay in a cache.
        let tile = panels
            .div_ceil(pool.threads() * 8)
            .clamp(1, TILE)
            .next_multiple_of(GROUP);
        let out = Outputs(y.as_mut_ptr());
        let one = if m == 1 { level.group() } else { None };
        let rows = level.rows();
        pool.run(panels.div_ceil(tile), |i| {
            let mut range = i * tile..((i + 1) * tile).min(panels);
            while let Some(kernel) = one.filter(|_| range.len() >= GROUP) {
                // SAFETY: tiles write the outputs of their own panels only.
                unsafe { self.one_row(kernel, x, range.start, out, start) };
                range.start += GROUP;
            }
            // SAFETY: as above.
            unsafe { self.panels(rows, x, m, range, out, start) };
        });
    }

    fn words(&self, panel: usize) -> &'a [u32] {
        let len = PANEL * self.k.div_ceil(2);
        &self.words[panel * len..(panel + 1) * len]
    }

    /// # Safety
    /// Nobody else touches the outputs of these panels.
    unsafe fn one_row(
        &self,
        kernel: Group,
        x: &[f32],
        panel: usize,
        out: Outputs,
        start: Start<'_>,
    ) {
        let mut acc = [[0.0; PANEL]; GROUP];
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's.
            unsafe { self.load(panel + i, 0, out, start, acc) };
        }
        let words = std::array::from_fn(|i| self.words(panel + i));
        kernel(words, &x[..self.k / 2 * 2], &mut acc);
        for (i, acc) in acc.iter_mut().enumerate() {
            if self.k % 2 == 1 {
                last(words[i], x[self.k - 1], acc);
            }
            // SAFETY: the caller's.
            unsafe { self.store(panel + i, 0, out, acc) };
        }
    }

    /// # Safety
    /// Nobody else touches the outputs of these panels.
    unsafe fn panels(
        &self,
        kernel: Rows,
        x: &[f32],
        m: usize,
        panels: Range<usize>,
        out: Outputs,
        start: Start<'_>,
    ) {
        // Rows of x side by side: whole rows lie a power of two apart, and would push each other out.
        let mut packed = [0.0; ROWS * BLOCK];
        let mut from = 0;
        // At least once, also where k is 0.
        while from < self.k || from == 0 {
            let to = (from + BLOCK).min(self.k);
            let pairs = (to - from).div_ceil(2);
            let start = if from == 0 { start } else { Start::Keep };
            for row in (0..m).step_by(ROWS) {
                let rows = (m - row).min(ROWS);
                let packed = &mut packed[..2 * pairs * rows];
                for r in 0..rows {
                    let x = &x[(row + r) * self.k + from..][..to - from];
                    // An odd last column has a partner of zeros.
                    let x = x.iter().chain([&0.0; 1]);
                    packed[r..]
                        .iter_mut()
                        .step_by(rows)
                        .zip(x)
                        .for_each(|(p, x)| *p = *x);
                }
                for panel in panels.clone() {
                    let mut acc = [[0.0; PANEL]; ROWS];
                    for (r, acc) in acc[..rows].iter_mut().enumerate() {
                        // SAFETY: the caller's.
                        unsafe { self.load(panel, row + r, out, start, acc) };
                    }
                    let words = &self.words(panel)[from / 2 * PANEL..][..pairs * PANEL];
                    kernel(words, packed, &mut acc[..rows]);
                    for (r, acc) in acc[..rows].iter().enumerate() {
                        // SAFETY: the caller's.
                        unsafe { self.store(panel, row + r, out, acc) };
                    }
                }
            }
            if to == self.k {
                return;
            }
            from = to;
        }
    }

    /// What a panel's outputs of one row start from.
    ///
    /// # Safety
    /// Nobody writes these outputs meanwhile; the row lies inside.
    unsafe fn load(
        &self,
        panel: usize,
        row: usize,
        out: Outputs,
        start: Start<'_>,
        acc: &mut [f32; PANEL],
    ) {
        let from = panel * PANEL;
        let n = (self.n - from).min(PANEL);
        match start {
            Start::Zero => {}
            Start::Bias(b) => acc[..n].copy_from_slice(&b[from..from + n]),
            Start::Keep => {
                // SAFETY: inside the outputs, by the caller's word.
                let y = unsafe { std::slice::from_raw_parts(out.0.add(row * self.n + from), n) };
                acc[..n].copy_from_slice(y);
            }
        }
    }

    /// # Safety
    /// Nobody else touches these outputs; the row lies inside.
    unsafe fn store(&self, panel: usize, row: usize, out: Outputs, acc: &[f32; PANEL]) {
        let from = panel * PANEL;
        let n = (self.n - from).min(PANEL);
        // SAFETY: inside the outputs, by the caller's word.
        let y = unsafe { std::slice::from_raw_parts_mut(out.0.add(row * self.n + from), n) };
        y.copy_from_slice(&acc[..n]);
    }
}

/// The last column of an odd number of them.
fn last(words: &[u32], x: f32, acc: &mut [f32; PANEL]) {
    let words = &words[words.len() - PANEL..];
    for (a, w) in acc.iter_mut().zip(words) {
        *a = f32::from_bits(w << 16).mul_add(x, *a);
    }
}

/// What outputs start from.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// A bias for each output row.
    Bias(&'a [f32]),
    /// What lies there: the residual stream.
    Keep,
}

/// Outputs that tiles write side by side.
#[derive(Clone, Copy)]
struct Outputs(*mut f32);

// SAFETY: each tile writes other elements.
unsafe impl Send for Outputs {}
// SAFETY: as above.
unsafe impl Sync for Outputs {}

/// Some rows of x, packed side by side, times one panel.
type Rows = fn(words: &[u32], x: &[f32], acc: &mut [[f32; PANEL]]);
/// One row of x times some panels: several chains at once hide what one multiply-add waits for another.
type Group = fn(words: [&[u32]; GROUP], x: &[f32], acc: &mut [[f32; PANEL]; GROUP]);

impl Level {
    fn rows(self) -> Rows {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::rows,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::rows,
            _ => scalar::rows,
        }
    }

    fn group(self) -> Option<Group> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Some(avx512::group),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
