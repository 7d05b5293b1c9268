//! [`Trace`]: requests of a recorded trace, in any format, checked and relative to the first row.
//!
//! Order: rows come by time. Recorders write a few rows late, so a row up to [`LATE_MAX`] before
//! the latest is taken to arrive together with it, and counted; beyond, it is an error. So no row
//! waits for others, and memory does not depend on the trace.

use std::io::BufRead;

use plimsoll_units::Nanos;

use super::Notes;
use super::csv::{COUNT, CsvRow, CsvRows};
use super::error::WorkloadError;
use super::input::Input;
use super::json::JsonRows;
use super::spec::{TraceFormat, TraceSpec};
use crate::{Arrival, Content, Fan};

/// How much earlier than its predecessors a row may be, in nanoseconds: one second, which is the
/// resolution of BurstGPT and so the most that rounding can disorder a trace.
pub const LATE_MAX: Nanos = Nanos(1_000_000_000);

/// Prompts and outputs are shorter than this: 2^32 tokens.
const TOKENS_LIMIT: u64 = 1 << 32;

/// One row, as a format gives it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) line: u64,
    /// Nanoseconds since the trace's own origin.
    pub(super) at: Option<i64>,
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) content: Content,
}

/// A trace, being read.
#[derive(Debug)]
pub(super) struct Trace {
    rows: Rows,
    /// Whether the times of the rows will be used; if not, they may be absent or out of order.
    timed: bool,
    first: Option<i64>,
    latest: i64,
}

#[derive(Debug)]
enum Rows {
    Csv(CsvRows),
    Json(JsonRows),
}

impl Trace {
    /// Recognises the format by its first line.
    pub(super) fn open(
        spec: &TraceSpec,
        timed: bool,
        source: Box<dyn BufRead + Send>,
    ) -> Result<Self, WorkloadError> {
        let mut input = Input::new(source);
        let rows = match input.peek()? {
            None => return Err(WorkloadError::Empty { skipped: 0 }),
            Some(b'{' | b'[') => Rows::Json(JsonRows::open(input, spec.format, spec.block_tokens)?),
            Some(_) if spec.format == Some(TraceFormat::Mooncake) => {
                return Err(WorkloadError::OtherFormat {
                    asked: TraceFormat::Mooncake.name(),
                    found: "no JSON",
                });
            }
            Some(_) => Rows::Csv(CsvRows::open(input, spec.format)?),
        };
        Ok(Self {
            rows,
            timed,
            first: None,
            latest: 0,
        })
    }

    /// The next request; `None` at the end.
    pub(super) fn next(&mut self, notes: &mut Notes) -> Result<Option<Arrival>, WorkloadError> {
        let row = loop {
            match &mut self.rows {
                Rows::Json(rows) => break rows.next_row()?,
                Rows::Csv(rows) => match rows.next_row()? {
                    Some(CsvRow::Failed) => notes.failed_skipped += 1,
                    Some(CsvRow::Request(row)) => break Some(row),
                    None => break None,
                },
            }
        };
        let Some(row) = row else {
            return Ok(None);
        };
        for (field, n) in [
            ("prompt tokens", row.input),
            ("generated tokens", row.output),
        ] {
            if !(1..TOKENS_LIMIT).contains(&n) {
                return Err(WorkloadError::BadField {
                    line: row.line,
                    field,
                    value: n.to_string(),
                    want: COUNT,
                });
            }
        }
        let at = if self.timed {
            self.time(&row, notes)?
        } else {
            Nanos(0)
        };
        Ok(Some(Arrival {
            at,
            prompt_tokens: row.input,
            output_tokens: row.output,
            content: row.content,
            fan: Fan::One,
            tenant: 0,
            priority: 0,
        }))
    }

    fn time(&mut self, row: &Row, notes: &mut Notes) -> Result<Nanos, WorkloadError> {
        let at = match (row.at, self.first) {
            (Some(at), _) => at,
            (None, None) => return Err(WorkloadError::NoRate),
            (None, Some(_)) => {
                return Err(WorkloadError::BadField {
                    line: row.line,
                    field: "arrival time",
                    value: "absent".to_owned(),
                    want: "a time, as the rows before it have",
                });
            }
        };
        let first = *self.first.get_or_insert(at);
        // Both are in 0..=2^62, so their difference fits.
        let since_first = at - first;
        let late = self.latest - since_first;
        if late > LATE_MAX.get() as i64 {
            return Err(WorkloadError::Unsorted {
                line: row.line,
                late_s: late as f64 / 1e9,
                bound_s: LATE_MAX.get() as f64 / 1e9,
            });
        }
        notes.reordered += u64::from(late > 0);
        self.latest = self.latest.max(since_first);
        Ok(Nanos(self.latest.unsigned_abs()))
    }
}
