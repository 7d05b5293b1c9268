//! `plimsoll serve` as clients meet it: the real server, on the demo model, over real connections.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod asking;
mod canary;
mod chats;
mod configured;
mod crash;
mod device;
mod exposition;
#[path = "../generating/mod.rs"]
mod generating;
mod json;
mod leaving;
mod lifecycle;
mod memory;
mod mistakes;
mod openapi;
mod overload;
mod page;
mod parameters;
mod planned;
mod ranks;
mod server;
mod structured;
mod tenants;
mod text;
mod transport;
mod watching;
