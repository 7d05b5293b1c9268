//! Kernels for tensor cores, on fibers: the twins of what they are built of against scalar products, then each against
//! sums in binary64 of what it says that it multiplies, and against itself in other company, to the bit.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use plimsoll_cuda::args::{Kv, Latents, Linear};
use plimsoll_cuda::{Address, Device, DeviceError, Fibers, Launch};

/// Numbers that look random, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn word(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Between -1 and 1.
    fn float(&mut self) -> f32 {
        (self.word() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

fn to_bf16(x: f32) -> u16 {
    let b = x.to_bits();
    ((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16
}

fn of_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Of numbers below 65504 that are not smaller than normal ones.
fn to_f16(x: f32) -> u16 {
    let (b, sign) = (x.to_bits(), (x.to_bits() >> 16 & 0x8000) as u16);
    let size = b & 0x7fff_ffff;
    if size < 0x3880_0000 {
        return sign | (x.abs() * (1 << 24) as f32).round_ties_even() as u16;
    }
    sign | ((size - (112 << 23) + 0xfff + (size >> 13 & 1)) >> 13) as u16
}

fn of_f16(x: u16) -> f32 {
    let size = u32::from(x & 0x7fff);
    let number = f32::from_bits(size << 13) * f32::from_bits((127 + 112) << 23);
    if x & 0x8000 != 0 { -number } else { number }
}

fn bytes<T: Copy, const N: usize>(x: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    x.iter().flat_map(|x| f(*x)).collect()
}

fn put(device: &mut Fibers, bytes: &[u8]) -> Address {
    let at = device.allocate(bytes.len() as u64).unwrap();
    device.upload(at, bytes).unwrap();
    at
}

fn put_floats(device: &mut Fibers, x: &[f32]) -> Address {
    put(device, &bytes(x, f32::to_ne_bytes))
}

fn put_words(device: &mut Fibers, x: &[u32]) -> Address {
    put(device, &bytes(x, u32::to_ne_bytes))
}

fn words(device: &mut Fibers, at: Address, n: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * n];
    device.download(at, &mut bytes).unwrap();
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| u32::from_ne_bytes(*b))
        .collect()
}

fn floats(device: &mut Fibers, at: Address, n: usize) -> Vec<f32> {
    words(device, at, n)
        .into_iter()
        .map(f32::from_bits)
        .collect()
}

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

/// Whether `y` is near the sum of products in binary64, and the sizes of what was added say how near.
fn near(y: f32, start: f32, products: impl Iterator<Item = f64>, what: &str) {
    let (mut sum, mut size) = (f64::from(start), f64::from(start.abs()));
    for p in products {
        sum += p;
        size += p.abs();
    }
    // As many roundings as there are sums of sixteen, at most.
    assert!(
        (f64::from(y) - sum).abs() <= size * 4e-6,
        "{what}: {y} for {sum}"
    );
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

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    Bf16,
    F16,
    Fp8,
    Int8,
}

impl Kept {
    const ALL: [Self; 4] = [Self::Bf16, Self::F16, Self::Fp8, Self::Int8];

    const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::Fp8 | Self::Int8 => 1,
        }
    }

    /// As queries are rounded.
    fn query(self, x: f32) -> f32 {
        match self {
            Self::F16 => of_f16(to_f16(x)),
            _ => of_bf16(to_bf16(x)),
        }
    }

    /// The bytes of each of a head's elements, what they stand for, and the scale that they have together.
    fn keep(self, x: &[f32]) -> (Vec<Vec<u8>>, Vec<f32>, f32) {
        let top = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let scale = top / 127.0;
        let one = |x: f32| match self {
            Self::Bf16 => (to_bf16(x).to_ne_bytes().to_vec(), of_bf16(to_bf16(x))),
            Self::F16 => (to_f16(x).to_ne_bytes().to_vec(), of_f16(to_f16(x))),
            Self::Fp8 => {
                // The nearest of all that there are.
                let off = |code: &u8| (of_fp8(*code) - x).abs();
                let codes = (0..=u8::MAX).filter(|c| c & 0x7f != 0x7f);
                let code = codes.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap();
                (vec![code], of_fp8(code))
            }
            Self::Int8 => {
                let whole = (x * (127.0 / top)).round_ties_even();
                (vec![(whole as i8).cast_unsigned()], whole * scale)
            }
        };
        let (bytes, values) = x.iter().map(|x| one(*x)).unzip();
        (bytes, values, scale)
    }
}

