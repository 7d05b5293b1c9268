//! Attention over paged latents (MLA, in its absorbed form): all query heads share one key per token, whose first part
//! is also its value.
//!
//! **A block** holds `[slots][k_dim]`: of each token its latent (`v_dim` elements), then its shared rotated key. It is kept
//! once. Scores have query heads in their lanes and are chains over the row's elements; values have elements in their
//! lanes and are added key by key. So no sum runs across lanes at all.
//!
//! **Tiles** are sixteen keys at absolute positions, as in `attention.rs`, and for the same reason. An item is one query
//! token and sixteen of its heads, so all of an item's lanes see the same keys.

#![allow(unsafe_code)]

use crate::attention::{Columns, Queries};
use crate::cached::{Cached, F8, F16, Unscaled, for_types};
use crate::cpu::Level;
use crate::lanes::{LANES, Lanes, at_level, for_levels};
use crate::pool::Pool;

/// Elements of a cached row at most: queries and the keys of a tile lie as f32 on a thread's stack.
pub const LATENT_MAX: usize = 640;
/// Keys that are multiplied together: as many chains as hide what one multiply-add waits for another.
const KEYS: usize = 8;
/// Registers of values that a head's keys are added to together.
const TOGETHER: usize = 4;

/// How one layer's latents lie in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Elements of a page.
    pub page: usize,
    /// Where the layer's part of a page begins.
    pub layer: usize,
    /// Tokens per block.
    pub slots: usize,
    /// Elements of a cached row.
    pub k_dim: usize,
    /// How many of them, the first, are its value.
    pub v_dim: usize,
}

impl LatentShape {
    fn row(&self, table: &[u32], position: usize) -> usize {
        let page = table[position / self.slots] as usize;
        page * self.page + self.layer + position % self.slots * self.k_dim
    }

    fn check(&self, pages: usize) {
        assert!(self.slots > 0 && self.layer + self.slots * self.k_dim <= self.page);
        assert!(self.v_dim <= self.k_dim && self.k_dim <= LATENT_MAX && self.page <= pages);
    }
}

#[derive(Clone, Copy)]
struct Pages<C>(*mut C);

// SAFETY: tiles write slots of tokens of their own only.
unsafe impl<C> Send for Pages<C> {}
// SAFETY: as above.
unsafe impl<C> Sync for Pages<C> {}

/// Writes the rows of a step's tokens into their slots.
///
/// # Panics
/// Where a table, a page or a buffer is too short.
pub fn write_latents<C: Unscaled>(
    pool: &mut Pool,
    shape: &LatentShape,
    pages: &mut [C],
    all: &[Queries<'_>],
    rows: Columns<'_>,
) {
    shape.check(pages.len());
    let len = pages.len();
    let out = &Pages(pages.as_mut_ptr());
    pool.run(all.len(), |i| {
        let q = &all[i];
        for n in 0..q.count {
            let at = shape.row(q.table, q.start + n);
            assert!(at + shape.k_dim <= len, "a page outside the pool");
            for (d, x) in rows.row(q.row + n, 0, shape.k_dim).iter().enumerate() {
                // SAFETY: inside, as checked; sequences write slots of their own.
                unsafe { *out.0.add(at + d) = C::narrow(*x) };
            }
        }
    });
}

#[derive(Clone, Copy)]
struct Outputs(*mut f32);

// SAFETY: items write rows and heads of their own only.
unsafe impl Send for Outputs {}
// SAFETY: as above.
unsafe impl Sync for Outputs {}

/// One query token's heads, at most sixteen.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a, C> {
    shape: &'a LatentShape,
    pages: &'a [C],
    scale: f32,
    table: &'a [u32],
    position: usize,
    row: usize,
    /// The first of its heads, and how many.
    head: usize,
    count: usize,
    q: Columns<'a>,
    q_rope: Columns<'a>,
    out: Outputs,
    /// Elements of `out` from row to row.
    stride: usize,
}

