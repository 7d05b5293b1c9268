//! vLLM's lines: V0, and V1 from 0.8 to 0.32.

use super::text::{after, count, decimal, field, first};
use super::{StartFailure, StartLog};
use crate::measured::StartOutcome;

/// Reads line by line.
#[derive(Default)]
pub(super) struct Reader {
    log: StartLog,
    /// Free memory at start, where a line says so.
    free_gib: Option<f64>,
    /// The pre-estimate of graphs, which later lines count into the activation peak.
    graph_estimate_gib: Option<f64>,
    /// Weights and non-torch memory together, as 0.22 and later print them.
    consumed_gib: Option<f64>,
    /// Whether the summary line's activation includes the pre-estimate.
    summary_activation: Option<f64>,
}

impl Reader {
    /// Takes what a line tells.
    pub(super) fn read(&mut self, line: &str) {
        if self.line(line) {
            self.log.known_lines += 1;
        }
    }

    /// Whether the line is one of vLLM's that tell something.
    fn line(&mut self, line: &str) -> bool {
        let config = self.config(line);
        let arguments = self.arguments(line);
        let figures = self.figures(line);
        let failure = self.failure(line);
        config || arguments || figures || failure
    }

    /// `Initializing a V1 LLM engine (v0.19.0) with config: model='..', ...` and its kin.
    fn config(&mut self, line: &str) -> bool {
        let s = &mut self.log.setup;
        if let Some(rest) = after(line, "Initializing a")
            && rest.contains("LLM engine (v")
        {
            let version = after(rest, "(v").and_then(|v| v.split(')').next());
            s.engine_version = version.map(str::to_owned).or(s.engine_version.take());
            if rest.starts_with(" V0") {
                self.log.notes.push("the V0 engine".to_owned());
            }
            let Some(c) = after(rest, "config: ") else {
                return true;
            };
            if let Some(m) = field(c, "model") {
                s.model = m.to_owned();
            }
            let text = |key: &str| field(c, key).map(str::to_owned);
            let number = |key: &str| field(c, key).and_then(count);
            s.dtype = text("dtype").map(|d| d.trim_start_matches("torch.").to_owned());
            s.max_model_len = number("max_seq_len").or(s.max_model_len);
            s.tensor_parallel = number("tensor_parallel_size").or(s.tensor_parallel);
            s.pipeline_parallel = number("pipeline_parallel_size").or(s.pipeline_parallel);
            s.data_parallel = number("data_parallel_size").or(s.data_parallel);
            s.quantization = text("quantization").or(s.quantization.take());
            s.kv_cache_dtype = text("kv_cache_dtype").or(s.kv_cache_dtype.take());
            if field(c, "enforce_eager") == Some("True") {
                s.enforce_eager = true;
            }
            if field(c, "speculative_config").is_some_and(|v| v.starts_with("Speculative")) {
                self.log
                    .notes
                    .push("a draft model is loaded too; the prediction leaves it out".to_owned());
            }
            s.decode_context_parallel =
                number("decode_context_parallel_size").or(s.decode_context_parallel);
            return true;
        }
        for marker in ["vLLM API server version ", "vLLM server version "] {
            if let Some(rest) = after(line, marker) {
                let version = rest.split([',', ' ']).next().unwrap_or(rest);
                first(&mut s.engine_version, Some(version.to_owned()));
                if let Some(model) = after(rest, "serving model ")
                    && s.model.is_empty()
                {
                    s.model = model.trim().to_owned();
                }
                return true;
            }
        }
        // The drawn logo carries version and model at the end of two of its lines.
        if line.contains('█') {
            if let Some(v) = after(line, " version ") {
                first(&mut s.engine_version, Some(v.trim().to_owned()));
                return true;
            }
            if let Some(m) = after(line, " model ")
                && s.model.is_empty()
            {
                s.model = m.trim().to_owned();
                return true;
            }
        }
        false
    }

