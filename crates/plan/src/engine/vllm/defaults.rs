//! What an unset flag means, by version and card.
//!
//! Source: vLLM `engine/arg_utils.py` (`get_batch_defaults`,
//! `_set_default_max_num_seqs_and_batched_tokens_args`: the API server's values), `config/cache.py`,
//! `config/vllm.py`.

use plimsoll_units::Bytes;

use super::super::{Context, Version};
use super::{FIRST_V1, is_cpu};

/// Settings with every default filled in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// T: `max_num_batched_tokens`.
    pub batched_tokens: u64,
    /// R: `max_num_seqs`.
    pub sequences: u64,
    /// Share of total memory.
    pub gpu_memory_utilization: f64,
    /// Whether scheduling runs one step ahead.
    pub async_scheduling: bool,
}

/// vllm#38284: 0.92 and the graphs' memory counted, from this release on.
const GRAPHS_COUNTED: Version = Version::new(0, 21);
/// The largest cards take T 16,384 from here (vllm#51726; the boundary of 160 GiB as read in 0.32).
const LARGEST_CARDS: Version = Version::new(0, 28);
/// Async scheduling is the default in 0.17, and was not in 0.11 (the first release is not known).
const ASYNC: Version = Version::new(0, 17);

impl Defaults {
    /// Fills in what the flags leave open, as the API server does on this card.
    #[must_use]
    pub fn new(context: &Context<'_>, version: Version) -> Self {
        let settings = context.settings;
        let v0 = version < FIRST_V1 && !is_cpu(context);
        let (t, r) = if v0 {
            v0_batch(context, version)
        } else {
            batch(context, version)
        };
        let given_t = settings.max_num_batched_tokens;
        let given_r = settings.max_num_seqs;
        let r = given_r.unwrap_or(r);
        // T never exceeds what R sequences of the longest length could fill, nor R exceeds T.
        let t = given_t.unwrap_or_else(|| match v0 {
            true => t,
            false => t.min(r.saturating_mul(context.max_model_len)).max(1),
        });
        let r = given_r.unwrap_or_else(|| r.min(t));
        let u = if version >= GRAPHS_COUNTED { 0.92 } else { 0.9 };
        Self {
            batched_tokens: t,
            sequences: r,
            gpu_memory_utilization: settings.gpu_memory_utilization.unwrap_or(u),
            async_scheduling: settings
                .async_scheduling
                .unwrap_or(version >= ASYNC && !is_cpu(context)),
        }
    }
}

/// Large cards are told by their size: in 0.8.5, while earlier V1 knew the H100 and H200 by name.
const BY_SIZE: Version = Version {
    major: 0,
    minor: 8,
    patch: 5,
};
/// From here on only large cards take 1024 sequences; in 0.8.0 to 0.8.3 V1 took so many on every card.
const FEWER_ON_OTHERS: Version = Version {
    major: 0,
    minor: 8,
    patch: 4,
};
/// The A100 of 80 GB is none of them: in 0.11, not in 0.8.5.
const A100_APART: Version = Version::new(0, 9);
/// Up to here chunks of a prompt had 512 tokens (0.6.3), from 0.6.4 on 2048.
const LONGER_CHUNKS: Version = Version {
    major: 0,
    minor: 6,
    patch: 4,
};
/// V0 divides prompts into chunks where the longest is longer than this.
const V0_CHUNKS_ABOVE: u64 = 32 << 10;
/// V0's least T for a multimodal model.
const V0_IMAGES: u64 = 5120;

/// T and R of the V0 engine, the same on every card: a step takes a whole prompt of the longest length, unless that is
/// so long that prompts are divided.
///
/// Source: vLLM 0.6 and 0.7 `config.py: SchedulerConfig`, `engine/arg_utils.py: create_engine_config`.
fn v0_batch(context: &Context<'_>, version: Version) -> (u64, u64) {
    let images = context.spec.encoder.is_some();
    let t = if context.max_model_len > V0_CHUNKS_ABOVE && !images {
        if version < LONGER_CHUNKS { 512 } else { 2048 }
    } else if images {
        context.max_model_len.max(V0_IMAGES)
    } else {
        context.max_model_len.max(2048)
    };
    (t, 256)
}

/// T and R before limits.
fn batch(context: &Context<'_>, version: Version) -> (u64, u64) {
    let device = &context.deployment.device;
    if is_cpu(context) {
        let p = &context.deployment.parallel;
        let ranks = p.tp.saturating_mul(p.pp);
        return (
            2048_u64.saturating_mul(ranks),
            128_u64.saturating_mul(ranks),
        );
    }
    let gib = |n: u64| Bytes::new(n << 30);
    // vLLM looks for the letters in the driver's name.
    let named = |letters: &str| {
        device
            .aliases
            .iter()
            .chain([&device.name])
            .any(|n| n.to_ascii_lowercase().contains(letters))
    };
    let total = device.driver_total;
    let large = if version < BY_SIZE {
        named("h100") || named("h200")
    } else {
        total >= gib(70) && !(named("a100") && version >= A100_APART)
    };
    if version >= LARGEST_CARDS && total >= gib(160) {
        (16_384, 1024)
    } else if large {
        (8192, 1024)
    } else if version < FEWER_ON_OTHERS {
        (2048, 1024)
    } else {
        (2048, 256)
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
            async_scheduling: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;
    use crate::settings::{Deployment, Settings};
    use plimsoll_model::{Assume, catalogue, from_config};
    use plimsoll_program::Parallel;

    #[test]
    fn batches_of_large_cards_by_release() {
        let entry = catalogue::find("qwen3-0.6b").expect("a built-in model");
        let spec = from_config(&entry.config, Assume::Nothing).expect("it lowers");
        let tokens = |card: &str, version: &str| {
            let version: Version = version.parse().expect("a version");
            let parallel = Parallel::default();
            let deployment = Deployment {
                kinds: None,
                device: plimsoll_device::find(card).expect("a card").clone(),
                parallel,
                in_use: Bytes::ZERO,
            };
            let settings = Settings::new(Engine::Vllm(version));
            let stages = parallel.stages(spec.layers.len() as u64);
            let context = Context {
                spec: &spec,
                deployment: &deployment,
                settings: &settings,
                stage: &stages[0],
                max_model_len: 40_960,
                users: 1,
            };
            let d = Defaults::new(&context, version);
            (d.batched_tokens, d.sequences)
        };
        let both = tokens;
        assert_eq!(both("l40s", "0.8.3"), (2048, 1024));
        assert_eq!(both("l40s", "0.8.4"), (2048, 256));
        let tokens = |card: &str, version: &str| both(card, version).0;
        assert_eq!(tokens("h100", "0.8.2"), 8192);
        assert_eq!(tokens("a100-80g", "0.8.2"), 2048);
        assert_eq!(tokens("a100-80g", "0.8.5"), 8192);
        assert_eq!(tokens("a100-80g", "0.11"), 2048);
        // V0 takes a prompt of the longest length, or chunks of it.
        assert_eq!(tokens("h100", "0.7.3"), 2048);
        assert_eq!(tokens("h100", "0.6.3"), 512);
    }
}
