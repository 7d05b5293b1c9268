//! Linear layers on tensor cores, on fibers: the twins of what they are built of against scalar products, then each against
//! sums in binary64 of what it says that it multiplies, and against itself in other company, to the bit.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod support;

use plimsoll_cuda::args::Linear;
use plimsoll_cuda::{Address, Device, DeviceError, Fibers, Launch};
use support::*;

/// One warp, with three addresses.
fn probe(device: &mut Fibers, kernel: &'static str, at: [Address; 3]) -> Result<(), DeviceError> {
    let how = Launch {
        shared: 1024,
        ..Launch::blocks(1, 32)
    };
    device.launch(kernel, how, &bytes(&at.map(|a| a.0), u64::to_ne_bytes))
}

#[test]
fn a_warp_multiplies_what_its_lanes_hold() {
    let mut device = Fibers::new();
    let mut numbers = Numbers(1);
    let a: Vec<u16> = numbers.floats(256).into_iter().map(to_bf16).collect();
    let b: Vec<u16> = numbers.floats(128).into_iter().map(to_bf16).collect();
    let at = [
        put(&mut device, &bytes(&a, u16::to_ne_bytes)),
        put(&mut device, &bytes(&b, u16::to_ne_bytes)),
        device.allocate(512).unwrap(),
    ];
    for kernel in ["probe_mma", "probe_transposed"] {
        device.upload(at[2], &[0xff; 512]).unwrap();
        probe(&mut device, kernel, at).unwrap();
        for (i, c) in floats(&mut device, at[2], 128).into_iter().enumerate() {
            let of = |k: usize| {
                f64::from(of_bf16(a[i / 8 * 16 + k])) * f64::from(of_bf16(b[k * 8 + i % 8]))
            };
            let sum: f64 = (0..16).map(of).sum();
            assert!(
                (f64::from(c) - sum).abs() < 1e-6,
                "{kernel}, {i}: {c} for {sum}"
            );
        }
    }
}

#[test]
fn copies_are_there_when_they_were_waited_for() {
    let mut device = Fibers::new();
    let x = put_words(&mut device, &[1, 2, 3, 4]);
    let seen = device.allocate(64).unwrap();
    probe(&mut device, "probe_copies", [x, x, seen]).unwrap();
    const NOTHING: u32 = u32::MAX;
    assert_eq!(
        words(&mut device, seen, 16),
        [
            1, 0, 0, 0, NOTHING, NOTHING, NOTHING, NOTHING, 1, 0, 0, 0, 1, 2, 3, 4
        ]
    );
}

#[test]
fn lanes_vote() {
    let mut device = Fibers::new();
    let seen = device.allocate(33 * 4).unwrap();
    probe(&mut device, "probe_votes", [seen; 3]).unwrap();
    let mut expected = vec![0xaaaa_aaaa; 32];
    expected.push(16);
    assert_eq!(words(&mut device, seen, 33), expected);
}

/// Weights in panels, as `prelude.cuh` reads them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Bf16,
    Fp8,
    Int8,
    Int4,
    G128,
    G64,
    G32,
}

const FORMS: [Form; 7] = [
    Form::Bf16,
    Form::Fp8,
    Form::Int8,
    Form::Int4,
    Form::G128,
    Form::G64,
    Form::G32,
];

impl Form {
    /// Columns of a published group.
    fn group(self) -> usize {
        match self {
            Self::G128 => 128,
            Self::G64 => 64,
            _ => 32,
        }
    }

    fn row_words(self, k: usize) -> usize {
        match self {
            Self::Bf16 => k.div_ceil(2),
            Self::Fp8 | Self::Int8 => k.div_ceil(4) + k.div_ceil(128),
            Self::Int4 => k.div_ceil(8) + k.div_ceil(64),
            _ => k.div_ceil(8) + k.div_ceil(self.group()),
        }
    }

    /// A matrix: what lies past n and k is zero, as where weights are packed.
    fn matrix(self, numbers: &mut Numbers, n: usize, k: usize) -> Vec<u32> {
        let lines = self.row_words(k);
        let mut words = vec![0; n.div_ceil(32) * 32 * lines];
        for (at, word) in words.iter_mut().enumerate() {
            let (row, line) = (at / (32 * lines) * 32 + at % 32, at / 32 % lines);
            if row >= n {
                continue;
            }
            let mut half = || u32::from(to_bf16(numbers.float()));
            *word = match self {
                Self::Bf16 if line * 2 + 1 == k => half(),
                Self::Bf16 => half() | half() << 16,
                Self::Fp8 | Self::Int8 if line % 33 == 0 => {
                    (numbers.float().abs() / 127.0).to_bits()
                }
                Self::Int4 if line % 9 == 0 => half() | half() << 16,
                Self::G128 | Self::G64 | Self::G32 if line % (self.group() / 8 + 1) == 0 => {
                    (half() << 16) | (numbers.word() % 16)
                }
                // No NaN among codes.
                Self::Fp8 => numbers.word() & 0xbfbf_bfbf,
                _ => numbers.word(),
            };
        }
        words
    }