    /// Arguments as typed, or as the server prints them.
    fn arguments(&mut self, line: &str) -> bool {
        if let Some(rest) = after(
            line,
            "Chunked prefill is enabled with max_num_batched_tokens=",
        ) {
            first(&mut self.log.setup.max_num_batched_tokens, count(rest));
            return true;
        }
        if let Some(rest) = after(line, "Using max model len ") {
            first(&mut self.log.setup.max_model_len, count(rest));
            return true;
        }
        if let Some(rest) = after(line, "The current --gpu-memory-utilization=") {
            first(
                &mut self.log.setup.gpu_memory_utilization,
                decimal(rest, false),
            );
            return true;
        }
        let printed = after(line, "non-default args: ")
            .or_else(|| after(line, "args: Namespace("))
            .or_else(|| after(line, "EngineArgs("));
        if let Some(c) = printed {
            self.pairs(c);
            return true;
        }
        if line.contains("vllm serve ") || line.contains("vllm.entrypoints.") {
            self.command(line);
            return true;
        }
        false
    }

    fn pairs(&mut self, c: &str) {
        let s = &mut self.log.setup;
        if s.model.is_empty() {
            for key in ["model", "model_tag"] {
                if let Some(m) = field(c, key) {
                    s.model = m.to_owned();
                }
            }
        }
        let number = |key: &str| field(c, key).and_then(count);
        let text = |key: &str| field(c, key).map(str::to_owned);
        first(&mut s.max_model_len, number("max_model_len"));
        first(&mut s.max_num_seqs, number("max_num_seqs"));
        first(
            &mut s.max_num_batched_tokens,
            number("max_num_batched_tokens"),
        );
        first(&mut s.block_size, number("block_size"));
        first(&mut s.tensor_parallel, number("tensor_parallel_size"));
        first(&mut s.pipeline_parallel, number("pipeline_parallel_size"));
        first(
            &mut s.decode_context_parallel,
            number("decode_context_parallel_size"),
        );
        first(
            &mut s.gpu_memory_utilization,
            field(c, "gpu_memory_utilization").and_then(|v| decimal(v, false)),
        );
        first(&mut s.kv_cache_dtype, text("kv_cache_dtype"));
        first(&mut s.quantization, text("quantization"));
        if field(c, "enforce_eager") == Some("True") {
            s.enforce_eager = true;
        }
        if field(c, "enable_expert_parallel") == Some("True") {
            s.expert_parallel = true;
        }
    }

    /// `vllm serve MODEL --max-model-len 8192 -tp 2 ...`
    fn command(&mut self, line: &str) {
        let s = &mut self.log.setup;
        let mut words = line.split([' ', '=']).filter(|w| !w.is_empty());
        while let Some(w) = words.next() {
            let next = || words.clone().next();
            match w {
                "serve" if s.model.is_empty() => {
                    if let Some(m) = next().filter(|m| !m.starts_with('-')) {
                        s.model = m.trim_matches(['\'', '"']).to_owned();
                    }
                }
                "--model" if s.model.is_empty() => {
                    s.model = next()
                        .unwrap_or_default()
                        .trim_matches(['\'', '"'])
                        .to_owned();
                }
                "--max-model-len" => first(&mut s.max_model_len, next().and_then(count)),
                "--max-num-seqs" => first(&mut s.max_num_seqs, next().and_then(count)),
                "--max-num-batched-tokens" => {
                    first(&mut s.max_num_batched_tokens, next().and_then(count));
                }
                "--block-size" => first(&mut s.block_size, next().and_then(count)),
                "--tensor-parallel-size" | "-tp" => {
                    first(&mut s.tensor_parallel, next().and_then(count));
                }
                "--pipeline-parallel-size" | "-pp" => {
                    first(&mut s.pipeline_parallel, next().and_then(count));
                }
                "--decode-context-parallel-size" | "-dcp" => {
                    first(&mut s.decode_context_parallel, next().and_then(count));
                }
                "--gpu-memory-utilization" => first(
                    &mut s.gpu_memory_utilization,
                    next().and_then(|v| decimal(v, false)),
                ),
                "--kv-cache-dtype" => first(&mut s.kv_cache_dtype, next().map(str::to_owned)),
                "--quantization" | "-q" => first(&mut s.quantization, next().map(str::to_owned)),
                "--enforce-eager" => s.enforce_eager = true,
                "--enable-expert-parallel" => s.expert_parallel = true,
                _ => {}
            }
        }
    }

