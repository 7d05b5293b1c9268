//! One report: what was started, and what it printed.

use std::fmt;

use serde_json::{Map, Value};

/// Most characters of one line.
const MAX_LINE: usize = 1 << 20;

/// What a server was started with. Nothing in it was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Setup {
    /// The record's name.
    pub id: String,
    /// Engine as written.
    pub engine: String,
    /// Engine version as written.
    pub engine_version: Option<String>,
    /// Model as written.
    pub model: String,
    /// Whether the model was worked out from sizes instead of being printed.
    pub model_inferred: bool,
    /// Weight format as written.
    pub quantization: Option<String>,
    /// `--dtype`.
    pub dtype: Option<String>,
    /// `--kv-cache-dtype`, or llama.cpp's `K:f16, V:f16`.
    pub kv_cache_dtype: Option<String>,
    /// The card as written.
    pub gpu: Option<String>,
    /// Cards.
    pub gpu_count: Option<u64>,
    /// `--tensor-parallel-size`.
    pub tensor_parallel: Option<u64>,
    /// `--pipeline-parallel-size`.
    pub pipeline_parallel: Option<u64>,
    /// `--data-parallel-size`.
    pub data_parallel: Option<u64>,
    /// `--decode-context-parallel-size`.
    pub decode_context_parallel: Option<u64>,
    /// `--enable-expert-parallel`.
    pub expert_parallel: bool,
    /// `--max-model-len`, or llama.cpp's `n_ctx`.
    pub max_model_len: Option<u64>,
    /// `--max-num-seqs`, or llama.cpp's slots.
    pub max_num_seqs: Option<u64>,
    /// `--max-num-batched-tokens`.
    pub max_num_batched_tokens: Option<u64>,
    /// `--block-size`.
    pub block_size: Option<u64>,
    /// `--gpu-memory-utilization`.
    pub gpu_memory_utilization: Option<f64>,
    /// `--enforce-eager`.
    pub enforce_eager: bool,
    /// llama.cpp's logical batch.
    pub n_batch: Option<u64>,
    /// llama.cpp's physical batch.
    pub n_ubatch: Option<u64>,
    /// llama.cpp's flash attention.
    pub flash_attn: Option<bool>,
    /// llama.cpp's one KV buffer for all slots.
    pub kv_unified: Option<bool>,
    /// llama.cpp's full-size cache for layers with windows.
    pub swa_full: bool,
    /// llama.cpp's rows of logits at once, where its caller bounds them.
    pub n_outputs_max: Option<u64>,
    /// The ik fork's `-mla`.
    pub mla_attn: Option<u64>,
    /// The ik fork's `-amb`, MiB.
    pub attn_max_batch: Option<u64>,
    /// llama.cpp's `offloaded/all` layers, output included.
    pub layers_offloaded: Option<(u64, u64)>,
    /// Bytes of a GGUF file's tensors, GiB: known before anything is started.
    pub file_gib: Option<f64>,
    /// Total memory of the card as a process sees it, GiB: a fact of the card, printed or not.
    pub total_gpu_memory_gib: Option<f64>,
    /// Free memory before anything was loaded, GiB (SGLang prints it).
    pub free_before_gib: Option<f64>,
    /// Free memory once weights were loaded, GiB (SGLang prints it).
    pub free_after_gib: Option<f64>,
    /// `--max-total-tokens` (SGLang).
    pub max_total_tokens: Option<u64>,
}

/// What it printed. Absent where the source does not show it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reported {
    /// Weights of the first worker, GiB.
    pub weights_gib: Option<f64>,
    /// Activation peak, GiB.
    pub activation_gib: Option<f64>,
    /// Non-torch memory, GiB.
    pub non_torch_gib: Option<f64>,
    /// CUDA graphs, GiB.
    pub cuda_graph_gib: Option<f64>,
    /// vLLM's estimate of graph memory before capturing, GiB.
    pub graph_estimate_gib: Option<f64>,
    /// What was left for the KV cache, GiB; negative where nothing was.
    pub kv_available_gib: Option<f64>,
    /// Tokens of the KV cache.
    pub kv_tokens: Option<f64>,
    /// Blocks of the KV cache.
    pub gpu_blocks: Option<f64>,
    /// Requests of the longest length.
    pub max_concurrency: Option<f64>,
    /// KV buffers, MiB.
    pub kv_buffer_mib: Option<f64>,
    /// Compute buffer of the first device, MiB.
    pub compute_buffer_mib: Option<f64>,
    /// Model buffers over all devices, MiB.
    pub weights_buffer_mib: Option<f64>,
    /// Whether the server came up.
    pub start: StartOutcome,
}

