//! [`Cuda`]: programs on a [`Device`], a GPU or what stands in for one.
//!
//! It holds an arena for each region of its map on the device, and swap space on the host. With every step its rows are
//! told once: tokens, positions, block tables, in one list ([`StepInputs`]). Then the program's operations are started
//! one after the other, over all rows; only logits come back.

mod attention;
mod linear;
mod ops;
mod ranks;
mod speeds;
mod weights;

use std::ops::Range;

use plimsoll_cuda::{Address, Device, Launch, TENSOR_CORES, args, floats};
use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, SwapOp};
use plimsoll_plan::{MemoryMap, Region};
use plimsoll_program::{Exchange, Op, Program, ROW_WORDS, StepInputs};
use plimsoll_schedule::{Step, Tables};
use plimsoll_units::{Bytes, SizeOverflow};

use crate::backend::{Backend, BackendError, Inside, Measured, Peaks, Usage};
use crate::cpu::{StartError, check_sizes, positions, swap_usage};
use crate::swap::SwapSpace;

pub use self::ranks::seated;
pub use self::speeds::{Sizes, Speed, Unit, speeds};
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

/// Where the lists of the step that began last lie, in words from the beginning of its inputs.
#[derive(Clone, Debug, Default)]
struct Lists {
    tokens: u64,
    positions: u64,
    /// The row that each token is of.
    of: u64,
    /// For each group, its rows.
    rows: Vec<u64>,
    tables: u64,
    wanted: u64,
    /// Tokens of the longest sequence.
    longest: u64,
    /// For each group, and where the device asks: the pages that kernels may use, and where their tables lie.
    seen: Vec<Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    pages: Vec<u32>,
    tables: Vec<Range<u64>>,
}

/// A program on a device.
#[derive(Debug)]
pub struct Cuda {
    device: Box<dyn Device>,
    program: Program,
    sizes: StepInputs,
    /// Whether tensor cores are used: the same for every step.
    fast: bool,
    /// Whether it copies to shared memory without waiting.
    staged: bool,
    weights: Block,
    pages: Block,
    activations: Block,
    inputs: Block,
    /// What the next kernels use, where the device asks.
    allowed: Option<Vec<(Address, u64)>>,
    swap: SwapSpace,
    /// Where the constants of each operation lie, in words.
    constants: Vec<u64>,
    lists: Lists,
    positions: Vec<u32>,
    /// The words of a step, as they go to the device.
    words: Vec<u32>,
    /// Logits of R rows, and pages on their way to swap space and back: on the host.
    logits: Block,
    staging: Block,
    /// Where it meets the other ranks, if it is one of several.
    seat: Option<ranks::Seat>,
    /// What it shows them, on the host: logits lie behind it.
    exchange: Block,
    /// What all of them have, before it is added up.
    sums: Block,
}

