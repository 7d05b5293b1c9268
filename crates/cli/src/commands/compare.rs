//! `plimsoll compare`: a start-up log against what is predicted for it.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use plimsoll_device::Device;
use plimsoll_model::{Assume, catalogue};
use plimsoll_plan::log::{Advice, StartLog, advice, read};
use plimsoll_plan::measured::{
    EngineName, Judged, Model, Prediction, Setup, Unit, graph_estimate, judge, predict_on,
};
use plimsoll_report::thousands;
use serde_json::{Map, Value, json};

use crate::args::CompareArgs;
use crate::error::{Exit, Failure};
use crate::load::load;
use crate::output::Output;

/// Version of the JSON form.
const SCHEMA: &str = "plimsoll.compare/1";
/// Most of a log that is read: what an engine prints at start is a few hundred lines.
const MAX_LOG: u64 = 16 << 20;

pub(crate) fn run(args: &CompareArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let (text, cut) = text(&args.log)?;
    let mut log = read(&text).map_err(|reason| {
        Failure::new(
            Exit::Corrupt,
            "E-LOG-001",
            format!("{}: {reason}", args.log.display()),
        )
        .hint("give the server's output from its first line on; `-` reads standard input")
    })?;
    if cut {
        log.notes
            .push(format!("only the first {} MiB were read", MAX_LOG >> 20));
    }
    if let Some(v) = args.engine_version {
        log.setup.engine_version = Some(v.to_string());
    }
    let (name, model) = the_model(args, &log)?;
    let device = the_device(args, &log)?;
    let mut prediction = predict_on(&log.setup, Ok(model), device.clone());
    let mut figures = judge(&prediction, &log.reported);
    figures.extend(graph_estimate(&prediction, &log.reported));
    let advice = advice(&log, &mut prediction);
    let report = Report {
        name,
        device: device.ok(),
        log: &log,
        prediction: &prediction,
        figures: &figures,
        advice: &advice,
    };
    if args.json {
        let text = serde_json::to_string_pretty(&report.json()).map_err(|e| {
            Failure::new(Exit::Failure, "E-IO-002", format!("cannot write JSON: {e}"))
        })?;
        output.line(&text)?;
    } else {
        output.line(&report.table())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The log's text, bytes that are no UTF-8 replaced, and whether it was cut.
fn text(path: &Path) -> Result<(String, bool), Failure> {
    let name = path.display();
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(MAX_LOG + 1).read_to_end(&mut bytes)
    } else {
        let file = std::fs::File::open(path).map_err(|e| {
            Failure::new(Exit::NotFound, "E-LOG-003", format!("{name}: {e}"))
                .hint("give a file with the server's output, or `-` for standard input")
        })?;
        file.take(MAX_LOG + 1).read_to_end(&mut bytes)
    };
    read.map_err(|e| {
        Failure::new(Exit::Failure, "E-LOG-003", format!("{name}: {e}"))
            .hint("give a file with the server's output, or `-` for standard input")
    })?;
    let cut = bytes.len() as u64 > MAX_LOG;
    if cut {
        bytes.truncate(usize::try_from(MAX_LOG).unwrap_or(usize::MAX));
    }
    Ok((String::from_utf8_lossy(&bytes).into_owned(), cut))
}

/// The model: as given, else from the log's own metadata, else by the name that the log shows.
fn the_model(args: &CompareArgs, log: &StartLog) -> Result<(String, Model), Failure> {
    if let Some(model) = &args.model {
        let loaded = load(model, Assume::Nothing, false)?;
        return Ok((loaded.name, Model::Spec(Box::new(loaded.spec))));
    }
    // The file itself says more than what the log shows of it.
    if let Some(path) = log.file.as_deref().filter(|p| Path::new(p).is_file())
        && let Ok(loaded) = load(path, Assume::Nothing, true)
    {
        return Ok((loaded.name, Model::Spec(Box::new(loaded.spec))));
    }
    let named = log.setup.model.clone();
    let shown = if named.is_empty() {
        "the model of the log".to_owned()
    } else {
        named.clone()
    };
    if let Some(Ok(config)) = &log.config {
        return Ok((shown, Model::Config(config.clone())));
    }
    for candidate in candidates(&named) {
        if catalogue::find(&candidate).is_some() {
            let loaded = load(&candidate, Assume::Nothing, true)?;
            return Ok((shown, Model::Spec(Box::new(loaded.spec))));
        }
        // A folder or file that the log names and that is here too.
        if Path::new(&candidate).exists()
            && let Ok(loaded) = load(&candidate, Assume::Nothing, true)
        {
            return Ok((shown, Model::Spec(Box::new(loaded.spec))));
        }
    }
    let failure = match (&log.config, named.is_empty()) {
        (Some(Err(reason)), _) => Failure::new(Exit::NotFound, "E-LOG-002", reason.clone()),
        (_, true) => Failure::new(Exit::NotFound, "E-LOG-002", "the log names no model"),
        (_, false) => Failure::new(
            Exit::NotFound,
            "E-LOG-002",
            format!("the log's model `{named}` is not built in"),
        ),
    };
    Err(failure.hint("add `--model` with a built-in name, a config.json, a folder or a hub id"))
}

/// Names that a log's model may be known by: as written, and as a hub cache folder spells it.
fn candidates(named: &str) -> Vec<String> {
    let mut all = Vec::new();
    if named.is_empty() {
        return all;
    }
    all.push(named.to_owned());
    for part in named.split('/') {
        if let Some(id) = part.strip_prefix("models--") {
            all.push(id.replacen("--", "/", 1));
        }
    }
    if let Some(last) = named.trim_end_matches('/').rsplit('/').next() {
        all.push(last.to_owned());
    }
    all
}

fn the_device(args: &CompareArgs, log: &StartLog) -> Result<Result<Device, String>, Failure> {
    let Some(name) = &args.gpu else {
        return Ok(log.device());
    };
    plimsoll_device::find(name).cloned().map(Ok).ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            "E-DEVICE-001",
            format!("no device is called `{name}`"),
        )
        .hint("`plimsoll devices` lists them")
    })
}

