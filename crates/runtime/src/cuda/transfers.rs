//! Pages on their way to swap space and back.
//!
//! Places in the host's memory are reached by the device itself, on a lane of their own beside steps. Nobody reads a page
//! that has not arrived, nor overwrites one that has not left:
//!
//! | what | begins after |
//! | --- | --- |
//! | pages go out or come in | all that was computed before, and the transfers before |
//! | a step's copies and rows | pages that come in with it, and all that went out with the steps before |
//!
//! So pages that go out move while their step's rows are computed, which use none of them: until the step's end they are
//! nobody's. A file is reached by way of the host, which waits: of what failed there the scheduler is told with the step.

use plimsoll_cuda::{Lane, args};
use plimsoll_kernels::Pool;
use plimsoll_kv::{BlockCopy, SwapOp};
use plimsoll_plan::Region;
use plimsoll_units::Bytes;

use super::{Block, Cuda, by_pages, elements};
use crate::backend::{BackendError, Usage};
use crate::cpu::swap_usage;
use crate::swap::SwapSpace;

/// Where pages go.
#[derive(Debug)]
pub(super) struct Places {
    /// Their places in the host's memory; those of a few on their way, where there is a file.
    pub(super) host: Block,
    pub(super) file: Option<SwapSpace>,
    /// Whether pages may be leaving that later steps overwrite.
    pub(super) leaving: bool,
}

impl Places {
    pub(super) fn bytes(&self) -> Bytes {
        self.file.as_ref().map_or(self.host.bytes, SwapSpace::bytes)
    }

    pub(super) fn usage(&self) -> Usage {
        let file = self.file.as_ref().map(swap_usage);
        file.unwrap_or_else(|| self.host.usage(Region::Swap))
    }
}

impl Cuda {
    /// Pages that move together at most.
    pub(super) fn together(&self) -> usize {
        let pages = self.swap.host.bytes.whole(self.program.geometry.page);
        elements(pages.min(self.sizes.swaps / 2))
    }

    /// Starts moving pages to places in the host's memory, or back: as many as move together.
    pub(super) fn move_pages(
        &mut self,
        pairs: impl Iterator<Item = [u32; 2]>,
        out: bool,
    ) -> Result<(), BackendError> {
        let bytes = self.program.geometry.page.get();
        let from = self.sizes.before_swaps();
        self.words.clear();
        self.allowed.iter_mut().for_each(Vec::clear);
        let mut count = 0;
        for [page, place] in pairs {
            self.fits(page)?;
            let end = Bytes::new(self.page(place.saturating_add(1)));
            if end > self.swap.host.bytes {
                return Err(BackendError::Step(format!(
                    "place {place} is none of swap space's"
                )));
            }
            self.swap.host.mark(end);
            self.words.extend_from_slice(&[page, place]);
            self.allow(self.pages.at.plus(self.page(page)), bytes);
            self.allow(self.swap.host.at.plus(self.page(place)), bytes);
            count += 1;
        }
        let list = self.end(from, self.sizes.swaps, 0)?;
        self.send(from)?;
        let args = args::MovePages {
            pages: self.pages.at.0,
            pairs: self.told(list, 2 * count as u64),
            host: self.swap.host.at.0,
            bytes,
            out: out.into(),
            none: 0,
        };
        self.start("move_pages", by_pages(bytes, count), args.bytes())
    }

    /// Moves pages beside steps.
    fn move_beside(&mut self, swaps: &[SwapOp], out: bool) -> Result<(), BackendError> {
        self.device.on(Lane::Transfers);
        let mut moved = self.device.after_all().map_err(BackendError::from);
        for some in swaps.chunks(self.together().max(1)) {
            let pairs = some.iter().map(|s| [s.page.0, s.slot]);
            moved = moved.and_then(|()| self.move_pages(pairs, out));
        }
        self.device.on(Lane::Compute);
        moved
    }

    /// What is computed from now on may overwrite pages that went out.
    pub(super) fn have_left(&mut self) -> Result<(), BackendError> {
        if std::mem::take(&mut self.swap.leaving) {
            self.device.after_all()?;
        }
        Ok(())
    }

    pub(super) fn pages_out(
        &mut self,
        pool: &mut Pool,
        outs: &[SwapOp],
    ) -> Result<Vec<usize>, BackendError> {
        if self.swap.file.is_some() {
            return self.by_host(outs, |cuda, some, bytes| {
                cuda.move_pages(numbered(some), true)?;
                let staged = cuda.device.host(cuda.swap.host.at, some.len() * bytes)?;
                let places = some.iter().map(|s| u64::from(s.slot) * bytes as u64);
                let all = places.zip(staged.chunks(bytes)).collect();
                let file = cuda.swap.file.as_mut();
                Ok(file.map_or(Ok(Vec::new()), |file| file.write(pool, all))?)
            });
        }
        // Those of the steps before: whose pages this step's rows may have.
        self.have_left()?;
        self.move_beside(outs, true)?;
        self.swap.leaving = true;
        Ok(Vec::new())
    }

    pub(super) fn pages_in(
        &mut self,
        pool: &mut Pool,
        ins: &[SwapOp],
    ) -> Result<Vec<usize>, BackendError> {
        if self.swap.file.is_some() {
            return self.by_host(ins, |cuda, some, bytes| {
                let staged = cuda.device.host(cuda.swap.host.at, some.len() * bytes)?;
                let places = some.iter().map(|s| u64::from(s.slot) * bytes as u64);
                let all = places.zip(staged.chunks_mut(bytes)).collect();
                let file = cuda.swap.file.as_ref();
                let failed = file.map_or(Ok(Vec::new()), |file| file.read(pool, all))?;
                // A page that did not arrive is not used: what came in its place does no harm.
                cuda.move_pages(numbered(some), false)?;
                Ok(failed)
            });
        }
        self.move_beside(ins, false)?;
        self.swap.leaving = true;
        self.have_left()?;
        Ok(Vec::new())
    }

    /// Moves as many pages at a time as the host has room for; which of all failed.
    fn by_host(
        &mut self,
        swaps: &[SwapOp],
        mut some: impl FnMut(&mut Self, &[SwapOp], usize) -> Result<Vec<usize>, BackendError>,
    ) -> Result<Vec<usize>, BackendError> {
        let bytes = elements(self.program.geometry.page.get());
        let most = self.together().max(1);
        let mut lost = Vec::new();
        for (from, few) in (0..).step_by(most).zip(swaps.chunks(most)) {
            let failed = some(self, few, bytes)?;
            lost.extend(failed.into_iter().map(|i| from + i));
        }
        Ok(lost)
    }

    pub(super) fn copy_pages(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        self.have_left()?;
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
}

/// Pages, and their places one after the other.
fn numbered(swaps: &[SwapOp]) -> impl Iterator<Item = [u32; 2]> + '_ {
    (0..).zip(swaps).map(|(i, s)| [s.page.0, i])
}
