//! Metadata values.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::{GgufError, GgufProblem};
use crate::json::printable;
use crate::read_at::ReadAt;

/// Arrays of at most this many numbers keep their values: enough for one per layer, several times.
const KEPT_NUMBERS: u64 = 65_536;
/// Arrays of at most this many strings keep them.
const KEPT_STRINGS: u64 = 256;
/// Strings of at most this many bytes are kept; a chat template of 50 MiB is only measured.
const KEPT_BYTES: u64 = 64 << 10;
/// Levels of arrays in arrays that are skipped over; none of llama.cpp's keys has more than one.
pub(super) const MAX_DEPTH: u32 = 4;

macro_rules! value_types {
    ($($variant:ident = $number:literal, $name:literal, $bytes:literal;)*) => {
        /// The type of a metadata value.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ValueType { $(#[doc = $name] $variant,)* }

        impl ValueType {
            /// The type with this number.
            #[must_use]
            pub const fn of(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// Its name, with an article.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Bytes of a value; the least it can have where it varies.
            const fn bytes(self) -> u64 {
                match self { $(Self::$variant => $bytes),* }
            }
        }
    };
}

value_types! {
    U8 = 0, "an unsigned 8-bit number", 1;
    I8 = 1, "a signed 8-bit number", 1;
    U16 = 2, "an unsigned 16-bit number", 2;
    I16 = 3, "a signed 16-bit number", 2;
    U32 = 4, "an unsigned 32-bit number", 4;
    I32 = 5, "a signed 32-bit number", 4;
    F32 = 6, "a 32-bit float", 4;
    Bool = 7, "a boolean", 1;
    String = 8, "a string", 8;
    Array = 9, "an array", 12;
    U64 = 10, "an unsigned 64-bit number", 8;
    I64 = 11, "a signed 64-bit number", 8;
    F64 = 12, "a 64-bit float", 8;
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number of any width, 0 or more.
    Unsigned(u64, ValueType),
    /// A whole number below 0.
    Negative(i64, ValueType),
    /// A float of either width.
    Float(f64, ValueType),
    /// A boolean.
    Bool(bool),
    /// A string; bytes that are not UTF-8 are replaced.
    String(String),
    /// A string too long to keep.
    LongString {
        /// Its length in bytes.
        bytes: u64,
    },
    /// An array.
    Array(Array),
}

/// An array of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Type of its elements.
    pub element: ValueType,
    /// Its length.
    pub len: u64,
    /// Its elements, where it is short enough to keep.
    pub values: Option<Vec<Value>>,
}

impl Value {
    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> ValueType {
        match self {
            Self::Unsigned(_, t) | Self::Negative(_, t) | Self::Float(_, t) => *t,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) | Self::LongString { .. } => ValueType::String,
            Self::Array(_) => ValueType::Array,
        }
    }

    /// A whole number, 0 or more.
    #[must_use]
    pub const fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n, _) => Some(*n),
            _ => None,
        }
    }

    /// A finite number.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "for ratios such as a soft cap")]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Unsigned(n, _) => Some(*n as f64),
            Self::Negative(n, _) => Some(*n as f64),
            Self::Float(f, _) => Some(*f).filter(|f| f.is_finite()),
            _ => None,
        }
    }

    /// A kept string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    /// A boolean.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// An array.
    #[must_use]
    pub const fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(a) => Some(a),
            _ => None,
        }
    }
}

/// All metadata of a file by key.
pub type Metadata = BTreeMap<String, Value>;

/// The element type that the tokenizer's arrays must have: readers index them blindly.
fn required_element(key: &str) -> Option<(&'static [ValueType], &'static str)> {
    Some(match key {
        "tokenizer.ggml.tokens" | "tokenizer.ggml.merges" => {
            (&[ValueType::String], "an array of strings")
        }
        "tokenizer.ggml.scores" => (&[ValueType::F32], "an array of 32-bit floats"),
        "tokenizer.ggml.token_type" => (
            &[ValueType::I32, ValueType::U32],
            "an array of 32-bit numbers",
        ),
        _ => return None,
    })
}

