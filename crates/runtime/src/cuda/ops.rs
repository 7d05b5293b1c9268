//! The program's operations, each one or two kernels.

use std::ops::Range;

use plimsoll_cuda::{Launch, args};
use plimsoll_program::{
    ATTENTION_PART, ActivationKind, AttentionOp, BufferId, ConvolveOp, GroupKind, LatentOp,
    NormKind, Op, ROW_WORDS, Rows, ScanOp, WeightId, WeightLayout, part_words,
};
use plimsoll_schedule::Row;
use plimsoll_units::{Bytes, DType, WeightType};

use super::{Cuda, elements, word};
use crate::backend::BackendError;

/// Threads of a block that treats a row.
const THREADS: u32 = 128;
/// Warps of a block of a linear layer: each has a panel.
const WARPS: u64 = 4;
/// Output rows of a panel.
const PANEL: u64 = 32;
/// Rows of x that a warp passes together, the most first, and what its kernel is called after.
const TOGETHER: [(u64, [&str; 3]); 3] = [
    (8, ["linear_bf16_8", "linear_int8_8", "linear_int4_8"]),
    (4, ["linear_bf16_4", "linear_int8_4", "linear_int4_4"]),
    (1, ["linear_bf16_1", "linear_int8_1", "linear_int4_1"]),
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
            "linear_mma_int8_16",
            "linear_mma_int4_16",
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
            "linear_mma_int8_64",
            "linear_mma_int4_64",
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
            "linear_mma_int8_128",
            "linear_mma_int4_128",
        ],
    },
];
/// Blocks that keep a large GPU busy.
const BUSY: u64 = 256;
/// Rows of attention on tensor cores: tokens with a head each.
const QUERIES: u64 = 64;
/// Keys that attention multiplies side by side, tiles of them, and lanes of a tile (`attention.cu`).
const CHUNK: u64 = 128;
const TILES: u64 = 8;
const LANES: u64 = 16;
/// Blocks in the first direction and in the others at most.
const BLOCKS: [u64; 2] = [(1 << 31) - 1, 65_535];

const fn form(weights: WeightType) -> u32 {
    match weights {
        WeightType::Bf16 => 0,
        WeightType::Int8 => 1,
        WeightType::Int4 => 2,
    }
}

const fn function(kind: ActivationKind) -> u32 {
    match kind {
        ActivationKind::Silu => 0,
        ActivationKind::GeluTanh => 1,
        ActivationKind::Gelu => 2,
        ActivationKind::Relu => 3,
        ActivationKind::Sigmoid => 4,
    }
}

