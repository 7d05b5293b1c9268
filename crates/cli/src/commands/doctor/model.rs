//! `plimsoll doctor --gpu --model MODEL`: whether a GPU runs a model as the processors do, token by token.

use std::process::ExitCode;

use clap::Parser;
use plimsoll_kv::Scope;
use plimsoll_runtime::{Agreement, Runner, Teacher};
use plimsoll_schedule::{Fan, Request, RequestId};
use plimsoll_units::{DType, WeightType};
use serde_json::json;

use crate::args::doctor::{DoctorArgs, GpuArg};
use crate::args::engine::EngineArgs;
use crate::commands::engine::{Start, start};
use crate::demo;
use crate::error::{Exit, Failure};
use crate::output::Output;

/// What texts begin with.
const PROMPT: &str = "The load line of a ship is the depth to which it may be loaded, and it";
/// Tokens that a tokenizer makes of it at most: it has fewer characters.
const PROMPT_TOKENS: u32 = 100;

/// Flags that are written here.
#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    engine: EngineArgs,
}

/// What one run came to.
struct Run {
    device: String,
    /// What matrices were kept as.
    weights: Vec<WeightType>,
    tokens: Vec<u32>,
    teacher: Teacher,
}

/// How far a difference is no surprise, in parts of the largest logit: what tests on tiny models of each family allow at
/// most (`crates/runtime/tests/cuda.rs`, `tensor_cores_are_near_the_processors`).
fn tolerance(kv: DType, weights: &[WeightType]) -> f32 {
    let widest = |form: &WeightType| match form {
        WeightType::Bf16 => 0.03,
        // Elements of weights are rounded to bfloat16.
        WeightType::Fp8 => 0.05,
        // The processors round inputs, too, to eight bits.
        _ => 0.1,
    };
    match kv {
        // What is rounded to the other side of a middle is off by an eighth of itself.
        DType::F8E4m3 => 0.15,
        _ => weights.iter().map(widest).fold(0.0, f32::max),
    }
}

pub(super) fn run(
    gpu: GpuArg,
    model: &str,
    args: &DoctorArgs,
    output: &mut Output,
) -> Result<ExitCode, Failure> {
    let device = match gpu {
        GpuArg::Number(n) => format!("cuda:{n}"),
        GpuArg::Fibers => "fibers".to_owned(),
    };
    if demo::is_meant(model) {
        output.talk(demo::NOTE);
    }
    let of = |flags: &[&str], given: &[u32]| one(model, args, flags, given);
    let processors = of(&["--device", "cpu", "--inputs", "f32"], &[])?;
    let exact = of(&["--device", &device, "--batch-invariant"], &[])?;
    // Decode steps that are told what comes, so that one token that is another does not end the comparison.
    let fast = of(&["--device", &device], &processors.tokens)?;
    let tolerance = tolerance(parsed(args, &[])?.kv_cache_dtype, &fast.weights);
    let [exactly, fastly] = [&exact, &fast]
        .map(|r| Agreement::of(processors.teacher.logits(), r.teacher.logits(), tolerance));
    let equal = exact.tokens == processors.tokens;
    let text = if args.json {
        let value = json!({
            "schema": "plimsoll.doctor_model/1",
            "model": model,
            "device": fast.device,
            "batch_invariant": {
                "tokens": exact.tokens.len(),
                "tokens_equal": equal,
                "positions_equal_to_the_bit": exactly.same,
            },
            "teacher_forced": {
                "positions": fastly.positions,
                "argmax_equal": fastly.equal,
                "tolerance": tolerance,
                "sure": fastly.sure,
                "sure_argmax_equal": fastly.sure_equal,
                "largest_difference": fastly.largest,
                "largest_logit": fastly.size,
            },
        });
        format!("{value:#}")
    } else {
        text(model, &fast.device, (&exactly, equal), &fastly, tolerance)
    };
    output.line(&text)?;
    let right = equal && fastly.sure == fastly.sure_equal && fastly.largest.is_finite();
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        crate::exit(Exit::Failure)
    })
}

