use super::*;
use crate::bf16::{bf16_from_f32, f32_from_bf16};
use crate::f8::{f8_from_f32, f32_from_f8};
use crate::f16::{f16_from_f32, f32_from_f16};
use crate::lanes::Scalar;
use crate::linear::tests::numbers;

/// A type of the cache by its definition.
pub(crate) trait Kind: Cached {
    /// What unused slots hold: bytes that are NaN, as an element or as a scale.
    const GARBAGE: Self;
    /// A head's elements as they are kept, and what each is to be multiplied by.
    fn kept(x: &[f32]) -> (Vec<f32>, f32);
}

impl Kind for f32 {
    const GARBAGE: Self = f32::NAN;
    fn kept(x: &[f32]) -> (Vec<f32>, f32) {
        (x.to_vec(), 1.0)
    }
}

impl Kind for u16 {
    const GARBAGE: Self = 0xffff;
    fn kept(x: &[f32]) -> (Vec<f32>, f32) {
        let round = |x: &f32| f32_from_bf16(bf16_from_f32(*x));
        (x.iter().map(round).collect(), 1.0)
    }
}

impl Kind for F16 {
    const GARBAGE: Self = Self(0xffff);
    fn kept(x: &[f32]) -> (Vec<f32>, f32) {
        let round = |x: &f32| f32_from_f16(f16_from_f32(*x));
        (x.iter().map(round).collect(), 1.0)
    }
}

impl Kind for F8 {
    const GARBAGE: Self = Self(0xff);
    fn kept(x: &[f32]) -> (Vec<f32>, f32) {
        let round = |x: &f32| f32_from_f8(f8_from_f32(*x));
        (x.iter().map(round).collect(), 1.0)
    }
}

impl Kind for i8 {
    const GARBAGE: Self = -1;
    fn kept(x: &[f32]) -> (Vec<f32>, f32) {
        let top = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let whole = |x: &f32| (x * (127.0 / top)).round_ties_even();
        (x.iter().map(whole).collect(), top / 127.0)
    }
}

struct Case {
    shape: KvShape,
    heads: usize,
    tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Elements of a page with something before and after the layer's part.
fn page<C: Kind>(slots: usize, kv_heads: usize, k_dim: usize, v_dim: usize) -> usize {
    7 + kv_heads * (k_dim + v_dim + 2 * C::SCALE) * slots + 5
}

fn case<C: Kind>(slots: usize, kv_heads: usize, group: usize, k_dim: usize, v_dim: usize) -> Case {
    let tokens = 75;
    let heads = kv_heads * group;
    let shape = KvShape {
        page: page::<C>(slots, kv_heads, k_dim, v_dim),
        layer: 7,
        slots,
        heads: kv_heads,
        k_dim,
        v_dim,
    };
    Case {
        shape,
        heads,
        tokens,
        q: numbers(1, tokens * heads * k_dim)
            .iter()
            .map(|x| x * 3.0)
            .collect(),
        // Each token's are larger than the one before's: no scale is that of another.
        k: numbers(2, tokens * kv_heads * k_dim)
            .chunks(kv_heads * k_dim)
            .enumerate()
            .flat_map(|(t, x)| x.iter().map(move |x| x * (1.0 + t as f32 / 64.0)))
            .collect(),
        v: numbers(3, tokens * kv_heads * v_dim),
    }
}

fn columns(data: &[f32], stride: usize) -> Columns<'_> {
    Columns {
        data,
        stride,
        from: 0,
    }
}

