//! The header of one GGUF file.

use std::collections::BTreeSet;

use plimsoll_units::{Bytes, DType};

use super::cursor::Cursor;
use super::types::dtype;
use super::value::{self, Metadata, Value, ValueType};
use super::{GgufError, GgufProblem};
use crate::json::printable;
use crate::read_at::{NotAModel, ReadAt};

/// Longest key, by the format.
pub(super) const MAX_KEY: u64 = 65_535;
/// Longest tensor name: `GGML_MAX_NAME` is 64 with the closing NUL.
const MAX_NAME: u64 = 63;
/// Alignment where the file states none, by the format.
const DEFAULT_ALIGNMENT: u32 = 32;
/// Largest accepted alignment; no converter writes more than a page.
const MAX_ALIGNMENT: u32 = 1 << 20;
/// Least bytes of a key with its value: length, one letter, type, one byte.
pub(super) const LEAST_KEY: u64 = 8 + 1 + 4 + 1;
/// Least bytes of a tensor's entry: length, one letter, dimensions, one of them, type, offset.
pub(super) const LEAST_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;
/// Most tensors that are accepted; files of today have below 3,000.
pub(super) const MAX_TENSORS: u64 = 1 << 18;
/// Most keys that are accepted; files of today have below 100.
pub(super) const MAX_KEYS: u64 = 1 << 12;

/// Metadata and tensors of one file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The metadata.
    pub metadata: Metadata,
    /// The tensors, in file order.
    pub tensors: Vec<GgufTensor>,
    /// Every tensor begins at a multiple of this.
    pub alignment: u64,
    /// Where the data begins.
    pub data_start: u64,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its shape, outermost dimension first, as everywhere in this program (the file has it the
    /// other way round).
    pub shape: Vec<u64>,
    /// First byte, counted from the start of the data.
    pub begin: u64,
    /// Byte after the last.
    pub end: u64,
}

impl Header {
    /// Reads and checks the header of `source`.
    ///
    /// # Errors
    /// [`GgufError`] with the offset of the first rule that is broken.
    pub fn read(source: &(impl ReadAt + ?Sized)) -> Result<Self, GgufError> {
        let mut c = Cursor::new(source);
        let version = preamble(&mut c, source)?;
        let tensor_count = count(&mut c, "the number of tensors", LEAST_TENSOR, MAX_TENSORS)?;
        let key_count = count(&mut c, "the number of keys", LEAST_KEY, MAX_KEYS)?;

        let mut metadata = Metadata::new();
        for _ in 0..key_count {
            let offset = c.offset();
            let key = name(&mut c, "a key", MAX_KEY)?;
            let value = value::read(&mut c, &key)?;
            if metadata.contains_key(&key) {
                let problem = GgufProblem::DuplicateKey(printable(&key));
                return Err(GgufError { offset, problem });
            }
            metadata.insert(key, value);
        }
        let alignment = alignment(&metadata).map_err(|problem| GgufError { offset: 0, problem })?;

        let mut tensors = Vec::new();
        let mut names = BTreeSet::new();
        for _ in 0..tensor_count {
            let offset = c.offset();
            let tensor = tensor(&mut c, alignment)?;
            if !names.insert(tensor.name.clone()) {
                let problem = GgufProblem::DuplicateTensor(printable(&tensor.name));
                return Err(GgufError { offset, problem });
            }
            tensors.push(tensor);
        }
        // The header is inside the file, so rounding up cannot overflow by more than `alignment`.
        let data_start = c.offset().div_ceil(alignment).saturating_mul(alignment);
        check_extents(&tensors, data_start, source.size())?;
        Ok(Self {
            version,
            metadata,
            tensors,
            alignment,
            data_start,
        })
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The tensor with this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

/// Magic and version.
pub(super) fn preamble<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    source: &S,
) -> Result<u32, GgufError> {
    let mut start = vec![0; usize::try_from(source.size().min(64)).unwrap_or(0)];
    source.read_at(0, &mut start).map_err(|err| GgufError {
        offset: 0,
        problem: err.into(),
    })?;
    if !start.starts_with(b"GGUF") {
        if let Some(what) = NotAModel::sniff(&start) {
            return c.fail(GgufProblem::NotAModel(what));
        }
        c.need(4, "the magic number")?;
        let found = start
            .iter()
            .take(4)
            .copied()
            .flat_map(std::ascii::escape_default)
            .map(char::from);
        return c.fail(GgufProblem::Magic {
            found: found.collect(),
        });
    }
    c.skip(4, "the magic number")?;
    let version = c.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        1 => c.fail(GgufProblem::Version1),
        // A small number in the other byte order.
        v if v != 0 && v & 0xffff == 0 => c.fail(GgufProblem::BigEndian(v)),
        v => c.fail(GgufProblem::Version(v)),
    }
}

