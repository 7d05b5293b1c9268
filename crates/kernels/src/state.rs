//! What layers with a recurrent state compute: token by token, so that no bit depends on how a prompt is cut.
//!
//! **A state** is a run of f32 that spans a sequence's state pages, one after the other, and may be cut by pages
//! anywhere. A tile is sixteen channels, or sixteen rows of one head, of one sequence: it takes its part of the state
//! out of the pages, passes all tokens, and puts it back. Lanes are channels or rows, and each sum runs over taps or
//! columns in a fixed order. Tiles of one head lie one after the other in its state, each `[cols][rows of the tile]`.

#![allow(unsafe_code)]

use crate::attention::{Columns, Queries};
use crate::cpu::Level;
use crate::lanes::{LANES, Lanes, at_level, for_levels};
use crate::math::{exp, ln_1p};
use crate::pool::Pool;

/// Taps of a convolution at most.
pub const TAPS_MAX: usize = 8;
/// Columns of a head's state at most.
pub const COLS_MAX: usize = 256;
/// Chains of a sum over columns: one waits for itself longer than it computes.
const CHAINS: usize = 4;

/// Where one layer's part of a state lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateShape {
    /// f32 of a page.
    pub page: usize,
    /// The part's first element, counted from the first page of the state.
    pub from: usize,
}

/// The pages of all states; tiles touch parts of their own only.
#[derive(Clone, Copy)]
struct States {
    data: *mut f32,
    len: usize,
    shape: StateShape,
}

// SAFETY: tiles touch elements of their own sequence, and of those their own.
unsafe impl Send for States {}
// SAFETY: as above.
unsafe impl Sync for States {}

impl States {
    fn new(shape: StateShape, pages: &mut [f32]) -> Self {
        assert!(shape.page > 0);
        Self {
            data: pages.as_mut_ptr(),
            len: pages.len(),
            shape,
        }
    }

    /// Calls `f` for each piece of the elements `at..at + len` of the part that lies in one page: where it begins in the
    /// pages, and which of the elements it is.
    fn pieces(
        &self,
        table: &[u32],
        at: usize,
        len: usize,
        mut f: impl FnMut(*mut f32, std::ops::Range<usize>),
    ) {
        let page = self.shape.page;
        let mut done = 0;
        while done < len {
            let place = self.shape.from + at + done;
            let n = (page - place % page).min(len - done);
            let from = table[place / page] as usize * page + place % page;
            assert!(from + n <= self.len);
            // SAFETY: inside, as checked.
            f(unsafe { self.data.add(from) }, done..done + n);
            done += n;
        }
    }

    /// What a sequence has there: zeros before its first token, whatever the pages hold.
    ///
    /// # Safety
    /// Nobody else touches these elements meanwhile.
    unsafe fn load(&self, seq: &Queries<'_>, at: usize, to: &mut [f32]) {
        if seq.start == 0 {
            to.fill(0.0);
            return;
        }
        self.pieces(seq.table, at, to.len(), |from, range| {
            // SAFETY: the piece is inside, and the caller's alone.
            let piece = unsafe { std::slice::from_raw_parts(from, range.len()) };
            to[range].copy_from_slice(piece);
        });
    }

    /// # Safety
    /// As [`States::load`].
    unsafe fn store(&self, seq: &Queries<'_>, at: usize, from: &[f32]) {
        self.pieces(seq.table, at, from.len(), |to, range| {
            // SAFETY: as in `load`.
            let piece = unsafe { std::slice::from_raw_parts_mut(to, range.len()) };
            piece.copy_from_slice(&from[range]);
        });
    }
}

#[derive(Clone, Copy)]
struct Outputs {
    data: *mut f32,
    stride: usize,
}

// SAFETY: tiles write rows of their own sequence, and of those columns of their own.
unsafe impl Send for Outputs {}
// SAFETY: as above.
unsafe impl Sync for Outputs {}

