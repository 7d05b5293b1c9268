//! What a scheduler is told.

use plimsoll_units::Nanos;

use crate::request::Limits;

/// How a victim gives way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preempt {
    /// Whichever the cost model finds cheaper, block by block where that helps.
    #[default]
    Auto,
    /// To swap space; recompute where it is full.
    Swap,
    /// Forget and compute again.
    Recompute,
}

/// Who is let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// Whoever's prompt fits now; who comes too far gives way later.
    #[default]
    Optimistic,
    /// Only whoever's worst case fits beside everybody's: nobody ever gives way.
    Guaranteed,
}

/// One tenant's rights to pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Pages that it gets back from others whenever it needs them.
    pub floor: u32,
    /// Pages that it never exceeds.
    pub cap: u32,
}

impl Tenant {
    /// No right to any page, and no limit.
    pub const FREE: Self = Self {
        floor: 0,
        cap: u32::MAX,
    };
}

/// What a scheduler is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// T: tokens per step.
    pub max_batched_tokens: u32,
    /// R: sequences that run at once.
    pub max_seqs: u32,
    /// What may be asked for.
    pub limits: Limits,
    /// Requests that may wait for a place; those that only wait for the next step come on top.
    pub max_queued: usize,
    /// Who is let in.
    pub admission: Admission,
    /// How a victim gives way.
    pub preempt: Preempt,
    /// Preemptions after which a request is let in again only with its worst case guaranteed. Few requests can
    /// be guaranteed at once where answers may be long, so a low number makes them wait for one another.
    pub max_preemptions: u32,
    /// Requests let in leave room for this many tokens of every running sequence.
    pub headroom_tokens: u32,
    /// One class of priority is worth this much waiting.
    pub class: Nanos,
    /// Tenants, by id.
    pub tenants: Vec<Tenant>,
}

impl SchedulerConfig {
    /// Defaults: T 2048, R 256, one tenant, optimistic, swap or recompute by cost.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            max_batched_tokens: 2048,
            max_seqs: 256,
            limits,
            max_queued: usize::MAX,
            admission: Admission::Optimistic,
            preempt: Preempt::Auto,
            max_preemptions: 16,
            headroom_tokens: 8,
            class: Nanos(30_000_000_000),
            tenants: vec![Tenant::FREE],
        }
    }
}