fn of_fp8(code: u8) -> f32 {
    let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match e {
        0 => m / 8.0 * 2_f32.powi(-6),
        _ => (1.0 + m / 8.0) * 2_f32.powi(e - 7),
    };
    if code >> 7 == 1 { -size } else { size }
}

/// Attention over pages that hold NaN wherever no key and no value was written.
#[derive(Clone, Copy, Debug)]
struct Case {
    kept: Kept,
    slots: usize,
    q_heads: usize,
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    /// Tokens that were there before, and those of the step.
    before: usize,
    tokens: usize,
    /// 1: so many last keys, 2: chunks of so many.
    reach: (u32, u32),
    cap: Option<f32>,
    sinks: bool,
    split: u32,
}

const CASE: Case = Case {
    kept: Kept::Bf16,
    slots: 16,
    q_heads: 4,
    kv_heads: 2,
    k_dim: 16,
    v_dim: 16,
    before: 0,
    tokens: 1,
    reach: (0, 0),
    cap: None,
    sinks: false,
    split: 512,
};

struct Attention {
    case: Case,
    device: Fibers,
    kv: Kv,
    q: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    sinks: Vec<f32>,
}

impl Attention {
    fn new(case: Case) -> Self {
        let c = case;
        let mut device = Fibers::new();
        let mut numbers = Numbers(5);
        let end = c.before + c.tokens;
        let mut some = |n: usize, by: f32| -> Vec<f32> {
            let all = numbers.floats(n).into_iter();
            all.map(|x| c.kept.query(x * by)).collect()
        };
        let mut keys = some(end * c.kv_heads * c.k_dim, 1.0);
        let mut values = some(end * c.kv_heads * c.v_dim, 1.0);
        // As they are multiplied.
        let q = some(c.tokens * c.q_heads * c.k_dim, 4.0);
        let sinks = some(c.q_heads, 2.0);
        let each = c.kept.bytes();
        // Two layers a page; ours is the second. Scales are behind keys and values.
        let elements = c.kv_heads * (c.k_dim + c.v_dim) * c.slots;
        let scales = if c.kept == Kept::Int8 {
            2 * c.kv_heads * c.slots * 4
        } else {
            0
        };
        let layer = elements + scales;
        let blocks = end.div_ceil(c.slots);
        let table: Vec<u32> = (0..blocks).map(|b| (blocks - b) as u32).collect();
        let mut pages = vec![0xff_u8; (blocks + 1) * 2 * layer * each];
        for position in 0..end {
            let page = table[position / c.slots] as usize * 2 * layer + layer;
            let slot = position % c.slots;
            for head in 0..c.kv_heads {
                let mut put = |at: usize, bytes: &[u8]| {
                    pages[at..at + bytes.len()].copy_from_slice(bytes);
                };
                let scale_at = |of: usize| page + elements + (of * c.slots + slot) * 4;
                let at = (position * c.kv_heads + head) * c.k_dim;
                let (bytes, kept, scale) = c.kept.keep(&keys[at..at + c.k_dim]);
                keys[at..at + c.k_dim].copy_from_slice(&kept);
                for (d, k) in bytes.iter().enumerate() {
                    put((page + (head * c.k_dim + d) * c.slots + slot) * each, k);
                }
                if scales > 0 {
                    put(scale_at(head), &scale.to_ne_bytes());
                }
                let from = page + (c.kv_heads * c.k_dim + head * c.v_dim) * c.slots;
                let at = (position * c.kv_heads + head) * c.v_dim;
                let (bytes, kept, scale) = c.kept.keep(&values[at..at + c.v_dim]);
                values[at..at + c.v_dim].copy_from_slice(&kept);
                for (d, v) in bytes.iter().enumerate() {
                    put((from + slot * c.v_dim + d) * each, v);
                }
                if scales > 0 {
                    put(scale_at(c.kv_heads + head), &scale.to_ne_bytes());
                }
            }
        }
        let parts = end.div_ceil(c.split as usize).max(1);
        let kv = Kv {
            pages: put(&mut device, &pages).0,
            seqs: put_words(&mut device, &[0, c.before as u32, c.tokens as u32, 0]).0,
            of: put_words(&mut device, &vec![0; c.tokens]).0,
            tables: put_words(&mut device, &table).0,
            q: put_floats(&mut device, &q).0,
            sinks: if c.sinks {
                put_floats(&mut device, &sinks).0
            } else {
                0
            },
            partials: {
                let words = c.tokens * c.q_heads * parts * (c.v_dim + 2);
                put_words(&mut device, &vec![u32::MAX; words]).0
            },
            page: 2 * layer as u64,
            layer: layer as u64,
            slots: c.slots as u32,
            q_heads: c.q_heads as u32,
            kv_heads: c.kv_heads as u32,
            k_dim: c.k_dim as u32,
            v_dim: c.v_dim as u32,
            q_stride: (c.q_heads * c.k_dim) as u32,
            reach: c.reach.0,
            reach_of: c.reach.1,
            capped: c.cap.is_some().into(),
            split: c.split,
            splits: parts as u32,
            scale: 1.0 / (c.k_dim as f32).sqrt(),
            cap: c.cap.unwrap_or(0.0),
            ..Kv::default()
        };
        Self {
            case,
            device,
            kv,
            q,
            keys,
            values,
            sinks,
        }
    }

