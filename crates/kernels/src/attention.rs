//! Attention over paged keys and values.
//!
//! **A block** holds, for each KV head in turn, its keys as `[k_dim][slots]`, and after all of them the values of
//! each head as `[slots][v_dim]`: sixteen keys' elements lie side by side, so scores are sixteen chains over
//! the head's elements, and values are added key by key. No sum runs across lanes but the last one. Where elements
//! have scales ([`Cached::SCALE`]), those of the keys of each head follow as `[slots]`, then those of the values.
//!
//! **Tiles** are sixteen keys at absolute positions that are multiples of sixteen, whatever the block size and
//! wherever a chunk begins. So the softmax is rescaled at the same keys in every batch, chunking and paging, and
//! an output's bits depend on its query and the keys that it sees alone.

#![allow(unsafe_code)]

use crate::cached::{Cached, F8, F16, for_types};
use crate::cpu::Level;
use crate::lanes::{LANES, Lanes, at_level, for_levels};
use crate::pool::Pool;

/// Queries that pass a tile together: those of one KV head, of neighbouring tokens.
const QUERIES: usize = 8;
/// Tiles that few queries pass together.
const AHEAD: usize = 4;
/// Elements of a head at most.
pub const HEAD_MAX: usize = 256;

/// How one layer's keys and values lie in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Elements of a page.
    pub page: usize,
    /// Where the layer's part of a page begins.
    pub layer: usize,
    /// Tokens per block.
    pub slots: usize,
    /// KV heads.
    pub heads: usize,
    /// Elements of a key head.
    pub k_dim: usize,
    /// Elements of a value head.
    pub v_dim: usize,
}

impl KvShape {
    fn key(&self, page: u32, head: usize) -> usize {
        page as usize * self.page + self.layer + head * self.k_dim * self.slots
    }

    fn value(&self, page: u32, head: usize) -> usize {
        page as usize * self.page
            + self.layer
            + self.heads * self.k_dim * self.slots
            + head * self.v_dim * self.slots
    }

    /// Where the scales of a head's keys begin, and those of its values.
    fn scales<C: Cached>(&self, page: u32, head: usize) -> [usize; 2] {
        [head, self.heads + head].map(|n| self.value(page, self.heads) + n * self.slots * C::SCALE)
    }

    /// Elements of the layer's part of a page.
    const fn len<C: Cached>(&self) -> usize {
        self.heads * (self.k_dim + self.v_dim + 2 * C::SCALE) * self.slots
    }

    fn check<C: Cached>(&self, pages: usize) {
        assert!(C::SCALE == 0 || C::SCALE * size_of::<C>() == size_of::<f32>());
        assert!(self.slots > 0 && self.layer + self.len::<C>() <= self.page);
        assert!(pages.is_multiple_of(self.page.max(1)));
        assert!(self.k_dim <= HEAD_MAX && self.v_dim <= HEAD_MAX);
    }
}

/// Queries of one sequence in a step.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// Its pages, from its first token on; those that left a window may hold anything.
    pub table: &'a [u32],
    /// Position of its first query: tokens whose keys and values were there before.
    pub start: usize,
    /// Queries.
    pub count: usize,
    /// Row of the first one in the step's buffers.
    pub row: usize,
}

/// Which keys a query sees besides its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All before it.
    Full,
    /// The last `n`, its own among them.
    Window(usize),
    /// Those of its chunk of `n`.
    Chunk(usize),
}

impl Reach {
    /// The first key that a query at `position` sees.
    #[must_use]
    pub const fn first(self, position: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Window(n) => (position + 1).saturating_sub(n),
            Self::Chunk(n) => position - position % n,
        }
    }
}

/// What scores go through.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// Query heads.
    pub heads: usize,
    /// What they are multiplied by.
    pub scale: f32,
    /// s becomes c · tanh(s / c).
    pub softcap: Option<f32>,
    /// One more logit per query head, without a value.
    pub sinks: Option<&'a [f32]>,
    /// Which keys are seen.
    pub reach: Reach,
}

