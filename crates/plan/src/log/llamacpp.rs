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
    /// Whether it was started so that it prints no buffers.
    quiet: bool,
}

/// The verbosity from which on `llama-server` prints what it allocates (`common/log.cpp`).
const BUFFERS_AT: u64 = 4;

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
    "resolve_fused_ops",
    "common_param",
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
        if let Some(rest) = after(line, "llama_model_loader: loaded meta data with ") {
            return self.file(rest);
        }
        if self.card(line) {
            return true;
        }
        if !MODULES.iter().any(|m| line.contains(m)) {
            return false;
        }
        self.build(line)
            || self.decided(line)
            || self.buffers(line)
            || self.parameters(line)
            || self.failure(line)
    }

    /// `29 key-value pairs and 292 tensors from /models/a.gguf (version GGUF V3 (latest))`
    fn file(&mut self, rest: &str) -> bool {
        let path = after(rest, " tensors from ").and_then(|p| p.rsplit_once(" (version "));
        if let (Some((path, _)), None) = (path, &self.log.file) {
            self.log.file = Some(path.to_owned());
        }
        path.is_some()
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
        // Since mid-2026 what is allocated is printed by `-lv 4` only.
        if let Some(rest) = after(line, "common_params_print_info: verbosity = ") {
            self.quiet = count(rest).is_some_and(|n| n < BUFFERS_AT);
            return true;
        }
        if line.contains("ik_llama") {
            self.ik = true;
        }
        for marker in ["build: ", "build = ", "print_info: build "] {
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

    /// What is decided only while buffers are made: whether flash attention is used, where that was left to it.
    fn decided(&mut self, line: &str) -> bool {
        if line.contains("using full-size SWA cache") {
            self.log.setup.swa_full = true;
            return true;
        }
        // `Flash Attention was auto, set to enabled`, since September 2025; `Flash Attention enabled`, since mid-2026.
        let Some(rest) = after(line, "Flash Attention ") else {
            return false;
        };
        let on = rest.starts_with("enabled") || rest.ends_with("set to enabled");
        let off = rest.ends_with("set to disabled");
        if self.contexts <= 1 && (on || off) {
            self.log.setup.flash_attn = Some(on);
        }
        on || off
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
                "size" if head.ends_with("file size") || head.ends_with("model size") => {
                    // The first: a draft's comes after.
                    let s = &mut self.log.setup;
                    s.file_gib = s.file_gib.or(gib(value));
                }
                "general.name" if value != "n/a" => {
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
            "swa_full" => s.swa_full = value == "true",
            "n_outputs_max" => s.n_outputs_max = n.filter(|n| *n > 0),
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
        if self.quiet && self.compute.is_empty() {
            log.notes.push(format!(
                "llama-server prints its buffers from `-lv {BUFFERS_AT}` on: start it so, and compare again"
            ));
        }
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
        if s.model.is_empty()
            && let Some(path) = &log.file
        {
            let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
            s.model = name.chars().take(120).collect();
        }
        self.log
    }
}

/// `3.18 GiB (16.00 BPW)`
fn gib(value: &str) -> Option<f64> {
    let number = decimal(value, true).filter(|n| *n > 0.0)?;
    let unit = value.split_whitespace().nth(1)?;
    match unit {
        "GiB" => Some(number),
        "MiB" => Some(number / 1024.0),
        _ => None,
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

    /// What llama-server of commit 0c1e57098 printed here with `-lv 4`, for a file without weights, on processors.
    const SERVER: &str = "\
        0.00.005.249 I cmn  common_param: common_params_print_info: build 9849 (0c1e570) with GNU 12.2.0 for Linux x86_64\n\
        0.00.005.262 I cmn  common_param: common_params_print_info: verbosity = 4 (adjust with the `-lv N` CLI arg)\n\
        0.00.030.613 I llama_model_loader: loaded meta data with 11 key-value pairs and 30 tensors from /models/some model.gguf (version GGUF V3 (latest))\n\
        0.00.030.628 I llama_model_loader: - kv   0:                       general.architecture str              = gemma3\n\
        0.00.030.637 I print_info: file size   = 3.18 GiB (16.00 BPW) \n\
        0.00.040.241 I print_info: general.name          = n/a\n\
        0.00.064.652 I llama_context: n_seq_max             = 2\n\
        0.00.064.653 I llama_context: n_ctx                 = 4096\n\
        0.00.064.654 I llama_context: flash_attn            = auto\n\
        0.00.064.656 I llama_context: kv_unified            = false\n\
        0.00.064.656 I llama_context: n_outputs_max         = 2\n\
        0.00.064.657 I llama_context: n_outputs_max_per_seq = 1\n\
        0.00.065.100 W llama_kv_cache_iswa: using full-size SWA cache (ref: https://github.com/ggml-org/llama.cpp/pull/13194)\n\
        0.00.124.948 I llama_kv_cache: size =   48.00 MiB (  2048 cells,   3 layers,  2/2 seqs), K (f16):   24.00 MiB, V (f16):   24.00 MiB\n\
        0.00.125.581 I resolve_fused_ops: Flash Attention enabled\n\
        0.00.125.911 I sched_reserve:        CPU compute buffer size =   118.01 MiB";

    #[test]
    fn a_servers_rows_of_logits_windows_and_file_are_read() {
        let l = of(SERVER);
        let s = &l.setup;
        assert_eq!(s.engine_version.as_deref(), Some("mainline build 9849"));
        assert_eq!((s.n_outputs_max, s.swa_full), (Some(2), true));
        assert_eq!((s.flash_attn, s.kv_unified), (Some(true), Some(false)));
        assert_eq!((s.gpu_count, s.file_gib), (Some(0), Some(3.18)));
        assert_eq!(l.file.as_deref(), Some("/models/some model.gguf"));
        assert_eq!(s.model, "some model.gguf");
        assert_eq!(l.reported.compute_buffer_mib, Some(118.01));
        assert!(l.notes.is_empty(), "{:?}", l.notes);
    }

    #[test]
    fn flash_attention_that_was_left_open_is_what_it_was_set_to() {
        let set = |line: &str| of(&format!("llama_context: flash_attn    = auto\n{line}")).setup;
        let line = "sched_reserve: Flash Attention was auto, set to disabled";
        assert_eq!(set(line).flash_attn, Some(false));
        let line = "llama_context: Flash Attention was auto, set to enabled";
        assert_eq!(set(line).flash_attn, Some(true));
        let line = "resolve_fused_ops: Flash Attention not supported, set to disabled";
        assert_eq!(set(line).flash_attn, Some(false));
        let line = "sched_reserve: layer 2 is assigned to device CUDA0 but the Flash Attention tensor is assigned to device CPU";
        assert_eq!(set(line).flash_attn, None);
    }

    /// Since mid-2026 a server prints its buffers only when it is told to.
    #[test]
    fn a_quiet_servers_log_says_what_is_missing() {
        let quiet = SERVER.lines().next().unwrap().to_owned()
            + "\n0.00.006.226 I cmn  common_param: common_params_print_info: verbosity = 3 (adjust with the `-lv N` CLI arg)";
        let l = of(&quiet);
        assert!(l.notes[0].contains("-lv 4"), "{:?}", l.notes);
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