    /// `tokens` of the step as if they were all, in one go or in parts that are put together.
    fn run(&mut self, tokens: std::ops::Range<usize>, apart: bool) -> Vec<f32> {
        let c = self.case;
        let (dim, keys, tiles) = match c.k_dim.max(c.v_dim) {
            0..=64 => (64, 64, 2),
            65..=128 => (128, 64, 2),
            _ => (256, 32, 1),
        };
        let name = match (c.kept, dim) {
            (Kept::Bf16, 64) => "attend_mma_bf16_64",
            (Kept::Bf16, 128) => "attend_mma_bf16_128",
            (Kept::Bf16, _) => "attend_mma_bf16_256",
            (Kept::F16, 64) => "attend_mma_f16_64",
            (Kept::F16, 128) => "attend_mma_f16_128",
            (Kept::F16, _) => "attend_mma_f16_256",
            (Kept::Fp8, 64) => "attend_mma_fp8_64",
            (Kept::Fp8, 128) => "attend_mma_fp8_128",
            (Kept::Fp8, _) => "attend_mma_fp8_256",
            (Kept::Int8, 64) => "attend_mma_int8_64",
            (Kept::Int8, 128) => "attend_mma_int8_128",
            (Kept::Int8, _) => "attend_mma_int8_256",
        };
        assert!(c.v_dim <= dim);
        let n = tokens.len() * c.q_heads * c.v_dim;
        let out = put_floats(&mut self.device, &vec![f32::NAN; n]);
        let seq = [0, (c.before + tokens.start) as u32, tokens.len() as u32, 0];
        let kv = Kv {
            seqs: put_words(&mut self.device, &seq).0,
            q: self.kv.q + 4 * (tokens.start * c.q_heads * c.k_dim) as u64,
            out: out.0,
            ..self.kv
        };
        let [k_dim, v_dim] = [c.k_dim, c.v_dim].map(|d| d.next_multiple_of(16));
        let scales = if c.kept == Kept::Int8 { 4 * keys } else { 0 };
        let halves = 64 * (k_dim + 8) + tiles * (k_dim * (keys + 8) + keys * (v_dim + 8) + scales);
        let how = Launch {
            grid: [
                tokens.len() as u32,
                c.kv_heads as u32,
                if apart { kv.splits } else { 1 },
            ],
            threads: 128,
            shared: 2 * halves as u32,
        };
        self.device.launch(name, how, kv.bytes()).unwrap();
        if apart {
            let how = Launch {
                grid: [tokens.len() as u32, c.q_heads as u32, 1],
                threads: 32,
                shared: 0,
            };
            self.device.launch("combine", how, kv.bytes()).unwrap();
        }
        floats(&mut self.device, out, n)
    }

