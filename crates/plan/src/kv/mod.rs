//! KV cache laws: what a load needs of a pool, and what a pool carries.
//!
//! Every engine's allocator answers the same two questions through [`KvLaw`], so one solver serves
//! all of them.

mod contiguous;
mod mixed;
mod paged;
mod tokens;

use plimsoll_program::GroupKind;
use plimsoll_units::Bytes;

pub use contiguous::{ContiguousLaw, round_to_power_of_two};
pub use mixed::{Lengths, MixedLaw};
pub use paged::{Held, LogRule, PagedGroup, PagedLaw, StartRule};
pub use tokens::TokenLaw;

use crate::error::PlanError;
use crate::settings::Load;
use crate::term::Term;

/// How an engine allocates the KV cache on one rank.
pub trait KvLaw {
    /// The least pool that carries `load`, and where its bytes go.
    ///
    /// Monotone: more users or tokens never need less.
    ///
    /// # Errors
    /// [`PlanError::Size`] past 64 bits.
    fn need(&self, load: &Load) -> Result<Need, PlanError>;

    /// What a pool of `pool` bytes is in this engine's own words, for requests of `max_len` tokens.
    ///
    /// # Errors
    /// [`PlanError::Size`] past 64 bits.
    fn capacity(&self, pool: Bytes, max_len: u64) -> Result<Capacity, PlanError>;

    /// The least pool with which the engine starts at all when told to accept `max_len` tokens;
    /// `None` where it asks for nothing.
    ///
    /// # Errors
    /// [`PlanError::Size`] past 64 bits.
    fn start(&self, _max_len: u64) -> Result<Option<Bytes>, PlanError> {
        Ok(None)
    }

    /// Memory beside the pool that depends on the load (llama.cpp's compute buffer).
    ///
    /// # Errors
    /// [`PlanError::Size`] past 64 bits.
    fn beside(&self, load: &Load) -> Result<Bytes, PlanError> {
        let _ = load;
        Ok(Bytes::ZERO)
    }

    /// The same, line by line; its upper ends add up to [`KvLaw::beside`].
    ///
    /// # Errors
    /// [`PlanError::Size`] past 64 bits.
    fn beside_terms(&self, load: &Load) -> Result<Vec<Term>, PlanError> {
        let _ = load;
        Ok(Vec::new())
    }
}

/// What a load needs, in the four classes of waste of the `PagedAttention` paper (section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// The least pool.
    pub pool: Bytes,
    /// Keys, values and states of tokens that exist.
    pub token_states: Bytes,
    /// Held for tokens that may come.
    pub reserved: Bytes,
    /// Held in blocks, chunks or padding without a token to fill it.
    pub internal: Bytes,
    /// Lost between allocations.
    pub external: Bytes,
}

/// A pool in its engine's own words.
#[derive(Clone, Debug, PartialEq)]
pub struct Capacity {
    /// Blocks (vLLM: `num_gpu_blocks`; llama.cpp: cells), where the engine has them.
    pub blocks: Option<u64>,
    /// Bytes of one block, over all layers that share it.
    pub bytes_per_block: Bytes,
    /// Tokens per block of the first group.
    pub block_size: u64,
    /// Tokens that the pool holds, as the engine prints it.
    pub tokens: u64,
    /// Requests of `max_len` tokens that the pool holds, as the engine prints it.
    pub max_concurrency: f64,
    /// The groups.
    pub groups: Vec<GroupReport>,
}

/// One group of layers in a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    /// What the layers keep.
    pub kind: GroupKind,
    /// Layers of the model.
    pub layers: u64,
    /// Layers that exist only as padding.
    pub padding_layers: u64,
    /// Tokens per block.
    pub block_size: u64,
    /// Bytes of one layer's page; of all layers' pages together where they differ.
    pub page: Bytes,
    /// Blocks of one request of the longest length.
    pub blocks_per_request: u64,
}