/// TensorRT-LLM's name of a setting of vLLM or SGLang.
const fn trtllms(name: &'static str) -> &'static str {
    match name.as_bytes() {
        b"max_model_len" => "max_seq_len",
        b"max_num_seqs" => "max_batch_size",
        b"max_num_batched_tokens" => "max_num_tokens",
        b"block_size" => "tokens_per_block",
        b"max_total_tokens" => "max_tokens",
        b"gpu_memory_utilization" => "free_gpu_memory_fraction",
        _ => name,
    }
}

struct Report<'a> {
    name: String,
    device: Option<Device>,
    log: &'a StartLog,
    prediction: &'a Prediction,
    figures: &'a [Judged],
    advice: &'a [Advice],
}

impl Report<'_> {
    /// Flags as read, in the words of the engine's own flags.
    fn flags(&self) -> Vec<(&'static str, String)> {
        let s: &Setup = &self.log.setup;
        let engine = self.prediction.engine;
        // What the engines call the same thing.
        let word = |vllm: &'static str, sglangs: &'static str| match engine {
            EngineName::SgLang => sglangs,
            EngineName::TensorRtLlm => trtllms(vllm),
            _ => vllm,
        };
        let mut out: Vec<(&'static str, String)> = Vec::new();
        let mut number = |name, n: Option<u64>| {
            if let Some(n) = n {
                out.push((name, n.to_string()));
            }
        };
        number("tensor_parallel", s.tensor_parallel);
        number("pipeline_parallel", s.pipeline_parallel.filter(|n| *n > 1));
        number("data_parallel", s.data_parallel.filter(|n| *n > 1));
        number(
            "decode_context_parallel",
            s.decode_context_parallel.filter(|n| *n > 1),
        );
        let length = match self.prediction.engine {
            EngineName::LlamaCpp | EngineName::IkLlamaCpp => "n_ctx",
            _ => word("max_model_len", "context_length"),
        };
        number(length, s.max_model_len);
        number(word("max_num_seqs", "max_running_requests"), s.max_num_seqs);
        number(
            word("max_num_batched_tokens", "chunked_prefill_size"),
            s.max_num_batched_tokens,
        );
        number(word("block_size", "page_size"), s.block_size);
        number(
            word("max_total_tokens", "max_total_tokens"),
            s.max_total_tokens,
        );
        number("n_batch", s.n_batch);
        number("n_ubatch", s.n_ubatch);
        number("n_outputs_max", s.n_outputs_max);
        number("mla_attn", s.mla_attn);
        let mut text = |name, t: Option<String>| {
            if let Some(t) = t {
                out.push((name, t));
            }
        };
        text("dtype", s.dtype.clone());
        text("quantization", s.quantization.clone());
        text("kv_cache_dtype", s.kv_cache_dtype.clone());
        text(
            word("gpu_memory_utilization", "mem_fraction_static"),
            s.gpu_memory_utilization.map(|u| u.to_string()),
        );
        text("swa_full", s.swa_full.then(|| "true".to_owned()));
        text("flash_attn", s.flash_attn.map(|f| f.to_string()));
        text(
            "layers_offloaded",
            s.layers_offloaded.map(|(a, b)| format!("{a}/{b}")),
        );
        text(
            "free_before_loading",
            s.free_before_gib.map(|g| format!("{g:.2} GiB")),
        );
        if s.enforce_eager {
            out.push((
                word("enforce_eager", "disable_cuda_graph"),
                "true".to_owned(),
            ));
        }
        out
    }

    fn engine(&self) -> String {
        let name = self.prediction.engine.name();
        match (&self.prediction.release, &self.log.setup.engine_version) {
            (Some(v), _) => format!("{name} {v}"),
            (None, Some(t)) => format!("{name} ({t})"),
            (None, None) => format!("{name}, version unknown"),
        }
    }

    fn table(&self) -> String {
        let mut out = String::new();
        let on = self.device.as_ref().map_or_else(
            || {
                let cpu = self.log.setup.gpu_count == Some(0);
                let place = if cpu { "the host" } else { "an unknown device" };
                format!("on {place}")
            },
            |d| match d.confidence {
                plimsoll_device::Confidence::Given => format!("on {}", d.name),
                _ => format!("on {} ({})", d.name, d.usable),
            },
        );
        let _ = writeln!(out, "{}, {} {on}", self.engine(), self.name);
        let flags: Vec<String> = self
            .flags()
            .into_iter()
            .map(|(k, v)| format!("{k} {v}"))
            .collect();
        let _ = writeln!(out, "{}", flags.join(", "));
        if let Some(f) = &self.log.failure {
            let _ = writeln!(out, "It did not start: {}.", f.text());
        }
        let _ = writeln!(
            out,
            "\n{:<16}{:>14}{:>14}{:>10}  {:<23}",
            "term", "predicted", "reported", "error %", "interval"
        );
        for j in self.figures {
            self.row(j, &mut out);
        }
        if !self.advice.is_empty() {
            let _ = writeln!(out, "\nWhat to change:");
            for a in self.advice {
                let _ = writeln!(out, "  {:<36} {}", a.flag, a.effect);
            }
        }
        let assumed = self
            .prediction
            .assumed
            .iter()
            .map(|a| format!("assumed: {a}"));
        for n in self.log.notes.iter().cloned().chain(assumed) {
            let _ = writeln!(out, "note: {n}");
        }
        out
    }

    fn row(&self, j: &Judged, out: &mut String) {
        let show = |x: f64| match j.figure.unit() {
            Unit::Gib => format!("{x:.2} GiB"),
            Unit::Mib => format!("{x:.2} MiB"),
            Unit::Requests => format!("{x:.2} x"),
            Unit::Tokens if x >= 0.0 => {
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count of tokens, shown"
                )]
                let n = x.min(1e15) as u64;
                thousands(n)
            }
            Unit::Tokens => "0".to_owned(),
        };
        let reported = j.reported.map_or_else(|| "-".to_owned(), show);
        match &j.predicted {
            Ok(e) => {
                let interval = if e.high > e.low {
                    format!("{} to {}", show(e.low), show(e.high))
                } else {
                    e.kind.to_owned()
                };
                let inside = match j.inside {
                    Some(true) => "",
                    Some(false) => ", outside",
                    None => "",
                };
                let error = j
                    .error_pct
                    .map_or_else(|| "-".to_owned(), |e| format!("{e:+.2}"));
                let _ = writeln!(
                    out,
                    "{:<16}{:>14}{:>14}{:>10}  {interval}{inside}",
                    j.figure.name(),
                    show(e.value),
                    reported,
                    error
                );
            }
            Err(reason) => {
                let _ = writeln!(
                    out,
                    "{:<16}{:>14}{:>14}{:>10}  not predicted: {}",
                    j.figure.name(),
                    "-",
                    reported,
                    "-",
                    super::accuracy::short(reason)
                );
            }
        }
    }

    fn json(&self) -> Value {
        let r = &self.log.reported;
        let terms: Map<String, Value> = self
            .figures
            .iter()
            .map(|j| (j.figure.name().to_owned(), super::accuracy::judged_json(j)))
            .collect();
        let flags: Map<String, Value> = self
            .flags()
            .into_iter()
            .map(|(k, v)| (k.to_owned(), json!(v)))
            .collect();
        json!({
            "schema": SCHEMA,
            "engine": self.prediction.engine.name(),
            "engine_version": self.log.setup.engine_version,
            "predicted_with": self.prediction.release.map(|v| v.to_string()),
            "model": self.name,
            "device": self.device.as_ref().map(|d| json!({"name": d.name, "usable_bytes": d.usable.get()})),
            "flags": flags,
            "terms": terms,
            "also_reported": {
                "total_gpu_memory_gib": self.log.setup.total_gpu_memory_gib,
                "cuda_graph_gib": r.cuda_graph_gib,
                "gpu_blocks": r.gpu_blocks,
                "model_buffers_mib": r.weights_buffer_mib,
            },
            "failure": self.log.failure.as_ref().map(|f| f.text()),
            "advice": self.advice.iter().map(|a| json!({"flag": a.flag, "effect": a.effect})).collect::<Vec<_>>(),
            "assumed": self.prediction.assumed,
            "notes": self.log.notes,
        })
    }
}
