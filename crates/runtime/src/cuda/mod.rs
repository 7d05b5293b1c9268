//! [`Cuda`]: programs on a [`Device`], a GPU or what stands in for one.
//!
//! It holds an arena for each region of its map on the device, and swap space on the host. With every step its rows are
//! told once: tokens, positions, block tables, in one list ([`StepInputs`]). Then the program's operations are started
//! one after the other, over all rows, or all at once where they were [recorded](Cuda::record); only what tokens are
//! chosen by comes back.

mod attention;
mod graphs;
mod linear;
mod lists;
mod ops;
mod ranks;
mod shared;
mod speeds;
mod transfers;
mod weights;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use plimsoll_cuda::{Address, Device, Launch, TENSOR_CORES, bytes_of, floats};
use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, SwapOp};
use plimsoll_plan::{MemoryMap, Region};
use plimsoll_program::{Exchange, Op, Program, StepInputs, short_words};
use plimsoll_schedule::{Step, Tables};
use plimsoll_units::{Bytes, SizeOverflow};

use crate::backend::{Backend, BackendError, Inside, Measured, Peaks, Usage};
use crate::cpu::{StartError, check_sizes, positions};
use crate::sample::{Brief, Shortlists};
use crate::swap::SwapSpace;

use self::graphs::Graphs;
pub use self::graphs::Recordings;
use self::lists::Lists;
pub use self::ranks::seated;
pub use self::speeds::{Sizes, Speed, Unit, speeds};
use self::transfers::Places;
pub use self::weights::load;

/// Query heads that share one KV head at most: their scores lie in what a block's threads share.
const GROUP_MAX: u64 = 32;

/// How kernels compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// As the processors, to the bit.
    Exact,
    /// On tensor cores, where the device has such as kernels use: what matrices and 16-bit keys and values are multiplied
    /// with is rounded to 16 bits, weights of whole numbers are made bfloat16.
    #[default]
    Fast,
}

/// A region on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    at: Address,
    bytes: Bytes,
    /// The end of the last byte that was ever used.
    used: Bytes,
}

impl Block {
    fn new(device: &mut dyn Device, bytes: Bytes) -> Result<Self, BackendError> {
        Ok(Self {
            at: device.allocate(bytes.get())?,
            bytes,
            used: Bytes::ZERO,
        })
    }

    fn on_host(device: &mut dyn Device, bytes: Bytes) -> Result<Self, BackendError> {
        Ok(Self {
            at: device.allocate_host(bytes.get())?,
            bytes,
            used: Bytes::ZERO,
        })
    }

    /// Its first `bytes`, and the rest.
    fn split(self, bytes: Bytes) -> (Self, Self) {
        let rest = self.bytes.saturating_sub(bytes);
        let at = self.at.plus(bytes.get());
        (
            Self { bytes, ..self },
            Self {
                at,
                bytes: rest,
                ..self
            },
        )
    }

    fn mark(&mut self, end: Bytes) {
        self.used = self.used.max(end.min(self.bytes));
    }

    const fn usage(&self, region: Region) -> Usage {
        Usage {
            region,
            committed: self.bytes,
            high_water: self.used,
        }
    }
}

/// Sizes of what lies on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSizes {
    /// Weights, as the program lays them out.
    pub weights: Bytes,
    /// Pages, the null page among them.
    pub pages: Bytes,
    /// The program's buffers.
    pub activations: Bytes,
    /// What is told with every step.
    pub inputs: Bytes,
    /// Places of pages in the host's memory.
    pub swap: Bytes,
    /// What ranks meet by.
    pub collectives: Bytes,
}

impl DeviceSizes {
    /// Those of a map, for sequences of at most `context` tokens.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn of(map: &MemoryMap, program: &Program, context: u64) -> Result<Self, SizeOverflow> {
        Ok(Self {
            weights: map.region(Region::Weights),
            pages: map.region(Region::KvCache),
            activations: map.region(Region::Activations),
            inputs: StepInputs::of(program, context)?.bytes()?,
            swap: map.region(Region::Swap),
            collectives: map.region(Region::Collectives),
        })
    }
}

