//! Start-up logs of vLLM, SGLang, TensorRT-LLM and llama.cpp: what was started, and what it printed.
//!
//! The readers take text as it comes: with prefixes of a container runtime, colours, progress bars
//! and the lines of several workers mixed. They look for each engine's own phrases, version by
//! version, and ignore everything else; no line, however long or odd, is an error. A text without
//! any known phrase is.
//!
//! Sources of the phrases: vLLM `v1/engine/core.py`, `v1/worker/gpu_worker.py`,
//! `v1/worker/gpu_model_runner.py`, `v1/core/kv_cache_utils.py`, `utils/mem_utils.py` (0.11 to 0.32)
//! and `worker/worker.py`, `executor/executor_base.py` (V0); SGLang `srt/model_executor/model_runner.py`,
//! `srt/mem_cache/memory_pool.py`, `srt/managers/scheduler.py`; TensorRT-LLM: see `trtllm.rs`; llama.cpp `src/llama-model.cpp`,
//! `src/llama-context.cpp`, `src/llama-kv-cache.cpp`, `src/llama-model-loader.cpp` and their forms
//! of 2024.
//!
//! Pure: text in, figures out.

mod advice;
mod llamacpp;
mod sglang;
mod text;
mod trtllm;
mod vllm;

pub use advice::{Advice, advice};

use plimsoll_device::{Device, devices};
use serde_json::Value;

use crate::measured::{Reported, Setup};

/// Longest part of a line that is looked at: an engine's longest line, with room to spare.
const MAX_LINE: usize = 64 << 10;

/// A start-up log, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StartLog {
    /// What was started, as far as the log says.
    pub setup: Setup,
    /// What it printed.
    pub reported: Reported,
    /// The model's file as the log names it (llama.cpp).
    pub file: Option<String>,
    /// The model's configuration, where the log shows it (GGUF metadata), or why it gives none.
    pub config: Option<Result<Value, String>>,
    /// How the start ended, where it failed.
    pub failure: Option<StartFailure>,
    /// What the reader should know.
    pub notes: Vec<String>,
    /// Lines with a known phrase.
    pub known_lines: usize,
}

/// Why a server did not come up.
#[derive(Clone, Debug, PartialEq)]
pub enum StartFailure {
    /// Nothing is left for the KV cache.
    NoCacheMemory,
    /// The KV cache does not hold one request of the longest length.
    TooLong {
        /// The longest length asked for.
        max_model_len: Option<u64>,
        /// Tokens that the cache holds, or the length that the engine proposes.
        holds: Option<u64>,
        /// KV memory that one such request needs, GiB.
        needed_gib: Option<f64>,
    },
    /// Less memory was free at start than the engine wants to take.
    NotEnoughFree {
        /// Free at start, GiB.
        free_gib: Option<f64>,
        /// Wanted, GiB.
        wanted_gib: Option<f64>,
    },
    /// An allocation failed.
    OutOfMemory {
        /// What was asked for, as printed.
        asked: Option<String>,
    },
}

impl StartFailure {
    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        let gib = |g: &Option<f64>| g.map_or_else(|| "?".to_owned(), |g| format!("{g:.2} GiB"));
        match self {
            Self::NoCacheMemory => "no memory was left for the KV cache".to_owned(),
            Self::TooLong {
                max_model_len,
                holds,
                needed_gib,
            } => {
                let len = max_model_len.map_or_else(|| "?".to_owned(), |n| n.to_string());
                let mut text = format!("the KV cache does not hold one request of {len} tokens");
                if needed_gib.is_some() {
                    text.push_str(&format!(", which needs {}", gib(needed_gib)));
                }
                if let Some(n) = holds {
                    text.push_str(&format!("; it holds {n}"));
                }
                text
            }
            Self::NotEnoughFree {
                free_gib,
                wanted_gib,
            } => format!(
                "{} were free at start, and the engine wanted {}",
                gib(free_gib),
                gib(wanted_gib)
            ),
            Self::OutOfMemory { asked } => match asked {
                Some(a) => format!("an allocation of {a} failed"),
                None => "an allocation failed".to_owned(),
            },
        }
    }
}

