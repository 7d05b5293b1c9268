//! What a run is measured by: the state between two moments, and the life of one request.

use std::ops::AddAssign;

use plimsoll_units::Nanos;

use crate::recorder::Counts;

/// Where the slots of the KV pool are, from one moment to the next. A slot is one token's place.
///
/// The first six add up to the pool. The four classes are those of Kwon et al. (SOSP 2023, figure
/// 2): token states, reserved (for tokens that will come), internal (held, never to be used) and
/// external (lost between allocations). What nobody holds is `free`; the paper's contiguous
/// allocators count theirs as external, since nothing more fits while requests wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Slots that hold a live token.
    pub token_states: u64,
    /// Slots held for tokens that will come.
    pub reserved: u64,
    /// Slots held that no token will fill, and padding.
    pub internal: u64,
    /// Slots lost between allocations.
    pub external: u64,
    /// Slots of cached prefixes that no running request holds.
    pub cached: u64,
    /// Slots that anybody may take.
    pub free: u64,
}

/// What holds from one moment to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The pool.
    pub slots: Slots,
    /// Sequences that hold KV and run.
    pub running: u64,
    /// Rows of the step under way.
    pub batch: u64,
    /// Requests that wait for their first step.
    pub waiting: u64,
    /// Requests that were preempted and wait to go on.
    pub preempted: u64,
    /// Bytes in swap space.
    pub swapped_bytes: u64,
    /// Whether what somebody waits for is memory: the step has room for more tokens and sequences.
    pub short_of_memory: bool,
}

impl AddAssign for State {
    /// What two pools hold together.
    fn add_assign(&mut self, other: Self) {
        let Slots {
            token_states,
            reserved,
            internal,
            external,
            cached,
            free,
        } = other.slots;
        self.slots.token_states += token_states;
        self.slots.reserved += reserved;
        self.slots.internal += internal;
        self.slots.external += external;
        self.slots.cached += cached;
        self.slots.free += free;
        self.running += other.running;
        self.batch += other.batch;
        self.waiting += other.waiting;
        self.preempted += other.preempted;
        self.swapped_bytes += other.swapped_bytes;
        self.short_of_memory |= other.short_of_memory;
    }
}

/// A request that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// When it arrived.
    pub arrived: Nanos,
    /// When its first token was there.
    pub first_token: Nanos,
    /// When its last token was there.
    pub ended: Nanos,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens generated, all sequences together.
    pub output_tokens: u64,
    /// Tokens of the longest sequence generated; what normalised latency divides by.
    pub longest_output: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u64,
    /// Times it was preempted by swapping.
    pub swaps: u32,
    /// Times it was preempted by recomputation.
    pub recomputes: u32,
    /// Whose it was.
    pub tenant: u32,
}

/// Whom a run tells what happens, in the order in which it happens.
pub trait Sink {
    /// What holds from `at` until the next call of this method.
    fn state(&mut self, at: Nanos, state: &State);
    /// A sequence has its next token, `gap` after the one before; not called for its first.
    fn token(&mut self, gap: Nanos);
    /// A request ended well.
    fn finished(&mut self, f: &Finished);
    /// A request was turned away at `at`: it could not run even alone.
    fn refused(&mut self, at: Nanos);
    /// What was done since the last call of this method.
    fn count(&mut self, _at: Nanos, _counts: &Counts) {}
    /// Pages are held now; for allocators that have pages.
    fn pages(&mut self, _held: u64) {}
}
