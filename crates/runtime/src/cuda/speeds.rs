//! How fast a device does what decides how fast a model runs: products of few rows and of many, attention of single
//! tokens over long sequences, pages that are copied and that leave. Weights, keys and values are zeros.

use std::ops::Range;
use std::time::{Duration, Instant};

use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, Delta, DeltaOp, SwapOp};
use plimsoll_model::Role;
use plimsoll_program::{
    AttentionOp, Buffer, BufferId, Group, GroupKind, Op, PoolGeometry, Program, Rank, Rows, Weight,
    WeightId, WeightLayout,
};
use plimsoll_schedule::{Output, RequestId, Row, SeqEvent, Step, Tables};
use plimsoll_units::{BlockId, Bytes, DType, SeqId, WeightType};

use super::{Cuda, elements, word};
use crate::backend::{Backend as _, BackendError};
use crate::cpu::StartError;
use crate::optests::Made;

/// Sizes of what is timed.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows and columns of a matrix.
    pub width: u64,
    /// Rows of its input where there are many.
    pub rows: u64,
    /// Sequences of which attention has one token each.
    pub sequences: u64,
    /// Their tokens.
    pub context: u64,
    /// Each measure takes about so long, three times.
    pub time: Duration,
}

impl Sizes {
    /// More than a GPU's caches hold.
    pub const GPU: Self = Self {
        width: 8192,
        rows: 512,
        sequences: 64,
        context: 4096,
        time: Duration::from_millis(30),
    };
    /// As little as shows that it works.
    pub const LEAST: Self = Self {
        width: 64,
        rows: 8,
        sequences: 2,
        context: 40,
        time: Duration::ZERO,
    };
}

/// What a rate is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes per second that the device's memory gives and takes.
    DeviceBytes,
    /// Bytes per second between the device and the host.
    HostBytes,
    /// Operations per second, two for each multiply-add with weights of this type.
    Flops(WeightType),
}

/// One measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speed {
    /// Of what.
    pub what: String,
    /// Its unit.
    pub unit: Unit,
    /// So many of them per second.
    pub per_s: u64,
}

const Q_HEADS: u64 = 32;
const KV_HEADS: u64 = 8;
const HEAD: u64 = 128;
const LAYERS: u64 = 4;
const SLOTS: u64 = 16;
const FORMS: [WeightType; 4] = WeightType::ALL;
/// Pages that move together.
const PAGES: u64 = 32;

/// Measures what `made` makes.
///
/// # Errors
/// [`StartError`] where it cannot be made (it needs some GiB for [`Sizes::GPU`]), or does not work.
pub fn speeds(
    pool: &mut Pool,
    sizes: Sizes,
    made: impl FnOnce(Made) -> Result<Cuda, StartError>,
) -> Result<Vec<Speed>, StartError> {
    let program = program(sizes)?;
    let page = program.geometry.page;
    let blocks = sizes.context.div_ceil(SLOTS);
    let pages = sizes.sequences * blocks + 1;
    let matrices: Vec<u64> = program
        .weights
        .iter()
        .map(|w| w.layout.bytes().map(Bytes::get))
        .collect::<Result<_, _>>()?;
    let mut cuda = made(Made {
        pages: page.times(pages)?,
        swap: page.times(PAGES)?,
        context: sizes.context,
        program,
    })?;
    let mut all = Vec::new();
    let mut add = |what: String, unit, per_s| all.push(Speed { what, unit, per_s });
    for (i, (form, bytes)) in FORMS.into_iter().zip(&matrices).enumerate() {
        let one = rate(&mut cuda, sizes, *bytes, |c| c.walk(1, 1, 0, i..i + 1))?;
        let n = sizes.width;
        let what = format!("linear {form}, {n} x {n}, 1 row");
        add(what, Unit::DeviceBytes, one);
        let flops = 2 * n * n * sizes.rows;
        let many = rate(&mut cuda, sizes, flops, |c| {
            c.walk(sizes.rows, 1, 0, i..i + 1)
        })?;
        let what = format!("linear {form}, {n} x {n}, {} rows", sizes.rows);
        add(what, Unit::Flops(form), many);
    }
    let (step, tables) = step(sizes, blocks);
    cuda.begin(&step, &tables)?;
    let read = sizes.sequences * sizes.context * LAYERS * token_bytes();
    let attention: Range<usize> = FORMS.len()..cuda.program.ops.len();
    let rows = sizes.sequences;
    let per_s = rate(&mut cuda, sizes, read, |c| {
        c.walk(rows, rows, 0, attention.clone())
    })?;
    let what = format!(
        "attention of {rows} tokens, each over {} of bf16",
        sizes.context
    );
    add(what, Unit::DeviceBytes, per_s);
    // The null page is nobody's.
    let moved = PAGES.min((pages - 1) / 2);
    let id = |n: u64| BlockId(word(n));
    let copies: Vec<BlockCopy> = (0..moved)
        .map(|i| BlockCopy {
            from: id(1 + i),
            to: id(1 + moved + i),
        })
        .collect();
    let bytes = moved * page.get();
    let per_s = rate(&mut cuda, sizes, 2 * bytes, |c| c.copy(&copies))?;
    add(
        format!("{moved} pages of {page}, copied"),
        Unit::DeviceBytes,
        per_s,
    );
    let swaps: Vec<SwapOp> = (0..moved)
        .map(|i| SwapOp {
            tag: 0,
            page: id(1 + i),
            slot: word(i),
            generation: 0,
        })
        .collect();
    let mut lost = 0;
    let out = rate(&mut cuda, sizes, bytes, |c| {
        lost += c.swap_out(pool, &swaps)?.len();
        Ok(())
    })?;
    let what = format!("{moved} pages of {page}, to swap space");
    add(what, Unit::HostBytes, out);
    let back = rate(&mut cuda, sizes, bytes, |c| {
        lost += c.swap_in(pool, &swaps)?.len();
        Ok(())
    })?;
    let what = format!("{moved} pages of {page}, back");
    add(what, Unit::HostBytes, back);
    if lost > 0 {
        return Err(BackendError::Step("a page did not arrive".to_owned()).into());
    }
    Ok(all)
}

