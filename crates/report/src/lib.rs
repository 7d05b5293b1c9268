//! Plans for people and for programs.
//!
//! [`PlanReport`] is the wire form: every field of `plimsoll plan --json`, versioned by its
//! `schema` field and described by `plimsoll schema plan`. The table and the explanations are drawn
//! from the same values, so they cannot disagree with the JSON. It computes nothing: figures come
//! from `plimsoll-plan`.

mod build;
mod explain;
mod flags;
mod numbers;
mod profile;
pub mod simulation;
mod table;
mod wire;
mod workload;

pub use build::{ModelFacts, build};
pub use explain::explain;
pub use flags::engine_flags;
pub use numbers::{short_bytes, thousands};
pub use profile::{
    PROFILE_SCHEMA, Profile, ProfileRates, ProfileStep, ProfileSwap, ProfileTimes, profile_schema,
};
pub use table::{Look, table};
pub use wire::{
    Answer, Change, Device, EngineFlags, EngineName, ErrorBody, ErrorReport, Group, Interval, Kv,
    Load, Model, Need, OneDevice, Parallel, PlanReport, Rank, SCHEMA, Term, Way, Ways,
};
pub use workload::{Fleet, Fleets, Replay, Workload};

/// The JSON Schema of [`PlanReport`].
#[must_use]
pub fn plan_schema() -> serde_json::Value {
    schemars::schema_for!(PlanReport).to_value()
}