/// The kernel for a type of cached elements.
fn of_type(dtype: DType, names: [&'static str; 4]) -> &'static str {
    match dtype {
        DType::F32 => names[0],
        DType::F16 => names[2],
        DType::I8 => names[3],
        _ => names[1],
    }
}

/// How many tokens, sequences and wanted rows an operation has.
#[derive(Clone, Copy)]
struct Step {
    tokens: u64,
    rows: u64,
    outputs: u64,
}

/// Matrices of an operation, one after the other in the arena.
struct Matrices {
    words: u64,
    form: WeightType,
    n: u64,
    k: u64,
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
    names: [&'static str; 3],
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
            WeightType::Int8 => self.step.div_ceil(128) + self.step / 4,
            WeightType::Int4 => self.step.div_ceil(64) + self.step / 8,
        };
        4 * (self.stages * lines * self.outputs + 2 * self.rows * (self.step / 2 + 4))
    }
}

impl Cuda {
    /// Carries some operations out.
    pub(super) fn walk(
        &mut self,
        tokens: u64,
        rows: u64,
        outputs: u64,
        ops: Range<usize>,
    ) -> Result<(), BackendError> {
        let step = Step {
            tokens,
            rows,
            outputs,
        };
        for i in ops {
            // The program stays as it is; operations are small next to what they start.
            let op = self.program.ops[i].clone();
            self.allowed.iter_mut().for_each(Vec::clear);
            self.op(step, i, &op)?;
        }
        Ok(())
    }

    /// Whether a row's table has all pages that its tokens see.
    pub(super) fn covers(
        &self,
        group: usize,
        row: &Row,
        table: &[u32],
    ) -> Result<(), BackendError> {
        let of = &self.program.geometry.groups[group];
        let end = u64::from(row.start) + u64::from(row.tokens.end - row.tokens.start);
        let needed = match of.kind {
            GroupKind::State => of.state_pages,
            _ => end.div_ceil(of.slots.max(1)),
        };
        if table.len() as u64 >= needed {
            return Ok(());
        }
        Err(BackendError::Step(format!(
            "a table of {} pages, where tokens see {needed}",
            table.len()
        )))
    }

    fn rows(&self, id: BufferId, step: Step) -> u64 {
        match self.program.buffer(id).rows {
            Rows::Tokens => step.tokens,
            Rows::Routes(experts) => step.tokens * experts,
            Rows::Outputs => step.outputs,
        }
    }

    fn width(&self, id: BufferId) -> u32 {
        word(self.program.buffer(id).width)
    }

    /// Where a buffer lies, `rows` of whose rows are used.
    fn buffer(&mut self, id: BufferId, step: Step) -> u64 {
        let rows = self.rows(id, step);
        let b = self.program.buffer(id);
        let (offset, bytes) = (
            b.offset.get(),
            rows.saturating_mul(b.width).saturating_mul(4),
        );
        self.activations
            .mark(Bytes::new(offset.saturating_add(bytes)));
        let at = self.activations.at.plus(offset);
        self.allow(at, bytes);
        at.0
    }

    fn weight(&mut self, id: WeightId) -> u64 {
        let w = self.program.weight(id);
        let at = self.weights.at.plus(w.offset.get());
        // Whether it is 64 bits long was seen when the program was lowered.
        let bytes = w.layout.bytes().map_or(0, Bytes::get);
        self.allow(at, bytes);
        at.0
    }

    fn vector(&mut self, id: Option<WeightId>) -> u64 {
        id.map_or(0, |id| self.weight(id))
    }

    /// Where a list of `len` words lies that begins at word `from`.
    pub(super) fn told(&mut self, from: u64, len: u64) -> u64 {
        let at = self.inputs.at.plus(4 * from);
        self.allow(at, 4 * len);
        at.0
    }

    /// The rows of a group of layers, and all tables.
    fn seqs(&mut self, group: u64, step: Step) -> [u64; 2] {
        let seqs = self.told(self.lists.rows[elements(group)], ROW_WORDS * step.rows);
        if self.allowed.is_some() {
            let seen = std::mem::take(&mut self.lists.seen[elements(group)]);
            for at in &seen.tables {
                self.told(self.lists.tables + at.start, at.end - at.start);
            }
            self.lists.seen[elements(group)] = seen;
        }
        [seqs, self.inputs.at.plus(4 * self.lists.tables).0]
    }

    /// The pages, `part` of each of which is a layer's.
    fn pages(&mut self, group: u64, part: Range<u64>) -> u64 {
        if self.allowed.is_some() {
            let seen = std::mem::take(&mut self.lists.seen[elements(group)]);
            for &page in &seen.pages {
                let at = self.pages.at.plus(self.page(page) + part.start);
                self.allow(at, part.end - part.start);
            }
            self.lists.seen[elements(group)] = seen;
        }
        self.pages.at.0
    }

    /// The part of a page that one layer of a group has.
    fn layer(&self, group: u64, index: u64) -> Range<u64> {
        let of = &self.program.geometry.groups[elements(group)];
        let bytes = of.rate.get() * of.slots;
        index * bytes..(index + 1) * bytes
    }

    fn matrices(&mut self, all: &[WeightId]) -> Result<Matrices, BackendError> {
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

    fn launch(
        &mut self,
        kernel: &'static str,
        how: Launch,
        args: &[u8],
    ) -> Result<(), BackendError> {
        if how.grid.contains(&0) {
            return Ok(());
        }
        let [first, other] = BLOCKS;
        if u64::from(how.grid[0]) > first || how.grid[1..].iter().any(|n| u64::from(*n) > other) {
            return Err(BackendError::Step(format!("{kernel}: too many blocks")));
        }
        self.start(kernel, how, args)
    }

    /// A block for each row.
    fn each(&mut self, kernel: &'static str, rows: u64, args: &[u8]) -> Result<(), BackendError> {
        self.launch(kernel, Launch::blocks(word(rows), THREADS), args)
    }

    /// `y = x W^T` for rows of x; `scratch` is where they are quantised, `a` what else is known of them.
    fn linear(
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
        if m.form != WeightType::Bf16 {
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
            shared = word(4 * STAGES * (step / 2 * PANEL + rows * step));
        }
        // There are only so many blocks in the second direction.
        let step = BLOCKS[1] * together;
        if rows > step && (groups > 1 || a.routes != 0) {
            return Err(BackendError::Step(
                "too many rows for one kernel".to_owned(),
            ));
        }
        let [x, y] = [a.x, a.y];
        for from in (0..rows).step_by(elements(step)) {
            let count = (rows - from).min(step);
            a.rows = word(count);
            a.x = x + from * u64::from(a.x_stride) * 4;
            a.y = y + from * m.n * 4;
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

    #[allow(clippy::too_many_lines, reason = "one arm for each operation")]
    fn op(&mut self, step: Step, number: usize, op: &Op) -> Result<(), BackendError> {
        let scratch = self.program.scratch[number];
        match *op {
            Op::Embed {
                table, out, scale, ..
            } => {
                let m = self.matrices(&[table])?;
                let a = args::Embed {
                    words: m.words,
                    tokens: self.told(self.lists.tokens, step.tokens),
                    out: self.buffer(out, step),
                    form: form(m.form),
                    k: word(m.k),
                    width: self.width(out),
                    scale,
                };
                self.each("embed", step.tokens, a.bytes())
            }
            Op::AddPosition { table, x, offset } => {
                let m = self.matrices(&[table])?;
                let a = args::AddPosition {
                    words: m.words,
                    positions: self.told(self.lists.positions, step.tokens),
                    x: self.buffer(x, step),
                    form: form(m.form),
                    k: word(m.k),
                    width: self.width(x),
                    offset: word(offset),
                };
                self.each("add_position", step.tokens, a.bytes())
            }
            Op::Rotary(ref table) => {
                let pairs = table.frequencies.len() as u64;
                let a = args::Rotary {
                    positions: self.told(self.lists.positions, step.tokens),
                    frequencies: self.told(self.constants[number], pairs),
                    divisors: self.vector(table.divisors),
                    out: self.buffer(table.out, step),
                    pairs: word(pairs),
                    scale: table.scale,
                };
                self.each("rotary", step.tokens, a.bytes())
            }
            Op::Norm {
                kind,
                weight,
                bias,
                x,
                out,
                from,
                heads,
                head,
            } => {
                let (layer, eps) = match kind {
                    NormKind::Rms { eps } => (0, eps),
                    NormKind::Layer { eps } => (1, eps),
                };
                let a = args::Norm {
                    x: self.buffer(x, step),
                    out: self.buffer(out, step),
                    weight: self.vector(weight),
                    bias: self.vector(bias),
                    width: self.width(out),
                    from: word(from),
                    heads: word(heads),
                    head: word(head),
                    layer,
                    eps,
                };
                let rows = self.rows(out, step).saturating_mul(heads);
                self.each("norm", rows, a.bytes())
            }
            Op::Linear {
                weight,
                bias,
                x,
                out,
                add,
            } => {
                let m = self.matrices(&[weight])?;
                let rows = self.rows(out, step);
                let a = args::Linear {
                    x: self.buffer(x, step),
                    y: self.buffer(out, step),
                    bias: self.vector(bias),
                    rows: word(rows),
                    step: 1,
                    share: 1,
                    start: match (add, bias) {
                        (true, _) => 2,
                        (false, Some(_)) => 1,
                        (false, None) => 0,
                    },
                    ..args::Linear::default()
                };
                let scratch = scratch.map_or(0, |b| self.buffer(b, step));
                self.linear(&m, a, rows, scratch, 1)
            }
            Op::Heads {
                ref weights,
                x,
                out,
            } => {
                let m = self.matrices(weights)?;
                let a = args::Linear {
                    x: self.buffer(x, step),
                    y: self.buffer(out, step),
                    rows: word(self.rows(out, step)),
                    step: word(weights.len() as u64),
                    share: 1,
                    ..args::Linear::default()
                };
                self.linear(&m, a, 0, 0, weights.len() as u64)
            }
            Op::Experts {
                ref weights,
                biases,
                routes,
                x,
                out,
            } => {
                let m = self.matrices(weights)?;
                let (rows, x_rows) = (self.rows(out, step), self.rows(x, step));
                let a = args::Linear {
                    x: self.buffer(x, step),
                    y: self.buffer(out, step),
                    bias: self.vector(biases),
                    routes: self.buffer(routes, step),
                    rows: word(rows),
                    step: 1,
                    share: word(rows / x_rows.max(1)),
                    wide: self.width(routes),
                    start: u32::from(biases.is_some()),
                    ..args::Linear::default()
                };
                let scratch = scratch.map_or(0, |b| self.buffer(b, step));
                self.linear(&m, a, x_rows, scratch, 1)
            }
            Op::Rotate {
                table,
                x,
                from,
                heads,
                head,
                interleaved,
            } => {
                let a = args::Rotate {
                    table: self.buffer(table, step),
                    x: self.buffer(x, step),
                    width: self.width(x),
                    from: word(from),
                    heads: word(heads),
                    head: word(head),
                    pairs: self.width(table) / 2,
                    interleaved: interleaved.into(),
                };
                let rows = self.rows(x, step);
                self.each("rotate", rows, a.bytes())
            }
            Op::Activate {
                kind,
                x,
                out,
                gated,
            } => {
                let (gate, width) = (self.buffer(x, step), self.width(out));
                let a = args::Activate {
                    gate,
                    up: if gated {
                        gate + 4 * u64::from(width)
                    } else {
                        0
                    },
                    out: self.buffer(out, step),
                    gate_stride: self.width(x),
                    up_stride: self.width(x),
                    width,
                    kind: function(kind),
                };
                let rows = self.rows(out, step);
                self.each("activate", rows, a.bytes())
            }
            Op::Gate {
                kind,
                gate,
                from,
                x,
                out,
            } => {
                let width = self.width(out);
                let a = args::Activate {
                    gate: self.buffer(gate, step) + 4 * from,
                    up: self.buffer(x, step),
                    out: self.buffer(out, step),
                    gate_stride: self.width(gate),
                    up_stride: width,
                    width,
                    kind: function(kind),
                };
                let rows = self.rows(out, step);
                self.each("activate", rows, a.bytes())
            }
            Op::ClampedSwiglu {
                x,
                out,
                limit,
                alpha,
            } => {
                let a = args::ClampedSwiglu {
                    x: self.buffer(x, step),
                    out: self.buffer(out, step),
                    width: self.width(out),
                    limit,
                    alpha,
                    none: 0,
                };
                let rows = self.rows(out, step);
                self.each("clamped_swiglu", rows, a.bytes())
            }
            Op::Add { x, out, scale } => {
                let len = self.rows(out, step) * u64::from(self.width(out));
                let a = args::Add {
                    x: self.buffer(x, step),
                    out: self.buffer(out, step),
                    len,
                    scale,
                    none: 0,
                };
                self.each("add", len.div_ceil(THREADS.into()), a.bytes())
            }
            Op::Cap { x, cap, scale } => {
                let len = self.rows(x, step) * u64::from(self.width(x));
                let a = args::Cap {
                    x: self.buffer(x, step),
                    len,
                    cap: cap.unwrap_or(0.0),
                    scale,
                    capped: cap.is_some().into(),
                    none: 0,
                };
                self.each("cap", len.div_ceil(THREADS.into()), a.bytes())
            }
            Op::AddWeighted {
                x,
                weights,
                from,
                out,
                scale,
                ..
            } => {
                let wide = self.width(weights);
                let a = args::AddWeighted {
                    x: self.buffer(x, step),
                    weights: self.buffer(weights, step),
                    out: self.buffer(out, step),
                    width: self.width(out),
                    wide,
                    from: word(from),
                    count: wide - word(from),
                    scale,
                    none: 0,
                };
                let rows = self.rows(out, step);
                self.each("add_weighted", rows, a.bytes())
            }
            // Only programs of one rank are taken.
            Op::AllReduce { .. } | Op::AllGather { .. } => Err(BackendError::Step(
                "GPUs do not meet other ranks yet".to_owned(),
            )),
            Op::Gather { x, out } => {
                let a = args::Gather {
                    x: self.buffer(x, step),
                    wanted: self.told(self.lists.wanted, step.outputs),
                    out: self.buffer(out, step),
                    width: self.width(out),
                    none: 0,
                };
                self.each("gather", step.outputs, a.bytes())
            }
            Op::Route {
                logits,
                out,
                renormalise,
                sigmoid,
                bias,
                groups,
            } => {
                let experts = self.width(logits);
                let groups = groups.map_or([0; 3], |g| [g.count, g.taken, g.best].map(word));
                let a = args::Route {
                    logits: self.buffer(logits, step),
                    bias: self.vector(bias),
                    out: self.buffer(out, step),
                    experts,
                    taken: self.width(out) / 2,
                    renormalise: renormalise.into(),
                    sigmoid: sigmoid.into(),
                    groups: groups[0],
                    groups_taken: groups[1],
                    best: groups[2],
                    none: 0,
                };
                let how = Launch {
                    shared: 4 * (2 * experts + groups[0]),
                    ..Launch::blocks(word(self.rows(out, step)), THREADS)
                };
                self.launch("route", how, a.bytes())
            }
            Op::Steps {
                x,
                from,
                bias,
                decay,
                limits,
                out,
            } => {
                let a = args::Steps {
                    x: self.buffer(x, step),
                    bias: self.weight(bias),
                    decay: self.weight(decay),
                    out: self.buffer(out, step),
                    wide: self.width(x),
                    from: word(from),
                    heads: self.width(out) / 2,
                    least: limits[0],
                    most: limits[1],
                    none: 0,
                };
                let rows = self.rows(out, step);
                self.each("steps", rows, a.bytes())
            }
            Op::Attention(ref a) => self.attention(step, a),
            Op::Latent(ref a) => self.latent(step, a),
            Op::Convolve(ref c) => self.convolve(step, c),
            Op::Scan(ref s) => self.scan(step, s),
        }
    }

    fn attention(&mut self, step: Step, a: &AttentionOp) -> Result<(), BackendError> {
        let group = self.program.geometry.groups[elements(a.group)].clone();
        let dtype = self.program.kv_dtype;
        let each = element_bytes(dtype);
        let strides = [a.q, a.k, a.v].map(|b| self.width(b));
        let at = [(a.q, a.at[0]), (a.k, a.at[1]), (a.v, a.at[2])];
        let [q, k, v] = at.map(|(b, from)| self.buffer(b, step) + 4 * from);
        let (reach, reach_of) = match group.kind {
            GroupKind::Window(n) => (1, word(n)),
            GroupKind::Chunk(n) => (2, word(n)),
            _ => (0, 0),
        };
        let part = self.layer(a.group, a.index);
        let [seqs, tables] = self.seqs(a.group, step);
        let kv = args::Kv {
            pages: self.pages(a.group, part.clone()),
            seqs,
            of: self.told(self.lists.of, step.tokens),
            tables,
            q,
            k,
            v,
            out: self.buffer(a.out, step),
            sinks: self.vector(a.sinks),
            page: self.program.geometry.page.get() / each,
            layer: part.start / each,
            slots: word(group.slots),
            q_heads: word(a.q_heads),
            kv_heads: word(a.kv_heads),
            k_dim: word(a.k_dim),
            v_dim: word(a.v_dim),
            q_stride: strides[0],
            k_stride: strides[1],
            v_stride: strides[2],
            reach,
            reach_of,
            capped: a.softcap.is_some().into(),
            scale: a.scale,
            cap: a.softcap.unwrap_or(0.0),
            ..args::Kv::default()
        };
        let write = [
            "write_kv_f32",
            "write_kv_bf16",
            "write_kv_f16",
            "write_kv_int8",
        ];
        self.each(of_type(dtype, write), step.tokens, kv.bytes())?;
        if let Some(names) = self.attend_mma(a) {
            return self.attend_fast(step, a, kv, names);
        }
        let queries = a.q_heads / a.kv_heads.max(1);
        let floats = queries * (a.k_dim + a.v_dim + CHUNK + 1 + LANES + TILES) + CHUNK;
        let how = Launch {
            grid: [word(step.tokens), word(a.kv_heads), 1],
            threads: THREADS,
            shared: word(4 * floats),
        };
        let attend = ["attend_f32", "attend_bf16", "attend_f16", "attend_int8"];
        self.launch(of_type(dtype, attend), how, kv.bytes())
    }

    /// The kernel of attention on tensor cores for such heads: with it keys of a tile, tiles at once.
    fn attend_mma(&self, a: &AttentionOp) -> Option<(&'static str, u64, u64)> {
        let half = match self.program.kv_dtype {
            _ if !self.fast => return None,
            DType::Bf16 => 0,
            DType::F16 => 1,
            _ => return None,
        };
        let (names, keys, tiles) = match a.k_dim.max(a.v_dim) {
            0..=64 => (["attend_mma_bf16_64", "attend_mma_f16_64"], 64, 2),
            65..=128 => (["attend_mma_bf16_128", "attend_mma_f16_128"], 64, 2),
            129..=256 => (["attend_mma_bf16_256", "attend_mma_f16_256"], 32, 1),
            _ => return None,
        };
        Some((names[half], keys, tiles))
    }

    fn attend_fast(
        &mut self,
        step: Step,
        a: &AttentionOp,
        mut kv: args::Kv,
        (name, keys, tiles): (&'static str, u64, u64),
    ) -> Result<(), BackendError> {
        let [k_dim, v_dim] = [a.k_dim, a.v_dim].map(|d| d.next_multiple_of(16));
        let halves = QUERIES * (k_dim + 8) + tiles * (k_dim * (keys + 8) + keys * (v_dim + 8));
        // Long sequences of few tokens are treated in parts, so that enough blocks run: as far as there is room for them.
        let parts = self.lists.longest.div_ceil(ATTENTION_PART).max(1);
        let words = step
            .tokens
            .saturating_mul(parts)
            .saturating_mul(part_words(a));
        let apart = parts > 1
            && step.tokens.saturating_mul(a.kv_heads) < BUSY
            && words <= self.sizes.partials;
        kv.split = word(ATTENTION_PART);
        kv.splits = word(parts);
        if apart {
            let s = self.sizes;
            let from = s.constants + s.tokens + s.rows + s.tables + s.wanted + s.copies;
            self.inputs.mark(Bytes::new(4 * (from + words)));
            kv.partials = self.told(from, words);
        }
        let how = Launch {
            grid: [
                word(step.tokens),
                word(a.kv_heads),
                if apart { kv.splits } else { 1 },
            ],
            threads: THREADS,
            shared: word(2 * halves),
        };
        self.launch(name, how, kv.bytes())?;
        if !apart {
            return Ok(());
        }
        let how = Launch {
            grid: [word(step.tokens), word(a.q_heads), 1],
            threads: THREADS,
            shared: 0,
        };
        self.launch("combine", how, kv.bytes())
    }

    fn latent(&mut self, step: Step, a: &LatentOp) -> Result<(), BackendError> {
        let group = self.program.geometry.groups[elements(a.group)].clone();
        let dtype = self.program.kv_dtype;
        let each = element_bytes(dtype);
        let part = self.layer(a.group, a.index);
        let [seqs, tables] = self.seqs(a.group, step);
        let latents = args::Latents {
            pages: self.pages(a.group, part.clone()),
            seqs,
            of: self.told(self.lists.of, step.tokens),
            tables,
            q: self.buffer(a.q, step),
            q_rope: self.buffer(a.q_rope, step),
            latent: self.buffer(a.latent, step),
            out: self.buffer(a.out, step),
            page: self.program.geometry.page.get() / each,
            layer: part.start / each,
            slots: word(group.slots),
            k_dim: word(a.rank + a.rope_dim),
            v_dim: word(a.rank),
            q_stride: self.width(a.q),
            rope_stride: self.width(a.q_rope),
            latent_stride: self.width(a.latent),
            out_stride: self.width(a.out),
            scale: a.scale,
        };
        let none = "latents have no scales";
        let write = [
            "write_latents_f32",
            "write_latents_bf16",
            "write_latents_f16",
            none,
        ];
        self.each(of_type(dtype, write), step.tokens, latents.bytes())?;
        let how = Launch {
            grid: [word(step.tokens), word(a.heads), 1],
            threads: THREADS,
            shared: word(4 * (2 * a.rank + a.rope_dim + 1)),
        };
        let attend = [
            "attend_latents_f32",
            "attend_latents_bf16",
            "attend_latents_f16",
            none,
        ];
        self.launch(of_type(dtype, attend), how, latents.bytes())
    }

    fn convolve(&mut self, step: Step, c: &ConvolveOp) -> Result<(), BackendError> {
        let channels = self.width(c.out);
        let [seqs, tables] = self.seqs(c.state.group, step);
        let a = args::Convolve {
            pages: self.pages(c.state.group, 0..self.program.geometry.page.get()),
            seqs,
            tables,
            x: self.buffer(c.x, step),
            weight: self.weight(c.weight),
            bias: self.vector(c.bias),
            out: self.buffer(c.out, step),
            from: c.state.from,
            page: word(self.program.geometry.page.get() / 4),
            channels,
            taps: word(c.taps),
            stride: self.width(c.x),
            x_from: word(c.from),
            none: 0,
        };
        let how = Launch {
            grid: [channels.div_ceil(THREADS), word(step.rows), 1],
            threads: THREADS,
            shared: 0,
        };
        self.launch("convolve", how, a.bytes())
    }

    fn scan(&mut self, step: Step, s: &ScanOp) -> Result<(), BackendError> {
        let [seqs, tables] = self.seqs(s.state.group, step);
        let a = args::Scan {
            pages: self.pages(s.state.group, 0..self.program.geometry.page.get()),
            seqs,
            tables,
            x: self.buffer(s.x, step),
            steps: self.buffer(s.steps, step),
            skip: self.weight(s.skip),
            out: self.buffer(s.out, step),
            from: s.state.from,
            page: word(self.program.geometry.page.get() / 4),
            heads: word(s.heads),
            rows: word(s.rows),
            cols: word(s.cols),
            groups: word(s.groups),
            x_stride: self.width(s.x),
        };
        let how = Launch {
            grid: [
                word((s.heads * s.rows).div_ceil(THREADS.into())),
                word(step.rows),
                1,
            ],
            threads: THREADS,
            shared: 0,
        };
        self.launch("scan", how, a.bytes())
    }

    /// What steps do before any was seen: bounds are measured by the warm-up.
    pub(super) fn measured(&mut self) -> Result<crate::backend::Measured, BackendError> {
        super::weights::measured(self)
    }
}

/// Bytes of a cached element; others than these are refused at the start.
const fn element_bytes(dtype: DType) -> u64 {
    match dtype {
        DType::F32 => 4,
        DType::I8 => 1,
        _ => 2,
    }
}
