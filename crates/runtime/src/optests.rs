//! Every operation of a program on one backend and on another, to the bit: small programs of odd shapes, with weights,
//! inputs and scattered pages that a seed makes. `plimsoll doctor --gpu` runs them on whatever GPU a machine has.

use std::ops::Range;

use plimsoll_cuda::Device;
use plimsoll_kernels::{Inputs, Level, PANEL, Pool, bf16_from_f32, pack_row, quantise_row};
use plimsoll_kv::{BlockCopy, Delta, DeltaOp, SwapOp};
use plimsoll_model::Role;
use plimsoll_plan::Region;
use plimsoll_program::{
    ActivationKind, AttentionOp, Buffer, BufferId, ConvolveOp, ExpertGroups, Group, GroupKind,
    LatentOp, NormKind, Op, PoolGeometry, Program, Rank, RotaryTable, Rows, ScanOp, StatePlace,
    StepInputs, Weight, WeightId, WeightLayout,
};
use plimsoll_schedule::{Output, RequestId, Row, SeqEvent, Step, Tables};
use plimsoll_units::{BlockId, Bytes, DType, SeqId, WeightType};

use crate::arena::Arena;
use crate::backend::{BackendError, Inside};
use crate::cpu::{Cpu, Memory, StartError};
use crate::cuda::{Cuda, DeviceSizes};

/// T and R of the programs.
const TOKENS: u64 = 150;
const OUTPUTS: u64 = 4;
const VOCAB: u64 = 61;
/// The longest sequence.
const CONTEXT: u64 = 160;
/// Layers of each group, each of which an operation of its own uses.
const LAYERS: u64 = 4;
/// Tokens of each sequence in each step: a prompt that passes many tiles, prompts beside it, one token, a few of all.
const STEPS: [[u64; 3]; 4] = [[140, 0, 0], [9, 13, 1], [0, 1, 0], [1, 1, 3]];
/// Keys and values are kept in these types.
const CACHES: [DType; 4] = [DType::F32, DType::Bf16, DType::F16, DType::I8];

/// What each operation is called, in the order of a program's.
const NAMES: [&str; 24] = [
    "embed",
    "add position",
    "rotary table",
    "norm",
    "linear",
    "rotate",
    "attention",
    "latent attention",
    "heads",
    "activate",
    "clamped swiglu",
    "gate",
    "convolve",
    "steps",
    "scan",
    "add",
    "route",
    "experts",
    "add weighted",
    "gather",
    "cap",
    "logits",
    "copy pages",
    "swap pages",
];

const fn name(op: &Op) -> &'static str {
    NAMES[match op {
        Op::Embed { .. } => 0,
        Op::AddPosition { .. } => 1,
        Op::Rotary(_) => 2,
        Op::Norm { .. } => 3,
        Op::Linear { .. } => 4,
        Op::Rotate { .. } => 5,
        Op::Attention(_) => 6,
        Op::Latent(_) => 7,
        Op::Heads { .. } => 8,
        Op::Activate { .. } => 9,
        Op::ClampedSwiglu { .. } => 10,
        Op::Gate { .. } => 11,
        Op::Convolve(_) => 12,
        Op::Steps { .. } => 13,
        Op::Scan(_) => 14,
        Op::Add { .. } => 15,
        Op::Route { .. } => 16,
        Op::Experts { .. } => 17,
        Op::AddWeighted { .. } => 18,
        Op::Gather { .. } => 19,
        Op::Cap { .. } => 20,
        // Of no backend alone.
        Op::AllReduce { .. } | Op::AllGather { .. } => return "of all ranks",
    }]
}

/// What is no operation of a program and yet carried out: logits that come to the host, and pages that move.
const LOGITS: &str = NAMES[21];
const COPY: &str = NAMES[22];
const SWAP: &str = NAMES[23];

/// How the cases of one operation came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The operation.
    pub op: &'static str,
    /// Its cases, each over several steps.
    pub cases: u32,
    /// Elements that were compared.
    pub elements: u64,
    /// What differs, or failed: the case, and where.
    pub wrong: Vec<String>,
}

/// What a backend is made for.
#[derive(Debug)]
pub struct Made {
    /// The program.
    pub program: Program,
    /// Pages, the null page among them.
    pub pages: Bytes,
    /// Places in swap space.
    pub swap: Bytes,
    /// The longest sequence.
    pub context: u64,
}

/// Some operations that are carried out one after the other, of which the last is the case's.
struct Case {
    op: &'static str,
    how: String,
    ops: Range<usize>,
    buffers: Range<u16>,
    paged: bool,
}

