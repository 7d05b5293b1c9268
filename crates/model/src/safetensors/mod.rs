//! Safetensors headers: which tensors a file holds, of which type and shape, and where.
//!
//! Promises: only the header is read; whatever the bytes are, the answer is a header whose
//! tensors tile the file exactly, or one error with the offset, the reason and the next step.
//! Nothing is allocated on the word of a file before the file is known to be that long.
//!
//! Format: 8 bytes little-endian length, a JSON object of that length, then the data (`README.md`
//! and `safetensors/src/tensor.rs` of the reference implementation, 0.8). Stricter than the
//! reference in two points: a key that occurs twice is refused, and so is a rank above 16.

mod apply;
mod header;
mod index;

pub use apply::{HeaderMismatch, spec_with_headers};
pub use header::{
    MAX_HEADER_BYTES, SafetensorsError, SafetensorsHeader, SafetensorsProblem, StoredTensor,
};
pub use index::{Index, IndexError};
