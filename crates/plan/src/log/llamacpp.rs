//! llama.cpp's lines: 2024 to 2026, and the ik fork's.

use serde_json::{Map, Value, json};

use super::text::{after, count, decimal};
use super::{StartFailure, StartLog};
use crate::measured::{StartOutcome, config_of_gguf};

/// Reads line by line.
#[derive(Default)]
pub(super) struct Reader {
    log: StartLog,
    metadata: Map<String, Value>,
    vocab: Option<u64>,
    build: Option<String>,
    ik: bool,
    /// KV totals (one per cache: window and full ones print apart), and by device.
    kv_totals: Vec<f64>,
    kv_buffers: Vec<f64>,
    compute: Vec<(String, f64)>,
    model_buffers: f64,
    cards: Vec<String>,
    contexts: usize,
}

/// Modules whose lines these are; a line of another program with the same words is not taken.
const MODULES: &[&str] = &[
    "llama_",
    "llm_load",
    "load_tensors",
    "print_info",
    "ggml_",
    "main: build",
    "build: ",
    "build = ",
    "common_init",
    "sched_reserve",
];

impl Reader {
    /// Takes what a line tells.
    pub(super) fn read(&mut self, line: &str) {
        if self.line(line) {
            self.log.known_lines += 1;
        }
    }

    fn line(&mut self, line: &str) -> bool {
        if let Some(rest) = after(line, "llama_model_loader: - kv ") {
            return self.metadata(rest);
        }
        if self.card(line) {
            return true;
        }
        if !MODULES.iter().any(|m| line.contains(m)) {
            return false;
        }
        self.build(line) || self.buffers(line) || self.parameters(line) || self.failure(line)
    }

    /// `   3:    llama.block_count u32    = 32`
    fn metadata(&mut self, rest: &str) -> bool {
        let Some((head, value)) = rest.split_once(" = ") else {
            return false;
        };
        let mut words = head.split_whitespace().skip(1);
        let (Some(key), Some(kind)) = (words.next(), words.next()) else {
            return false;
        };
        let value = value.trim();
        if key == "tokenizer.ggml.tokens" {
            // arr[str,128256]
            self.vocab = after(kind, ",").and_then(count);
        }
        let parsed = if kind.starts_with("arr[") {
            // Short arrays are printed whole; longer ones are cut and of no use.
            serde_json::from_str(value).unwrap_or(Value::Null)
        } else if let Ok(n) = value.parse::<u64>() {
            json!(n)
        } else {
            json!(value)
        };
        if !parsed.is_null() {
            self.metadata.insert(key.to_owned(), parsed);
        }
        true
    }

    /// `Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes`
    fn card(&mut self, line: &str) -> bool {
        if let Some(rest) = after(line, "Device ")
            && rest.starts_with(|c: char| c.is_ascii_digit())
            && rest.contains("compute capability")
            && let Some(name) = after(rest, ": ")
        {
            let name = name.split(',').next().unwrap_or(name).trim();
            self.cards.push(name.chars().take(80).collect());
            return true;
        }
        false
    }

    fn build(&mut self, line: &str) -> bool {
        if line.contains("ik_llama") {
            self.ik = true;
        }
        for marker in ["build: ", "build = "] {
            if let Some(rest) = after(line, marker)
                && rest.starts_with(|c: char| c.is_ascii_digit())
                && self.build.is_none()
            {
                self.build = count(rest).map(|n| n.to_string());
                return true;
            }
        }
        false
    }

    fn buffers(&mut self, line: &str) -> bool {
        let mib = |text: &str| decimal(text, true);
        let device = |marker: &str| -> Option<String> {
            let head = line[..line.find(marker)?].trim_end();
            let name = head.rsplit([' ', ':']).next().unwrap_or(head);
            (!name.is_empty()).then(|| name.to_owned())
        };
        let model = after(line, "model buffer size =").or_else(|| {
            // Without `model` until late 2024.
            after(line, " buffer size =").filter(|_| line.contains("llm_load_tensors"))
        });
        if let Some(rest) = model {
            self.model_buffers += mib(rest).unwrap_or(0.0);
            return true;
        }
        for marker in ["KV buffer size =", "RS buffer size ="] {
            if let Some(rest) = after(line, marker) {
                self.kv_buffers.extend(mib(rest));
                return true;
            }
        }
        if let Some(rest) = after(line, "compute buffer size =") {
            if let (Some(d), Some(m)) = (device("compute buffer size"), mib(rest)) {
                self.compute.push((d, m));
            }
            return true;
        }
        if let Some(rest) = after(line, "KV self size  =").or_else(|| after(line, "KV self size ="))
        {
            self.kv_total(rest);
            return true;
        }
        if let Some(rest) = after(line, ": size =")
            && (line.contains("kv_cache") || line.contains("memory_recurrent"))
        {
            self.kv_total(rest);
            return true;
        }
        false
    }

