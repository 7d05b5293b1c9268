//! Layers to groups, and what one worker of a pipeline has of them.
//!
//! Source: vLLM `v1/core/kv_cache_utils.py` (`get_kv_cache_groups`, `unify_hybrid_kv_cache_specs`,
//! `unify_kv_cache_spec_page_size`, `_project_kv_cache_groups_to_worker`). Groups are built over the
//! layers of all stages, so that all workers share block tables.

use std::ops::Range;

use plimsoll_program::GroupKind;
use plimsoll_units::{Bytes, SizeOverflow};

use super::caches::{Cache, Shape};
use super::refused;
use super::rules::{Rules, Unify};
use crate::error::PlanError;

/// One group over all stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Its caches, in order.
    pub(super) caches: Vec<Cache>,
    /// Set where each layer keeps a page of its own size.
    pub(super) own_pages: bool,
}

/// One group on one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// A cache of the group, on whichever stage: kind and block are those of all.
    pub(super) like: Cache,
    /// As [`Group::own_pages`].
    pub(super) own_pages: bool,
    /// Layers on this worker.
    pub(super) layers: u64,
    /// Page of one layer; of all this worker's layers where they differ.
    pub(super) page: Bytes,
    /// Bytes of one token in all layers of the worker.
    pub(super) row: Bytes,
}

/// Groups of all layers. With `hybrid` off, local layers are kept as if they were full.
pub(super) fn of(
    mut caches: Vec<Cache>,
    rules: &Rules,
    hybrid: bool,
) -> Result<Vec<Group>, PlanError> {
    if caches.is_empty() {
        return Ok(Vec::new());
    }
    if !hybrid {
        promote(&mut caches, rules)?;
    }
    if super::compressed::is_packed(&caches) {
        return Ok(super::compressed::groups(caches, rules.packing));
    }
    let own_pages = !uniform(&caches, rules)?;
    if !own_pages || uniform_type(&caches) {
        return Ok(vec![Group { caches, own_pages }]);
    }
    unify(&mut caches, rules)?;
    let mut buckets: Vec<Vec<Cache>> = Vec::new();
    for c in caches {
        match buckets.iter_mut().find(|b| same(&b[0], &c)) {
            Some(b) => b.push(c),
            None => buckets.push(vec![c]),
        }
    }
    let sizes = || buckets.iter().map(Vec::len);
    let (least, most) = (sizes().min().unwrap_or(1), sizes().max().unwrap_or(1));
    let level = rules
        .level_below
        .is_some_and(|(n, d)| (most as u64).saturating_mul(d) < (least as u64).saturating_mul(n));
    let size = if level { most } else { least };
    let mut groups = Vec::new();
    for bucket in buckets {
        let count = bucket.len().div_ceil(size);
        // Dealt out, so that every stage of a pipeline has some of each.
        groups.extend((0..count).map(|i| Group {
            caches: bucket.iter().skip(i).step_by(count).copied().collect(),
            own_pages: false,
        }));
    }
    Ok(groups)
}

/// What one worker has of the groups, and the bytes of its blocks.
pub(super) fn project(
    groups: &[Group],
    layers: &Range<u64>,
) -> Result<(Vec<Part>, Bytes), SizeOverflow> {
    let mut parts = Vec::with_capacity(groups.len());
    let mut block = Bytes::ZERO;
    for g in groups {
        let Some(first) = g.caches.first() else {
            continue;
        };
        let mut part = Part {
            like: *first,
            own_pages: g.own_pages,
            layers: 0,
            page: first.page,
            row: Bytes::ZERO,
        };
        let mut pages = Bytes::ZERO;
        for c in g.caches.iter().filter(|c| layers.contains(&c.layer)) {
            part.layers += 1;
            part.row = part.row.add(c.rate)?;
            pages = pages.add(c.page)?;
        }
        if g.own_pages {
            part.page = pages;
        }
        block = block.max(pages);
        parts.push(part);
    }
    Ok((parts, block))
}

