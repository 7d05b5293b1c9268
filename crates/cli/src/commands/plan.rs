//! `plimsoll plan`.

mod beside;
mod cards;
mod demand;
mod emit;
mod fleets;
mod kinds;
mod prices;
mod replay;

use std::process::ExitCode;
use std::sync::Arc;

use plimsoll_device::Device;
use plimsoll_model::{Assume, ModelSpec, catalogue};
use plimsoll_plan::kv::Lengths;
use plimsoll_plan::{
    Engine, Evaluation, Http, KvType, Load, Lora, Question, Reserve, Settings, Verdict, answer,
    engine, grid, rule_of_thumb,
};
use plimsoll_program::Parallel;
use plimsoll_report::{
    ModelFacts, PlanReport, Planned, build, explain, plan_csv, plan_html, table, thousands,
};
use plimsoll_units::{Bytes, Tokens};

use crate::args::{AssumeArg, EngineArgs, LoadArgs, Method, PlanArgs, ReserveArg};
use crate::commands::serve::LOGPROBS;
use crate::commands::simulate::write_file;
use crate::error::{Exit, Failure};
use crate::exit;
use crate::load::{Loaded, load};
use crate::output::Output;
use demand::Demand;
use prices::{cheapest_notes, smallest_card, the_prices};

pub(crate) fn run(args: &PlanArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    if args.method == Method::RuleOfThumb
        && let Some(parameters) = bare_count(&args.model)
    {
        return thumb_of_count(&args.model, parameters, output);
    }
    let assume = match args.assume {
        Some(AssumeArg::Gqa) => Assume::Gqa,
        None => Assume::Nothing,
    };
    contradictions(args)?;
    let priced = the_prices(args)?;
    let model = load(&args.model, assume, args.offline)?;
    let demand = Demand::read(args, &model.spec)?;
    let load = match &demand {
        Some(demand) => demand.load(args.load.users),
        None => the_load(&args.load, &model)?,
    };
    if let Some(longest) = args.engine.max_model_len
        && longest < load.context
    {
        return Err(usage(format!(
            "--max-model-len {} is shorter than the context of {} tokens",
            thousands(longest),
            thousands(load.context)
        ))
        .hint("an engine refuses longer requests: raise it, or give a shorter `--context`"));
    }
    if args.method == Method::RuleOfThumb {
        return thumb(&model, &load, output);
    }
    let draft = match &args.engine.speculative_model {
        Some(name) => Some(Arc::new(
            crate::load::load(name, assume, args.offline)?.spec,
        )),
        None => None,
    };
    let lengths = demand.as_ref().map(Demand::lengths);
    let compared = cards::names(args)?;
    let mixed = kinds::read(args)?;
    let gpu = match (&compared, &mixed) {
        (Some(names), _) => names.first().map(String::as_str),
        (_, Some(parts)) => parts.first().map(|p| p.name.as_str()),
        _ => args.device.gpu.as_deref(),
    };
    let (mut question, others) =
        the_question(args, gpu, &model, load, lengths, draft.as_ref(), &priced)?;
    if let Some(parts) = &mixed {
        kinds::ask(args, parts, &model.spec, &mut question)?;
    }
    let others: Vec<String> = beside::add(args, &mut question)?
        .into_iter()
        .chain(others)
        .collect();
    let facts = facts(args, &model);
    if let Some(names) = &compared {
        return cards::run(args, names, &model, &facts, &question, &priced, output);
    }
    let fleets = match &demand {
        Some(demand) => fleets::choose(args, &model, &mut question, &priced, demand)?,
        None => None,
    };
    let answered = answer(&model.spec, &question)?;
    let mut report = build(&facts, &model.spec, &question, &answered)?;
    report.notes.extend(others);
    let attained = fleets.as_ref().map(|f| f.tried.iter().any(|t| t.chosen));
    report.answer.chosen |= attained == Some(true);
    if attained.is_none() {
        cheapest_notes(&priced, &model, &question, &mut report)?;
    }
    if let Some(demand) = &demand {
        let e = &answered.evaluation;
        replay::add(&model, &question.settings, e, demand, fleets, &mut report);
    }
    files(args, &report, &answered.evaluation, question.load.users)?;
    if let Some(emit) = args.emit {
        emit::print(emit, args, &facts, &question, &answered, &report, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(args, &report, output)?;
    // Choosing the number of devices always has an answer unless no number fits.
    Ok(match answered.evaluation.verdict {
        Verdict::No if question.device.is_some() => exit(Exit::DoesNotFit),
        _ if attained == Some(false) => exit(Exit::DoesNotFit),
        _ => ExitCode::SUCCESS,
    })
}

/// The plan of `model` for whoever asks by flags alone: no workload, prices or draft, nothing printed, no file read.
pub(crate) fn answered(args: &PlanArgs, model: &Loaded) -> Result<PlanReport, Failure> {
    contradictions(args)?;
    let load = the_load(&args.load, model)?;
    let gpu = args.device.gpu.as_deref();
    let (question, others) = the_question(args, gpu, model, load, None, None, &[])?;
    let answered = answer(&model.spec, &question)?;
    let mut report = build(&facts(args, model), &model.spec, &question, &answered)?;
    report.notes.extend(others);
    Ok(report)
}

fn facts(args: &PlanArgs, model: &Loaded) -> ModelFacts {
    ModelFacts {
        name: model.name.clone(),
        hub: catalogue::find(&model.name)
            .and_then(|entry| entry.aliases.iter().find(|a| a.contains('/')).cloned()),
        read_from: model.read_from.clone(),
        users_given: args.load.users.is_some(),
    }
}

/// What the flags ask, with notes on the cards that were not chosen.
fn the_question(
    args: &PlanArgs,
    gpu: Option<&str>,
    model: &Loaded,
    load: Load,
    lengths: Option<Lengths>,
    draft: Option<&Arc<ModelSpec>>,
    priced: &[(&'static Device, f64)],
) -> Result<(Question, Vec<String>), Failure> {
    let engine = emit::engine(args)?;
    let lengths = lengths.or_else(|| args.load.lengths.as_ref().map(|m| m.0.clone().into()));
    let stored = model.spec.quant.as_ref();
    let the_settings = |device: Option<&Device>| Settings {
        lengths: lengths.clone(),
        // What is stored quantised is loaded as it is.
        quantization: args.engine.quantization.filter(|_| stored.is_none()),
        ..the_settings(&args.engine, engine, device, draft)
    };
    let d = &args.device;
    let any = gpu == Some("any");
    if any && (d.gpus.is_some() || d.tp.is_some() || d.pp.is_some() || d.dp.is_some() || d.ep) {
        return Err(Failure::new(
            Exit::Usage,
            "E-USAGE-007",
            "`--gpu any` chooses the card, their number and the degrees together",
        )
        .hint("leave out --gpus and the degrees, or name the card"));
    }
    let (device, settings, mut others) = if any {
        let settings = the_settings(plimsoll_device::devices().first());
        let (device, others) = smallest_card(model, d.in_use, &settings, &load)?;
        (Some(device), settings, others)
    } else {
        let device = the_device(args, gpu)?;
        let settings = the_settings(device.as_ref().or_else(|| priced.first().map(|(d, _)| *d)));
        (device, settings, Vec::new())
    };
    if let (Some(scheme), Some(_)) = (stored, args.engine.quantization) {
        let name = scheme.name();
        others.push(format!(
            "--quantization changes nothing: the checkpoint is stored as {name}"
        ));
    }
    let question = Question {
        parallel: the_parallel(args, device.is_some()),
        kinds: None,
        devices: d.gpus,
        device,
        in_use: d.in_use,
        settings,
        load,
    };
    Ok((question, others))
}

/// A mistake on the command line that flags make together.
fn usage(what: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, "E-USAGE-007", what)
}

/// Whether this machine's processors are asked for.
fn on_cpu(args: &PlanArgs) -> bool {
    let gpu = args.device.gpu.as_deref();
    gpu.is_some_and(|name| name.eq_ignore_ascii_case("cpu"))
}

/// Flags that contradict each other or that would silently do nothing.
fn contradictions(args: &PlanArgs) -> Result<(), Failure> {
    let d = &args.device;
    if args.json && (args.explain.is_some() || args.method == Method::RuleOfThumb) {
        return Err(
            usage("`--explain` and `--method rule-of-thumb` print text, not JSON")
                .hint("leave `--json` out; a plan's JSON holds every formula already"),
        );
    }
    if d.memory.is_some() && d.gpu.is_some() && !on_cpu(args) {
        return Err(usage(
            "--memory takes the place of a known kind of device, so `--gpu` contradicts it",
        )
        .hint("leave one of them out; `--gpu cpu --memory 24GiB` is a budget"));
    }
    for (flag, given) in [
        ("--threads", args.engine.threads.is_some()),
        ("--logprobs", args.engine.logprobs.is_some()),
        ("--generate", args.engine.generate),
    ] {
        if given && !on_cpu(args) {
            return Err(usage(format!("{flag} says nothing without processors"))
                .hint("add `--gpu cpu`, or leave it out"));
        }
    }
    if args.method == Method::RuleOfThumb && (args.html.is_some() || args.csv.is_some()) {
        return Err(
            usage("`--method rule-of-thumb` has no map to write as a page or a table")
                .hint("leave `--html` and `--csv` out, or the method"),
        );
    }
    let no_device = d.gpu.is_none() && d.memory.is_none();
    for (flag, given) in [
        ("--gpus", d.gpus.is_some()),
        ("--in-use", d.in_use > Bytes::ZERO),
    ] {
        if given && no_device {
            return Err(usage(format!("{flag} says nothing without a device"))
                .hint("name one with `--gpu h100`, or its memory with `--memory 24GiB`"));
        }
    }
    let degrees = [d.tp, d.pp, d.dp];
    if let Some(n) = d.gpus
        && (degrees.iter().any(Option::is_some) || d.ep)
    {
        let product = degrees
            .iter()
            .try_fold(1_u64, |p, x| p.checked_mul(x.unwrap_or(1)));
        if product != Some(n) {
            return Err(usage(format!(
                "--gpus {n} contradicts TP x PP x DP, which is {}",
                { product.map_or_else(|| "too large".to_owned(), thousands) }
            ))
            .hint("leave one of them out"));
        }
    }
    if args.workload.slo.is_some() {
        let (any, d) = (d.gpu.as_deref() == Some("any"), &args.device);
        for (flag, given) in [
            ("--gpu any", any),
            ("--gpus", d.gpus.is_some()),
            ("--pp", d.pp.is_some()),
            ("--dp", d.dp.is_some()),
            ("--ep", d.ep),
            ("--users", args.load.users.is_some()),
        ] {
            if given {
                return Err(usage(format!(
                    "--slo asks how many replicas keep it, and {flag} says something else"
                ))
                .hint("leave one of them out; `--tp` may fix the degree of a replica"));
            }
        }
    }
    let traffic = args.workload.workload.is_some() || args.workload.trace.is_some();
    if traffic && args.method == Method::RuleOfThumb {
        return Err(
            usage("`--method rule-of-thumb` knows one length, not a workload")
                .hint("leave one of them out"),
        );
    }
    if args.engine.kv_memory == Some(Bytes::ZERO) {
        return Err(
            usage("--kv-memory 0 leaves nothing to plan with").hint("give a size, such as 12GiB")
        );
    }
    if args.engine.reserve.is_some() && !matches!(args.engine.engine, Some(Engine::Contiguous(_))) {
        return Err(usage("--reserve says what a contiguous server reserves")
            .hint("add `--engine contiguous`, or leave it out"));
    }
    Ok(())
}

/// The plan as files, where they were asked for.
fn files(args: &PlanArgs, report: &PlanReport, e: &Evaluation, users: u64) -> Result<(), Failure> {
    if let Some(path) = &args.html {
        // Without a device nothing limits other loads.
        let grid = match &report.device {
            Some(_) => Some(grid(e, users)?),
            None => None,
        };
        let planned = Planned {
            report,
            grid: grid.as_ref(),
        };
        write_file(path, &plan_html(planned))?;
    }
    match &args.csv {
        Some(path) => write_file(path, &plan_csv(report)),
        None => Ok(()),
    }
}

fn print(args: &PlanArgs, report: &PlanReport, output: &mut Output) -> Result<(), Failure> {
    if let Some(term) = &args.explain {
        let text = explain(report, Some(term)).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "E-USAGE-002",
                format!("no term of this plan is called `{term}`"),
            )
            .hint("`--explain` alone expands all of them")
        })?;
        return output.line(&text);
    }
    if args.json {
        let text = serde_json::to_string_pretty(report).map_err(|e| {
            Failure::new(
                Exit::Failure,
                "E-IO-002",
                format!("cannot write the plan as JSON: {e}"),
            )
        })?;
        return output.line(&text);
    }
    let look = output.look();
    output.line(&table(report, look))
}

