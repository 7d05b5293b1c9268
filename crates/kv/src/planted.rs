//! Bugs planted on purpose: the answer to "would the tests notice?".
//!
//! Only the feature `planted-bugs` compiles them in; without it [`is`] is always false and costs nothing. One
//! is planted at a time, for one thread. `cargo test -p plimsoll-schedule --features planted-bugs --test
//! chaos` plants each and requires that the randomised suite finds it.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A fork forgets to count itself as holder of the last block.
    ForkForgetsReference,
    /// A block more is needed only when the one after it is.
    OneBlockTooFew,
    /// A shared block is written in place.
    NoCopyOnWrite,
    /// A copy is decided and never asked for.
    CopyForgotten,
    /// A released table keeps its last block.
    ReleaseLeaks,
    /// Addresses do not depend on what came before.
    AddressIgnoresParent,
    /// Addresses do not depend on the salt.
    AddressIgnoresSalt,
    /// Any cached block of full groups is enough for a hit; windows are not looked at.
    HitIgnoresWindows,
    /// A hit does not need a state at its end.
    HitIgnoresState,
    /// Blocks leave a window one block too early.
    WindowDropsEarly,
    /// Blocks never leave a window.
    WindowNeverDrops,
    /// Pages on their way to swap space can be had at once.
    TransferReusedAtOnce,
    /// The cap of swap space is one page too high.
    SwapCapExceeded,
    /// A tenant is charged and never discharged.
    ChargeKept,
    /// A state goes on in the page that the cache holds.
    StateOverwritesSnapshot,
    /// A cancelled request keeps its blocks.
    CancelLeaks,
    /// The worst case forgets that sequences fan out.
    WorstCaseOfOne,
    /// Guaranteed requests give way too.
    GuaranteedGivesWay,
    /// Nobody's preemptions are bounded.
    PreemptionsUnbounded,
    /// Rows do not use up the budget of tokens.
    BudgetIgnored,
    /// What a failed transfer brought back is used.
    FailedSwapInUsed,
    /// What a failed transfer brought back is found by others.
    FailedSwapInPublished,
    /// All sequences of a request draw alike.
    ForksDrawAlike,
    /// A beam that nobody continues is kept.
    DeadBeamKept,
    /// Sequences rejoin before their prompt is there again.
    RejoinTooEarly,
    /// Promised pages are never given back.
    PromiseKept,
    /// A request ends twice.
    EndsTwice,
    /// Executors are not told of the blocks that a stalled prompt lost.
    StallUntold,
    /// The first in order gives way instead of the last: another policy, not a fault, and so not in [`ALL`].
    FirstGivesWay,
}

/// All that are faults.
pub const ALL: &[Bug] = &[
    Bug::ForkForgetsReference,
    Bug::OneBlockTooFew,
    Bug::NoCopyOnWrite,
    Bug::CopyForgotten,
    Bug::ReleaseLeaks,
    Bug::AddressIgnoresParent,
    Bug::AddressIgnoresSalt,
    Bug::HitIgnoresWindows,
    Bug::HitIgnoresState,
    Bug::WindowDropsEarly,
    Bug::WindowNeverDrops,
    Bug::TransferReusedAtOnce,
    Bug::SwapCapExceeded,
    Bug::ChargeKept,
    Bug::StateOverwritesSnapshot,
    Bug::CancelLeaks,
    Bug::WorstCaseOfOne,
    Bug::GuaranteedGivesWay,
    Bug::PreemptionsUnbounded,
    Bug::BudgetIgnored,
    Bug::FailedSwapInUsed,
    Bug::FailedSwapInPublished,
    Bug::ForksDrawAlike,
    Bug::DeadBeamKept,
    Bug::RejoinTooEarly,
    Bug::PromiseKept,
    Bug::EndsTwice,
    Bug::StallUntold,
];

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in this thread, or none.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this one is planted.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this one is planted: never, without the feature.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
#[must_use]
pub const fn is(_: Bug) -> bool {
    false
}