    /// Attention in binary64.
    fn expected(&self) -> Vec<f64> {
        let c = self.case;
        let mut all = Vec::new();
        for token in 0..c.tokens {
            let position = c.before + token;
            let first = match c.reach {
                (1, n) => (position + 1).saturating_sub(n as usize),
                (2, n) => position - position % n as usize,
                _ => 0,
            };
            for head in 0..c.q_heads {
                let kv_head = head / (c.q_heads / c.kv_heads);
                let score = |key: usize| {
                    let product = |d: usize| {
                        f64::from(self.q[(token * c.q_heads + head) * c.k_dim + d])
                            * f64::from(self.keys[(key * c.kv_heads + kv_head) * c.k_dim + d])
                    };
                    let s = (0..c.k_dim).map(product).sum::<f64>() * f64::from(self.kv.scale);
                    c.cap
                        .map_or(s, |cap| (s / f64::from(cap)).tanh() * f64::from(cap))
                };
                let weights: Vec<f64> = (first..=position).map(|k| score(k).exp()).collect();
                let sink = if c.sinks {
                    f64::from(self.sinks[head]).exp()
                } else {
                    0.0
                };
                let total = weights.iter().sum::<f64>() + sink;
                for d in 0..c.v_dim {
                    let of = |(i, w): (usize, &f64)| {
                        w * f64::from(
                            self.values[((first + i) * c.kv_heads + kv_head) * c.v_dim + d],
                        )
                    };
                    all.push(weights.iter().enumerate().map(of).sum::<f64>() / total);
                }
            }
        }
        all
    }
}

fn cases() -> Vec<Case> {
    let all = [
        CASE,
        Case {
            before: 37,
            tokens: 50,
            ..CASE
        },
        // Pages that eight keys do not divide, odd sizes.
        Case {
            slots: 5,
            k_dim: 24,
            v_dim: 12,
            before: 11,
            tokens: 40,
            ..CASE
        },
        // A group that does not divide the rows of a block; heads alone.
        Case {
            q_heads: 7,
            kv_heads: 1,
            before: 90,
            tokens: 21,
            ..CASE
        },
        Case {
            q_heads: 2,
            kv_heads: 2,
            before: 3,
            tokens: 70,
            cap: Some(3.0),
            ..CASE
        },
        // Windows and chunks that end inside tiles, and whole tiles that some rows do not see.
        Case {
            reach: (1, 20),
            before: 150,
            tokens: 40,
            sinks: true,
            ..CASE
        },
        Case {
            reach: (2, 48),
            before: 100,
            tokens: 60,
            ..CASE
        },
        // Many parts.
        Case {
            reach: (1, 150),
            before: 400,
            tokens: 40,
            split: 128,
            ..CASE
        },
        Case {
            before: 300,
            tokens: 20,
            split: 64,
            ..CASE
        },
        Case {
            reach: (1, 100),
            before: 290,
            tokens: 40,
            split: 64,
            sinks: true,
            ..CASE
        },
        Case {
            slots: 8,
            q_heads: 32,
            kv_heads: 1,
            before: 130,
            tokens: 3,
            split: 64,
            ..CASE
        },
        Case {
            k_dim: 96,
            v_dim: 128,
            q_heads: 2,
            kv_heads: 1,
            before: 60,
            tokens: 9,
            split: 64,
            ..CASE
        },
        Case {
            k_dim: 256,
            v_dim: 256,
            q_heads: 2,
            kv_heads: 1,
            before: 60,
            tokens: 9,
            split: 64,
            ..CASE
        },
        Case {
            k_dim: 80,
            v_dim: 80,
            q_heads: 2,
            kv_heads: 1,
            before: 60,
            tokens: 9,
            ..CASE
        },
    ];
    let kept = |kept| all.iter().map(move |c| Case { kept, ..*c });
    Kept::ALL.into_iter().flat_map(kept).collect()
}

#[test]
fn attention_is_near_its_sums_in_binary64() {
    for case in cases() {
        let mut attention = Attention::new(case);
        let out = attention.run(0..case.tokens, false);
        // Weights of values are rounded to 16 bits, which makes each of them wrong by half of its last place, and again
        // with a scale; values are at most 1.
        let most = match case.kept {
            Kept::F16 => 2.0_f64.powi(-12),
            Kept::Bf16 | Kept::Fp8 => 2.0_f64.powi(-9),
            Kept::Int8 => 2.0_f64.powi(-8),
        } + 2e-5;
        let mut worst = 0.0_f64;
        for (y, expected) in out.iter().zip(attention.expected()) {
            let off = (f64::from(*y) - expected).abs();
            assert!(off <= 2.0 * most, "{case:?}: {y} for {expected}");
            worst = worst.max(off);
        }
        assert!(worst > 0.0);
    }
}

