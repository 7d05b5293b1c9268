//! One simulated server, from plain values: what `simulate` runs and `plan` may ask.
//!
//! A [`Case`] is a server (device, degree, memory, block size, policies) as values. [`Case::prepare`] plans its
//! pool and makes its cost model from a model's shapes, which takes no time worth counting; [`Prepared::run`]
//! then serves a [`Traffic`] with it, as often and on as many threads as wanted. A run depends on these three
//! and on nothing else.

mod case;
mod rates;
mod run;
mod setup;
mod threads;
mod traffic;

pub(crate) use case::{Case, MODEL_LEN_UNKNOWN, Prepared, TenantShare};
pub(crate) use rates::{Measured, RateChanges};
pub(crate) use run::{Ran, Server};
pub(crate) use setup::{Seen, bounds};
pub(crate) use threads::in_order;
pub(crate) use traffic::Traffic;