const fn token_bytes() -> u64 {
    KV_HEADS * 2 * HEAD * 2
}

/// Times some work, once it was done before: the best of three.
fn rate(
    cuda: &mut Cuda,
    sizes: Sizes,
    work: u64,
    mut f: impl FnMut(&mut Cuda) -> Result<(), BackendError>,
) -> Result<u64, BackendError> {
    f(cuda)?;
    cuda.device.wait()?;
    let (mut best, mut times) = (0, 1);
    for _ in 0..3 {
        loop {
            let began = Instant::now();
            for _ in 0..times {
                f(cuda)?;
            }
            cuda.device.wait()?;
            let took = began.elapsed();
            best = best.max(super::weights::rate(
                work.saturating_mul(times),
                nanos(took),
            ));
            if took >= sizes.time {
                break;
            }
            times *= 2;
        }
    }
    Ok(best)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn program(sizes: Sizes) -> Result<Program, StartError> {
    let n = sizes.width;
    let page = Bytes::product([token_bytes(), LAYERS, SLOTS])?;
    let mut program = Program {
        ops: Vec::new(),
        scratch: Vec::new(),
        buffers: Vec::new(),
        activation_bytes: Bytes::ZERO,
        weights: Vec::new(),
        weight_bytes: Bytes::ZERO,
        logits: BufferId(0),
        geometry: PoolGeometry {
            page,
            groups: vec![Group {
                kind: GroupKind::Full,
                layers: LAYERS,
                rate: Bytes::new(token_bytes()),
                slots: SLOTS,
                state_pages: 0,
                padding: Bytes::ZERO,
            }],
        },
        kv_dtype: DType::Bf16,
        vocab: 1,
        tokens: sizes.rows.max(sizes.sequences),
        outputs: sizes.sequences,
        rank: Rank::ALONE,
    };
    buffer(&mut program, Rows::Outputs, 1)?;
    let x = buffer(&mut program, Rows::Tokens, n)?;
    let out = buffer(&mut program, Rows::Tokens, n)?;
    for (i, form) in (0..).zip(FORMS) {
        let layout = WeightLayout::Packed { form, n, k: n };
        program.weights.push(Weight {
            name: "weight".to_owned(),
            role: Role::Mlp,
            layout,
            sources: Vec::new(),
            padding: 0,
            offset: program.weight_bytes,
        });
        let end = program.weight_bytes.add(layout.bytes()?)?;
        program.weight_bytes = end.round_up(Bytes::new(64))?;
        let words = form.input_words(n);
        let scratch = match words {
            0 => None,
            words => Some(buffer(&mut program, Rows::Tokens, words)?),
        };
        program.scratch.push(scratch);
        program.ops.push(Op::Linear {
            weight: WeightId(i),
            bias: None,
            x,
            out,
            add: false,
        });
    }
    let q = buffer(&mut program, Rows::Tokens, (Q_HEADS + 2 * KV_HEADS) * HEAD)?;
    let attended = buffer(&mut program, Rows::Tokens, Q_HEADS * HEAD)?;
    for index in 0..LAYERS {
        program.scratch.push(None);
        program.ops.push(Op::Attention(AttentionOp {
            q,
            k: q,
            v: q,
            at: [0, Q_HEADS * HEAD, (Q_HEADS + KV_HEADS) * HEAD],
            out: attended,
            q_heads: Q_HEADS,
            kv_heads: KV_HEADS,
            k_dim: HEAD,
            v_dim: HEAD,
            group: 0,
            index,
            scale: 0.1,
            softcap: None,
            sinks: None,
        }));
    }
    Ok(program)
}

fn buffer(program: &mut Program, rows: Rows, width: u64) -> Result<BufferId, StartError> {
    let id = BufferId(u16::try_from(program.buffers.len()).unwrap_or(u16::MAX));
    program.buffers.push(Buffer {
        name: "buffer",
        rows,
        width,
        offset: program.activation_bytes,
    });
    let most = rows.most([program.tokens, program.outputs])?;
    let end = program
        .activation_bytes
        .add(Bytes::product([most, width, 4])?)?;
    program.activation_bytes = end.round_up(Bytes::new(64))?;
    Ok(id)
}

/// The last token of each sequence, which has pages of its own, not in order.
fn step(sizes: Sizes, blocks: u64) -> (Step, Tables) {
    let mut step = Step {
        number: 1,
        tokens: vec![0; elements(sizes.sequences)],
        ..Step::default()
    };
    for i in 0..word(sizes.sequences) {
        let (seq, request) = (SeqId(i.into()), RequestId(0));
        let start = SeqEvent::Start {
            seq,
            request,
            index: i,
        };
        step.events.push((0, start));
        for index in 0..word(blocks) {
            let page = BlockId(1 + i + index * word(sizes.sequences));
            let op = DeltaOp::Append { index, page };
            step.kv.deltas.push(Delta { seq, group: 0, op });
        }
        step.rows.push(Row {
            seq,
            request,
            index: i,
            start: word(sizes.context) - 1,
            tokens: i..i + 1,
            output: Output::None,
        });
    }
    let mut tables = Tables::new(1);
    tables.apply(&step, |_| {});
    (step, tables)
}