#[test]
fn attention_depends_neither_on_its_company_nor_on_who_has_which_part() {
    let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|x| x.to_bits()).collect() };
    for case in cases() {
        let mut attention = Attention::new(case);
        let together = bits(&attention.run(0..case.tokens, false));
        // One part is treated by one block.
        let ways = if attention.kv.splits > 1 { 2 } else { 1 };
        for apart in &[false, true][..ways] {
            assert_eq!(
                together,
                bits(&attention.run(0..case.tokens, *apart)),
                "{case:?}"
            );
        }
        let row = case.q_heads * case.v_dim;
        for token in [0, case.tokens / 2, case.tokens - 1] {
            for apart in &[false, true][..ways] {
                let alone = bits(&attention.run(token..token + 1, *apart));
                assert_eq!(
                    together[token * row..(token + 1) * row],
                    alone,
                    "{case:?}, {token}"
                );
            }
        }
    }
}

/// Attention over latents, of a page's second layer.
#[derive(Clone, Copy, Debug)]
struct Latent {
    kept: Kept,
    slots: usize,
    heads: usize,
    values: usize,
    rope: usize,
    before: usize,
    tokens: usize,
    split: u32,
}

struct OverLatents {
    case: Latent,
    device: Fibers,
    args: Latents,
    q: Vec<f32>,
    rotated: Vec<f32>,
    rows: Vec<f32>,
}

impl OverLatents {
    fn new(case: Latent) -> Self {
        let c = case;
        let (mut device, mut numbers) = (Fibers::new(), Numbers(6));
        let (end, dim, each) = (c.before + c.tokens, c.values + c.rope, c.kept.bytes());
        let mut some = |n: usize, by: f32| -> Vec<f32> {
            let all = numbers.floats(n).into_iter();
            all.map(|x| c.kept.query(x * by)).collect()
        };
        let mut rows = some(end * dim, 1.0);
        let q = some(c.tokens * c.heads * c.values, 3.0);
        let rotated = some(c.tokens * c.heads * c.rope, 3.0);
        let layer = dim * c.slots;
        let blocks = end.div_ceil(c.slots);
        let table: Vec<u32> = (0..blocks).map(|b| (blocks - b) as u32).collect();
        let mut pages = vec![0xff_u8; (blocks + 1) * 2 * layer * each];
        for (position, row) in rows.chunks_mut(dim).enumerate() {
            let (bytes, kept, _) = c.kept.keep(row);
            row.copy_from_slice(&kept);
            let at = table[position / c.slots] as usize * 2 * layer + layer;
            let at = (at + position % c.slots * dim) * each;
            pages[at..at + dim * each].copy_from_slice(&bytes.concat());
        }
        let parts = end.div_ceil(c.split as usize).max(1);
        let args = Latents {
            pages: put(&mut device, &pages).0,
            of: put_words(&mut device, &vec![0; c.tokens]).0,
            tables: put_words(&mut device, &table).0,
            q: put_floats(&mut device, &q).0,
            q_rope: put_floats(&mut device, &rotated).0,
            partials: {
                let words = c.tokens * c.heads * parts * (c.values + 2);
                put_words(&mut device, &vec![u32::MAX; words]).0
            },
            page: 2 * layer as u64,
            layer: layer as u64,
            slots: c.slots as u32,
            heads: c.heads as u32,
            k_dim: dim as u32,
            v_dim: c.values as u32,
            q_stride: (c.heads * c.values) as u32,
            rope_stride: (c.heads * c.rope) as u32,
            out_stride: (c.heads * c.values) as u32,
            split: c.split,
            splits: parts as u32,
            scale: 0.2,
            ..Latents::default()
        };
        Self {
            case,
            device,
            args,
            q,
            rotated,
            rows,
        }
    }

