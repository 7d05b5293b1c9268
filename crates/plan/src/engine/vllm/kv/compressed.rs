//! What a layer of attention over compressed entries caches (DeepSeek V4), and how its caches share blocks.
//!
//! A layer has latents of its window, entries (one for so many tokens), keys of an indexer where it has one, and what
//! compressors keep until an entry is whole. Pages of all of them lie in one block, side by side.
//!
//! Source: vLLM 0.21, 0.24, 0.28 and 0.32 `models/deepseek_v4/{attention,compressor}.py`,
//! `v1/attention/backends/mla/sparse_swa.py` (`DeepseekV4SWACache`), `v1/core/kv_cache_utils.py`
//! (`_get_kv_cache_groups_uniform_groups`, `_get_kv_cache_config_packed`, `_get_packed_kv_cache_groups`).

use std::collections::BTreeMap;
use std::ops::Range;

use plimsoll_model::{LatentAttention, Mixer};
use plimsoll_program::GroupKind;
use plimsoll_units::{Bytes, SizeOverflow};

use super::super::super::Context;
use super::caches::{Cache, Shape};
use super::groups::Group;

/// The only tokens per block that the sparse kernels take.
pub(super) const BLOCK: u64 = 256;
/// Tokens per block of the windows' latents.
const WINDOW_BLOCK: u64 = 64;
/// Pages are multiples of this where rows are packed (the stride of `FlashMLA`'s kernel).
const ALIGN: u64 = 576;

/// How blocks are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// As many times as the group with most repeats: a page of every size; windows' pages grow to one of these sizes.
    Repeats,
    /// Of every size as many pages as any group has; windows' pages grow so too.
    Sizes,
    /// The pages of the widest group. All pages have their own size.
    Widest {
        /// Whether only groups with as many layers of each size set how many a group has.
        balanced: bool,
    },
}

/// One cache of a layer: kind, shape, tokens per block, page and bytes of one token.
type Kept = (GroupKind, Shape, u64, Bytes, Bytes);

/// The caches of one layer.
pub(super) fn caches(a: &LatentAttention) -> Result<Vec<Kept>, SizeOverflow> {
    let Some(c) = a.compressed else {
        return Ok(Vec::new());
    };
    let width = a.rank.checked_add(a.rope_dim).ok_or(SizeOverflow)?;
    // 8-bit floats, their scales for 64 each with one unused, and the rotary part in 16 bits.
    let row = a
        .rope_dim
        .checked_mul(2)
        .and_then(|rope| rope.checked_add(a.rank)?.checked_add(a.rank / 64 + 1))
        .map(Bytes::new)
        .ok_or(SizeOverflow)?;
    let page = |row: Bytes, rows: u64| row.times(rows)?.round_up(Bytes::new(ALIGN));
    let mut all = Vec::new();
    let window = GroupKind::Window(c.window);
    all.push((
        window,
        Shape::Latent(width),
        WINDOW_BLOCK,
        page(row, WINDOW_BLOCK)?,
        row,
    ));
    if c.ratio == 0 {
        return Ok(all);
    }
    let per_token = |row: Bytes| Bytes::new(row.get().div_ceil(c.ratio));
    let entries = BLOCK / c.ratio;
    let kept = (GroupKind::Latent, Shape::Latent(width), BLOCK);
    all.push((kept.0, kept.1, kept.2, page(row, entries)?, per_token(row)));
    // A block of candidates is about as wide as one of entries.
    let block = if c.overlaps { 4 } else { 8 };
    let waiting = GroupKind::Window(c.state_tokens());
    let mut candidates = |dim: u64| {
        let row = c.state_row(dim);
        all.push((
            waiting,
            Shape::Candidates(dim),
            block,
            page(row, block)?,
            row,
        ));
        Ok::<_, SizeOverflow>(())
    };
    candidates(width)?;
    if let Some(i) = a.indexer {
        candidates(i.dim)?;
        let row = i.key_bytes();
        all.push((
            GroupKind::Latent,
            Shape::Index(i.dim),
            BLOCK,
            page(row, entries)?,
            per_token(row),
        ));
    }
    Ok(all)
}

/// Whether the model has such layers.
pub(super) fn is_in(context: &Context<'_>) -> bool {
    let compressed = |m: &Mixer| matches!(m, Mixer::Latent(a) if a.compressed.is_some());
    context.spec.layers.iter().any(|l| compressed(&l.mixer))
}

/// Whether the caches are laid out so: windows of latents have no other layout.
pub(super) fn is_packed(caches: &[Cache]) -> bool {
    let window = |c: &Cache| matches!(c.kind, GroupKind::Window(_));
    caches
        .iter()
        .any(|c| window(c) && matches!(c.shape, Shape::Latent(_)))
}