/// Whether kernels can carry `program` out: known before any memory is taken.
///
/// # Errors
/// As [`crate::check`], and [`StartError::Group`].
pub fn check(program: &Program) -> Result<(), StartError> {
    crate::cpu::check(program)?;
    for op in &program.ops {
        if let Op::Attention(a) = op
            && a.q_heads / a.kv_heads.max(1) > GROUP_MAX
        {
            return Err(StartError::Group(a.q_heads / a.kv_heads.max(1)));
        }
    }
    Ok(())
}

/// A program on a device.
#[derive(Debug)]
pub struct Cuda {
    device: Box<dyn Device>,
    program: Arc<Program>,
    sizes: StepInputs,
    /// Whether tensor cores are used: the same for every step.
    fast: bool,
    /// Whether it copies to shared memory without waiting.
    staged: bool,
    /// What blocks of kernels share at most, by the kernels' names.
    shares: BTreeMap<&'static str, u64>,
    weights: Block,
    pages: Block,
    activations: Block,
    inputs: Block,
    /// What the next kernels use, where the device asks.
    allowed: Option<Vec<(Address, u64)>>,
    swap: Places,
    /// Where the constants of each operation lie, in words.
    constants: Vec<u64>,
    lists: Lists,
    positions: Vec<u32>,
    /// The words of a step, as they go to the device, and before they are among them, its tables.
    words: Vec<u32>,
    tables: Vec<u32>,
    graphs: Graphs,
    /// The longest sequence.
    context: u64,
    /// Logits of R rows, on the host.
    logits: Block,
    /// What rows of logits come to, on the host.
    shortlists: Block,
    /// Where it meets the other ranks, if it is one of several.
    seat: Option<ranks::Seat>,
    /// What it shows them, on the host: logits lie behind it.
    exchange: Block,
    /// What all of them have, before it is added up.
    sums: Block,
}

impl Cuda {
    /// `program` on `device`, for sequences of at most `context` tokens: takes all memory that it will have. Pages go to
    /// the host's memory, or to a `file`. Weights are to be [loaded](load).
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(
        mut device: Box<dyn Device>,
        program: Program,
        sizes: DeviceSizes,
        file: Option<SwapSpace>,
        context: u64,
        arithmetic: Arithmetic,
    ) -> Result<Self, StartError> {
        check(&program)?;
        check_sizes(
            &program,
            [
                (Region::Weights, sizes.weights),
                (Region::KvCache, sizes.pages),
                (
                    Region::Swap,
                    file.as_ref().map_or(sizes.swap, SwapSpace::bytes),
                ),
                (Region::Activations, sizes.activations),
            ],
        )?;
        let lists = StepInputs::of(&program, context)?;
        let exchange = Exchange::of(&program)?;
        for (region, committed, needed) in [
            (Region::Workspace, sizes.inputs, lists.bytes()?),
            (Region::Collectives, sizes.collectives, exchange.bytes()?),
        ] {
            if committed != needed {
                return Err(StartError::Map {
                    region,
                    committed,
                    needed,
                });
            }
        }
        let mut block = |bytes| Block::new(device.as_mut(), bytes);
        let weights = block(sizes.weights)?;
        let (pages, activations) = (block(sizes.pages)?, block(sizes.activations)?);
        let (inputs, sums) = (block(sizes.inputs)?, block(exchange.device)?);
        let mut words: Vec<u32> = Vec::new();
        let constants = program.ops.iter().map(|op| {
            let at = words.len() as u64;
            if let Op::Rotary(table) = op {
                words.extend(table.frequencies.iter().map(|f| f.to_bits()));
                words.resize(words.len().next_multiple_of(4), 0);
            }
            at
        });
        let constants = constants.collect();
        device
            .upload(inputs.at, bytes_of(&words))
            .map_err(BackendError::from)?;
        let page = program.geometry.page;
        let logits = Bytes::product([program.outputs, program.vocab, 4])?;
        let shortlists = Bytes::product([program.outputs, short_words(program.vocab), 8])?;
        let host = match &file {
            None => sizes.swap,
            Some(file) => page.times(file.bytes().whole(page).min(plimsoll_plan::STAGED_PAGES))?,
        };
        let (exchange, logits) = {
            let both = Block::on_host(device.as_mut(), exchange.host.add(logits)?)?;
            both.split(exchange.host)
        };
        let mut cuda = Self {
            shares: BTreeMap::new(),
            logits,
            seat: None,
            exchange,
            sums,
            shortlists: Block::on_host(device.as_mut(), shortlists)?,
            swap: Places {
                host: Block::on_host(device.as_mut(), host)?,
                file,
                leaving: false,
            },
            positions: Vec::with_capacity(elements(program.tokens)),
            lists: Lists::default(),
            sizes: lists,
            fast: arithmetic == Arithmetic::Fast && device.capability() >= TENSOR_CORES,
            staged: device.capability() >= TENSOR_CORES,
            words: Vec::new(),
            tables: Vec::new(),
            graphs: Graphs::default(),
            context,
            constants,
            allowed: device.checks().then(Vec::new),
            device,
            program: Arc::new(program),
            weights,
            pages,
            activations,
            inputs,
        };
        cuda.check_shares()?;
        Ok(cuda)
    }

