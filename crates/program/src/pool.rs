//! [`PoolGeometry`]: one pool of equal pages per device, and what a sequence holds of it.
//!
//! Layers are grouped by what they keep. One block of every group is exactly one page: the group
//! with the most bytes per token sets the page at the asked block size, and every other group packs
//! as many slots of all its layers into a page as fit. What is left over in a page is padding and
//! is counted as internal fragmentation. A state group keeps a fixed number of pages per sequence.

use plimsoll_model::{
    Attention, CrossAttention, LatentAttention, Mixer, ModelSpec, Reach, ShardError, StateKind,
    StateSpace, local_kv_heads,
};
use plimsoll_units::{Blocks, Bytes, DType, SizeOverflow, Tokens};

use crate::parallel::{Parallel, Stage};

/// What the layers of a group keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// Keys and values of every token.
    Full,
    /// Keys and values of the last `n` tokens.
    Window(u64),
    /// Keys and values of the current chunk of `n` tokens.
    Chunk(u64),
    /// One latent vector per token.
    Latent,
    /// What has one size for a sequence of any length: a recurrent state, or keys and values of an encoder's output.
    State,
}

/// Layers that keep the same kind of thing in the same shape, and how they lie in a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What they keep.
    pub kind: GroupKind,
    /// Number of layers.
    pub layers: u64,
    /// Bytes of one token in one layer (of one sequence for a state).
    pub rate: Bytes,
    /// Tokens per block; 0 for a state group.
    pub slots: u64,
    /// Pages of one sequence, for a state group; 0 otherwise.
    pub state_pages: u64,
    /// Bytes of a page that no slot uses.
    pub padding: Bytes,
}

/// The pool's layout on one rank of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolGeometry {
    /// Bytes of one page.
    pub page: Bytes,
    /// The groups, in order of their first layer.
    pub groups: Vec<Group>,
}

/// Types and sizes that decide the geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvRules {
    /// Type of cached keys, values and latents.
    pub dtype: DType,
    /// Type of the recurrent states that fix none, and of the inputs that their convolutions keep.
    pub state_dtype: DType,
    /// Tokens per block of the group with the most bytes per token.
    pub block_size: u64,
}

impl KvRules {
    /// Plimsoll's own: recurrences run in f32, and what they keep is never rounded.
    #[must_use]
    pub const fn plimsoll(dtype: DType, block_size: u64) -> Self {
        Self {
            dtype,
            state_dtype: DType::F32,
            block_size,
        }
    }
}

/// Bytes of the KV cache that one token of one layer needs on one rank of `tp`.
///
/// `local KV heads × (key size + value size) × element`; heads below the degree are replicated,
/// and a latent vector is whole on every rank. int8 adds one f32 scale per head for K and for V: in a page they follow
/// the keys and values of their layer.
///
/// # Errors
/// [`ShardError`] where the heads do not split.
pub fn token_bytes(a: &Attention, tp: u64, dtype: DType) -> Result<Bytes, ShardError> {
    let heads = local_kv_heads(a.kv_heads, tp)?;
    let elements = heads
        .checked_mul(a.k_dim + a.v_dim)
        .ok_or(ShardError::Size(SizeOverflow))?;
    let scales = if dtype == DType::I8 { 8 } else { 0 };
    Ok(dtype
        .bytes(elements)?
        .add(Bytes::product([heads, scales])?)?)
}

/// What an attention layer is grouped by: its kind and rate.
pub(crate) fn attention_group(
    a: &Attention,
    tp: u64,
    dtype: DType,
) -> Result<(GroupKind, Bytes), ShardError> {
    let kind = match a.reach {
        Reach::Full => GroupKind::Full,
        Reach::Window(w) => GroupKind::Window(w),
        Reach::Chunk(c) => GroupKind::Chunk(c),
    };
    Ok((kind, token_bytes(a, tp, dtype)?))
}

/// What a latent layer is grouped by. The key of its indexer, where there is one, lies beside the latent.
pub(crate) fn latent_group(
    a: &LatentAttention,
    dtype: DType,
) -> Result<(GroupKind, Bytes), SizeOverflow> {
    let elements = a.rank.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
    let key = a.indexer.map_or(Bytes::ZERO, |i| i.key_bytes());
    Ok((GroupKind::Latent, dtype.bytes(elements)?.add(key)?))
}

