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

fn packed(form: WeightType, w: &[f32], n: usize, k: usize) -> Vec<u32> {
    let bytes = form.bytes(n as u64, k as u64).unwrap().get();
    let mut words = vec![0; usize::try_from(bytes).unwrap() / 4];
    let panel = words.len() / n.div_ceil(PANEL);
    for (row, w) in w.chunks(k).enumerate() {
        if form == WeightType::Bf16 {
            pack_row(&mut words, k, row, w.iter().map(|x| bf16_from_f32(*x)));
        } else {
            let panel = &mut words[row / PANEL * panel..][..panel];
            quantise_row(form, panel, row % PANEL, w);
        }
    }
    words
}

/// Room for quantised rows, with something in it.
fn scratch(form: WeightType, m: usize, k: usize) -> Vec<f32> {
    vec![f32::NAN; m * usize::try_from(form.input_words(k as u64)).unwrap()]
}

const WHOLE: [WeightType; 5] = [
    WeightType::Int8,
    WeightType::Int4,
    WeightType::GROUPED[0],
    WeightType::GROUPED[1],
    WeightType::GROUPED[2],
];

/// All types, with inputs that they meet.
fn forms() -> impl Iterator<Item = (WeightType, Inputs)> + Clone {
    let all = WeightType::ALL.into_iter().chain(WeightType::GROUPED);
    let all = all.map(|f| (f, Inputs::F32));
    all.chain([(WeightType::Bf16, Inputs::Bf16)])
}

/// Sums of products of what inputs and weights are as whole numbers, in f64, from the definition.
#[test]
fn whole_numbers_give_the_products_of_what_they_stand_for() {
    for form in WHOLE {
        for (n, k) in [
            (1, 1),
            (5, 3),
            (33, 31),
            (32, 65),
            (40, 130),
            (70, 1030),
            (33, 2049),
        ] {
            let w: Vec<f32> = numbers(n as u64, n * k).iter().map(|x| x * x * x).collect();
            let words = packed(form, &w, n, k);
            let linear = Linear::new(&words, form, n, k);
            let m = 3;
            let x = numbers(3, m * k);
            let mut y = vec![0.0; m * n];
            let mut pool = Pool::new(1).unwrap();
            let scratch = &mut scratch(form, m, k);
            linear.run(
                &mut pool,
                Level::Scalar,
                &x,
                m,
                scratch,
                &mut y,
                Start::Zero,
            );
            let (mut error, mut size) = (0.0, 0.0);
            for row in 0..m {
                let x: Vec<f64> = x[row * k..][..k]
                    .chunks(128)
                    .flat_map(|g| {
                        let largest = g.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
                        let whole = |x: &f32| (x * (127.0 / largest)).round_ties_even();
                        assert!(g.iter().all(|x| whole(x).abs() <= 127.0));
                        let scale = f64::from(largest) / 127.0;
                        g.iter()
                            .map(|x| f64::from(whole(x)) * scale)
                            .collect::<Vec<_>>()
                    })
                    .collect();
                for out in 0..n {
                    let mut element = vec![0.0; k];
                    linear.row(out, &mut element);
                    let terms = element.iter().zip(&x).map(|(w, x)| f64::from(*w) * x);
                    let want: f64 = terms.clone().sum();
                    let largest: f64 = terms.map(f64::abs).sum();
                    let got = f64::from(y[row * n + out]);
                    // A rounding of each scale, of their product and of each sum.
                    let rounds = 4.0 + k.div_ceil(32) as f64;
                    assert!(
                        (got - want).abs() <= rounds * largest * 2.0_f64.powi(-24),
                        "{form}, {n} x {k}: {got}, not {want}"
                    );
                    let exact: f64 = (w[out * k..].iter().zip(&x))
                        .map(|(w, x)| f64::from(*w) * x)
                        .sum();
                    error += (got - exact).powi(2);
                    size += exact.powi(2);
                }
            }
            if k > 1000 {
                println!(
                    "{form}, {n} x {k}: relative error {:.4}",
                    (error / size).sqrt()
                );
            }
        }
    }
}

