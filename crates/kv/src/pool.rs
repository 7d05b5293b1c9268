//! The pages: reference counts, the free list, and cached pages in the order in which they are given up.

use crate::planted::{self, Bug};
use crate::table::TenantId;

/// The largest pool, in pages: an id and its list links are 32 bits, and one value means none.
pub const PAGES_MAX: u32 = u32::MAX - 1;

/// No page, in list links.
const NONE: u32 = u32::MAX;

/// One page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    /// Tables and pins that hold it.
    pub(crate) refs: u32,
    /// Counts its uses; an entry with another generation is stale.
    pub(crate) generation: u32,
    /// Slots that hold a token; 1 for a page of a state.
    pub(crate) filled: u32,
    /// Copies and transfers under way that read or write it: it is not reused before they are done.
    pub(crate) moves: u32,
    /// Group that it serves.
    pub(crate) group: u8,
    /// Whether the prefix index finds it. Its content never changes while it does.
    pub(crate) published: bool,
    /// Who is charged for it while it is held.
    pub(crate) tenant: TenantId,
    /// Content address, while published.
    pub(crate) address: u128,
    prev: u32,
    next: u32,
}

/// All pages of a device. Page 0 is the null page: executors point padding at it, nobody holds it.
#[derive(Debug)]
pub(crate) struct Pool {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Least recently used cached page.
    head: u32,
    /// Most recently used cached page.
    tail: u32,
    cached: u32,
    referenced: u32,
    /// Pages that only copies and transfers under way keep.
    in_transit: u32,
    /// Slots with a token in held pages, per group.
    live: Vec<u64>,
    /// Held pages, per group.
    held: Vec<u64>,
    /// Held pages, per tenant; the last account is the house's, which pays for pins.
    charged: Vec<u64>,
}

impl Pool {
    pub(crate) fn new(pages: u32, groups: usize, tenants: usize) -> Self {
        let mut all = vec![Page::default(); pages.max(1) as usize];
        all[0].refs = 1;
        Self {
            pages: all,
            // Lowest ids are taken first.
            free: (1..pages).rev().collect(),
            head: NONE,
            tail: NONE,
            cached: 0,
            referenced: 0,
            in_transit: 0,
            live: vec![0; groups],
            held: vec![0; groups],
            charged: vec![0; tenants.max(1) + 1],
        }
    }

    /// As it was when it was new, where it lies.
    pub(crate) fn restart(&mut self) {
        self.pages.fill(Page::default());
        self.pages[0].refs = 1;
        let pages = self.total() + 1;
        self.free.clear();
        self.free.extend((1..pages).rev());
        (self.head, self.tail) = (NONE, NONE);
        (self.cached, self.referenced, self.in_transit) = (0, 0, 0);
        for counts in [&mut self.live, &mut self.held, &mut self.charged] {
            counts.fill(0);
        }
    }

    pub(crate) fn page(&self, id: u32) -> &Page {
        &self.pages[id as usize]
    }

    /// Pages without the null page.
    pub(crate) fn total(&self) -> u32 {
        // At most PAGES_MAX.
        u32::try_from(self.pages.len()).unwrap_or(PAGES_MAX) - 1
    }

    pub(crate) fn free(&self) -> u32 {
        u32::try_from(self.free.len()).unwrap_or(PAGES_MAX)
    }

    pub(crate) fn cached(&self) -> u32 {
        self.cached
    }

    pub(crate) fn referenced(&self) -> u32 {
        self.referenced
    }

    pub(crate) fn in_transit(&self) -> u32 {
        self.in_transit
    }

    /// Pages that can be had now: free, or cached and held by nobody.
    pub(crate) fn available(&self) -> u32 {
        self.free() + self.cached
    }

    pub(crate) fn live(&self, group: usize) -> u64 {
        self.live[group]
    }

    pub(crate) fn held(&self, group: usize) -> u64 {
        self.held[group]
    }

    pub(crate) fn charged(&self, tenant: TenantId) -> u64 {
        self.charged.get(tenant.0 as usize).copied().unwrap_or(0)
    }

    /// Accounts, the house's last.
    pub(crate) fn accounts(&self) -> &[u64] {
        &self.charged
    }

    /// The house pays for a held page from now on.
    pub(crate) fn charge_house(&mut self, id: u32) {
        let tenant = self.pages[id as usize].tenant;
        self.charge(tenant, -1);
        self.charge(TenantId::HOUSE, 1);
        self.pages[id as usize].tenant = TenantId::HOUSE;
    }

    /// The free list, for integrity checks.
    pub(crate) fn free_list(&self) -> &[u32] {
        &self.free
    }