/// What a latent layer keeps. Over compressed entries: latents of its window; of every token its share of an entry and of
/// its indexer's key, rounded up; and once for a sequence what compressors keep until an entry is whole.
fn latent_groups(
    a: &LatentAttention,
    dtype: DType,
) -> Result<Vec<(GroupKind, Bytes)>, SizeOverflow> {
    let Some(c) = a.compressed else {
        return Ok(vec![latent_group(a, dtype)?]);
    };
    let width = a.rank.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
    let row = dtype.bytes(width)?;
    let mut groups = vec![(GroupKind::Window(c.window), row)];
    if c.ratio > 0 {
        let share = |bytes: Bytes| Bytes::new(bytes.get().div_ceil(c.ratio));
        let key = a.indexer.map_or(Bytes::ZERO, |i| i.key_bytes());
        let waiting = |dim: u64| c.state_row(dim).times(c.state_tokens());
        let state = waiting(width)?.add(waiting(a.indexer.map_or(0, |i| i.dim))?)?;
        groups.push((GroupKind::Latent, share(row).add(share(key))?));
        groups.push((GroupKind::State, state));
    }
    Ok(groups)
}

/// Bytes that one sequence's state takes in one layer on one rank: convolution tail and state.
///
/// # Errors
/// [`ShardError`] where the heads do not split.
pub fn state_bytes(
    s: &StateSpace,
    tp: u64,
    conv: DType,
    state: DType,
) -> Result<Bytes, ShardError> {
    let not_divisible = || ShardError::NotDivisible {
        units: s.heads,
        what: "state heads",
        degree: tp,
    };
    if tp == 0 || !s.heads.is_multiple_of(tp) {
        return Err(not_divisible());
    }
    // Mamba 2 replicates the shared B and C where the degree does not divide their groups.
    let extra = match s.kind {
        StateKind::Mamba2 if !s.groups.is_multiple_of(tp) => 2 * (tp - s.groups.min(tp)) * s.cols,
        _ => 0,
    };
    let channels = (s.conv_channels + extra) / tp;
    let conv_elements = channels
        .checked_mul(s.conv_taps.saturating_sub(1))
        .ok_or(SizeOverflow)?;
    let state_elements = Bytes::product([s.heads / tp, s.rows, s.cols])?.get();
    Ok(conv
        .bytes(conv_elements)?
        .add(s.state_dtype.unwrap_or(state).bytes(state_elements)?)?)
}

/// Bytes that one sequence's keys and values of an encoder's output take in one layer on one rank: as of a state,
/// they are there from the first token on and do not grow.
///
/// # Errors
/// [`ShardError`] where the KV heads do not split.
pub fn cross_bytes(c: &CrossAttention, tp: u64, dtype: DType) -> Result<Bytes, ShardError> {
    let a = Attention {
        q_heads: c.q_heads,
        kv_heads: c.kv_heads,
        k_dim: c.head_dim,
        v_dim: c.head_dim,
        reach: Reach::Full,
        shared: false,
    };
    Ok(token_bytes(&a, tp, dtype)?.times(c.positions)?)
}

