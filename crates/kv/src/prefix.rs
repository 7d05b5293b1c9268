//! The prefix index: content address to page, and the longest prefix that every group can resume from.

use hashbrown::HashTable;

use crate::address::{PromptKeys, block_tokens};
use crate::cache::KvCache;
use crate::layout::GroupLayout;
use crate::planted::{self, Bug};
use crate::table::{Entry, Table};

/// A prefix that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Its length in tokens: a multiple of every group's block.
    pub tokens: u32,
}

/// A cached prefix that is kept until it is given back by [`KvCache::unpin`].
#[derive(Debug)]
pub struct Pin(pub(crate) Table);

impl Pin {
    /// Tokens that are kept.
    #[must_use]
    pub const fn tokens(&self) -> u32 {
        self.0.committed
    }

    /// The pages, as a table that nobody runs; integrity checks count it with the others.
    #[must_use]
    pub const fn table(&self) -> &Table {
        &self.0
    }
}

/// Address to page. The address is a keyed hash already, so its low half places it.
#[derive(Debug, Default)]
pub(crate) struct Index {
    table: HashTable<(u128, u32)>,
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn place(address: u128) -> u64 {
    address as u64
}

impl Index {
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn find(&self, address: u128) -> Option<u32> {
        self.table
            .find(place(address), |(a, _)| *a == address)
            .map(|(_, page)| *page)
    }

    pub(crate) fn insert(&mut self, address: u128, page: u32) {
        self.table
            .insert_unique(place(address), (address, page), |(a, _)| place(*a));
    }

    pub(crate) fn remove(&mut self, address: u128) {
        if let Ok(entry) = self
            .table
            .find_entry(place(address), |(a, _)| *a == address)
        {
            entry.remove();
        }
    }
}

impl KvCache {
    /// The longest prefix of `tokens`, at most `max` of them, that every group can resume from: full
    /// groups hold all its blocks, window and chunk groups those that the next token reads, state
    /// groups a state at exactly its end.
    ///
    /// Stored tokens are compared, so that a colliding address is no hit. Nothing changes.
    #[must_use]
    pub fn lookup(&self, keys: &PromptKeys, tokens: &[u32], max: u32) -> Hit {
        if !self.prefix_cache {
            return Hit::default();
        }
        let unit = self.layout.unit;
        let mut limit = keys.tokens.min(max) / unit * unit;
        // Groups that read everything first: they only ever shorten the prefix, and are walked once.
        for (g, group) in self.reading_all() {
            let found = self.run_of(g, group, keys, tokens, 0, limit / group.slots);
            limit = limit.min(found * group.slots) / unit * unit;
        }
        'shorter: while limit > 0 {
            for (g, group) in self.layout.groups.iter().enumerate() {
                if group.is_state() {
                    if self.state_at(g, group, keys, limit).is_none()
                        && !planted::is(Bug::HitIgnoresState)
                    {
                        limit -= unit;
                        continue 'shorter;
                    }
                } else if group.first_needed(1 << 31) > 0 {
                    let first = first_block(group, limit);
                    let end = limit / group.slots;
                    let found = self.run_back(g, group, keys, tokens, first, end);
                    if let Some(missing) = found.filter(|_| !planted::is(Bug::HitIgnoresWindows)) {
                        // Nothing between the gap and here can be resumed from.
                        limit = limit
                            .saturating_sub(unit)
                            .min(missing * group.slots / unit * unit);
                        continue 'shorter;
                    }
                }
            }
            break;
        }
        Hit { tokens: limit }
    }

    /// Pages that a new sequence takes from those that can be had when it starts with `hit` and goes on to
    /// `len` tokens in chunks of at most `chunk`: cached ones that it revives, and new ones.
    #[must_use]
    pub fn pages_from(&self, keys: &PromptKeys, hit: Hit, len: u32, chunk: u32) -> u64 {
        let mut pages = 0;
        for (g, group) in self.layout.groups.iter().enumerate() {
            let mut attached = 0;
            let mut revived = 0;
            if hit.tokens > 0 {
                self.each_cached(g, keys, hit, |page| {
                    attached += 1;
                    revived += u64::from(self.pool.page(page).refs == 0);
                });
            }
            let fresh = if group.is_state() {
                // The state goes on in pages of its own.
                u64::from(group.state_pages)
            } else {
                let end = u64::from(len).div_ceil(u64::from(group.slots));
                let most = group.peak(u64::from(len), u64::from(chunk));
                let first = u64::from(hit.tokens / group.slots);
                (end - first).min(most.saturating_sub(attached))
            };
            pages += revived + fresh;
        }
        pages
    }

