//! What stands between a program and its kernels: memory, weights, text and samples.
//!
//! - [`Arena`]: a region of the plan, committed once;
//! - [`weights`]: a checkpoint streamed into its arena, packed on the way, never resident twice.

mod arena;
pub mod weights;

pub use arena::{Arena, ArenaError, Element, Part};
