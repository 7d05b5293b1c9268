//! A bounded reader over [`ReadAt`]: little-endian numbers, strings and skips.

use super::{GgufError, GgufProblem};
use crate::read_at::ReadAt;

/// Bytes fetched at once: large enough that a disk or server is asked seldom, small enough that
/// the skip over a long array of numbers saves most of it.
const WINDOW: usize = 256 << 10;

/// Longest accepted header; the largest of today, with a tokenizer of 260,000 words, have 20 MB. It
/// bounds the time that a hostile file can take.
const MAX_HEADER: u64 = 256 << 20;
/// Bytes of memory that kept values may take together.
const MAX_KEPT: u64 = 16 << 20;

/// A position in a source, with a window of bytes around it.
pub(super) struct Cursor<'a, S: ?Sized> {
    source: &'a S,
    size: u64,
    window: Vec<u8>,
    /// Offset of the window's first byte.
    start: u64,
    /// Position inside the window.
    pos: usize,
    /// Memory that values may still take.
    keep: u64,
}

impl<'a, S: ReadAt + ?Sized> Cursor<'a, S> {
    pub(super) fn new(source: &'a S) -> Self {
        Self {
            source,
            size: source.size(),
            window: Vec::new(),
            start: 0,
            pos: 0,
            keep: MAX_KEPT,
        }
    }

    /// Offset of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.start.saturating_add(self.pos as u64)
    }

    /// Bytes from here to the end of the file.
    pub(super) fn left(&self) -> u64 {
        self.size.saturating_sub(self.offset())
    }

    pub(super) fn fail<T>(&self, problem: GgufProblem) -> Result<T, GgufError> {
        Err(GgufError {
            offset: self.offset(),
            problem,
        })
    }

    /// Checks that the file has `needed` bytes more.
    pub(super) fn within(&self, needed: u64, what: &'static str) -> Result<(), GgufError> {
        let left = self.left();
        if needed > left {
            return self.fail(GgufProblem::PastEnd { what, needed, left });
        }
        Ok(())
    }

    /// Checks that `needed` bytes more are in the file, and within the longest header.
    pub(super) fn need(&self, needed: u64, what: &'static str) -> Result<(), GgufError> {
        self.within(needed, what)?;
        let value = self.offset().saturating_add(needed);
        if value > MAX_HEADER {
            let what = "the size of the header";
            return self.fail(GgufProblem::TooMany {
                what,
                value,
                max: MAX_HEADER,
            });
        }
        Ok(())
    }

    /// Whether a value of `bytes` may be kept; if so, it is counted.
    pub(super) fn keep(&mut self, bytes: u64) -> bool {
        match self.keep.checked_sub(bytes) {
            Some(left) => {
                self.keep = left;
                true
            }
            None => false,
        }
    }

    /// Makes `n` bytes from here contiguous in the window.
    fn fill(&mut self, n: usize, what: &'static str) -> Result<(), GgufError> {
        if self.window.len().saturating_sub(self.pos) >= n {
            return Ok(());
        }
        self.need(n as u64, what)?;
        let len = self.left().min(n.max(WINDOW) as u64);
        self.start = self.offset();
        // What is in the window already is kept, so that no byte is fetched twice.
        self.window.drain(..self.pos.min(self.window.len()));
        self.pos = 0;
        let have = self.window.len();
        self.window
            .resize(usize::try_from(len).unwrap_or(n).max(have), 0);
        let offset = self.start.saturating_add(have as u64);
        let fresh = self.window.get_mut(have..).unwrap_or_default();
        self.source.read_at(offset, fresh).map_err(|err| GgufError {
            offset,
            problem: err.into(),
        })
    }

    /// The next `n` bytes.
    pub(super) fn bytes(&mut self, n: usize, what: &'static str) -> Result<&[u8], GgufError> {
        self.fill(n, what)?;
        let start = self.pos;
        self.pos += n;
        Ok(self
            .window
            .get(start..self.pos)
            .expect("fill made n bytes contiguous"))
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let bytes = self.bytes(N, what)?;
        Ok(*bytes.first_chunk().expect("bytes gives N bytes"))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Moves on by `n` bytes without reading those outside the window.
    pub(super) fn skip(&mut self, n: u64, what: &'static str) -> Result<(), GgufError> {
        self.need(n, what)?;
        let in_window = self.window.len().saturating_sub(self.pos) as u64;
        if n <= in_window {
            self.pos += usize::try_from(n).unwrap_or(0);
        } else {
            self.start = self.offset().saturating_add(n);
            self.window.clear();
            self.pos = 0;
        }
        Ok(())
    }

    /// Skips `count` strings: the one loop that runs hundreds of thousands of times.
    pub(super) fn skip_strings(&mut self, count: u64) -> Result<(), GgufError> {
        for _ in 0..count {
            let len = self.u64("the length of a string in an array")?;
            self.skip(len, "a string in an array")?;
        }
        Ok(())
    }
}