/// The groups: entries and keys in one, which comes first; what a window keeps by window and block, dealt out so that no
/// group has more repeats than most have.
pub(super) fn groups(caches: Vec<Cache>, packing: Packing) -> Vec<Group> {
    let sizes: Vec<Bytes> = caches
        .iter()
        .filter(|c| c.kind == GroupKind::Latent)
        .map(|c| c.page)
        .collect();
    let mut buckets: Vec<Vec<Cache>> = vec![Vec::new()];
    for mut c in caches {
        let grown = sizes.iter().copied().filter(|s| *s >= c.page).min();
        if let (Packing::Repeats | Packing::Sizes, Some(size)) = (packing, grown) {
            c.page = size;
        }
        let alike = |b: &[Cache]| {
            b.first()
                .is_some_and(|f| (f.kind, f.block) == (c.kind, c.block))
        };
        match buckets.iter_mut().skip(1).find(|b| alike(b)) {
            _ if c.kind == GroupKind::Latent => buckets[0].push(c),
            Some(b) => b.push(c),
            None => buckets.push(vec![c]),
        }
    }
    buckets.retain(|b| !b.is_empty());
    let balanced = |b: &[Cache]| {
        let counts: Vec<u64> = per_size(b).into_values().collect();
        counts.windows(2).all(|w| w[0] == w[1])
    };
    let only_balanced = packing == (Packing::Widest { balanced: true });
    let counted = buckets.iter().filter(|b| !only_balanced || balanced(b));
    let repeats: Vec<u64> = counted.map(|b| repeats(b)).collect();
    let least = if only_balanced {
        let mixed = buckets
            .iter()
            .filter(|b| balanced(b) && per_size(b).len() > 1);
        mixed.map(|b| self::repeats(b)).max()
    } else {
        buckets.first().map(|b| self::repeats(b))
    };
    let each = least.map(|least| chunk(&repeats, least));
    let mut out = Vec::new();
    for bucket in buckets {
        let own = bucket.first().is_some_and(|c| c.kind == GroupKind::Latent);
        let count = match each {
            Some(each) if !own && balanced(&bucket) => {
                self::repeats(&bucket).div_ceil(each.max(1)).max(1)
            }
            _ => 1,
        };
        // Dealt out by repeat: the n-th layer of each size goes together.
        let mut parts = vec![Vec::new(); usize::try_from(count).unwrap_or(1)];
        let mut seen: BTreeMap<Bytes, usize> = BTreeMap::new();
        for c in bucket {
            let nth = seen.entry(c.page).or_default();
            let part = *nth % parts.len();
            parts[part].push(c);
            *nth += 1;
        }
        out.extend(parts.into_iter().map(|caches| Group {
            caches,
            own_pages: true,
        }));
    }
    out
}

/// Bytes of a block on the worker that has `layers`.
pub(super) fn block(
    groups: &[Group],
    layers: &Range<u64>,
    packing: Packing,
) -> Result<Bytes, SizeOverflow> {
    let mine = |g: &Group| {
        g.caches
            .iter()
            .filter(|c| layers.contains(&c.layer))
            .copied()
            .collect::<Vec<_>>()
    };
    let mut most: BTreeMap<Bytes, u64> = BTreeMap::new();
    let (mut widest, mut tuples) = (Bytes::ZERO, 0);
    for g in groups {
        let here = per_size(&mine(g));
        let mut all = Bytes::ZERO;
        for (size, count) in here {
            all = all.add(size.times(count)?)?;
            let known = most.entry(size).or_default();
            *known = count.max(*known);
            tuples = count.max(tuples);
        }
        widest = widest.max(all);
    }
    let sum = |by: &dyn Fn(u64) -> u64| {
        most.iter().try_fold(Bytes::ZERO, |acc, (size, count)| {
            acc.add(size.times(by(*count))?)
        })
    };
    match packing {
        Packing::Repeats => sum(&|_| tuples),
        Packing::Sizes => sum(&|count| count),
        Packing::Widest { .. } => Ok(widest),
    }
}

/// Layers by the size of their pages.
fn per_size(caches: &[Cache]) -> BTreeMap<Bytes, u64> {
    let mut sizes = BTreeMap::new();
    for c in caches {
        *sizes.entry(c.page).or_default() += 1;
    }
    sizes
}

/// How often a layer of the commonest size is there.
fn repeats(caches: &[Cache]) -> u64 {
    per_size(caches).into_values().max().unwrap_or(0)
}

/// The number from `least` on to whose multiples the counts are filled up with the fewest; of several the largest
/// (`_approximate_gcd`).
fn chunk(counts: &[u64], least: u64) -> u64 {
    let least = least.max(1);
    let most = counts.iter().copied().max().unwrap_or(least);
    let filling = |d: u64| {
        counts
            .iter()
            .map(|n| n.next_multiple_of(d) - n)
            .sum::<u64>()
    };
    (least..=most.max(least))
        .rev()
        .min_by_key(|d| filling(*d))
        .unwrap_or(least)
}
