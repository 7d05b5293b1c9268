//! The server over an engine that goes wrong on command, and with little patience: what is lost, what is told, and what
//! goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod engine;
mod server;
mod time;
mod watching;