/// Whether the server came up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartOutcome {
    /// Nothing says otherwise.
    #[default]
    Started,
    /// It refused to start for want of memory.
    OutOfMemory,
    /// It failed although its memory sufficed: the cause lies elsewhere.
    FailedOtherwise,
}

/// A report.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What was started.
    pub setup: Setup,
    /// What it printed.
    pub reported: Reported,
}

/// A line that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct LineError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

/// An object and the line that it stands on.
type Numbered = (usize, Map<String, Value>);

/// Every object of a file with one JSON object per line; empty lines are skipped.
pub(super) fn objects(text: &str) -> Result<Vec<Numbered>, LineError> {
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let bad = |reason: String| LineError {
            line: i + 1,
            reason,
        };
        if line.len() > MAX_LINE {
            return Err(bad(format!("longer than {MAX_LINE} bytes")));
        }
        match serde_json::from_str(line) {
            Ok(Value::Object(map)) => out.push((i + 1, map)),
            Ok(_) => return Err(bad("expected a JSON object".to_owned())),
            Err(e) => return Err(bad(format!("no JSON object: {e}"))),
        }
    }
    Ok(out)
}

/// Reads a file of reports.
///
/// # Errors
/// [`LineError`] at the first line that is no object, lacks `engine` or `model`, or has a field of
/// the wrong type.
pub fn parse_records(text: &str) -> Result<Vec<Record>, LineError> {
    objects(text)?
        .into_iter()
        .map(|(line, map)| record(&Fields(&map), line).map_err(|reason| LineError { line, reason }))
        .collect()
}

/// Typed access to one object; `null` counts as absent.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<String>, String> {
        self.get(key)
            .map(|v| match v {
                Value::String(s) => Ok(s.clone()),
                _ => Err(format!("`{key}`: expected a string")),
            })
            .transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.get(key)
            .map(|v| {
                v.as_f64()
                    .filter(|f| f.is_finite())
                    .ok_or_else(|| format!("`{key}`: expected a number"))
            })
            .transpose()
    }

    fn count(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key)
            .map(|v| {
                v.as_u64()
                    .filter(|n| *n <= 1 << 40)
                    .ok_or_else(|| format!("`{key}`: expected a whole number, 0 or more"))
            })
            .transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.get(key)
            .map(|v| {
                v.as_bool()
                    .ok_or_else(|| format!("`{key}`: expected true or false"))
            })
            .transpose()
    }

    /// A number, or an object of numbers added up.
    fn sum(&self, key: &str) -> Result<Option<f64>, String> {
        match self.get(key) {
            Some(Value::Object(parts)) => parts
                .values()
                .map(|v| {
                    v.as_f64()
                        .ok_or_else(|| format!("`{key}`: expected numbers"))
                })
                .sum::<Result<f64, _>>()
                .map(Some),
            _ => self.number(key),
        }
    }
}