/// The load that the flags and the model imply.
fn the_load(args: &LoadArgs, model: &Loaded) -> Result<Load, Failure> {
    let longest = args
        .lengths
        .as_ref()
        .and_then(|m| m.0.iter().map(|(n, _)| *n).max());
    let context = match longest.or(args.context).or(model.spec.max_context) {
        Some(n) => n,
        None => {
            return Err(Failure::new(
                Exit::Usage,
                "E-USAGE-003",
                "the model states no trained context, so `--context` is needed",
            )
            .hint("add `--context 8k`"));
        }
    };
    let sequences = args.beam_width.unwrap_or(args.n);
    let prompt = args
        .prompt
        .unwrap_or(if sequences > 1 { context / 2 } else { context });
    for (flag, n) in [
        ("--prompt", prompt),
        ("--shared-prefix", args.shared_prefix),
    ] {
        if n > context {
            return Err(Failure::new(
                Exit::Usage,
                "E-USAGE-004",
                format!(
                    "{flag} {} exceeds --context {}",
                    thousands(n),
                    thousands(context)
                ),
            )
            .hint("a sequence's context holds its prompt and its output"));
        }
    }
    Ok(Load {
        users: args.users.unwrap_or(1),
        context,
        prompt,
        sequences,
        shared_prefix: args.shared_prefix,
        prefix_hit: args.prefix_hit,
    })
}

