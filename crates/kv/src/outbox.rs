//! What the block manager asks of an executor, as values: table changes, copies, transfers; and what it
//! tells whoever routes on cached prefixes.

use plimsoll_units::{BlockId, SeqId};

/// A change of one sequence's block table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Whose table.
    pub seq: SeqId,
    /// Which group's.
    pub group: u8,
    /// What changes.
    pub op: DeltaOp,
}

/// What changes in a block table. Indices count from the sequence's first token, whether or not
/// earlier blocks have left a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaOp {
    /// Entry `index` is new.
    Append {
        /// Which entry.
        index: u32,
        /// Its page.
        page: BlockId,
    },
    /// Entry `index` is another page from now on.
    Replace {
        /// Which entry.
        index: u32,
        /// Its page.
        page: BlockId,
    },
    /// Entries from `len` on are gone.
    Truncate {
        /// Entries that stay.
        len: u32,
    },
}

/// One page copied to another on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Read.
    pub from: BlockId,
    /// Written.
    pub to: BlockId,
}

/// One page moved to or from swap space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapOp {
    /// Which request group moves; outcomes are reported by it.
    pub tag: u64,
    /// The page on the device.
    pub page: BlockId,
    /// The place in swap space.
    pub slot: u32,
    /// Generation of what lies there: what is read must carry the one that was written.
    pub generation: u32,
}

/// What changed in the prefix index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// A block can be found.
    Stored {
        /// Its address.
        address: u128,
        /// The address of the block before it; `None` at the start.
        parent: Option<u128>,
        /// Its tokens.
        tokens: Vec<u32>,
        /// Its group.
        group: u8,
    },
    /// A block can no longer be found.
    Removed {
        /// Its address.
        address: u128,
        /// Its group.
        group: u8,
    },
    /// No block can be found any more.
    Cleared,
}

/// What has accumulated since the executor was last told. It is carried out in this order: pages go out,
/// pages come in, pages are copied, then rows are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbox {
    /// Table changes, in order.
    pub deltas: Vec<Delta>,
    /// Copies; no page is both read and written by them.
    pub copies: Vec<BlockCopy>,
    /// Pages that go to swap space.
    pub swaps_out: Vec<SwapOp>,
    /// Pages that come back.
    pub swaps_in: Vec<SwapOp>,
}
