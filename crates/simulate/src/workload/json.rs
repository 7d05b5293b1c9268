//! Rows of a JSON trace: one object per line, or an array of objects, read one at a time.
//!
//! `timestamp` is in milliseconds, as Mooncake writes it; `arrived_at` is in seconds, as Vidur
//! does. Other fields (Dynamo's `session_id` and `delay`, a conversation's text) are ignored.

use std::sync::Arc;

use serde::Deserialize;

use super::csv::{COUNT, INPUT_NAMES, OUTPUT_NAMES};
use super::error::{WorkloadError, shorten};
use super::input::Input;
use super::spec::TraceFormat;
use super::time;
use super::trace::Row;
use crate::Content;

/// The objects of an input.
#[derive(Debug)]
pub(super) struct JsonRows {
    input: Input,
    in_array: bool,
    done: bool,
    mooncake: bool,
    block_tokens: u64,
}

/// One object, under the names that traces and benchmarks use.
#[derive(Debug, Deserialize)]
struct Object {
    timestamp: Option<f64>,
    #[serde(alias = "arrival_time")]
    arrived_at: Option<f64>,
    #[serde(
        alias = "prompt_len",
        alias = "prompt_length",
        alias = "prompt_tokens",
        alias = "input_len",
        alias = "input_tokens",
        alias = "num_prefill_tokens"
    )]
    input_length: Option<f64>,
    #[serde(
        alias = "output_len",
        alias = "output_tokens",
        alias = "completion_len",
        alias = "completion_length",
        alias = "completion_tokens",
        alias = "num_decode_tokens"
    )]
    output_length: Option<f64>,
    hash_ids: Option<Vec<u64>>,
}

impl JsonRows {
    /// Looks whether an array begins.
    pub(super) fn open(
        mut input: Input,
        asked: Option<TraceFormat>,
        block_tokens: u64,
    ) -> Result<Self, WorkloadError> {
        if let Some(asked @ (TraceFormat::Azure | TraceFormat::BurstGpt)) = asked {
            return Err(WorkloadError::OtherFormat {
                asked: asked.name(),
                found: "JSON",
            });
        }
        let in_array = input.peek()? == Some(b'[');
        if in_array {
            input.take(b'[');
        }
        Ok(Self {
            input,
            in_array,
            done: false,
            mooncake: asked == Some(TraceFormat::Mooncake),
            block_tokens,
        })
    }

    /// The next row; `None` at the end.
    pub(super) fn next_row(&mut self) -> Result<Option<Row>, WorkloadError> {
        if self.done {
            return Ok(None);
        }
        let (line, bytes) = if self.in_array {
            let Some((line, bytes)) = self.next_element()? else {
                return Ok(None);
            };
            (line, bytes)
        } else {
            match self.input.next_line()? {
                Some(row) => row,
                None => return Ok(None),
            }
        };
        let object = serde_json::from_slice::<Object>(bytes).map_err(|e| {
            if e.is_eof() {
                WorkloadError::Truncated { line }
            } else {
                WorkloadError::BadRow {
                    line,
                    why: shorten_message(&e.to_string()),
                }
            }
        })?;
        self.row(line, object).map(Some)
    }

    fn next_element(&mut self) -> Result<Option<(u64, &[u8])>, WorkloadError> {
        loop {
            let line = self.input.line_number();
            match self.input.peek()? {
                Some(b',') => self.input.take(b','),
                Some(b'{') => return self.input.next_object().map(Some),
                Some(b']') => {
                    self.done = true;
                    return Ok(None);
                }
                Some(other) => {
                    return Err(WorkloadError::BadRow {
                        line: self.input.line_number(),
                        why: format!(
                            "`{}` where an object should begin",
                            char::from(other).escape_default()
                        ),
                    });
                }
                None => return Err(WorkloadError::Truncated { line }),
            }
        }
    }

    fn row(&self, line: u64, object: Object) -> Result<Row, WorkloadError> {
        let missing = |what, names| WorkloadError::MissingColumn {
            line,
            what,
            names,
            found: "the fields of the object".to_owned(),
        };
        let input = object
            .input_length
            .ok_or_else(|| missing("prompt length", INPUT_NAMES))?;
        let input = tokens(line, "prompt tokens", input)?;
        let output = object
            .output_length
            .ok_or_else(|| missing("output length", OUTPUT_NAMES))?;
        let output = tokens(line, "generated tokens", output)?;
        let time = match (object.timestamp, object.arrived_at) {
            (Some(ms), _) => Some((ms, 1e6)),
            (None, Some(s)) => Some((s, 1e9)),
            (None, None) if self.mooncake => return Err(missing("arrival time", "timestamp")),
            (None, None) => None,
        };
        let at =
            match time {
                None => None,
                Some((n, nanos)) => Some(time::scaled(n, nanos).ok_or_else(|| {
                    WorkloadError::BadField {
                        line,
                        field: "arrival time",
                        value: n.to_string(),
                        want: "milliseconds (timestamp) or seconds (arrived_at), from 0 to 2^62 ns",
                    }
                })?),
            };
        let content = match object.hash_ids {
            None if self.mooncake => return Err(missing("list of block ids", "hash_ids")),
            None => Content::Unique,
            Some(ids) => {
                let need = input.div_ceil(self.block_tokens);
                if ids.len() as u64 != need {
                    return Err(WorkloadError::BlocksDiffer {
                        line,
                        ids: ids.len() as u64,
                        need,
                        input_tokens: input,
                        block_tokens: self.block_tokens,
                    });
                }
                Content::Blocks {
                    ids: Arc::from(ids),
                    block_tokens: self.block_tokens,
                }
            }
        };
        Ok(Row {
            line,
            at,
            input,
            output,
            content,
        })
    }
}

/// A number of tokens: JSON does not tell 12 from 12.0, and every count below 2^53 is exact.
fn tokens(line: u64, field: &'static str, n: f64) -> Result<u64, WorkloadError> {
    const LIMIT: f64 = (1_u64 << 53) as f64;
    if (0.0..LIMIT).contains(&n) && libm::floor(n) == n {
        return Ok(n as u64);
    }
    Err(WorkloadError::BadField {
        line,
        field,
        value: n.to_string(),
        want: COUNT,
    })
}

/// serde_json's words, without the position inside the row, which is always "line 1".
fn shorten_message(message: &str) -> String {
    let end = message.find(" at line ").unwrap_or(message.len());
    shorten(&message[..end])
}