impl Cuda {
    /// `program` on `device`, for sequences of at most `context` tokens: takes all memory that it will have. Weights are to
    /// be [loaded](load).
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(
        mut device: Box<dyn Device>,
        program: Program,
        sizes: DeviceSizes,
        swap: SwapSpace,
        context: u64,
        arithmetic: Arithmetic,
    ) -> Result<Self, StartError> {
        check(&program)?;
        check_sizes(
            &program,
            [
                (Region::Weights, sizes.weights),
                (Region::KvCache, sizes.pages),
                (Region::Swap, swap.bytes()),
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
            .upload(inputs.at, &bytes_of(&words))
            .map_err(BackendError::from)?;
        let page = program.geometry.page;
        let logits = Bytes::product([program.outputs, program.vocab, 4])?;
        let (exchange, logits) = {
            let both = Block::on_host(device.as_mut(), exchange.host.add(logits)?)?;
            both.split(exchange.host)
        };
        let staged = page.times(swap.bytes().whole(page).min(plimsoll_plan::STAGED_PAGES))?;
        Ok(Self {
            logits,
            seat: None,
            exchange,
            sums,
            staging: Block::on_host(device.as_mut(), staged)?,
            positions: Vec::with_capacity(elements(program.tokens)),
            lists: Lists::default(),
            sizes: lists,
            fast: arithmetic == Arithmetic::Fast && device.capability() >= TENSOR_CORES,
            staged: device.capability() >= TENSOR_CORES,
            words: Vec::new(),
            constants,
            allowed: device.checks().then(Vec::new),
            device,
            program,
            weights,
            pages,
            activations,
            inputs,
            swap,
        })
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
        Ok(self.device.launch(kernel, how, args)?)
    }

    /// Adds a list to the words of a step; where it begins.
    fn list(&mut self, from: u64, most: u64, list: &[u32]) -> Result<u64, BackendError> {
        let at = self.words.len();
        self.words.extend_from_slice(list);
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        if self.words.len() as u64 > most {
            return Err(BackendError::Step(
                "more is told of a step than was planned".to_owned(),
            ));
        }
        Ok(from + at as u64)
    }

    /// Sends what was listed, to be found from word `from` on.
    fn send(&mut self, from: u64) -> Result<(), BackendError> {
        let end = from + self.words.len() as u64;
        self.inputs.mark(Bytes::new(end.saturating_mul(4)));
        let to = self.inputs.at.plus(4 * from);
        Ok(self.device.upload(to, &bytes_of(&self.words))?)
    }

    /// Pages go to the host, or come from there, where they lie one after the other.
    fn move_pages(&mut self, pages: &[u32], out: bool) -> Result<(), BackendError> {
        for &page in pages {
            self.fits(page)?;
        }
        let from = self.sizes.before_copies();
        self.words.clear();
        let numbers = self.list(from, self.sizes.copies, pages)?;
        self.send(from)?;
        let bytes = self.program.geometry.page.get();
        self.allowed.iter_mut().for_each(Vec::clear);
        for &page in pages {
            self.allow(self.pages.at.plus(self.page(page)), bytes);
        }
        let staged = Bytes::new(bytes * pages.len() as u64);
        self.allow(self.staging.at, staged.get());
        self.staging.mark(staged);
        let args = args::MovePages {
            pages: self.pages.at.0,
            numbers: self.told(numbers, pages.len() as u64),
            host: self.staging.at.0,
            bytes,
            out: out.into(),
            none: 0,
        };
        self.start("move_pages", by_pages(bytes, pages.len()), args.bytes())
    }

    /// Pages that move together at most.
    pub(super) fn staged(&self) -> usize {
        let pages = self.staging.bytes.whole(self.program.geometry.page);
        elements(pages.min(self.sizes.copies))
    }

    /// Marks the pages that the step's tokens are written to.
    fn mark_pages(&mut self, step: &Step, tables: &Tables) {
        let last = step.rows.iter().flat_map(|r| {
            (0..self.program.geometry.groups.len())
                .filter_map(|g| tables.get(r.seq, g).iter().max())
        });
        if let Some(page) = last.max() {
            let end = self.page(page.saturating_add(1));
            self.pages.mark(Bytes::new(end));
        }
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

/// Words as they lie in the device's memory.
fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
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

    fn swap_out(&mut self, pool: &mut Pool, outs: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        let (most, bytes) = (
            self.staged().max(1),
            elements(self.program.geometry.page.get()),
        );
        let mut lost = Vec::new();
        for (from, some) in (0..).step_by(most).zip(outs.chunks(most)) {
            let pages: Vec<u32> = some.iter().map(|s| s.page.0).collect();
            self.move_pages(&pages, true)?;
            let staged = self.device.host(self.staging.at, some.len() * bytes)?;
            let places = some.iter().map(|s| u64::from(s.slot) * bytes as u64);
            let all = places.zip(staged.chunks(bytes)).collect();
            let failed = self.swap.write(pool, all)?;
            lost.extend(failed.into_iter().map(|i| from + i));
        }
        Ok(lost)
    }

    fn swap_in(&mut self, pool: &mut Pool, ins: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        let (most, bytes) = (
            self.staged().max(1),
            elements(self.program.geometry.page.get()),
        );
        let mut lost = Vec::new();
        for (from, some) in (0..).step_by(most).zip(ins.chunks(most)) {
            let staged = self.device.host(self.staging.at, some.len() * bytes)?;
            let places = some.iter().map(|s| u64::from(s.slot) * bytes as u64);
            let all = places.zip(staged.chunks_mut(bytes)).collect();
            let failed = self.swap.read(pool, all)?;
            // A page that did not arrive is not used: what came in its place does no harm.
            let pages: Vec<u32> = some.iter().map(|s| s.page.0).collect();
            self.move_pages(&pages, false)?;
            lost.extend(failed.into_iter().map(|i| from + i));
        }
        Ok(lost)
    }

    fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        let most = elements(self.sizes.copies / 2).max(1);
        let from = self.sizes.before_copies();
        for copies in copies.chunks(most) {
            for c in copies {
                self.fits(c.from.0)?;
                self.fits(c.to.0)?;
            }
            let pairs: Vec<u32> = copies.iter().flat_map(|c| [c.from.0, c.to.0]).collect();
            self.words.clear();
            let list = self.list(from, self.sizes.copies, &pairs)?;
            self.send(from)?;
            let bytes = self.program.geometry.page.get();
            self.allowed.iter_mut().for_each(Vec::clear);
            for &page in &pairs {
                self.allow(self.pages.at.plus(self.page(page)), bytes);
            }
            let args = args::CopyPages {
                pages: self.pages.at.0,
                pairs: self.told(list, pairs.len() as u64),
                bytes,
            };
            self.start("copy_pages", by_pages(bytes, copies.len()), args.bytes())?;
        }
        Ok(())
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
        self.mark_pages(step, tables);
        self.words.clear();
        let base = self.sizes.constants;
        let ends = step
            .rows
            .iter()
            .map(|r| u64::from(r.start) + u64::from(r.tokens.end - r.tokens.start));
        let longest = ends.max().unwrap_or(0);
        let most = self.sizes.tokens + self.sizes.rows + self.sizes.tables;
        let mut lists = Lists {
            tokens: self.list(base, most, &step.tokens)?,
            positions: self.list(base, most, &at)?,
            longest,
            ..Lists::default()
        };
        self.positions = at;
        let mut of = vec![0; step.tokens.len()];
        for (i, r) in step.rows.iter().enumerate() {
            of[r.tokens.start as usize..r.tokens.end as usize].fill(word(i as u64));
        }
        lists.of = self.list(base, most, &of)?;
        let groups = self.program.geometry.groups.len();
        let mut rows = vec![Vec::with_capacity(step.rows.len() * 4); groups];
        let mut all = Vec::new();
        for (group, rows) in rows.iter_mut().enumerate() {
            let mut seen = Seen::default();
            for r in &step.rows {
                let table = tables.get(r.seq, group);
                for page in table {
                    self.fits(*page)?;
                }
                self.covers(group, r, table)?;
                let count = r.tokens.end - r.tokens.start;
                rows.extend([r.tokens.start, r.start, count, word(all.len() as u64)]);
                if self.allowed.is_some() {
                    let from = all.len() as u64;
                    seen.tables.push(from..from + table.len() as u64);
                    // The null page is nobody's.
                    seen.pages.extend(table.iter().filter(|page| **page != 0));
                }
                all.extend_from_slice(table);
                all.resize(all.len().next_multiple_of(4), 0);
            }
            lists.seen.push(seen);
        }
        debug_assert!(
            rows.iter()
                .all(|r| r.len() as u64 == ROW_WORDS * step.rows.len() as u64)
        );
        for rows in rows {
            let list = self.list(base, most, &rows)?;
            lists.rows.push(list);
        }
        lists.tables = self.list(base, most, &all)?;
        self.lists = lists;
        self.send(base)
    }

    fn run(
        &mut self,
        _: &mut Pool,
        step: &Step,
        _: &Tables,
        ops: Range<usize>,
        wanted: &[u32],
    ) -> Result<(), BackendError> {
        if !wanted.is_empty() {
            let from =
                self.sizes.constants + self.sizes.tokens + self.sizes.rows + self.sizes.tables;
            self.words.clear();
            self.lists.wanted = self.list(from, self.sizes.wanted, wanted)?;
            self.send(from)?;
        }
        self.walk(
            step.tokens.len() as u64,
            step.rows.len() as u64,
            wanted.len() as u64,
            ops,
        )?;
        self.ended()
    }

    fn logits(&mut self, rows: usize) -> Result<&mut [f32], BackendError> {
        let bytes = Bytes::product([rows as u64, self.program.vocab, 4]).unwrap_or(Bytes::MAX);
        if bytes > self.logits.bytes {
            return Err(BackendError::Step(
                "more rows of logits than were planned".to_owned(),
            ));
        }
        let at = self.program.buffer(self.program.logits).offset;
        let from = self.activations.at.plus(at.get());
        self.device.copy(from, self.logits.at, bytes.get())?;
        self.logits.mark(bytes);
        let bytes = self.device.host(self.logits.at, elements(bytes.get()))?;
        Ok(floats(bytes)?)
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
        let workspace = [&self.inputs, &self.logits, &self.staging];
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
        all.push(swap_usage(&self.swap));
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