/// A part of each row of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// The buffer.
    pub data: &'a [f32],
    /// Elements from row to row.
    pub stride: usize,
    /// Where the part begins in a row.
    pub from: usize,
}

impl<'a> Columns<'a> {
    pub(crate) fn row(&self, row: usize, from: usize, len: usize) -> &'a [f32] {
        &self.data[row * self.stride + self.from + from..][..len]
    }
}

#[derive(Clone, Copy)]
struct Pages<C>(*mut C);

// SAFETY: tiles write slots of tokens of their own only.
unsafe impl<C> Send for Pages<C> {}
// SAFETY: as above.
unsafe impl<C> Sync for Pages<C> {}

/// Writes the keys and values of a step's tokens into their slots.
///
/// # Panics
/// Where a table, a page or a buffer is too short.
pub fn write_kv<C: Cached>(
    pool: &mut Pool,
    shape: &KvShape,
    pages: &mut [C],
    all: &[Queries<'_>],
    k: Columns<'_>,
    v: Columns<'_>,
) {
    shape.check::<C>(pages.len());
    let count = pages.len() / shape.page.max(1);
    let out = &Pages(pages.as_mut_ptr());
    pool.run(all.len(), |i| {
        let q = &all[i];
        for n in 0..q.count {
            let (block, slot) = ((q.start + n) / shape.slots, (q.start + n) % shape.slots);
            let page = q.table[block];
            assert!((page as usize) < count, "page {page} of {count}");
            for head in 0..shape.heads {
                let keys = k.row(q.row + n, head * shape.k_dim, shape.k_dim);
                let values = v.row(q.row + n, head * shape.v_dim, shape.v_dim);
                let (to_k, to_v) = (shape.key(page, head), shape.value(page, head));
                let ((k_scale, k_by), (v_scale, v_by)) = (C::scale(keys), C::scale(values));
                // SAFETY: inside the page, as checked; sequences write slots of their own.
                unsafe {
                    for (d, x) in keys.iter().enumerate() {
                        *out.0.add(to_k + d * shape.slots + slot) = C::narrow(*x * k_by);
                    }
                    for (d, x) in values.iter().enumerate() {
                        *out.0.add(to_v + slot * shape.v_dim + d) = C::narrow(*x * v_by);
                    }
                }
                if C::SCALE > 0 {
                    let to = shape.scales::<C>(page, head);
                    for (to, scale) in to.into_iter().zip([k_scale, v_scale]) {
                        // SAFETY: as above; a scale is as long as `SCALE` elements, as checked, at any address.
                        unsafe {
                            let to = out.0.add(to + slot * C::SCALE);
                            to.cast::<f32>().write_unaligned(scale);
                        }
                    }
                }
            }
        }
    });
}

#[derive(Clone, Copy)]
struct Outputs(*mut f32);

// SAFETY: tiles write rows and heads of their own only.
unsafe impl Send for Outputs {}
// SAFETY: as above.
unsafe impl Sync for Outputs {}

/// Some queries of one KV head.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a, C> {
    shape: &'a KvShape,
    pages: &'a [C],
    scores: &'a Scores<'a>,
    table: &'a [u32],
    kv_head: usize,
    /// Row, position and head of each.
    queries: [(usize, usize, usize); QUERIES],
    count: usize,
    q: Columns<'a>,
    out: Outputs,
    stride: usize,
}

