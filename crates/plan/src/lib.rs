//! What fits where, and why.
//!
//! For a model, a load and devices: the memory map of each rank, region by region and term by term,
//! under the rules of a chosen engine and version, and one solver for all questions (how many
//! devices, users, tokens; what would make it fit). Promises:
//!
//! - pure: no clock, file, socket or hash order; equal inputs give equal plans;
//! - every term carries its formula, its inputs and its source, and says how well it is known:
//!   exact, derived, calibrated with an interval, or a bound;
//! - "does not fit" is an answer, not an error;
//! - nothing is keyed by what identifies a model: constants belong to engine versions and
//!   attention backends.
//!
//! It reads no model files (`plimsoll-host`) and prints nothing (`plimsoll-report`).

mod answer;
pub mod engine;
mod error;
mod evaluate;
mod grid;
pub mod guided;
mod kinds;
pub mod kv;
pub mod log;
mod map;
pub mod measured;
mod rule_of_thumb;
mod settings;
mod solve;
mod term;

pub use answer::{Answer, OneDevice, Question, Way, Ways, answer};
pub use engine::{Engine, EngineVersion, Reserve, Version};
pub use engine::{HttpLimits, STAGED_PAGES, STAGED_WEIGHTS};
pub use error::PlanError;
pub use evaluate::{
    Evaluation, OWN_MODEL_LEN, StageEvaluation, Verdict, evaluate, prepared, served,
};
pub use grid::{Cell, Grid, grid};
pub use kinds::of_kinds;
pub use map::MemoryMap;
pub use rule_of_thumb::{RuleOfThumb, rule_of_thumb};
pub use settings::{Deployment, Http, Kinds, KvType, Load, Lora, Settings, StateMode};
pub use solve::{
    Change, MAX_DEVICES, best_division, changes_that_fit, cheapest, least_memory, max_context,
    max_users, smallest, tensor_parallel,
};
pub use term::{Kind, Region, Term, total};

/// Bytes that our server plans for what a GPU's driver takes: its context, its kernels.
#[must_use]
pub const fn driver_bound() -> plimsoll_units::Bytes {
    plimsoll_units::Bytes::new(engine::DRIVER_BOUND_MIB << 20)
}