    /// ` 640.00 MiB (2048 cells, 32 layers, 1/1 seqs), K (f16): 320.00 MiB, V (f16): 320.00 MiB`
    fn kv_total(&mut self, rest: &str) {
        self.kv_totals.extend(decimal(rest, true));
        let kind = |marker: &str| -> Option<&str> {
            let t = after(rest, marker)?.split(')').next()?;
            (!t.is_empty() && t.len() < 12).then_some(t)
        };
        let s = &mut self.log.setup;
        if s.kv_cache_dtype.is_none() {
            s.kv_cache_dtype = if let Some(c) = kind("c^KV (") {
                self.ik = true;
                Some(format!("c^KV:{c}"))
            } else {
                match (kind("K ("), kind("V (")) {
                    (Some(k), Some(v)) => Some(format!("K:{k}, V:{v}")),
                    (Some(k), None) => Some(format!("K:{k}")),
                    _ => None,
                }
            };
        }
    }

    fn parameters(&mut self, line: &str) -> bool {
        if let Some(rest) = after(line, "offloaded ")
            && let Some((a, b)) = rest.split_once('/')
        {
            let s = &mut self.log.setup;
            if let (Some(a), Some(b)) = (count(a), count(b)) {
                s.layers_offloaded = Some((a, b));
            }
            return true;
        }
        // `llama_context: n_ctx                 = 8192`
        let Some((head, value)) = line.split_once(" = ").or_else(|| line.split_once("= ")) else {
            return false;
        };
        let head = head.trim_end();
        let Some(key) = head.rsplit([' ', ':']).next() else {
            return false;
        };
        let context = [
            "llama_context",
            "llama_new_context",
            "llama_init_from_model",
        ]
        .iter()
        .any(|m| head.contains(m));
        let info = ["print_info", "llm_load_print_meta"]
            .iter()
            .any(|m| head.contains(m));
        let value = value.trim();
        if info {
            match key {
                "arch" => {
                    self.metadata
                        .entry("general.architecture")
                        .or_insert_with(|| json!(value));
                }
                "n_vocab" => self.vocab = self.vocab.or(count(value)),
                "type" if head.contains("file type") => {
                    self.log.setup.quantization = Some(format!("GGUF {value}"));
                }
                "name" if head.contains("general.name") => {
                    let name: String = value.chars().take(120).collect();
                    self.log.setup.model = name;
                }
                _ => return false,
            }
            return true;
        }
        if !context {
            return false;
        }
        let s = &mut self.log.setup;
        let n = count(value);
        // A second context (a draft's, or a tool's) comes after the first: that one counts.
        if key == "n_ctx" {
            self.contexts += 1;
        }
        if self.contexts > 1 {
            return true;
        }
        match key {
            "n_ctx" => s.max_model_len = n,
            "n_seq_max" => s.max_num_seqs = n,
            "n_batch" => s.n_batch = n,
            "n_ubatch" => s.n_ubatch = n,
            "flash_attn" => {
                s.flash_attn = match value.to_ascii_lowercase().as_str() {
                    "1" | "true" | "enabled" | "on" => Some(true),
                    "0" | "false" | "disabled" | "off" => Some(false),
                    _ => None,
                };
            }
            "mla_attn" => {
                self.ik = true;
                s.mla_attn = n;
            }
            "attn_max_b" => {
                self.ik = true;
                s.attn_max_batch = n;
            }
            "fused_moe" | "fused_up_gate" => self.ik = true,
            "kv_unified" => s.kv_unified = Some(value == "true"),
            _ => return false,
        }
        true
    }

    fn failure(&mut self, line: &str) -> bool {
        let asked = if let Some(rest) = after(line, "allocating ") {
            line.contains("failed").then(|| {
                rest.split(" on ")
                    .next()
                    .unwrap_or(rest)
                    .chars()
                    .take(40)
                    .collect::<String>()
            })
        } else {
            after(line, "failed to allocate ").map(|rest| rest.chars().take(40).collect())
        };
        let Some(asked) = asked else { return false };
        if self.log.failure.is_none() {
            self.log.failure = Some(StartFailure::OutOfMemory { asked: Some(asked) });
        }
        true
    }

