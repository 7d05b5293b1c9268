//! `plimsoll bench`: how fast a model runs here, and what share of the machine's own bounds that is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use plimsoll_kv::Scope;
use plimsoll_report::short_bytes;
use plimsoll_runtime::Peaks;
use plimsoll_runtime::sample::{Sampling, SamplingParams};
use plimsoll_runtime::text::Stops;
use plimsoll_schedule::{CostModel, Fan, Notice, Request, RequestId, StepLoad};
use plimsoll_units::WeightType;
use serde_json::{Value, json};

use super::engine::{Start, Started, start};
use crate::args::bench::BenchArgs;
use crate::demo;
use crate::error::{Exit, Failure};
use crate::output::Output;
use crate::progress::Progress;

/// Tokens that a case begins with, untimed.
const WARM: u32 = 8;

/// Prompt of the decode case.
const DECODE_PROMPT: u32 = 32;

/// Requests that come at once, all alike.
#[derive(Clone, Copy)]
struct Case {
    requests: u32,
    prompt: u32,
    output: u32,
}

/// What one run of a case took.
struct Timed {
    /// Until the last request had its first token.
    first_s: f64,
    /// From then to the end.
    decode_s: f64,
}

/// A case's runs as rates in tokens per second.
struct Rates {
    name: String,
    case: Case,
    /// Of every run.
    tokens_per_s: Vec<f64>,
    /// What bounds it, and the share of the bound that the median reaches.
    bound: Option<(&'static str, f64)>,
}

pub(crate) fn run(args: &BenchArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let widest = args.concurrency.iter().copied().max().unwrap_or(1);
    let longest = [
        DECODE_PROMPT.saturating_add(args.output_len),
        args.prefill.saturating_add(1),
        args.prompt_len.saturating_add(args.output_len),
    ];
    let context = longest.into_iter().max().unwrap_or(1);
    if demo::is_meant(&args.model) {
        output.talk(demo::NOTE);
    }
    let mut server = start(&Start {
        model: &args.model,
        engine: &args.engine,
        sequences: widest,
        queued: None,
        context: Some(u64::from(context)),
        log: None,
        logprobs: None,
        http: None,
        tenants: None,
    })?;
    if let Some(note) = &server.note {
        output.talk(note);
    }
    let peaks = server.engine.executor_mut().peaks();
    let peaks = peaks.map_err(|e| Failure::new(Exit::Failure, "E-GEN-005", e.to_string()))?;
    let mut bench = Bench {
        repeats: args.repeats,
        server: &mut server,
        requests: 0,
        progress: Progress::new(),
    };
    let mut all = Vec::new();
    let decode = Case {
        requests: 1,
        prompt: DECODE_PROMPT,
        output: args.output_len,
    };
    let per_token = |n: u32| move |t: &Timed| f64::from(n - 1) / t.decode_s;
    let runs = bench.runs("decode", decode)?;
    let rates = runs.iter().map(per_token(args.output_len)).collect();
    all.push(Rates::new("decode", decode, rates).reads(&bench.server.cost, peaks));
    let prefill = Case {
        requests: 1,
        prompt: args.prefill,
        output: 1,
    };
    let runs = bench.runs("prefill", prefill)?;
    let rates = runs
        .iter()
        .map(|t| f64::from(args.prefill) / t.first_s)
        .collect();
    let rates = Rates::new("prefill", prefill, rates);
    all.push(if bench.server.forms == [WeightType::Bf16] {
        rates.computes(&bench.server.cost, peaks)
    } else {
        // Their products are of whole numbers, or of what is widened first: peaks that are not measured.
        rates
    });
    for &requests in &args.concurrency {
        let case = Case {
            requests,
            prompt: args.prompt_len,
            output: args.output_len,
        };
        let name = format!("batch of {requests}");
        let runs = bench.runs(&name, case)?;
        let tokens = f64::from(requests) * f64::from(args.output_len);
        let rates = runs
            .iter()
            .map(|t| tokens / (t.first_s + t.decode_s))
            .collect();
        all.push(Rates::new(&name, case, rates));
    }
    drop(bench);
    let text = if args.json {
        let usage: Vec<_> = server
            .memory()
            .usage
            .iter()
            .map(|u| json!({ "region": u.region.name(), "committed_bytes": u.committed.get() }))
            .collect();
        let value = json!({
            "schema": "plimsoll.bench/1",
            "model": args.model,
            "threads": server.threads,
            "cpu_level": server.level.name(),
            "read_bytes_per_s": peaks.read_bytes_per_s,
            "inputs": server.inputs.name(),
            "flops_per_s": peaks.flops_per_s,
            "cases": all.iter().map(Rates::json).collect::<Vec<_>>(),
            "memory": usage,
            "resident_bytes_peak": plimsoll_host::memory::resident().map(|(_, peak)| peak.get()),
        });
        format!("{value:#}")
    } else {
        table(&server, peaks, &all)
    };
    output.line(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn table(server: &Started, peaks: Peaks, all: &[Rates]) -> String {
    let mut text = format!(
        "{} threads, {}: reads weights at {}/s, {:.0} GFLOP/s of {} multiply-adds\n",
        server.threads,
        server.level.name(),
        short_bytes(peaks.read_bytes_per_s),
        peaks.flops_per_s as f64 / 1e9,
        server.inputs.name(),
    );
    let _ = write!(
        text,
        "{:<14} {:>14} {:>10} {:>20}  share of the bound",
        "case", "in + out", "tokens/s", "least to most"
    );
    for r in all {
        let (least, median, most) = r.spread();
        let shape = format!("{} + {}", r.case.prompt, r.case.output);
        let spread = format!("{least:.1} to {most:.1}");
        let _ = write!(
            text,
            "\n{:<14} {shape:>14} {median:>10.1} {spread:>20}",
            r.name
        );
        if let Some((what, share)) = r.bound {
            let _ = write!(text, "  {:.0} % of {what}", share * 100.0);
        }
    }
    text
}

impl Rates {
    fn new(name: &str, case: Case, mut tokens_per_s: Vec<f64>) -> Self {
        tokens_per_s.sort_by(f64::total_cmp);
        Self {
            name: name.to_owned(),
            case,
            tokens_per_s,
            bound: None,
        }
    }

    /// Bounded by reading weights and cached keys and values, one token after the other.
    fn reads(mut self, cost: &CostModel, peaks: Peaks) -> Self {
        let mut load = StepLoad::default();
        let context = u64::from(self.case.prompt + self.case.output / 2);
        cost.add_row(&mut load, context, 1, 1);
        let bytes = (cost.work.weight_bytes + load.kv_bytes) as f64;
        let share = self.spread().1 * bytes / peaks.read_bytes_per_s as f64;
        self.bound = Some(("reading", share));
        self
    }

    /// Bounded by arithmetic.
    fn computes(mut self, cost: &CostModel, peaks: Peaks) -> Self {
        let mut load = StepLoad::default();
        cost.add_row(&mut load, 0, u64::from(self.case.prompt), 1);
        let flops = load.tokens as f64 * cost.work.token_flops as f64
            + cost.work.head_flops as f64
            + load.attention_flops as f64;
        let per_token = flops / f64::from(self.case.prompt);
        let share = self.spread().1 * per_token / peaks.flops_per_s as f64;
        self.bound = Some(("multiply-adds", share));
        self
    }

    /// Least, median, most.
    fn spread(&self) -> (f64, f64, f64) {
        let sorted = &self.tokens_per_s;
        let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
        (
            at(0),
            at(sorted.len() / 2),
            at(sorted.len().saturating_sub(1)),
        )
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "requests": self.case.requests,
            "prompt_tokens": self.case.prompt,
            "output_tokens": self.case.output,
            "tokens_per_s": self.spread().1,
            "runs_tokens_per_s": self.tokens_per_s,
            "bound": self.bound.map(|b| b.0),
            "share_of_bound": self.bound.map(|b| b.1),
        })
    }
}

/// Cases on a server, one after the other.
struct Bench<'a> {
    repeats: u32,
    server: &'a mut Started,
    /// Requests so far: each has a prompt of its own.
    requests: u64,
    progress: Progress,
}