fn the_device(args: &PlanArgs, gpu: Option<&str>) -> Result<Option<Device>, Failure> {
    if let Some(memory) = args.device.memory {
        if memory == Bytes::ZERO {
            return Err(Failure::new(
                Exit::Usage,
                "E-USAGE-005",
                "--memory 0 leaves nothing to plan with",
            )
            .hint("give what the card offers, such as 24GiB"));
        }
        return if on_cpu(args) {
            crate::commands::doctor::cpu(Some(memory)).map(Some)
        } else {
            Ok(Some(Device::of_size(memory)))
        };
    }
    gpu.map(device_named).transpose()
}

/// The device that is called so, of the catalogue or of this machine.
fn device_named(name: &str) -> Result<Device, Failure> {
    if name == "auto" {
        return crate::commands::doctor::detected();
    }
    if name.eq_ignore_ascii_case("cpu") {
        return crate::commands::doctor::cpu(None);
    }
    plimsoll_device::find(name)
        .cloned()
        .ok_or_else(|| crate::commands::devices::unknown(name))
}

/// Degrees are fixed by the user as soon as one is given.
fn the_parallel(args: &PlanArgs, has_device: bool) -> Option<Parallel> {
    let d = &args.device;
    let given = d.tp.is_some() || d.pp.is_some() || d.dp.is_some() || d.ep;
    (given || !has_device).then(|| Parallel {
        tp: d.tp.unwrap_or(1),
        pp: d.pp.unwrap_or(1),
        dp: d.dp.unwrap_or(1),
        expert_parallel: d.ep,
    })
}