#[test]
fn a_weight_is_no_further_than_its_scale_allows() {
    let k = 300;
    let w = numbers(9, 4 * k);
    for (form, group, steps) in [
        (WeightType::Fp8, 128, 28.0),
        (WeightType::Int8, 128, 254.0),
        (WeightType::Int4, 32, 16.0),
        (WeightType::Grouped(GroupSize::G128), 128, 15.0),
        (WeightType::Grouped(GroupSize::G64), 64, 15.0),
        (WeightType::Grouped(GroupSize::G32), 32, 15.0),
    ] {
        let words = packed(form, &w, 4, k);
        let linear = Linear::new(&words, form, 4, k);
        let mut got = vec![0.0; k];
        let mut sum = vec![1.0; k];
        for (row, w) in w.chunks(k).enumerate() {
            linear.row(row, &mut got);
            linear.add_row(row, &mut sum);
            for (got, w) in got.chunks(group).zip(w.chunks(group)) {
                let largest = w.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
                for (got, x) in got.iter().zip(w) {
                    // Of four bits, what is largest with the other sign has no number of its own, and published
                    // groups go from the smallest to the largest: a whole step.
                    // Floats of four bits of a significand are nearest where they are small: 448 - 416 is a step.
                    let step = match form {
                        WeightType::Fp8 | WeightType::Int8 => 1.0,
                        _ => 2.0,
                    };
                    assert!(
                        (got - x).abs() <= step * largest / steps * 1.01,
                        "{form}: {got}, {x}"
                    );
                }
            }
            assert!(sum.iter().zip(&got).all(|(s, g)| *s == 1.0 + g));
            sum.fill(1.0);
        }
    }
}

#[test]
fn nothing_hides_what_is_no_number() {
    for form in WHOLE.into_iter().chain([WeightType::Fp8]) {
        let k = 200;
        let (w, mut x) = (numbers(1, 2 * k), numbers(2, k));
        let words = packed(form, &w, 2, k);
        for bad in [f32::NAN, f32::INFINITY] {
            x[150] = bad;
            let mut y = [0.0; 2];
            let mut pool = Pool::new(1).unwrap();
            let linear = Linear::new(&words, form, 2, k);
            let scratch = &mut scratch(form, 1, k);
            linear.run(
                &mut pool,
                Level::detect(),
                &x,
                1,
                scratch,
                &mut y,
                Start::Zero,
            );
            let none = |y: &f32| y.is_nan() || form == WeightType::Fp8 && y.is_infinite();
            assert!(y.iter().all(none), "{form}, {bad} in x: {y:?}");
            let mut w = w.clone();
            w[3] = bad;
            let mut row = vec![0.0; k];
            let words = packed(form, &w, 2, k);
            Linear::new(&words, form, 2, k).row(0, &mut row);
            assert!(!row[3].is_finite(), "{form}, {bad} in w: {}", row[3]);
        }
        // Zeros, and what is too small for its inverse, are zeros.
        let words = packed(form, &[1e-38; 32], 1, 32);
        let mut row = [f32::NAN; 32];
        Linear::new(&words, form, 1, 32).row(0, &mut row);
        assert!(row.iter().all(|x| *x == 0.0), "{form}: {row:?}");
    }
}

/// A row as it is published: its elements are its scale times its numbers less its zero point, to the bit.
#[test]
fn published_groups_are_what_they_stand_for() {
    for group in GroupSize::ALL {
        let (form, k) = (WeightType::Grouped(group), 300_usize);
        let each = usize::try_from(group.columns()).unwrap();
        let numbers: Vec<u8> = (0..k).map(|i| (i * i / 3 % 16) as u8).collect();
        let scale = |g: usize| crate::f16::f32_from_f16(0x0001 + 977 * g as u16);
        let zero = |g: usize| (15 - g % 16) as u8;
        let words: Vec<u32> = (0..k.div_ceil(each))
            .map(|g| group_word(scale(g), zero(g)).unwrap())
            .collect();
        let mut panel = vec![0; PANEL * usize::try_from(form.row_words(k as u64)).unwrap()];
        pack_group_row(group, &mut panel, 7, &numbers, &words);
        let mut row = vec![f32::NAN; k];
        Linear::new(&panel, form, 8, k).row(7, &mut row);
        for (i, x) in row.into_iter().enumerate() {
            let g = i / each;
            let want = (f32::from(numbers[i]) - f32::from(zero(g))) * scale(g);
            assert_eq!(x.to_bits(), want.to_bits(), "{form}, column {i}");
        }
    }
    // More of a mantissa than a word has room for, and a zero point that is none.
    assert_eq!(group_word(1.0 + 2.0_f32.powi(-11), 0), None);
    assert!(group_word(1.0 + 2.0_f32.powi(-10), 31).is_some());
    assert_eq!(group_word(1.0, 32), None);
}

