//! A sweep: one workload on servers that differ in a few values, point by point. The same forms as for a single
//! simulation: JSON, a table, CSV, and a page with charts.

mod csv;
mod html;
mod rows;
mod table;
mod wire;

pub use csv::sweep_csv;
pub use html::sweep_html;
pub use table::sweep_table;
pub use wire::{Axis, Point, PointRun, SWEEP_SCHEMA, SweepReport};

/// The JSON Schema of [`SweepReport`].
#[must_use]
pub fn sweep_schema() -> serde_json::Value {
    schemars::schema_for!(SweepReport).to_value()
}