    /// What it calls itself.
    #[must_use]
    pub fn device_name(&self) -> String {
        self.device.name()
    }

    /// Where a part of an arena lies.
    fn part(&self, region: Region, from: u64, len: usize) -> Result<Address, BackendError> {
        let block = match region {
            Region::Weights => &self.weights,
            Region::KvCache => &self.pages,
            Region::Activations => &self.activations,
            other => return Err(BackendError::Step(format!("{other} is no arena of it"))),
        };
        match from.checked_add(len as u64) {
            Some(end) if end <= block.bytes.get() => Ok(block.at.plus(from)),
            _ => Err(BackendError::Step(format!(
                "{len} bytes from {from} on leave the {} of {region}",
                block.bytes
            ))),
        }
    }

    fn page(&self, n: u32) -> u64 {
        u64::from(n).saturating_mul(self.program.geometry.page.get())
    }

    /// The next kernels use these bytes.
    fn allow(&mut self, at: Address, bytes: u64) {
        if let Some(allowed) = &mut self.allowed {
            allowed.push((at, bytes));
        }
    }

    /// Starts a kernel, which uses what was allowed.
    fn start(
        &mut self,
        kernel: &'static str,
        how: Launch,
        args: &[u8],
    ) -> Result<(), BackendError> {
        if let Some(allowed) = &self.allowed {
            self.device.allow(allowed);
        }
        let checked = self.shares.get(kernel).copied().unwrap_or(0);
        debug_assert!(u64::from(how.shared) <= checked, "{kernel}: {how:?}");
        Ok(self.device.launch(kernel, how, args)?)
    }

    fn fits(&self, page: u32) -> Result<(), BackendError> {
        let end = self
            .page(page)
            .saturating_add(self.program.geometry.page.get());
        if end <= self.pages.bytes.get() {
            return Ok(());
        }
        Err(BackendError::Step(format!(
            "page {page} is none of the pool's"
        )))
    }
}

/// Blocks that copy so many pages side by side.
fn by_pages(bytes: u64, pages: usize) -> Launch {
    let each = word(bytes.div_ceil(16 * 256)).clamp(1, 64);
    Launch {
        grid: [each, word(pages as u64), 1],
        threads: 256,
        shared: 0,
    }
}