/// A row as it is published: its elements are its codes times their scale, to the bit.
#[test]
fn published_floats_are_what_they_stand_for() {
    let k = 300_usize;
    let codes: Vec<u8> = (0..k)
        .map(|i| (i * 7 % 254) as u8)
        .map(|c| c + u8::from(c > 126))
        .collect();
    let scales: Vec<f32> = (0..3).map(|g| 1e-5 * (1.0 + g as f32)).collect();
    let lines = usize::try_from(WeightType::Fp8.row_words(k as u64)).unwrap();
    let mut panel = vec![u32::MAX; PANEL * lines];
    pack_f8_row(&mut panel, 7, &codes, &scales);
    let mut row = vec![f32::NAN; k];
    Linear::new(&panel, WeightType::Fp8, 8, k).row(7, &mut row);
    for (i, x) in row.into_iter().enumerate() {
        let want = crate::f8::f32_from_f8(codes[i]) * scales[i / 128];
        assert!(
            want.is_finite() && x.to_bits() == want.to_bits(),
            "column {i}"
        );
    }
}

/// Straight from the definition: for each scale a chain of its own, multiplied and added once.
#[test]
fn floats_have_the_bits_of_a_chain_for_each_scale() {
    let form = WeightType::Fp8;
    for (n, k) in [(1, 1), (5, 3), (32, 16), (33, 65), (150, 1030), (257, 2049)] {
        let words = packed(form, &numbers(n as u64, n * k), n, k);
        let linear = Linear::new(&words, form, n, k);
        let (bias, m_max) = (numbers(7, n), 27);
        let (x, before) = (numbers(3, m_max * k), numbers(5, m_max * n));
        let panel = words.len() / n.div_ceil(PANEL);
        let word =
            |out: usize, line: usize| words[out / PANEL * panel + line * PANEL + out % PANEL];
        let chains = |x: &[f32], out: usize, start: f32| {
            let groups = x.chunks(128).enumerate();
            groups.fold(start, |acc, (g, x)| {
                let code = |i: usize| word(out, g * 33 + 1 + i / 4).to_le_bytes()[i % 4];
                let terms = x.iter().enumerate();
                let sum = terms.fold(0.0_f32, |sum, (i, x)| {
                    crate::f8::f32_from_f8(code(i)).mul_add(*x, sum)
                });
                sum.mul_add(f32::from_bits(word(out, g * 33)), acc)
            })
        };
        for start in [Start::Zero, Start::Bias(&bias), Start::Keep] {
            let mut want = before.clone();
            for (i, y) in want.iter_mut().enumerate() {
                let from = match start {
                    Start::Zero => 0.0,
                    Start::Bias(b) => b[i % n],
                    Start::Keep => *y,
                };
                *y = chains(&x[i / n * k..][..k], i % n, from);
            }
            for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                for threads in [1, 3] {
                    let mut pool = Pool::new(threads).unwrap();
                    for m in [0, 1, 2, 3, 4, 5, 6, 9, 12, 13, m_max] {
                        let mut y = before.clone();
                        linear.run(&mut pool, level, &x, m, &mut [], &mut y, start);
                        let want = want[..m * n].iter().chain(&before[m * n..]);
                        let same = y.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{n} x {k}, {m} rows, {level:?}, {threads} threads");
                    }
                }
            }
        }
    }
}

