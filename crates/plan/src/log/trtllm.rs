//! TensorRT-LLM's lines: the PyTorch backend of 0.20 to 1.2, and engines of the C++ runtime since 0.12.
//!
//! A PyTorch start makes a small cache, runs once, and makes the cache that stays: the last line of each kind counts.
//! Sources of the phrases: `_torch/pyexecutor/_util.py` (`configure_kv_cache_capacity`), `py_executor_creator.py`,
//! `cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp`, `trtGptModelInflightBatching.cpp`.

use super::text::{after, count, decimal, field, first};
use super::{StartFailure, StartLog};
use crate::measured::StartOutcome;

/// Reads line by line.
#[derive(Default)]
pub(super) struct Reader {
    log: StartLog,
    /// Parameters, or an engine's file: what weights are where the profile's own figure is not printed.
    stored_gib: Option<f64>,
    /// What was free when the pool was made (C++ runtime), GiB.
    available_gib: Option<f64>,
}

impl Reader {
    /// Takes what a line tells.
    pub(super) fn read(&mut self, line: &str) {
        if other_rank(line) {
            return;
        }
        if self.line(line) {
            self.log.known_lines += 1;
        }
    }

    fn line(&mut self, line: &str) -> bool {
        let weights = self.weights(line);
        let cache = self.cache(line);
        let arguments = self.arguments(line);
        let limits = self.limits(line);
        let failure = self.failure(line);
        weights || cache || arguments || limits || failure
    }

    fn weights(&mut self, line: &str) -> bool {
        let gib = |text: &str| decimal(text, false);
        let r = &mut self.log.reported;
        if let Some(rest) = after(
            line,
            "Memory used after loading model weights (inside torch) in memory usage profiling: ",
        ) {
            r.weights_gib = gib(rest).or(r.weights_gib);
            return true;
        }
        if let Some(rest) = after(
            line,
            "Memory dynamically allocated during inference (inside torch) in memory usage profiling: ",
        ) {
            r.activation_gib = gib(rest).or(r.activation_gib);
            return true;
        }
        // `Use 63.32 GB for model weights.` counts in 2^30 bytes.
        if let Some(rest) = after(line, "] Use ").filter(|_| line.contains("GB for model weights"))
        {
            first(&mut self.stored_gib, gib(rest));
            return true;
        }
        if let Some(rest) = after(line, "Loaded engine size: ") {
            first(&mut self.stored_gib, gib(rest).map(|mib| mib / 1024.0));
            return true;
        }
        false
    }

    fn cache(&mut self, line: &str) -> bool {
        let gib = |text: &str| decimal(text, false);
        let r = &mut self.log.reported;
        let s = &mut self.log.setup;
        // `[MemUsageChange] Allocated 5.95 GiB for max tokens in paged KV cache (86720).`
        if let Some((head, rest)) = line.split_once(" GiB for max tokens in paged KV cache (") {
            r.kv_available_gib = after(head, "Allocated ").and_then(gib);
            r.kv_tokens = as_f64(count(rest));
            return true;
        }
        if let Some(rest) = after(
            line,
            "Memory usage when calculating max tokens in paged kv cache: total: ",
        ) {
            s.total_gpu_memory_gib = gib(rest);
            self.available_gib = after(rest, "available: ").and_then(gib);
            return true;
        }
        if let Some(rest) = after(line, "Peak memory during memory usage profiling") {
            if let Some(total) = after(rest, "device total memory ") {
                s.total_gpu_memory_gib = gib(total);
            }
            if let Some(share) = after(rest, "fraction is set ") {
                s.gpu_memory_utilization = share_of(share);
            }
            return true;
        }
        if let Some(rest) = after(line, "Number of tokens per block: ") {
            s.block_size = count(rest);
            return true;
        }
        if let Some(rest) = after(line, "Number of blocks in KV cache primary pool: ") {
            r.gpu_blocks = as_f64(count(rest));
            return true;
        }
        // `Max KV cache blocks per sequence: 65 [window size=2049], tokens per block=32, primary blocks=13189`
        if line.contains("Max KV cache blocks per sequence: ")
            || line.contains("Max KV cache pages per sequence: ")
        {
            if let Some(n) = after(line, "tokens per block=").and_then(count) {
                s.block_size = Some(n);
            }
            if let Some(n) = after(line, "primary blocks=").map(whole) {
                r.gpu_blocks = as_f64(n);
            }
            return true;
        }
        if let Some(rest) = after(line, "max_tokens=").filter(|_| line.contains(" is provided")) {
            s.max_total_tokens = whole(rest);
            return true;
        }
        line.contains("Estimated max memory in KV cache")
    }