    /// Calls `f` with the page of each block that [`KvCache::attach`] shares in group `g`.
    fn each_cached(&self, g: usize, keys: &PromptKeys, hit: Hit, mut f: impl FnMut(u32)) {
        let group = &self.layout.groups[g];
        let end = hit.tokens / block_tokens(&self.layout, group);
        let address = |i: u32| keys.groups.get(g).and_then(|k| k.get(i as usize)).copied();
        if group.is_state() {
            let last = end.checked_sub(1).and_then(address);
            for i in 0..group.state_pages {
                if let Some(page) = last.and_then(|a| self.index.find(part(a, i))) {
                    f(page);
                }
            }
        } else {
            for i in first_block(group, hit.tokens)..end {
                if let Some(page) = address(i).and_then(|a| self.index.find(a)) {
                    f(page);
                }
            }
        }
    }

    fn reading_all(&self) -> impl Iterator<Item = (usize, &GroupLayout)> {
        let all = |g: &&GroupLayout| !g.is_state() && g.first_needed(1 << 31) == 0;
        self.layout
            .groups
            .iter()
            .enumerate()
            .filter(move |(_, g)| all(g))
    }

    /// Blocks found in a row from `from` on, before `end`.
    fn run_of(
        &self,
        g: usize,
        group: &GroupLayout,
        keys: &PromptKeys,
        tokens: &[u32],
        from: u32,
        end: u32,
    ) -> u32 {
        (from..end)
            .take_while(|i| self.block_at(g, group, keys, tokens, *i).is_some())
            .count()
            .try_into()
            .unwrap_or(u32::MAX)
    }

    /// The last block of `first..end` that is missing.
    fn run_back(
        &self,
        g: usize,
        group: &GroupLayout,
        keys: &PromptKeys,
        tokens: &[u32],
        first: u32,
        end: u32,
    ) -> Option<u32> {
        (first..end)
            .rev()
            .find(|i| self.block_at(g, group, keys, tokens, *i).is_none())
    }

    fn block_at(
        &self,
        g: usize,
        group: &GroupLayout,
        keys: &PromptKeys,
        tokens: &[u32],
        index: u32,
    ) -> Option<u32> {
        let address = *keys.groups.get(g)?.get(index as usize)?;
        let page = self.index.find(address)?;
        let slots = group.slots as usize;
        let from = index as usize * slots;
        let same = tokens.get(from..from + slots)? == self.stored_tokens(page, slots);
        same.then_some(page)
    }

    /// The pages of the state at `tokens`, where all are there.
    fn state_at(
        &self,
        g: usize,
        group: &GroupLayout,
        keys: &PromptKeys,
        tokens: u32,
    ) -> Option<u128> {
        let index = (tokens / block_tokens(&self.layout, group)).checked_sub(1)?;
        let address = *keys.groups.get(g)?.get(index as usize)?;
        (0..group.state_pages)
            .all(|i| self.index.find(part(address, i)).is_some())
            .then_some(address)
    }

    /// Gives an empty table the prefix that [`KvCache::lookup`] found for the same arguments; nothing may
    /// have changed in between.
    pub fn attach(&mut self, table: &mut Table, keys: &PromptKeys, hit: Hit) {
        debug_assert!(table.is_empty() && table.committed == 0);
        if hit.tokens == 0 {
            return;
        }
        let tenant = table.tenant;
        for g in 0..self.layout.groups.len() {
            let group = self.layout.groups[g];
            let step = block_tokens(&self.layout, &group);
            let end = hit.tokens / step;
            let Some(&last) = keys.groups.get(g).and_then(|k| k.get(end as usize - 1)) else {
                continue;
            };
            table.groups[g].first = if group.is_state() {
                0
            } else {
                first_block(&group, hit.tokens)
            };
            let mut pages = Vec::new();
            self.each_cached(g, keys, hit, |page| pages.push(page));
            for page in pages {
                self.pool.acquire(page, tenant);
                self.push_entry(table, g, page);
            }
            table.groups[g].published = end;
            table.groups[g].chain = Some(last);
        }
        table.committed = hit.tokens;
    }

    /// Keeps the longest cached prefix of `tokens` from being given up; `None` where nothing is cached.
    #[must_use]
    pub fn pin(&mut self, scope: &crate::Scope, tokens: &[u32]) -> Option<Pin> {
        let keys = self.keys(scope, tokens);
        let hit = self.lookup(&keys, tokens, u32::MAX);
        if hit.tokens == 0 {
            return None;
        }
        let mut table = self.table(plimsoll_units::SeqId(u64::MAX), scope, hit.tokens);
        self.attach(&mut table, &keys, hit);
        let pages: Vec<u32> = table
            .entries()
            .filter_map(|(_, e)| match e {
                Entry::Device { page, .. } => Some(page),
                Entry::Host { .. } => None,
            })
            .collect();
        for page in pages {
            self.pool.charge_house(page);
        }
        // Nobody runs a pin: executors need not know its table.
        self.outbox.deltas.retain(|d| d.seq != table.id);
        Some(Pin(table))
    }