fn the_settings(
    args: &EngineArgs,
    engine: Option<Engine>,
    device: Option<&Device>,
    draft: Option<&Arc<ModelSpec>>,
) -> Settings {
    let reserve = args.reserve.map(|r| match r {
        ReserveArg::Max => Reserve::Max,
        ReserveArg::Pow2 => Reserve::Pow2,
        ReserveArg::Oracle => Reserve::Oracle,
    });
    // On a card, the engine that most teams run; without one, our own layout.
    let default = if device.is_some() {
        Engine::Vllm(engine::vllm::NEWEST)
    } else {
        Engine::Plimsoll
    };
    let engine = match (engine.unwrap_or(default), reserve) {
        (Engine::Contiguous(_), Some(r)) => Engine::Contiguous(r),
        (e, _) => e,
    };
    Settings {
        dtype: args.dtype,
        quantization: args.quantization,
        weights: args.weights,
        kv_type: args.kv_cache_dtype.unwrap_or(KvType::Auto),
        kv_type_v: args.cache_type_v,
        block_size: args.block_size,
        max_model_len: args.max_model_len,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        ubatch: args.ubatch_size,
        gpu_memory_utilization: args.gpu_memory_utilization,
        kv_memory: args.kv_memory,
        max_total_tokens: args.max_total_tokens,
        decode_context_parallel: args.decode_context_parallel_size,
        enforce_eager: args.enforce_eager,
        prefix_caching: match (args.enable_prefix_caching, args.no_enable_prefix_caching) {
            (_, true) => Some(false),
            (true, false) => Some(true),
            (false, false) => None,
        },
        async_scheduling: args.async_scheduling,
        flash_attention: args.flash_attn,
        kv_unified: args.kv_unified,
        swa_full: args.swa_full,
        swap: args.swap_space,
        swap_file: args.swap_dir.is_some(),
        threads: Some(args.threads.unwrap_or_else(crate::commands::processors)),
        logprobs: args
            .logprobs
            .or((!args.generate).then_some(LOGPROBS.into())),
        http: (!args.generate).then(Http::default),
        mtp: args.mtp,
        draft: draft.cloned(),
        lora: args.max_loras.map(|slots| Lora {
            slots,
            rank: args.max_lora_rank,
        }),
        ..Settings::new(engine)
    }
}