    fn element(self, words: &[u32], k: usize, row: usize, i: usize) -> f32 {
        let panel = row / 32 * 32 * self.row_words(k) + row % 32;
        match self {
            Self::Bf16 => of_bf16((words[panel + i / 2 * 32] >> (16 * (i % 2))) as u16),
            Self::Fp8 => {
                let scale = f32::from_bits(words[panel + i / 128 * 33 * 32]);
                let code = words[panel + (i / 4 + i / 128 + 1) * 32] >> (8 * (i % 4));
                let (exponent, mantissa) = (code >> 3 & 15, (code & 7) as f32);
                let size = match exponent {
                    0 => mantissa / 512.0,
                    e => (1.0 + mantissa / 8.0) * 2.0_f32.powi(e as i32 - 7),
                };
                (if code & 0x80 == 0 { size } else { -size }) * scale
            }
            Self::Int8 => {
                let scale = f32::from_bits(words[panel + i / 128 * 33 * 32]);
                let byte = (words[panel + (i / 4 + i / 128 + 1) * 32] >> (8 * (i % 4))) as u8;
                f32::from((byte ^ 0x80) as i8) * scale
            }
            Self::Int4 => {
                let line = i / 64 * 9;
                let scale = of_bf16((words[panel + line * 32] >> (16 * (i % 64 / 32))) as u16);
                let word = words[panel + (line + 1 + i % 64 / 8) * 32];
                let four = word >> (8 * (i % 4) + 4 * (i % 8 / 4)) & 15;
                (four as f32 - 8.0) * scale
            }
            _ => {
                let group = self.group();
                let line = i / group * (group / 8 + 1);
                let parameters = words[panel + line * 32];
                let word = words[panel + (line + 1 + i % group / 8) * 32];
                let four = word >> (8 * (i % 4) + 4 * (i % 8 / 4)) & 15;
                let zero = (parameters & 31) as f32;
                (four as f32 - zero) * f32::from_bits(parameters & !0x1fff)
            }
        }
    }
}

/// Rows of a tile, outputs, columns of a step, steps, threads: as `linear_mma.cu` has them.
const TILES: [(&str, [u32; 5]); 3] = [
    ("16", [16, 32, 128, 5, 128]),
    ("64", [64, 32, 64, 5, 128]),
    ("128", [128, 128, 32, 3, 256]),
];

fn kernel(form: Form, tile: usize) -> &'static str {
    let names = [
        [
            "linear_mma_bf16_16",
            "linear_mma_bf16_64",
            "linear_mma_bf16_128",
        ],
        [
            "linear_mma_fp8_16",
            "linear_mma_fp8_64",
            "linear_mma_fp8_128",
        ],
        [
            "linear_mma_int8_16",
            "linear_mma_int8_64",
            "linear_mma_int8_128",
        ],
        [
            "linear_mma_int4_16",
            "linear_mma_int4_64",
            "linear_mma_int4_128",
        ],
        [
            "linear_mma_g128_16",
            "linear_mma_g128_64",
            "linear_mma_g128_128",
        ],
        [
            "linear_mma_g64_16",
            "linear_mma_g64_64",
            "linear_mma_g64_128",
        ],
        [
            "linear_mma_g32_16",
            "linear_mma_g32_64",
            "linear_mma_g32_128",
        ],
    ];
    let name = names[form as usize][tile];
    assert!(name.ends_with(TILES[tile].0));
    name
}