    /// Everything read.
    pub(super) fn finish(mut self) -> StartLog {
        let log = &mut self.log;
        let s = &mut log.setup;
        s.id = "log".to_owned();
        s.engine = "llama.cpp".to_owned();
        s.engine_version = match (self.ik, &self.build) {
            (true, Some(b)) => Some(format!("ik_llama.cpp fork, build = {b}")),
            (true, None) => Some("ik_llama.cpp fork".to_owned()),
            (false, Some(b)) => Some(format!("mainline build {b}")),
            (false, None) => None,
        };
        // Backends other than CUDA do not list their cards in this form, but name their buffers.
        let mut names: Vec<&str> = self
            .compute
            .iter()
            .map(|(d, _)| d.as_str())
            .filter(|d| !d.contains("Host") && *d != "CPU" && *d != "BLAS")
            .collect();
        names.sort_unstable();
        names.dedup();
        s.gpu_count = if names.is_empty() && self.compute.is_empty() {
            (!self.cards.is_empty()).then_some(self.cards.len() as u64)
        } else {
            Some(names.len() as u64)
        };
        s.gpu = match self.cards.as_slice() {
            [] => None,
            [one, rest @ ..] if rest.iter().all(|c| c == one) => Some(one.clone()),
            several => Some(several.join(" + ")),
        };
        let r = &mut log.reported;
        r.kv_buffer_mib = if self.kv_totals.is_empty() {
            (!self.kv_buffers.is_empty()).then(|| self.kv_buffers.iter().sum())
        } else {
            Some(self.kv_totals.iter().sum())
        };
        // The first device's; the host's own buffer where nothing is on a device.
        r.compute_buffer_mib = self
            .compute
            .iter()
            .find(|(d, _)| !d.contains("Host") && d != "CPU")
            .or_else(|| self.compute.first())
            .map(|(_, m)| *m);
        if self.model_buffers > 0.0 {
            r.weights_buffer_mib = Some(self.model_buffers);
        }
        if log.failure.is_some() {
            r.start = StartOutcome::OutOfMemory;
        }
        if !self.metadata.is_empty() {
            let mut metadata = self.metadata;
            let architecture = metadata
                .get("general.architecture")
                .and_then(Value::as_str)
                .map(str::to_owned);
            if let (Some(a), Some(v)) = (architecture, self.vocab) {
                metadata
                    .entry(format!("{a}.vocab_size"))
                    .or_insert_with(|| json!(v));
            }
            if let Some(name) = metadata.get("general.name").and_then(Value::as_str)
                && s.model.is_empty()
            {
                s.model = name.chars().take(120).collect();
            }
            log.config = Some(config_of_gguf(&metadata));
        }
        self.log
    }
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
    fn buffers_of_2024() {
        let l = of("build: 3772 (57064fba) with cc\n\
            llama_new_context_with_model: n_ctx      = 2048\n\
            llama_new_context_with_model: n_batch    = 2048\n\
            llama_new_context_with_model: n_ubatch   = 512\n\
            llama_new_context_with_model: flash_attn = 0\n\
            llama_kv_cache_init:      CUDA0 KV buffer size =   640.00 MiB\n\
            llama_new_context_with_model: KV self size  =  640.00 MiB, K (f16):  320.00 MiB, V (f16):  320.00 MiB\n\
            llama_new_context_with_model:      CUDA0 compute buffer size =   162.00 MiB\n\
            llama_new_context_with_model:  CUDA_Host compute buffer size =     9.01 MiB");
        assert_eq!(
            l.setup.engine_version.as_deref(),
            Some("mainline build 3772")
        );
        assert_eq!(l.setup.max_model_len, Some(2048));
        assert_eq!(l.setup.flash_attn, Some(false));
        assert_eq!(l.setup.kv_cache_dtype.as_deref(), Some("K:f16, V:f16"));
        assert_eq!(l.reported.kv_buffer_mib, Some(640.0));
        assert_eq!(l.reported.compute_buffer_mib, Some(162.0));
    }

    #[test]
    fn window_caches_add_up() {
        let l = of(
            "llama_kv_cache: size =  128.00 MiB (  8192 cells,   8 layers,  4/1 seqs), K (f16):   64.00 MiB, V (f16):   64.00 MiB\n\
            llama_kv_cache: size = 1920.00 MiB (  6144 cells,  40 layers,  4/1 seqs), K (f16):  960.00 MiB, V (f16):  960.00 MiB",
        );
        assert_eq!(l.reported.kv_buffer_mib, Some(2048.0));
    }

    #[test]
    fn the_fork_is_recognised_by_its_own_lines() {
        let l = of("main: build = 3597 (127c6ee6)\n\
            llama_new_context_with_model: n_ctx      = 32768\n\
            llama_new_context_with_model: mla_attn   = 3\n\
            llama_new_context_with_model: attn_max_b = 512\n\
            llama_new_context_with_model: KV self size  = 1166,62 MiB, c^KV (q8_0): 1166,62 MiB, kv^T: not used");
        assert!(l.setup.engine_version.is_some_and(|v| v.starts_with("ik")));
        assert_eq!(l.setup.mla_attn, Some(3));
        assert_eq!(l.setup.kv_cache_dtype.as_deref(), Some("c^KV:q8_0"));
        assert_eq!(l.reported.kv_buffer_mib, Some(1166.62));
    }

    #[test]
    fn metadata_becomes_a_config() {
        let l = of(
            "llama_model_loader: - kv   0:                       general.architecture str              = llama\n\
            llama_model_loader: - kv   3:                          llama.block_count u32              = 32\n\
            llama_model_loader: - kv   4:                     llama.embedding_length u32              = 4096\n\
            llama_model_loader: - kv   9:                 llama.attention.head_count u32              = 32\n\
            llama_model_loader: - kv  12:                      tokenizer.ggml.tokens arr[str,128256]  = [\"!\", ...",
        );
        let c = l.config.expect("metadata").expect("a known architecture");
        assert_eq!(c["num_hidden_layers"], 32);
        assert_eq!(c["vocab_size"], 128_256);
    }
}