/// All tokens in chunks of `chunk`, over pages in a strange order whose unused slots are NaN.
fn paged<C: Kind>(
    c: &Case,
    level: Level,
    threads: usize,
    chunk: usize,
    scores: &Scores<'_>,
) -> Vec<f32> {
    let mut pool = Pool::new(threads).unwrap();
    let blocks = c.tokens.div_ceil(c.shape.slots);
    let table: Vec<u32> = (0..blocks)
        .map(|b| ((b * 7 + 3) % (blocks * 7)) as u32)
        .collect();
    let mut pages = vec![C::GARBAGE; c.shape.page * blocks * 7];
    let mut out = vec![0.0; c.tokens * c.heads * c.shape.v_dim];
    for start in (0..c.tokens).step_by(chunk) {
        let all = [Queries {
            table: &table,
            start,
            count: chunk.min(c.tokens - start),
            row: start,
        }];
        let (k, v) = (
            columns(&c.k, c.shape.heads * c.shape.k_dim),
            columns(&c.v, c.shape.heads * c.shape.v_dim),
        );
        write_kv(&mut pool, &c.shape, &mut pages, &all, k, v);
        let q = columns(&c.q, c.heads * c.shape.k_dim);
        attend(
            &mut pool, level, &c.shape, &pages, &all, scores, q, &mut out,
        );
    }
    out
}

/// The same over plain arrays of `[token][head][element]`: no pages, tables, lanes of keys or queries side by side.
/// Tiles of sixteen keys are all that it shares with [`attend`], and the exponential.
fn contiguous<C: Kind>(c: &Case, scores: &Scores<'_>) -> Vec<f32> {
    let exp = |x: f32| Scalar::splat(x).exp().array()[0];
    let tanh = |x: f32| Scalar::splat(x).tanh().array()[0];
    let (kd, vd, kv_heads) = (c.shape.k_dim, c.shape.v_dim, c.shape.heads);
    let kept = |x: &[f32], dim| x.chunks(dim).map(C::kept).collect::<Vec<_>>();
    let (k, v) = (kept(&c.k, kd), kept(&c.v, vd));
    let mut out = Vec::new();
    for t in 0..c.tokens {
        for h in 0..c.heads {
            let kv = h / (c.heads / kv_heads);
            let q = &c.q[(t * c.heads + h) * kd..][..kd];
            let (mut top, mut sums, mut acc) = (f32::NEG_INFINITY, [0.0; LANES], vec![0.0; vd]);
            if let Some(sinks) = scores.sinks {
                (top, sums[0]) = (sinks[h], 1.0);
            }
            let first = scores.reach.first(t);
            let tiles = (first / LANES..=t / LANES).map(|i| i * LANES);
            for keys in tiles.map(|i| i.max(first)..(i + LANES).min(t + 1)) {
                let dots: Vec<f32> = keys
                    .clone()
                    .map(|j| {
                        let (key, of_key) = &k[j * kv_heads + kv];
                        let dot = key
                            .iter()
                            .zip(q)
                            .fold(0.0, |s: f32, (k, q)| k.mul_add(*q, s));
                        let s = dot * of_key * scores.scale;
                        scores.softcap.map_or(s, |c| tanh(s * (1.0 / c)) * c)
                    })
                    .collect();
                let before = top;
                top = dots.iter().fold(top, |a, b| a.max(*b));
                if top > before {
                    let shrink = exp(before - top);
                    sums.iter_mut().chain(&mut acc).for_each(|x| *x *= shrink);
                }
                for (j, s) in keys.zip(dots) {
                    let p = exp(s - top);
                    sums[j % LANES] += p;
                    let (values, of_values) = &v[j * kv_heads + kv];
                    for (a, v) in acc.iter_mut().zip(values) {
                        *a = v.mul_add(p * of_values, *a);
                    }
                }
            }
            let sum = sums.iter().fold(0.0, |a, b| a + b);
            out.extend(acc.iter().map(|a| a / sum));
        }
    }
    out
}

