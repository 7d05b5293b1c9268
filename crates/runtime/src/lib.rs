//! What carries steps out: the CPU executor, and the loop that drives it.

mod cpu;
mod engine;

pub use cpu::{CpuExecutor, Memory, Sampling};
pub use engine::Engine;