fn multiply(device: &mut Fibers, form: Form, tile: usize, mut a: Linear, matrices: u32) {
    let [rows, outputs, step, stages, threads] = TILES[tile].1;
    a.form = form as u32;
    let lines = match form {
        Form::Bf16 => step / 2,
        Form::Fp8 | Form::Int8 => 1 + step / 4,
        Form::Int4 => step.div_ceil(64) + step / 8,
        _ => step.div_ceil(form.group() as u32) + step / 8,
    };
    let how = Launch {
        // Fewer blocks than tiles of rows, where rows are routed.
        grid: [
            if a.routes == 0 {
                a.rows.div_ceil(rows)
            } else {
                1
            },
            a.n.div_ceil(outputs),
            matrices,
        ],
        threads,
        shared: 4 * (stages * lines * outputs + 2 * rows * (step / 2 + 4)),
    };
    device.launch(kernel(form, tile), how, a.bytes()).unwrap();
}

#[test]
fn matrices_of_any_size_meet_rounded_inputs() {
    let mut device = Fibers::new();
    let mut numbers = Numbers(2);
    for form in FORMS {
        for (rows, n, k) in [
            (1, 1, 1),
            (3, 40, 16),
            (17, 33, 131),
            (70, 130, 72),
            (5, 64, 300),
            (130, 31, 33),
        ] {
            for start in 0..3_u32 {
                let matrix = form.matrix(&mut numbers, n, k);
                let x = numbers.floats(rows * k);
                let (bias, before) = (numbers.floats(n), numbers.floats(rows * n));
                let a = Linear {
                    words: put_words(&mut device, &matrix).0,
                    x: put_floats(&mut device, &x).0,
                    bias: put_floats(&mut device, &bias).0,
                    n: n as u32,
                    k: k as u32,
                    rows: rows as u32,
                    step: 1,
                    share: 1,
                    x_stride: k as u32,
                    start,
                    ..Linear::default()
                };
                let results = [0, 1, 2].map(|tile| {
                    let y = put_floats(&mut device, &before);
                    multiply(&mut device, form, tile, Linear { y: y.0, ..a }, 1);
                    floats(&mut device, y, rows * n)
                });
                for (i, y) in results[0].iter().enumerate() {
                    let (row, output) = (i / n, i % n);
                    let start = [0.0, bias[output], before[i]][start as usize];
                    let product = |j: usize| {
                        let w = of_bf16(to_bf16(form.element(&matrix, k, output, j)));
                        f64::from(of_bf16(to_bf16(x[row * k + j]))) * f64::from(w)
                    };
                    let what = format!("{form:?}, {rows} x {n} x {k}, {i}");
                    near(*y, start, (0..k).map(product), &what);
                }
                // Whatever the tile.
                let bits = |y: &[f32]| -> Vec<u32> { y.iter().map(|y| y.to_bits()).collect() };
                assert_eq!(
                    bits(&results[0]),
                    bits(&results[1]),
                    "{form:?}, {rows} x {n} x {k}"
                );
                assert_eq!(
                    bits(&results[0]),
                    bits(&results[2]),
                    "{form:?}, {rows} x {n} x {k}"
                );
                // And alone.
                let row = rows / 2;
                let y = put_floats(&mut device, &before[row * n..(row + 1) * n]);
                let alone = Linear {
                    x: a.x + 4 * (row * k) as u64,
                    y: y.0,
                    rows: 1,
                    ..a
                };
                multiply(&mut device, form, 0, alone, 1);
                let alone = floats(&mut device, y, n);
                assert_eq!(bits(&alone), bits(&results[2][row * n..(row + 1) * n]));
            }
        }
    }
}

#[test]
fn weights_that_are_under_way_change_no_bit() {
    let mut device = Fibers::new();
    let mut numbers = Numbers(6);
    let form = Form::Bf16;
    for (rows, n, k) in [
        (1, 1, 1),
        (3, 40, 16),
        (5, 33, 131),
        (33, 64, 700),
        (70, 31, 1030),
    ] {
        for start in 0..3_u32 {
            let matrix = form.matrix(&mut numbers, n, k);
            let (x, bias) = (numbers.floats(rows * k), numbers.floats(n));
            let before = numbers.floats(rows * n);
            let a = Linear {
                words: put_words(&mut device, &matrix).0,
                x: put_floats(&mut device, &x).0,
                bias: put_floats(&mut device, &bias).0,
                n: n as u32,
                k: k as u32,
                rows: rows as u32,
                step: 1,
                share: 1,
                x_stride: k as u32,
                start,
                ..Linear::default()
            };
            let mut run = |kernel, panels: u32, together: u32, step: u32| {
                let y = put_floats(&mut device, &before);
                let how = Launch {
                    grid: [a.n.div_ceil(32 * panels), a.rows.div_ceil(together), 1],
                    threads: 128,
                    shared: 4 * 5 * (step / 2 * 32 + together * step),
                };
                let a = Linear { y: y.0, ..a };
                device.launch(kernel, how, a.bytes()).unwrap();
                words(&mut device, y, rows * n)
            };
            let plain = run("linear_bf16_1", 4, 1, 0);
            for (kernel, together) in [("linear_bf16_4", 4), ("linear_bf16_8", 8)] {
                assert_eq!(
                    plain,
                    run(kernel, 4, together, 0),
                    "{kernel}, {rows} x {n} x {k}"
                );
            }
            for (kernel, together, step) in [
                ("linear_staged_1", 1, 128),
                ("linear_staged_4", 4, 128),
                ("linear_staged_32", 32, 64),
            ] {
                assert_eq!(
                    plain,
                    run(kernel, 1, together, step),
                    "{kernel}, {rows} x {n} x {k}"
                );
            }
        }
    }
}

