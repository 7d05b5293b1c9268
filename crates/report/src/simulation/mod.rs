//! Simulations for people and for programs: the wire form, a table for the terminal, the series as
//! CSV, and one self-contained page with charts. Like the plan's report, it computes nothing but
//! shares and scales.

mod charts;
mod csv;
mod find;
mod html;
mod rows;
mod scale;
mod summary;
mod sweep;
mod text;
mod wire;

pub use crate::page::CHART_CSS;
pub use charts::{Chart, Topic, charts, points::charts as sweep_charts};
pub use csv::series_csv;
pub use find::{FIND_SCHEMA, FindReport, Found, Limit, Probe, find_schema, find_table};
pub use html::simulation_html;
pub use summary::simulation_table;
pub use sweep::{
    Axis, Point, PointRun, SWEEP_SCHEMA, SweepReport, sweep_csv, sweep_html, sweep_schema,
    sweep_table,
};
pub(crate) use text::{figure, percent, seconds, slo_words};
pub use wire::{
    Classes, Goodput, KvUse, Latency, Named, Percentiles, Pool, Preemptions, PrefixCache, Refusal,
    Requests, Run, SIMULATION_SCHEMA, Setup, SimulationReport, SloBounds, TenantCounts, TimeSeries,
    Track,
};

/// The JSON Schema of [`SimulationReport`].
#[must_use]
pub fn simulation_schema() -> serde_json::Value {
    schemars::schema_for!(SimulationReport).to_value()
}