    fn run(&mut self, tokens: std::ops::Range<usize>, apart: bool) -> Vec<f32> {
        let c = self.case;
        let n = tokens.len() * c.heads * c.values;
        let out = put_floats(&mut self.device, &vec![f32::NAN; n]);
        let seq = [0, (c.before + tokens.start) as u32, tokens.len() as u32, 0];
        let a = Latents {
            seqs: put_words(&mut self.device, &seq).0,
            q: self.args.q + 4 * (tokens.start * c.heads * c.values) as u64,
            q_rope: self.args.q_rope + 4 * (tokens.start * c.heads * c.rope) as u64,
            out: out.0,
            ..self.args
        };
        let kernel = match c.kept {
            Kept::Bf16 => "attend_latents_mma_bf16",
            Kept::F16 => "attend_latents_mma_f16",
            Kept::Fp8 => "attend_latents_mma_fp8",
            Kept::Int8 => unreachable!("latents have no scales"),
        };
        let wide = (c.values + c.rope).next_multiple_of(16) + 8;
        let how = Launch {
            grid: [
                tokens.len() as u32,
                c.heads.div_ceil(32) as u32,
                if apart { a.splits } else { 1 },
            ],
            threads: 128,
            shared: (2 * 2 * 32 * wide) as u32,
        };
        self.device.launch(kernel, how, a.bytes()).unwrap();
        if apart {
            let kv = Kv {
                seqs: a.seqs,
                of: a.of,
                out: a.out,
                partials: a.partials,
                q_heads: a.heads,
                v_dim: a.v_dim,
                split: a.split,
                splits: a.splits,
                ..Kv::default()
            };
            let how = Launch {
                grid: [tokens.len() as u32, a.heads, 1],
                threads: 32,
                shared: 0,
            };
            self.device.launch("combine", how, kv.bytes()).unwrap();
        }
        floats(&mut self.device, out, n)
    }

    /// Attention in binary64.
    fn expected(&self) -> Vec<f64> {
        let c = self.case;
        let dim = c.values + c.rope;
        let mut all = Vec::new();
        for (token, head) in (0..c.tokens).flat_map(|t| (0..c.heads).map(move |h| (t, h))) {
            let at = token * c.heads + head;
            let query = self.q[at * c.values..][..c.values]
                .iter()
                .chain(&self.rotated[at * c.rope..][..c.rope]);
            let keys = self.rows.chunks(dim).take(c.before + token + 1);
            let weight = |key: &[f32]| {
                let pairs = key.iter().zip(query.clone());
                let s: f64 = pairs.map(|(k, q)| f64::from(*k) * f64::from(*q)).sum();
                (s * f64::from(self.args.scale)).exp()
            };
            let weights: Vec<f64> = keys.clone().map(weight).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..c.values {
                let of = keys.clone().zip(&weights).map(|(k, w)| w * f64::from(k[d]));
                all.push(of.sum::<f64>() / total);
            }
        }
        all
    }
}

#[test]
fn latents_are_near_their_sums_and_depend_on_nobody() {
    let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|x| x.to_bits()).collect() };
    for kept in [Kept::Bf16, Kept::F16, Kept::Fp8] {
        // Heads that fill a block, a part of one, several; sizes that are not whole; both halves of values; many parts.
        for (slots, heads, values, rope, before, tokens, split) in [
            (16, 4, 32, 16, 0, 1, 512),
            (16, 4, 32, 16, 20, 30, 64),
            (5, 20, 40, 6, 50, 9, 32),
            (8, 40, 48, 8, 90, 3, 64),
            (16, 32, 272, 32, 33, 2, 32),
            (16, 16, 512, 64, 70, 3, 64),
        ] {
            let case = Latent {
                kept,
                slots,
                heads,
                values,
                rope,
                before,
                tokens,
                split,
            };
            let mut latents = OverLatents::new(case);
            let together = latents.run(0..tokens, false);
            let most = match kept {
                Kept::F16 => 2.0_f64.powi(-12),
                _ => 2.0_f64.powi(-9),
            } + 2e-5;
            for (y, expected) in together.iter().zip(latents.expected()) {
                let off = (f64::from(*y) - expected).abs();
                assert!(off <= 2.0 * most, "{case:?}: {y} for {expected}");
            }
            let ways = if latents.args.splits > 1 { 2 } else { 1 };
            for apart in &[false, true][..ways] {
                assert_eq!(
                    bits(&together),
                    bits(&latents.run(0..tokens, *apart)),
                    "{case:?}"
                );
                let row = heads * values;
                for token in [0, tokens - 1] {
                    assert_eq!(
                        bits(&together[token * row..][..row]),
                        bits(&latents.run(token..token + 1, *apart)),
                        "{case:?}, {token}"
                    );
                }
            }
        }
    }
}
