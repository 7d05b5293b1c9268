//! Where the pages are, and whose: cheap counters at every step, and a census that walks all tables.

use plimsoll_units::{Bytes, SizeOverflow};

use crate::cache::KvCache;
use crate::table::{Entry, Table};

/// The pool at one moment. Counters only: O(groups).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pages for sequences.
    pub pages: u64,
    /// Nobody holds them and nothing is in them.
    pub free: u64,
    /// Held by tables or pins.
    pub held: u64,
    /// Cached prefixes that nobody holds.
    pub cached: u64,
    /// Held by nobody, but kept by copies and transfers under way.
    pub in_transit: u64,
    /// Places taken in swap space.
    pub swapped: u64,
    /// Bytes of keys, values and states of tokens that exist, shared ones once.
    pub token_states: Bytes,
    /// Bytes held for tokens of the step under way.
    pub reserved: Bytes,
    /// Bytes of held pages that no token fills, padding included.
    pub internal: Bytes,
    /// Bytes lost between allocations: none, by construction.
    pub external: Bytes,
}

/// Who holds a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The request.
    pub request: u64,
    /// Whether it is a beam search.
    pub beam: bool,
}

/// Every page and swap place by owner. The first seven add up to the pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Free pages.
    pub free: u64,
    /// Cached prefixes that nobody holds.
    pub cached: u64,
    /// Held by nobody, but kept by copies and transfers under way.
    pub in_transit: u64,
    /// Held by one request alone, not a beam search.
    pub requests: u64,
    /// Held by one beam search alone.
    pub beams: u64,
    /// Held by several requests.
    pub shared: u64,
    /// Held by pins alone.
    pub pinned: u64,
    /// Places taken in swap space.
    pub swapped: u64,
    /// Pages charged to each tenant; what pins keep is charged to none.
    pub tenants: Vec<u64>,
}

impl KvCache {
    /// The pool at this moment.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn usage(&self) -> Result<Usage, SizeOverflow> {
        let pool = &self.pool;
        let mut live = Bytes::ZERO;
        let mut writing = Bytes::ZERO;
        for (g, group) in self.layout.groups.iter().enumerate() {
            if group.is_state() {
                let sequences = pool.held(g) / u64::from(group.state_pages.max(1));
                live = live.add(group.row.times(sequences)?)?;
            } else {
                live = live.add(group.row.times(pool.live(g))?)?;
                writing = writing.add(group.row.times(self.writing(g))?)?;
            }
        }
        let held = self.layout.page.times(u64::from(pool.referenced()))?;
        Ok(Usage {
            pages: u64::from(pool.total()),
            free: u64::from(pool.free()),
            held: u64::from(pool.referenced()),
            cached: u64::from(pool.cached()),
            in_transit: u64::from(pool.in_transit()),
            swapped: u64::from(self.swap.used()),
            token_states: live,
            reserved: writing,
            internal: held.saturating_sub(live).saturating_sub(writing),
            external: Bytes::ZERO,
        })
    }

    /// Walks all tables and says whose every page is. `tables` must be all there are but pins.
    #[must_use]
    pub fn census<'a>(
        &self,
        tables: impl Iterator<Item = (Owner, &'a Table)>,
        pins: impl Iterator<Item = &'a Table>,
    ) -> Census {
        #[derive(Clone, Copy, PartialEq)]
        enum By {
            Nobody,
            Pin,
            One(Owner),
            Several,
        }
        let mut by = vec![By::Nobody; self.pool.total() as usize + 1];
        let pages = |t: &'a Table| {
            t.entries().filter_map(|(_, e)| match e {
                Entry::Device { page, .. } => Some(page as usize),
                Entry::Host { .. } => None,
            })
        };
        for page in pins.flat_map(pages) {
            by[page] = By::Pin;
        }
        for (owner, t) in tables {
            for page in pages(t) {
                by[page] = match by[page] {
                    By::Nobody | By::Pin => By::One(owner),
                    By::One(o) if o == owner => By::One(o),
                    By::One(_) | By::Several => By::Several,
                };
            }
        }
        let mut census = Census {
            free: u64::from(self.pool.free()),
            cached: u64::from(self.pool.cached()),
            swapped: u64::from(self.swap.used()),
            tenants: self.pool.accounts()[..self.pool.accounts().len() - 1].to_vec(),
            ..Census::default()
        };
        for (id, by) in by.iter().enumerate().skip(1) {
            match by {
                By::One(o) if o.beam => census.beams += 1,
                By::One(_) => census.requests += 1,
                By::Several => census.shared += 1,
                By::Pin => census.pinned += 1,
                By::Nobody => {
                    let held = u32::try_from(id)
                        .is_ok_and(|id| self.pool.page(id).refs + self.pool.page(id).moves > 0);
                    census.in_transit += u64::from(held);
                }
            }
        }
        census
    }
}