    fn figures(&mut self, line: &str) -> bool {
        let r = &mut self.log.reported;
        let gib = |text: &str| decimal(text, false);
        let mut known = false;
        for marker in ["Model loading took ", "Loading model weights took "] {
            if let Some(rest) = after(line, marker)
                && (rest.contains("GiB") || rest.contains("GB"))
            {
                first(&mut r.weights_gib, gib(rest));
                known = true;
            }
        }
        if let Some(rest) = after(line, "total_gpu_memory (") {
            // V0: total_gpu_memory (23.58GiB) x gpu_memory_utilization (0.90) = 21.22GiB
            first(&mut self.log.setup.total_gpu_memory_gib, gib(rest));
            if let Some(u) = after(rest, "gpu_memory_utilization (") {
                first(&mut self.log.setup.gpu_memory_utilization, gib(u));
            }
            known = true;
        }
        if let Some(rest) = after(line, "model weights take ") {
            first(&mut r.weights_gib, gib(rest));
            known = true;
        }
        for (markers, slot) in [
            (
                [
                    "non_torch_memory takes ",
                    "non-torch forward increase memory: ",
                ],
                &mut r.non_torch_gib,
            ),
            (
                [
                    "PyTorch activation peak memory takes ",
                    "torch peak memory increase: ",
                ],
                &mut r.activation_gib,
            ),
            (
                ["reserved for KV Cache is ", "Available KV cache memory: "],
                &mut r.kv_available_gib,
            ),
        ] {
            for marker in markers {
                if let Some(rest) = after(line, marker) {
                    first(slot, gib(rest));
                    known = true;
                }
            }
        }
        for marker in ["GPU KV cache size: ", "CPU KV cache size: "] {
            if let Some(rest) = after(line, marker) {
                first(&mut r.kv_tokens, as_f64(count(rest)));
                known = true;
            }
        }
        if let Some(rest) = after(line, "Maximum concurrency for ") {
            first(&mut self.log.setup.max_model_len, count(rest));
            let value = after(rest, "request: ").and_then(gib);
            first(&mut r.max_concurrency, value);
            known = true;
        }
        for marker in ["# GPU blocks: ", "# cuda blocks: ", "# CUDA blocks: "] {
            if let Some(rest) = after(line, marker) {
                first(&mut r.gpu_blocks, as_f64(count(rest)));
                known = true;
            }
        }
        if let Some(rest) = after(line, "Graph capturing finished in ") {
            let took = after(rest, "took ").filter(|t| t.contains("GiB"));
            first(&mut r.cuda_graph_gib, took.and_then(gib));
            known = true;
        }
        if let Some(rest) = after(line, "Estimated CUDA graph memory: ") {
            first(&mut self.graph_estimate_gib, gib(rest));
            known = true;
        }
        known | self.summary(line)
    }

