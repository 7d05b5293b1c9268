//! [`Cuda`]: programs on a [`Device`], a GPU or what stands in for one.
//!
//! It holds an arena for each region of its map on the device, and swap space on the host. With every step its rows are
//! told once: tokens, positions, block tables, in one list ([`StepInputs`]). Then the program's operations are started
//! one after the other, over all rows; only logits come back.

mod ops;
mod weights;

use std::ops::Range;

use plimsoll_cuda::{Address, Device, Launch, args};
use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, SwapOp};
use plimsoll_plan::{MemoryMap, Region};
use plimsoll_program::{Op, Program, ROW_WORDS, StepInputs};
use plimsoll_schedule::{Step, Tables};
use plimsoll_units::{Bytes, SizeOverflow};

use crate::backend::{Backend, BackendError, Measured, Peaks, Usage};
use crate::cpu::{StartError, check_sizes, positions, swap_usage};
use crate::swap::SwapSpace;

pub use self::weights::load;

/// Query heads that share one KV head at most: their scores lie in what a block's threads share.
const GROUP_MAX: u64 = 32;

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
        })
    }
}

/// Whether kernels can carry `program` out: known before any memory is taken.
///
/// # Errors
/// As [`crate::check`], [`StartError::Group`] and [`StartError::Ranks`].
pub fn check(program: &Program) -> Result<(), StartError> {
    crate::cpu::check(program)?;
    if program.rank.of > 1 {
        return Err(StartError::Ranks);
    }
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
    copies: u64,
}

/// A program on a device.
#[derive(Debug)]
pub struct Cuda {
    device: Box<dyn Device>,
    program: Program,
    sizes: StepInputs,
    weights: Block,
    pages: Block,
    activations: Block,
    inputs: Block,
    swap: SwapSpace,
    /// Where the constants of each operation lie, in words.
    constants: Vec<u64>,
    lists: Lists,
    positions: Vec<u32>,
    /// The words of a step, as they go to the device.
    words: Vec<u32>,
    /// Logits of R rows, and their bytes as they come.
    logits: Vec<f32>,
    coming: Vec<u8>,
    /// Logits that were ever there.
    logits_used: usize,
    /// Pages on their way to swap space and back.
    staging: Vec<u8>,
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
        if lists.bytes()? != sizes.inputs {
            return Err(StartError::Map {
                region: Region::Workspace,
                committed: sizes.inputs,
                needed: lists.bytes()?,
            });
        }
        let mut block = |bytes| Block::new(device.as_mut(), bytes);
        let weights = block(sizes.weights)?;
        let (pages, activations) = (block(sizes.pages)?, block(sizes.activations)?);
        let inputs = block(sizes.inputs)?;
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
        let page = usize::try_from(program.geometry.page.get()).unwrap_or(usize::MAX);
        Ok(Self {
            staging: vec![0; page],
            logits: vec![0.0; elements(program.outputs.saturating_mul(program.vocab))],
            coming: vec![
                0;
                elements(
                    program
                        .outputs
                        .saturating_mul(program.vocab)
                        .saturating_mul(4)
                )
            ],
            positions: Vec::with_capacity(elements(program.tokens)),
            lists: Lists::default(),
            sizes: lists,
            words: Vec::new(),
            constants,
            logits_used: 0,
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

    /// Elements of a buffer's first rows, once everything that was started is done: for tests of single operations.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn read_buffer(
        &mut self,
        id: plimsoll_program::BufferId,
        out: &mut [f32],
    ) -> Result<(), BackendError> {
        let at = self
            .activations
            .at
            .plus(self.program.buffer(id).offset.get());
        download(self.device.as_mut(), at, out)
    }

    /// Puts elements into a buffer's first rows: for tests of single operations.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn write_buffer(
        &mut self,
        id: plimsoll_program::BufferId,
        x: &[f32],
    ) -> Result<(), BackendError> {
        let at = self
            .activations
            .at
            .plus(self.program.buffer(id).offset.get());
        let words: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
        Ok(self.device.upload(at, &bytes_of(&words))?)
    }

