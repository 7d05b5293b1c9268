//! [`Vocabulary`]: the long arrays of a tokenizer, which [`Header`](super::Header) only measures.

use super::cursor::Cursor;
use super::header::{
    LEAST_KEY, LEAST_TENSOR, MAX_KEY, MAX_KEYS, MAX_TENSORS, count, name, preamble,
};
use super::value::{self, ValueType};
use super::{GgufError, GgufProblem};
use crate::read_at::ReadAt;

/// Most tokens, and most merges, that are accepted; the largest vocabularies of today have 262,144.
const MAX_ENTRIES: u64 = 1 << 20;
/// Bytes of all strings together at most; those of the largest have some MB.
const MAX_BYTES: u64 = 64 << 20;

/// The arrays of `tokenizer.ggml`; empty where the file has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// Tokens by id.
    pub tokens: Vec<String>,
    /// How soon SentencePiece merges to each token.
    pub scores: Vec<f32>,
    /// What each token is: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub types: Vec<u32>,
    /// Merges of a BPE, first to last: two tokens with a space between.
    pub merges: Vec<String>,
}

impl Vocabulary {
    /// Reads the arrays of a file whose header was read and checked.
    ///
    /// # Errors
    /// [`GgufError`] where they are longer than any real ones, or the file changed since.
    pub fn read(source: &(impl ReadAt + ?Sized)) -> Result<Self, GgufError> {
        let mut c = Cursor::new(source);
        preamble(&mut c, source)?;
        count(&mut c, "the number of tensors", LEAST_TENSOR, MAX_TENSORS)?;
        let keys = count(&mut c, "the number of keys", LEAST_KEY, MAX_KEYS)?;
        let mut all = Self::default();
        let mut left = MAX_BYTES;
        for _ in 0..keys {
            let key = name(&mut c, "a key", MAX_KEY)?;
            match key.as_str() {
                "tokenizer.ggml.tokens" => all.tokens = strings(&mut c, &key, &mut left)?,
                "tokenizer.ggml.merges" => all.merges = strings(&mut c, &key, &mut left)?,
                "tokenizer.ggml.scores" => {
                    let bits = words(&mut c, &key, &[ValueType::F32])?;
                    all.scores = bits.into_iter().map(f32::from_bits).collect();
                }
                "tokenizer.ggml.token_type" => {
                    all.types = words(&mut c, &key, &[ValueType::I32, ValueType::U32])?;
                }
                _ => {
                    value::read(&mut c, &key)?;
                }
            }
        }
        Ok(all)
    }
}

/// The length of an array of one of these types, of entries of at least `least` bytes.
fn array<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    key: &str,
    elements: &[ValueType],
    least: u64,
) -> Result<u64, GgufError> {
    let expected = "an array of strings or 32-bit numbers";
    let outer = value::kind(c, key)?;
    if outer != ValueType::Array {
        return c.fail(outer.wrong(key, expected));
    }
    let inner = value::kind(c, key)?;
    if !elements.contains(&inner) {
        return c.fail(inner.wrong(key, expected));
    }
    let len = c.u64("the length of an array")?;
    c.need(len.saturating_mul(least), "an array")?;
    if len > MAX_ENTRIES {
        return c.fail(GgufProblem::TooMany {
            what: "the length of a tokenizer's array",
            value: len,
            max: MAX_ENTRIES,
        });
    }
    Ok(len)
}

fn strings<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    key: &str,
    left: &mut u64,
) -> Result<Vec<String>, GgufError> {
    let len = array(c, key, &[ValueType::String], 8)?;
    let mut all = Vec::new();
    for _ in 0..len {
        let bytes = c.u64("the length of a string in an array")?;
        c.need(bytes, "a string in an array")?;
        let Some(rest) = left.checked_sub(bytes) else {
            return c.fail(GgufProblem::TooMany {
                what: "the bytes of a tokenizer's strings",
                value: MAX_BYTES.saturating_add(bytes),
                max: MAX_BYTES,
            });
        };
        *left = rest;
        let text = c.bytes(usize::try_from(bytes).unwrap_or(0), "a string in an array")?;
        all.push(String::from_utf8_lossy(text).into_owned());
    }
    Ok(all)
}

fn words<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    key: &str,
    elements: &[ValueType],
) -> Result<Vec<u32>, GgufError> {
    let len = array(c, key, elements, 4)?;
    (0..len).map(|_| c.u32("an element of an array")).collect()
}
