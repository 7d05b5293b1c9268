//! What a device is told of a step: lists, one after the other, whose places follow from the numbers of its tokens and
//! rows alone, but for the tables, which are the last.

use std::ops::Range;

use plimsoll_program::{ATTENTION_PART, GroupKind};
use plimsoll_schedule::{Row, Step, Tables};
use plimsoll_units::Bytes;

use super::{Cuda, bytes_of, elements, word};
use crate::backend::BackendError;

/// Where the lists of the step that began last lie, in words from the beginning of its inputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists {
    pub(super) tokens: u64,
    pub(super) positions: u64,
    /// The row that each token is of.
    pub(super) of: u64,
    /// For each group, its rows.
    pub(super) rows: Vec<u64>,
    pub(super) tables: u64,
    pub(super) wanted: u64,
    /// The rows that it is carried out with, where each has one token and steps of that size are recorded.
    pub(super) bucket: Option<u64>,
    /// Parts of the longest sequence that attention may treat apart.
    pub(super) parts: u64,
    /// For each group, and where the device asks: the pages that kernels may use, and where their tables lie.
    pub(super) seen: Vec<Seen>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) pages: Vec<u32>,
    pub(super) tables: Vec<Range<u64>>,
}

/// Tokens of a row's sequence when its own are computed.
pub(super) fn end_of(row: &Row) -> u64 {
    u64::from(row.start) + u64::from(row.tokens.end - row.tokens.start)
}

impl Cuda {
    /// Adds a list to the words of a step; where it begins.
    pub(super) fn list(&mut self, from: u64, most: u64, list: &[u32]) -> Result<u64, BackendError> {
        self.padded(from, most, list, list.len())
    }

    /// Adds a list and zeros after it, `len` words together.
    fn padded(
        &mut self,
        from: u64,
        most: u64,
        list: &[u32],
        len: usize,
    ) -> Result<u64, BackendError> {
        let at = self.words.len();
        self.words.extend_from_slice(list);
        self.words.resize(at + len, 0);
        self.end(from, most, at)
    }

    /// Ends the list that began at word `at` of a step; where it begins.
    pub(super) fn end(&mut self, from: u64, most: u64, at: usize) -> Result<u64, BackendError> {
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        if self.words.len() as u64 > most {
            return Err(BackendError::Step(
                "more is told of a step than was planned".to_owned(),
            ));
        }
        Ok(from + at as u64)
    }

    /// Sends what was listed, to be found from word `from` on.
    pub(super) fn send(&mut self, from: u64) -> Result<(), BackendError> {
        let end = from + self.words.len() as u64;
        self.inputs.mark(Bytes::new(end.saturating_mul(4)));
        let to = self.inputs.at.plus(4 * from);
        Ok(self.device.upload(to, bytes_of(&self.words))?)
    }

    /// Tells the device of a step's rows, and of rows of one token that are nobody's, `bucket` rows together.
    pub(super) fn tell(
        &mut self,
        step: &Step,
        tables: &Tables,
        bucket: Option<u64>,
    ) -> Result<(), BackendError> {
        let base = self.sizes.constants;
        let most = self.sizes.tokens + self.sizes.rows + self.sizes.tables;
        let blank = bucket.map_or(0, |n| elements(n).saturating_sub(step.rows.len()));
        let count = step.tokens.len() + blank;
        let mut lists = std::mem::take(&mut self.lists);
        self.words.clear();
        lists.tokens = self.padded(base, most, &step.tokens, count)?;
        let positions = std::mem::take(&mut self.positions);
        lists.positions = self.padded(base, most, &positions, count)?;
        self.positions = positions;
        let at = self.words.len();
        self.words.resize(at + count, 0);
        let (of, of_blanks) = self.words[at..].split_at_mut(step.tokens.len());
        for (i, r) in (0..).zip(&step.rows) {
            of[r.tokens.start as usize..r.tokens.end as usize].fill(i);
        }
        for (i, of) in (word(step.rows.len() as u64)..).zip(of_blanks) {
            *of = i;
        }
        lists.of = self.end(base, most, at)?;
        lists.rows.clear();
        lists.seen.clear();
        let mut all = std::mem::take(&mut self.tables);
        all.clear();
        if blank > 0 {
            // The table of all that are nobody's, in all groups.
            all.resize(elements(self.null_pages().next_multiple_of(4)), 0);
        }
        for group in 0..self.program.geometry.groups.len() {
            let at = self.words.len();
            let seen = self.rows_of(group, step, tables, blank, &mut all)?;
            lists.seen.push(seen);
            lists.rows.push(self.end(base, most, at)?);
        }
        lists.tables = self.list(base, most, &all)?;
        self.tables = all;
        let longest = step.rows.iter().map(end_of).max().unwrap_or(0);
        lists.parts = match bucket {
            Some(rows) => self.graphs.parts(rows, longest),
            None => longest.div_ceil(ATTENTION_PART).max(1),
        };
        lists.bucket = bucket;
        self.lists = lists;
        self.send(base)
    }

    /// Adds the rows of a group, and their tables to `all`.
    fn rows_of(
        &mut self,
        group: usize,
        step: &Step,
        tables: &Tables,
        blank: usize,
        all: &mut Vec<u32>,
    ) -> Result<Seen, BackendError> {
        let mut seen = Seen::default();
        let mut last = None;
        for r in &step.rows {
            let table = tables.get(r.seq, group);
            self.covers(group, r, table)?;
            last = last.max(table.iter().copied().max());
            let (from, count) = (all.len() as u64, r.tokens.end - r.tokens.start);
            let row = [r.tokens.start, r.start, count, word(from)];
            self.words.extend_from_slice(&row);
            if self.allowed.is_some() {
                seen.tables.push(from..from + table.len() as u64);
                // The null page is nobody's.
                seen.pages.extend(table.iter().filter(|page| **page != 0));
            }
            all.extend_from_slice(table);
            all.resize(all.len().next_multiple_of(4), 0);
        }
        for i in (word(step.tokens.len() as u64)..).take(blank) {
            self.words.extend_from_slice(&[i, 0, 1, 0]);
        }
        if self.allowed.is_some() && blank > 0 {
            seen.tables.push(0..self.null_pages());
            seen.pages.push(0);
        }
        if let Some(page) = last {
            self.fits(page)?;
            // The pages that tokens may be written to.
            self.pages
                .mark(Bytes::new(self.page(page.saturating_add(1))));
        }
        Ok(seen)
    }

    /// Tells the device whose logits are wanted, of `count` rows: past the list the first token's.
    pub(super) fn wanted(&mut self, wanted: &[u32], count: u64) -> Result<(), BackendError> {
        let from = self.sizes.constants + self.sizes.tokens + self.sizes.rows + self.sizes.tables;
        self.words.clear();
        self.lists.wanted = self.padded(from, self.sizes.wanted, wanted, elements(count))?;
        self.send(from)
    }

    /// Pages in the table of a row that is nobody's.
    fn null_pages(&self) -> u64 {
        let groups = self.program.geometry.groups.iter();
        let all = groups.map(|g| match g.kind {
            GroupKind::State => g.state_pages,
            _ => 1,
        });
        all.max().unwrap_or(0)
    }
}