/// A count whose entries have at least `least` bytes each.
pub(super) fn count<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    what: &'static str,
    least: u64,
    max: u64,
) -> Result<u64, GgufError> {
    let n = c.u64(what)?;
    c.within(n.saturating_mul(least), what)?;
    if n > max {
        return c.fail(GgufProblem::TooMany {
            what,
            value: n,
            max,
        });
    }
    Ok(n)
}

/// A key or tensor name: 1 to `max` bytes of UTF-8 without NUL.
pub(super) fn name<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    what: &'static str,
    max: u64,
) -> Result<String, GgufError> {
    let len = c.u64(what)?;
    c.within(len, what)?;
    if len > max {
        return c.fail(GgufProblem::TooMany {
            what,
            value: len,
            max,
        });
    }
    let text =
        std::str::from_utf8(c.bytes(usize::try_from(len).unwrap_or(0), what)?).map(str::to_owned);
    let bad = |reason| GgufProblem::BadName { what, reason };
    match text {
        Err(_) => c.fail(bad("is not UTF-8")),
        Ok(t) if t.is_empty() => c.fail(bad("is empty")),
        Ok(t) if t.contains('\0') => c.fail(bad("holds a NUL byte")),
        Ok(t) => Ok(t),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufProblem> {
    const KEY: &str = "general.alignment";
    let stated = match metadata.get(KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(n, ValueType::U32)) => u32::try_from(*n).unwrap_or(u32::MAX),
        Some(other) => return Err(other.kind().wrong(KEY, "an unsigned 32-bit number")),
    };
    if !stated.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&stated) {
        return Err(GgufProblem::Alignment(stated));
    }
    Ok(stated.into())
}

fn tensor<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    alignment: u64,
) -> Result<GgufTensor, GgufError> {
    let name = name(c, "a tensor's name", MAX_NAME)?;
    let tensor = || printable(&name);
    let dims = c.u32("the number of dimensions")?;
    if !(1..=4).contains(&dims) {
        return c.fail(GgufProblem::Dims {
            tensor: tensor(),
            found: dims,
        });
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        shape.push(c.u64("a dimension")?);
    }
    // ggml's dimensions are signed.
    if shape.iter().any(|&d| d == 0 || d > i64::MAX as u64) {
        return c.fail(GgufProblem::EmptyDim {
            tensor: tensor(),
            shape,
        });
    }
    let number = c.u32("a tensor's type")?;
    let dtype = match dtype(number) {
        Ok(d) => d,
        Err(what) => {
            return c.fail(GgufProblem::TensorType {
                tensor: tensor(),
                found: number,
                what,
            });
        }
    };
    let (row, block) = (shape.first().copied().unwrap_or(0), dtype.block_elements());
    if !row.is_multiple_of(block) {
        return c.fail(GgufProblem::PartialBlock {
            tensor: tensor(),
            row,
            block,
            dtype,
        });
    }
    let elements = Bytes::product(shape.iter().copied()).ok().map(Bytes::get);
    let size = elements.and_then(|n| dtype.bytes(n).ok()).map(Bytes::get);
    let begin = c.u64("a tensor's offset")?;
    if !begin.is_multiple_of(alignment) {
        return c.fail(GgufProblem::Unaligned {
            tensor: tensor(),
            begin,
            alignment,
        });
    }
    let end = size
        .and_then(|s| begin.checked_add(s))
        .filter(|&e| e <= i64::MAX as u64);
    let (Some(_), Some(end)) = (elements.filter(|&n| n <= i64::MAX as u64), end) else {
        return c.fail(GgufProblem::ShapeOverflow {
            tensor: tensor(),
            shape,
        });
    };
    shape.reverse();
    Ok(GgufTensor {
        name,
        dtype,
        shape,
        begin,
        end,
    })
}

/// No tensor may leave the file or share bytes with another.
fn check_extents(tensors: &[GgufTensor], data_start: u64, size: u64) -> Result<(), GgufError> {
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_by_key(|t| (t.begin, t.end));
    let mut last: Option<&GgufTensor> = None;
    for t in order {
        let offset = data_start.saturating_add(t.begin);
        let needed = data_start.saturating_add(t.end);
        let tensor = printable(&t.name);
        if needed > size {
            return Err(GgufError {
                offset,
                problem: GgufProblem::Truncated {
                    tensor,
                    needed,
                    size,
                },
            });
        }
        if let Some(other) = last.filter(|o| t.begin < o.end) {
            let other = printable(&other.name);
            return Err(GgufError {
                offset,
                problem: GgufProblem::Overlap { tensor, other },
            });
        }
        last = Some(t);
    }
    Ok(())
}
