//! [`Arrival`]: one request of a workload, as a trace or a generator gives it.

use std::sync::Arc;

use plimsoll_units::Nanos;

/// A request before the scheduler sees it, and what the world knows beyond: its true length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When it arrives, since the start of the workload.
    pub at: Nanos,
    /// Tokens of the prompt, at least 1.
    pub prompt_tokens: u64,
    /// Tokens that each sequence will have generated when it ends by itself, at least 1.
    pub output_tokens: u64,
    /// What the prompt consists of, as far as the prefix cache can tell.
    pub content: Content,
    /// How sequences of one request fan out.
    pub fan: Fan,
    /// Whose it is.
    pub tenant: u32,
    /// Lower goes first; 0 unless told.
    pub priority: i32,
}

/// How sequences of one request fan out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fan {
    /// One sequence.
    #[default]
    One,
    /// `n` sequences sampled from one prompt.
    Parallel(u32),
    /// A beam search of this width.
    Beam(u32),
}

/// What a prompt consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Tokens that no other request has.
    #[default]
    Unique,
    /// The first `tokens` are those of every request with the same `id`; the rest is unique.
    SharedPrefix {
        /// Which prefix.
        id: u64,
        /// How long it is.
        tokens: u64,
    },
    /// Runs of `block_tokens` tokens, each known by an id (Mooncake's `hash_ids`); equal ids at equal
    /// places mean equal tokens.
    Blocks {
        /// One id per run, the last of which may be partly used.
        ids: Arc<[u64]>,
        /// Tokens per run.
        block_tokens: u64,
    },
}
