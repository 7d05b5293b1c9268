//! What an unset flag means, by version and card.
//!
//! Source: vLLM `engine/arg_utils.py` (T and R by memory and usage context), `config/cache.py`.

use plimsoll_units::Bytes;

use super::super::{Context, Version};

/// Settings with every default filled in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// T: `max_num_batched_tokens`.
    pub batched_tokens: u64,
    /// R: `max_num_seqs`.
    pub sequences: u64,
    /// Share of total memory.
    pub gpu_memory_utilization: f64,
}

impl Defaults {
    /// Fills in what the flags leave open, as the API server does on this card.
    #[must_use]
    pub fn new(context: &Context<'_>, version: Version) -> Self {
        let settings = context.settings;
        let device = &context.deployment.device;
        let gib = |n: u64| Bytes::new(n << 30);
        let a100 = device.name.starts_with("a100");
        let (t, r) = if device.usable >= gib(160) {
            (16_384, 1024)
        } else if device.usable >= gib(70) && !a100 {
            (8192, 1024)
        } else {
            (2048, 256)
        };
        let u = if version >= Version::new(0, 20) {
            0.92
        } else {
            0.9
        };
        Self {
            batched_tokens: settings.max_num_batched_tokens.unwrap_or(t),
            sequences: settings.max_num_seqs.unwrap_or(r),
            gpu_memory_utilization: settings.gpu_memory_utilization.unwrap_or(u),
        }
    }
}

#[cfg(test)]
impl Defaults {
    /// Those of an H100.
    pub(super) const fn for_tests() -> Self {
        Self {
            batched_tokens: 8192,
            sequences: 1024,
            gpu_memory_utilization: 0.9,
        }
    }
}
