//! `y = x W^T`, the weights packed in panels of [`PANEL`] output rows.
//!
//! A panel of bfloat16 holds its rows' elements k by k, pairs of k together: 32 words of 32 bits for k and k + 1, each
//! the bfloat16 of k in its low half and of k + 1 in its high half. So one load of 16 words, shifted or masked, gives
//! 16 outputs' weights as f32, and every output is one lane's chain over k, in order. Rows and k are padded with zeros,
//! which change no sum. Inputs are f32, or are rounded to bfloat16 first ([`Inputs`], `rounded.rs`).
//!
//! e4m3 weights meet f32 inputs (`floats.rs`): a panel holds a line of f32 scales before each 128 columns, and lines of words
//! with four columns each. Products under one scale are a chain over k of their own, from zero on, which is then multiplied
//! by the scale and added.
//!
//! Whole numbers of eight and four bits meet inputs of eight bits (`quantise.rs`). A panel then holds lines of 32 words, one
//! for each output. Eight bits: a line of f32 scales before each 128 columns, four columns in a word, 128 more than
//! what is meant. Four bits: a line of two bfloat16 scales before each 64 columns, those of the first 32 in the low
//! half, eight columns in a word, 8 more than what is meant, the first four in the low halves of its bytes. Published
//! groups of four bits: a line of words before each group, which have a scale in their 19 highest bits (f16 and bfloat16
//! both fit) and in their lowest five what the group's numbers are less. Products
//! under one scale are added as whole numbers, which is exact in any order; those sums, times both scales, are one
//! chain of fused multiply-adds over k.

#![allow(unsafe_code)]

/// Hands to a macro the numbers of panels and rows that a kernel of 16 lanes is made for: their sums fit into 24 of 32
/// registers.
#[cfg(target_arch = "x86_64")]
macro_rules! sizes {
    ($take:ident) => {
        $take!(
            (4, 1),
            (4, 2),
            (3, 3),
            (3, 4),
            (2, 5),
            (2, 6),
            (1, 1),
            (1, 2),
            (1, 3),
            (1, 4),
            (1, 5),
            (1, 6),
            (1, 7),
            (1, 8),
            (1, 9),
            (1, 10),
            (1, 11),
            (1, 12)
        )
    };
}
#[cfg(target_arch = "x86_64")]
use sizes;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod floats;
mod groups;
mod heads;
mod pack;
mod quantise;
mod rounded;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use groups::Groups;
pub use heads::run_heads;
pub use pack::{pack_columns, pack_rows};
pub use quantise::{group_word, pack_f8_row, pack_group_row, quantise_row};
pub(crate) use quantise::{scale, whole};
pub(crate) use rounded::chains as dot_chains;

use std::ops::Range;

use plimsoll_units::{GroupSize, WeightType};

use crate::cpu::Level;
use crate::pool::Pool;
use quantise::{GROUP as GROUP_K, NIBBLES, WORDS};

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
/// Rows of x up to which memory, not arithmetic, is what a kernel waits for.
const FEW: usize = 4;
/// k that a panel's pass covers before the next rows of x: what stays in the cache.
const BLOCK: usize = 512;
/// The same of rows that are quantised.
const BLOCK_WHOLE: usize = 8 * GROUP_K;
/// Words from one row of x to the next, in what a kernel is given: those of a pass, and so many more that rows do not lie a
/// power of two apart, where they would push each other out of the cache.
const ROW: usize = BLOCK + 16;
const _: () = assert!(BLOCK_WHOLE / GROUP_K * WORDS < ROW && BLOCK + 3 <= ROW);
const _: () = assert!(BLOCK.is_multiple_of(GROUP_K));

/// What bfloat16 weights are multiplied with. Other weights have inputs of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inputs {
    /// f32: one fused multiply-add for each weight, over k in order.
    #[default]
    F32,
    /// bfloat16, rounded to nearest even: the dot product of pairs that some processors have, twice as fast there. Of a
    /// pair of k, the second comes first; what is smaller than normal numbers is zero.
    Bf16,
}

