//! What stands between a program and its kernels: memory, weights, text and samples.
//!
//! - [`Arena`]: a region of the plan, committed once;
//! - [`sample`]: the next token, from a row of logits;
//! - [`text`]: tokens of texts, texts of tokens, prompts of chats;
//! - [`weights`]: a checkpoint streamed into its arena, packed on the way, never resident twice.

mod arena;
pub mod sample;
#[cfg(test)]
mod testing;
pub mod text;
pub mod weights;

pub use arena::{Arena, ArenaError, Element, Part};
