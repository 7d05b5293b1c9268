//! GGUF headers: the metadata and tensor list of llama.cpp's model files.
//!
//! Promises: only the header is read, through a window, and long arrays (a tokenizer's words) are
//! skipped and leave only their length; every count, length and offset is checked against what is
//! left of the file before anything is allocated; the answer is a header whose tensors lie aligned,
//! apart and inside the file, or one error with the offset, the reason and the next step.
//!
//! Format: `gguf.md` of ggml, versions 2 and 3 (they differ only in big-endian files, which are
//! refused); checks as in `ggml/src/gguf.cpp`, and stricter where the format is: alignment is a
//! multiple of 8, a boolean is 0 or 1, the tokenizer's arrays have the element types they must.

mod config;
mod cursor;
mod error;
mod fields;
mod gemma4;
mod header;
mod routed;
mod split;
mod tensors;
mod types;
mod value;
mod vocabulary;

pub use config::to_config;
pub use error::{GgufError, GgufProblem};
pub use header::{GgufTensor, Header};
pub use split::{Split, SplitError, join, sibling_names, split_name};
pub use tensors::{GgufSpecError, role_of, spec, tensors};
pub use types::dtype;
pub use value::{Array, Metadata, Value, ValueType};
pub use vocabulary::Vocabulary;
