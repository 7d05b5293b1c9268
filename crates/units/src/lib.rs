//! Quantities that every other crate speaks in: bytes, tokens, blocks, ids and element types.
//!
//! Promises: a quantity never wraps (every operation that can overflow returns
//! [`SizeOverflow`]); binary sizes print as GiB and MiB, and both GB and GiB are read and kept
//! apart; an index cannot be used as a count. It knows nothing about models, devices or files.

mod bytes;
mod dtype;
mod ids;
mod weight;

pub use bytes::{Bytes, ParseBytesError, SizeOverflow};
pub use dtype::{DType, ParseDTypeError};
pub use ids::{BlockId, Blocks, LayerId, Nanos, SeqId, Tokens};
pub use weight::{GroupSize, ParseWeightsError, WeightType, Weights};

/// `a / b` rounded up. `b` is a constant or already checked to be non-zero by the caller's type.
///
/// # Panics
/// When `b` is 0, as integer division does.
#[must_use]
pub const fn div_ceil(a: u64, b: u64) -> u64 {
    a.div_ceil(b)
}

/// `a` rounded up to a multiple of `b`, or `None` where that exceeds `u64`.
#[must_use]
pub const fn round_up(a: u64, b: u64) -> Option<u64> {
    a.div_ceil(b).checked_mul(b)
}
