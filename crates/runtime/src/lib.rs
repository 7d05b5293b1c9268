//! What stands between a program and its kernels: memory, weights, text and samples.
//!
//! - [`Arena`]: a region of the plan, committed once;

mod arena;

pub use arena::{Arena, ArenaError, Element, Part};
