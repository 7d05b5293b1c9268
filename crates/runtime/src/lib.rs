//! What carries steps out: the CPU executor.

mod cpu;

pub use cpu::{CpuExecutor, Memory, Sampling};
