//! Transfers: tables out to swap space and back, in two phases.
//!
//! A transfer begins here, as entries of the outbox; it ends with [`KvCache::complete`], and until then
//! its pages and places are not reused.

use plimsoll_units::BlockId;

use crate::cache::{KvCache, Short};
use crate::outbox::SwapOp;
use crate::swap::SwapFull;
use crate::table::{Entry, Table};

impl KvCache {
    /// Pages that swapping these tables out would move: those that nobody else holds, and whose content
    /// does not come only in the same step (transfers out are its first part).
    #[must_use]
    pub fn swappable(&mut self, tables: &[&Table]) -> u32 {
        self.count_references(tables.iter().copied());
        let mut moved = 0;
        for (_, e) in tables.iter().flat_map(|t| t.entries()) {
            if let Entry::Device { page, .. } = e
                && self.scratch[page as usize] > 0
            {
                if self.is_held_by(page, self.scratch[page as usize]) {
                    moved += 1;
                }
                self.scratch[page as usize] = 0;
            }
        }
        moved
    }

    /// Whether a page can move with the tables that hold it `n` times.
    fn is_held_by(&self, page: u32, n: u32) -> bool {
        n == self.pool.page(page).refs && !self.is_arriving(page)
    }

    fn count_references<'a>(&mut self, tables: impl Iterator<Item = &'a Table>) {
        for (_, e) in tables.flat_map(Table::entries) {
            if let Entry::Device { page, .. } = e {
                self.scratch[page as usize] += 1;
            }
        }
    }

    /// Sends what only these tables hold to swap space; what others hold too stays. The pages can be had
    /// again once the transfer is done.
    ///
    /// # Errors
    /// [`SwapFull`] where the cap would be exceeded; nothing has changed then.
    pub fn swap_out(&mut self, tag: u64, tables: &mut [&mut Table]) -> Result<u32, SwapFull> {
        let shared: Vec<&Table> = tables.iter().map(|t| &**t).collect();
        let needed = self.swappable(&shared);
        let free = self.swap.free();
        if needed > free {
            return Err(SwapFull { needed, free });
        }
        self.count_references(shared.into_iter());
        // Which place a page went to, for tables that share it.
        let mut places: Vec<(u32, u32)> = Vec::new();
        for t in tables.iter_mut() {
            debug_assert!(t.in_flight == 0);
            for g in 0..t.groups.len() {
                for i in 0..t.groups[g].blocks.len() {
                    let Entry::Device { page, .. } = t.groups[g].blocks[i] else {
                        continue;
                    };
                    let slot = match places.iter().rev().find(|(p, _)| *p == page) {
                        Some((_, slot)) => *slot,
                        None if self.is_held_by(page, self.scratch[page as usize]) => {
                            let slot = self.send(tag, page);
                            // Only pages with several holders are looked up again.
                            if self.scratch[page as usize] > 1 {
                                places.push((page, slot));
                            }
                            slot
                        }
                        None => continue,
                    };
                    // From the last holder on the transfer alone keeps it. What is published is still
                    // found meanwhile, and whoever finds it holds it like any other page.
                    self.pool.release(page);
                    self.scratch[page as usize] = 0;
                    let place = self.swap.place_mut(slot);
                    place.refs += 1;
                    let generation = place.generation;
                    t.groups[g].blocks[i] = Entry::Host { slot, generation };
                    t.on_host += 1;
                }
            }
        }
        for t in tables.iter() {
            for (_, e) in t.entries() {
                if let Entry::Device { page, .. } = e {
                    self.scratch[page as usize] = 0;
                }
            }
        }
        Ok(needed)
    }

    fn send(&mut self, tag: u64, page: u32) -> u32 {
        let slot = self.swap.take();
        let p = self.pool.page(page);
        let (filled, group, address) = (p.filled, p.group, p.published.then_some(p.address));
        self.pool.moving(page);
        let place = self.swap.place_mut(slot);
        // The transfer's own: the place is not given to another before it is done.
        place.refs = 1;
        place.page = page;
        place.filled = filled;
        place.group = group;
        place.address = address;
        let generation = place.generation;
        self.going_out.push((tag, slot, page));
        self.outbox.swaps_out.push(SwapOp {
            tag,
            page: BlockId(page),
            slot,
            generation,
        });
        slot
    }

    /// Pages that bringing these tables back takes at most.
    #[must_use]
    pub fn pages_on_host(&self, tables: &[&Table]) -> u32 {
        let mut slots: Vec<u32> = tables
            .iter()
            .flat_map(|t| t.entries())
            .filter_map(|(_, e)| match e {
                Entry::Host { slot, .. } => Some(slot),
                Entry::Device { .. } => None,
            })
            .collect();
        slots.sort_unstable();
        slots.dedup();
        u32::try_from(slots.len()).unwrap_or(u32::MAX)
    }

    /// Brings these tables back. Blocks of which a copy is still cached are shared with it instead; the others
    /// are in no index until [`KvCache::publish_again`].
    ///
    /// # Errors
    /// [`Short`] where there are too few pages; nothing has changed then.
    pub fn swap_in(&mut self, tag: u64, tables: &mut [&mut Table]) -> Result<u32, Short> {
        let shared: Vec<&Table> = tables.iter().map(|t| &**t).collect();
        let needed = self.pages_on_host(&shared);
        let available = self.pool.available();
        if needed > available {
            return Err(Short { needed, available });
        }
        let mut back: Vec<(u32, u32)> = Vec::new();
        let mut moved = 0;
        for t in tables.iter_mut() {
            for g in 0..t.groups.len() {
                for i in 0..t.groups[g].blocks.len() {
                    let Entry::Host { slot, generation } = t.groups[g].blocks[i] else {
                        continue;
                    };
                    debug_assert_eq!(
                        self.swap.place(slot).generation,
                        generation,
                        "a stale place"
                    );
                    let mut written = None;
                    let known = back.iter().rev().find(|(s, _)| *s == slot).map(|b| b.1);
                    let page = if let Some(page) = known {
                        self.pool.acquire(page, t.tenant);
                        page
                    } else {
                        let place = self.swap.place(slot).clone();
                        let cached = place.address.and_then(|a| self.index.find(a));
                        let page = if let Some(page) = cached {
                            self.pool.acquire(page, t.tenant);
                            page
                        } else {
                            let page = self.take(g, t.tenant);
                            self.pool.fill(page, place.filled);
                            self.pool.moving(page);
                            written = Some(page);
                            self.outbox.swaps_in.push(SwapOp {
                                tag,
                                page: BlockId(page),
                                slot,
                                generation,
                            });
                            moved += 1;
                            page
                        };
                        if place.refs > 1 {
                            back.push((slot, page));
                        }
                        page
                    };
                    // The place is kept until the transfer has been reported.
                    self.coming_in.push((slot, written));
                    self.set_entry(t, g, i, page);
                    t.on_host -= 1;
                }
            }
        }
        Ok(moved)
    }

    /// A transfer out failed: the tables hold their pages as before it.
    pub fn undo_swap_out(&mut self, tag: u64, tables: &mut [&mut Table]) {
        let mut undone: Vec<(u64, u32, u32)> = self
            .going_out
            .iter()
            .copied()
            .filter(|o| o.0 == tag)
            .collect();
        undone.sort_unstable_by_key(|o| o.1);
        self.going_out.retain(|o| o.0 != tag);
        for t in tables.iter_mut() {
            for g in 0..t.groups.len() {
                for i in 0..t.groups[g].blocks.len() {
                    let Entry::Host { slot, .. } = t.groups[g].blocks[i] else {
                        continue;
                    };
                    let Ok(at) = undone.binary_search_by_key(&slot, |o| o.1) else {
                        continue;
                    };
                    let page = undone[at].2;
                    self.pool.acquire(page, t.tenant);
                    self.swap.release(slot);
                    self.set_entry(t, g, i, page);
                    t.on_host -= 1;
                }
            }
        }
        for (_, slot, page) in undone {
            self.swap.release(slot);
            self.pool.moved(page);
        }
    }
}