/// What is made, on this machine's processors: what others are compared with.
///
/// # Errors
/// [`StartError`].
pub fn on_processors(made: Made) -> Result<Cpu, StartError> {
    let memory = Memory {
        weights: Arena::new("weights", made.program.weight_bytes)?,
        pages: Arena::new("KV pages", made.pages)?,
        swap: Arena::new("swap space", made.swap)?.into(),
        activations: Arena::new("activations", made.program.activation_bytes)?,
    };
    Cpu::new(made.program, memory, Level::detect(), Inputs::F32)
}

/// What is made, on a device.
///
/// # Errors
/// [`StartError`].
pub fn on_device(device: Box<dyn Device>, made: Made) -> Result<Cuda, StartError> {
    let sizes = DeviceSizes {
        weights: made.program.weight_bytes,
        pages: made.pages,
        activations: made.program.activation_bytes,
        inputs: StepInputs::of(&made.program, made.context)?.bytes()?,
    };
    let swap = Arena::new("swap space", made.swap)?.into();
    let arithmetic = crate::cuda::Arithmetic::Exact;
    Cuda::new(device, made.program, sizes, swap, made.context, arithmetic)
}

/// Carries every operation out on what `made` and `oracle` make, and compares all that it wrote.
///
/// # Errors
/// Where one of them cannot be made, or is not the program's.
pub fn run<A: Inside, B: Inside>(
    pool: &mut Pool,
    mut oracle: impl FnMut(Made) -> Result<A, StartError>,
    mut made: impl FnMut(Made) -> Result<B, StartError>,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Outcome>, StartError> {
    let mut all: Vec<Outcome> = Vec::new();
    for kv in CACHES {
        let suite = Suite::new(kv);
        let mut both = Both {
            oracle: oracle(suite.made())?,
            other: made(suite.made())?,
            pool,
            suite: &suite,
            random: Random(7),
            outcomes: &mut all,
        };
        both.weights()?;
        both.steps(&mut progress)?;
        both.moves()?;
    }
    all.sort_by_key(|o| NAMES.iter().position(|n| *n == o.op));
    Ok(all)
}

/// A program of cases, its weights, and who has which page.
struct Suite {
    program: Program,
    words: Vec<u32>,
    cases: Vec<Case>,
    pages: u32,
    steps: Vec<Step>,
}

/// Numbers that a seed makes (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From −2 to 2, and now and then a number at which functions change their ways.
    fn number(&mut self) -> f32 {
        const SPECIAL: [f32; 6] = [0.0, -0.0, 1e-30, -25.0, 25.0, 3.9999];
        let x = self.next();
        #[allow(clippy::cast_precision_loss, reason = "24 bits")]
        let unit = (x >> 40) as f32 / (1 << 24) as f32;
        match SPECIAL.get((x % 64) as usize) {
            Some(special) => *special,
            None => 4.0 * unit - 2.0,
        }
    }

    /// From 0.5 to 1.5.
    fn gain(&mut self) -> f32 {
        #[allow(clippy::cast_precision_loss, reason = "24 bits")]
        let unit = (self.next() >> 40) as f32 / (1 << 24) as f32;
        unit + 0.5
    }
}

const FORMS: [WeightType; 3] = [WeightType::Bf16, WeightType::Int8, WeightType::Int4];

// Attention.
const Q_HEADS: u64 = 6;
const KV_HEADS: u64 = 2;
const K_DIM: u64 = 20;
const V_DIM: u64 = 12;
// Attention over latents.
const RANK: u64 = 40;
const ROPE: u64 = 12;
// A convolution, and a scan.
const CHANNELS: u64 = 37;
const TAPS: u64 = 4;
const HEADS: u64 = 4;
const ROWS: u64 = 19;
const COLS: u64 = 10;
const GROUPS: u64 = 2;

