//! Publishing: full blocks, and states where they are kept, enter the prefix index; what is written over or
//! given up leaves it.

use crate::address::{PromptKeys, Scope, block_tokens};
use crate::cache::KvCache;
use crate::outbox::CacheEvent;
use crate::prefix::part;
use crate::table::{Entry, Table};

impl KvCache {
    /// Addresses of the full blocks of `tokens`; empty without a prefix cache.
    #[must_use]
    pub fn keys(&self, scope: &Scope, tokens: &[u32]) -> PromptKeys {
        if self.prefix_cache {
            self.addresses.keys(&self.layout, scope, tokens)
        } else {
            PromptKeys::default()
        }
    }

    /// Changes of the prefix index since the last call.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Forgets every cached prefix. Held pages stay with their holders.
    pub fn clear_prefix_cache(&mut self) {
        for page in 1..=self.pool.total() {
            if self.pool.page(page).published {
                self.index.remove(self.pool.page(page).address);
                self.pool.unpublish(page);
            }
        }
        if let Some(events) = &mut self.events {
            events.clear();
            events.push(CacheEvent::Cleared);
        }
    }

    /// Takes the blocks of a table out of the prefix index: what they hold is not to be used again. Whoever shares them
    /// keeps them.
    pub fn unpublish(&mut self, t: &Table) {
        let entries = t.groups.iter().flat_map(|g| &g.blocks);
        let pages: Vec<u32> = entries
            .filter_map(|e| match *e {
                Entry::Device { page, .. } => Some(page),
                _ => None,
            })
            .collect();
        for page in pages {
            if self.pool.page(page).published {
                self.forget(page);
            }
        }
    }

    /// A table has come back from swap space whole: its full blocks are published again, by the same rules as
    /// when they were computed. Not for a table whose transfer has failed, nor before the step is carried out.
    ///
    /// All tables that share blocks come one after another, so that they go on sharing them. A state is left
    /// out: it moves on at once.
    pub fn publish_again(&mut self, t: &mut Table, scope: &Scope, tokens: &[u32]) {
        if !self.prefix_cache {
            return;
        }
        for g in 0..t.groups.len() {
            if !self.layout.groups[g].is_state() {
                t.groups[g].published = 0;
                t.groups[g].chain = Some(self.addresses.root(scope, g));
                self.publish(t, g, tokens);
            }
        }
    }

    pub(crate) fn publish(&mut self, t: &mut Table, g: usize, tokens: &[u32]) {
        let slots = self.layout.groups[g].slots;
        let full = t.committed / slots;
        while t.groups[g].published < full {
            let index = t.groups[g].published;
            let from = index as usize * slots as usize;
            let (Some(parent), Some(block)) =
                (t.groups[g].chain, tokens.get(from..from + slots as usize))
            else {
                t.groups[g].chain = None;
                return;
            };
            let address = self.addresses.child(parent, block);
            if let Some(Entry::Device { page, .. }) = t.groups[g].entry(index) {
                match self.index.find(address) {
                    Some(other) if other == page => {}
                    Some(other) if self.stored_tokens(other, slots as usize) == block => {
                        // Somebody computed the same block: from now on it is one.
                        self.pool.acquire(other, t.tenant);
                        self.pool.release(page);
                        let i = (index - t.groups[g].first) as usize;
                        self.set_entry(t, g, i, other);
                    }
                    Some(_) => {}
                    None => self.store(page, g, address, index_parent(index, parent), block),
                }
            }
            t.groups[g].chain = Some(address);
            t.groups[g].published += 1;
        }
    }

    pub(crate) fn publish_state(&mut self, t: &mut Table, g: usize, tokens: &[u32]) {
        let group = self.layout.groups[g];
        let unit = block_tokens(&self.layout, &group);
        while t.groups[g].published < t.committed / unit {
            let from = t.groups[g].published as usize * unit as usize;
            let (Some(parent), Some(block)) =
                (t.groups[g].chain, tokens.get(from..from + unit as usize))
            else {
                t.groups[g].chain = None;
                return;
            };
            t.groups[g].chain = Some(self.addresses.child(parent, block));
            t.groups[g].published += 1;
        }
        let Some(address) = t.groups[g].chain else {
            return;
        };
        let shareable = t.committed.is_multiple_of(self.layout.snapshot)
            || t.committed == t.prompt.saturating_sub(1) / unit * unit;
        if t.committed == 0 || !t.committed.is_multiple_of(unit) || !shareable {
            return;
        }
        for (i, e) in t.groups[g].blocks.iter().enumerate() {
            let i = u32::try_from(i).unwrap_or(u32::MAX);
            let here = part(address, i);
            if let Entry::Device { page, .. } = *e
                && self.index.find(here).is_none()
                && !self.pool.page(page).published
            {
                self.index.insert(here, page);
                self.pool.publish(page, here);
                if let Some(events) = &mut self.events {
                    events.push(CacheEvent::Stored {
                        address: here,
                        parent: None,
                        tokens: Vec::new(),
                        group: u8::try_from(g).unwrap_or(u8::MAX),
                    });
                }
            }
        }
    }

    fn store(&mut self, page: u32, g: usize, address: u128, parent: Option<u128>, block: &[u32]) {
        if self.pool.page(page).published {
            return;
        }
        let from = page as usize * self.token_stride;
        self.tokens[from..from + block.len()].copy_from_slice(block);
        self.index.insert(address, page);
        self.pool.publish(page, address);
        if let Some(events) = &mut self.events {
            events.push(CacheEvent::Stored {
                address,
                parent,
                tokens: block.to_vec(),
                group: u8::try_from(g).unwrap_or(u8::MAX),
            });
        }
    }

    pub(crate) fn stored_tokens(&self, page: u32, slots: usize) -> &[u32] {
        let from = page as usize * self.token_stride;
        &self.tokens[from..from + slots]
    }

    /// Takes a page out of the prefix index.
    pub(crate) fn forget(&mut self, page: u32) {
        let (address, group) = {
            let p = self.pool.page(page);
            (p.address, p.group)
        };
        self.index.remove(address);
        self.pool.unpublish(page);
        if let Some(events) = &mut self.events {
            events.push(CacheEvent::Removed { address, group });
        }
    }

    pub(crate) fn rewind_chain(&mut self, t: &mut Table, g: usize, to: u32) {
        let step = block_tokens(&self.layout, &self.layout.groups[g]);
        let full = to / step;
        if t.groups[g].published <= full {
            return;
        }
        let last = full.checked_sub(1).and_then(|i| t.groups[g].entry(i));
        t.groups[g].chain = match last {
            Some(Entry::Device { page, .. }) if self.pool.page(page).published => {
                Some(self.pool.page(page).address)
            }
            // A table cut to nothing is not filled again under this chain: the scheduler makes a new one.
            _ => None,
        };
        t.groups[g].published = full;
    }
}

fn index_parent(index: u32, parent: u128) -> Option<u128> {
    (index > 0).then_some(parent)
}
