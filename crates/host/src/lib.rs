//! The machine under a plan: model files, the hub, accelerators, memory limits.
//!
//! The only crate below the binary that opens files, sockets, libraries or the environment.
//! Promises:
//!
//! - a MODEL argument becomes a spec, or one [`HostError`] with what, where, why and next step;
//! - of weights, [`load`] reads only headers (`pread` or HTTP ranges, never a map); pickle is refused;
//! - [`hub::download`] gives a file its name only when its size and checksum are right;
//! - hostile files and servers cost bounded time, memory and traffic, and never a panic (a download takes as long as
//!   bytes come, and no more room than the disk has and headers announced);
//! - with `HF_HUB_OFFLINE` or `offline` no socket is opened; a token goes to the hub's own host
//!   only and into no message;
//! - what is not there (no GPU, no cgroup) is an empty answer, not an error.
//!
//! The environment is a value ([`Env`]) and every root path can be replaced, so that tests need
//! no machine of a certain kind.

pub mod cache;
mod env;
mod error;
mod file;
pub mod gpu;
pub mod hub;
mod load;
mod locate;
pub mod memory;
mod nvml;
mod peer;

pub use env::Env;
pub use error::{HostError, Kind};
pub use file::{FileSource, read_config, read_whole, write_whole};
pub use hub::cache_folder;
pub use load::{HeaderKind, LoadOptions, Loaded, StoredFile, load, open_gguf, open_safetensors};
pub use locate::{ModelRef, locate};
pub use peer::Peer;
