//! A measured profile: how fast one machine is, as a file that `simulate --profile` reads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Version of this form. A field may be added under the same number, never changed or removed.
pub const PROFILE_SCHEMA: &str = "plimsoll.profile/1";

/// How fast a device is, as measured: what replaces the shares of its datasheet. It has `rates`, or `timed` work that
/// rates are fitted to, and not both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Always `plimsoll.profile/1`.
    pub schema: String,
    /// The kind of device it was measured on, as `plimsoll devices` names it.
    pub device: String,
    /// Rates that were reached.
    #[serde(default)]
    pub rates: Option<ProfileRates>,
    /// Work that was timed.
    #[serde(default)]
    pub timed: Option<ProfileTimes>,
}

/// Rates that were reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileRates {
    /// Operations per second, at least 1; a multiplication and an addition are two.
    #[schemars(range(min = 1))]
    pub flops_per_s: u64,
    /// Bytes per second from device memory, at least 1.
    #[schemars(range(min = 1))]
    pub memory_bytes_per_s: u64,
    /// Bytes per second to and from host memory, each way, at least 1.
    #[schemars(range(min = 1))]
    pub link_bytes_per_s: u64,
    /// Fixed time of one transfer over that link, in nanoseconds.
    pub transfer_ns: u64,
    /// Transfers that swapping one block takes, at least 1.
    #[schemars(range(min = 1))]
    pub transfers_per_block: u64,
    /// Fixed time of a step (scheduling, launch, sampling), in nanoseconds.
    pub step_ns: u64,
    /// Time per row of a step, in nanoseconds.
    pub row_ns: u64,
}

/// Work that was timed, all of it of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileTimes {
    /// Bytes of weights that a step streams; `plimsoll simulate --json` has them among the costs.
    pub weight_bytes: u64,
    /// Steps without swaps: few and many rows and tokens, short and long contexts.
    pub steps: Vec<ProfileStep>,
    /// Swaps, one way each.
    pub swaps: Vec<ProfileSwap>,
}

/// A step that was timed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileStep {
    /// Rows.
    pub rows: u64,
    /// Operations of its linear layers, the output head among them.
    pub linear_flops: u64,
    /// Operations of its attention.
    pub attention_flops: u64,
    /// Bytes of keys and values that it read.
    pub kv_bytes: u64,
    /// How long it took, in seconds.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub seconds: f64,
}

/// A swap that was timed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileSwap {
    /// Blocks moved, each in one transfer.
    pub blocks: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// How long it took, in seconds.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub seconds: f64,
}

/// The JSON Schema of [`Profile`].
#[must_use]
pub fn profile_schema() -> serde_json::Value {
    schemars::schema_for!(Profile).to_value()
}
