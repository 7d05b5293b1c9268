//! What a scheduler tells: tokens, ends, who gave way and why, why somebody was not let in; and counters.

use std::ops::AddAssign;

use plimsoll_kv::Short;
use plimsoll_units::Nanos;

use crate::group::Completion;
use crate::request::RequestId;
use crate::step::{Draw, Step};

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Its id is in use.
    #[error("a request with this id is in flight")]
    Duplicate,
    /// The server is going down.
    #[error("the server is shutting down")]
    Draining,
    /// It asks for more sequences than ever run at once.
    #[error("{width} sequences exceed the {max} that run at once")]
    TooWide {
        /// Asked for.
        width: u32,
        /// Allowed.
        max: u32,
    },
    /// Its worst case exceeds the pool.
    #[error(
        "at its longest it needs {pages} KV pages and there are {available}: ask for fewer tokens or sequences"
    )]
    NeverFits {
        /// Pages of its worst case.
        pages: u64,
        /// Pages of the pool.
        available: u64,
    },
    /// Its worst case exceeds what its tenant may hold.
    #[error("at its longest it needs {pages} KV pages and its tenant may hold {cap}")]
    OverTenantCap {
        /// Pages of its worst case.
        pages: u64,
        /// Pages that the tenant may hold.
        cap: u64,
    },
    /// Too many wait already.
    #[error("{waiting} requests wait already")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
}

/// A request that was not let in, and when to try again, where that helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// When to try again: about when the next request ends.
    pub retry_after: Option<Nanos>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A sequence has another token. Beam searches tell theirs only at the end.
    Token {
        /// Of which request.
        request: RequestId,
        /// Which of its sequences.
        index: u32,
        /// The token.
        draw: Draw,
    },
    /// A request gave way.
    Preempted {
        /// Which.
        request: RequestId,
        /// For whom; itself, where nobody after it had pages to give.
        by: RequestId,
        /// Pages that were needed, and could be had, for the next tokens of `by`.
        short: Short,
        /// Pages that went to swap space.
        swapped_pages: u32,
        /// Tokens that were forgotten: computed again, but for what the prefix cache keeps until then.
        forgotten_tokens: u32,
        /// What this is believed to cost: swapping out and in, computing again.
        cost: Nanos,
    },
    /// A request ended well: its one terminal notice.
    Finished(Box<Ended>),
    /// A request was cancelled: its one terminal notice.
    Cancelled {
        /// Which.
        request: RequestId,
    },
}

/// A request that ended well.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Which.
    pub request: RequestId,
    /// The sequences that were wanted, best first where they are ranked.
    pub completions: Vec<Completion>,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u32,
    /// Times it gave way to swap space.
    pub swaps: u32,
    /// Times it gave way and was computed again.
    pub recomputes: u32,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Steps.
    pub steps: u64,
    /// Rows.
    pub rows: u64,
    /// Query tokens.
    pub tokens: u64,
    /// Preemptions by swapping, wholly or in part.
    pub swaps: u64,
    /// Preemptions by recomputation.
    pub recomputes: u64,
    /// Tokens whose keys and values were forgotten.
    pub forgotten_tokens: u64,
    /// Of them, computed again: the prefix cache had not kept them.
    pub recomputed_tokens: u64,
    /// Pages that went to swap space.
    pub pages_out: u64,
    /// Pages that came back.
    pub pages_in: u64,
    /// Pages copied on the device.
    pub pages_copied: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub queried_tokens: u64,
    /// Of them, found.
    pub cached_tokens: u64,
    /// Transfers and steps that failed and were made good.
    pub failures: u64,
}

impl AddAssign for Stats {
    /// The counters of two schedulers together.
    fn add_assign(&mut self, other: Self) {
        // Field by field, so that none is forgotten.
        let Self {
            steps,
            rows,
            tokens,
            swaps,
            recomputes,
            forgotten_tokens,
            recomputed_tokens,
            pages_out,
            pages_in,
            pages_copied,
            queried_tokens,
            cached_tokens,
            failures,
        } = other;
        self.steps += steps;
        self.rows += rows;
        self.tokens += tokens;
        self.swaps += swaps;
        self.recomputes += recomputes;
        self.forgotten_tokens += forgotten_tokens;
        self.recomputed_tokens += recomputed_tokens;
        self.pages_out += pages_out;
        self.pages_in += pages_in;
        self.pages_copied += pages_copied;
        self.queried_tokens += queried_tokens;
        self.cached_tokens += cached_tokens;
        self.failures += failures;
    }
}

impl Stats {
    pub(crate) fn step(&mut self, step: &Step) {
        self.steps += 1;
        self.rows += step.rows.len() as u64;
        self.tokens += step.tokens.len() as u64;
        self.pages_out += step.kv.swaps_out.len() as u64;
        self.pages_in += step.kv.swaps_in.len() as u64;
        self.pages_copied += step.kv.copies.len() as u64;
    }
}
