//! SGLang's lines, 0.4.3 to 0.5.23.

use super::text::{after, count, decimal, field, first};
use super::{StartFailure, StartLog};
use crate::measured::StartOutcome;

/// Reads line by line.
#[derive(Default)]
pub(super) struct Reader {
    log: StartLog,
    /// Keys and values over the pools of the first rank, GiB.
    pool_gib: f64,
    /// Free memory after loading, GiB.
    after_gib: Option<f64>,
}

impl Reader {
    /// Takes what a line tells.
    pub(super) fn read(&mut self, line: &str) {
        if self.line(line) {
            self.log.known_lines += 1;
        }
    }

    /// Whether the line is one of SGLang's that tell something. Other ranks print the same again.
    fn line(&mut self, line: &str) -> bool {
        if other_rank(line) {
            return false;
        }
        let arguments = self.arguments(line);
        let figures = self.figures(line);
        let failure = self.failure(line);
        arguments || figures || failure
    }

    /// `server_args=ServerArgs(model_path='..', ...)`, or the command.
    fn arguments(&mut self, line: &str) -> bool {
        if let Some(c) = after(line, "ServerArgs(") {
            let s = &mut self.log.setup;
            let number = |key: &str| field(c, key).and_then(count);
            let text = |key: &str| field(c, key).map(str::to_owned);
            if let Some(m) = text("model_path").filter(|_| s.model.is_empty()) {
                s.model = m;
            }
            first(&mut s.tensor_parallel, number("tp_size"));
            first(&mut s.pipeline_parallel, number("pp_size"));
            first(&mut s.data_parallel, number("dp_size"));
            first(&mut s.max_model_len, number("context_length"));
            first(&mut s.max_num_seqs, number("max_running_requests"));
            first(
                &mut s.max_num_batched_tokens,
                number("chunked_prefill_size"),
            );
            first(&mut s.block_size, number("page_size"));
            first(&mut s.max_total_tokens, number("max_total_tokens"));
            first(
                &mut s.gpu_memory_utilization,
                field(c, "mem_fraction_static").and_then(|v| decimal(v, false)),
            );
            first(&mut s.dtype, text("dtype"));
            first(&mut s.kv_cache_dtype, text("kv_cache_dtype"));
            first(&mut s.quantization, text("quantization"));
            s.enforce_eager |= field(c, "disable_cuda_graph") == Some("True");
            return true;
        }
        if line.contains("sglang.launch_server") || line.contains("sglang serve ") {
            self.command(line);
            return true;
        }
        false
    }

    fn command(&mut self, line: &str) {
        let s = &mut self.log.setup;
        let mut words = line.split([' ', '=']).filter(|w| !w.is_empty());
        while let Some(word) = words.next() {
            let mut next = || words.next().map(|w| w.trim_matches(['\'', '"']));
            match word {
                "--model-path" | "--model" if s.model.is_empty() => {
                    s.model = next().unwrap_or_default().to_owned();
                }
                "--tp" | "--tp-size" | "--tensor-parallel-size" => {
                    first(&mut s.tensor_parallel, next().and_then(count));
                }
                "--pp" | "--pp-size" | "--pipeline-parallel-size" => {
                    first(&mut s.pipeline_parallel, next().and_then(count));
                }
                "--context-length" => first(&mut s.max_model_len, next().and_then(count)),
                "--max-running-requests" => first(&mut s.max_num_seqs, next().and_then(count)),
                "--max-total-tokens" => first(&mut s.max_total_tokens, next().and_then(count)),
                "--chunked-prefill-size" => {
                    first(&mut s.max_num_batched_tokens, next().and_then(count));
                }
                "--page-size" => first(&mut s.block_size, next().and_then(count)),
                "--mem-fraction-static" => first(
                    &mut s.gpu_memory_utilization,
                    next().and_then(|v| decimal(v, false)),
                ),
                "--kv-cache-dtype" => first(&mut s.kv_cache_dtype, next().map(str::to_owned)),
                "--quantization" => first(&mut s.quantization, next().map(str::to_owned)),
                "--disable-cuda-graph" => s.enforce_eager = true,
                _ => {}
            }
        }
    }

    fn figures(&mut self, line: &str) -> bool {
        let r = &mut self.log.reported;
        let s = &mut self.log.setup;
        let gib = |text: &str| decimal(text, false);
        let mut known = false;
        if let Some(rest) = after(line, "Load weight begin. avail mem=") {
            first(&mut s.free_before_gib, gib(rest));
            known = true;
        }
        if let Some(rest) = after(line, "Load weight end.") {
            first(&mut self.after_gib, after(rest, "avail mem=").and_then(gib));
            first(&mut r.weights_gib, after(rest, "mem usage=").and_then(gib));
            known = true;
        }
        if line.contains("KV Cache is allocated.") {
            for marker in ["K size: ", "V size: ", "KV size: "] {
                // `KV size` ends in `V size` too.
                let whole = after(line, marker)
                    .filter(|_| marker != "V size: " || !line.contains("KV size: "));
                self.pool_gib += whole.and_then(gib).unwrap_or(0.0);
            }
            first(
                &mut r.kv_tokens,
                as_f64(after(line, "#tokens: ").and_then(count)),
            );
            known = true;
        }
        if let Some(rest) = after(line, "max_total_num_tokens=") {
            // What requests are let in by; pools of windows print tokens of their own.
            r.kv_tokens = as_f64(count(rest)).or(r.kv_tokens);
            first(
                &mut s.max_model_len,
                after(rest, "context_len=").and_then(count),
            );
            first(
                &mut s.max_num_batched_tokens,
                after(rest, "chunked_prefill_size=").and_then(count),
            );
            known = true;
        }
        if let Some(rest) = after(line, "Capture cuda graph end.")
            .or_else(|| after(line, "Capture target decode CUDA graph end."))
        {
            first(
                &mut r.cuda_graph_gib,
                after(rest, "mem usage=").and_then(gib),
            );
            known = true;
        }
        known || line.contains("Memory pool end. avail mem=")
    }