    /// `Free memory on device (78.68/79.19 GiB) on startup. Desired GPU memory utilization is (0.95,
    /// 75.23 GiB). Actual usage is 14.99 GiB for weight, 1.89 GiB for peak activation, ...`
    fn summary(&mut self, line: &str) -> bool {
        let Some(rest) = after(line, "Free memory on device") else {
            return false;
        };
        let Some(rest) = after(rest, "(") else {
            return false;
        };
        first(&mut self.free_gib, decimal(rest, false));
        let total = after(rest, "/").and_then(|t| decimal(t, false));
        let r = &mut self.log.reported;
        first(&mut self.log.setup.total_gpu_memory_gib, total);
        let desired = after(rest, "GPU memory utilization is (")
            .or_else(|| after(rest, "desired GPU memory utilization ("));
        if let Some(d) = desired {
            first(
                &mut self.log.setup.gpu_memory_utilization,
                decimal(d, false),
            );
            if rest.contains("is less than desired") {
                let wanted = after(d, ", ").and_then(|w| decimal(w, false));
                let free = self.free_gib;
                first(
                    &mut self.log.failure,
                    Some(StartFailure::NotEnoughFree {
                        free_gib: free,
                        wanted_gib: wanted,
                    }),
                );
            }
        }
        if let Some(usage) = after(rest, "Actual usage is ") {
            // "14.99 GiB for weight, 1.89 GiB for peak activation, 0.25 GiB for non-torch memory,
            // and 0.91 GiB for CUDAGraph memory": each amount stands before its name.
            let amount = |name: &str| -> Option<f64> {
                let head = &usage[..usage.find(name)?];
                let from = head.rfind([',', '(']).map_or(0, |i| i + 1);
                let digits =
                    head[from..].trim_start_matches(|c: char| !c.is_ascii_digit() && c != '-');
                decimal(digits, false)
            };
            if usage.contains("consumed memory") {
                first(&mut self.consumed_gib, decimal(usage, false));
                first(
                    &mut self.summary_activation,
                    amount("GiB for peak activation"),
                );
            } else {
                first(&mut r.weights_gib, decimal(usage, false));
                first(&mut r.activation_gib, amount("GiB for peak activation"));
                first(&mut r.non_torch_gib, amount("GiB for non-torch"));
            }
            first(&mut r.cuda_graph_gib, amount("GiB for CUDAGraph"));
            let pool = after(usage, "kv cache memory in use is ").and_then(|p| decimal(p, false));
            first(&mut r.kv_available_gib, pool);
        }
        true
    }

