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
mod groups;
mod heads;
mod pack;
mod scalar;

pub use groups::Groups;
pub use heads::run_heads;
pub use pack::{pack_columns, pack_rows};

use std::ops::Range;

use crate::cpu::Level;
use crate::pool::Pool;

/// Output rows of a panel.
pub const PANEL: usize = 32;

/// Rows of x that one kernel call computes together.
const ROWS: usize = 12;
/// Rows of x in a tile, where they are many.
const CHUNK: usize = 96;
/// Panels of a tile at most: what stays in a core's cache while rows of x pass.
const TILE: usize = 8;
/// Panels that few rows of x meet together, at most.
const GROUP: usize = 4;
/// Rows times panels of one kernel call, at most.
const SUMS: usize = 12;
/// Rows of x up to which memory, not arithmetic, is what a kernel waits for.
const FEW: usize = 4;
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
        if m == 0 {
            return;
        }
        let panels = self.n.div_ceil(PANEL);
        // At least two tiles per thread, so that a slow core takes fewer; no more panels than stay in a cache.
        let per_thread = panels.div_ceil(pool.threads() * TILE).max(2);
        let tile = panels.div_ceil(pool.threads() * per_thread);
        let tiles = panels.div_ceil(tile.max(1));
        let chunk = if m < 2 * CHUNK { m } else { CHUNK };
        let out = Outputs(y.as_mut_ptr());
        pool.run(tiles * m.div_ceil(chunk), |i| {
            let panel = i % tiles * tile;
            let first = i / tiles * chunk;
            let count = (m - first).min(chunk);
            let panels = panel..(panel + tile).min(panels);
            // SAFETY: tiles write the outputs of their own panels and rows only.
            unsafe { self.tile(level, x, Rows::Run { first, count }, panels, out, start) };
        });
    }

    /// One output row's elements, as f32: a row of an embedding table.
    ///
    /// # Panics
    /// Where the row lies outside or `out` is too short.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let out = out[..self.k].iter_mut();
        out.zip(self.elements(row)).for_each(|(out, x)| *out = x);
    }

    /// Adds one output row's elements: a row of a table of positions.
    ///
    /// # Panics
    /// As [`Linear::row`].
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        let out = out[..self.k].iter_mut();
        out.zip(self.elements(row)).for_each(|(out, x)| *out += x);
    }

    fn elements(&self, row: usize) -> impl Iterator<Item = f32> {
        assert!(row < self.n);
        let words = self.words(row / PANEL);
        (0..self.k).map(move |i| {
            let word = words[i / 2 * PANEL + row % PANEL];
            f32::from_bits(if i % 2 == 0 {
                word << 16
            } else {
                word & 0xffff_0000
            })
        })
    }

    fn words(&self, panel: usize) -> &'a [u32] {
        let len = PANEL * self.k.div_ceil(2);
        &self.words[panel * len..(panel + 1) * len]
    }

    /// # Safety
    /// Nobody else touches the outputs of these panels and rows, which lie inside.
    unsafe fn tile(
        &self,
        level: Level,
        x: &[f32],
        rows: Rows<'_>,
        panels: Range<usize>,
        out: Outputs,
        start: Start<'_>,
    ) {
        // Rows of x side by side: whole rows lie a power of two apart, and would push each other out.
        let packed = &mut [0.0; ROWS * BLOCK];
        let m = rows.len();
        if m <= FEW {
            // Few rows wait for weights: each panel is read from its start to its end.
            let group = level.panels(m);
            for panel in panels.clone().step_by(group) {
                let panels = panel..(panel + group).min(panels.end);
                // SAFETY: the caller's.
                unsafe { self.block(level, x, rows, panels, 0..self.k, packed, out, start) };
            }
            return;
        }
        let mut from = 0;
        // At least once, also where k is 0.
        while from < self.k || from == 0 {
            let k = from..(from + BLOCK).min(self.k);
            let start = if from == 0 { start } else { Start::Keep };
            for row in (0..m).step_by(ROWS) {
                let rows = rows.part(row, (m - row).min(ROWS));
                // SAFETY: the caller's.
                unsafe {
                    self.block(
                        level,
                        x,
                        rows,
                        panels.clone(),
                        k.clone(),
                        packed,
                        out,
                        start,
                    )
                };
            }
            if k.end == self.k {
                return;
            }
            from = k.end;
        }
    }

    /// Some rows of x, some columns, some panels.
    ///
    /// # Safety
    /// Nobody else touches the outputs of these panels.
    #[allow(
        clippy::too_many_arguments,
        reason = "what is left to compute, in three dimensions"
    )]
    unsafe fn block(
        &self,
        level: Level,
        x: &[f32],
        of: Rows<'_>,
        panels: Range<usize>,
        k: Range<usize>,
        packed: &mut [f32; ROWS * BLOCK],
        out: Outputs,
        start: Start<'_>,
    ) {
        let rows = of.len();
        let group = level.panels(rows);
        let mut from = k.start;
        loop {
            let to = (from + BLOCK).min(k.end);
            let pairs = (to - from).div_ceil(2);
            let start = if from == k.start { start } else { Start::Keep };
            let packed = &mut packed[..2 * pairs * rows];
            let x = |r: usize| &x[of.x(r) * self.k + from..][..to - from];
            for (r, x) in (0..rows).map(x).enumerate() {
                for (i, x) in x.iter().enumerate() {
                    packed[i * rows + r] = *x;
                }
                if to - from < 2 * pairs {
                    // An odd last column has a partner of zeros.
                    packed[(to - from) * rows + r] = 0.0;
                }
            }
            for first in panels.clone().step_by(group) {
                let count = (panels.end - first).min(group);
                let mut acc = [[0.0; PANEL]; SUMS];
                let mut words = [&self.words[..0]; GROUP];
                for (i, words) in words[..count].iter_mut().enumerate() {
                    *words = &self.words(first + i)[from / 2 * PANEL..][..pairs * PANEL];
                }
                for (i, acc) in acc[..count * rows].iter_mut().enumerate() {
                    // SAFETY: the caller's.
                    unsafe { self.load(first + i / rows, of.y(i % rows), out, start, acc) };
                }
                level.kernel()(&words[..count], packed, rows, &mut acc[..count * rows]);
                for (i, acc) in acc[..count * rows].iter().enumerate() {
                    // SAFETY: the caller's.
                    unsafe { self.store(first + i / rows, of.y(i % rows), out, acc) };
                }
            }
            if to == k.end {
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

/// The rows of x that a matrix multiplies, and the rows of y that they become.
#[derive(Clone, Copy, Debug)]
enum Rows<'a> {
    /// Some in a row, the same of x and of y.
    Run { first: usize, count: usize },
    /// Every `step`-th, the same of x and of y.
    Spaced {
        first: usize,
        step: usize,
        count: usize,
    },
    /// These of y; `share` rows of y, one after the other, have one row of x.
    Listed { rows: &'a [usize], share: usize },
}

impl Rows<'_> {
    const fn len(self) -> usize {
        match self {
            Self::Run { count, .. } | Self::Spaced { count, .. } => count,
            Self::Listed { rows, .. } => rows.len(),
        }
    }

    /// `count` of them, from the one numbered `from`.
    fn part(self, from: usize, count: usize) -> Self {
        match self {
            Self::Run { first, .. } => Self::Run {
                first: first + from,
                count,
            },
            Self::Spaced { first, step, .. } => Self::Spaced {
                first: first + from * step,
                step,
                count,
            },
            Self::Listed { rows, share } => Self::Listed {
                rows: &rows[from..from + count],
                share,
            },
        }
    }

    const fn x(self, i: usize) -> usize {
        match self {
            Self::Run { first, .. } => first + i,
            Self::Spaced { first, step, .. } => first + i * step,
            Self::Listed { rows, share } => rows[i] / share,
        }
    }

    const fn y(self, i: usize) -> usize {
        match self {
            Self::Run { first, .. } => first + i,
            Self::Spaced { first, step, .. } => first + i * step,
            Self::Listed { rows, .. } => rows[i],
        }
    }
}

/// Outputs that tiles write side by side.
#[derive(Clone, Copy)]
struct Outputs(*mut f32);

// SAFETY: each tile writes other elements.
unsafe impl Send for Outputs {}
// SAFETY: as above.
unsafe impl Sync for Outputs {}

/// Some rows of x, packed side by side, times some panels: `acc` holds each panel's rows in turn.
type Kernel = fn(words: &[&[u32]], x: &[f32], rows: usize, acc: &mut [[f32; PANEL]]);

impl Level {
    fn kernel(self) -> Kernel {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::multiply,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::multiply,
            _ => scalar::multiply,
        }
    }

    /// Panels that a kernel takes together: as many chains as hide what one multiply-add waits for another.
    const fn panels(self, rows: usize) -> usize {
        match (self, rows) {
            (Self::Avx512, 0..=2) => GROUP,
            (Self::Avx512, 3..=4) => 3,
            (Self::Avx512, 5..=6) => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
