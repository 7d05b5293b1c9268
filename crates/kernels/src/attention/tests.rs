use super::*;
use crate::bf16::f32_from_bf16;
use crate::lanes::Scalar;
use crate::linear::tests::numbers;

struct Case {
    shape: KvShape,
    heads: usize,
    tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn case(slots: usize, kv_heads: usize, group: usize, k_dim: usize, v_dim: usize) -> Case {
    let tokens = 75;
    let heads = kv_heads * group;
    let shape = KvShape {
        // Something before and after the layer's part.
        page: 7 + kv_heads * (k_dim + v_dim) * slots + 5,
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
        k: numbers(2, tokens * kv_heads * k_dim),
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
fn paged(c: &Case, level: Level, threads: usize, chunk: usize, scores: &Scores<'_>) -> Vec<f32> {
    let mut pool = Pool::new(threads).unwrap();
    let blocks = c.tokens.div_ceil(c.shape.slots);
    let table: Vec<u32> = (0..blocks)
        .map(|b| ((b * 7 + 3) % (blocks * 7)) as u32)
        .collect();
    let mut pages = vec![0x7fc0; c.shape.page * blocks * 7];
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
fn contiguous(c: &Case, scores: &Scores<'_>) -> Vec<f32> {
    let narrow = |x: &f32| f32_from_bf16(bf16_from_f32(*x));
    let exp = |x: f32| Scalar::splat(x).exp().array()[0];
    let tanh = |x: f32| Scalar::splat(x).tanh().array()[0];
    let (kd, vd, kv_heads) = (c.shape.k_dim, c.shape.v_dim, c.shape.heads);
    let k: Vec<f32> = c.k.iter().map(narrow).collect();
    let v: Vec<f32> = c.v.iter().map(narrow).collect();
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
                        let key = &k[(j * kv_heads + kv) * kd..][..kd];
                        let dot = key
                            .iter()
                            .zip(q)
                            .fold(0.0, |s: f32, (k, q)| k.mul_add(*q, s));
                        let s = dot * scores.scale;
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
                    let values = &v[(j * kv_heads + kv) * vd..][..vd];
                    for (a, v) in acc.iter_mut().zip(values) {
                        *a = v.mul_add(p, *a);
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
fn exact(c: &Case, scores: &Scores<'_>) -> Vec<f64> {
    let round = |x: f32| f64::from(f32_from_bf16(bf16_from_f32(x)));
    let (kd, vd) = (c.shape.k_dim, c.shape.v_dim);
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
                            q * round(c.k[(j * c.shape.heads + kv) * kd + d])
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
                    .map(|(j, s)| {
                        (s - top).exp() / sum * round(c.v[(j * c.shape.heads + kv) * vd + d])
                    })
                    .sum();
                out.push(x);
            }
        }
    }
    out
}

#[test]
fn attention_is_right_and_its_bits_depend_on_nothing_else() {
    let sinks = numbers(8, 64);
    let shapes = [
        (16, 2, 4, 32, 32),
        (16, 1, 1, 8, 40),
        (32, 1, 12, 64, 64),
        (5, 2, 3, 16, 24),
    ];
    for (slots, kv_heads, group, k_dim, v_dim) in shapes {
        let c = case(slots, kv_heads, group, k_dim, v_dim);
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
            let want = exact(&c, &scores);
            let first = paged(&c, Level::Scalar, 1, c.tokens, &scores);
            for (got, want) in first.iter().zip(&want) {
                let error = (f64::from(*got) - want).abs();
                assert!(error < 3e-6, "{reach:?}: {got} is not {want}");
            }
            let bits: Vec<u32> = first.iter().map(|x| x.to_bits()).collect();
            let plain = contiguous(&c, &scores);
            assert!(
                plain.iter().map(|x| x.to_bits()).eq(bits.iter().copied()),
                "contiguous, {reach:?}, {slots} slots"
            );
            for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                for (threads, chunk) in [(1, 75), (2, 1), (2, 7), (1, 16), (2, 33)] {
                    let out = paged(&c, level, threads, chunk, &scores);
                    let out: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                    assert!(
                        out == bits,
                        "{level:?}, chunks of {chunk}, {reach:?}, {slots} slots"
                    );
                }
            }
            // The block size does not matter either.
            let mut other = case(slots, kv_heads, group, k_dim, v_dim);
            other.shape.slots = 64;
            other.shape.page = 12 + kv_heads * (k_dim + v_dim) * 64;
            let out = paged(&other, Level::detect(), 1, 75, &scores);
            assert!(out.iter().map(|x| x.to_bits()).eq(bits.iter().copied()));
        }
    }
}

#[test]
fn one_slot_that_is_overwritten_changes_the_answer() {
    let c = case(16, 2, 2, 32, 32);
    let mut other = case(16, 2, 2, 32, 32);
    // The first token's first key.
    other.k[0] += 1.0;
    let scores = Scores {
        heads: c.heads,
        scale: 0.3,
        softcap: None,
        sinks: None,
        reach: Reach::Full,
    };
    let last = |c: &Case| {
        let out = paged(c, Level::detect(), 1, 75, &scores);
        out[out.len() - c.heads * 32..].to_vec()
    };
    assert_ne!(last(&c), last(&other));
}