    fn failure(&mut self, line: &str) -> bool {
        let found = if line.contains("No available memory for the cache blocks") {
            Some(StartFailure::NoCacheMemory)
        } else if let Some(rest) = after(line, "max seq len (") {
            // V1: (131072), (16.00 GiB KV cache is needed ... estimated maximum model length is N.
            // V0: (131072) is larger than the maximum number of tokens that can be stored in KV
            // cache (37696).
            let holds = after(rest, "maximum model length is ")
                .or_else(|| after(rest, "stored in KV cache ("))
                .and_then(count);
            let needed = after(rest, "), (")
                .filter(|n| n.contains("KV cache is needed"))
                .and_then(|n| decimal(n, false));
            Some(StartFailure::TooLong {
                max_model_len: count(rest),
                holds,
                needed_gib: needed,
            })
        } else if line.contains("CUDA out of memory") || line.contains("HIP out of memory") {
            if let Some(total) = after(line, "has a total capacity of ") {
                first(
                    &mut self.log.setup.total_gpu_memory_gib,
                    decimal(total, false),
                );
            }
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
        let r = &mut self.log.reported;
        if let (Some(consumed), Some(weights)) = (self.consumed_gib, r.weights_gib) {
            first(&mut r.non_torch_gib, Some(consumed - weights));
        }
        if let Some(activation) = self.summary_activation {
            first(
                &mut r.activation_gib,
                Some(activation - self.graph_estimate_gib.unwrap_or(0.0)),
            );
        }
        if r.kv_tokens.is_none()
            && let Some(blocks) = r.gpu_blocks
        {
            // The lines with a block count are older than the one with tokens, when all layers
            // shared blocks of 16.
            let size = self.log.setup.block_size.unwrap_or(16);
            r.kv_tokens = as_f64(Some(size)).map(|s| s * blocks);
            self.log
                .notes
                .push(format!("reported kv_tokens: the printed blocks x {size}"));
        }
        if let (Some(StartFailure::TooLong { holds, .. }), None) =
            (&self.log.failure, r.max_concurrency)
        {
            // V0 says how many tokens there are; V1 proposes a length instead.
            if r.kv_tokens.is_none() && r.kv_available_gib.is_none() {
                r.kv_tokens = as_f64(*holds);
            }
        }
        if self.log.failure.is_some() {
            r.start = StartOutcome::OutOfMemory;
        }
        if let Some(total) = self.log.setup.total_gpu_memory_gib
            && let Some(free) = self.free_gib
            && total - free > 1.5
        {
            self.log.notes.push(format!(
                "{:.2} of {total:.2} GiB were in use before the engine took any",
                total - free
            ));
        }
        r.graph_estimate_gib = self.graph_estimate_gib;
        if let Some(g) = r.kv_available_gib.filter(|g| *g < 0.0) {
            self.log
                .notes
                .push(format!("the log prints {g:.2} GiB as KV memory"));
        }
        let s = &mut self.log.setup;
        s.id = "log".to_owned();
        s.engine = "vllm".to_owned();
        if s.tensor_parallel.is_none() && s.gpu_count.is_none() {
            s.tensor_parallel = Some(1);
        }
        self.log
    }
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
    fn the_summary_of_0_19() {
        let l = of(
            "INFO Free memory on device (78.68/79.19 GiB) on startup. Desired GPU memory utilization is (0.95, 75.23 GiB). Actual usage is 14.99 GiB for weight, 1.89 GiB for peak activation, 0.25 GiB for non-torch memory, and 0.91 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=61409763328` (57.19 GiB) to fit into requested memory. Current kv cache memory in use is 58.11 GiB.",
        );
        let r = &l.reported;
        assert_eq!(r.weights_gib, Some(14.99));
        assert_eq!(r.activation_gib, Some(1.89));
        assert_eq!(r.non_torch_gib, Some(0.25));
        assert_eq!(r.cuda_graph_gib, Some(0.91));
        assert_eq!(r.kv_available_gib, Some(58.11));
        assert_eq!(l.setup.total_gpu_memory_gib, Some(79.19));
        assert_eq!(l.setup.gpu_memory_utilization, Some(0.95));
        assert_eq!(l.failure, None);
    }

    #[test]
    fn the_summary_of_0_32() {
        let l = of(
            "Model loading took 14.99 GiB memory and 3.1 seconds\nEstimated CUDA graph memory: 0.84 GiB total\nFree memory on device (78.68/79.19 GiB) on startup. Desired GPU memory utilization is (0.92, 72.86 GiB). Actual usage is 15.24 GiB for consumed memory (weights + non-torch), 2.73 GiB for peak activation, and 0.91 GiB for CUDAGraph memory. Current kv cache memory in use is 54.89 GiB.\nGPU KV cache size: 449,600 tokens, Maximum concurrency for 8,192 tokens per request: 54.88x",
        );
        let r = &l.reported;
        assert_eq!(r.non_torch_gib.map(|x| (x * 100.0).round()), Some(25.0));
        assert_eq!(r.activation_gib.map(|x| (x * 100.0).round()), Some(189.0));
        assert_eq!(r.kv_tokens, Some(449_600.0));
        assert_eq!(r.max_concurrency, Some(54.88));
        assert_eq!(l.setup.max_model_len, Some(8192));
    }

    #[test]
    fn failures() {
        let l = of(
            "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is needed, which is larger than the available KV cache memory (4.60 GiB). Based on the available memory, the estimated maximum model length is 37680. Try",
        );
        assert_eq!(
            l.failure,
            Some(StartFailure::TooLong {
                max_model_len: Some(131_072),
                holds: Some(37_680),
                needed_gib: Some(16.0)
            })
        );
        let l = of(
            "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be stored in KV cache (37696). Try",
        );
        assert_eq!(l.reported.kv_tokens, Some(37_696.0));
        let l = of(
            "Free memory on device cuda:0 (5.20/23.58 GiB) on startup is less than desired GPU memory utilization (0.9, 21.22 GiB). Decrease",
        );
        assert_eq!(
            l.failure,
            Some(StartFailure::NotEnoughFree {
                free_gib: Some(5.2),
                wanted_gib: Some(21.22)
            })
        );
    }

    #[test]
    fn the_first_worker_speaks() {
        let l = of(
            "(Worker_TP1 pid=2) Model loading took 7.5 GiB memory\n(Worker_TP0 pid=1) Model loading took 7.6 GiB memory",
        );
        assert_eq!(l.reported.weights_gib, Some(7.5));
    }
}