/// The scalar kernel alone, a row at a time, is what all others are compared with.
#[test]
fn whole_numbers_have_the_same_bits_at_every_level_batch_and_thread_count() {
    for form in WHOLE {
        for (n, k) in [(1, 1), (5, 3), (32, 16), (33, 65), (150, 1030), (257, 2049)] {
            let words = packed(form, &numbers(n as u64, n * k), n, k);
            let linear = Linear::new(&words, form, n, k);
            let (bias, m_max) = (numbers(7, n), 27);
            let (x, before) = (numbers(3, m_max * k), numbers(5, m_max * n));
            let scratch = &mut scratch(form, m_max, k);
            for start in [Start::Zero, Start::Bias(&bias), Start::Keep] {
                let mut one = Pool::new(1).unwrap();
                let mut want = before.clone();
                for (x, y) in x.chunks(k).zip(want.chunks_mut(n)) {
                    linear.run(&mut one, Level::Scalar, x, 1, scratch, y, start);
                }
                for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                    for threads in [1, 3] {
                        let mut pool = Pool::new(threads).unwrap();
                        for m in [0, 1, 2, 3, 4, 5, 6, 9, 12, 13, m_max] {
                            let mut y = before.clone();
                            linear.run(&mut pool, level, &x, m, scratch, &mut y, start);
                            let want = want[..m * n].iter().chain(&before[m * n..]);
                            let same = y.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
                            assert!(
                                same,
                                "{form}, {n} x {k}, {m} rows, {level:?}, {threads} threads"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_level_batch_and_thread_count_gives_the_bits_of_one_chain() {
    for (n, k) in [(1, 1), (5, 3), (32, 16), (33, 65), (150, 1030), (257, 2049)] {
        let w = numbers(n as u64, n * k);
        let words = packed(WeightType::Bf16, &w, n, k);
        let linear = Linear::new(&words, WeightType::Bf16, n, k);
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
                        linear.run(&mut pool, level, &x, m, &mut [], &mut y, start);
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

/// Numbers around 1, some around what the smallest normal numbers are products of, and some smaller than these.
fn of_all_sizes(seed: u64, n: usize) -> Vec<f32> {
    let size = |i: usize| [1.0, 1.0, 2.0_f32.powi(-63), 2.0_f32.powi(-75), 1e-38, 1e-40][i % 6];
    let mixed = numbers(seed + 1, n);
    let sizes = mixed.iter().map(|x| size((x.abs() * 1000.0) as usize));
    let x = numbers(seed, n).into_iter().zip(sizes);
    x.map(|(x, s)| x * s).collect()
}

/// The scalar kernel, a row at a time, is what all others are compared with.
#[test]
fn rounded_inputs_have_the_same_bits_at_every_level_batch_and_thread_count() {
    for (n, k) in [(1, 1), (5, 3), (32, 16), (33, 65), (150, 1030), (257, 2049)] {
        for numbers in [numbers, of_all_sizes] {
            let words = packed(WeightType::Bf16, &numbers(n as u64, n * k), n, k);
            let linear = Linear::new(&words, WeightType::Bf16, n, k).with_inputs(Inputs::Bf16);
            let (bias, m_max) = (numbers(7, n), 27);
            let (x, before) = (numbers(3, m_max * k), numbers(5, m_max * n));
            for start in [Start::Zero, Start::Bias(&bias), Start::Keep] {
                let mut one = Pool::new(1).unwrap();
                let mut want = before.clone();
                for (x, y) in x.chunks(k).zip(want.chunks_mut(n)) {
                    linear.run(&mut one, Level::Scalar, x, 1, &mut [], y, start);
                }
                for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                    for threads in [1, 3] {
                        let mut pool = Pool::new(threads).unwrap();
                        for m in [0, 1, 2, 3, 4, 5, 6, 9, 12, 13, m_max] {
                            let mut y = before.clone();
                            linear.run(&mut pool, level, &x, m, &mut [], &mut y, start);
                            let want = want[..m * n].iter().chain(&before[m * n..]);
                            let same = y.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
                            assert!(same, "{n} x {k}, {m} rows, {level:?}, {threads} threads");
                        }
                    }
                }
            }
        }
    }
}

/// Sums that end next to the smallest normal number, at each level and, where there is one, by the instruction.
#[test]
fn what_rounds_to_the_smallest_normal_number_is_zero_where_it_would_be_less() {
    let least = f32::MIN_POSITIVE;
    let words: Vec<Vec<u32>> = (0..128)
        .map(|i| {
            packed(
                WeightType::Bf16,
                &[-2.0_f32.powi(-75) * (1.0 + i as f32 / 128.0)],
                1,
                1,
            )
        })
        .collect();
    let (mut zeros, mut kept) = (0, 0);
    for words in &words {
        for i in 0..128 {
            // Products of -2^-152 to -2^-148.
            let x = 2.0_f32.powi(-77 + i % 4) * (1.0 + i as f32 / 128.0);
            for begin in [least, -least, least * (1.0 + f32::EPSILON)] {
                let linear = Linear::new(words, WeightType::Bf16, 1, 1).with_inputs(Inputs::Bf16);
                let all = Level::ALL
                    .into_iter()
                    .filter(|l| l.is_available())
                    .map(|level| {
                        let (mut pool, mut y) = (Pool::new(1).unwrap(), [begin]);
                        linear.run(&mut pool, level, &[x], 1, &mut [], &mut y, Start::Keep);
                        y[0].to_bits()
                    });
                let all: Vec<u32> = all.collect();
                assert!(
                    all.iter().all(|y| *y == all[0]),
                    "{x:e} from {begin:e}: {all:x?}"
                );
                match all[0] & 0x7fff_ffff {
                    0 => zeros += 1,
                    0x0080_0000 => kept += 1,
                    _ => {}
                }
            }
        }
    }
    assert!(zeros > 100 && kept > 100, "{zeros} zeros, {kept} kept");
}

/// As a sum in f64 of products of what both are rounded to.
#[test]
fn rounded_inputs_give_the_products_of_what_they_stand_for() {
    let (n, k, m) = (33, 1031, 3);
    let (w, x) = (numbers(4, n * k), numbers(5, m * k));
    let words = packed(WeightType::Bf16, &w, n, k);
    let linear = Linear::new(&words, WeightType::Bf16, n, k).with_inputs(Inputs::Bf16);
    let (mut pool, mut y) = (Pool::new(1).unwrap(), vec![0.0; m * n]);
    linear.run(
        &mut pool,
        Level::detect(),
        &x,
        m,
        &mut [],
        &mut y,
        Start::Zero,
    );
    let rounded = |x: f32| f64::from(f32_from_bf16(bf16_from_f32(x)));
    for (i, y) in y.iter().enumerate() {
        let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
        let terms = x.iter().zip(w).map(|(x, w)| rounded(*x) * rounded(*w));
        let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t: f64| (s + t, a + t.abs()));
        let bound = size * k as f64 * 2.0_f64.powi(-24);
        assert!((f64::from(*y) - sum).abs() <= bound, "{i}: {y}, not {sum}");
    }
}

/// More rows than a tile has: every tile takes its own.
#[test]
fn many_rows_have_the_bits_that_each_has_alone() {
    let (n, k, m) = (70, 65, 2 * CHUNK + 13);
    for (form, inputs) in forms() {
        let words = packed(form, &numbers(4, n * k), n, k);
        let linear = Linear::new(&words, form, n, k).with_inputs(inputs);
        let (bias, x) = (numbers(7, n), numbers(3, m * k));
        let scratch = &mut scratch(form, m, k);
        let mut want = vec![0.0; m * n];
        let mut one = Pool::new(1).unwrap();
        for (x, y) in x.chunks(k).zip(want.chunks_mut(n)) {
            linear.run(
                &mut one,
                Level::Scalar,
                x,
                1,
                scratch,
                y,
                Start::Bias(&bias),
            );
        }
        for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
            for threads in [1, 3] {
                let (mut pool, mut y) = (Pool::new(threads).unwrap(), vec![f32::NAN; m * n]);
                linear.run(&mut pool, level, &x, m, scratch, &mut y, Start::Bias(&bias));
                let same = y.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{form}, {inputs:?}, {level:?}, {threads} threads");
            }
        }
    }
}

/// A row of no numbers leaves the others alone, also where an odd last column has no partner.
#[test]
fn a_row_that_is_no_number_hurts_no_other() {
    let (n, k, m) = (40, BLOCK + 3, 3 * ROWS);
    for (form, inputs) in forms() {
        let words = packed(form, &numbers(4, n * k), n, k);
        let linear = Linear::new(&words, form, n, k).with_inputs(inputs);
        let good = numbers(3, m * k);
        let scratch = &mut scratch(form, m, k);
        for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
            let mut pool = Pool::new(1).unwrap();
            let (mut want, mut got) = (vec![0.0; m * n], vec![0.0; m * n]);
            linear.run(&mut pool, level, &good, m, scratch, &mut want, Start::Zero);
            for bad in [0, ROWS + 1, m - 1] {
                let mut x = good.clone();
                x[bad * k..][..k].fill(f32::NAN);
                linear.run(&mut pool, level, &x, m, scratch, &mut got, Start::Zero);
                for (row, (got, want)) in got.chunks(n).zip(want.chunks(n)).enumerate() {
                    let name = format!("{form}, {inputs:?}, {level:?}, row {row} beside {bad}");
                    if row == bad {
                        assert!(got.iter().all(|y| y.is_nan()), "{name}");
                    } else {
                        assert_eq!(got, want, "{name}");
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
    let sizes = [(1, 1), (33, 65), (150, 1030)];
    for ((form, inputs), (n, k)) in forms().flat_map(|f| sizes.map(|s| (f, s))) {
        let words: Vec<Vec<u32>> = (0..experts)
            .map(|e| packed(form, &numbers(e as u64 + 1, n * k), n, k))
            .collect();
        // The last expert has no row, and no matrix: it must not be asked for.
        let matrix = |e: usize| {
            assert!(e + 1 < experts);
            Linear::new(&words[e], form, n, k).with_inputs(inputs)
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
            let scratch = &mut scratch(form, tokens.max(1), k);
            let mut alone = vec![0.0; tokens * share * n];
            let mut pool = Pool::new(1).unwrap();
            for (row, e) in of.enumerate() {
                let (x, y) = (&x[row / share * k..], &mut alone[row * n..(row + 1) * n]);
                matrix(e).run(&mut pool, Level::Scalar, x, 1, scratch, y, start(e));
            }
            for level in Level::ALL.into_iter().filter(|l| l.is_available()) {
                for threads in [1, 3] {
                    let mut pool = Pool::new(threads).unwrap();
                    let mut y = vec![f32::NAN; alone.len() + 1];
                    let expert = |e| (matrix(e), start(e));
                    groups.run(&mut pool, level, expert, share, &x, scratch, &mut y);
                    let same = y
                        .iter()
                        .zip(&alone)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(
                        same,
                        "{form}, {n} x {k}, {tokens} tokens, {level:?}, {threads} threads"
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
    let sizes = [(1, 1), (33, 65), (150, 1030)];
    for ((n, k), inputs) in sizes
        .into_iter()
        .flat_map(|s| [(s, Inputs::F32), (s, Inputs::Bf16)])
    {
        let words: Vec<Vec<u32>> = (0..heads)
            .map(|h| packed(WeightType::Bf16, &numbers(h as u64 + 1, n * k), n, k))
            .collect();
        let matrix = |w| Linear::new(w, WeightType::Bf16, n, k).with_inputs(inputs);
        let matrices: Vec<Linear<'_>> = words.iter().map(|w| matrix(w)).collect();
        for rows in [0, 1, 7, 200] {
            let x = numbers(3, rows * heads * k);
            let mut alone = vec![0.0; rows * heads * n];
            let mut pool = Pool::new(1).unwrap();
            for (i, y) in alone.chunks_mut(n).enumerate() {
                let m = &matrices[i % heads];
                m.run(
                    &mut pool,
                    Level::Scalar,
                    &x[i * k..],
                    1,
                    &mut [],
                    y,
                    Start::Zero,
                );
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