/// Whether two caches can have one block table and one page size.
fn same(a: &Cache, b: &Cache) -> bool {
    let key = |c: &Cache| (c.kind, c.shape, c.block, c.page);
    key(a) == key(b)
}

/// Whether all caches are alike.
fn uniform(caches: &[Cache], rules: &Rules) -> Result<bool, PlanError> {
    if !caches.iter().all(|c| same(c, &caches[0])) {
        return Ok(false);
    }
    let mut windows = caches.iter().filter_map(|c| match c.remembered {
        Some(GroupKind::Window(w)) => Some(w),
        _ => None,
    });
    let mut chunks = caches
        .iter()
        .filter(|c| matches!(c.remembered, Some(GroupKind::Chunk(_))));
    let first = windows.next();
    if first.is_some() && windows.any(|w| Some(w) != first) {
        return Err(refused(
            rules,
            "--disable-hybrid-kv-cache-manager".to_owned(),
            "windows of several sizes cannot share one group".to_owned(),
        ));
    }
    Ok(first.is_none() || chunks.next().is_none())
}

/// Whether all layers always need the same number of tokens kept.
fn uniform_type(caches: &[Cache]) -> bool {
    // Latent rows are full attention too.
    let class = |k: GroupKind| match k {
        GroupKind::Latent => GroupKind::Full,
        other => other,
    };
    let first = &caches[0];
    caches
        .iter()
        .all(|c| c.block == first.block && class(c.kind) == class(first.kind))
}

/// Makes window and chunk layers full ones.
fn promote(caches: &mut [Cache], rules: &Rules) -> Result<(), PlanError> {
    let is_full = |c: &Cache| matches!(c.kind, GroupKind::Full | GroupKind::Latent);
    let is_local = |c: &Cache| matches!(c.kind, GroupKind::Window(_) | GroupKind::Chunk(_));
    if uniform(caches, rules)? || uniform_type(caches) {
        return Ok(());
    }
    if caches.iter().any(is_full) {
        for c in caches.iter_mut().filter(|c| is_local(c)) {
            c.remembered = Some(c.kind);
            c.kind = GroupKind::Full;
        }
    }
    if uniform(caches, rules)? || uniform_type(caches) {
        return Ok(());
    }
    Err(refused(
        rules,
        "--disable-hybrid-kv-cache-manager".to_owned(),
        "the model's layers cannot be kept in one group".to_owned(),
    ))
}