fn record(f: &Fields<'_>, line: usize) -> Result<Record, String> {
    let notes = f.text("notes")?.unwrap_or_default();
    let need = |key: &str| f.text(key)?.ok_or_else(|| format!("`{key}` is missing"));
    let setup = Setup {
        id: f.text("id")?.unwrap_or_else(|| format!("line {line}")),
        engine: need("engine")?,
        engine_version: f.text("engine_version")?,
        model: need("model")?,
        model_inferred: f.flag("model_inferred")?.unwrap_or(false),
        quantization: f.text("quantization")?,
        dtype: f.text("dtype")?,
        kv_cache_dtype: f.text("kv_cache_dtype")?,
        gpu: f.text("gpu")?.or_else(|| class_of_card(&notes)),
        gpu_count: f.count("gpu_count")?,
        tensor_parallel: f.count("tensor_parallel")?,
        pipeline_parallel: f.count("pipeline_parallel")?,
        data_parallel: f.count("data_parallel")?,
        decode_context_parallel: f.count("decode_context_parallel")?.or_else(|| {
            number_after(&notes, "decode context parallel ").and_then(|n| n.parse().ok())
        }),
        expert_parallel: f.flag("expert_parallel")?.unwrap_or(false),
        max_model_len: f.count("max_model_len")?,
        max_num_seqs: f.count("max_num_seqs")?,
        max_num_batched_tokens: f.count("max_num_batched_tokens")?,
        block_size: f.count("block_size")?,
        gpu_memory_utilization: f.number("gpu_memory_utilization")?,
        enforce_eager: f.flag("enforce_eager")?.unwrap_or(false),
        n_batch: f.count("n_batch")?,
        n_ubatch: f.count("n_ubatch")?,
        flash_attn: f.flag("flash_attn")?,
        kv_unified: f.flag("kv_unified")?,
        swa_full: f.flag("swa_full")?.unwrap_or(false),
        n_outputs_max: f.count("n_outputs_max")?,
        mla_attn: f.count("mla_attn")?,
        attn_max_batch: f.count("attn_max_batch")?,
        layers_offloaded: f.text("layers_offloaded")?.and_then(|t| {
            let (a, b) = t.split_once('/')?;
            Some((a.trim().parse().ok()?, b.trim().parse().ok()?))
        }),
        file_gib: f.text("model_file_size")?.and_then(|t| size_gib(&t)),
        total_gpu_memory_gib: f
            .number("total_gpu_memory_gib")?
            .or_else(|| total_memory(&notes)),
        free_before_gib: before(&notes, " GB before load"),
        free_after_gib: before(&notes, " GB after load"),
        max_total_tokens: number_after(&notes, "max_total_tokens capped at ")
            .and_then(|n| n.parse().ok()),
    };
    let mut reported = Reported {
        weights_gib: f.number("weights_gib_per_gpu")?,
        activation_gib: f.number("activation_peak_gib")?,
        non_torch_gib: f.number("non_torch_gib")?,
        cuda_graph_gib: f.number("cuda_graph_gib")?,
        graph_estimate_gib: f.number("graph_estimate_gib")?,
        kv_available_gib: f.number("kv_available_gib")?,
        kv_tokens: f.number("kv_tokens")?,
        gpu_blocks: f.number("gpu_blocks")?,
        max_concurrency: f.number("max_concurrency")?,
        kv_buffer_mib: f.sum("kv_buffer_mib")?,
        compute_buffer_mib: f.number("compute_buffer_mib")?,
        weights_buffer_mib: f
            .sum("weights_buffer_mib")?
            .filter(|_| !only_host_buffers(f, &setup)),
        start: StartOutcome::Started,
    };
    if reported.graph_estimate_gib.is_none() {
        reported.graph_estimate_gib = graph_estimate(&notes);
    }
    reported.start = start(&setup, &reported, &notes);
    Ok(Record { setup, reported })
}

/// Whether layers are on devices and only the host's buffers are listed: then the list is not whole.
fn only_host_buffers(f: &Fields<'_>, setup: &Setup) -> bool {
    let on_devices = setup.layers_offloaded.is_some_and(|(n, _)| n > 0);
    let host = |name: &str| name.starts_with("CPU") || name.ends_with("_Host");
    match f.get("weights_buffer_mib") {
        Some(Value::Object(parts)) => on_devices && parts.keys().all(|k| host(k)),
        _ => false,
    }
}

/// `357.623 GiB (4.578 BPW)`, a decimal comma allowed.
fn size_gib(text: &str) -> Option<f64> {
    let (number, rest) = text.trim().split_once(' ')?;
    let number: f64 = number.replace(',', ".").parse().ok()?;
    match rest.split([' ', '(']).next() {
        Some("GiB") => Some(number),
        Some("MiB") => Some(number / 1024.0),
        _ => None,
    }
    .filter(|g| *g > 0.0)
}

/// The number that ends where `marker` begins: a condition of the start that reports carry in a remark.
fn before(notes: &str, marker: &str) -> Option<f64> {
    let head = &notes[..notes.find(marker)?];
    let number = head.rsplit(|c: char| !(c.is_ascii_digit() || c == '.'));
    number.into_iter().next()?.parse().ok()
}

/// The digits that follow `marker`.
fn number_after<'a>(notes: &'a str, marker: &str) -> Option<&'a str> {
    let rest = &notes[notes.find(marker)? + marker.len()..];
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    Some(&rest[..end])
}

/// The size that a remark names of a card that it does not: `288 GB-class GPUs`.
fn class_of_card(notes: &str) -> Option<String> {
    let marker = " GB-class";
    let number = before(notes, marker).filter(|g| *g > 0.0)?;
    let rest = &notes[notes.find(marker)? + marker.len()..];
    let of_cards = ["gpu", "card", "device"];
    let word = rest.trim_start().to_ascii_lowercase();
    of_cards
        .iter()
        .any(|w| word.starts_with(w))
        .then(|| format!("{number} GB-class GPU"))
}