#[test]
fn rows_meet_the_matrices_of_their_experts() {
    let mut device = Fibers::new();
    let mut numbers = Numbers(3);
    let (tokens, experts, taken, n, k) = (150_usize, 5_usize, 2_usize, 40_usize, 24_usize);
    let form = Form::Int8;
    let all: Vec<Vec<u32>> = (0..experts)
        .map(|_| form.matrix(&mut numbers, n, k))
        .collect();
    let (x, bias) = (numbers.floats(tokens * k), numbers.floats(experts * n));
    let mut routes = Vec::new();
    for _ in 0..tokens {
        // Nobody takes the last.
        let first = numbers.word() as usize % (experts - 1);
        let second = (first + 1 + numbers.word() as usize % (experts - 2)) % (experts - 1);
        routes.extend([first as f32, second as f32, 0.5, 0.5]);
    }
    let rows = tokens * taken;
    let a = Linear {
        words: put_words(&mut device, &all.concat()).0,
        matrix_words: all[0].len() as u64,
        x: put_floats(&mut device, &x).0,
        bias: put_floats(&mut device, &bias).0,
        routes: put_floats(&mut device, &routes).0,
        n: n as u32,
        k: k as u32,
        rows: rows as u32,
        step: 1,
        share: taken as u32,
        x_stride: k as u32,
        wide: 2 * taken as u32,
        start: 1,
        ..Linear::default()
    };
    for tile in 0..3 {
        let y = put_floats(&mut device, &vec![f32::NAN; rows * n]);
        multiply(
            &mut device,
            form,
            tile,
            Linear { y: y.0, ..a },
            experts as u32,
        );
        for (i, y) in floats(&mut device, y, rows * n).into_iter().enumerate() {
            let (row, output) = (i / n, i % n);
            let expert = routes[row / taken * 2 * taken + row % taken] as usize;
            let product = |j: usize| {
                let w = of_bf16(to_bf16(form.element(&all[expert], k, output, j)));
                f64::from(of_bf16(to_bf16(x[row / taken * k + j]))) * f64::from(w)
            };
            near(
                y,
                bias[expert * n + output],
                (0..k).map(product),
                &format!("{tile}, {i}"),
            );
        }
    }
}

#[test]
fn heads_have_matrices_of_their_own() {
    let mut device = Fibers::new();
    let mut numbers = Numbers(4);
    let (tokens, heads, n, k) = (19_usize, 3_usize, 12_usize, 20_usize);
    let form = Form::Bf16;
    let all: Vec<Vec<u32>> = (0..heads)
        .map(|_| form.matrix(&mut numbers, n, k))
        .collect();
    let x = numbers.floats(tokens * heads * k);
    let y = put_floats(&mut device, &vec![f32::NAN; tokens * heads * n]);
    let a = Linear {
        words: put_words(&mut device, &all.concat()).0,
        matrix_words: all[0].len() as u64,
        x: put_floats(&mut device, &x).0,
        y: y.0,
        n: n as u32,
        k: k as u32,
        rows: tokens as u32,
        step: heads as u32,
        share: 1,
        x_stride: k as u32,
        ..Linear::default()
    };
    multiply(&mut device, form, 1, a, heads as u32);
    for (i, y) in floats(&mut device, y, tokens * heads * n)
        .into_iter()
        .enumerate()
    {
        let (row, output) = (i / n, i % n);
        let product = |j: usize| {
            let w = form.element(&all[row % heads], k, output, j);
            f64::from(of_bf16(to_bf16(x[row * k + j]))) * f64::from(w)
        };
        near(y, 0.0, (0..k).map(product), &format!("{i}"));
    }
}
