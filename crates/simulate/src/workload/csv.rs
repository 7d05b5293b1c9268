//! Rows of a CSV trace: columns are found by name in the header, whatever their order.
//!
//! Names are compared without case, spaces, `_` and `-`. A field may stand in double quotes, which
//! are doubled inside; it may not hold a line break (no trace does, and it would unbound memory).

use std::borrow::Cow;

use super::error::{WorkloadError, shorten};
use super::input::{Input, text};
use super::spec::TraceFormat;
use super::time;
use super::trace::Row;
use crate::Content;

/// Columns of prompt tokens, as compared: Azure's, BurstGPT's, Vidur's and the usual ones.
const INPUT: &[&str] = &[
    "contexttokens",
    "requesttokens",
    "numprefilltokens",
    "inputlength",
    "inputlen",
    "inputtokens",
    "promptlength",
    "promptlen",
    "prompttokens",
];
/// Columns of generated tokens, as compared.
const OUTPUT: &[&str] = &[
    "generatedtokens",
    "responsetokens",
    "numdecodetokens",
    "outputlength",
    "outputlen",
    "outputtokens",
    "completionlength",
    "completionlen",
    "completiontokens",
];
/// Columns of the arrival time, as compared.
const TIME: &[&str] = &["timestamp", "arrivedat", "arrivaltime"];

/// For messages.
pub(super) const INPUT_NAMES: &str = "prompt_len, input_length, num_prefill_tokens, \
                                      ContextTokens or `Request tokens`";
/// For messages.
pub(super) const OUTPUT_NAMES: &str = "output_len, output_length, num_decode_tokens, \
                                       GeneratedTokens or `Response tokens`";
/// For messages.
pub(super) const COUNT: &str = "a whole number of tokens from 1 to 2^32 - 1";

/// The rows below a header.
#[derive(Debug)]
pub(super) struct CsvRows {
    input: Input,
    columns: Columns,
    /// BurstGPT logs a failed request as one with an empty response.
    failures_are_zero: bool,
}

#[derive(Clone, Copy, Debug)]
struct Columns {
    time: Option<usize>,
    input: usize,
    output: usize,
}

/// What a row of the file is.
#[derive(Debug)]
pub(super) enum CsvRow {
    Request(Row),
    /// A request that the recorded service did not answer.
    Failed,
}

impl CsvRows {
    /// Reads the header.
    pub(super) fn open(
        mut input: Input,
        asked: Option<TraceFormat>,
    ) -> Result<Self, WorkloadError> {
        let Some((line, row)) = input.next_line()? else {
            return Err(WorkloadError::Empty { skipped: 0 });
        };
        let header = text(line, row).map_err(|_| WorkloadError::UnknownFormat {
            seen: shorten(&String::from_utf8_lossy(&row[..row.len().min(200)])),
        })?;
        let (mut time, mut prompt, mut output) = (None, None, None);
        let mut names = 0;
        for (i, name) in Fields::of(header).enumerate() {
            let Some(name) = name else {
                return Err(unclosed(line, header));
            };
            let name: String = name
                .chars()
                .filter(|c| !matches!(c, ' ' | '_' | '-'))
                .flat_map(char::to_lowercase)
                .collect();
            names += 1;
            if name == "numimages" {
                return Err(WorkloadError::Images);
            }
            for (known, slot) in [
                (TIME, &mut time),
                (INPUT, &mut prompt),
                (OUTPUT, &mut output),
            ] {
                if slot.is_none()
                    && let Some(k) = known.iter().position(|k| *k == name)
                {
                    *slot = Some((i, known[k]));
                }
            }
        }
        let missing = |what, names| WorkloadError::MissingColumn {
            line,
            what,
            names,
            found: shorten(header),
        };
        let ((prompt, prompt_name), (output, _)) = match (prompt, output) {
            (Some(p), Some(o)) => (p, o),
            (None, None) if asked.is_none() || names < 2 => {
                return Err(WorkloadError::UnknownFormat {
                    seen: shorten(header),
                });
            }
            (None, _) => return Err(missing("column of prompt tokens", INPUT_NAMES)),
            (_, None) => return Err(missing("column of generated tokens", OUTPUT_NAMES)),
        };
        let format = match prompt_name {
            "contexttokens" => TraceFormat::Azure,
            "requesttokens" => TraceFormat::BurstGpt,
            _ => TraceFormat::Lengths,
        };
        if let Some(asked) = asked
            && asked != format
        {
            return Err(WorkloadError::OtherFormat {
                asked: asked.name(),
                found: format.name(),
            });
        }
        if time.is_none() && format != TraceFormat::Lengths {
            return Err(missing("column of arrival times", "TIMESTAMP"));
        }
        Ok(Self {
            input,
            columns: Columns {
                time: time.map(|(i, _)| i),
                input: prompt,
                output,
            },
            failures_are_zero: format == TraceFormat::BurstGpt,
        })
    }