    /// The version, the model and the flags of a command.
    fn arguments(&mut self, line: &str) -> bool {
        let s = &mut self.log.setup;
        if let Some(rest) =
            after(line, "TensorRT-LLM version: ").or_else(|| after(line, "TensorRT-LLM Version: "))
        {
            first(&mut s.engine_version, word(rest));
            return true;
        }
        if let Some(rest) =
            after(line, "Engine version ").filter(|r| r.contains(" found in the config file"))
        {
            first(&mut s.engine_version, word(rest));
            return true;
        }
        if line.contains("trtllm-serve ") {
            self.command(line);
            return true;
        }
        if line.contains("[TRT-LLM]") || line.contains("TensorRT-LLM engine args:") {
            let number = |key: &str| field(line, key).and_then(whole);
            first(&mut s.tensor_parallel, number("tensor_parallel_size"));
            first(&mut s.pipeline_parallel, number("pipeline_parallel_size"));
        }
        // What a rank prints of where the hub's files are.
        if let Some(rest) = line.strip_prefix('/').and_then(|l| after(l, "/models--"))
            && s.model.is_empty()
            && line.contains("/snapshots/")
        {
            let folder = rest.split('/').next().unwrap_or(rest);
            s.model = folder.replacen("--", "/", 1);
        }
        if let Some(rest) = after(line, "MPI size: ") {
            first(&mut s.gpu_count, whole(rest));
            return true;
        }
        false
    }

    fn command(&mut self, line: &str) {
        let s = &mut self.log.setup;
        let mut words = after(line, "trtllm-serve ")
            .unwrap_or_default()
            .split([' ', '=']);
        let mut positional = false;
        while let Some(word) = words.next() {
            let mut next = || words.next().map(|w| w.trim_matches(['\'', '"']));
            match word {
                // `Starting trtllm-serve for model NAME on port 8355...` is a wrapper's word for it.
                "" | "serve" | "for" | "model" => {}
                "--tp_size" | "--tensor_parallel_size" => {
                    first(&mut s.tensor_parallel, next().and_then(count));
                }
                "--pp_size" | "--pipeline_parallel_size" => {
                    first(&mut s.pipeline_parallel, next().and_then(count));
                }
                "--ep_size" | "--moe_expert_parallel_size" => {
                    s.expert_parallel |= next().and_then(count).is_some_and(|n| n > 1);
                }
                "--max_batch_size" => first(&mut s.max_num_seqs, next().and_then(count)),
                "--max_num_tokens" => first(&mut s.max_num_batched_tokens, next().and_then(count)),
                "--max_seq_len" => first(&mut s.max_model_len, next().and_then(count)),
                "--kv_cache_dtype" => first(&mut s.kv_cache_dtype, next().map(str::to_owned)),
                "--kv_cache_free_gpu_memory_fraction" | "--free_gpu_memory_fraction" => {
                    first(&mut s.gpu_memory_utilization, next().and_then(share_of));
                }
                flag if flag.starts_with('-') => {
                    next();
                }
                name if !positional => {
                    positional = true;
                    if s.model.is_empty() {
                        name.trim_matches(['\'', '"']).clone_into(&mut s.model);
                    }
                }
                _ => {}
            }
        }
    }

    /// `max_seq_len=86720, max_num_requests=64, max_num_tokens=8192, max_batch_size=64`; an engine's come one by one.
    fn limits(&mut self, line: &str) -> bool {
        let s = &mut self.log.setup;
        if line.contains("max_seq_len=") && line.contains("max_num_requests=") {
            let number = |key: &str| field(line, key).and_then(whole);
            s.max_model_len = number("max_seq_len").or(s.max_model_len);
            s.max_num_batched_tokens = number("max_num_tokens").or(s.max_num_batched_tokens);
            // With stages, more requests are held than one batch has.
            s.max_num_seqs = number("max_batch_size")
                .or(number("max_num_requests"))
                .or(s.max_num_seqs);
            return true;
        }
        let Some(rest) = after(line, "TRTGptModel ") else {
            return false;
        };
        let Some((key, value)) = rest.split_once(": ") else {
            return false;
        };
        match key {
            "maxBatchSize" => s.max_num_seqs = count(value),
            "maxSequenceLen" => s.max_model_len = count(value),
            "maxNumTokens" => s.max_num_batched_tokens = count(value),
            _ => {}
        }
        true
    }

