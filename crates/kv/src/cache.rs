//! [`KvCache`]: the operations on tables, all of them all-or-nothing over the groups.

use plimsoll_units::{BlockId, SeqId};

use crate::address::{Addresses, Scope};
use crate::layout::{GroupLayout, Layout};
use crate::outbox::{BlockCopy, CacheEvent, Delta, DeltaOp, Outbox};
use crate::planted::{self, Bug};
use crate::pool::{PAGES_MAX, Pool};
use crate::prefix::{Index, first_block};
use crate::swap::SwapSpace;
use crate::table::{Entry, GroupTable, Table, TenantId};

/// What a pool is made with.
#[derive(Clone, Debug)]
pub struct KvConfig {
    /// Groups and sizes.
    pub layout: Layout,
    /// Pages, the null page among them.
    pub pages: u32,
    /// Pages of swap space: a hard cap.
    pub swap_pages: u32,
    /// Whether full blocks can be found again.
    pub prefix_cache: bool,
    /// Whether changes of the prefix index are told as [`CacheEvent`]s.
    pub events: bool,
    /// Number of tenants; ids are below it.
    pub tenants: u16,
    /// Secret key of content addresses.
    pub key: [u8; 16],
    /// What decides keys and values besides tokens and scope: model, cache type.
    pub fingerprint: Vec<u8>,
}

impl KvConfig {
    /// A pool of `pages` pages for sequences, without swap space, for one tenant.
    #[must_use]
    pub fn new(layout: Layout, pages: u32) -> Self {
        Self {
            layout,
            pages: pages.saturating_add(1).min(PAGES_MAX),
            swap_pages: 0,
            prefix_cache: false,
            events: false,
            tenants: 1,
            key: [0; 16],
            fingerprint: Vec::new(),
        }
    }
}

/// Too few pages: nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} pages are needed and {available} can be had")]
pub struct Short {
    /// Pages asked for.
    pub needed: u32,
    /// Pages that are free or cached and held by nobody.
    pub available: u32,
}

/// A table cannot be cut back to that length: a state has moved on, or blocks have left the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a table cannot be cut back to {to} tokens: what its layers kept then is gone")]
pub struct CannotTruncate {
    /// Tokens asked for.
    pub to: u32,
}

/// The pages of one device (of every rank alike: block ids are the same on all), and what is held.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) layout: Layout,
    pub(crate) pool: Pool,
    pub(crate) index: Index,
    pub(crate) swap: SwapSpace,
    pub(crate) prefix_cache: bool,
    pub(crate) outbox: Outbox,
    pub(crate) addresses: Addresses,
    /// Tokens of published pages, `token_stride` per page.
    pub(crate) tokens: Vec<u32>,
    pub(crate) token_stride: usize,
    pub(crate) events: Option<Vec<CacheEvent>>,
    /// Pages that copies under way read or write.
    copying: Vec<u32>,
    /// Transfers under way: tag, place, page. Each counts as a holder of its place.
    pub(crate) going_out: Vec<(u64, u32, u32)>,
    /// Places that are being read, once for every table that held them, and pages that are being written.
    pub(crate) coming_in: Vec<(u32, Option<u32>)>,
    /// Slots of held blocks that are being written, per group.
    writing: Vec<u64>,
    /// References per page from one group's tables; all zero between calls.
    pub(crate) scratch: Vec<u32>,
}

impl KvCache {
    /// An empty pool.
    #[must_use]
    pub fn new(config: KvConfig) -> Self {
        let groups = config.layout.groups.len();
        let pages = config.pages.clamp(1, PAGES_MAX);
        let stride = if config.prefix_cache {
            let slots = config.layout.groups.iter().map(|g| g.slots).max();
            slots.unwrap_or(0) as usize
        } else {
            0
        };
        Self {
            pool: Pool::new(pages, groups, config.tenants as usize),
            index: Index::default(),
            swap: SwapSpace::new(config.swap_pages),
            prefix_cache: config.prefix_cache,
            outbox: Outbox::default(),
            addresses: Addresses::new(config.key, config.fingerprint),
            tokens: vec![0; stride * pages as usize],
            token_stride: stride,
            events: config.events.then(Vec::new),
            copying: Vec::new(),
            going_out: Vec::new(),
            coming_in: Vec::new(),
            writing: vec![0; groups],
            scratch: vec![0; pages as usize],
            layout: config.layout,
        }
    }