/// Attention as its definition says, in f64, of keys and values rounded as the cache rounds them.
fn exact<C: Kind>(c: &Case, scores: &Scores<'_>) -> Vec<f64> {
    let (kd, vd) = (c.shape.k_dim, c.shape.v_dim);
    let kept = |x: &[f32], dim: usize| -> Vec<f64> {
        let heads = x.chunks(dim).map(C::kept);
        let value = |(x, scale): (Vec<f32>, f32)| {
            x.into_iter().map(move |x| f64::from(x) * f64::from(scale))
        };
        heads.flat_map(value).collect()
    };
    let (k, v) = (kept(&c.k, kd), kept(&c.v, vd));
    let mut out = Vec::new();
    for t in 0..c.tokens {
        for h in 0..c.heads {
            let kv = h / (c.heads / c.shape.heads);
            let from = scores.reach.first(t);
            let mut s: Vec<f64> = (from..=t)
                .map(|j| {
                    let dot: f64 = (0..kd)
                        .map(|d| {
                            let q = f64::from(c.q[(t * c.heads + h) * kd + d]);
                            q * k[(j * c.shape.heads + kv) * kd + d]
                        })
                        .sum();
                    let s = dot * f64::from(scores.scale);
                    scores
                        .softcap
                        .map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                })
                .collect();
            if let Some(sinks) = scores.sinks {
                s.push(f64::from(sinks[h]));
            }
            let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = s.iter().map(|s| (s - top).exp()).sum();
            for d in 0..vd {
                let x: f64 = (from..=t)
                    .zip(&s)
                    .map(|(j, s)| (s - top).exp() / sum * v[(j * c.shape.heads + kv) * vd + d])
                    .sum();
                out.push(x);
            }
        }
    }
    out
}

#[test]
fn attention_is_right_and_its_bits_depend_on_nothing_else() {
    right_and_alike::<f32>();
    right_and_alike::<u16>();
    right_and_alike::<F16>();
    right_and_alike::<F8>();
    right_and_alike::<i8>();
}

fn right_and_alike<C: Kind>() {
    let of = std::any::type_name::<C>();
    let sinks = numbers(8, 64);
    let shapes = [
        (16, 2, 4, 32, 32),
        (16, 1, 1, 8, 40),
        (32, 1, 12, 64, 64),
        (5, 2, 3, 16, 24),
        (3, 1, 2, 7, 5),
    ];
    for (slots, kv_heads, group, k_dim, v_dim) in shapes {
        let c = case::<C>(slots, kv_heads, group, k_dim, v_dim);
        for (reach, softcap, sink) in [
            (Reach::Full, None, false),
            (Reach::Window(20), Some(5.0), false),
            (Reach::Chunk(24), None, true),
            (Reach::Window(1), None, false),
        ] {
            let scores = Scores {
                heads: c.heads,
                scale: 0.3,
                softcap,
                sinks: sink.then_some(&sinks[..]),
                reach,
            };
            let want = exact::<C>(&c, &scores);
            let first = paged::<C>(&c, Level::Scalar, 1, c.tokens, &scores);
            for (got, want) in first.iter().zip(&want) {
                let error = (f64::from(*got) - want).abs();
                assert!(error < 5e-6, "{of}, {reach:?}: {got} is not {want}");
            }
            let bits: Vec<u32> = first.iter().map(|x| x.to_bits()).collect();
            let plain = contiguous::<C>(&c, &scores);
            assert!(
                plain.iter().map(|x| x.to_bits()).eq(bits.iter().copied()),
                "{of}, contiguous, {reach:?}, {slots} slots"
            );
            for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                for (threads, chunk) in [(1, 75), (2, 1), (2, 7), (1, 16), (2, 33)] {
                    let out = paged::<C>(&c, level, threads, chunk, &scores);
                    let out: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                    assert!(
                        out == bits,
                        "{of}, {level:?}, chunks of {chunk}, {reach:?}, {slots} slots"
                    );
                }
            }
            // The block size does not matter either.
            let mut other = case::<C>(slots, kv_heads, group, k_dim, v_dim);
            other.shape.slots = 64;
            other.shape.page = page::<C>(64, kv_heads, k_dim, v_dim);
            let out = paged::<C>(&other, Level::detect(), 1, 75, &scores);
            assert!(out.iter().map(|x| x.to_bits()).eq(bits.iter().copied()));
        }
    }
}

