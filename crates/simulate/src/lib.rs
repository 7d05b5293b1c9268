//! The scheduler and block manager under a virtual clock, beside the contiguous allocators that
//! they replace.

pub mod arrival;
pub mod contiguous;
pub mod judge;
pub mod log;
pub mod paged;
pub mod paper;
pub mod record;
pub mod recorder;
pub mod search;
pub mod sharing;
pub mod tradeoff;
pub mod workload;

pub use arrival::{Arrival, Content, Fan};
pub use judge::{Judge, Verdict};
pub use record::{Finished, Sink, Slots, State};
pub use recorder::{Counts, Recorder, RecorderConfig, RunFacts, Slo};
pub use sharing::Sharing;
