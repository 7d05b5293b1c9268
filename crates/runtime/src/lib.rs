//! What carries steps out: memory, weights, and the executor that walks a program.
//!
//! - [`Arena`]: a region of the plan, committed once; [`SwapSpace`]: one of them, or a file;
//! - [`weights`]: a checkpoint streamed into its arena, packed on the way, never resident twice;
//! - [`Runner`]: steps on a [`Backend`]; [`Cpu`], and so [`CpuExecutor`]: this machine's processors;
//! - [`Ranks`]: a model divided over several backends, which meet in a [`Collective`];
//! - [`Choices`]: the next tokens of all requests, by [`sample`] and each one's parameters;
//! - [`guide`]: grammars that answers keep to;
//! - [`text`]: tokens of texts, texts of tokens, prompts of chats;
//! - [`optests`]: every operation on a device, against the processors, to the bit;
//! - [`Engine`]: the loop that drives an executor by the scheduler.

mod arena;
mod backend;
mod choose;
mod collective;
mod cpu;
pub mod cuda;
mod engine;
pub mod guide;
pub mod optests;
mod ranks;
pub mod sample;
mod swap;
mod teacher;
#[cfg(test)]
mod testing;
pub mod text;
pub mod weights;

pub use arena::{Arena, ArenaError, Element, Part};
pub use backend::{Backend, BackendError, Inside, Measured, Moved, Peaks, Runner, Usage};
pub use choose::{Asking, ChoiceError, Choices, Chooser, Logits};
pub use collective::{Collective, Lost, Meeting};
pub use cpu::{Cpu, CpuExecutor, Memory, StartError, check};
pub use engine::Engine;
pub use ranks::{Ranks, threads_of_rank};
pub use swap::{SwapFileError, SwapSpace};
pub use teacher::{Agreement, Teacher};
