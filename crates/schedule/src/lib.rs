//! Which rows run this step, and who gives way.

pub mod cost;

pub use cost::{AttentionWork, CostModel, Rates, StepLoad, Work};