    /// The next row; `None` at the end.
    pub(super) fn next_row(&mut self) -> Result<Option<CsvRow>, WorkloadError> {
        let Some((line, row)) = self.input.next_line()? else {
            return Ok(None);
        };
        let row = text(line, row)?;
        let Columns {
            time,
            input,
            output,
        } = self.columns;
        let (mut at, mut prompt, mut generated) = (None, None, None);
        let mut count = 0;
        for (i, field) in Fields::of(row).enumerate() {
            let Some(field) = field else {
                return Err(unclosed(line, row));
            };
            count += 1;
            if Some(i) == time {
                at = Some(time::parse(&field).ok_or_else(|| WorkloadError::BadField {
                    line,
                    field: "arrival time",
                    value: shorten(&field),
                    want: time::WANT,
                })?);
            } else if i == input {
                prompt = Some(tokens(line, "prompt tokens", &field)?);
            } else if i == output {
                generated = Some(tokens(line, "generated tokens", &field)?);
            }
        }
        let short = || WorkloadError::BadRow {
            line,
            why: format!(
                "{count} fields in `{}`, fewer than the header",
                shorten(row)
            ),
        };
        if time.is_some() && at.is_none() {
            return Err(short());
        }
        let (input, output) = prompt.zip(generated).ok_or_else(short)?;
        if self.failures_are_zero && output == 0 {
            return Ok(Some(CsvRow::Failed));
        }
        Ok(Some(CsvRow::Request(Row {
            line,
            at,
            input,
            output,
            content: Content::Unique,
        })))
    }
}

/// A number of tokens; zero passes, since it may mark a failure.
fn tokens(line: u64, field: &'static str, value: &str) -> Result<u64, WorkloadError> {
    let bad = || WorkloadError::BadField {
        line,
        field,
        value: shorten(value),
        want: COUNT,
    };
    if let Ok(n) = value.parse::<u64>() {
        return Ok(n);
    }
    // `117.0`, as pandas writes a column that had a gap; nothing else with a fraction.
    let whole = value.strip_suffix(".0").ok_or_else(bad)?;
    whole.parse().map_err(|_| bad())
}

fn unclosed(line: u64, row: &str) -> WorkloadError {
    WorkloadError::BadRow {
        line,
        why: format!("a quote is out of place in `{}`", shorten(row)),
    }
}

/// The fields of a line, trimmed; `None` for one whose quotes do not close.
struct Fields<'a> {
    rest: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn of(line: &'a str) -> Self {
        Self { rest: Some(line) }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<Cow<'a, str>>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        let Some(quoted) = rest.trim_start().strip_prefix('"') else {
            let (field, after) = match rest.split_once(',') {
                Some((field, after)) => (field, Some(after)),
                None => (rest, None),
            };
            self.rest = after;
            return Some(Some(Cow::Borrowed(field.trim())));
        };
        let mut from = 0;
        loop {
            let Some(end) = quoted[from..].find('"').map(|i| from + i) else {
                return Some(None);
            };
            if quoted[end + 1..].starts_with('"') {
                from = end + 2;
                continue;
            }
            let after = quoted[end + 1..].trim_start();
            match after.strip_prefix(',') {
                Some(next) => self.rest = Some(next),
                None if after.is_empty() => {}
                None => return Some(None),
            }
            let field = quoted[..end].trim();
            return Some(Some(if from > 0 {
                Cow::Owned(field.replace("\"\"", "\""))
            } else {
                Cow::Borrowed(field)
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_may_be_quoted() {
        let all = |s| {
            Fields::of(s)
                .map(|f| f.map(Cow::into_owned))
                .collect::<Vec<_>>()
        };
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(all("a, b ,"), [some("a"), some("b"), some("")]);
        assert_eq!(all(r#""a,""b""",c"#), [some(r#"a,"b""#), some("c")]);
        assert_eq!(all(r#"1,"2"#), [some("1"), None]);
        assert_eq!(all(r#""1"2,3"#), [None]);
        assert_eq!(all(""), [some("")]);
    }

    #[test]
    fn token_counts_are_whole() {
        assert_eq!(tokens(1, "x", "12"), Ok(12));
        assert_eq!(tokens(1, "x", "12.0"), Ok(12));
        for bad in ["", "-1", "1.5", "NaN", "1e3", ".0", "99999999999999999999"] {
            assert!(tokens(1, "x", bad).is_err(), "{bad:?}");
        }
    }
}
