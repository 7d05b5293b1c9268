use super::*;
use crate::attention::tests::Kind;
use crate::lanes::Scalar;
use crate::linear::tests::numbers;

struct Case {
    shape: LatentShape,
    heads: usize,
    tokens: usize,
    q: Vec<f32>,
    q_rope: Vec<f32>,
    rows: Vec<f32>,
}

fn case(slots: usize, heads: usize, v_dim: usize, rope: usize) -> Case {
    let tokens = 75;
    let k_dim = v_dim + rope;
    let louder = |x: Vec<f32>| x.iter().map(|x| x * 3.0).collect();
    Case {
        shape: LatentShape {
            // Something before and after the layer's part.
            page: 7 + k_dim * slots + 5,
            layer: 7,
            slots,
            k_dim,
            v_dim,
        },
        heads,
        tokens,
        q: louder(numbers(1, tokens * heads * v_dim)),
        q_rope: louder(numbers(2, tokens * heads * rope)),
        rows: numbers(3, tokens * k_dim),
    }
}

fn columns(data: &[f32], stride: usize) -> Columns<'_> {
    Columns {
        data,
        stride,
        from: 0,
    }
}

const SCALE: f32 = 0.3;

/// All tokens in chunks of `chunk`, over pages in a strange order whose unused slots are NaN.
fn paged<C: Kind + Unscaled>(c: &Case, level: Level, threads: usize, chunk: usize) -> Vec<f32> {
    let mut pool = Pool::new(threads).unwrap();
    let blocks = c.tokens.div_ceil(c.shape.slots);
    let table: Vec<u32> = (0..blocks)
        .map(|b| ((b * 7 + 3) % (blocks * 7)) as u32)
        .collect();
    let mut pages = vec![C::GARBAGE; c.shape.page * blocks * 7];
    let mut out = vec![f32::NAN; c.tokens * c.heads * c.shape.v_dim];
    for start in (0..c.tokens).step_by(chunk) {
        let all = [Queries {
            table: &table,
            start,
            count: chunk.min(c.tokens - start),
            row: start,
        }];
        let rows = columns(&c.rows, c.shape.k_dim);
        write_latents(&mut pool, &c.shape, &mut pages, &all, rows);
        let rope = c.shape.k_dim - c.shape.v_dim;
        let q = [
            columns(&c.q, c.heads * c.shape.v_dim),
            columns(&c.q_rope, c.heads * rope),
        ];
        let of = (c.heads, SCALE);
        attend_latents(&mut pool, level, &c.shape, &pages, &all, of, q, &mut out);
    }
    out
}

/// The same over a plain array of `[token][element]`, query by query: tiles of sixteen keys are all that it shares with
/// [`attend_latents`], and the exponential.
fn contiguous<C: Kind>(c: &Case) -> Vec<f32> {
    let exp = |x: f32| Scalar::splat(x).exp().array()[0];
    let (kd, vd) = (c.shape.k_dim, c.shape.v_dim);
    let rows = C::kept(&c.rows).0;
    let mut out = Vec::new();
    for t in 0..c.tokens {
        for h in 0..c.heads {
            let at = t * c.heads + h;
            let mut q = c.q[at * vd..][..vd].to_vec();
            q.extend(&c.q_rope[at * (kd - vd)..][..kd - vd]);
            let (mut top, mut sum, mut acc) = (f32::NEG_INFINITY, 0.0, vec![0.0; vd]);
            for keys in rows[..(t + 1) * kd].chunks(LANES * kd) {
                let dots: Vec<f32> = keys
                    .chunks(kd)
                    .map(|key| {
                        let pairs = key.iter().zip(&q);
                        SCALE * pairs.fold(0.0, |s: f32, (k, q)| k.mul_add(*q, s))
                    })
                    .collect();
                let before = top;
                top = dots.iter().fold(top, |a, b| a.max(*b));
                let shrink = exp(before - top);
                acc.iter_mut().for_each(|x| *x *= shrink);
                sum *= shrink;
                for (key, s) in keys.chunks(kd).zip(dots) {
                    let p = exp(s - top);
                    sum += p;
                    for (a, v) in acc.iter_mut().zip(key) {
                        *a = v.mul_add(p, *a);
                    }
                }
            }
            out.extend(acc.iter().map(|a| a / sum));
        }
    }
    out
}

/// Attention as its definition says, in f64, of rows rounded as the cache rounds them.
fn exact<C: Kind>(c: &Case) -> Vec<f64> {
    let (kd, vd) = (c.shape.k_dim, c.shape.v_dim);
    let rows = C::kept(&c.rows).0;
    let key = |j: usize, d: usize| f64::from(rows[j * kd + d]);
    let mut out = Vec::new();
    for t in 0..c.tokens {
        for h in 0..c.heads {
            let query = |d: usize| {
                f64::from(if d < vd {
                    c.q[(t * c.heads + h) * vd + d]
                } else {
                    c.q_rope[(t * c.heads + h) * (kd - vd) + d - vd]
                })
            };
            let score = |j| (0..kd).map(|d| query(d) * key(j, d)).sum::<f64>() * f64::from(SCALE);
            let s: Vec<f64> = (0..=t).map(score).collect();
            let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = s.iter().map(|s| (s - top).exp()).sum();
            for d in 0..vd {
                let terms = s.iter().enumerate();
                out.push(terms.map(|(j, s)| (s - top).exp() / sum * key(j, d)).sum());
            }
        }
    }
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn latent_attention_is_right_and_its_bits_depend_on_nothing_else() {
    right_and_alike::<f32>();
    right_and_alike::<u16>();
    right_and_alike::<F16>();
    right_and_alike::<F8>();
}

fn right_and_alike<C: Kind + Unscaled>() {
    for (slots, heads, v_dim, rope) in [
        (16, 4, 40, 8),
        (32, 16, 64, 16),
        (5, 20, 130, 6),
        (1, 1, 3, 2),
    ] {
        let c = case(slots, heads, v_dim, rope);
        let first = paged::<C>(&c, Level::Scalar, 1, c.tokens);
        for (got, want) in first.iter().zip(exact::<C>(&c)) {
            let error = (f64::from(*got) - want).abs();
            assert!(error < 5e-6, "{heads} heads: {got} is not {want}");
        }
        let first = bits(&first);
        assert!(
            bits(&contiguous::<C>(&c)) == first,
            "contiguous, {heads} heads"
        );
        for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
            for (threads, chunk) in [(1, 75), (2, 1), (2, 7), (1, 16), (2, 33)] {
                let out = paged::<C>(&c, level, threads, chunk);
                assert!(
                    bits(&out) == first,
                    "{level:?}, chunks of {chunk}, {slots} slots"
                );
            }
        }
        // The block size does not matter either.
        let mut other = case(slots, heads, v_dim, rope);
        other.shape.slots = 64;
        other.shape.page = 12 + (v_dim + rope) * 64;
        assert!(bits(&paged::<C>(&other, Level::detect(), 1, 75)) == first);
    }
}

#[test]
fn one_slot_that_is_overwritten_changes_the_answer() {
    let c = case(16, 4, 40, 8);
    let last = |c: &Case| {
        let out = paged::<u16>(c, Level::detect(), 1, 75);
        out[out.len() - c.heads * 40..].to_vec()
    };
    for element in [0, 47] {
        let mut other = case(16, 4, 40, 8);
        other.rows[element] += 1.0;
        assert_ne!(
            last(&c),
            last(&other),
            "element {element} of the first token's row"
        );
    }
}