fn text(
    model: &str,
    device: &str,
    (exact, equal): (&Agreement, bool),
    fast: &Agreement,
    tolerance: f32,
) -> String {
    let share = |part: usize, of: usize| 100.0 * part as f64 / of.max(1) as f64;
    let same = if equal { "the same" } else { "other" };
    let positions = fast.positions;
    format!(
        "{model} on {device}, beside the processors, {positions} tokens after a prompt\n\
         --batch-invariant: {same} tokens; logits equal to the bit at {} of {positions} positions\n\
         with its own arithmetic, told the processors' tokens: the same token is the likeliest at {} of {positions} positions ({:.1} %),\n\
         and at {} of {} where the two likeliest are more than {:.3} apart ({:.0} % of the largest logit, {:.2});\n\
         the largest difference of logits is {:.4} ({:.2} %)",
        exact.same,
        fast.equal,
        share(fast.equal, positions),
        fast.sure_equal,
        fast.sure,
        tolerance * fast.size,
        100.0 * tolerance,
        fast.size,
        fast.largest,
        100.0 * fast.largest / fast.size.max(f32::MIN_POSITIVE),
    )
}

fn parsed(args: &DoctorArgs, flags: &[&str]) -> Result<EngineArgs, Failure> {
    let own = args.flags.iter().map(String::as_str);
    let all = ["doctor"]
        .into_iter()
        .chain(flags.iter().copied())
        .chain(own);
    let parsed = Flags::try_parse_from(all);
    let parsed = parsed.map_err(|e| {
        let what = e.to_string();
        let line = what.lines().next().unwrap_or_default();
        let line = line.strip_prefix("error: ").unwrap_or(line);
        Failure::new(Exit::Usage, "E-DEVICE-008", line)
            .hint("flags after `--` are those of `generate`, without `--device`, `--inputs` and `--batch-invariant`")
    })?;
    Ok(parsed.engine)
}

/// Generates as many tokens as are compared, the given ones first.
fn one(model: &str, args: &DoctorArgs, flags: &[&str], given: &[u32]) -> Result<Run, Failure> {
    let engine = parsed(args, flags)?;
    let server = start(&Start {
        model,
        engine: &engine,
        sequences: 1,
        queued: None,
        context: Some(u64::from(PROMPT_TOKENS + args.positions)),
        log: None,
        logprobs: None,
        http: None,
        tenants: None,
    })?;
    let bad = |e: String| Failure::new(Exit::Usage, "E-GEN-003", e);
    let prompt = server.tokenizer.encode(PROMPT, true);
    let prompt = prompt.map_err(|e| bad(e.to_string()))?;
    let request = Request::new(
        RequestId(0),
        prompt.into(),
        args.positions,
        Fan::Sample { n: 1, best_of: 1 },
        Scope::default(),
        &server.limits,
    )
    .map_err(|e| bad(e.to_string()).hint("raise `--max-model-len`"))?;
    let mut engine = server
        .engine
        .with(|runner: Runner<_, _>| runner.choosing(Teacher::new(given.to_vec())));
    engine
        .submit(request)
        .map_err(|e| bad(e.to_string()).hint("raise `--kv-memory`"))?;
    let mut tokens = Vec::new();
    loop {
        let stepped = engine.step(|notice| {
            if let plimsoll_schedule::Notice::Finished(ended) = notice {
                tokens = ended
                    .completions
                    .into_iter()
                    .flat_map(|c| c.tokens)
                    .collect();
            }
        });
        if !stepped.map_err(|e| Failure::new(Exit::Failure, "E-GEN-005", e.to_string()))? {
            break;
        }
    }
    let teacher = std::mem::take(engine.executor_mut().chooser_mut());
    Ok(Run {
        device: server.device,
        weights: server.forms,
        tokens,
        teacher,
    })
}