/// Attention of all queries of a step. `q` has `heads × v_dim` elements a row, `q_rope` as many times what a cached row has
/// beyond its value; `out` has `heads × v_dim`.
///
/// # Panics
/// Where a table, a page or a buffer is too short.
#[allow(clippy::too_many_arguments, reason = "the operation's own")]
pub fn attend_latents<C: Unscaled>(
    pool: &mut Pool,
    level: Level,
    shape: &LatentShape,
    pages: &[C],
    all: &[Queries<'_>],
    (heads, scale): (usize, f32),
    [q, q_rope]: [Columns<'_>; 2],
    out: &mut [f32],
) {
    shape.check(pages.len());
    let stride = heads * shape.v_dim;
    let rows = all.iter().map(|s| s.row + s.count).max().unwrap_or(0);
    assert!(out.len() >= rows * stride);
    let out = Outputs(out.as_mut_ptr());
    let pieces = heads.div_ceil(LANES);
    let mut first = Vec::with_capacity(all.len() + 1);
    let mut total = 0;
    for s in all {
        first.push(total);
        total += s.count * pieces;
    }
    pool.run(total, |i| {
        // Long prompts' last tokens see the most keys: they come first.
        let i = total - 1 - i;
        let s = first.partition_point(|f| *f <= i) - 1;
        let (seq, i) = (&all[s], i - first[s]);
        let (token, head) = (i / pieces, i % pieces * LANES);
        C::attend_latents(
            level,
            &Item {
                shape,
                pages,
                scale,
                table: seq.table,
                position: seq.start + token,
                row: seq.row + token,
                head,
                count: (heads - head).min(LANES),
                q,
                q_rope,
                out,
                stride,
            },
        );
    });
}

for_types! {
    attend_f32, item_f32, f32;
    attend_bf16, item_bf16, u16;
    attend_f16, item_f16, F16;
    attend_f8, item_f8, F8;
}

#[inline(always)]
fn item_of<V: Lanes, C: Cached>(item: &Item<'_, C>) {
    let Item { shape, .. } = *item;
    let (k_dim, v_dim) = (shape.k_dim, shape.v_dim);
    let rope = k_dim - v_dim;
    // Queries with heads side by side; lanes without a head are zeros.
    let mut q = [[0.0_f32; LANES]; LATENT_MAX];
    for n in 0..item.count {
        let head = item.head + n;
        let low = item.q.row(item.row, head * v_dim, v_dim);
        let rotated = item.q_rope.row(item.row, head * rope, rope);
        for (q, x) in q.iter_mut().zip(low.iter().chain(rotated)) {
            q[n] = *x;
        }
    }
    let at = item.row * item.stride + item.head * v_dim;
    // SAFETY: inside, as `attend_latents` asserts; the row's heads are this item's alone.
    let out = unsafe { std::slice::from_raw_parts_mut(item.out.0.add(at), item.count * v_dim) };
    out.fill(0.0);
    let (mut m, mut l) = (V::splat(f32::NEG_INFINITY), V::splat(0.0));
    let mut keys = [[0.0_f32; LATENT_MAX]; LANES];
    let end = item.position + 1;
    for tile in (0..end).step_by(LANES) {
        let count = (end - tile).min(LANES);
        let mut rows = [&item.pages[..0]; LANES];
        for (j, (row, keys)) in rows[..count].iter_mut().zip(&mut keys).enumerate() {
            *row = &item.pages[shape.row(item.table, tile + j)..][..k_dim];
            widen::<V, C>(row, keys);
        }
        let mut s = [V::splat(0.0); LANES];
        for (s, keys) in s
            .as_chunks_mut::<KEYS>()
            .0
            .iter_mut()
            .zip(keys.as_chunks::<KEYS>().0)
        {
            for (d, q) in q.iter().enumerate().take(k_dim) {
                let q = V::load(q);
                for j in 0..KEYS {
                    s[j] = V::splat(keys[j][d]).fma(q, s[j]);
                }
            }
        }
        let scale = V::splat(item.scale);
        let mut top = m;
        for s in &mut s[..count] {
            *s = s.mul(scale);
            // The largest of several numbers does not depend on their order.
            top = s.max(top);
        }
        // At the first tile there is nothing that could shrink, and this is 0 or next to it.
        let shrink = m.sub(top).exp();
        l = l.mul(shrink);
        let mut p = [[0.0_f32; LANES]; LANES];
        for (p, s) in p.iter_mut().zip(&s[..count]) {
            let e = s.sub(top).exp();
            l = l.add(e);
            *p = e.array();
        }
        m = top;
        let shrink = shrink.array();
        for (n, out) in out.chunks_exact_mut(v_dim.max(1)).enumerate() {
            let shrink = V::splat(shrink[n]);
            add_values::<V, C>(&rows[..count], |j| p[j][n], shrink, out);
        }
    }
    let l = l.array();
    for (n, out) in out.chunks_exact_mut(v_dim.max(1)).enumerate() {
        let sum = V::splat(l[n]);
        for out in out.chunks_mut(LANES) {
            V::load_some(out, 0.0).div(sum).store_some(out);
        }
    }
}

#[inline(always)]
fn widen<V: Lanes, C: Cached>(row: &[C], out: &mut [f32; LATENT_MAX]) {
    let whole = row.len() / LANES * LANES;
    for d in (0..whole).step_by(LANES) {
        C::load::<V>(&row[d..]).store(&mut out[d..]);
    }
    for (out, x) in out[whole..].iter_mut().zip(&row[whole..]) {
        *out = x.wide();
    }
}

/// `out = out · shrink + p · value`, key by key.
#[inline(always)]
fn add_values<V: Lanes, C: Cached>(
    rows: &[&[C]],
    p: impl Fn(usize) -> f32,
    shrink: V,
    out: &mut [f32],
) {
    const STEP: usize = TOGETHER * LANES;
    let mut d = 0;
    while d + STEP <= out.len() {
        let mut acc: [V; TOGETHER] =
            std::array::from_fn(|i| V::load(&out[d + i * LANES..]).mul(shrink));
        for (j, row) in rows.iter().enumerate() {
            let p = V::splat(p(j));
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = C::load::<V>(&row[d + i * LANES..]).fma(p, *acc);
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            acc.store(&mut out[d + i * LANES..]);
        }
        d += STEP;
    }
    let shrink = shrink.array()[0];
    for (d, out) in out.iter_mut().enumerate().skip(d) {
        *out *= shrink;
        for (j, row) in rows.iter().enumerate() {
            *out = row[d].wide().mul_add(p(j), *out);
        }
    }
}

#[cfg(test)]
mod tests;