fn widen_of<V: Lanes, C: Cached>(x: &[C], out: &mut [f32]) {
    for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
        C::load::<V>(x).store(out);
    }
}

for_levels!(widen_bf16, widen_of<u16>(x: &[u16], out: &mut [f32]));
for_levels!(widen_f16, widen_of<F16>(x: &[F16], out: &mut [f32]));
for_levels!(widen_f8, widen_of<F8>(x: &[F8], out: &mut [f32]));
for_levels!(widen_i8, widen_of<i8>(x: &[i8], out: &mut [f32]));

/// All elements that there are, at every level.
#[test]
fn elements_are_widened_alike_at_every_level() {
    fn check<C: Cached>(all: &[C], widen: impl Fn(Level, &[C], &mut [f32])) {
        for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
            let mut out = vec![0.0; all.len()];
            widen(level, all, &mut out);
            for (x, got) in all.iter().zip(out) {
                let want = x.wide();
                // A signalling NaN may become a quiet one.
                let nan = want.is_nan() && got.is_nan();
                assert!(nan || want.to_bits() == got.to_bits(), "{level:?}: {want}");
            }
        }
    }
    let all: Vec<u16> = (0..=u16::MAX).collect();
    check(&all, |l, x, out| at_level!(l, widen_bf16(x, out)));
    let all: Vec<F16> = (0..=u16::MAX).map(F16).collect();
    check(&all, |l, x, out| at_level!(l, widen_f16(x, out)));
    let all: Vec<F8> = (0..=u8::MAX).map(F8).collect();
    check(&all, |l, x, out| at_level!(l, widen_f8(x, out)));
    let all: Vec<i8> = (0..=u8::MAX).map(u8::cast_signed).collect();
    check(&all, |l, x, out| at_level!(l, widen_i8(x, out)));
}

/// Keys and values that are all zeros have a scale of 0, and what is no number gives what is none.
#[test]
fn whole_numbers_of_zeros_and_of_no_numbers() {
    let scores = |heads| Scores {
        heads,
        scale: 0.3,
        softcap: None,
        sinks: None,
        reach: Reach::Full,
    };
    let mut zeros = case::<i8>(16, 1, 2, 16, 16);
    zeros.k.fill(0.0);
    zeros.v.fill(0.0);
    let out = paged::<i8>(&zeros, Level::detect(), 1, 75, &scores(2));
    assert!(out.iter().all(|x| *x == 0.0));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut c = case::<i8>(16, 1, 2, 16, 16);
        // An element of the eleventh token's value.
        c.v[10 * 16 + 3] = bad;
        let out = paged::<i8>(&c, Level::detect(), 1, 75, &scores(2));
        let none = |row: &[f32]| row.iter().any(|x| x.is_nan());
        assert!(!none(&out[..10 * 32]) && out[10 * 32..].chunks(32).all(none));
    }
}

#[test]
fn one_slot_that_is_overwritten_changes_the_answer() {
    overwritten::<f32>();
    overwritten::<u16>();
    overwritten::<F16>();
    overwritten::<F8>();
    overwritten::<i8>();
}

fn overwritten<C: Kind>() {
    let c = case::<C>(16, 2, 2, 32, 32);
    let scores = Scores {
        heads: c.heads,
        scale: 0.3,
        softcap: None,
        sinks: None,
        reach: Reach::Full,
    };
    let last = |c: &Case| {
        let out = paged::<C>(c, Level::detect(), 1, 75, &scores);
        out[out.len() - c.heads * 32..].to_vec()
    };
    // The first token's first key.
    let mut other = case::<C>(16, 2, 2, 32, 32);
    other.k[0] += 1.0;
    assert_ne!(last(&c), last(&other));
    // Its second value, doubled: of whole numbers only the scale changes.
    let mut other = case::<C>(16, 2, 2, 32, 32);
    other.v[32..64].iter_mut().for_each(|x| *x *= 2.0);
    assert_ne!(last(&c), last(&other));
}