impl Inputs {
    /// bfloat16 where this processor multiplies it by itself.
    #[must_use]
    pub fn detect() -> Self {
        if rounded::is_native() {
            Self::Bf16
        } else {
            Self::F32
        }
    }

    /// Its name in flags and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// A packed matrix of `n` output rows and `k` columns.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    words: &'a [u32],
    form: WeightType,
    inputs: Inputs,
    n: usize,
    k: usize,
}

/// Kernels of whole numbers are made for eight bits, for our four bits, or for the columns of a published group.
const EIGHT: usize = 8;
/// As [`EIGHT`].
const FOUR: usize = 4;

/// Columns whose products are added before a scale meets them.
const fn part_columns(kind: usize) -> usize {
    match kind {
        EIGHT => GROUP_K,
        FOUR => NIBBLES,
        group => group,
    }
}

/// Columns in a word.
const fn per_word(kind: usize) -> usize {
    if kind == EIGHT { 4 } else { 8 }
}

/// Whether a part begins with a line of scales: of our four bits two parts share one.
const fn has_line(kind: usize, part: usize) -> bool {
    kind != FOUR || part.is_multiple_of(2)
}

/// Lines of a panel that meet one group of quantised inputs.
const fn group_lines(kind: usize) -> usize {
    let parts = GROUP_K / part_columns(kind);
    GROUP_K / per_word(kind) + if kind == FOUR { parts / 2 } else { parts }
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
    pub fn new(words: &'a [u32], form: WeightType, n: usize, k: usize) -> Self {
        assert_eq!(
            Ok(words.len() as u64 * 4),
            form.bytes(n as u64, k as u64).map(|b| b.get()),
            "a packed matrix of {n} x {k}"
        );
        let inputs = Inputs::default();
        Self {
            words,
            form,
            inputs,
            n,
            k,
        }
    }

    /// The same with other inputs.
    #[must_use]
    pub const fn with_inputs(self, inputs: Inputs) -> Self {
        Self { inputs, ..self }
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

    /// `y = x W^T` for `m` rows of x; rows of x are `k` and rows of y `n` elements apart. In `scratch` the rows are
    /// quantised, where weights are: it has [`WeightType::input_words`] for each.
    ///
    /// # Panics
    /// Where the slices are too short.
    #[allow(clippy::too_many_arguments, reason = "what any matrix product has")]
    pub fn run(
        &self,
        pool: &mut Pool,
        level: Level,
        x: &[f32],
        m: usize,
        scratch: &mut [f32],
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
        let x = self.inputs_of(pool, level, x, m, scratch);
        let panels = self.n.div_ceil(PANEL);
        let most = self.tile_panels();
        // At least two tiles per thread, so that a slow core takes fewer; no more panels than stay in a cache.
        let per_thread = panels.div_ceil(pool.threads() * most).max(2);
        let tile = panels.div_ceil(pool.threads() * per_thread);
        let tiles = panels.div_ceil(tile.max(1));
        let chunk = if m < 2 * CHUNK { m } else { CHUNK };
        let chunks = m.div_ceil(chunk);
        let out = Outputs(y.as_mut_ptr());
        pool.run(tiles * chunks, |i| {
            // All rows pass some panels before the next ones: weights are more than caches hold.
            let panel = i / chunks * tile;
            let first = i % chunks * chunk;
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
        let (words, form) = (self.words(row / PANEL), self.form);
        (0..self.k).map(move |i| quantise::element(form, words, row % PANEL, i))
    }

    /// Words of a panel before those of column `k`, which begins a group.
    fn before(&self, k: usize) -> usize {
        // Of what lies in memory.
        PANEL * usize::try_from(self.form.row_words(k as u64)).unwrap_or(usize::MAX)
    }

    fn words(&self, panel: usize) -> &'a [u32] {
        let len = self.before(self.k);
        &self.words[panel * len..(panel + 1) * len]
    }

    /// Words of a row of inputs before those of column `k`, which begins a group.
    fn input_before(&self, k: usize) -> usize {
        if self.takes_floats() {
            k
        } else {
            k.div_ceil(GROUP_K) * WORDS
        }
    }

    /// Whether rows of x meet the matrix as they are, or rounded.
    const fn takes_floats(&self) -> bool {
        matches!(self.form, WeightType::Bf16 | WeightType::Fp8)
    }

    /// Panels of a tile at most.
    const fn tile_panels(&self) -> usize {
        match self.form {
            WeightType::Bf16 => TILE,
            _ => 2 * TILE,
        }
    }

    /// k of a pass.
    const fn block_columns(&self) -> usize {
        if self.takes_floats() {
            BLOCK
        } else {
            BLOCK_WHOLE
        }
    }

    /// Rows of x as the matrix meets them: themselves, or quantised.
    fn inputs_of<'x>(
        &self,
        pool: &mut Pool,
        level: Level,
        x: &'x [f32],
        m: usize,
        scratch: &'x mut [f32],
    ) -> &'x [f32] {
        if self.takes_floats() || self.k == 0 {
            return x;
        }
        let (k, width) = (self.k, self.input_before(self.k));
        let scratch = &mut scratch[..m * width];
        pool.rows(scratch, width, |i, out| {
            quantise::input(level, &x[i * k..][..k], out)
        });
        scratch
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
        let m = rows.len();
        let outputs = panels.start * PANEL..(panels.end * PANEL).min(self.n);
        for r in 0..m {
            let at = rows.y(r) * self.n + outputs.start;
            // SAFETY: the caller's.
            let y = unsafe { std::slice::from_raw_parts_mut(out.0.add(at), outputs.len()) };
            match start {
                Start::Zero => y.fill(0.0),
                Start::Bias(b) => y.copy_from_slice(&b[outputs.clone()]),
                Start::Keep => {}
            }
        }
        if m <= FEW {
            let packed = &mut [0.0; FEW * ROW];
            // Few rows wait for weights: each panel is read from its start to its end.
            let group = level.panels(m);
            for panel in panels.clone().step_by(group) {
                let panels = panel..(panel + group).min(panels.end);
                for k in self.blocks() {
                    // SAFETY: the caller's.
                    unsafe { self.block(level, x, rows, panels.clone(), k, packed, out) };
                }
            }
            return;
        }
        let packed = &mut [0.0; ROWS * ROW];
        // As many in each part: few rows at the end would wait for weights as long as many.
        let part = m.div_ceil(m.div_ceil(ROWS));
        for k in self.blocks() {
            for row in (0..m).step_by(part) {
                let rows = rows.part(row, (m - row).min(part));
                // SAFETY: the caller's.
                unsafe { self.block(level, x, rows, panels.clone(), k.clone(), packed, out) };
            }
        }
    }

    /// The columns of each pass.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (k, step) = (self.k, self.block_columns());
        (0..k)
            .step_by(step)
            .map(move |from| from..(from + step).min(k))
    }

    /// Adds some columns' products, of some rows of x and some panels.
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
        packed: &mut [f32],
        out: Outputs,
    ) {
        let rows = of.len();
        let width = self.input_before(self.k);
        let part = self.input_before(k.start)..self.input_before(k.end);
        for (r, out) in packed.chunks_exact_mut(ROW).take(rows).enumerate() {
            let x = &x[of.x(r) * width..][part.clone()];
            if (self.form, self.inputs) == (WeightType::Bf16, Inputs::Bf16) {
                rounded::row(level, x, out);
            } else {
                out[..x.len()].copy_from_slice(x);
                // What a last word has beside columns.
                out[x.len()..x.len() + 3].fill(0.0);
            }
        }
        let kernel = level.kernel(self.form, self.inputs);
        let words = |panel: usize| &self.words(panel)[self.before(k.start)..self.before(k.end)];
        let group = level.panels(rows);
        // A last panel that is not full has no outputs for some of its sums.
        let full = panels.end.min(self.n / PANEL);
        for first in (panels.start..full).step_by(group) {
            let count = (full - first).min(group);
            let mut all = [&self.words[..0]; GROUP];
            for (i, w) in all[..count].iter_mut().enumerate() {
                *w = words(first + i);
            }
            let mut y = [std::ptr::null_mut(); ROWS];
            for (r, y) in y[..rows].iter_mut().enumerate() {
                // SAFETY: inside the outputs, by the caller's word.
                *y = unsafe { out.0.add(of.y(r) * self.n + first * PANEL) };
            }
            // SAFETY: these panels have all their outputs, which nobody else touches.
            unsafe { kernel(&all[..count], packed, &y[..rows]) };
        }
        for panel in full.max(panels.start)..panels.end {
            let n = self.n - panel * PANEL;
            for r in 0..rows {
                let at = of.y(r) * self.n + panel * PANEL;
                // SAFETY: inside the outputs, by the caller's word.
                let y = unsafe { std::slice::from_raw_parts_mut(out.0.add(at), n) };
                let mut sums = [0.0; PANEL];
                sums[..n].copy_from_slice(y);
                // SAFETY: a panel's sums.
                unsafe { kernel(&[words(panel)], &packed[r * ROW..], &[sums.as_mut_ptr()]) };
                y.copy_from_slice(&sums[..n]);
            }
        }
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

/// Adds the products of some rows of x, [`ROW`] words apart, and some panels, which lie side by side in y: there is one
/// pointer for each row, to the first panel's first output.
///
/// # Safety
/// Each row of y has all outputs of the panels, which nobody else touches.
type Kernel = unsafe fn(words: &[&[u32]], x: &[f32], y: &[*mut f32]);

/// The sums of one row and panel.
///
/// # Safety
/// As [`Kernel`], of this panel; no other reference to them is alive.
unsafe fn sums<'a>(y: *mut f32, panel: usize) -> &'a mut [f32; PANEL] {
    // SAFETY: the caller's.
    unsafe { &mut *y.add(panel * PANEL).cast() }
}

/// Calls a kernel for one panel after the other: few are left over.
///
/// # Safety
/// That of the kernel.
#[cfg(target_arch = "x86_64")]
unsafe fn each(kernel: Kernel, words: &[&[u32]], x: &[f32], y: &[*mut f32]) {
    assert!(
        words.len() > 1 && y.len() <= ROWS,
        "a size without a kernel"
    );
    let mut shifted = [std::ptr::null_mut(); ROWS];
    for (panel, words) in words.iter().enumerate() {
        for (to, y) in shifted.iter_mut().zip(y) {
            // SAFETY: the row has this panel's outputs.
            *to = unsafe { y.add(panel * PANEL) };
        }
        // SAFETY: the caller's.
        unsafe { kernel(&[words], x, &shifted[..y.len()]) };
    }
}

impl Level {
    fn kernel(self, form: WeightType, inputs: Inputs) -> Kernel {
        match form {
            WeightType::Bf16 if inputs == Inputs::Bf16 => rounded::kernel(self),
            WeightType::Bf16 => match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::multiply,
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::multiply,
                _ => scalar::multiply,
            },
            WeightType::Fp8 => floats::kernel(self),
            WeightType::Int8 => self.whole::<EIGHT>(),
            WeightType::Int4 => self.whole::<FOUR>(),
            WeightType::Grouped(GroupSize::G128) => self.whole::<128>(),
            WeightType::Grouped(GroupSize::G64) => self.whole::<64>(),
            WeightType::Grouped(GroupSize::G32) => self.whole::<32>(),
        }
    }

    fn whole<const KIND: usize>(self) -> Kernel {
        match self {
            // The first processors with AVX-512 have no VNNI.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if is_x86_feature_detected!("avx512vnni") => vnni::multiply::<KIND>,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx2 => avx2::multiply_whole::<KIND>,
            _ => scalar::multiply_whole::<KIND>,
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