/// Reads a log.
///
/// # Errors
/// The reason where no line of it is one of these engines'.
pub fn read(text: &str) -> Result<StartLog, String> {
    let mut vllm = vllm::Reader::default();
    let mut sglang = sglang::Reader::default();
    let mut trtllm = trtllm::Reader::default();
    let mut llama = llamacpp::Reader::default();
    let mut card = None;
    // One line at a time: a text of millions of short lines is not copied.
    for raw in text.split(['\n', '\r']) {
        if raw.is_empty() {
            continue;
        }
        let line = text::clean(raw, MAX_LINE);
        vllm.read(&line);
        sglang.read(&line);
        trtllm.read(&line);
        llama.read(&line);
        if card.is_none() {
            card = named_card(&line);
        }
    }
    // The engine with most known lines wrote it; a tie of nothing is no log.
    let mut log = vllm.finish();
    for other in [sglang.finish(), trtllm.finish(), llama.finish()] {
        if other.known_lines > log.known_lines {
            log = other;
        }
    }
    if log.known_lines == 0 {
        return Err(
            "no line of it is one that vLLM, SGLang, TensorRT-LLM or llama.cpp prints at start"
                .to_owned(),
        );
    }
    if log.setup.gpu.is_none() {
        log.setup.gpu = card;
    }
    Ok(log)
}

/// A card's full name, as drivers print it, anywhere in a line; of a slice, with its profile.
fn named_card(line: &str) -> Option<String> {
    const MAKERS: [&str; 3] = ["nvidia", "amd", "tesla"];
    let lower = line.to_ascii_lowercase();
    if !MAKERS.iter().any(|m| lower.contains(m)) {
        return None;
    }
    let card = devices()
        .iter()
        .flat_map(|d| d.aliases.iter())
        // Only names with their maker: `l4` or `a10` are words of other lines too.
        .filter(|a| {
            let a = a.to_ascii_lowercase();
            a.contains(' ') && MAKERS.iter().any(|m| a.starts_with(m))
        })
        .filter(|a| lower.contains(&a.to_ascii_lowercase()))
        .max_by_key(|a| a.len())?;
    // A profile that the catalogue lacks is kept too: that slice is not the card.
    let rest = text::after(&lower, &card.to_ascii_lowercase()).unwrap_or_default();
    let profile: Option<String> = rest.strip_prefix(" mig ").map(|p| {
        p.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+'))
            .collect()
    });
    Some(match profile {
        Some(profile) => format!("{card} MIG {profile}"),
        None => card.clone(),
    })
}

impl StartLog {
    /// The device: the named card, with the total that the log prints, or a device of that total.
    ///
    /// # Errors
    /// The reason where the log shows neither.
    pub fn device(&self) -> Result<Device, String> {
        crate::measured::device(&self.setup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_without_a_known_line_are_refused() {
        for text in [
            "",
            "hello\nworld",
            "\0\u{1}\u{fffd}\n\u{1b}[31m",
            &"x".repeat(1 << 20),
        ] {
            assert!(read(text).is_err());
        }
    }

    #[test]
    fn cards_are_found_by_their_drivers_name() {
        assert_eq!(
            named_card("  Device 0: NVIDIA GeForce RTX 3090 Ti, compute capability 8.6").as_deref(),
            Some("NVIDIA GeForce RTX 3090 Ti")
        );
        assert_eq!(named_card("the l4 cache"), None);
    }

    #[test]
    fn a_card_with_a_profile_is_that_slice() {
        let slice = |name: &str| {
            let line = format!("INFO 09-01 12:00:00 [cuda.py:1] using {name} (UUID: MIG-0)");
            let gpu = named_card(&line);
            crate::measured::card(gpu.as_deref()).map(|d| d.name.as_str())
        };
        assert_eq!(
            slice("NVIDIA H100 80GB HBM3 MIG 3g.40gb"),
            Ok("h100-80g-sxm:3g.40gb")
        );
        assert_eq!(slice("NVIDIA H100 80GB HBM3"), Ok("h100-80g-sxm"));
        // Never the whole card, where the profile is unknown.
        assert!(slice("NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb").is_err());
        let log = "INFO device NVIDIA A100-SXM4-40GB MIG 1g.5gb\n\
            INFO Initializing a V1 LLM engine (v0.19.0) with config: model='a/b', dtype=torch.bfloat16";
        let device = read(log).unwrap().device().unwrap();
        assert_eq!(device.name, "a100-40g-sxm:1g.5gb");
        let llama = "ggml_cuda_init: found 1 CUDA devices:\n  \
            Device 0: NVIDIA A100-SXM4-40GB MIG 2g.10gb, compute capability 8.0, VMM: yes";
        let device = read(llama).unwrap().device().unwrap();
        assert_eq!(device.name, "a100-40g-sxm:2g.10gb");
    }
}