/// The program's sizes fit: they are written here.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn geometry(kv: DType) -> PoolGeometry {
    let each = kv.bytes(1).map_or(4, Bytes::get);
    let scales = if kv == DType::I8 { 8 } else { 0 };
    let heads = KV_HEADS * ((K_DIM + V_DIM) * each + scales);
    let latent = (RANK + ROPE) * each;
    let page = (heads * LAYERS * 5).next_multiple_of(16);
    let mut groups: Vec<Group> = Vec::new();
    let mut add = |kind, rate: u64| {
        groups.push(Group {
            kind,
            layers: LAYERS,
            rate: Bytes::new(rate),
            slots: page / (rate * LAYERS),
            state_pages: 0,
            padding: Bytes::ZERO,
        });
    };
    add(GroupKind::Full, heads);
    add(GroupKind::Window(21), heads);
    add(GroupKind::Chunk(32), heads);
    add(GroupKind::Latent, latent);
    let state = 4 * ((TAPS - 1) * CHANNELS + HEADS * ROWS * COLS);
    groups.push(Group {
        kind: GroupKind::State,
        layers: 1,
        rate: Bytes::new(state),
        slots: 0,
        state_pages: state.div_ceil(page),
        padding: Bytes::ZERO,
    });
    PoolGeometry {
        page: Bytes::new(page),
        groups,
    }
}

impl Suite {
    fn new(kv: DType) -> Self {
        let mut making = Making {
            program: Program {
                ops: Vec::new(),
                scratch: Vec::new(),
                buffers: Vec::new(),
                activation_bytes: Bytes::ZERO,
                weights: Vec::new(),
                weight_bytes: Bytes::ZERO,
                logits: BufferId(0),
                geometry: geometry(kv),
                kv_dtype: kv,
                vocab: VOCAB,
                tokens: TOKENS,
                outputs: OUTPUTS,
                rank: Rank::ALONE,
            },
            words: Vec::new(),
            cases: Vec::new(),
            random: Random(1),
            offset: 0,
        };
        // The buffer of logits is the first.
        making.tokens();
        if kv == CACHES[0] {
            making.rows();
            making.products();
            making.experts();
            making.states();
        }
        making.attention(kv);
        let Making {
            program,
            words,
            cases,
            mut random,
            ..
        } = making;
        let (steps, pages) = steps(&program, &mut random);
        Self {
            program,
            words,
            cases,
            pages,
            steps,
        }
    }

    fn made(&self) -> Made {
        let page = self.program.geometry.page.get();
        Made {
            program: self.program.clone(),
            pages: Bytes::new(page * u64::from(self.pages)),
            swap: Bytes::new(page * 4),
            context: CONTEXT,
        }
    }
}

/// Three sequences on scattered pages, and how many pages there are.
fn steps(program: &Program, random: &mut Random) -> (Vec<Step>, u32) {
    let groups = &program.geometry.groups;
    let blocks = |g: &Group| match g.kind {
        GroupKind::State => g.state_pages,
        _ => CONTEXT.div_ceil(g.slots),
    };
    // Two that nobody has, for copies.
    let pages = small(3 * groups.iter().map(blocks).sum::<u64>() + 3);
    let mut free: Vec<u32> = (1..pages - 2).collect();
    for i in (1..free.len()).rev() {
        free.swap(i, index(random.next() % (i as u64 + 1)));
    }
    let request = RequestId(0);
    let mut first = Step::default();
    for (seq, n) in (0..3).map(SeqId).zip(0..) {
        first.events.push((
            0,
            SeqEvent::Start {
                seq,
                request,
                index: n,
            },
        ));
        for (g, group) in groups.iter().enumerate() {
            for i in 0..small(blocks(group)) {
                let page = BlockId(free.pop().unwrap_or_default());
                first.kv.deltas.push(Delta {
                    seq,
                    group: u8::try_from(g).unwrap_or(u8::MAX),
                    op: DeltaOp::Append { index: i, page },
                });
            }
        }
    }
    let mut starts = [0; 3];
    let mut steps = Vec::new();
    for (number, counts) in (1..).zip(STEPS) {
        let mut step = std::mem::take(&mut first);
        step.number = number;
        for (i, (start, count)) in starts.iter_mut().zip(counts).enumerate() {
            if count == 0 {
                continue;
            }
            let from = small(step.tokens.len() as u64);
            let tokens = (0..count).map(|_| small(random.next() % VOCAB));
            step.tokens.extend(tokens);
            step.rows.push(Row {
                seq: SeqId(i as _),
                request,
                index: small(i as u64),
                start: *start,
                tokens: from..small(step.tokens.len() as u64),
                output: Output::Sample { draws: 1 },
            });
            *start += small(count);
        }
        steps.push(step);
    }
    (steps, pages)
}

struct Making {
    program: Program,
    words: Vec<u32>,
    cases: Vec<Case>,
    random: Random,
    /// Where the case's next buffer begins: those of different cases are never alive together.
    offset: u64,
}