    fn failure(&mut self, line: &str) -> bool {
        let torch = line.contains("CUDA out of memory");
        let native = line.contains("CUDA runtime error in ") && line.contains("out of memory");
        if !torch && !native {
            return false;
        }
        let asked = after(line, "Tried to allocate ").map(|a| {
            let size = a.split(". ").next().unwrap_or(a);
            size.trim().chars().take(40).collect()
        });
        first(
            &mut self.log.failure,
            Some(StartFailure::OutOfMemory { asked }),
        );
        // Other engines' processes print the first form too.
        native
    }

    /// Everything read.
    pub(super) fn finish(mut self) -> StartLog {
        let log = &mut self.log;
        log.setup.id = "log".to_owned();
        log.setup.engine = "tensorrt-llm".to_owned();
        let s = &mut log.setup;
        if s.tensor_parallel.is_none() && s.gpu_count.is_none() {
            s.tensor_parallel = Some(1);
        }
        let r = &mut log.reported;
        r.weights_gib = r.weights_gib.or(self.stored_gib);
        if r.kv_tokens.is_some() && log.failure.is_some() {
            // An allocation that failed and was tried again: it came up.
            log.failure = None;
        }
        if let (Some(pool), Some(free)) =
            (r.kv_available_gib, self.available_gib.filter(|f| *f > 0.0))
        {
            log.notes.push(format!(
                "the pool is {:.0} % of the {free:.2} GiB that were free after loading",
                100.0 * pool / free
            ));
        }
        if log.failure.is_some() {
            r.start = StartOutcome::OutOfMemory;
        }
        self.log
    }
}

/// Whether another rank than the first printed it: `[RANK 3]`.
fn other_rank(line: &str) -> bool {
    after(line, "[RANK ").is_some_and(|rest| !rest.starts_with("0]"))
}

/// A count that a comma ends.
fn whole(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    count(&text[..end])
}

/// A share that was widened from single precision: 0.8999999761581421 is 0.9.
fn share_of(text: &str) -> Option<f64> {
    let share = decimal(text, false)?;
    let near = (share * 1e4).round() / 1e4;
    let exact = if (share - near).abs() < 1e-6 {
        near
    } else {
        share
    };
    (exact > 0.0 && exact <= 1.0).then_some(exact)
}

fn word(text: &str) -> Option<String> {
    let word = text.split([' ', ',']).next()?.trim();
    (!word.is_empty() && word.len() < 60).then(|| word.to_owned())
}

