//! [`Traffic`]: the requests that a simulated server is given, and where a trace of them is read.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plimsoll_simulate::workload::{
    Repeat, SyntheticSpec, Workload, WorkloadError, WorkloadSource, WorkloadSpec,
};
use plimsoll_units::Bytes;

use crate::error::{Exit, Failure};

/// Requests of a synthetic workload unless told.
const REQUESTS: u64 = 2000;
/// Most of standard input that is held where it is read more than once.
const STDIN_BYTES_MAX: u64 = 1 << 30;

/// Requests, as often as they are opened.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    /// What it is called: the workload as typed, or where the trace is.
    pub(crate) name: String,
    /// Everything that determines it but the bytes of the trace; change it freely.
    pub(crate) spec: WorkloadSpec,
    trace: Option<Trace>,
}

#[derive(Clone, Debug)]
enum Trace {
    File(PathBuf),
    /// Streamed, once.
    Stdin,
    /// Standard input, all of it.
    Held(Arc<[u8]>),
}

impl Traffic {
    /// Requests drawn as `text` says, 2,000 of them.
    pub(crate) fn synthetic(text: &str) -> Result<Self, Failure> {
        let spec: SyntheticSpec = text.parse().map_err(|e| bad_text(&e))?;
        let mut spec = WorkloadSpec::synthetic(spec);
        spec.shaping.limit = Some(REQUESTS);
        Ok(Self {
            name: text.to_owned(),
            spec,
            trace: None,
        })
    }

    /// The trace at `path`, all of it; `-` is standard input.
    pub(crate) fn trace(path: &Path) -> Self {
        let (name, trace) = if path.as_os_str() == "-" {
            ("standard input".to_owned(), Trace::Stdin)
        } else {
            (path.display().to_string(), Trace::File(path.to_owned()))
        };
        Self {
            name,
            spec: WorkloadSpec::trace(),
            trace: Some(trace),
        }
    }

    /// The same at `rate` requests per second.
    pub(crate) fn at_rate(mut self, rate: f64) -> Result<Self, Failure> {
        if !(rate.is_finite() && rate > 0.0) {
            return Err(Failure::new(
                Exit::Usage,
                "E-USAGE-007",
                format!("--rate {rate} is no rate"),
            )
            .hint("write requests per second, above 0; 1e9 sends everything at once"));
        }
        self.spec = self.spec.at_rate(rate);
        Ok(self)
    }

    /// The same with `n` requests; a trace that has fewer starts again, with new content.
    pub(crate) fn limited(mut self, n: u64) -> Self {
        self.spec.shaping.limit = Some(n);
        if self.trace.is_some() {
            self.spec.shaping.repeat = Repeat::FreshContent;
        }
        self
    }

    /// The same from another seed.
    pub(crate) fn seeded(mut self, seed: u64) -> Self {
        self.spec.seed = seed;
        self
    }

    /// Holds standard input, so that it can be opened more than once.
    pub(crate) fn hold(&mut self) -> Result<(), Failure> {
        if matches!(self.trace, Some(Trace::Stdin)) {
            self.trace = Some(Trace::Held(held_stdin()?));
        }
        Ok(())
    }

    /// Senders of requests, each with a number from 0.
    pub(crate) fn tenants(&self) -> usize {
        match &self.spec.source {
            WorkloadSource::Synthetic(s) => s.tenants.len().clamp(1, 1 << 12),
            WorkloadSource::Trace(_) => 1,
        }
    }

    /// Starts it; requests are cut to `longest` tokens.
    pub(crate) fn open(&self, longest: u64) -> Result<Workload, Failure> {
        let source: Option<Box<dyn BufRead + Send>> = match &self.trace {
            None => None,
            Some(Trace::Held(held)) => Some(Box::new(Cursor::new(Arc::clone(held)))),
            Some(Trace::Stdin) => Some(Box::new(BufReader::new(std::io::stdin()))),
            Some(Trace::File(path)) => Some(Box::new(BufReader::new(open_trace(path)?))),
        };
        let mut spec = self.spec.clone();
        spec.shaping.max_model_tokens = Some(longest);
        spec.open(source).map_err(|e| self.failure(&e))
    }

    /// What is wrong with it, and the next step.
    pub(crate) fn failure(&self, e: &WorkloadError) -> Failure {
        if self.trace.is_none() {
            return bad_text(e);
        }
        let (exit, hint) = match e {
            WorkloadError::Read { .. } => (Exit::Failure, "check the disk, or copy the file again"),
            WorkloadError::NoRate => (Exit::Usage, "add `--rate 2`, for two requests per second"),
            WorkloadError::TimeOverflow { .. } => (Exit::Usage, "choose a higher `--rate`"),
            WorkloadError::RepeatTooLong { .. } => (Exit::Usage, "choose fewer `--requests`"),
            WorkloadError::Empty { .. } => {
                (Exit::Corrupt, "give a trace with at least one request")
            }
            WorkloadError::Unsorted { .. } => {
                (Exit::Corrupt, "sort the rows by their arrival times")
            }
            WorkloadError::UnknownFormat { .. }
            | WorkloadError::MissingColumn { .. }
            | WorkloadError::Images => (
                Exit::Corrupt,
                "give an Azure or BurstGPT CSV, a Mooncake JSONL, or lengths under prompt_len and output_len",
            ),
            _ => (
                Exit::Corrupt,
                "mend or remove that row, or fetch the file again",
            ),
        };
        Failure::new(exit, "E-SIM-010", format!("{}: {e}", self.name)).hint(hint)
    }
}

fn bad_text(e: &WorkloadError) -> Failure {
    let hint = match e {
        WorkloadError::TimeOverflow { .. } => "choose a higher `--rate`",
        _ => {
            "write sharegpt, alpaca, azure-code, azure-conv, or synthetic:in=64,out=lognormal(200,0.8)"
        }
    };
    Failure::new(Exit::Usage, "E-SIM-011", e.to_string()).hint(hint)
}

fn open_trace(path: &Path) -> Result<File, Failure> {
    let failed = |why: String| {
        Failure::new(
            Exit::NotFound,
            "E-SIM-009",
            format!("cannot open the trace {}: {why}", path.display()),
        )
        .hint("check the path; `--workload azure-conv` needs no file")
    };
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(failed("it is a folder".to_owned()));
    }
    Ok(file)
}

/// All of standard input.
fn held_stdin() -> Result<Arc<[u8]>, Failure> {
    let mut held = Vec::new();
    std::io::stdin()
        .take(STDIN_BYTES_MAX + 1)
        .read_to_end(&mut held)
        .map_err(|e| {
            Failure::new(
                Exit::Failure,
                "E-SIM-009",
                format!("cannot read standard input: {e}"),
            )
            .hint("write the trace to a file first")
        })?;
    if held.len() as u64 > STDIN_BYTES_MAX {
        return Err(Failure::new(
            Exit::Usage,
            "E-SIM-013",
            format!(
                "standard input holds more than {}, and every run reads it",
                Bytes::new(STDIN_BYTES_MAX)
            ),
        )
        .hint(
            "write the trace to a file, or run one server by `--servers paged`: both are streamed",
        ));
    }
    Ok(held.into())
}