/// `345M` or `175B`: a number of parameters, which is all that the hand calculation needs for weights.
fn bare_count(text: &str) -> Option<f64> {
    let (number, factor) = match text.strip_suffix(['M', 'm']) {
        Some(n) => (n, 1e6),
        None => (text.strip_suffix(['B', 'b'])?, 1e9),
    };
    let n: f64 = number.parse().ok()?;
    (n.is_finite() && n > 0.0 && n < 1e9).then_some(n * factor)
}

/// Two bytes per parameter; without layers and heads there is no KV cache to compute.
fn thumb_of_count(name: &str, parameters: f64, output: &mut Output) -> Result<ExitCode, Failure> {
    let weights = Bytes::from_f64(parameters * 2.0).map_err(plimsoll_plan::PlanError::from)?;
    output.line(&format!(
        "{name} parameters by the rule of thumb\n  weights   {:>9}  2 bytes per parameter\nnote: a number of \
         parameters says nothing of the KV cache: name a model or its config for that",
        decimal(weights)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Decimal units, as hand calculations write them.
fn decimal(b: Bytes) -> String {
    if b.gb() < 1.0 {
        format!("{:.0} MB", b.gb() * 1000.0)
    } else {
        format!("{:.1} GB", b.gb())
    }
}

/// The hand calculation, in decimal units as it is always written.
fn thumb(model: &Loaded, load: &Load, output: &mut Output) -> Result<ExitCode, Failure> {
    let users = load.users.saturating_mul(load.sequences);
    let r = rule_of_thumb(&model.spec, users, Tokens(load.context))
        .map_err(plimsoll_plan::PlanError::from)?;
    let total = r.total().map_err(plimsoll_plan::PlanError::from)?;
    output.line(&format!(
        "{} by the rule of thumb, {} users of {} tokens\n  weights   {:>9}  {} parameters in {}\n  KV cache  {:>9}  {} per token\n  overhead  {:>9}  10 % of both\n  total     {:>9}  = {:.1} GiB\nnote: this is what hand calculations give; `plan` without `--method` says what engines allocate",
        model.name,
        thousands(users),
        thousands(load.context),
        decimal(r.weights),
        thousands(model.spec.parameters().map_err(plimsoll_plan::PlanError::from)?),
        model.spec.dtype,
        decimal(r.kv),
        r.kv_per_token,
        decimal(r.overhead),
        decimal(total),
        total.gib(),
    ))?;
    Ok(ExitCode::SUCCESS)
}
