//! [`Room`]: what could ever be let in, known without the scheduler.

use plimsoll_kv::{Layout, TenantId};

use crate::group::worst_of;

/// A pool, and how much of it each tenant may hold.
#[derive(Clone, Debug)]
pub struct Room {
    pub(crate) layout: Layout,
    /// Pages for sequences.
    pub(crate) pages: u64,
    /// By tenant.
    pub(crate) caps: Vec<u32>,
    /// T.
    pub(crate) chunk: u32,
    pub(crate) queue: usize,
}

impl Room {
    /// Requests that may wait: no more can be handed over at once.
    #[must_use]
    pub const fn queue(&self) -> usize {
        self.queue
    }

    /// The most tokens that a request of `width` sequences after a prompt of `prompt` tokens can ask for and still be let
    /// in by a scheduler that is idle; 0 where not even one.
    #[must_use]
    pub fn most_tokens(&self, prompt: u32, width: u32, tenant: TenantId) -> u32 {
        let cap = self.caps.get(usize::from(tenant.0)).copied().unwrap_or(0);
        let pages = self.pages.min(u64::from(cap));
        let fits = |n| worst_of(&self.layout, prompt, n, width, self.chunk) <= pages;
        let (mut low, mut high) = (0, u32::MAX - prompt);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }
}