impl Bench<'_> {
    fn runs(&mut self, name: &str, case: Case) -> Result<Vec<Timed>, Failure> {
        let mut all = Vec::new();
        for i in 0..=self.repeats {
            self.progress
                .show(|| format!("{name}: {i} of {}", self.repeats));
            if i == 0 {
                // Warms up, with few tokens.
                let output = case.output.min(WARM);
                self.one(Case { output, ..case })?;
                continue;
            }
            all.push(self.one(case)?);
        }
        Ok(all)
    }

    fn one(&mut self, case: Case) -> Result<Timed, Failure> {
        let began = Instant::now();
        for _ in 0..case.requests {
            self.submit(case)?;
        }
        let (mut begun, mut over) = (BTreeSet::new(), Vec::new());
        let mut first = began;
        loop {
            let before = begun.len();
            let stepped = self.server.engine.step(|notice| match notice {
                Notice::Token { request, .. } => {
                    begun.insert(request);
                }
                Notice::Finished(ended) => over.push(ended.request),
                _ => {}
            });
            if begun.len() > before {
                first = Instant::now();
            }
            if !stepped.map_err(|e| broken(&e))? {
                break;
            }
        }
        let decode_s = first.elapsed().as_secs_f64();
        let chooser = self.server.engine.executor_mut().chooser_mut();
        if let Some((_, e)) = chooser.take_failed().pop() {
            return Err(Failure::new(Exit::Corrupt, "E-GEN-006", e.to_string()));
        }
        over.into_iter().for_each(|id| chooser.forget(id));
        Ok(Timed {
            first_s: first.duration_since(began).as_secs_f64(),
            decode_s,
        })
    }

    /// One more request: tokens without meaning, other ones each time, the likeliest token always.
    fn submit(&mut self, case: Case) -> Result<(), Failure> {
        let bad = |e: String| Failure::new(Exit::Usage, "E-GEN-003", e);
        let id = RequestId(self.requests);
        self.requests += 1;
        let mut state = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let vocab = u64::from(self.server.vocab.max(1));
        let tokens: Vec<u32> = (0..case.prompt)
            .map(|_| {
                // Knuth's generator: its high bits are good enough to be different.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                u32::try_from((state >> 33) % vocab).unwrap_or(0)
            })
            .collect();
        let greedy = Sampling {
            temperature: 0.0,
            ignore_eos: true,
            ..Sampling::default()
        };
        let params = SamplingParams::new(
            greedy,
            self.server.vocab,
            &self.server.generation.eos,
            case.output,
        )
        .map_err(|e| bad(e.to_string()))?;
        let engine = &mut self.server.engine;
        let chooser = engine.executor_mut().chooser_mut();
        chooser.expect(id, &tokens, params, Stops::default());
        let request = Request::new(
            id,
            tokens.into(),
            case.output,
            Fan::Sample { n: 1, best_of: 1 },
            Scope::default(),
            &self.server.limits,
        )
        .map_err(|e| bad(e.to_string()).hint("raise `--max-model-len`"))?;
        engine
            .submit(request)
            .map_err(|e| bad(e.to_string()).hint("raise `--kv-memory`, or ask for fewer tokens"))
    }
}

fn broken(e: &impl ToString) -> Failure {
    Failure::new(Exit::Failure, "E-GEN-005", e.to_string())
        .hint("please report this with the command that led to it")
}