impl Making {
    /// What the operations that `f` adds do together; the last one is what is looked at.
    fn case(&mut self, how: impl Into<String>, f: impl FnOnce(&mut Self)) {
        self.offset = 0;
        let (op, buffer) = (self.program.ops.len(), self.program.buffers.len());
        f(self);
        let ops = op..self.program.ops.len();
        let Some(last) = self.program.ops.last() else {
            return;
        };
        self.cases.push(Case {
            op: name(last),
            how: how.into(),
            ops,
            buffers: small(buffer as u64) as u16..small(self.program.buffers.len() as u64) as u16,
            paged: matches!(
                last,
                Op::Attention(_) | Op::Latent(_) | Op::Convolve(_) | Op::Scan(_)
            ),
        });
    }

    fn op(&mut self, op: Op) {
        self.op_in(op, None);
    }

    fn op_in(&mut self, op: Op, scratch: Option<BufferId>) {
        self.program.ops.push(op);
        self.program.scratch.push(scratch);
    }

    fn buffer(&mut self, rows: Rows, width: u64) -> BufferId {
        let id = BufferId(small(self.program.buffers.len() as u64) as u16);
        self.program.buffers.push(Buffer {
            name: "buffer",
            rows,
            width,
            offset: Bytes::new(self.offset),
        });
        let rows = rows.most([TOKENS, OUTPUTS]).unwrap_or(0);
        self.offset = (self.offset + 4 * rows * width).next_multiple_of(64);
        let all = &mut self.program.activation_bytes;
        *all = (*all).max(Bytes::new(self.offset));
        id
    }

    fn each(&mut self, width: u64) -> BufferId {
        self.buffer(Rows::Tokens, width)
    }

    fn weight(&mut self, layout: WeightLayout, words: Vec<u32>) -> WeightId {
        let id = WeightId(small(self.program.weights.len() as u64));
        self.program.weights.push(Weight {
            name: "weight".to_owned(),
            role: Role::Mlp,
            layout,
            sources: Vec::new(),
            padding: 0,
            offset: Bytes::new(4 * self.words.len() as u64),
        });
        self.words.extend(words);
        self.words.resize(self.words.len().next_multiple_of(16), 0);
        self.program.weight_bytes = Bytes::new(4 * self.words.len() as u64);
        id
    }

    fn vector(&mut self, n: u64) -> WeightId {
        let words = (0..n).map(|_| self.random.gain().to_bits()).collect();
        self.weight(WeightLayout::F32 { n }, words)
    }

    fn matrix(&mut self, form: WeightType, n: u64, k: u64) -> WeightId {
        let panel = index(form.row_words(k)) * PANEL;
        let mut words = vec![0; panel * index(n.div_ceil(PANEL as u64))];
        for row in 0..index(n) {
            let values: Vec<f32> = (0..k).map(|_| self.random.number() / 8.0).collect();
            match form {
                WeightType::Bf16 => {
                    let halves = values.iter().map(|x| bf16_from_f32(*x));
                    pack_row(&mut words, index(k), row, halves);
                }
                _ => {
                    let panel = &mut words[row / PANEL * panel..][..panel];
                    quantise_row(form, panel, row % PANEL, &values);
                }
            }
        }
        self.weight(WeightLayout::Packed { form, n, k }, words)
    }

    /// Where an operation quantises its input.
    fn scratch(&mut self, form: WeightType, rows: Rows, k: u64) -> Option<BufferId> {
        let words = form.input_words(k);
        (words > 0).then(|| self.buffer(rows, words))
    }

    /// What looks at tokens, positions and rows whose logits are wanted.
    fn tokens(&mut self) {
        self.case("rows of logits", |m| {
            let (out, x) = (m.buffer(Rows::Outputs, VOCAB), m.each(VOCAB));
            m.op(Op::Gather { x, out });
        });
        for form in FORMS {
            for scale in [1.0, 1.25] {
                self.case(format!("{form}, times {scale}"), |m| {
                    let (table, out) = (m.matrix(form, VOCAB, 77), m.each(77));
                    m.op(Op::Embed {
                        table,
                        from: 0,
                        out,
                        scale,
                    });
                });
            }
            self.case(form.to_string(), |m| {
                let (table, x) = (m.matrix(form, CONTEXT + 2, 77), m.each(77));
                m.op(Op::AddPosition {
                    table,
                    x,
                    offset: 2,
                });
            });
        }
        for divided in [false, true] {
            self.case(if divided { "divided" } else { "plain" }, |m| {
                let frequencies: Vec<f32> = (0..9_u8)
                    .map(|i| 10_000_f32.powf(-f32::from(i) / 9.0))
                    .collect();
                let divisors = divided.then(|| m.vector(9));
                let out = m.each(18);
                m.op(Op::Rotary(RotaryTable {
                    out,
                    frequencies,
                    divisors,
                    scale: 1.1,
                }));
            });
        }
    }