/// Attention of all queries of a step; `out` has `heads × v_dim` elements a row.
///
/// # Panics
/// Where a table, a page or a buffer is too short.
#[allow(clippy::too_many_arguments, reason = "the operation's own")]
pub fn attend<C: Cached>(
    pool: &mut Pool,
    level: Level,
    shape: &KvShape,
    pages: &[C],
    all: &[Queries<'_>],
    scores: &Scores<'_>,
    q: Columns<'_>,
    out: &mut [f32],
) {
    shape.check::<C>(pages.len());
    let group = scores.heads / shape.heads.max(1);
    assert!(group > 0 && group * shape.heads == scores.heads);
    assert!(scores.sinks.is_none_or(|s| s.len() >= scores.heads));
    let stride = scores.heads * shape.v_dim;
    let rows = all.iter().map(|s| s.row + s.count).max().unwrap_or(0);
    assert!(out.len() >= rows * stride);
    let out = Outputs(out.as_mut_ptr());
    // The queries of a KV head and sequence, token by token and head by head, cut into pieces.
    let pieces = |s: &Queries<'_>| (s.count * group).div_ceil(QUERIES);
    let mut first = Vec::with_capacity(all.len() + 1);
    let mut total = 0;
    for s in all {
        first.push(total);
        total += pieces(s) * shape.heads;
    }
    pool.run(total, |i| {
        // Long prompts' last pieces see the most keys: they come first.
        let i = total - 1 - i;
        let s = first.partition_point(|f| *f <= i) - 1;
        let (seq, i) = (&all[s], i - first[s]);
        let (piece, kv_head) = (i / shape.heads, i % shape.heads);
        let from = piece * QUERIES;
        let count = (seq.count * group - from).min(QUERIES);
        let mut queries = [(0, 0, 0); QUERIES];
        for (n, query) in queries[..count].iter_mut().enumerate() {
            let (token, head) = ((from + n) / group, (from + n) % group);
            *query = (seq.row + token, seq.start + token, kv_head * group + head);
        }
        let item = Item {
            shape,
            pages,
            scores,
            table: seq.table,
            kv_head,
            queries,
            count,
            q,
            out,
            stride,
        };
        C::attend(level, &item);
    });
}

for_types! {
    attend_f32, item_f32, f32;
    attend_bf16, item_bf16, u16;
    attend_f16, item_f16, F16;
    attend_f8, item_f8, F8;
    attend_i8, item_i8, i8;
}

#[inline(always)]
fn item_of<V: Lanes, C: Cached>(item: &Item<'_, C>) {
    let Item { shape, scores, .. } = *item;
    let queries = &item.queries[..item.count];
    let (mut m, mut l) = ([f32::NEG_INFINITY; QUERIES], [V::splat(0.0); QUERIES]);
    let mut acc = [[0.0_f32; HEAD_MAX]; QUERIES];
    if let Some(sinks) = scores.sinks {
        for (n, (_, _, head)) in queries.iter().enumerate() {
            m[n] = sinks[*head];
            let mut one = [0.0; LANES];
            one[0] = 1.0;
            l[n] = V::load(&one);
        }
    }
    let seen = |n: usize| (scores.reach.first(queries[n].1), queries[n].1 + 1);
    let from = (0..item.count).map(|n| seen(n).0).min().unwrap_or(0);
    let to = (0..item.count).map(|n| seen(n).1).max().unwrap_or(0);
    let q: [&[f32]; QUERIES] = std::array::from_fn(|n| {
        if n < item.count {
            let (row, _, head) = queries[n];
            item.q.row(row, head * shape.k_dim, shape.k_dim)
        } else {
            &[]
        }
    });
    // Where blocks are whole tiles, these are never touched.
    let gathers = !shape.slots.is_multiple_of(LANES);
    let size = if gathers { LANES * HEAD_MAX } else { 0 };
    let (mut keys, mut values) = (vec![C::default(); size], vec![C::default(); size]);
    // Few queries have too few chains for one tile.
    let ahead = match item.count {
        _ if gathers => 1,
        1 => AHEAD,
        2 | 3 => 2,
        _ => 1,
    };
    let mut s = [[V::splat(0.0); QUERIES]; AHEAD];
    for tile in (from / LANES * LANES..to).step_by(ahead * LANES) {
        let count = (to - tile).div_ceil(LANES).min(ahead);
        let mut tiles = [Tile::default(); AHEAD];
        if gathers {
            let (lo, hi) = (from.max(tile), to.min(tile + LANES));
            tiles[0] = gathered(item, tile, lo, hi, &mut keys, &mut values);
        } else {
            for (i, t) in tiles[..count].iter_mut().enumerate() {
                *t = tile_of(item, tile + i * LANES);
            }
        }
        let tiles = &tiles[..count];
        scores_of::<V, C>(&q[..item.count], tiles, shape.k_dim, &mut s);
        for (i, (t, s)) in tiles.iter().zip(&s).enumerate() {
            let tile = tile + i * LANES;
            let scales = (C::SCALE > 0).then(|| {
                let (lo, hi) = (from.max(tile), to.min(tile + LANES));
                scales_of(item, tile, lo, hi)
            });
            let mut p = [[0.0; LANES]; QUERIES];
            // Keys of the tile that each query sees.
            let mut ranges = [(0, 0); QUERIES];
            for (n, s) in s[..item.count].iter().enumerate() {
                let (first, end) = seen(n);
                let a = first.max(tile) - tile;
                let b = end.min(tile + LANES).saturating_sub(tile);
                if a >= b {
                    continue;
                }
                ranges[n] = (a, b);
                let mut s = *s;
                if let Some([of_keys, _]) = &scales {
                    s = s.mul(V::load(of_keys));
                }
                s = s.mul(V::splat(scores.scale));
                if let Some(c) = scores.softcap {
                    s = s.mul(V::splat(1.0 / c)).tanh().mul(V::splat(c));
                }
                let whole = (a, b) == (0, LANES);
                if !whole {
                    let mut masked = [f32::NEG_INFINITY; LANES];
                    masked[a..b].copy_from_slice(&s.array()[a..b]);
                    s = V::load(&masked);
                }
                // The largest of several numbers does not depend on their order.
                let largest = s.largest();
                let top = if largest > m[n] { largest } else { m[n] };
                s = s.sub(V::splat(top)).exp();
                if !whole {
                    let mut kept = [0.0; LANES];
                    kept[a..b].copy_from_slice(&s.array()[a..b]);
                    s = V::load(&kept);
                }
                if top > m[n] {
                    // What was added up so far shrinks; at first there is nothing.
                    let shrink = V::splat(m[n] - top).exp();
                    l[n] = l[n].mul(shrink);
                    for acc in acc[n][..shape.v_dim].chunks_mut(LANES) {
                        V::load_some(acc, 0.0).mul(shrink).store_some(acc);
                    }
                    m[n] = top;
                }
                l[n] = l[n].add(s);
                if let Some([_, of_values]) = &scales {
                    s = s.mul(V::load(of_values));
                }
                s.store(&mut p[n]);
            }
            let mut done = 0;
            while done < item.count {
                // Those that see the same keys add the same values.
                let (a, b) = ranges[done];
                let same = ranges[done..item.count].iter();
                let same = same.take_while(|r| **r == (a, b)).count();
                let (p, v) = (&p[done..], &t.v[a * shape.v_dim..]);
                done += add_values::<V, C>(p, (a, b), v, shape.v_dim, &mut acc[done..], same);
            }
        }
    }
    for (n, (row, _, head)) in queries.iter().enumerate() {
        let sum = V::splat(l[n].sum());
        let at = row * item.stride + head * shape.v_dim;
        // SAFETY: inside, as `attend` asserts; the row's head is this item's alone.
        let out = unsafe { std::slice::from_raw_parts_mut(item.out.0.add(at), shape.v_dim) };
        for (out, acc) in out.chunks_mut(LANES).zip(acc[n].chunks(LANES)) {
            V::load(acc).div(sum).store_some(out);
        }
    }
}

/// The keys of a tile, `[k_dim]` rows of sixteen some elements apart, and its values, `[16][v_dim]`.
#[derive(Clone, Copy, Default)]
struct Tile<'a, C> {
    k: &'a [C],
    stride: usize,
    v: &'a [C],
}