    fn failure(&mut self, line: &str) -> bool {
        let no_room = line.contains("Please try to increase --mem-fraction-static")
            || line.contains("Loaded weights leave no GPU memory for the KV cache");
        let found = if no_room {
            Some(StartFailure::NoCacheMemory)
        } else if line.contains("CUDA out of memory") || line.contains("HIP out of memory") {
            let asked = after(line, "Tried to allocate ").map(|a| {
                a.split(". ")
                    .next()
                    .unwrap_or(a)
                    .trim()
                    .chars()
                    .take(40)
                    .collect()
            });
            Some(StartFailure::OutOfMemory { asked })
        } else {
            None
        };
        let known = found.is_some();
        first(&mut self.log.failure, found);
        known
    }

    /// Everything read.
    pub(super) fn finish(mut self) -> StartLog {
        if self.pool_gib > 0.0 {
            self.log.reported.kv_available_gib = Some(self.pool_gib);
        }
        let s = &mut self.log.setup;
        s.id = "log".to_owned();
        s.engine = "sglang".to_owned();
        if s.tensor_parallel.is_none() {
            s.tensor_parallel = Some(1);
        }
        if s.free_before_gib.is_none()
            && let (Some(after), Some(weights)) = (self.after_gib, self.log.reported.weights_gib)
        {
            s.free_before_gib = Some(after + weights);
            self.log
                .notes
                .push("free before loading: what was free after it, and what it took".to_owned());
        }
        if self.log.failure.is_some() {
            self.log.reported.start = StartOutcome::OutOfMemory;
        }
        self.log
    }
}

/// Whether the line is one of a rank other than the first: `[2025-08-01 10:00:00 TP3] ..`.
fn other_rank(line: &str) -> bool {
    let Some(head) = line.strip_prefix('[').and_then(|l| l.split(']').next()) else {
        return false;
    };
    head.split(' ').any(|word| {
        ["TP", "PP", "DP"].iter().any(|p| {
            word.strip_prefix(p)
                .and_then(|n| n.parse::<u64>().ok())
                .is_some_and(|n| n > 0)
        })
    })
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
            r.read(line);
        }
        r.finish()
    }

    #[test]
    fn a_start_of_0_4() {
        let l = of(
            "[2025-08-01 10:00:00] server_args=ServerArgs(model_path='Qwen/Qwen3-0.6B', dtype='auto', mem_fraction_static=0.818, max_running_requests=None, tp_size=2, chunked_prefill_size=2048, kv_cache_dtype='auto', page_size=1)\n\
             [2025-08-01 10:00:01 TP0] Load weight begin. avail mem=15.16 GB\n\
             [2025-08-01 10:00:01 TP1] Load weight begin. avail mem=15.02 GB\n\
             [2025-08-01 10:00:02 TP0] Load weight end. type=Qwen3ForCausalLM, dtype=torch.bfloat16, avail mem=13.91 GB, mem usage=1.25 GB.\n\
             [2025-08-01 10:00:02 TP0] KV Cache is allocated. #tokens: 104273, K size: 5.57 GB, V size: 5.57 GB\n\
             [2025-08-01 10:00:02 TP1] KV Cache is allocated. #tokens: 104273, K size: 5.57 GB, V size: 5.57 GB\n\
             [2025-08-01 10:00:02 TP0] Memory pool end. avail mem=2.43 GB\n\
             [2025-08-01 10:00:03 TP0] Capture cuda graph end. Time elapsed: 1.10 s. mem usage=0.11 GB. avail mem=2.31 GB.\n\
             [2025-08-01 10:00:04 TP0] max_total_num_tokens=104273, chunked_prefill_size=2048, max_prefill_tokens=16384, max_running_requests=2048, context_len=40960, available_gpu_mem=2.31 GB",
        );
        let (s, r) = (&l.setup, &l.reported);
        assert_eq!(
            (s.model.as_str(), s.tensor_parallel),
            ("Qwen/Qwen3-0.6B", Some(2))
        );
        assert_eq!(
            (s.gpu_memory_utilization, s.max_num_seqs),
            (Some(0.818), None)
        );
        assert_eq!(
            (s.free_before_gib, s.max_model_len),
            (Some(15.16), Some(40_960))
        );
        assert_eq!((r.weights_gib, r.kv_tokens), (Some(1.25), Some(104_273.0)));
        assert_eq!(r.kv_available_gib, Some(11.14));
        assert_eq!(r.cuda_graph_gib, Some(0.11));
        assert_eq!(l.known_lines, 7);
    }

    #[test]
    fn latents_and_two_pools() {
        let l =
            of("KV Cache is allocated. dtype: torch.bfloat16, #tokens: 209413, KV size: 13.71 GB");
        assert_eq!(l.reported.kv_available_gib, Some(13.71));
        let l = of(
            "KV Cache is allocated. #tokens: 800, K size: 1.00 GB, V size: 1.00 GB\nKV Cache is allocated. #tokens: 1000, K size: 2.00 GB, V size: 2.00 GB\nmax_total_num_tokens=1000, chunked_prefill_size=8192",
        );
        assert_eq!(l.reported.kv_available_gib, Some(6.0));
        assert_eq!(l.reported.kv_tokens, Some(1000.0));
    }

    #[test]
    fn failures() {
        let l =
            of("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.");
        assert_eq!(l.failure, Some(StartFailure::NoCacheMemory));
        assert_eq!(l.reported.start, StartOutcome::OutOfMemory);
    }
}