    /// What goes row by row.
    fn rows(&mut self) {
        let kinds = [NormKind::Rms { eps: 1e-5 }, NormKind::Layer { eps: 1e-6 }];
        for kind in kinds {
            for (weight, bias) in [(false, false), (true, false), (true, true)] {
                let what = match kind {
                    NormKind::Rms { .. } => "rms",
                    NormKind::Layer { .. } => "layer",
                };
                self.case(format!("{what}, gains {weight}, biases {bias}"), |m| {
                    let (x, out) = (m.each(77), m.each(77));
                    let weight = weight.then(|| m.vector(77));
                    let bias = bias.then(|| m.vector(77));
                    m.op(Op::Norm {
                        kind,
                        weight,
                        bias,
                        x,
                        out,
                        from: 0,
                        heads: 1,
                        head: 77,
                    });
                });
            }
            self.case("heads in place", |m| {
                let (x, weight) = (m.each(77), Some(m.vector(19)));
                m.op(Op::Norm {
                    kind,
                    weight,
                    bias: None,
                    x,
                    out: x,
                    from: 5,
                    heads: 3,
                    head: 19,
                });
            });
        }
        for interleaved in [false, true] {
            self.case(format!("interleaved {interleaved}"), |m| {
                let (table, x) = (m.each(14), m.each(77));
                m.op(Op::Rotate {
                    table,
                    x,
                    from: 3,
                    heads: 4,
                    head: 18,
                    interleaved,
                });
            });
        }
        for kind in [
            ActivationKind::Silu,
            ActivationKind::GeluTanh,
            ActivationKind::Gelu,
            ActivationKind::Relu,
            ActivationKind::Sigmoid,
        ] {
            for gated in [false, true] {
                self.case(format!("{kind:?}, gated {gated}"), |m| {
                    let (x, out) = (m.each(if gated { 154 } else { 77 }), m.each(77));
                    m.op(Op::Activate {
                        kind,
                        x,
                        out,
                        gated,
                    });
                });
            }
            self.case(format!("{kind:?}"), |m| {
                let (gate, x, out) = (m.each(85), m.each(77), m.each(77));
                m.op(Op::Gate {
                    kind,
                    gate,
                    from: 8,
                    x,
                    out,
                });
            });
        }
        self.case("of pairs", |m| {
            let (x, out) = (m.each(154), m.each(77));
            m.op(Op::ClampedSwiglu {
                x,
                out,
                limit: 1.5,
                alpha: 1.702,
            });
        });
        self.case("times 0.75", |m| {
            let (x, out) = (m.each(77), m.each(77));
            m.op(Op::Add {
                x,
                out,
                scale: 0.75,
            });
        });
        for cap in [None, Some(3.0)] {
            self.case(format!("{cap:?}"), |m| {
                let x = m.buffer(Rows::Outputs, VOCAB);
                m.op(Op::Cap { x, cap, scale: 0.5 });
            });
        }
    }

    fn products(&mut self) {
        for form in FORMS {
            for (n, k) in [(45, 77), (32, 256), (70, 130), (1, 1)] {
                for (bias, add) in [(false, false), (true, false), (false, true)] {
                    self.case(
                        format!("{form}, {n} x {k}, bias {bias}, added {add}"),
                        |m| {
                            let weight = m.matrix(form, n, k);
                            let bias = bias.then(|| m.vector(n));
                            let (x, out) = (m.each(k), m.each(n));
                            let scratch = m.scratch(form, Rows::Tokens, k);
                            let op = Op::Linear {
                                weight,
                                bias,
                                x,
                                out,
                                add,
                            };
                            m.op_in(op, scratch);
                        },
                    );
                }
            }
        }
        self.case("three of 21 x 35", |m| {
            let weights = (0..3).map(|_| m.matrix(WeightType::Bf16, 21, 35)).collect();
            let (x, out) = (m.each(3 * 35), m.each(3 * 21));
            m.op(Op::Heads { weights, x, out });
        });
    }

    fn route(&mut self, sigmoid: bool, renormalise: bool, limited: bool) -> BufferId {
        let (logits, out) = (self.each(12), self.each(2 * 3));
        let bias = limited.then(|| self.vector(12));
        let groups = limited.then_some(ExpertGroups {
            count: 4,
            taken: 2,
            best: 2,
        });
        self.op(Op::Route {
            logits,
            out,
            renormalise,
            sigmoid,
            bias,
            groups,
        });
        out
    }

