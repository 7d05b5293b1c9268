//! KV pages and everything held in them: block tables, prefix index, copy-on-write, swap, accounting.
//!
//! The design of `PagedAttention` (Kwon et al., SOSP 2023, section 4), for any mix of layer groups:
//! one pool of equal pages, one block of a group per page. [`KvCache`] owns the pages; a [`Table`] is
//! one sequence's hold on them and its only handle: it cannot be cloned, and a build with debug
//! assertions panics where one is dropped instead of given back. Promises:
//!
//! - allocate, free, append and release are O(1) per block, and all or nothing over the groups;
//! - no page with more than one reference is ever written (copy-on-write comes first);
//! - cached pages are given up least recently used first, the end of a chain before its start;
//! - pages in a transfer are not reused before its completion;
//! - every page is free, held, cached, in transit or the null page, and is counted as one of them.
//!
//! It decides nothing (`plimsoll-schedule` does) and moves no byte (executors do): it hands out
//! [`Outbox`] entries that say what to move. Pure: no clock, no thread, no hash order.

mod account;
mod address;
mod cache;
mod integrity;
mod layout;
mod outbox;
#[doc(hidden)]
pub mod planted;
mod pool;
mod prefix;
mod publish;
mod swap;
mod table;
mod transfer;
mod view;

pub use account::{Census, Owner, Usage};
pub use address::{PromptKeys, Scope};
pub use cache::{CannotTruncate, KvCache, KvConfig, Short};
pub use integrity::Violation;
pub use layout::{GroupLayout, Layout, LayoutError};
pub use outbox::{BlockCopy, CacheEvent, Delta, DeltaOp, Outbox, SwapOp};
pub use pool::PAGES_MAX;
pub use prefix::{Hit, Pin};
pub use swap::SwapFull;
pub use table::{Table, TenantId};
pub use view::{Holding, PageState, PageView, View};
