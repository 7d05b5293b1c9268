//! Which rows run this step, and who gives way.
//!
//! [`Scheduler`] takes validated [`Request`]s, gives [`Step`]s, takes [`StepOutput`]s and tells
//! [`Notice`]s. [`Driver`] is the one loop around it; an [`Executor`] carries steps out. Promises:
//!
//! - pure: no clock, no thread, no randomness; equal inputs give equal decisions ([`replay`]);
//! - a request is let in only if it can end, whatever the others do; it then ends, and gives way at most
//!   a bounded number of times;
//! - the sequences of one request run, fork and give way together;
//! - nothing is written while shared, nothing is reused while in a transfer.
//!
//! It does not compute, tokenise, or know time but as a number.

mod admit;
mod beam;
mod commit;
mod config;
pub mod cost;
mod decision;
mod drive;
pub mod fit;
mod group;
mod integrity;
mod learn;
mod notice;
mod preempt;
mod request;
mod room;
mod rows;
mod scheduler;
mod step;
mod tables;
mod view;

pub use commit::OutputMismatch;
pub use config::{Admission, Preempt, SchedulerConfig, Tenant};
pub use cost::{AttentionWork, CostModel, Rates, StepLoad, Work};
pub use drive::{Driver, Input, Log, NoLog, Turn, replay};
pub use group::{Completion, End};
pub use notice::{Ended, Notice, Reason, Refusal, Stats};
pub use request::{Beam, Fan, Limits, Request, RequestError, RequestId};
pub use room::Room;
pub use scheduler::Scheduler;
pub use step::{
    Draw, Executor, ExecutorError, Output, Row, RowOutput, SeqEvent, Step, StepOutput, Ticket,
};
pub use tables::Tables;
pub use view::{Place, RequestView, View};
