//! The scheduler and block manager under a virtual clock, beside the contiguous allocators that
//! they replace.

pub mod arrival;
pub mod record;
pub mod workload;

pub use arrival::{Arrival, Content, Fan};
pub use record::{Finished, Slots, State};