    fn experts(&mut self) {
        for sigmoid in [false, true] {
            for renormalise in [false, true] {
                for limited in [false, true] {
                    let how =
                        format!("sigmoid {sigmoid}, shares {renormalise}, in groups {limited}");
                    self.case(how, |m| {
                        m.route(sigmoid, renormalise, limited);
                    });
                }
            }
        }
        let routed = Rows::Routes(3);
        for form in FORMS {
            for (biased, of) in [(false, Rows::Tokens), (true, Rows::Tokens), (true, routed)] {
                self.case(format!("{form}, biases {biased}, {of:?}"), |m| {
                    let routes = m.route(false, true, false);
                    let weights = (0..12).map(|_| m.matrix(form, 45, 77)).collect();
                    let biases = biased.then(|| m.vector(12 * 45));
                    let (x, out) = (m.buffer(of, 77), m.buffer(routed, 45));
                    let scratch = m.scratch(form, of, 77);
                    let op = Op::Experts {
                        weights,
                        biases,
                        routes,
                        x,
                        out,
                    };
                    m.op_in(op, scratch);
                });
            }
        }
        self.case("of three experts", |m| {
            let weights = m.route(true, true, false);
            let (x, out) = (m.buffer(routed, 77), m.each(77));
            m.op(Op::AddWeighted {
                x,
                weights,
                from: 3,
                out,
                scale: 1.5,
                add: true,
            });
        });
    }

    fn states(&mut self) {
        let group = 4;
        self.case("with biases", |m| {
            let (x, out) = (m.each(CHANNELS + 6), m.each(CHANNELS));
            let weight = m.vector(CHANNELS * TAPS);
            let bias = Some(m.vector(CHANNELS));
            m.op(Op::Convolve(ConvolveOp {
                x,
                from: 6,
                out,
                taps: TAPS,
                weight,
                bias,
                state: StatePlace { group, from: 0 },
            }));
        });
        let steps = |m: &mut Self| {
            let (x, out) = (m.each(HEADS + 3), m.each(2 * HEADS));
            let (bias, decay) = (m.vector(HEADS), m.vector(HEADS));
            m.op(Op::Steps {
                x,
                from: 3,
                bias,
                decay,
                limits: [1e-3, 1.5],
                out,
            });
            out
        };
        self.case("limited", |m| {
            steps(m);
        });
        self.case("two groups", |m| {
            let steps = steps(m);
            let x = m.each(HEADS * ROWS + 2 * GROUPS * COLS);
            let (out, skip) = (m.each(HEADS * ROWS), m.vector(HEADS));
            m.op(Op::Scan(ScanOp {
                x,
                steps,
                skip,
                out,
                heads: HEADS,
                rows: ROWS,
                cols: COLS,
                groups: GROUPS,
                state: StatePlace {
                    group,
                    from: (TAPS - 1) * CHANNELS,
                },
            }));
        });
    }

    fn attention(&mut self, kv: DType) {
        for (group, seen) in (0..).zip(["all", "a window", "a chunk"]) {
            for (layer, (capped, sinks)) in
                (0..LAYERS).zip([(false, false), (true, false), (false, true), (true, true)])
            {
                let how = format!("{kv}, {seen}, capped {capped}, sinks {sinks}");
                self.case(how, |m| {
                    let sizes = [Q_HEADS * K_DIM, KV_HEADS * K_DIM, KV_HEADS * V_DIM];
                    // One buffer of all three, or three.
                    let (all, at) = if layer % 2 == 0 {
                        let one = m.each(sizes.iter().sum());
                        ([one; 3], [0, sizes[0], sizes[0] + sizes[1]])
                    } else {
                        (sizes.map(|n| m.each(n)), [0; 3])
                    };
                    let out = m.each(Q_HEADS * V_DIM);
                    let sinks = sinks.then(|| m.vector(Q_HEADS));
                    m.op(Op::Attention(AttentionOp {
                        q: all[0],
                        k: all[1],
                        v: all[2],
                        at,
                        out,
                        q_heads: Q_HEADS,
                        kv_heads: KV_HEADS,
                        k_dim: K_DIM,
                        v_dim: V_DIM,
                        group,
                        index: layer,
                        scale: 0.3,
                        softcap: capped.then_some(5.0),
                        sinks,
                    }));
                });
            }
        }
        if kv == DType::I8 {
            // Latents have no scales.
            return;
        }
        for layer in 0..2 {
            self.case(format!("{kv}, layer {layer}"), |m| {
                let heads = 5;
                let (q, q_rope) = (m.each(heads * RANK), m.each(heads * ROPE));
                let (latent, out) = (m.each(RANK + ROPE), m.each(heads * RANK));
                m.op(Op::Latent(LatentOp {
                    q,
                    q_rope,
                    latent,
                    out,
                    heads,
                    rank: RANK,
                    rope_dim: ROPE,
                    group: 3,
                    index: layer,
                    scale: 0.2,
                }));
            });
        }
    }
}

