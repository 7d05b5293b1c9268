//! [`Table`]: one sequence's hold on pages, the only handle there is.

use std::collections::VecDeque;

use plimsoll_units::{BlockId, SeqId};

/// Whose requests these are. Dense: 0 is the tenant of a server without tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u16);

impl TenantId {
    /// Nobody's and everybody's: who is charged for pins.
    pub(crate) const HOUSE: Self = Self(u16::MAX);
}

/// Where a block is. Generations tell a page or place from its earlier and later uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Device { page: u32, generation: u32 },
    Host { slot: u32, generation: u32 },
}

/// One group's blocks, from `first` on: earlier ones have left the window.
#[derive(Debug, Default)]
pub(crate) struct GroupTable {
    pub(crate) first: u32,
    pub(crate) blocks: VecDeque<Entry>,
    /// Full blocks whose address is known: all of them while the chain holds.
    pub(crate) published: u32,
    /// Address of the last of them, or the root; `None` where nothing is published any more.
    pub(crate) chain: Option<u128>,
}

impl GroupTable {
    /// One past the last entry's index.
    pub(crate) fn end(&self) -> u32 {
        // Fewer blocks than 2^31 exist.
        self.first + u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn entry(&self, index: u32) -> Option<Entry> {
        self.blocks
            .get(index.checked_sub(self.first)? as usize)
            .copied()
    }
}

/// One sequence's block tables, all groups.
///
/// Not `Clone`: [`crate::KvCache::fork`] makes another one with references of its own, and
/// [`crate::KvCache::release`] takes it back.
#[derive(Debug)]
pub struct Table {
    pub(crate) id: SeqId,
    pub(crate) tenant: TenantId,
    /// Length of the prompt: states are kept near its end.
    pub(crate) prompt: u32,
    pub(crate) committed: u32,
    pub(crate) in_flight: u32,
    pub(crate) on_host: u32,
    pub(crate) groups: Vec<GroupTable>,
}

impl Table {
    /// The sequence.
    #[must_use]
    pub const fn id(&self) -> SeqId {
        self.id
    }

    /// Tokens whose keys and values are there.
    #[must_use]
    pub const fn committed(&self) -> u32 {
        self.committed
    }

    /// Tokens being written.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether every block is on the device.
    #[must_use]
    pub const fn is_resident(&self) -> bool {
        self.on_host == 0
    }

    /// Blocks held, all groups, on the device or not.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.groups.iter().map(|g| g.blocks.len() as u64).sum()
    }

    /// Blocks that are on the device.
    #[must_use]
    pub fn on_device(&self) -> u64 {
        self.blocks() - u64::from(self.on_host)
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|g| g.blocks.is_empty())
    }

    /// The pages of `group` from its first held block on; `None` for a block in swap space.
    pub fn pages(&self, group: usize) -> impl Iterator<Item = Option<BlockId>> + '_ {
        self.groups
            .get(group)
            .into_iter()
            .flat_map(|g| g.blocks.iter())
            .map(|e| match e {
                Entry::Device { page, .. } => Some(BlockId(*page)),
                Entry::Host { .. } => None,
            })
    }

    /// Index of the first block of `group` that is held.
    #[must_use]
    pub fn first(&self, group: usize) -> u32 {
        self.groups.get(group).map_or(0, |g| g.first)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (usize, Entry)> + '_ {
        self.groups
            .iter()
            .enumerate()
            .flat_map(|(g, t)| t.blocks.iter().map(move |e| (g, *e)))
    }
}

#[cfg(debug_assertions)]
impl Drop for Table {
    fn drop(&mut self) {
        // While a panic unwinds the pool is going down too.
        if !std::thread::panicking() {
            assert!(
                self.is_empty(),
                "the table of sequence {} was dropped with blocks in it: give it back by KvCache::release",
                self.id
            );
        }
    }
}