/// Makes all pages the same size.
fn unify(caches: &mut [Cache], rules: &Rules) -> Result<(), PlanError> {
    let largest = caches.iter().map(|c| c.page).max().unwrap_or(Bytes::ZERO);
    let block = caches[0].block;
    for c in caches.iter_mut().filter(|c| c.page < largest) {
        let divides = c.page > Bytes::ZERO && largest.get().is_multiple_of(c.page.get());
        let is_state = matches!(c.shape, Shape::State(_));
        match rules.unify {
            Unify::Grow | Unify::GrowOrPad if divides && !is_state => {
                let ratio = largest.whole(c.page);
                c.block = c.block.checked_mul(ratio).ok_or(SizeOverflow)?;
            }
            Unify::GrowOrPad if c.kind != GroupKind::Latent => {}
            _ => {
                return Err(refused(
                    rules,
                    format!("this model with --block-size {block}"),
                    format!(
                        "its layers have pages of {largest} and {}, which this version cannot make equal",
                        c.page
                    ),
                ));
            }
        }
        c.page = largest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::super::Version;
    use super::*;

    fn cache(layer: u64, kind: GroupKind, page: u64) -> Cache {
        Cache {
            layer,
            kind,
            remembered: None,
            shape: Shape::Heads(1, 1, 1),
            block: 16,
            page: Bytes::new(page),
            rate: Bytes::new(page / 16),
        }
    }

    fn mix(full: u64, window: u64) -> Vec<Cache> {
        (0..full)
            .map(|i| cache(i, GroupKind::Full, 64))
            .chain((full..full + window).map(|i| cache(i, GroupKind::Window(8), 64)))
            .collect()
    }

    fn sizes(minor: u32, full: u64, window: u64) -> Vec<usize> {
        let rules = Rules::of(Version::new(0, minor));
        let groups = of(mix(full, window), &rules, true).unwrap();
        groups.iter().map(|g| g.caches.len()).collect()
    }

    #[test]
    fn the_smaller_kind_sets_the_group_unless_nearly_level() {
        assert_eq!(sizes(32, 2, 10), [2, 2, 2, 2, 2, 2]);
        assert_eq!(sizes(32, 10, 52), [10, 9, 9, 9, 9, 8, 8]);
        assert_eq!(sizes(18, 13, 17), [13, 17]);
        assert_eq!(sizes(17, 13, 17), [13, 9, 8]);
        assert_eq!(sizes(17, 13, 16), [13, 16]);
        assert_eq!(sizes(11, 13, 14), [13, 7, 7]);
    }

    #[test]
    fn a_stage_has_its_share_of_every_group() {
        let rules = Rules::of(Version::new(0, 32));
        let all = (0..12)
            .map(|i| {
                let kind = if i % 3 == 2 {
                    GroupKind::Full
                } else {
                    GroupKind::Window(8)
                };
                cache(i, kind, 64)
            })
            .collect();
        let groups = of(all, &rules, true).unwrap();
        let (parts, block) = project(&groups, &(0..6)).unwrap();
        assert_eq!(
            parts.iter().map(|p| p.layers).collect::<Vec<_>>(),
            [2, 2, 2]
        );
        assert_eq!(block, Bytes::new(2 * 64));
    }

    #[test]
    fn without_the_hybrid_manager_windows_are_full_and_must_agree() {
        let rules = Rules::of(Version::new(0, 32));
        let groups = of(mix(3, 9), &rules, false).unwrap();
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].caches[11].kind, GroupKind::Full);
        let mut two = mix(3, 9);
        two[11].kind = GroupKind::Window(4);
        assert!(matches!(
            of(two, &rules, false),
            Err(PlanError::Refused { .. })
        ));
    }

    #[test]
    fn unequal_pages_grow_pad_or_stop_the_start() {
        let run = |minor, page| {
            let mut all = mix(2, 2);
            all[0].page = Bytes::new(page);
            all[1].page = Bytes::new(page);
            of(all, &Rules::of(Version::new(0, minor)), true)
        };
        let blocks = |r: Vec<Group>| -> Vec<(u64, u64)> {
            r.iter()
                .map(|g| (g.caches[0].block, g.caches[0].page.get()))
                .collect()
        };
        assert_eq!(blocks(run(21, 32).unwrap()), [(32, 64), (16, 64)]);
        assert!(run(21, 48).is_err());
        assert_eq!(blocks(run(32, 48).unwrap()), [(16, 64), (16, 64)]);
        assert!(run(11, 32).is_err());
    }

    #[test]
    fn layers_that_keep_all_tokens_in_pages_of_two_sizes_are_one_group() {
        // DeepSeek-V3.2: latent rows of 576 bf16 and an indexer's 132 bytes, in blocks of 64.
        let all = (0..61)
            .flat_map(|i| [(i, 576, 576 * 2), (i, 132, 132)])
            .map(|(layer, width, row)| Cache {
                shape: Shape::Latent(width),
                block: 64,
                page: Bytes::new(64 * row),
                rate: Bytes::new(row),
                ..cache(layer, GroupKind::Latent, 0)
            })
            .collect();
        let groups = of(all, &Rules::of(Version::new(0, 32)), true).unwrap();
        let (parts, block) = project(&groups, &(0..61)).unwrap();
        assert_eq!((parts.len(), parts[0].layers), (1, 122));
        // As vLLM's own code says.
        assert_eq!((parts[0].page.get(), block.get()), (5_012_736, 5_012_736));
        assert_eq!(parts[0].row.get(), 61 * (1152 + 132));
        let (half, block) = project(&groups, &(0..30)).unwrap();
        assert_eq!((half[0].layers, block.get()), (60, 30 * 64 * (1152 + 132)));
    }
}