    fn page(&self, n: u32) -> u64 {
        u64::from(n).saturating_mul(self.program.geometry.page.get())
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

fn download(device: &mut dyn Device, from: Address, out: &mut [f32]) -> Result<(), BackendError> {
    let mut bytes = vec![0; out.len() * 4];
    device.download(from, &mut bytes)?;
    for (x, four) in out.iter_mut().zip(bytes.as_chunks().0) {
        *x = f32::from_le_bytes(*four);
    }
    Ok(())
}

/// Sizes fit: what they are of was allocated.
fn elements(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// A kernel's argument: the program that it is of was checked when it was lowered, so it is never more.
fn word(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Backend for Cuda {
    fn program(&self) -> &Program {
        &self.program
    }

    fn places(&self) -> usize {
        elements(self.swap.bytes().whole(self.program.geometry.page))
    }

    fn swap_out(&mut self, pool: &mut Pool, outs: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        let mut lost = Vec::new();
        let mut page = std::mem::take(&mut self.staging);
        for (i, s) in outs.iter().enumerate() {
            self.fits(s.page.0)?;
            let from = self.pages.at.plus(self.page(s.page.0));
            self.device.download(from, &mut page)?;
            let failed = self.swap.write(pool, vec![(self.page(s.slot), &page)])?;
            lost.extend(failed.into_iter().map(|_| i));
        }
        self.staging = page;
        Ok(lost)
    }

    fn swap_in(&mut self, pool: &mut Pool, ins: &[SwapOp]) -> Result<Vec<usize>, BackendError> {
        let mut lost = Vec::new();
        let mut page = std::mem::take(&mut self.staging);
        for (i, s) in ins.iter().enumerate() {
            self.fits(s.page.0)?;
            let failed = self.swap.read(pool, vec![(self.page(s.slot), &mut page)])?;
            if failed.is_empty() {
                let to = self.pages.at.plus(self.page(s.page.0));
                self.device.upload(to, &page)?;
            }
            lost.extend(failed.into_iter().map(|_| i));
        }
        self.staging = page;
        Ok(lost)
    }

    fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        let most = elements(self.sizes.copies / 2).max(1);
        let from = self.sizes.constants
            + self.sizes.tokens
            + self.sizes.rows
            + self.sizes.tables
            + self.sizes.wanted;
        for copies in copies.chunks(most) {
            for c in copies {
                self.fits(c.from.0)?;
                self.fits(c.to.0)?;
            }
            let pairs: Vec<u32> = copies.iter().flat_map(|c| [c.from.0, c.to.0]).collect();
            self.words.clear();
            self.lists.copies = self.list(from, self.sizes.copies, &pairs)?;
            self.send(from)?;
            let bytes = self.program.geometry.page.get();
            let args = args::CopyPages {
                pages: self.pages.at.0,
                pairs: self.inputs.at.plus(4 * self.lists.copies).0,
                bytes,
            };
            let how = Launch {
                grid: [
                    word(bytes.div_ceil(16 * 256)).clamp(1, 64),
                    word(copies.len() as u64),
                    1,
                ],
                threads: 256,
                shared: 0,
            };
            self.device.launch("copy_pages", how, args.bytes())?;
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
        let most = self.sizes.tokens + self.sizes.rows + self.sizes.tables;
        let mut lists = Lists {
            tokens: self.list(base, most, &step.tokens)?,
            positions: self.list(base, most, &at)?,
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
            for r in &step.rows {
                let table = tables.get(r.seq, group);
                for page in table {
                    self.fits(*page)?;
                }
                self.covers(group, r, table)?;
                let count = r.tokens.end - r.tokens.start;
                rows.extend([r.tokens.start, r.start, count, word(all.len() as u64)]);
                all.extend_from_slice(table);
                all.resize(all.len().next_multiple_of(4), 0);
            }
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
        )
    }

    fn logits(&mut self, rows: usize) -> Result<&mut [f32], BackendError> {
        let n = rows.saturating_mul(elements(self.program.vocab));
        let Some(out) = self.logits.get_mut(..n) else {
            return Err(BackendError::Step(
                "more rows of logits than were planned".to_owned(),
            ));
        };
        let at = self.program.buffer(self.program.logits).offset;
        let bytes = &mut self.coming[..4 * n];
        self.device
            .download(self.activations.at.plus(at.get()), bytes)?;
        for (x, four) in out.iter_mut().zip(bytes.as_chunks().0) {
            *x = f32::from_le_bytes(*four);
        }
        self.logits_used = self.logits_used.max(n);
        Ok(out)
    }

    fn usage(&self) -> Vec<Usage> {
        vec![
            self.weights.usage(Region::Weights),
            self.pages.usage(Region::KvCache),
            self.activations.usage(Region::Activations),
            Usage {
                region: Region::Workspace,
                committed: Bytes::new(self.inputs.bytes.get() + 8 * self.logits.len() as u64),
                high_water: Bytes::new(self.inputs.used.get() + 8 * self.logits_used as u64),
            },
            swap_usage(&self.swap),
        ]
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