/// Reads the value of `key`, its type's number first.
pub(super) fn read<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    key: &str,
) -> Result<Value, GgufError> {
    let kind = kind(c, key)?;
    let required = required_element(key);
    if let (Some((_, expected)), false) = (required, kind == ValueType::Array) {
        return c.fail(kind.wrong(key, expected));
    }
    if kind != ValueType::Array {
        return scalar(c, key, kind);
    }
    let array = array(c, key, 1)?;
    if let Some((elements, expected)) = required
        && !elements.contains(&array.element)
    {
        return c.fail(array.element.wrong(key, expected));
    }
    Ok(Value::Array(array))
}

pub(super) fn kind<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    key: &str,
) -> Result<ValueType, GgufError> {
    let found = c.u32("the type of a value")?;
    match ValueType::of(found) {
        Some(kind) => Ok(kind),
        None => c.fail(GgufProblem::ValueType {
            key: printable(key),
            found,
        }),
    }
}

fn scalar<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    key: &str,
    kind: ValueType,
) -> Result<Value, GgufError> {
    const WHAT: &str = "a value";
    let signed = |n: i64| match u64::try_from(n) {
        Ok(n) => Value::Unsigned(n, kind),
        Err(_) => Value::Negative(n, kind),
    };
    Ok(match kind {
        ValueType::U8 => Value::Unsigned(c.array::<1>(WHAT)?[0].into(), kind),
        ValueType::U16 => Value::Unsigned(u16::from_le_bytes(c.array(WHAT)?).into(), kind),
        ValueType::U32 => Value::Unsigned(c.u32(WHAT)?.into(), kind),
        ValueType::U64 => Value::Unsigned(c.u64(WHAT)?, kind),
        ValueType::I8 => signed(i8::from_le_bytes(c.array(WHAT)?).into()),
        ValueType::I16 => signed(i16::from_le_bytes(c.array(WHAT)?).into()),
        ValueType::I32 => signed(i32::from_le_bytes(c.array(WHAT)?).into()),
        ValueType::I64 => signed(i64::from_le_bytes(c.array(WHAT)?)),
        ValueType::F32 => Value::Float(f32::from_le_bytes(c.array(WHAT)?).into(), kind),
        ValueType::F64 => Value::Float(f64::from_le_bytes(c.array(WHAT)?), kind),
        ValueType::Bool => match c.array::<1>(WHAT)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            [found] => {
                return c.fail(GgufProblem::Bool {
                    key: printable(key),
                    found,
                });
            }
        },
        ValueType::String => {
            let bytes = c.u64("the length of a string")?;
            c.need(bytes, "a string")?;
            if bytes > KEPT_BYTES || !c.keep(bytes) {
                c.skip(bytes, "a string")?;
                return Ok(Value::LongString { bytes });
            }
            let text = c.bytes(usize::try_from(bytes).unwrap_or(0), "a string")?;
            Value::String(String::from_utf8_lossy(text).into_owned())
        }
        // The caller sends arrays elsewhere.
        ValueType::Array => return c.fail(GgufProblem::Depth(printable(key))),
    })
}

fn array<S: ReadAt + ?Sized>(
    c: &mut Cursor<'_, S>,
    key: &str,
    depth: u32,
) -> Result<Array, GgufError> {
    if depth > MAX_DEPTH {
        return c.fail(GgufProblem::Depth(printable(key)));
    }
    let element = kind(c, key)?;
    let len = c.u64("the length of an array")?;
    let least = len.saturating_mul(element.bytes());
    c.need(least, "an array")?;
    let kept = match element {
        ValueType::Array => 0,
        ValueType::String => KEPT_STRINGS,
        _ => KEPT_NUMBERS,
    };
    let size = len.saturating_mul(size_of::<Value>() as u64);
    let mut values = None;
    if len <= kept && c.keep(size) {
        let mut list = Vec::new();
        for _ in 0..len {
            list.push(scalar(c, key, element)?);
        }
        values = Some(list);
    } else {
        match element {
            ValueType::Array => {
                for _ in 0..len {
                    array(c, key, depth + 1)?;
                }
            }
            ValueType::String => c.skip_strings(len)?,
            _ => c.skip(least, "an array")?,
        }
    }
    Ok(Array {
        element,
        len,
        values,
    })
}