impl PoolGeometry {
    /// The geometry of one rank of `stage`.
    ///
    /// # Errors
    /// [`ShardError`] where heads do not split over the TP degree.
    pub fn new(
        spec: &ModelSpec,
        parallel: &Parallel,
        stage: &Stage,
        rules: &KvRules,
    ) -> Result<Self, ShardError> {
        let mut groups: Vec<Group> = Vec::new();
        let mut add = |kind: GroupKind, rate: Bytes| match groups
            .iter_mut()
            .find(|g| g.kind == kind && g.rate == rate)
        {
            Some(g) => g.layers += 1,
            None => groups.push(Group {
                kind,
                layers: 1,
                rate,
                slots: 0,
                state_pages: 0,
                padding: Bytes::ZERO,
            }),
        };
        for layer in spec
            .layers
            .iter()
            .enumerate()
            .filter(|(i, _)| stage.layers.contains(&(*i as u64)))
        {
            let layer = layer.1;
            match layer.mixer {
                Mixer::Attention(a) if a.shared => {}
                Mixer::Attention(a) => {
                    let (kind, rate) = attention_group(&a, parallel.tp, rules.dtype)?;
                    add(kind, rate);
                }
                Mixer::Latent(a) => {
                    for (kind, rate) in latent_groups(&a, rules.dtype)? {
                        add(kind, rate);
                    }
                }
                Mixer::State(s) => add(
                    GroupKind::State,
                    state_bytes(&s, parallel.tp, rules.state_dtype, rules.state_dtype)?,
                ),
                Mixer::None => {}
            }
            if let Some(s) = layer.parallel {
                add(
                    GroupKind::State,
                    state_bytes(&s, parallel.tp, rules.state_dtype, rules.state_dtype)?,
                );
            }
            if let Some(c) = layer.cross {
                add(GroupKind::State, cross_bytes(&c, parallel.tp, rules.dtype)?);
            }
        }
        let mut per_token = Bytes::ZERO;
        for g in groups.iter().filter(|g| g.kind != GroupKind::State) {
            per_token = per_token.max(g.rate.times(g.layers)?);
        }
        let mut page = if per_token == Bytes::ZERO {
            // A model of states only: one page is one layer's state.
            groups.iter().map(|g| g.rate).max().unwrap_or(Bytes::ZERO)
        } else {
            per_token.times(rules.block_size.max(1))?
        };
        if groups.iter().any(|g| g.kind == GroupKind::State) {
            // No element of a state lies in two pages.
            page = page.round_up(rules.state_dtype.bytes(1)?)?;
        }
        for g in &mut groups {
            let row = g.rate.times(g.layers)?;
            if g.kind == GroupKind::State {
                g.state_pages = row.get().div_ceil(page.get().max(1));
                g.padding = page.times(g.state_pages)?.saturating_sub(row);
            } else {
                g.slots = page.whole(row).max(1);
                g.padding = page.saturating_sub(row.times(g.slots)?);
            }
        }
        Ok(Self { page, groups })
    }

    /// Blocks that one sequence of `tokens` holds, all groups together, while `in_flight` further
    /// tokens are being written.
    ///
    /// A window group keeps the blocks that cover the last `window − 1` tokens and those in flight,
    /// which may start anywhere in a block: one more than their length.
    #[must_use]
    pub fn held(&self, tokens: Tokens, in_flight: Tokens) -> Blocks {
        Blocks(
            self.groups
                .iter()
                .map(|g| g.held(tokens, in_flight).get())
                .sum(),
        )
    }

    /// Bytes of one token over all groups that grow with length.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes_per_token(&self) -> Result<Bytes, SizeOverflow> {
        self.groups
            .iter()
            .filter(|g| g.kind != GroupKind::State)
            .try_fold(Bytes::ZERO, |acc, g| acc.add(g.rate.times(g.layers)?))
    }
}

impl Group {
    /// Blocks of this group that one sequence holds; see [`PoolGeometry::held`].
    #[must_use]
    pub fn held(&self, tokens: Tokens, in_flight: Tokens) -> Blocks {
        let all = tokens.get().saturating_add(in_flight.get());
        let slots = Tokens(self.slots.max(1));
        match self.kind {
            GroupKind::State => Blocks(self.state_pages),
            GroupKind::Full | GroupKind::Latent => Tokens(all).blocks(slots),
            GroupKind::Window(w) => {
                let kept = w.saturating_sub(1).saturating_add(in_flight.get());
                if all <= kept {
                    Tokens(all).blocks(slots)
                } else {
                    Blocks(
                        Tokens(all)
                            .blocks(slots)
                            .get()
                            .min(Tokens(kept).blocks(slots).get() + 1),
                    )
                }
            }
            GroupKind::Chunk(c) => Tokens(all.min(c.saturating_add(in_flight.get()))).blocks(slots),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(kind: GroupKind, slots: u64) -> Group {
        Group {
            kind,
            layers: 2,
            rate: Bytes::new(64),
            slots,
            state_pages: 0,
            padding: Bytes::ZERO,
        }
    }

    #[test]
    fn a_full_group_wastes_less_than_one_block() {
        let g = group(GroupKind::Full, 16);
        for n in 1..200 {
            let slots = g.held(Tokens(n), Tokens(0)).get() * 16;
            assert!(slots >= n && slots - n < 16);
        }
    }

    #[test]
    fn a_window_group_stops_growing() {
        let g = group(GroupKind::Window(128), 16);
        assert_eq!(g.held(Tokens(100), Tokens(0)), Blocks(7));
        assert_eq!(g.held(Tokens(127), Tokens(0)), Blocks(8));
        assert_eq!(g.held(Tokens(10_000), Tokens(0)), Blocks(9));
        assert_eq!(g.held(Tokens(1_000_000), Tokens(0)), Blocks(9));
    }
}