impl Outputs {
    fn new(out: &mut [f32], stride: usize, all: &[Queries<'_>]) -> Self {
        let rows = all.iter().map(|s| s.row + s.count).max().unwrap_or(0);
        assert!(out.len() >= rows * stride);
        Self {
            data: out.as_mut_ptr(),
            stride,
        }
    }

    /// # Safety
    /// Rows are those of the sequences given at first, the columns are inside and the caller's alone.
    unsafe fn at<'a>(&self, row: usize, column: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: as promised.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + column), len) }
    }
}

/// A convolution's weights.
#[derive(Clone, Copy, Debug)]
pub struct Taps<'a> {
    /// Tokens that a sum goes over.
    pub taps: usize,
    /// `[channels][taps]`, the oldest token's first.
    pub weight: &'a [f32],
    /// One for each channel.
    pub bias: Option<&'a [f32]>,
}

/// Sixteen channels of a sequence.
struct Channels<'a> {
    seq: &'a Queries<'a>,
    states: States,
    taps: &'a Taps<'a>,
    x: Columns<'a>,
    out: Outputs,
    from: usize,
    width: usize,
}

/// `out = bias + Σ weight · x` over each token and the `taps − 1` before it, channel by channel, of all sequences of a
/// step. The part of the state is the last `taps − 1` inputs, `[taps − 1][channels]`. A sequence's `table` names its
/// state's pages here.
///
/// # Panics
/// Where a table, a page or a buffer is too short, or there are more than [`TAPS_MAX`] taps.
#[allow(clippy::too_many_arguments, reason = "the operation's own")]
pub fn convolve(
    pool: &mut Pool,
    level: Level,
    shape: StateShape,
    pages: &mut [f32],
    all: &[Queries<'_>],
    taps: &Taps<'_>,
    x: Columns<'_>,
    out: &mut [f32],
    channels: usize,
) {
    assert!((1..=TAPS_MAX).contains(&taps.taps) && taps.weight.len() == channels * taps.taps);
    assert!(taps.bias.is_none_or(|b| b.len() == channels));
    let states = States::new(shape, pages);
    let out = Outputs::new(out, channels, all);
    let tiles = channels.div_ceil(LANES);
    pool.run(all.len() * tiles, |i| {
        let from = i % tiles * LANES;
        let tile = Channels {
            seq: &all[i / tiles],
            states,
            taps,
            x,
            out,
            from,
            width: LANES.min(channels - from),
        };
        at_level!(level, convolve_tile(&tile));
    });
}

for_levels!(convolve_tile, convolve_of(tile: &Channels<'_>));

#[inline(always)]
fn convolve_of<V: Lanes>(tile: &Channels<'_>) {
    let Channels {
        seq, from, width, ..
    } = *tile;
    let (taps, past) = (tile.taps.taps, tile.taps.taps - 1);
    let mut weights = [[0.0; LANES]; TAPS_MAX];
    for (k, weights) in weights[..taps].iter_mut().enumerate() {
        for (lane, w) in weights[..width].iter_mut().enumerate() {
            *w = tile.taps.weight[(from + lane) * taps + k];
        }
    }
    let bias = tile
        .taps
        .bias
        .map_or(V::splat(0.0), |b| V::load_some(&b[from..from + width], 0.0));
    let place = |k: usize| k * tile.out.stride + from;
    let mut before = [[0.0; LANES]; TAPS_MAX];
    for (k, before) in before[..past].iter_mut().enumerate() {
        // SAFETY: a sequence's channels are this tile's alone.
        unsafe { tile.states.load(seq, place(k), &mut before[..width]) };
    }
    // Of the tokens before the step and those in it, counted from the oldest that is kept.
    let input = |n: usize| match n.checked_sub(past) {
        None => &before[n][..width],
        Some(token) => tile.x.row(seq.row + token, from, width),
    };
    for token in 0..seq.count {
        let mut sum = bias;
        for (k, weights) in weights[..taps].iter().enumerate() {
            sum = V::load_some(input(token + k), 0.0).fma(V::load(weights), sum);
        }
        // SAFETY: the row is the sequence's, and the channels are this tile's alone.
        sum.store_some(unsafe { tile.out.at(seq.row + token, from, width) });
    }
    for k in 0..past {
        // SAFETY: as above.
        unsafe { tile.states.store(seq, place(k), input(seq.count + k)) };
    }
}

/// The shape of a selective state space.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub rows: usize,
    /// Elements of B and C.
    pub cols: usize,
    /// Groups of neighbouring heads that share B and C.
    pub groups: usize,
    /// What each head's input is multiplied by and added to its output.
    pub skip: &'a [f32],
}

/// Sixteen rows of one head of a sequence.
struct HeadRows<'a> {
    seq: &'a Queries<'a>,
    states: States,
    shape: &'a Heads<'a>,
    x: Columns<'a>,
    steps: Columns<'a>,
    out: Outputs,
    head: usize,
    from: usize,
    width: usize,
}

/// A selective state space, for all sequences of a step: of each head's state, `h = keep · h + step · x Bᵀ` and
/// `out = h C + skip · x`. Rows of `x` have `x` of all heads, B of all groups, C of all groups; rows of `steps` the
/// steps of all heads, then what each keeps. A sequence's `table` names its state's pages here.
///
/// # Panics
/// Where a table, a page or a buffer is too short, or there are more than [`COLS_MAX`] columns.
#[allow(clippy::too_many_arguments, reason = "the operation's own")]
pub fn scan(
    pool: &mut Pool,
    level: Level,
    place: StateShape,
    pages: &mut [f32],
    all: &[Queries<'_>],
    shape: &Heads<'_>,
    x: Columns<'_>,
    steps: Columns<'_>,
    out: &mut [f32],
) {
    let Heads {
        heads, rows, cols, ..
    } = *shape;
    assert!(cols <= COLS_MAX && shape.skip.len() == heads);
    assert!(shape.groups > 0 && heads.is_multiple_of(shape.groups));
    let states = States::new(place, pages);
    let out = Outputs::new(out, heads * rows, all);
    let tiles = rows.div_ceil(LANES);
    pool.run(all.len() * heads * tiles, |i| {
        let from = i % tiles * LANES;
        let tile = HeadRows {
            seq: &all[i / tiles / heads],
            states,
            shape,
            x,
            steps,
            out,
            head: i / tiles % heads,
            from,
            width: LANES.min(rows - from),
        };
        at_level!(level, scan_tile(&tile));
    });
}

for_levels!(scan_tile, scan_of(tile: &HeadRows<'_>));

#[inline(always)]
fn scan_of<V: Lanes>(tile: &HeadRows<'_>) {
    let HeadRows {
        seq, head, width, ..
    } = *tile;
    let Heads {
        heads,
        rows,
        cols,
        groups,
        skip,
    } = *tile.shape;
    let first = head * rows + tile.from;
    let b_from = heads * rows + head / (heads / groups) * cols;
    let mut state = [0.0; COLS_MAX * LANES];
    let state = &mut state[..cols * width];
    // SAFETY: a sequence's rows of a head are this tile's alone.
    unsafe { tile.states.load(seq, first * cols, state) };
    for token in 0..seq.count {
        let row = seq.row + token;
        let x = V::load_some(tile.x.row(row, first, width), 0.0);
        let b = tile.x.row(row, b_from, cols);
        let c = tile.x.row(row, b_from + groups * cols, cols);
        let step = V::splat(tile.steps.row(row, head, 1)[0]);
        let keep = V::splat(tile.steps.row(row, heads + head, 1)[0]);
        let taken = x.mul(step);
        let mut sums = [V::splat(0.0); CHAINS];
        for (i, h) in state.chunks_mut(width).enumerate() {
            let new = taken.fma(V::splat(b[i]), V::load_some(h, 0.0).mul(keep));
            new.store_some(h);
            sums[i % CHAINS] = new.fma(V::splat(c[i]), sums[i % CHAINS]);
        }
        let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3]));
        let y = x.fma(V::splat(skip[head]), sum);
        // SAFETY: the row is the sequence's, and the head's rows are this tile's alone.
        y.store_some(unsafe { tile.out.at(row, first, width) });
    }
    // SAFETY: as above.
    unsafe { tile.states.store(seq, first * cols, state) };
}

/// What each head does with a token: `out` is the steps ln(1 + e^(x + bias)), kept between `limits`, then what each head
/// keeps of its state, e^(−step · e^decay).
///
/// # Panics
/// Where `out` is not twice as long as the others.
pub fn steps(x: &[f32], bias: &[f32], decay: &[f32], limits: [f32; 2], out: &mut [f32]) {
    assert!(out.len() == 2 * x.len() && bias.len() == x.len() && decay.len() == x.len());
    let (steps, keeps) = out.split_at_mut(x.len());
    for (i, (step, keep)) in steps.iter_mut().zip(keeps).enumerate() {
        let x = x[i] + bias[i];
        // Past 20 the two are the same in f32, and e^x may not be a number any more.
        let soft = if x > 20.0 { x } else { ln_1p(exp(x)) };
        *step = soft.max(limits[0]).min(limits[1]);
        *keep = exp(-*step * exp(decay[i]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::numbers;

    const HEADS: usize = 4;
    const ROWS: usize = 24;
    const COLS: usize = 13;
    const GROUPS: usize = 2;
    const CHANNELS: usize = HEADS * ROWS + 2 * GROUPS * COLS;
    const TAPS: usize = 4;
    const TOKENS: usize = 11;
    /// A page ends inside a register of a tile.
    const PAGE: usize = 37;
    const STATE: usize = (TAPS - 1) * CHANNELS + HEADS * ROWS * COLS;

    /// Both operations over some tokens of two sequences, cut into steps at `cuts`; outputs and states.
    fn run(level: Level, threads: usize, cuts: &[usize]) -> (Vec<Vec<u32>>, Vec<u32>) {
        let mut pool = Pool::new(threads).unwrap();
        let each = STATE.div_ceil(PAGE);
        // NaN, as pages are that another has left.
        let mut pages = vec![f32::NAN; (2 * each + 1) * PAGE];
        let tables: [Vec<u32>; 2] = [0, 1].map(|s| {
            let page = |i: usize| u32::try_from(1 + 2 * i + s).unwrap();
            (0..each).map(page).collect()
        });
        let x = numbers(1, 2 * TOKENS * CHANNELS);
        let weight = numbers(2, CHANNELS * TAPS);
        let bias = numbers(3, CHANNELS);
        let taps = Taps {
            taps: TAPS,
            weight: &weight,
            bias: Some(&bias),
        };
        let skip = numbers(4, HEADS);
        let shape = Heads {
            heads: HEADS,
            rows: ROWS,
            cols: COLS,
            groups: GROUPS,
            skip: &skip,
        };
        let mut outs = vec![Vec::new(); 2];
        for cut in cuts.windows(2) {
            let count = cut[1] - cut[0];
            let of = |s: usize| &x[(s * TOKENS + cut[0]) * CHANNELS..][..count * CHANNELS];
            let x = [of(0), of(1)].concat();
            let all: Vec<Queries<'_>> = (0..2)
                .map(|s| Queries {
                    table: &tables[s],
                    start: cut[0],
                    count,
                    row: s * count,
                })
                .collect();
            let columns = |data, stride| Columns {
                data,
                stride,
                from: 0,
            };
            let mut convolved = vec![f32::NAN; 2 * count * CHANNELS];
            let place = |from| StateShape { page: PAGE, from };
            convolve(
                &mut pool,
                level,
                place(0),
                &mut pages,
                &all,
                &taps,
                columns(&x, CHANNELS),
                &mut convolved,
                CHANNELS,
            );
            let mut at = vec![f32::NAN; 2 * count * 2 * HEADS];
            for (x, out) in convolved.chunks(CHANNELS).zip(at.chunks_mut(2 * HEADS)) {
                steps(&x[..HEADS], &skip, &skip, [0.0, 0.8], out);
            }
            let mut out = vec![f32::NAN; 2 * count * HEADS * ROWS];
            scan(
                &mut pool,
                level,
                place((TAPS - 1) * CHANNELS),
                &mut pages,
                &all,
                &shape,
                columns(&convolved, CHANNELS),
                columns(&at, 2 * HEADS),
                &mut out,
            );
            for (s, out) in out.chunks(count * HEADS * ROWS).enumerate() {
                outs[s].extend(out.iter().map(|x| x.to_bits()));
            }
        }
        let state = |t: &Vec<u32>| {
            let pages = t.iter().flat_map(|p| &pages[*p as usize * PAGE..][..PAGE]);
            pages.take(STATE).map(|x| x.to_bits()).collect::<Vec<u32>>()
        };
        (outs, tables.iter().flat_map(state).collect())
    }

    #[test]
    fn bits_do_not_depend_on_cuts_threads_or_instructions() {
        let want = run(Level::Scalar, 1, &[0, TOKENS]);
        assert!(
            want.0
                .iter()
                .flatten()
                .all(|b| f32::from_bits(*b).is_finite())
        );
        for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
            let single: Vec<usize> = (0..=TOKENS).collect();
            for cuts in [&[0, TOKENS][..], &[0, 1, 6, TOKENS], &single] {
                for threads in [1, 3] {
                    let got = run(level, threads, cuts);
                    assert!(got == want, "{level:?}, {threads} threads, {cuts:?}");
                }
            }
        }
    }

    /// Against sums in f64 that are written down as in the papers.
    #[test]
    fn scans_are_the_recurrence() {
        let (tokens, heads, rows, cols) = (6, 2, 3, 5);
        let x = numbers(5, tokens * (heads * rows + 2 * cols));
        let stride = heads * rows + 2 * cols;
        let steps: Vec<f32> = numbers(6, tokens * 2 * heads)
            .iter()
            .map(|x| x.abs())
            .collect();
        let skip = numbers(7, heads);
        let mut pages = vec![f32::NAN; heads * rows * cols];
        let mut out = vec![0.0; tokens * heads * rows];
        let all = [Queries {
            table: &[0],
            start: 0,
            count: tokens,
            row: 0,
        }];
        let shape = Heads {
            heads,
            rows,
            cols,
            groups: 1,
            skip: &skip,
        };
        let place = StateShape {
            page: pages.len(),
            from: 0,
        };
        let columns = |data, stride| Columns {
            data,
            stride,
            from: 0,
        };
        let (x_at, steps_at) = (columns(&x, stride), columns(&steps, 2 * heads));
        let mut pool = Pool::new(1).unwrap();
        let level = Level::detect();
        scan(
            &mut pool, level, place, &mut pages, &all, &shape, x_at, steps_at, &mut out,
        );
        let mut h = vec![0.0_f64; heads * rows * cols];
        for t in 0..tokens {
            let x = &x[t * stride..];
            for r in 0..heads * rows {
                let steps = &steps[t * 2 * heads + r / rows..];
                let mut want = f64::from(skip[r / rows]) * f64::from(x[r]);
                for c in 0..cols {
                    let (b, out) = (x[heads * rows + c], x[heads * rows + cols + c]);
                    let h = &mut h[r * cols + c];
                    *h = f64::from(steps[heads]) * *h
                        + f64::from(steps[0]) * f64::from(x[r]) * f64::from(b);
                    want += *h * f64::from(out);
                }
                let got = f64::from(out[t * heads * rows + r]);
                assert!(
                    (got - want).abs() < 1e-5,
                    "token {t}, row {r}: {got}, {want}"
                );
            }
        }
    }
}