/// A tile where it lies: in one block.
#[inline(always)]
fn tile_of<'a, C: Cached>(item: &Item<'a, C>, tile: usize) -> Tile<'a, C> {
    let shape = item.shape;
    let slots = shape.slots;
    let (page, slot) = (item.table[tile / slots], tile % slots);
    let k = &item.pages[shape.key(page, item.kv_head)..][..shape.k_dim * slots];
    let v = &item.pages[shape.value(page, item.kv_head)..][..shape.v_dim * slots];
    Tile {
        k: &k[slot..],
        stride: slots,
        v: &v[slot * shape.v_dim..],
    }
}

/// A tile that may span blocks: its keys `lo..hi`, gathered.
#[inline(always)]
fn gathered<'a, C: Cached>(
    item: &Item<'_, C>,
    tile: usize,
    lo: usize,
    hi: usize,
    keys: &'a mut [C],
    values: &'a mut [C],
) -> Tile<'a, C> {
    let shape = item.shape;
    let slots = shape.slots;
    for position in lo..hi {
        let (page, slot) = (item.table[position / slots], position % slots);
        let k = &item.pages[shape.key(page, item.kv_head)..][..shape.k_dim * slots];
        let v = &item.pages[shape.value(page, item.kv_head)..][..shape.v_dim * slots];
        let lane = position - tile;
        for d in 0..shape.k_dim {
            keys[d * LANES + lane] = k[d * slots + slot];
        }
        values[lane * shape.v_dim..][..shape.v_dim]
            .copy_from_slice(&v[slot * shape.v_dim..][..shape.v_dim]);
    }
    Tile {
        k: keys,
        stride: LANES,
        v: values,
    }
}

