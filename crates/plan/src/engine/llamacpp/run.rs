//! [`Run`]: the flags of one llama.cpp process, and the sizes that its context derives from them.
//!
//! Source: `llama-context.cpp`, constructor and `sched_reserve` (commit 0c1e57098).

use plimsoll_units::{DType, SizeOverflow};

use super::version::Rules;

/// `n_batch` unless `-b` says otherwise.
pub const BATCH: u64 = 2048;
/// `n_ubatch` unless `-ub` says otherwise.
pub const UBATCH: u64 = 512;
/// Most sequences of a context (`LLAMA_MAX_SEQ`).
pub const MAX_SEQUENCES: u64 = 256;
/// The window cache is rounded up to this many cells.
const WINDOW_PAD: u64 = 256;

/// What one process is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// `-c`: cells of all sequences together.
    pub n_ctx: u64,
    /// `-np`: sequences.
    pub n_parallel: u64,
    /// `--kv-unified`: one buffer for all sequences.
    pub kv_unified: bool,
    /// `-b`.
    pub n_batch: u64,
    /// `-ub`.
    pub n_ubatch: u64,
    /// `-fa`.
    pub flash_attention: bool,
    /// `-ctk`.
    pub type_k: DType,
    /// `-ctv`.
    pub type_v: DType,
    /// `--swa-full`.
    pub swa_full: bool,
    /// Rows of logits that the caller will ask for at once; `None` for one per token of a batch.
    pub n_outputs_max: Option<u64>,
    /// Whether the device's flash attention copies a quantised cache to f16 inside the compute
    /// buffer (CUDA).
    pub f16_copies: bool,
    /// What the build does.
    pub rules: Rules,
}

impl Run {
    /// One sequence of `n_ctx` tokens, everything else at the newest build's defaults.
    #[must_use]
    pub fn new(n_ctx: u64) -> Self {
        Self {
            n_ctx,
            n_parallel: 1,
            kv_unified: false,
            n_batch: BATCH,
            n_ubatch: UBATCH,
            flash_attention: true,
            type_k: DType::F16,
            type_v: DType::F16,
            swa_full: false,
            n_outputs_max: None,
            f16_copies: false,
            rules: Rules::newest(),
        }
    }

    /// What the context makes of it.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn sizes(&self) -> Result<Sizes, SizeOverflow> {
        let up = |n: u64, unit: u64| n.checked_next_multiple_of(unit).ok_or(SizeOverflow);
        let slots = self.n_parallel.max(1);
        let pad = self.rules.pad_context(self.flash_attention);
        let batch = self.n_ctx.min(self.n_batch);
        let ubatch = batch.min(self.n_ubatch).max(1);
        let asked = up(self.n_ctx.max(1), pad)?;
        let shared = self.kv_unified || !self.rules.streams;
        let (cells, streams) = if shared {
            (asked, 1)
        } else {
            (up((asked / slots).max(1), pad)?, slots)
        };
        let total = cells.checked_mul(streams).ok_or(SizeOverflow)?;
        let rows = total.min(ubatch);
        let outputs = match self.n_outputs_max {
            Some(n) if self.rules.few_outputs => rows.min(n),
            _ => rows.min(batch),
        };
        Ok(Sizes {
            cells,
            streams,
            slots,
            batch,
            ubatch,
            tokens: up(rows, slots)?,
            outputs,
            shared,
        })
    }

    /// Cells per stream of the cache of layers with a window of `n` tokens.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn window_cells(&self, s: &Sizes, n: u64) -> Result<u64, SizeOverflow> {
        if self.swa_full || !self.rules.window_cache {
            return Ok(s.cells);
        }
        let in_flight = if self.rules.window_of_batch {
            s.batch
        } else {
            s.ubatch
        };
        let sequences = if s.shared { s.slots } else { 1 };
        let held = n
            .checked_mul(sequences)
            .and_then(|w| w.checked_add(in_flight))
            .ok_or(SizeOverflow)?;
        let unit = match self.rules.pad_context(self.flash_attention) {
            1 => 1,
            _ => WINDOW_PAD,
        };
        held.min(s.cells)
            .checked_next_multiple_of(unit)
            .ok_or(SizeOverflow)
    }
}

/// Sizes of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Cells per stream of the cache of full layers.
    pub cells: u64,
    /// Separate parts of the cache.
    pub streams: u64,
    /// Sequences.
    pub slots: u64,
    /// Tokens of a logical batch.
    pub batch: u64,
    /// Tokens of a physical batch.
    pub ubatch: u64,
    /// Tokens of the worst-case graph.
    pub tokens: u64,
    /// Rows of logits of that graph.
    pub outputs: u64,
    /// Whether sequences share one buffer.
    pub shared: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_divided_before_they_are_padded() {
        let s = Run {
            n_parallel: 3,
            ..Run::new(5000)
        }
        .sizes()
        .unwrap();
        assert_eq!((s.cells, s.streams, s.tokens), (1792, 3, 513));
    }

    #[test]
    fn window_caches_hold_the_window_and_one_physical_batch() {
        let run = Run {
            n_parallel: 4,
            kv_unified: true,
            n_ubatch: 2048,
            ..Run::new(8192)
        };
        let s = run.sizes().unwrap();
        assert_eq!(run.window_cells(&s, 1024), Ok(6144));
    }
}
