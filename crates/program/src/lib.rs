//! A model lowered, purely, to what one rank of a deployment holds.
//!
//! This covers weights (any engine's split, and Plimsoll's own packed layout), the KV pool's geometry and, for the
//! families that run, the operations over buffers ([`lower`]). Promises: exact to the byte for what a checkpoint
//! stores, and no rank is described twice in different words: planner and runtime both sum these functions. It does
//! not know devices, budgets or other engines' rules.

mod buckets;
mod exchange;
mod inputs;
mod lower;
mod parallel;
mod pool;
mod program;
mod quantised;
mod weights;

pub use buckets::{Buckets, RECORDED_KERNEL};
pub use exchange::Exchange;
pub use inputs::{
    ATTENTION_PART, BRIEF_WORDS, BUSY, LATENT_ROWS, Parted, ROW_WORDS, SHORT_HEAD, SHORT_KEYS,
    StepInputs, short_words,
};
pub use lower::{Limits, LowerError, is_read, lower, lower_rank};
pub use parallel::{Parallel, ParallelError, Rank, Stage};
pub use pool::{Group, GroupKind, KvRules, PoolGeometry, cross_bytes, state_bytes, token_bytes};
pub use program::{
    ActivationKind, AttentionOp, Buffer, BufferId, ConvolveOp, ExpertGroups, LatentOp, NormKind,
    Op, Program, RotaryTable, Rows, ScanOp, Source, StatePlace, Weight, WeightId, WeightLayout,
};
pub use quantised::{Grid, Number, Order, Packed, Quantised, Zero};
pub use weights::{
    LocalTensor, PackedLayout, RoleBytes, WeightRules, is_cast, rank_tensors, rank_weights,
};