/// Sizes fit: what they are of was allocated.
fn elements(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// A kernel's argument: the program that it is of was checked when it was lowered, so it is never more.
fn word(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Inside for Cuda {
    fn read(&mut self, region: Region, from: u64, bytes: &mut [u8]) -> Result<(), BackendError> {
        let at = self.part(region, from, bytes.len())?;
        Ok(self.device.download(at, bytes)?)
    }

    fn write(&mut self, region: Region, from: u64, bytes: &[u8]) -> Result<(), BackendError> {
        let at = self.part(region, from, bytes.len())?;
        Ok(self.device.upload(at, bytes)?)
    }
}

impl Backend for Cuda {
    fn program(&self) -> &Program {
        &self.program
    }

    fn places(&self) -> usize {
        elements(self.swap.bytes().whole(self.program.geometry.page))
    }

    fn moves_beside(&self) -> bool {
        self.swap.file.is_none()
    }

    fn swap_out(&mut self, pool: &mut Pool, outs: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        self.pages_out(pool, outs)
    }

    fn swap_in(&mut self, pool: &mut Pool, ins: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        self.pages_in(pool, ins)
    }

    fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        self.copy_pages(copies)
    }

    fn begin(&mut self, step: &Step, tables: &Tables) -> Result<(), BackendError> {
        let mut at = std::mem::take(&mut self.positions);
        positions(&self.program, step, &mut at)?;
        if step.rows.len() as u64 > self.program.outputs {
            return Err(BackendError::Step(format!(
                "{} rows, for which at most {} were planned",
                step.rows.len(),
                self.program.outputs
            )));
        }
        self.positions = at;
        if step.kv.swaps_out.is_empty() {
            self.have_left()?;
        }
        let one =
            step.rows.len() == step.tokens.len() && step.rows.iter().all(|r| r.tokens.len() == 1);
        let bucket = one.then(|| self.graphs.rows(step.rows.len())).flatten();
        self.tell(step, tables, bucket)
    }

    fn run(
        &mut self,
        _: &mut Pool,
        step: &Step,
        _: &Tables,
        ops: Range<usize>,
        wanted: &[u32],
    ) -> Result<(), BackendError> {
        let outputs = self.graphs.outputs(&ops, wanted.len());
        let outputs = outputs.unwrap_or(wanted.len() as u64);
        if !wanted.is_empty() {
            self.wanted(wanted, outputs)?;
        }
        let bucket = self.lists.bucket;
        let step = ops::Step {
            tokens: bucket.unwrap_or(step.tokens.len() as u64),
            rows: bucket.unwrap_or(step.rows.len() as u64),
            outputs,
        };
        self.carry_out(step, ops)?;
        self.ended()
    }

    fn logits(&mut self, rows: Range<usize>) -> Result<&mut [f32], BackendError> {
        let bytes = |n: usize| Bytes::product([n as u64, self.program.vocab, 4]);
        let (Ok(from), Ok(end)) = (bytes(rows.start), bytes(rows.end)) else {
            return Err(BackendError::Step("rows beyond all bytes".to_owned()));
        };
        if from > end || end > self.logits.bytes {
            return Err(BackendError::Step(
                "more rows of logits than were planned".to_owned(),
            ));
        }
        let len = end.get() - from.get();
        let at = self.program.buffer(self.program.logits).offset;
        let of = self.activations.at.plus(at.get() + from.get());
        let to = self.logits.at.plus(from.get());
        self.device.copy(of, to, len)?;
        self.logits.mark(end);
        let bytes = self.device.host(to, elements(len))?;
        Ok(floats(bytes)?)
    }

    fn shortens(&self) -> bool {
        true
    }

    fn shortlists(&mut self, briefs: &[Option<Brief>]) -> Result<Shortlists<'_>, BackendError> {
        self.shorten(briefs)
    }

    fn usage(&self) -> Vec<Usage> {
        let sum = |region, blocks: &[&Block]| {
            let all = |of: fn(&Block) -> Bytes| blocks.iter().map(|b| of(b).get()).sum();
            Usage {
                region,
                committed: Bytes::new(all(|b| b.bytes)),
                high_water: Bytes::new(all(|b| b.used)),
            }
        };
        let mut workspace = vec![&self.inputs, &self.logits, &self.shortlists];
        // Pages on their way to a file.
        workspace.extend(self.swap.file.as_ref().map(|_| &self.swap.host));
        let mut all = vec![
            self.weights.usage(Region::Weights),
            self.pages.usage(Region::KvCache),
            self.activations.usage(Region::Activations),
            sum(Region::Workspace, &workspace),
        ];
        if self.program.rank.of > 1 {
            let collectives = [&self.sums, &self.exchange];
            all.push(sum(Region::Collectives, &collectives));
        }
        all.push(self.swap.usage());
        all
    }

    fn measure(&mut self, _: &mut Pool) -> Result<Measured, BackendError> {
        self.measured()
    }

    fn peaks(&mut self, _: &mut Pool) -> Result<Peaks, BackendError> {
        let measured = self.measured()?;
        Ok(Peaks {
            read_bytes_per_s: measured.read_bytes_per_s,
            flops_per_s: measured.flops_per_s.unwrap_or(0),
        })
    }
}