/// The scales of a tile's keys and of its values: where a slot was never written, or is not looked up, anything.
#[inline(always)]
fn scales_of<C: Cached>(
    item: &Item<'_, C>,
    tile: usize,
    lo: usize,
    hi: usize,
) -> [[f32; LANES]; 2] {
    let (shape, slots) = (item.shape, item.shape.slots);
    if tile % slots + LANES <= slots {
        let at = shape.scales::<C>(item.table[tile / slots], item.kv_head);
        return at.map(|at| read_scales(item.pages, at + tile % slots * C::SCALE));
    }
    let mut scales = [[0.0; LANES]; 2];
    for position in lo..hi {
        let at = shape.scales::<C>(item.table[position / slots], item.kv_head);
        for (scales, at) in scales.iter_mut().zip(at) {
            [scales[position - tile]] = read_scales(item.pages, at + position % slots * C::SCALE);
        }
    }
    scales
}

/// Scales that lie side by side from element `at` on.
#[inline(always)]
fn read_scales<C: Cached, const N: usize>(pages: &[C], at: usize) -> [f32; N] {
    let elements = &pages[at..][..N * C::SCALE];
    // SAFETY: they are as long as `N` scales, as `KvShape::check` saw, and any bits are an f32.
    unsafe { elements.as_ptr().cast::<[f32; N]>().read_unaligned() }
}

