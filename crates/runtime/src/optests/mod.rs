//! Every operation of a program on one backend and on another, to the bit: small programs of odd shapes, with weights,
//! inputs and scattered pages that a seed makes. `plimsoll doctor --gpu` runs them on whatever GPU a machine has.

mod both;
mod suite;

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
use crate::cuda::{Arithmetic, Cuda, DeviceSizes};
use both::Both;

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
const CACHES: [DType; 5] = [
    DType::F32,
    DType::Bf16,
    DType::F16,
    DType::F8E4m3,
    DType::I8,
];

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
pub fn on_device(
    device: Box<dyn Device>,
    arithmetic: Arithmetic,
    made: Made,
) -> Result<Cuda, StartError> {
    let sizes = DeviceSizes {
        weights: made.program.weight_bytes,
        pages: made.pages,
        activations: made.program.activation_bytes,
        inputs: StepInputs::of(&made.program, made.context)?.bytes()?,
        swap: made.swap,
        collectives: Bytes::ZERO,
    };
    Cuda::new(device, made.program, sizes, None, made.context, arithmetic)
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

/// The program's sizes fit: they are written here.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
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