    /// Begins anew: an empty pool that nothing is found in. Whoever holds tables of it hands them over; nothing of what
    /// was is looked at, since this is for after a fault.
    pub fn restart(&mut self, tables: impl IntoIterator<Item = Table>) {
        for mut table in tables {
            table.groups.clear();
        }
        self.pool.restart();
        self.index = Index::default();
        self.swap = SwapSpace::new(self.swap.cap());
        self.outbox = Outbox::default();
        self.events.iter_mut().for_each(Vec::clear);
        self.copying.clear();
        self.going_out.clear();
        self.coming_in.clear();
        self.writing.fill(0);
        self.scratch.fill(0);
    }

    /// Groups and sizes.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether full blocks can be found again.
    #[must_use]
    pub const fn has_prefix_cache(&self) -> bool {
        self.prefix_cache
    }

    /// Pages that can be had now.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.pool.available()
    }

    /// Pages that only transfers and copies under way keep.
    #[must_use]
    pub fn in_transit(&self) -> u32 {
        self.pool.in_transit()
    }

    /// Whether the outbox holds anything that moves bytes.
    #[must_use]
    pub fn has_moves(&self) -> bool {
        let o = &self.outbox;
        !(o.copies.is_empty() && o.swaps_out.is_empty() && o.swaps_in.is_empty())
    }

    /// Pages for sequences, whoever holds them.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pool.total()
    }

    /// Pages that `tenant` is charged for.
    #[must_use]
    pub fn charged(&self, tenant: TenantId) -> u64 {
        self.pool.charged(tenant)
    }

    /// Places left in swap space.
    #[must_use]
    pub fn swap_free(&self) -> u32 {
        self.swap.free()
    }

    /// Places in swap space, taken or not.
    #[must_use]
    pub fn swap_pages(&self) -> u32 {
        self.swap.cap()
    }

    /// An empty table.
    #[must_use]
    pub fn table(&self, id: SeqId, scope: &Scope, prompt: u32) -> Table {
        let groups = (0..self.layout.groups.len())
            .map(|g| GroupTable {
                chain: self.prefix_cache.then(|| self.addresses.root(scope, g)),
                ..GroupTable::default()
            })
            .collect();
        Table {
            id,
            tenant: scope.tenant,
            prompt,
            committed: 0,
            in_flight: 0,
            on_host: 0,
            groups,
        }
    }

    /// Makes room for `n` more tokens: takes at most `limit` pages, and copies what would be written while
    /// shared.
    ///
    /// # Errors
    /// [`Short`] where there are too few pages; nothing has changed then.
    pub fn prepare(&mut self, t: &mut Table, n: u32, limit: u32) -> Result<(), Short> {
        debug_assert!(t.in_flight == 0 && t.is_resident());
        let needed = self.pages_for(t, n);
        let available = self.pool.available().min(limit);
        if needed > available {
            return Err(Short { needed, available });
        }
        // Pages beyond what must be taken: for copies that only keep a cached state alive.
        let mut spare = available - needed;
        for g in 0..t.groups.len() {
            self.prepare_group(t, g, n, &mut spare);
        }
        t.in_flight = n;
        Ok(())
    }

    /// [`KvCache::prepare`] for all sequences of one group, all or nothing: what they share is copied for
    /// all of them but the last, where nobody else holds it.
    ///
    /// # Errors
    /// [`Short`] where there are too few pages; nothing has changed then.
    pub fn prepare_all(
        &mut self,
        tables: &mut [(&mut Table, u32)],
        limit: u32,
    ) -> Result<(), Short> {
        let mut needed = 0;
        for (t, n) in tables.iter() {
            needed += self.new_blocks(t, *n);
            self.each_written(t, *n, |copied, refs| {
                if refs - *copied > 1 {
                    *copied += 1;
                    needed += 1;
                }
            });
        }
        for (t, n) in tables.iter() {
            self.each_written(t, *n, |copied, _| *copied = 0);
        }
        let available = self.pool.available().min(limit);
        if needed > available {
            return Err(Short { needed, available });
        }
        let mut spare = available - needed;
        for (t, n) in tables.iter_mut() {
            for g in 0..t.groups.len() {
                self.prepare_group(t, g, *n, &mut spare);
            }
            t.in_flight = *n;
        }
        Ok(())
    }

    /// Calls `f` for each held page that `n` more tokens write to, with its scratch counter and references.
    fn each_written(&mut self, t: &Table, n: u32, mut f: impl FnMut(&mut u32, u32)) {
        for (gt, group) in t.groups.iter().zip(&self.layout.groups) {
            let range = if group.is_state() {
                0..if n > 0 { gt.end() } else { 0 }
            } else {
                let partial = t.committed / group.slots;
                partial..(partial + u32::from(n > 0)).min(gt.end())
            };
            for i in range {
                if let Some(Entry::Device { page, .. }) = gt.entry(i) {
                    let refs = self.holders(page);
                    f(&mut self.scratch[page as usize], refs);
                }
            }
        }
    }

    /// Blocks that do not exist yet and `n` more tokens need.
    fn new_blocks(&self, t: &Table, n: u32) -> u32 {
        let groups = t.groups.iter().zip(&self.layout.groups);
        groups
            .map(|(gt, group)| {
                if !group.is_state() {
                    let mut want = (t.committed + n).div_ceil(group.slots);
                    if planted::is(Bug::OneBlockTooFew) {
                        want = (t.committed + n) / group.slots;
                    }
                    want.saturating_sub(gt.end())
                } else if gt.blocks.is_empty() && n > 0 {
                    group.state_pages
                } else {
                    0
                }
            })
            .sum()
    }

    /// Entries of the outbox's deltas so far: what happens between two of them is told by this number.
    #[must_use]
    pub fn deltas_so_far(&self) -> usize {
        self.outbox.deltas.len()
    }

    /// Pages that [`KvCache::prepare`] would take.
    #[must_use]
    pub fn pages_for(&self, t: &Table, n: u32) -> u32 {
        let mut needed = self.new_blocks(t, n);
        for (gt, group) in t.groups.iter().zip(&self.layout.groups) {
            if group.is_state() && n > 0 {
                let shared = gt.blocks.iter().filter(|e| self.is_shared(**e));
                needed += u32::try_from(shared.count()).unwrap_or(u32::MAX);
            } else if n > 0 {
                let partial = gt.entry(t.committed / group.slots);
                needed += u32::from(partial.is_some_and(|e| self.is_shared(e)));
            }
        }
        needed
    }

    /// The most tokens up to `n` for which [`KvCache::prepare`] takes at most `pages` pages.
    #[must_use]
    pub fn tokens_within(&self, t: &Table, n: u32, pages: u32) -> u32 {
        if self.pages_for(t, n) <= pages {
            return n;
        }
        let (mut fits, mut fails) = (0, n);
        while fails - fits > 1 {
            let middle = fits + (fails - fits) / 2;
            if self.pages_for(t, middle) <= pages {
                fits = middle;
            } else {
                fails = middle;
            }
        }
        fits
    }

    fn is_shared(&self, e: Entry) -> bool {
        matches!(e, Entry::Device { page, .. } if self.holders(page) > 1)
    }

    /// Who would miss the page's content if it were written over: its holders, and a transfer out, which may
    /// fail and give it back.
    fn holders(&self, page: u32) -> u32 {
        self.pool.page(page).refs + u32::from(self.is_leaving(page))
    }

    fn is_leaving(&self, page: u32) -> bool {
        self.pool.page(page).moves > 0 && self.going_out.iter().any(|o| o.2 == page)
    }

    fn prepare_group(&mut self, t: &mut Table, g: usize, n: u32, spare: &mut u32) {
        let group = self.layout.groups[g];
        if n == 0 {
            return;
        }
        if group.is_state() {
            if t.groups[g].blocks.is_empty() {
                for _ in 0..group.state_pages {
                    let page = self.take(g, t.tenant);
                    self.pool.fill(page, 1);
                    self.push_entry(t, g, page);
                }
            } else {
                for i in 0..t.groups[g].blocks.len() {
                    self.own(t, g, i, spare);
                }
            }
            return;
        }
        self.writing[g] += u64::from(n);
        let partial = t.committed / group.slots;
        let gt = &t.groups[g];
        if partial < gt.end() && partial >= gt.first {
            self.own(t, g, (partial - gt.first) as usize, &mut 0);
            // What a truncation left in it for others, or in the cache, is written over.
            self.uncount_tail(t, g, t.committed);
        }
        let want = (t.committed + n).div_ceil(group.slots);
        while t.groups[g].end() < want {
            let page = self.take(g, t.tenant);
            self.push_entry(t, g, page);
        }
    }

    /// Makes the entry writable: shared, it is copied; cached, it is copied too while pages are to spare,
    /// else the cache forgets it.
    fn own(&mut self, t: &mut Table, g: usize, i: usize, spare: &mut u32) {
        let Entry::Device { page, .. } = t.groups[g].blocks[i] else {
            return;
        };
        let (refs, published) = (self.holders(page), self.pool.page(page).published);
        if refs == 1 && !published || planted::is(Bug::NoCopyOnWrite) {
            return;
        }
        if refs == 1 {
            if planted::is(Bug::StateOverwritesSnapshot) {
                return;
            }
            if *spare == 0 {
                self.forget(page);
                return;
            }
            *spare -= 1;
        }
        let filled = self.pool.page(page).filled;
        let copy = self.take(g, t.tenant);
        self.pool.fill(copy, filled);
        // Copies come before rows: another holder may write the source in this very step. What is itself
        // the target of a copy of this step is copied from where that one reads.
        let from = self.copied_from(page).unwrap_or(page);
        for moved in [from, copy] {
            self.copying.push(moved);
            self.pool.moving(moved);
        }
        self.pool.release(page);
        if !planted::is(Bug::CopyForgotten) {
            self.outbox.copies.push(BlockCopy {
                from: BlockId(from),
                to: BlockId(copy),
            });
        }
        self.set_entry(t, g, i, copy);
    }

    /// The page that the step now being composed copies to `page`.
    fn copied_from(&self, page: u32) -> Option<u32> {
        if self.pool.page(page).moves == 0 {
            return None;
        }
        let copies = self.outbox.copies.iter();
        copies.rev().find(|c| c.to.0 == page).map(|c| c.from.0)
    }

    /// Whether the page's content comes only in the step now being composed.
    pub(crate) fn is_arriving(&self, page: u32) -> bool {
        self.pool.page(page).moves > 0
            && (self.copied_from(page).is_some()
                || self.outbox.swaps_in.iter().any(|s| s.page.0 == page))
    }

    /// A page that must be there: the caller has counted.
    pub(crate) fn take(&mut self, g: usize, tenant: TenantId) -> u32 {
        // Groups are few: the layout's constructor reads them from a model's layers.
        let group = u8::try_from(g).unwrap_or(u8::MAX);
        loop {
            if let Some(page) = self.pool.take(group, tenant) {
                return page;
            }
            let oldest = self
                .pool
                .oldest_cached()
                .expect("pages were counted before they were taken");
            self.forget(oldest);
            // A broken list must stop the program, not hang it.
            assert_ne!(
                self.pool.oldest_cached(),
                Some(oldest),
                "page {oldest} is cached and held at once"
            );
        }
    }

    fn delta(&mut self, t: &Table, g: usize, op: DeltaOp) {
        self.outbox.deltas.push(Delta {
            seq: t.id,
            group: u8::try_from(g).unwrap_or(u8::MAX),
            op,
        });
    }

    pub(crate) fn push_entry(&mut self, t: &mut Table, g: usize, page: u32) {
        let index = t.groups[g].end();
        let generation = self.pool.page(page).generation;
        t.groups[g]
            .blocks
            .push_back(Entry::Device { page, generation });
        let page = BlockId(page);
        self.delta(t, g, DeltaOp::Append { index, page });
    }

    pub(crate) fn set_entry(&mut self, t: &mut Table, g: usize, i: usize, page: u32) {
        let generation = self.pool.page(page).generation;
        t.groups[g].blocks[i] = Entry::Device { page, generation };
        let index = t.groups[g].first + u32::try_from(i).unwrap_or(u32::MAX);
        let page = BlockId(page);
        self.delta(t, g, DeltaOp::Replace { index, page });
    }

    /// `n` of the tokens in flight are there; the others are given up. `tokens` are the sequence's, at least
    /// up to its new length (unused without a prefix cache). Publishes full blocks, and lets go of those
    /// that have left a window.
    ///
    /// A state cannot be wound back: of tables with a state all tokens in flight are committed, or none
    /// where the row did not run.
    pub fn commit(&mut self, t: &mut Table, n: u32, tokens: &[u32]) {
        debug_assert!(n <= t.in_flight);
        let old = t.committed;
        t.committed += n;
        for g in 0..t.groups.len() {
            let group = self.layout.groups[g];
            if group.is_state() {
                if t.committed == 0 {
                    self.cut(t, g, 0);
                } else if self.prefix_cache && n > 0 {
                    self.publish_state(t, g, tokens);
                }
                continue;
            }
            self.writing[g] -= u64::from(t.in_flight);
            self.fill(t, g, old);
            if n < t.in_flight {
                self.cut(t, g, t.committed.div_ceil(group.slots));
            }
            if self.prefix_cache && t.committed / group.slots > t.groups[g].published {
                self.publish(t, g, tokens);
            }
            let mut first = first_block(&group, t.committed);
            if planted::is(Bug::WindowDropsEarly) && first > 0 {
                first = (first + 1).min(t.groups[g].end());
            } else if planted::is(Bug::WindowNeverDrops) {
                first = 0;
            }
            while t.groups[g].first < first {
                let Some(e) = t.groups[g].blocks.pop_front() else {
                    break;
                };
                t.groups[g].first += 1;
                self.let_go(e);
            }
        }
        t.in_flight = 0;
    }

    fn fill(&mut self, t: &Table, g: usize, old: u32) {
        let slots = self.layout.groups[g].slots;
        let gt = &t.groups[g];
        for index in old / slots..t.committed.div_ceil(slots) {
            if let Some(Entry::Device { page, .. }) = gt.entry(index) {
                self.pool.fill(page, slots.min(t.committed - index * slots));
            }
        }
    }

    fn let_go(&mut self, e: Entry) {
        match e {
            Entry::Device { page, generation } => {
                debug_assert_eq!(self.pool.page(page).generation, generation, "a stale block");
                self.pool.release(page);
            }
            Entry::Host { slot, generation } => {
                debug_assert_eq!(
                    self.swap.place(slot).generation,
                    generation,
                    "a stale place"
                );
                self.swap.release(slot);
            }
        }
    }

    /// Gives up entries from `len` on.
    fn cut(&mut self, t: &mut Table, g: usize, len: u32) {
        if t.groups[g].end() <= len {
            return;
        }
        while t.groups[g].end() > len {
            let Some(e) = t.groups[g].blocks.pop_back() else {
                break;
            };
            if matches!(e, Entry::Host { .. }) {
                t.on_host -= 1;
            }
            // The end goes first, so that it is also given up first from the cache.
            self.let_go(e);
        }
        self.delta(t, g, DeltaOp::Truncate { len });
    }

    /// Another table that holds the same blocks: nothing is copied until one of them is written.
    #[must_use]
    pub fn fork(&mut self, t: &Table, id: SeqId) -> Table {
        debug_assert!(t.is_resident() && t.in_flight == 0);
        let mut groups = Vec::with_capacity(t.groups.len());
        for gt in &t.groups {
            let forgotten = usize::from(planted::is(Bug::ForkForgetsReference));
            for e in gt.blocks.iter().skip(forgotten) {
                if let Entry::Device { page, .. } = e {
                    self.pool.acquire(*page, t.tenant);
                }
            }
            groups.push(GroupTable {
                first: gt.first,
                blocks: gt.blocks.clone(),
                published: gt.published,
                chain: gt.chain,
            });
        }
        Table {
            id,
            tenant: t.tenant,
            prompt: t.prompt,
            committed: t.committed,
            in_flight: 0,
            on_host: 0,
            groups,
        }
    }

    /// Cuts a table back to `to` tokens.
    ///
    /// # Errors
    /// [`CannotTruncate`] where a state has moved on or a window has passed; nothing has changed then.
    pub fn truncate(&mut self, t: &mut Table, to: u32) -> Result<(), CannotTruncate> {
        debug_assert!(t.in_flight == 0);
        if to >= t.committed {
            return Ok(());
        }
        for (gt, group) in t.groups.iter().zip(&self.layout.groups) {
            let gone = if group.is_state() {
                to > 0
            } else {
                to > 0 && gt.first > first_block(group, to)
            };
            if gone {
                return Err(CannotTruncate { to });
            }
        }
        for g in 0..t.groups.len() {
            let group = self.layout.groups[g];
            if group.is_state() {
                self.cut(t, g, 0);
            } else {
                self.cut(t, g, to.div_ceil(group.slots));
                if to == 0 {
                    t.groups[g].first = 0;
                }
                self.uncount_tail(t, g, to);
            }
            self.rewind_chain(t, g, to);
        }
        t.committed = to;
        Ok(())
    }

    /// The last block's slots past `to` hold nothing any more, where nobody else reads them.
    fn uncount_tail(&mut self, t: &Table, g: usize, to: u32) {
        let slots = self.layout.groups[g].slots;
        if let Some(Entry::Device { page, .. }) = t.groups[g].entry(to / slots) {
            let p = self.pool.page(page);
            if self.holders(page) == 1 && !p.published {
                self.pool.unfill(page, to % slots);
            }
        }
    }

    /// Takes a table back, and everything that it holds.
    pub fn release(&mut self, mut t: Table) {
        for g in 0..t.groups.len() {
            if !self.layout.groups[g].is_state() {
                self.writing[g] -= u64::from(t.in_flight);
            }
            if planted::is(Bug::ReleaseLeaks) {
                t.groups[g].blocks.pop_back();
            }
            while let Some(e) = t.groups[g].blocks.pop_back() {
                self.let_go(e);
            }
        }
        t.in_flight = 0;
        t.on_host = 0;
    }

    /// What the executor has to do, since the last call; capacity is reused by handing back a used outbox.
    pub fn drain(&mut self, into: &mut Outbox) {
        into.deltas.clear();
        into.copies.clear();
        into.swaps_out.clear();
        into.swaps_in.clear();
        std::mem::swap(&mut self.outbox, into);
    }

    /// Everything drained has been carried out, except transfers out of the tags in `failed`, whose pages
    /// are still intact: [`KvCache::undo_swap_out`] takes them back, and must be called before this for
    /// each of them.
    pub fn complete(&mut self) {
        for page in self.copying.drain(..) {
            self.pool.moved(page);
        }
        for (_, slot, page) in self.going_out.drain(..) {
            self.pool.moved(page);
            self.swap.release(slot);
        }
        for (slot, page) in self.coming_in.drain(..) {
            self.swap.release(slot);
            if let Some(page) = page {
                self.pool.moved(page);
            }
        }
    }

    /// Slots being written, per group.
    pub(crate) fn writing(&self, group: usize) -> u64 {
        self.writing[group]
    }

    pub(crate) fn copies_under_way(&self) -> &[u32] {
        &self.copying
    }

    pub(crate) fn transfers_out(&self) -> &[(u64, u32, u32)] {
        &self.going_out
    }

    pub(crate) fn transfers_in(&self) -> &[(u32, Option<u32>)] {
        &self.coming_in
    }

    pub(crate) fn group(&self, g: usize) -> &GroupLayout {
        &self.layout.groups[g]
    }
}