#[allow(clippy::cast_precision_loss, reason = "a figure for comparison")]
fn as_f64(n: Option<u64>) -> Option<f64> {
    n.map(|n| n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> StartLog {
        let mut r = Reader::default();
        for line in text.lines() {
            r.read(line.trim());
        }
        r.finish()
    }

    /// Of a public log: gpt-oss-120b on a DGX Spark, 1.1.0rc3, 20 December 2025. The cache of the trial run comes first.
    const SPARK: &str = "\
        Starting trtllm-serve for model openai/gpt-oss-120b on port 8355...\n\
        [TensorRT-LLM] TensorRT-LLM version: 1.1.0rc3\n\
        /hub/models--openai--gpt-oss-120b/snapshots/b5c939de8f754692c1647ca79fbf85e8c1e70f8a\n\
        [12/20/2025-04:20:21] [TRT-LLM] [I] Use 63.32 GB for model weights.\n\
        [12/20/2025-04:21:10] [TRT-LLM] [W] Both free_gpu_memory_fraction and max_tokens are set (to 0.8999999761581421 and 8224, respectively). The smaller value will be used.\n\
        [TensorRT-LLM][INFO] Number of tokens per block: 32.\n\
        [TensorRT-LLM][INFO] [MemUsageChange] Allocated 0.56 GiB for max tokens in paged KV cache (8224).\n\
        [12/20/2025-04:21:10] [TRT-LLM] [I] max_seq_len=8224, max_num_requests=64, max_num_tokens=8192, max_batch_size=64\n\
        [12/20/2025-04:21:50] [TRT-LLM] [I] Memory used after loading model weights (inside torch) in memory usage profiling: 63.52 GiB\n\
        [12/20/2025-04:21:50] [TRT-LLM] [I] Memory used after loading model weights (outside torch) in memory usage profiling: 49.78 GiB\n\
        [12/20/2025-04:21:51] [TRT-LLM] [I] Memory dynamically allocated during inference (inside torch) in memory usage profiling: 0.85 GiB\n\
        [12/20/2025-04:21:51] [TRT-LLM] [I] Memory used outside torch (e.g., NCCL and CUDA graphs) in memory usage profiling: 49.28 GiB\n\
        [12/20/2025-04:21:51] [TRT-LLM] [I] Peak memory during memory usage profiling (torch + non-torch): 113.65 GiB, available KV cache memory when calculating max tokens: 5.95 GiB, fraction is set 0.8999999761581421, kv size is 73728. device total memory 119.70 GiB, , tmp kv_mem 0.56 GiB\n\
        [12/20/2025-04:21:51] [TRT-LLM] [I] Estimated max memory in KV cache : 5.95 GiB\n\
        [TensorRT-LLM][INFO] Number of tokens per block: 32.\n\
        [TensorRT-LLM][INFO] [MemUsageChange] Allocated 5.95 GiB for max tokens in paged KV cache (86720).\n\
        [12/20/2025-04:21:52] [TRT-LLM] [I] max_seq_len=86720, max_num_requests=64, max_num_tokens=8192, max_batch_size=64";

    #[test]
    fn the_pool_that_stays_is_the_last_one() {
        let l = of(SPARK);
        let (s, r) = (&l.setup, &l.reported);
        assert_eq!(s.engine_version.as_deref(), Some("1.1.0rc3"));
        assert_eq!(s.model, "openai/gpt-oss-120b");
        assert_eq!((r.weights_gib, r.activation_gib), (Some(63.52), Some(0.85)));
        assert_eq!(
            (r.kv_available_gib, r.kv_tokens),
            (Some(5.95), Some(86_720.0))
        );
        assert_eq!(s.gpu_memory_utilization, Some(0.9));
        assert_eq!(s.total_gpu_memory_gib, Some(119.7));
        assert_eq!(
            (
                s.max_model_len,
                s.max_num_batched_tokens,
                s.max_num_seqs,
                s.block_size
            ),
            (Some(86_720), Some(8192), Some(64), Some(32))
        );
    }

    /// Of TensorRT-LLM's own document on `trtllm-bench` (0.12): an engine of the C++ runtime.
    #[test]
    fn an_engine_of_the_native_runtime() {
        let l = of(
            "[TensorRT-LLM][INFO] Engine version 0.12.0.dev2024073000 found in the config file, assuming engine(s) built by new builder API.\n\
            [TensorRT-LLM][INFO] MPI size: 1, MPI local size: 1, rank: 0\n\
            [TensorRT-LLM][INFO] TRTGptModel maxBatchSize: 4096\n\
            [TensorRT-LLM][INFO] TRTGptModel maxSequenceLen: 4098\n\
            [TensorRT-LLM][INFO] TRTGptModel maxNumTokens: 8192\n\
            [TensorRT-LLM][INFO] Loaded engine size: 6214 MiB\n\
            [TensorRT-LLM][INFO] [MemUsageChange] Allocated 928.77 MiB for execution context memory.\n\
            [TensorRT-LLM][INFO] Memory usage when calculating max tokens in paged kv cache: total: 79.10 GiB, available: 63.62 GiB\n\
            [TensorRT-LLM][INFO] Number of blocks in KV cache primary pool: 4607\n\
            [TensorRT-LLM][INFO] Number of blocks in KV cache secondary pool: 0, onboard blocks to primary memory before reuse: true\n\
            [TensorRT-LLM][INFO] Max KV cache pages per sequence: 65\n\
            [TensorRT-LLM][INFO] Number of tokens per block: 64.\n\
            [TensorRT-LLM][INFO] [MemUsageChange] Allocated 62.99 GiB for max tokens in paged KV cache (294848).\n\
            Model:                  meta-llama/Llama-2-7b-hf",
        );
        let (s, r) = (&l.setup, &l.reported);
        assert_eq!(s.engine_version.as_deref(), Some("0.12.0.dev2024073000"));
        assert_eq!((s.gpu_count, s.total_gpu_memory_gib), (Some(1), Some(79.1)));
        assert_eq!((s.max_num_seqs, s.max_model_len), (Some(4096), Some(4098)));
        assert_eq!(r.weights_gib, Some(6214.0 / 1024.0));
        assert_eq!((r.gpu_blocks, r.kv_tokens), (Some(4607.0), Some(294_848.0)));
        assert!(
            l.notes[0].contains("99 % of the 63.62 GiB"),
            "{:?}",
            l.notes
        );
    }

    #[test]
    fn flags_of_a_command_and_blocks_of_newer_lines() {
        // SmolLM2-135M on a card of 12 GiB, of a public repository's document.
        let l = of(
            "trtllm-serve HuggingFaceTB/SmolLM2-135M-Instruct --max_seq_len 2048 --tp_size 2 --kv_cache_free_gpu_memory_fraction 0.8\n\
            [TensorRT-LLM][INFO] Max KV cache blocks per sequence: 65 [window size=2049], tokens per block=32, primary blocks=13189, max sequence length=2049\n\
            [TensorRT-LLM][INFO] [MemUsageChange] Allocated 9.06 GiB for max tokens in paged KV cache (422048).\n\
            [TRT-LLM] [RANK 1] [I] max_seq_len=1, max_num_requests=1, max_num_tokens=1",
        );
        let s = &l.setup;
        assert_eq!(s.model, "HuggingFaceTB/SmolLM2-135M-Instruct");
        assert_eq!((s.tensor_parallel, s.max_model_len), (Some(2), Some(2048)));
        assert_eq!(s.gpu_memory_utilization, Some(0.8));
        assert_eq!(l.reported.gpu_blocks, Some(13_189.0));
    }

    #[test]
    fn a_failed_allocation_is_the_end_unless_a_cache_was_made_after_it() {
        let failed = "[TensorRT-LLM][INFO] Memory usage when calculating max tokens in paged kv cache: total: 5.67 GiB, available: 0.03 GiB\n\
            RuntimeError: [TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMalloc(ptr, n): out of memory";
        let l = of(failed);
        assert_eq!(l.failure, Some(StartFailure::OutOfMemory { asked: None }));
        assert_eq!(l.reported.start, StartOutcome::OutOfMemory);
        let again = format!(
            "{failed}\n[TensorRT-LLM][INFO] [MemUsageChange] Allocated 1.00 GiB for max tokens in paged KV cache (8192)."
        );
        assert_eq!(of(&again).failure, None);
    }

    #[test]
    fn stages_experts_and_caps_are_read_where_they_stand() {
        // With stages, more requests are held than a batch has.
        let l = of("trtllm-serve m --pp_size 2 --ep_size 4\n\
            [W] `max_tokens=8200` is provided\n\
            [I] max_seq_len=1024, max_num_requests=128, max_num_tokens=512, max_batch_size=64");
        let s = &l.setup;
        assert_eq!((s.pipeline_parallel, s.expert_parallel), (Some(2), true));
        assert_eq!((s.max_num_seqs, s.max_total_tokens), (Some(64), Some(8200)));
        // Nothing told: one card.
        assert_eq!(s.tensor_parallel, Some(1));
        let l = of("trtllm-serve m --ep_size 1\nMPI size: 2");
        assert!(!l.setup.expert_parallel);
        assert_eq!(l.setup.tensor_parallel, None);
    }

    #[test]
    fn odd_lines_are_no_error() {
        for line in [
            "[TensorRT-LLM][INFO] [MemUsageChange] Allocated x GiB for max tokens in paged KV cache (",
            "TRTGptModel maxBatchSize: 99999999999999999999999",
            "trtllm-serve --tp_size",
            "Peak memory during memory usage profiling fraction is set -1 device total memory",
            "/models--/snapshots/",
        ] {
            let _ = of(line);
        }
    }
}
