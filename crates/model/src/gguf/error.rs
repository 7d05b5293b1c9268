//! Why a file is no GGUF file that can be trusted.

use plimsoll_units::DType;

use super::ValueType;
use crate::read_at::{NotAModel, ReadError};

/// What is wrong with a GGUF file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {problem}")]
pub struct GgufError {
    /// Where in the file.
    pub offset: u64,
    /// What is wrong there.
    pub problem: GgufProblem,
}

/// What is wrong with a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufProblem {
    /// Something else under this name.
    #[error("this is {}", .0.name())]
    NotAModel(NotAModel),
    /// Not the four letters.
    #[error("the file begins with `{found}`, not with `GGUF`")]
    Magic {
        /// The first four bytes, escaped.
        found: String,
    },
    /// The first version, whose lengths have 32 bits.
    #[error(
        "GGUF version 1 is not supported: its lengths have 32 bits, and llama.cpp dropped it in 2023"
    )]
    Version1,
    /// A big-endian file.
    #[error("the file is big-endian (its version reads {0:#010x})")]
    BigEndian(u32),
    /// A version from the future, or nonsense.
    #[error("GGUF version {0} is unknown; versions 2 and 3 are read")]
    Version(u32),
    /// The file ends inside the header.
    #[error("{what} needs {needed} bytes, but {left} are left in the file")]
    PastEnd {
        /// What was being read.
        what: &'static str,
        /// Bytes it needs, at least.
        needed: u64,
        /// Bytes left.
        left: u64,
    },
    /// More than any real file.
    #[error("{what} is {value}; at most {max} is accepted")]
    TooMany {
        /// What was being read.
        what: &'static str,
        /// The value.
        value: u64,
        /// Largest accepted.
        max: u64,
    },
    /// A key or name that is not UTF-8, empty, or holds a NUL byte.
    #[error("{what} {reason}")]
    BadName {
        /// Which name.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A key that occurs twice.
    #[error("the key `{0}` occurs twice")]
    DuplicateKey(String),
    /// A value type that does not exist.
    #[error("the key `{key}` has the unknown value type {found}")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        found: u32,
    },
    /// Arrays inside arrays beyond what is accepted.
    #[error("the key `{0}` nests arrays more than {max} deep", max = super::value::MAX_DEPTH)]
    Depth(String),
    /// A boolean that is neither.
    #[error("the key `{key}` is a boolean of value {found}")]
    Bool {
        /// The key.
        key: String,
        /// The byte.
        found: u8,
    },
    /// A key whose type is fixed by the format has another.
    #[error("the key `{key}` is {found}; it must be {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// Its type.
        found: String,
        /// The type it must have.
        expected: &'static str,
    },
    /// An alignment that cannot be.
    #[error("general.alignment is {0}; it must be a power of two from 8 to 1048576")]
    Alignment(u32),
    /// A tensor without, or with too many, dimensions.
    #[error("tensor `{tensor}` has {found} dimensions; 1 to 4 are possible")]
    Dims {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        found: u32,
    },
    /// A dimension of zero.
    #[error("tensor `{tensor}` has an empty or negative dimension: {shape:?}")]
    EmptyDim {
        /// The tensor.
        tensor: String,
        /// Its shape, innermost first.
        shape: Vec<u64>,
    },
    /// A shape or size past 63 bits.
    #[error("tensor `{tensor}` has the shape {shape:?}, whose size exceeds 2^63")]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// Its shape, innermost first.
        shape: Vec<u64>,
    },
    /// A tensor type that does not exist, or not any more.
    #[error("tensor `{tensor}` has the type {found}, {what}")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// The type's number.
        found: u32,
        /// What is known of it.
        what: String,
    },
    /// A row that is no whole number of blocks.
    #[error(
        "tensor `{tensor}` has rows of {row} elements, no multiple of the {block} that a block of {dtype} holds"
    )]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Elements of a row.
        row: u64,
        /// Elements of a block.
        block: u64,
        /// Its type.
        dtype: DType,
    },
    /// A tensor that occurs twice.
    #[error("the tensor `{0}` occurs twice")]
    DuplicateTensor(String),
    /// An offset that is not aligned.
    #[error(
        "tensor `{tensor}` begins at {begin} of the data, no multiple of the alignment {alignment}"
    )]
    Unaligned {
        /// The tensor.
        tensor: String,
        /// Its offset.
        begin: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Data past the end of the file.
    #[error(
        "tensor `{tensor}` ends at byte {needed} of the file, which has {size}: it is truncated"
    )]
    Truncated {
        /// The tensor.
        tensor: String,
        /// Size the file should have at least.
        needed: u64,
        /// Size it has.
        size: u64,
    },
    /// Two tensors share bytes.
    #[error("tensor `{tensor}` begins inside `{other}`")]
    Overlap {
        /// The later tensor.
        tensor: String,
        /// The earlier one.
        other: String,
    },
    /// The bytes could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl GgufError {
    /// What the reader can do.
    #[must_use]
    pub fn next_step(&self) -> &'static str {
        match &self.problem {
            GgufProblem::NotAModel(what) => what.next_step(),
            GgufProblem::Version1 => "convert the model again with a llama.cpp of 2024 or later",
            GgufProblem::BigEndian(_) => {
                "convert it: `gguf-py/gguf/scripts/gguf_convert_endian.py FILE little`"
            }
            GgufProblem::Version(_) => "update this program, or convert the model to version 3",
            GgufProblem::PastEnd { .. } | GgufProblem::Truncated { .. } => {
                "the download is incomplete: fetch the file again and compare its size"
            }
            GgufProblem::TensorType { .. } => {
                "quantise the model again with a current llama.cpp; if the type is new, report it"
            }
            GgufProblem::Magic { .. } => "check that this is a GGUF file",
            GgufProblem::Read(_) => "check the disk or the connection and try again",
            _ => "convert the model again, or fetch it from a source that you trust",
        }
    }
}

impl ValueType {
    pub(super) fn wrong(self, key: &str, expected: &'static str) -> GgufProblem {
        GgufProblem::WrongType {
            key: crate::json::printable(key),
            found: self.name().to_owned(),
            expected,
        }
    }
}