/// Two backends of one suite.
struct Both<'a, A, B> {
    oracle: A,
    other: B,
    pool: &'a mut Pool,
    suite: &'a Suite,
    random: Random,
    outcomes: &'a mut Vec<Outcome>,
}

fn bytes_of(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

impl<A: Inside, B: Inside> Both<'_, A, B> {
    fn write(&mut self, region: Region, from: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.oracle.write(region, from, bytes)?;
        self.other.write(region, from, bytes)
    }

    fn weights(&mut self) -> Result<(), BackendError> {
        let bytes = bytes_of(self.suite.words.iter().copied());
        self.write(Region::Weights, 0, &bytes)
    }

    fn outcome(&mut self, op: &'static str) -> &mut Outcome {
        let at = self.outcomes.iter().position(|o| o.op == op);
        let at = at.unwrap_or_else(|| {
            self.outcomes.push(Outcome {
                op,
                cases: 0,
                elements: 0,
                wrong: Vec::new(),
            });
            self.outcomes.len() - 1
        });
        &mut self.outcomes[at]
    }

    /// Compares a part of an arena, as words; what differs first.
    fn same(
        &mut self,
        region: Region,
        from: u64,
        bytes: u64,
    ) -> Result<(u64, Option<String>), BackendError> {
        let mut both = [vec![0; index(bytes)], vec![0; index(bytes)]];
        self.oracle.read(region, from, &mut both[0])?;
        self.other.read(region, from, &mut both[1])?;
        let [want, got] = both;
        let words = |all: &[u8]| -> Vec<u32> {
            let four = all.as_chunks().0.iter();
            four.map(|w| u32::from_le_bytes(*w)).collect()
        };
        let (want, got) = (words(&want), words(&got));
        let mut differ = want
            .iter()
            .zip(&got)
            .enumerate()
            .filter(|(_, (a, b))| a != b);
        let first = differ.next().map(|(at, (a, b))| {
            format!(
                "word {at}: {} where {} is meant ({} words differ)",
                f32::from_bits(*b),
                f32::from_bits(*a),
                1 + differ.count()
            )
        });
        Ok((want.len() as u64, first))
    }

    /// Every case over every step.
    fn steps(&mut self, progress: &mut impl FnMut(&str)) -> Result<(), BackendError> {
        let suite = self.suite;
        let mut tables = Tables::new(suite.program.geometry.groups.len());
        for step in &suite.steps {
            tables.apply(step, |_| {});
            self.oracle.begin(step, &tables)?;
            self.other.begin(step, &tables)?;
            for case in &suite.cases {
                progress(case.op);
                let (elements, wrong) = match self.step(case, step, &tables) {
                    Ok(done) => done,
                    Err(e) => (0, Some(e.to_string())),
                };
                let outcome = self.outcome(case.op);
                outcome.cases += u32::from(step.number == 1);
                outcome.elements += elements;
                if let Some(what) = wrong {
                    let at = format!("{}, step {}: {what}", case.how, step.number);
                    outcome.wrong.push(at);
                }
            }
            self.logits(step);
        }
        Ok(())
    }

    fn step(
        &mut self,
        case: &Case,
        step: &Step,
        tables: &Tables,
    ) -> Result<(u64, Option<String>), BackendError> {
        let program = &self.suite.program;
        let parts: Vec<(u64, u64)> = case
            .buffers
            .clone()
            .map(|b| {
                let b = program.buffer(BufferId(b));
                let rows = b.rows.most([TOKENS, OUTPUTS]).unwrap_or(0);
                (b.offset.get(), rows * b.width)
            })
            .collect();
        for &(from, elements) in &parts {
            let numbers: Vec<u32> = (0..elements)
                .map(|_| self.random.number().to_bits())
                .collect();
            self.write(Region::Activations, from, &bytes_of(numbers))?;
        }
        let wanted: Vec<u32> = step.rows.iter().map(|r| r.tokens.end - 1).collect();
        let ops = case.ops.clone();
        self.oracle
            .run(self.pool, step, tables, ops.clone(), &wanted)?;
        self.other.run(self.pool, step, tables, ops, &wanted)?;
        let mut compared = 0;
        for (i, (from, elements)) in parts.into_iter().enumerate() {
            let (n, wrong) = self.same(Region::Activations, from, 4 * elements)?;
            compared += n;
            if let Some(what) = wrong {
                return Ok((compared, Some(format!("buffer {i}, {what}"))));
            }
        }
        if case.paged {
            let (n, wrong) = self.same_pages()?;
            compared += n;
            return Ok((compared, wrong.map(|what| format!("pages, {what}"))));
        }
        Ok((compared, None))
    }

    fn same_pages(&mut self) -> Result<(u64, Option<String>), BackendError> {
        let page = self.suite.program.geometry.page.get();
        self.same(Region::KvCache, 0, page * u64::from(self.suite.pages))
    }

    /// The logits as they come to the host, of rows that are gathered again.
    fn logits(&mut self, step: &Step) {
        let Some(gather) = self.suite.cases.first() else {
            return;
        };
        let (ops, rows) = (gather.ops.clone(), step.rows.len());
        let wanted: Vec<u32> = step.rows.iter().map(|r| r.tokens.end - 1).collect();
        let tables = Tables::new(0);
        let mut one = || -> Result<(u64, bool), BackendError> {
            self.oracle
                .run(self.pool, step, &tables, ops.clone(), &wanted)?;
            self.other
                .run(self.pool, step, &tables, ops.clone(), &wanted)?;
            let bits = |x: &mut [f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let want = bits(self.oracle.logits(rows)?);
            let got = bits(self.other.logits(rows)?);
            Ok((want.len() as u64, want == got))
        };
        let (elements, wrong) = match one() {
            Ok((n, true)) => (n, None),
            Ok((n, false)) => (n, Some("others came".to_owned())),
            Err(e) => (0, Some(e.to_string())),
        };
        let outcome = self.outcome(LOGITS);
        outcome.cases += u32::from(step.number == 1);
        outcome.elements += elements;
        outcome.wrong.extend(wrong);
    }

    /// Pages that are copied, and that leave and come back elsewhere.
    fn moves(&mut self) -> Result<(), BackendError> {
        let pages = self.suite.pages;
        let page = self.suite.program.geometry.page.get();
        let all: Vec<u32> = (0..page / 4 * u64::from(pages))
            .map(|_| self.random.number().to_bits())
            .collect();
        self.write(Region::KvCache, 0, &bytes_of(all))?;
        // More than are told at once.
        let copies: Vec<BlockCopy> = (0..2 * small(OUTPUTS) + 1)
            .map(|i| BlockCopy {
                from: BlockId(1 + i),
                to: BlockId(pages - 1 - i),
            })
            .collect();
        let copied = (self.oracle.copy(&copies)).and_then(|()| self.other.copy(&copies));
        self.moved(COPY, copied);
        let swap = |page: u32, slot: u32| SwapOp {
            tag: 0,
            page: BlockId(page),
            slot,
            generation: 0,
        };
        let (out, back) = (
            [swap(pages - 1, 2), swap(3, 0), swap(7, 3)],
            [swap(1, 3), swap(pages - 2, 0), swap(9, 2)],
        );
        let mut swapped = || -> Result<(), BackendError> {
            for lost in [
                self.oracle.swap_out(self.pool, &out)?,
                self.other.swap_out(self.pool, &out)?,
                self.oracle.swap_in(self.pool, &back)?,
                self.other.swap_in(self.pool, &back)?,
            ] {
                if !lost.is_empty() {
                    return Err(BackendError::Step("a page did not arrive".to_owned()));
                }
            }
            Ok(())
        };
        let swapped = swapped();
        self.moved(SWAP, swapped);
        Ok(())
    }

    fn moved(&mut self, op: &'static str, done: Result<(), BackendError>) {
        let (elements, wrong) = match done.and_then(|()| self.same_pages()) {
            Ok(same) => same,
            Err(e) => (0, Some(e.to_string())),
        };
        let outcome = self.outcome(op);
        outcome.cases += 1;
        outcome.elements += elements;
        outcome.wrong.extend(wrong);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_cases_of_every_operation() {
        let mut there: Vec<&str> = vec![LOGITS, COPY, SWAP];
        for kv in CACHES {
            there.extend(Suite::new(kv).cases.iter().map(|c| c.op));
        }
        for name in NAMES {
            assert!(there.contains(&name), "{name}");
        }
    }
}