/// Scores of up to eight queries with the sixteen keys of each tile: as many chains at once as hide what one multiply-add
/// waits for another.
#[inline(always)]
fn scores_of<V: Lanes, C: Cached>(
    q: &[&[f32]],
    tiles: &[Tile<'_, C>],
    dim: usize,
    s: &mut [[V; QUERIES]; AHEAD],
) {
    let mut n = 0;
    while n < q.len() {
        let q = &q[n..];
        n += match (q.len(), tiles.len()) {
            (8.., 1) => chains::<V, C, 8, 1>(q, tiles, dim, s, n),
            (4.., 1) => chains::<V, C, 4, 1>(q, tiles, dim, s, n),
            (3, 1) => chains::<V, C, 3, 1>(q, tiles, dim, s, n),
            (3, 2) => chains::<V, C, 3, 2>(q, tiles, dim, s, n),
            (2.., 1) => chains::<V, C, 2, 1>(q, tiles, dim, s, n),
            (2.., 2) => chains::<V, C, 2, 2>(q, tiles, dim, s, n),
            (_, AHEAD) => chains::<V, C, 1, AHEAD>(q, tiles, dim, s, n),
            _ => {
                for (t, s) in tiles.iter().zip(s.chunks_exact_mut(1)) {
                    chains::<V, C, 1, 1>(q, std::slice::from_ref(t), dim, s, n);
                }
                1
            }
        };
    }
}

/// Scores of `N` queries with `T` tiles, as those of the `n`-th query on; how many queries.
#[inline(always)]
fn chains<V: Lanes, C: Cached, const N: usize, const T: usize>(
    q: &[&[f32]],
    tiles: &[Tile<'_, C>],
    dim: usize,
    s: &mut [[V; QUERIES]],
    n: usize,
) -> usize {
    // No closures: what they call would not be compiled for the level.
    let (mut rows, mut keys) = ([&[0.0_f32][..]; N], [&tiles[0]; T]);
    rows.iter_mut().zip(q).for_each(|(r, q)| *r = &q[..dim]);
    keys.iter_mut().zip(tiles).for_each(|(k, t)| *k = t);
    let mut c = [[V::splat(0.0); N]; T];
    #[allow(clippy::needless_range_loop, reason = "of several rows")]
    for d in 0..dim {
        for t in 0..T {
            let key = C::load::<V>(&keys[t].k[d * keys[t].stride..]);
            for i in 0..N {
                c[t][i] = key.fma(V::splat(rows[i][d]), c[t][i]);
            }
        }
    }
    for (s, c) in s.iter_mut().zip(c) {
        s[n..n + N].copy_from_slice(&c);
    }
    N
}

/// `acc += p · v`, key by key, for as many of the first `same` queries as are computed together; how many these are.
#[inline(always)]
fn add_values<V: Lanes, C: Cached>(
    p: &[[f32; LANES]],
    (a, b): (usize, usize),
    v: &[C],
    dim: usize,
    acc: &mut [[f32; HEAD_MAX]],
    same: usize,
) -> usize {
    let n = match same {
        8.. if V::WIDE => some_values::<V, C, 8, 2>(p, (a, b), v, dim, acc),
        4.. => some_values::<V, C, 4, 2>(p, (a, b), v, dim, acc),
        3 => some_values::<V, C, 3, 2>(p, (a, b), v, dim, acc),
        2 => some_values::<V, C, 2, 4>(p, (a, b), v, dim, acc),
        _ => some_values::<V, C, 1, 4>(p, (a, b), v, dim, acc),
    };
    // What is left of a head.
    for (p, acc) in p.iter().zip(acc).take(n) {
        for d in dim / LANES * LANES..dim {
            for (i, p) in p[a..b].iter().enumerate() {
                acc[d] = v[i * dim + d].wide().mul_add(*p, acc[d]);
            }
        }
    }
    n
}

/// [`add_values`] for `N` queries, `D` times sixteen elements of a head at a time.
#[inline(always)]
fn some_values<V: Lanes, C: Cached, const N: usize, const D: usize>(
    p: &[[f32; LANES]],
    keys: (usize, usize),
    v: &[C],
    dim: usize,
    acc: &mut [[f32; HEAD_MAX]],
) -> usize {
    let mut d = 0;
    while d + D * LANES <= dim {
        columns::<V, C, N, D>(p, keys, v, dim, d, acc);
        d += D * LANES;
    }
    while d + LANES <= dim {
        columns::<V, C, N, 1>(p, keys, v, dim, d, acc);
        d += LANES;
    }
    N
}

#[inline(always)]
fn columns<V: Lanes, C: Cached, const N: usize, const D: usize>(
    p: &[[f32; LANES]],
    (a, b): (usize, usize),
    v: &[C],
    dim: usize,
    d: usize,
    acc: &mut [[f32; HEAD_MAX]],
) {
    // No closures: what they call would not be compiled for the level.
    let mut c = [[V::splat(0.0); D]; N];
    for n in 0..N {
        for i in 0..D {
            c[n][i] = V::load(&acc[n][d + i * LANES..]);
        }
    }
    for key in a..b {
        let at = (key - a) * dim + d;
        let mut value = [V::splat(0.0); D];
        for i in 0..D {
            value[i] = C::load::<V>(&v[at + i * LANES..]);
        }
        for n in 0..N {
            let p = V::splat(p[n][key]);
            for i in 0..D {
                c[n][i] = value[i].fma(p, c[n][i]);
            }
        }
    }
    for n in 0..N {
        for i in 0..D {
            c[n][i].store(&mut acc[n][d + i * LANES..]);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