    /// Lets a pinned prefix go.
    pub fn unpin(&mut self, pin: Pin) {
        self.release(pin.0);
    }
}

/// The first block that a query at `committed` reads.
pub(crate) fn first_block(group: &GroupLayout, committed: u32) -> u32 {
    let first = group.first_needed(u64::from(committed)) / u64::from(group.slots.max(1));
    u32::try_from(first).unwrap_or(u32::MAX)
}

/// The address of page `i` of a state that takes several.
pub(crate) fn part(address: u128, i: u32) -> u128 {
    address.wrapping_add(u128::from(i))
}

#[cfg(test)]
mod tests {
    use plimsoll_program::{Group, GroupKind, PoolGeometry};
    use plimsoll_units::{Bytes, SeqId};

    use super::*;
    use crate::cache::KvConfig;
    use crate::layout::Layout;
    use crate::{Outbox, Scope};

    const A: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
    /// Another prompt, whose addresses are made those of `A`.
    const B: [u32; 8] = [1, 2, 3, 9, 5, 6, 7, 8];

    fn pool(kinds: &[GroupKind]) -> KvCache {
        let group = |kind: &GroupKind| Group {
            kind: *kind,
            layers: 1,
            rate: Bytes::new(2),
            slots: 4,
            state_pages: 0,
            padding: Bytes::ZERO,
        };
        let geometry = PoolGeometry {
            page: Bytes::new(8),
            groups: kinds.iter().map(group).collect(),
        };
        let mut config = KvConfig::new(Layout::new(&geometry).expect("blocks of four"), 64);
        config.prefix_cache = true;
        KvCache::new(config)
    }

    fn run(kv: &mut KvCache, id: u64, tokens: &[u32; 8]) -> Table {
        let mut t = kv.table(SeqId(id), &Scope::default(), 8);
        kv.prepare(&mut t, 8, u32::MAX).expect("pages are there");
        kv.commit(&mut t, 8, tokens);
        kv.drain(&mut Outbox::default());
        kv.complete();
        t
    }

    fn pages(t: &Table) -> Vec<u32> {
        let pages = t.entries().filter_map(|(_, e)| match e {
            Entry::Device { page, .. } => Some(page),
            Entry::Host { .. } => None,
        });
        pages.collect()
    }

    /// Nobody makes two prompts of one address without the process's key. Here it is done by hand.
    #[test]
    fn a_forged_address_shares_no_block() {
        use GroupKind::{Chunk, Full, Latent, Window};
        let mixes: [&[GroupKind]; 5] = [
            &[Full],
            &[Latent],
            &[Window(8)],
            &[Full, Window(8)],
            &[Full, Chunk(8)],
        ];
        for kinds in mixes {
            // Whoever looks for the other prompt finds the page of this one.
            let mut kv = pool(kinds);
            let a = run(&mut kv, 1, &A);
            let forged = kv.keys(&Scope::default(), &A);
            assert_eq!(kv.lookup(&forged, &A, 8).tokens, 8, "{kinds:?}");
            assert_eq!(kv.lookup(&forged, &B, 8).tokens, 0, "{kinds:?}");
            kv.release(a);

            // Whoever has computed the other one meets the page of this one under its address.
            let mut kv = pool(kinds);
            let a = run(&mut kv, 1, &A);
            let own = kv.keys(&Scope::default(), &B);
            for (mine, theirs) in own.groups.iter().flatten().zip(pages(&a)) {
                kv.index.insert(*mine, theirs);
            }
            assert_eq!(kv.lookup(&own, &B, 8).tokens, 0, "{kinds:?}");
            let b = run(&mut kv, 2, &B);
            let firsts = |t: &Table| -> Vec<u32> {
                let firsts = t.groups.iter().filter_map(|g| g.entry(0));
                firsts
                    .filter_map(|e| match e {
                        Entry::Device { page, .. } => Some(page),
                        Entry::Host { .. } => None,
                    })
                    .collect()
            };
            assert!(!firsts(&a).is_empty(), "{kinds:?}");
            for page in firsts(&b) {
                assert!(!pages(&a).contains(&page), "{kinds:?}");
            }
            let keys = kv.keys(&Scope::default(), &A);
            assert_eq!(kv.lookup(&keys, &A, 8).tokens, 8, "{kinds:?}");
            kv.release(a);
            kv.release(b);
        }
    }
}
