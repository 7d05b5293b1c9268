//! What carries steps out: memory, weights, and the executor that walks a program.
//!
//! - [`Arena`]: a region of the plan, committed once;
//! - [`weights`]: a checkpoint streamed into its arena, packed on the way, never resident twice;
//! - [`CpuExecutor`]: steps on this machine's processors;
//! - [`sample`]: the next token, from a row of logits;
//! - [`Engine`]: the loop that drives an executor by the scheduler.

mod arena;
mod cpu;
mod engine;
pub mod sample;
pub mod weights;

pub use arena::{Arena, ArenaError, Element, Part};
pub use cpu::{CpuExecutor, Memory, Sampling, StartError};
pub use engine::Engine;
