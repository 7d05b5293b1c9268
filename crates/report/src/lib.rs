//! Plans for people and for programs.
//!
//! [`PlanReport`] is the wire form: every field of `plimsoll plan --json`, versioned by its
//! `schema` field and described by `plimsoll schema plan`. The table and the explanations are drawn
//! from the same values, so they cannot disagree with the JSON. It computes nothing: figures come
//! from `plimsoll-plan`.

mod build;
mod cards;
mod csv;
mod explain;
mod flags;
mod kubernetes;
mod launch;
mod numbers;
mod page;
mod plan_page;
mod profile;
pub mod simulation;
mod svg;
mod table;
mod wire;
mod workload;
mod yaml;

pub use build::{ModelFacts, build};
pub use cards::{CARDS_SCHEMA, Card, CardsReport, cards_csv, cards_table};
pub use csv::plan_csv;
pub use explain::explain;
pub use flags::{engine_flags, launch, online};
pub use kubernetes::{Pod, manifest};
pub use launch::{Launch, quoted};
pub use numbers::{short_bytes, thousands};
pub use plan_page::{Planned, cards_html, plan_html};
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

/// The JSON Schema of [`CardsReport`].
#[must_use]
pub fn cards_schema() -> serde_json::Value {
    schemars::schema_for!(CardsReport).to_value()
}
