//! Linear layers on a device: which kernel multiplies how many rows, on tensor cores or as the processors do.

use plimsoll_cuda::{Launch, args};
use plimsoll_program::{BUSY, WeightId, WeightLayout};
use plimsoll_units::{GroupSize, WeightType};

use super::ops::THREADS;
use super::{Cuda, elements, word};
use crate::backend::BackendError;

/// Warps of a block of a linear layer: each has a panel.
const WARPS: u64 = 4;
/// Output rows of a panel.
const PANEL: u64 = 32;
/// Types of weights, in the order of their numbers on a device.
const FORMS: usize = 7;
/// Rows of x that a warp passes together, the most first, and what its kernel is called after.
const TOGETHER: [(u64, [&str; FORMS]); 3] = [
    (
        8,
        [
            "linear_bf16_8",
            "linear_fp8_8",
            "linear_int8_8",
            "linear_int4_8",
            "linear_g128_8",
            "linear_g64_8",
            "linear_g32_8",
        ],
    ),
    (
        4,
        [
            "linear_bf16_4",
            "linear_fp8_4",
            "linear_int8_4",
            "linear_int4_4",
            "linear_g128_4",
            "linear_g64_4",
            "linear_g32_4",
        ],
    ),
    (
        1,
        [
            "linear_bf16_1",
            "linear_fp8_1",
            "linear_int8_1",
            "linear_int4_1",
            "linear_g128_1",
            "linear_g64_1",
            "linear_g32_1",
        ],
    ),
];
/// The same for bfloat16 where weights are under way to shared memory while others are multiplied, a block a panel: rows of x,
/// columns of a step (`linear_staged.cu`).
const STAGED: [(u64, u64, &str); 3] = [
    (32, 64, "linear_staged_32"),
    (4, 128, "linear_staged_4"),
    (1, 128, "linear_staged_1"),
];
/// Steps of them that are in shared memory at once.
const STAGES: u64 = 5;
/// Tiles of a linear layer on tensor cores: rows of x, outputs, columns of a step, steps at once, threads, and what their
/// kernels are called (`linear_mma.cu`).
const TILES_MMA: [TileMma; 3] = [
    TileMma {
        rows: 16,
        outputs: 32,
        step: 128,
        stages: 5,
        threads: 128,
        names: [
            "linear_mma_bf16_16",
            "linear_mma_fp8_16",
            "linear_mma_int8_16",
            "linear_mma_int4_16",
            "linear_mma_g128_16",
            "linear_mma_g64_16",
            "linear_mma_g32_16",
        ],
    },
    TileMma {
        rows: 64,
        outputs: 32,
        step: 64,
        stages: 5,
        threads: 128,
        names: [
            "linear_mma_bf16_64",
            "linear_mma_fp8_64",
            "linear_mma_int8_64",
            "linear_mma_int4_64",
            "linear_mma_g128_64",
            "linear_mma_g64_64",
            "linear_mma_g32_64",
        ],
    },
    TileMma {
        rows: 128,
        outputs: 128,
        step: 32,
        stages: 3,
        threads: 256,
        names: [
            "linear_mma_bf16_128",
            "linear_mma_fp8_128",
            "linear_mma_int8_128",
            "linear_mma_int4_128",
            "linear_mma_g128_128",
            "linear_mma_g64_128",
            "linear_mma_g32_128",
        ],
    },
];
pub(super) const fn form(weights: WeightType) -> u32 {
    match weights {
        WeightType::Bf16 => 0,
        WeightType::Fp8 => 1,
        WeightType::Int8 => 2,
        WeightType::Int4 => 3,
        WeightType::Grouped(GroupSize::G128) => 4,
        WeightType::Grouped(GroupSize::G64) => 5,
        WeightType::Grouped(GroupSize::G32) => 6,
    }
}

/// Matrices of an operation, one after the other in the arena.
pub(super) struct Matrices {
    pub(super) words: u64,
    pub(super) form: WeightType,
    pub(super) n: u64,
    pub(super) k: u64,
    /// How many there are.
    count: u64,
    /// Words from one to the next.
    apart: u64,
}

#[derive(Clone, Copy)]
struct TileMma {
    rows: u64,
    outputs: u64,
    step: u64,
    stages: u64,
    threads: u32,
    names: [&'static str; FORMS],
}

impl TileMma {
    /// That for so many rows of x, which meet `matrices` matrices of `n` outputs. Results are the same with any.
    fn of(rows: u64, n: u64, matrices: u64) -> &'static Self {
        let [small, middle, large] = &TILES_MMA;
        let blocks = rows.div_ceil(large.rows) * n.div_ceil(large.outputs) * matrices;
        match rows {
            0..=16 => small,
            65.. if blocks >= BUSY => large,
            _ => middle,
        }
    }

    /// Bytes that a block shares: lines of weights and of their scales, and two steps of inputs.
    fn shared(&self, weights: WeightType) -> u64 {
        let lines = match weights {
            WeightType::Bf16 => self.step / 2,
            WeightType::Fp8 | WeightType::Int8 => {
                self.step.div_ceil(WeightType::SCALED) + self.step / 4
            }
            WeightType::Int4 => self.step.div_ceil(64) + self.step / 8,
            WeightType::Grouped(group) => self.step.div_ceil(group.columns()) + self.step / 8,
        };
        4 * (self.stages * lines * self.outputs + 2 * self.rows * (self.step / 2 + 4))
    }
}

/// Bytes that a block of one of [`STAGED`] shares.
const fn staged_bytes(rows: u64, step: u64) -> u64 {
    4 * STAGES * (step / 2 * PANEL + rows * step)
}