/// What vLLM printed of the card before it divided it: `total_gpu_memory (23.69GiB)`.
fn total_memory(notes: &str) -> Option<f64> {
    let marker = "total_gpu_memory (";
    let rest = &notes[notes.find(marker)? + marker.len()..];
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let unit = rest[end..].trim_start();
    rest[..end]
        .parse()
        .ok()
        .filter(|_| unit.starts_with("GiB") || unit.starts_with("GB"))
}

/// The estimate of graph memory, which reports carry in a remark.
fn graph_estimate(notes: &str) -> Option<f64> {
    let rest = ["graph pre-estimate ", "graph figure in the summary "]
        .iter()
        .find_map(|m| notes.find(m).map(|at| &notes[at + m.len()..]))?;
    let end = rest
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Whether the server came up, from the sign of its budget, the remark and the id.
fn start(setup: &Setup, r: &Reported, notes: &str) -> StartOutcome {
    let notes = notes.to_ascii_lowercase();
    let refused = [
        "start failed",
        "start refused",
        "failed to start",
        "refused to start",
    ]
    .iter()
    .any(|t| notes.contains(t));
    let negative = r.kv_available_gib.is_some_and(|g| g < 0.0);
    let too_short = r.max_concurrency.is_some_and(|c| c < 1.0);
    let failed = setup.id.ends_with("-failed") || notes.contains("marked failed");
    if negative || refused || too_short {
        StartOutcome::OutOfMemory
    } else if failed {
        StartOutcome::FailedOtherwise
    } else {
        StartOutcome::Started
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_line_and_field() {
        let e = parse_records("\n{\"engine\":\"vllm\",\"model\":\"m\"}\n{\"engine\":1}")
            .expect_err("the third line is wrong");
        assert_eq!(e.line, 3);
        assert!(e.reason.contains("engine"), "{e}");
        let e = parse_records("{").expect_err("no object");
        assert_eq!(e.line, 1);
        assert!(parse_records("[1]").is_err());
    }

    #[test]
    fn a_number_in_a_remark_is_found_behind_any_sign() {
        let number = |notes: &str| before(notes, " GB before load");
        assert_eq!(number("avail mem 77.1 GB before load"), Some(77.1));
        assert_eq!(number("about \u{2248}0.8 GB before load"), Some(0.8));
        assert_eq!(number("3 GB before load"), Some(3.0));
        assert_eq!(number(" GB before load"), None);
        assert_eq!(number("nothing"), None);
    }

    #[test]
    fn what_remarks_say_of_a_card_is_an_input() {
        let setup = |notes: &str| {
            let json = serde_json::json!({"engine": "sglang", "model": "m", "notes": notes});
            parse_records(&json.to_string()).expect("a record")[0]
                .setup
                .clone()
        };
        let s = setup("avail mem 193.92 GB after load, 3.90 GB after pool (288 GB-class GPUs)");
        assert_eq!(s.gpu.as_deref(), Some("288 GB-class GPU"));
        assert_eq!(s.free_after_gib, Some(193.92));
        let s = setup("total_gpu_memory (23.69GiB) x utilization (0.90)");
        assert_eq!(s.total_gpu_memory_gib, Some(23.69));
        let s = setup("a 7 GB-class model; total_gpu_memory (x); 3 GB after; GB-class GPU");
        assert_eq!(
            (s.gpu, s.total_gpu_memory_gib, s.free_after_gib),
            (None, None, None)
        );
    }

    #[test]
    fn failed_starts_are_recognised() {
        let outcome = |json: &str| parse_records(json).map(|r| r[0].reported.start);
        let head = "{\"engine\":\"vllm\",\"model\":\"m\",\"id\":\"a";
        assert_eq!(
            outcome(&format!("{head}\",\"kv_available_gib\":-1.44}}")),
            Ok(StartOutcome::OutOfMemory)
        );
        assert_eq!(
            outcome(&format!("{head}\",\"notes\":\"x; start refused (y)\"}}")),
            Ok(StartOutcome::OutOfMemory)
        );
        assert_eq!(
            outcome(&format!("{head}-failed\",\"kv_available_gib\":58.4}}")),
            Ok(StartOutcome::FailedOtherwise)
        );
        assert_eq!(outcome(&format!("{head}\"}}")), Ok(StartOutcome::Started));
    }
}