    /// Cached pages, least recently used first.
    pub(crate) fn lru(&self) -> impl Iterator<Item = u32> + '_ {
        let mut at = self.head;
        let all = std::iter::from_fn(move || {
            (at != NONE).then(|| {
                let here = at;
                at = self.pages[here as usize].next;
                here
            })
        });
        // A broken list may go round: whoever checks it must come to an end.
        all.take(self.pages.len() + 1)
    }

    /// The cached page that would be given up next.
    pub(crate) fn oldest_cached(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// A free page, now held once by `tenant` for `group`. `None` where only cached pages are left:
    /// the caller gives one up first.
    pub(crate) fn take(&mut self, group: u8, tenant: TenantId) -> Option<u32> {
        let id = self.free.pop()?;
        let page = &mut self.pages[id as usize];
        page.refs = 1;
        page.generation = page.generation.wrapping_add(1);
        page.filled = 0;
        page.group = group;
        page.tenant = tenant;
        page.published = false;
        self.referenced += 1;
        self.held[group as usize] += 1;
        self.charge(tenant, 1);
        Some(id)
    }

    fn charge(&mut self, tenant: TenantId, n: i64) {
        let slot = (tenant.0 as usize).min(self.charged.len() - 1);
        if n < 0 && planted::is(Bug::ChargeKept) {
            return;
        }
        self.charged[slot] = self.charged[slot].wrapping_add_signed(n);
    }

    /// One more holder. A cached page becomes held and is charged to `tenant`.
    pub(crate) fn acquire(&mut self, id: u32, tenant: TenantId) {
        if self.pages[id as usize].refs == 0 {
            if self.pages[id as usize].moves > 0 {
                self.in_transit -= 1;
            } else {
                self.unlink(id);
            }
            let page = &mut self.pages[id as usize];
            page.tenant = tenant;
            let (group, filled) = (page.group as usize, u64::from(page.filled));
            self.referenced += 1;
            self.held[group] += 1;
            self.live[group] += filled;
            self.charge(tenant, 1);
        }
        self.pages[id as usize].refs += 1;
    }

    /// One holder less. The last one makes the page cached, where it is published, or free.
    pub(crate) fn release(&mut self, id: u32) {
        let page = &mut self.pages[id as usize];
        debug_assert!(page.refs > 0, "page {id} released more often than held");
        page.refs -= 1;
        if page.refs > 0 {
            return;
        }
        let (group, filled, tenant) = (page.group as usize, u64::from(page.filled), page.tenant);
        let published = page.published;
        self.referenced -= 1;
        self.held[group] -= 1;
        self.live[group] -= filled;
        self.charge(tenant, -1);
        if self.pages[id as usize].moves > 0 && !planted::is(Bug::TransferReusedAtOnce) {
            self.in_transit += 1;
        } else {
            self.park(id, published);
        }
    }

    /// A copy or a transfer reads or writes the page until [`Pool::moved`].
    pub(crate) fn moving(&mut self, id: u32) {
        self.pages[id as usize].moves += 1;
    }

    /// The copy or transfer is done, or has been given up.
    pub(crate) fn moved(&mut self, id: u32) {
        let page = &mut self.pages[id as usize];
        page.moves -= 1;
        if planted::is(Bug::TransferReusedAtOnce) {
            // It was parked when it was released.
            return;
        }
        if page.moves == 0 && page.refs == 0 {
            let published = page.published;
            self.in_transit -= 1;
            self.park(id, published);
        }
    }

    fn park(&mut self, id: u32, published: bool) {
        if published {
            self.push_newest(id);
        } else {
            self.free.push(id);
        }
    }

    /// `filled` slots of a held page have a token now; never fewer than before.
    pub(crate) fn fill(&mut self, id: u32, filled: u32) {
        let page = &mut self.pages[id as usize];
        if filled > page.filled {
            self.live[page.group as usize] += u64::from(filled - page.filled);
            page.filled = filled;
        }
    }

    /// Slots from `filled` on of a page with one holder are empty again.
    pub(crate) fn unfill(&mut self, id: u32, filled: u32) {
        let page = &mut self.pages[id as usize];
        debug_assert_eq!(page.refs, 1);
        if filled < page.filled {
            self.live[page.group as usize] -= u64::from(page.filled - filled);
            page.filled = filled;
        }
    }

    pub(crate) fn publish(&mut self, id: u32, address: u128) {
        let page = &mut self.pages[id as usize];
        page.published = true;
        page.address = address;
    }

    /// The index no longer finds it; a page that nobody holds becomes free.
    pub(crate) fn unpublish(&mut self, id: u32) {
        let page = &mut self.pages[id as usize];
        page.published = false;
        if page.refs == 0 && page.moves == 0 {
            self.unlink(id);
            self.free.push(id);
        }
    }

    fn push_newest(&mut self, id: u32) {
        let tail = self.tail;
        let page = &mut self.pages[id as usize];
        page.prev = tail;
        page.next = NONE;
        if tail == NONE {
            self.head = id;
        } else {
            self.pages[tail as usize].next = id;
        }
        self.tail = id;
        self.cached += 1;
    }

    fn unlink(&mut self, id: u32) {
        let (prev, next) = (self.pages[id as usize].prev, self.pages[id as usize].next);
        if prev == NONE {
            self.head = next;
        } else {
            self.pages[prev as usize].next = next;
        }
        if next == NONE {
            self.tail = prev;
        } else {
            self.pages[next as usize].prev = prev;
        }
        self.cached -= 1;
    }
}