impl Cuda {
    /// Kernels that matrices of this type meet, and bytes that their blocks share.
    pub(super) fn linear_shared(&self, weights: WeightType) -> Vec<(&'static str, u64)> {
        if self.fast {
            let tiles = TILES_MMA.iter();
            let of = |t: &TileMma| (t.names[form(weights) as usize], t.shared(weights));
            return tiles.map(of).collect();
        }
        let staged = self.staged && weights == WeightType::Bf16;
        let of = |(rows, step, name): &(u64, u64, _)| (*name, staged_bytes(*rows, *step));
        STAGED.iter().filter(|_| staged).map(of).collect()
    }

    pub(super) fn matrices(&mut self, all: &[WeightId]) -> Result<Matrices, BackendError> {
        let unequal = || BackendError::Step("matrices that do not lie evenly".to_owned());
        let first = *all.first().ok_or_else(unequal)?;
        let WeightLayout::Packed { form, n, k } = self.program.weight(first).layout else {
            return Err(unequal());
        };
        let at = |i: usize| all.get(i).map(|w| self.program.weight(*w).offset.get());
        let apart = match (at(0), at(1)) {
            (Some(a), Some(b)) => b.checked_sub(a).ok_or_else(unequal)?,
            _ => 0,
        };
        for (i, pair) in all.windows(2).enumerate() {
            let [a, b] = [pair[0], pair[1]].map(|w| self.program.weight(w));
            if b.layout != a.layout || at(i + 1) != at(i).and_then(|a| a.checked_add(apart)) {
                return Err(unequal());
            }
        }
        for other in &all[1..] {
            self.weight(*other);
        }
        Ok(Matrices {
            words: self.weight(first),
            form,
            n,
            k,
            count: all.len() as u64,
            apart: apart / 4,
        })
    }

    /// `y = x W^T` for rows of x; `scratch` is where they are quantised, `a` what else is known of them.
    pub(super) fn linear(
        &mut self,
        m: &Matrices,
        mut a: args::Linear,
        x_rows: u64,
        scratch: u64,
        groups: u64,
    ) -> Result<(), BackendError> {
        a.words = m.words;
        a.matrix_words = m.apart;
        (a.form, a.n, a.k) = (form(m.form), word(m.n), word(m.k));
        a.x_stride = word(m.k);
        if self.fast {
            return self.linear_mma(m, a);
        }
        if m.form.input_words(m.k) > 0 {
            let q = args::Quantise {
                x: a.x,
                out: scratch,
                k: word(m.k),
                rows: word(x_rows),
            };
            let blocks = x_rows.saturating_mul(m.k.div_ceil(128)).div_ceil(WARPS);
            self.launch("quantise", Launch::blocks(word(blocks), THREADS), q.bytes())?;
            a.x = scratch;
            a.x_stride = word(m.form.input_words(m.k));
        }
        let rows = u64::from(a.rows);
        // Each expert's rows are apart: one at a time.
        let most = if a.routes == 0 { rows } else { 1 };
        let kernels = TOGETHER.iter().find(|t| t.0 <= most.max(1));
        let (mut together, names) = *kernels.unwrap_or(&TOGETHER[2]);
        let mut name = names[form(m.form) as usize];
        let mut blocks = word(m.n.div_ceil(PANEL).div_ceil(WARPS));
        let mut shared = 0;
        if self.staged && m.form == WeightType::Bf16 {
            let kernels = STAGED.iter().find(|t| t.0 <= most.max(1));
            let (rows, step, kernel) = kernels.unwrap_or(&STAGED[2]);
            (together, name) = (*rows, *kernel);
            blocks = word(m.n.div_ceil(PANEL));
            shared = word(staged_bytes(*rows, *step));
        }
        // There are only so many blocks in the second direction. A token's experts stay together.
        let taken = u64::from(a.wide / 2).max(1);
        let most = u64::from(self.device.most_blocks()[1]) * together;
        let step = (most / taken).max(1) * taken;
        let (x, y, routes) = (a.x, a.y, a.routes);
        for from in (0..rows).step_by(elements(step)) {
            let count = (rows - from).min(step);
            // The first of these rows, in y.
            let first = from * u64::from(a.step);
            a.rows = word(count);
            a.x = x + first / u64::from(a.share) * u64::from(a.x_stride) * 4;
            a.y = y + first * m.n * 4;
            if routes != 0 {
                a.routes = routes + from / taken * u64::from(a.wide) * 4;
            }
            let how = Launch {
                grid: [blocks, word(count.div_ceil(together)), word(groups)],
                threads: 32 * word(WARPS),
                shared,
            };
            self.launch(name, how, a.bytes())?;
        }
        Ok(())
    }

    /// The same on tensor cores.
    fn linear_mma(&mut self, m: &Matrices, a: args::Linear) -> Result<(), BackendError> {
        let rows = u64::from(a.rows);
        // Rows that share a matrix: of those for experts nobody knows yet how many.
        let (together, matrices) = if a.routes == 0 {
            (rows, m.count)
        } else {
            (rows.div_ceil(m.count), m.count)
        };
        let tile = TileMma::of(together, m.n, matrices);
        let how = Launch {
            grid: [
                word(together.div_ceil(tile.rows)),
                word(m.n.div_ceil(tile.outputs)),
                word(matrices),
            ],
            threads: tile.threads,
            shared: word(tile.shared(m.form)),
        };
        self.launch(tile.names[form(m.form) as usize], how, a.bytes())
    }
}
