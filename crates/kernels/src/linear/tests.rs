use super::*;
use crate::bf16::{bf16_from_f32, f32_from_bf16};

/// A fixed sequence of numbers around 0.
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            ((s >> 40) as f32 / (1_u64 << 23) as f32) - 1.0
        })
        .collect()
}

fn packed(w: &[f32], n: usize, k: usize) -> Vec<u32> {
    let mut words = vec![0; packed_bytes(n, k).unwrap() / 4];
    for row in 0..n {
        let values = w[row * k..(row + 1) * k].iter().map(|x| bf16_from_f32(*x));
        pack_row(&mut words, k, row, values);
    }
    words
}

#[test]
fn every_level_batch_and_thread_count_gives_the_bits_of_one_chain() {
    for (n, k) in [(1, 1), (5, 3), (32, 16), (33, 65), (150, 1030), (257, 2049)] {
        let w = numbers(n as u64, n * k);
        let words = packed(&w, n, k);
        let linear = Linear::new(&words, n, k);
        let bias = numbers(7, n);
        let m_max = 27;
        let x = numbers(3, m_max * k);
        let before = numbers(5, m_max * n);
        // One fused multiply-add after the other, straight from the matrix.
        let chain = |row: usize, out: usize, start: f32| {
            (0..k).fold(start, |acc, i| {
                f32_from_bf16(bf16_from_f32(w[out * k + i])).mul_add(x[row * k + i], acc)
            })
        };
        for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
            for threads in [1, 3] {
                let mut pool = Pool::new(threads).unwrap();
                for m in [0, 1, 2, 5, 12, 13, m_max] {
                    for (start, first) in [
                        (Start::Zero, None),
                        (Start::Bias(&bias), Some(&bias)),
                        (Start::Keep, None),
                    ] {
                        let mut y = before.clone();
                        linear.run(&mut pool, level, &x, m, &mut y, start);
                        for row in 0..m {
                            for out in 0..n {
                                let from = match (start, first) {
                                    (Start::Keep, _) => before[row * n + out],
                                    (_, Some(b)) => b[out],
                                    _ => 0.0,
                                };
                                let want = chain(row, out, from);
                                assert_eq!(
                                    y[row * n + out].to_bits(),
                                    want.to_bits(),
                                    "{n} x {k}, {m} rows, {level:?}, {threads} threads: {row}, {out}"
                                );
                            }
                        }
                        assert_eq!(y[m * n..], before[m * n..]);
                    }
                }
            }
        }
    }
}

/// Each row as it is by itself with its own matrix, whatever the others' experts are.
#[test]
fn rows_of_experts_have_the_bits_of_their_own_matrix_alone() {
    let (experts, share) = (5, 3);
    for (n, k) in [(1, 1), (33, 65), (150, 1030)] {
        let words: Vec<Vec<u32>> = (0..experts)
            .map(|e| packed(&numbers(e as u64 + 1, n * k), n, k))
            .collect();
        // The last expert has no row, and no matrix: it must not be asked for.
        let matrix = |e: usize| {
            assert!(e + 1 < experts);
            Linear::new(&words[e], n, k)
        };
        // Some have biases.
        let biases = numbers(9, n);
        let start = |e: usize| match e % 2 {
            0 => Start::Zero,
            _ => Start::Bias(&biases),
        };
        for tokens in [0, 1, 4, 31] {
            let x = numbers(3, tokens * k);
            let of = (0..tokens * share).map(|i| (i * i + i / 7) % (experts - 1));
            let groups = Groups::new(experts, of.clone());
            let mut alone = vec![0.0; tokens * share * n];
            let mut pool = Pool::new(1).unwrap();
            for (row, e) in of.enumerate() {
                let (x, y) = (&x[row / share * k..], &mut alone[row * n..(row + 1) * n]);
                matrix(e).run(&mut pool, Level::Scalar, x, 1, y, start(e));
            }
            for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                for threads in [1, 3] {
                    let mut pool = Pool::new(threads).unwrap();
                    let mut y = vec![f32::NAN; alone.len() + 1];
                    let expert = |e| (matrix(e), start(e));
                    groups.run(&mut pool, level, expert, share, &x, &mut y);
                    let same = y
                        .iter()
                        .zip(&alone)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(
                        same,
                        "{n} x {k}, {tokens} tokens, {level:?}, {threads} threads"
                    );
                    assert!(y[alone.len()].is_nan());
                }
            }
        }
    }
}

/// Each head as it is by itself with its own matrix, however many rows there are.
#[test]
fn heads_have_the_bits_of_their_own_matrix_alone() {
    let heads = 3;
    for (n, k) in [(1, 1), (33, 65), (150, 1030)] {
        let words: Vec<Vec<u32>> = (0..heads)
            .map(|h| packed(&numbers(h as u64 + 1, n * k), n, k))
            .collect();
        let matrices: Vec<Linear<'_>> = words.iter().map(|w| Linear::new(w, n, k)).collect();
        for rows in [0, 1, 7, 200] {
            let x = numbers(3, rows * heads * k);
            let mut alone = vec![0.0; rows * heads * n];
            let mut pool = Pool::new(1).unwrap();
            for (i, y) in alone.chunks_mut(n).enumerate() {
                let m = &matrices[i % heads];
                m.run(&mut pool, Level::Scalar, &x[i * k..], 1, y, Start::Zero);
            }
            for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                for threads in [1, 3] {
                    let mut pool = Pool::new(threads).unwrap();
                    let mut y = vec![f32::NAN; alone.len() + 1];
                    run_heads(&mut pool, level, &matrices, &x, rows, &mut y);
                    let mut pairs = y.iter().zip(&alone);
                    let same = pairs.all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{n} x {k}, {rows} rows, {level:?}, {threads} threads");
                    assert!(y[alone.len()].is_nan());
                }
            }
        }
    }
}
