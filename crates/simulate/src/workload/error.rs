//! [`WorkloadError`]: what is wrong with a workload, where, and what to do about it.

/// Why a workload cannot be opened or read further.
///
/// Lines are counted from 1, a header included, as editors count them.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WorkloadError {
    /// The input has no request.
    #[error("the trace holds no request{}", if *skipped > 0 {
        format!(" after the {skipped} that were skipped: skip fewer")
    } else {
        ": is it the right file, and is it complete?".to_owned()
    })]
    Empty {
        /// Requests that were asked to be passed over.
        skipped: u64,
    },
    /// The operating system could not read on.
    #[error("line {line}: reading failed: {why}")]
    Read {
        /// Where.
        line: u64,
        /// The system's words.
        why: String,
    },
    /// The first line is that of no known format.
    #[error(
        "this is no known trace: it begins with `{seen}`; known are CSV with a header (Azure, \
         BurstGPT, or columns such as prompt_len,output_len) and JSON objects (Mooncake, or \
         fields such as prompt_len and output_len), in UTF-8"
    )]
    UnknownFormat {
        /// How the input begins.
        seen: String,
    },
    /// The format is not the one that was asked for.
    #[error(
        "line 1: asked to read the {asked} format, but this looks like {found}: drop the format \
         to have it recognised"
    )]
    OtherFormat {
        /// The format that was asked for.
        asked: &'static str,
        /// What the first line says.
        found: &'static str,
    },
    /// A header or an object lacks a column that is needed.
    #[error("line {line}: no {what} among `{found}`: expected one named {names}")]
    MissingColumn {
        /// Where.
        line: u64,
        /// What the column would hold.
        what: &'static str,
        /// Names that are understood.
        names: &'static str,
        /// What is there.
        found: String,
    },
    /// The trace has images, which cost tokens that no column tells.
    #[error(
        "line 1: column `NumImages`: image inputs are not modelled; remove the column to take \
         ContextTokens as plain text"
    )]
    Images,
    /// A field is not what it should be.
    #[error("line {line}: {field} is `{value}`: expected {want}")]
    BadField {
        /// Where.
        line: u64,
        /// The field.
        field: &'static str,
        /// What is there, shortened.
        value: String,
        /// What would be right.
        want: &'static str,
    },
    /// A line is not a row of its format.
    #[error("line {line}: not a row: {why}")]
    BadRow {
        /// Where.
        line: u64,
        /// What the parser says.
        why: String,
    },
    /// The input stops inside a row.
    #[error(
        "line {line}: the input ends inside this row: the file is cut short; remove the row or \
         fetch the file again"
    )]
    Truncated {
        /// Where the row begins.
        line: u64,
    },
    /// `hash_ids` do not cover the prompt.
    #[error(
        "line {line}: {ids} hash_ids for {input_tokens} prompt tokens, but blocks of \
         {block_tokens} tokens need {need}: give the block size that the trace was made with"
    )]
    BlocksDiffer {
        /// Where.
        line: u64,
        /// Ids in the row.
        ids: u64,
        /// Ids that the prompt needs.
        need: u64,
        /// Prompt tokens of the row.
        input_tokens: u64,
        /// Tokens per block.
        block_tokens: u64,
    },
    /// A request arrives earlier than one before it.
    #[error(
        "line {line}: it arrives {late_s} s before an earlier row, and rows may be out of order \
         by at most {bound_s} s: sort the trace by time"
    )]
    Unsorted {
        /// Where.
        line: u64,
        /// How much too early, in seconds.
        late_s: f64,
        /// What is forgiven, in seconds.
        bound_s: f64,
    },
    /// A line, or an object of an array, is too long to be a request.
    #[error("line {line}: longer than {bytes_max} bytes: not a trace with one request per row")]
    TooLong {
        /// Where it begins.
        line: u64,
        /// The limit.
        bytes_max: usize,
    },
    /// A looped trace does not fit in the memory set aside for it.
    #[error(
        "the trace is too long to be repeated: its rows need more than {bytes_max} bytes of \
         memory; limit the requests to those of one pass"
    )]
    RepeatTooLong {
        /// The limit.
        bytes_max: u64,
    },
    /// Arrival times leave the range of 2^64 ns (584 years).
    #[error("request {index}: its arrival time exceeds 2^64 ns: raise the rate")]
    TimeOverflow {
        /// Which request, from 0.
        index: u64,
    },
    /// A trace was asked for and no input given.
    #[error("a trace needs an input to read")]
    NoSource,
    /// An input was given to a workload that is generated.
    #[error("a synthetic workload reads no input: drop the trace or the synthetic workload")]
    UnusedSource,
    /// A trace without times, and no rate to make them from.
    #[error("the trace has no arrival times: give a rate in requests per second")]
    NoRate,
    /// The description of the workload makes no sense.
    #[error("{what}: {why}")]
    BadSpec {
        /// Which part.
        what: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
}

/// A [`WorkloadError::BadSpec`].
pub(super) fn bad(what: &'static str, why: impl Into<String>) -> WorkloadError {
    WorkloadError::BadSpec {
        what,
        why: why.into(),
    }
}

/// At most 60 characters of foreign text, for a message; what would move a terminal's cursor is replaced.
pub(super) fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut out: String = text.chars().take(CHARS_MAX).map(visible).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}
