use super::*;
use crate::bf16::{bf16_from_f32, f32_from_bf16};
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
fn paged(c: &Case, level: Level, threads: usize, chunk: usize) -> Vec<f32> {
    let mut pool = Pool::new(threads).unwrap();
    let blocks = c.tokens.div_ceil(c.shape.slots);
    let table: Vec<u32> = (0..blocks)
        .map(|b| ((b * 7 + 3) % (blocks * 7)) as u32)
        .collect();
    let mut pages = vec![0x7fc0; c.shape.page * blocks * 7];
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

/// Attention as its definition says, in f64, of rows rounded as the cache rounds them.
fn exact(c: &Case) -> Vec<f64> {
    let (kd, vd) = (c.shape.k_dim, c.shape.v_dim);
    let key = |j: usize, d: usize| f64::from(f32_from_bf16(bf16_from_f32(c.rows[j * kd + d])));
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
    for (slots, heads, v_dim, rope) in [
        (16, 4, 40, 8),
        (32, 16, 64, 16),
        (5, 20, 130, 6),
        (1, 1, 3, 2),
    ] {
        let c = case(slots, heads, v_dim, rope);
        let first = paged(&c, Level::Scalar, 1, c.tokens);
        for (got, want) in first.iter().zip(exact(&c)) {
            let error = (f64::from(*got) - want).abs();
            assert!(error < 3e-6, "{heads} heads: {got} is not {want}");
        }
        let first = bits(&first);
        for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
            for (threads, chunk) in [(1, 75), (2, 1), (2, 7), (1, 16), (2, 33)] {
                let out = paged(&c, level, threads, chunk);
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
        assert!(bits(&paged(&other, Level::detect(), 1, 75)) == first);
    }
}

#[test]
fn one_slot_that_is_overwritten_changes_the_answer() {
    let c = case(16, 4, 40, 8);
    let last = |c: &Case| {
        let out = paged(c, Level::detect(), 1, 75);
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
