//! [`Layout`]: the pool's geometry as the block manager needs it.

use plimsoll_program::{Group, GroupKind, PoolGeometry};
use plimsoll_units::{Bytes, SizeOverflow};

/// One group of layers: what a block of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLayout {
    /// What its layers keep.
    pub kind: GroupKind,
    /// Tokens per block; 0 for a state group.
    pub slots: u32,
    /// Pages of one sequence, for a state group; 0 otherwise.
    pub state_pages: u32,
    /// Bytes of one token over all its layers; of one sequence for a state group.
    pub row: Bytes,
}

/// The groups of one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of one page.
    pub page: Bytes,
    /// The groups.
    pub groups: Vec<GroupLayout>,
    /// Every group's blocks end at multiples of this many tokens: prefixes are shared up to one.
    pub unit: u32,
    /// A recurrent state is kept for reuse every this many tokens; a multiple of `unit`.
    pub snapshot: u32,
}

/// Why a geometry cannot be paged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The model keeps nothing.
    #[error("the model has no layer that keeps anything between tokens: there is nothing to page")]
    Empty,
    /// Blocks end together only after more tokens than a sequence may have.
    #[error(
        "blocks of {0} tokens never end together within 2^31 tokens: choose another block size"
    )]
    NeverAligned(String),
    /// A number of tokens or pages per block is out of range.
    #[error("a block of {0} tokens or pages is out of range")]
    OutOfRange(u64),
    /// A size does not fit 64 bits.
    #[error(transparent)]
    Size(#[from] SizeOverflow),
}

/// Tokens between snapshots of recurrent state unless told otherwise: vLLM's aligned mode keeps one per
/// block of comparable size (FORMULAS section 2).
pub(crate) const SNAPSHOT_TOKENS: u32 = 1024;

impl Layout {
    /// The layout of `geometry`.
    ///
    /// # Errors
    /// [`LayoutError`] where there is nothing to page or blocks cannot be aligned.
    pub fn new(geometry: &PoolGeometry) -> Result<Self, LayoutError> {
        let groups: Vec<GroupLayout> = geometry
            .groups
            .iter()
            .map(GroupLayout::new)
            .collect::<Result<_, _>>()?;
        if groups.is_empty() || geometry.page == Bytes::ZERO {
            return Err(LayoutError::Empty);
        }
        let mut unit = 1_u64;
        for g in groups.iter().filter(|g| !g.is_state()) {
            let slots = u64::from(g.slots);
            unit = unit / gcd(unit, slots) * slots;
            if unit >= 1 << 31 {
                let all: Vec<String> = groups.iter().map(|g| g.slots.to_string()).collect();
                return Err(LayoutError::NeverAligned(all.join(", ")));
            }
        }
        let unit = u32::try_from(unit).map_err(|_| LayoutError::OutOfRange(unit))?;
        let snapshot = SNAPSHOT_TOKENS.div_ceil(unit).saturating_mul(unit);
        Ok(Self {
            page: geometry.page,
            groups,
            unit,
            snapshot,
        })
    }

    /// One full-attention group: `slots` tokens of `row` bytes per block.
    #[must_use]
    pub fn full(slots: u32, row: Bytes) -> Self {
        let slots = slots.max(1);
        Self {
            page: row.times(u64::from(slots)).unwrap_or(Bytes::MAX),
            groups: vec![GroupLayout {
                kind: GroupKind::Full,
                slots,
                state_pages: 0,
                row,
            }],
            unit: slots,
            snapshot: SNAPSHOT_TOKENS.div_ceil(slots).saturating_mul(slots),
        }
    }

    /// Whether any group keeps a recurrent state.
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.groups.iter().any(GroupLayout::is_state)
    }

    /// Where the next chunk of a prompt should end so that its state can be kept: the next multiple of
    /// the snapshot interval, or the last place before the prompt's end at which a prefix can be shared.
    /// `None` where nothing is kept beyond `from`.
    #[must_use]
    pub fn snapshot_after(&self, from: u32, prompt: u32) -> Option<u32> {
        let last = prompt.saturating_sub(1) / self.unit * self.unit;
        let next = (from / self.snapshot)
            .checked_add(1)?
            .checked_mul(self.snapshot)?;
        let end = next.min(last);
        (end > from).then_some(end)
    }

    /// Pages that a sequence of `tokens` holds at most while `in_flight` more are written.
    #[must_use]
    pub fn held(&self, tokens: u64, in_flight: u64) -> u64 {
        self.groups.iter().map(|g| g.held(tokens, in_flight)).sum()
    }

    /// The most pages that a sequence ever holds on its way to `total` tokens, written at most `chunk` at a
    /// time, wherever the chunks begin.
    #[must_use]
    pub fn peak(&self, total: u64, chunk: u64) -> u64 {
        self.groups.iter().map(|g| g.peak(total, chunk)).sum()
    }
}

impl GroupLayout {
    fn new(g: &Group) -> Result<Self, LayoutError> {
        let narrow = |n: u64| {
            u32::try_from(n)
                .ok()
                .filter(|n| *n < 1 << 31)
                .ok_or(LayoutError::OutOfRange(n))
        };
        // A block holds something: tokens, or a part of a state.
        let unit = if g.kind == GroupKind::State {
            g.state_pages
        } else {
            g.slots
        };
        if unit == 0 {
            return Err(LayoutError::OutOfRange(unit));
        }
        Ok(Self {
            kind: g.kind,
            slots: narrow(g.slots)?,
            state_pages: narrow(g.state_pages)?,
            row: g.rate.times(g.layers)?,
        })
    }

    /// Whether it keeps something of every token.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        matches!(self.kind, GroupKind::Full | GroupKind::Latent)
    }

    /// Whether it keeps one state per sequence instead of something per token.
    #[must_use]
    pub fn is_state(&self) -> bool {
        self.kind == GroupKind::State
    }

    /// Pages of this group; see [`Layout::held`].
    #[must_use]
    pub fn held(&self, tokens: u64, in_flight: u64) -> u64 {
        let slots = u64::from(self.slots.max(1));
        let all = tokens.saturating_add(in_flight);
        match self.kind {
            GroupKind::State => u64::from(self.state_pages),
            _ => all.div_ceil(slots) - self.first_needed(tokens) / slots,
        }
    }

    pub(crate) fn peak(&self, total: u64, chunk: u64) -> u64 {
        let slots = u64::from(self.slots.max(1));
        let all = total.div_ceil(slots);
        let kept = match self.kind {
            GroupKind::State => return u64::from(self.state_pages),
            GroupKind::Full | GroupKind::Latent => return all,
            GroupKind::Window(n) | GroupKind::Chunk(n) => n
                .saturating_sub(1)
                .saturating_add(chunk.clamp(1, total.max(1))),
        };
        // The first of `kept` tokens may be a block's last.
        all.min(kept.saturating_sub(1).div_ceil(slots) + 1)
    }

    /// The first token that a query at position `committed` reads.
    #[must_use]
    pub(crate) fn first_needed(&self, committed: u64) -> u64 {
        match self.kind {
            GroupKind::Full | GroupKind::Latent | GroupKind::State => 0,
            GroupKind::Window(w) => committed.saturating_sub(w.saturating_sub(1)),
            GroupKind::Chunk(c) => committed / c.max(1) * c.max(1),
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
