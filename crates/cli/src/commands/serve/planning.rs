//! The plans that a server's page asks for: the same as `plimsoll plan` prints, of built-in models and pasted configs.
//!
//! A question becomes the flags that mean it, so ranges, names and mistakes are the command's own. No flag that names a
//! file, another machine or this one can be asked for.

use clap::{Args as _, Command, FromArgMatches as _};
use plimsoll_device::{Device, devices};
use plimsoll_host::{Env, LoadOptions, ModelRef};
use plimsoll_model::{Assume, catalogue, from_config, json};
use plimsoll_report::PlanReport;
use plimsoll_server::{Patience, Planner, Unanswered};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::args::PlanArgs;
use crate::commands::plan;
use crate::error::Failure;
use crate::load::Loaded;
use crate::settings::told;

/// Most users that a grid counts, and most lengths that it tries.
const GRID_USERS: u64 = 512;
const GRID_CONTEXTS: usize = 8;
const SHORTEST_CONTEXT: u64 = 512;
/// The longest value of a flag.
const VALUE_CHARS: usize = 100;
/// What a pasted config is called in the answer and its commands.
const PASTED: &str = "config.json";

/// A question, by the names of flags of `plimsoll plan`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PlanRequest")]
struct Asked {
    /// A built-in model, one of those that `/api/choices` lists; this or `config`.
    model: Option<String>,
    /// The text of a config.json in its place.
    config: Option<String>,
    /// A device of the catalogue, or `any`.
    #[schemars(length(max = VALUE_CHARS))]
    gpu: Option<String>,
    /// How many of them; as many as it needs where left out.
    gpus: Option<Word>,
    /// Requests at once.
    users: Option<Word>,
    /// Tokens of each, as `8192` or `8k`.
    context: Option<Word>,
    /// Under whose rules.
    #[schemars(length(max = VALUE_CHARS))]
    engine: Option<String>,
    /// What weights are made while they are loaded.
    #[schemars(length(max = VALUE_CHARS))]
    weights: Option<String>,
    /// How the checkpoint is quantised.
    #[schemars(length(max = VALUE_CHARS))]
    quantization: Option<String>,
    /// What keys and values are kept as.
    #[schemars(length(max = VALUE_CHARS))]
    kv_cache_dtype: Option<String>,
}

/// What may stand after a flag.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum Word {
    Number(u64),
    Text(#[schemars(length(max = VALUE_CHARS))] String),
}

/// What plans choose from.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PlanChoices")]
struct Choices {
    /// Built-in models.
    models: Vec<&'static str>,
    /// The catalogue of devices.
    gpus: Vec<Gpu>,
    /// Engines whose rules are known.
    engines: [&'static str; 5],
    /// What weights can be made while they are loaded.
    weights: [&'static str; 5],
    /// How checkpoints can be quantised.
    quantizations: [&'static str; 4],
    /// What keys and values can be kept as.
    kv_cache_dtypes: [&'static str; 7],
}

/// A device that plans choose from.
#[derive(Debug, Serialize, JsonSchema)]
struct Gpu {
    /// Catalogue name.
    name: &'static str,
    /// What a process sees as total.
    usable_bytes: u64,
}

/// What fits at many loads.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PlanGrid")]
struct Grid {
    /// The device of all loads; null where none was named.
    device: Option<String>,
    /// The numbers of users that were tried.
    users: Vec<u64>,
    /// The lengths that were tried, in tokens.
    contexts: Vec<u64>,
    /// One for each length and number of users, by length first.
    cells: Vec<Cell>,
}

/// One load of a grid, and its plan in short.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PlanGridCell")]
struct Cell {
    /// Requests at once.
    users: u64,
    /// Tokens of each.
    context: u64,
    /// `yes`, `tight`, `no`, or `none` where the engine takes no such load.
    verdict: String,
    /// Devices in all; left out where there is no plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<u64>,
    /// The answer in one sentence.
    text: String,
    /// What the load needs of the KV pool; left out where there is no plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_need_bytes: Option<u64>,
    /// What the pool has; left out where there is no plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_pool_bytes: Option<u64>,
}

impl Word {
    fn text(&self) -> String {
        match self {
            Self::Number(n) => n.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// Answers what a page asks.
pub(super) fn planner() -> Planner {
    Planner::new(
        choices(),
        |asked: Asked, _| {
            let (args, model) = read(&asked)?;
            plan::answered(&args, &model).map_err(|e| refused(&e))
        },
        |asked: Asked, patience| grid(&asked, patience),
    )
}

/// What can be chosen from.
fn choices() -> Choices {
    let gpu = |d: &'static Device| Gpu {
        name: &d.name,
        usable_bytes: d.usable.get(),
    };
    Choices {
        models: catalogue::entries().iter().map(|e| &*e.name).collect(),
        gpus: devices().iter().map(gpu).collect(),
        engines: ["vllm", "llama.cpp", "plimsoll", "contiguous", "ideal"],
        weights: ["bf16", "fp8", "int8", "int4", "auto"],
        quantizations: ["fp8", "int8", "int4", "bitsandbytes"],
        kv_cache_dtypes: ["auto", "bf16", "f16", "fp8", "int8", "q8_0", "q4_0"],
    }
}

fn mistake(field: Option<&'static str>, message: impl Into<String>) -> Unanswered {
    let message = message.into();
    Unanswered::Mistake { field, message }
}

/// A failure in one sentence.
fn refused(e: &Failure) -> Unanswered {
    let mut message = e.what.clone();
    for why in &e.why {
        message.push_str(&format!(", because {why}"));
    }
    if let Some(hint) = &e.hint {
        message.push_str(&format!("; try: {hint}"));
    }
    mistake(None, message)
}

fn read(asked: &Asked) -> Result<(PlanArgs, Loaded), Unanswered> {
    let model = model(asked)?;
    Ok((flags(asked, &model)?, model))
}

/// The model: nothing is opened and nobody is asked.
fn model(asked: &Asked) -> Result<Loaded, Unanswered> {
    match (&asked.model, &asked.config) {
        (Some(name), None) => {
            let Some(entry) = catalogue::find(name) else {
                let name = json::printable(name);
                return Err(mistake(
                    Some("model"),
                    format!(
                        "no built-in model is called {name}: choose one of the list, or paste its config.json"
                    ),
                ));
            };
            let options = LoadOptions::new(Env::process());
            let loaded = plimsoll_host::load(&ModelRef::BuiltIn(entry), &options);
            let loaded = loaded.map_err(|e| refused(&crate::load::failure(&e)))?;
            Ok(Loaded {
                name: name.clone(),
                read_from: loaded.origin,
                spec: loaded.spec,
            })
        }
        (None, Some(text)) => {
            let bad = |e: String| mistake(Some("config"), e);
            let config = json::parse_config(text.as_bytes()).map_err(|e| bad(e.to_string()))?;
            let spec = from_config(&config, Assume::Nothing).map_err(|e| bad(e.to_string()))?;
            Ok(Loaded {
                name: PASTED.to_owned(),
                read_from: PASTED.to_owned(),
                spec,
            })
        }
        _ => Err(mistake(
            Some("model"),
            "send either model, a built-in name, or config, the text of a config.json",
        )),
    }
}

/// The flags of `plimsoll plan` that ask this.
fn flags(asked: &Asked, model: &Loaded) -> Result<PlanArgs, Unanswered> {
    if let Some(gpu) = &asked.gpu
        && gpu != "any"
        && plimsoll_device::find(gpu).is_none()
    {
        // Neither this machine's processors nor its cards: that would be looking.
        return Err(refused(&super::super::devices::unknown(&json::printable(gpu))).at("gpu"));
    }
    let text = |v: &Option<Word>| v.as_ref().map(Word::text);
    let all = [
        ("gpu", "gpu", asked.gpu.clone()),
        ("gpus", "gpus", text(&asked.gpus)),
        ("users", "users", text(&asked.users)),
        ("context", "context", text(&asked.context)),
        ("engine", "engine", asked.engine.clone()),
        ("weights", "weights", asked.weights.clone()),
        ("quantization", "quantization", asked.quantization.clone()),
        (
            "kv_cache_dtype",
            "kv-cache-dtype",
            asked.kv_cache_dtype.clone(),
        ),
    ];
    let mut words = Vec::new();
    for (field, flag, value) in all {
        let Some(value) = value else { continue };
        if value.chars().count() > VALUE_CHARS {
            let message = format!("{field} has more than {VALUE_CHARS} characters");
            return Err(mistake(Some(field), message));
        }
        // One at a time, so that a mistake has a field.
        let word = format!("--{flag}={value}");
        parse(std::slice::from_ref(&word), &model.name).map_err(|e| e.at(field))?;
        words.push(word);
    }
    parse(&words, &model.name)
}

fn parse(words: &[String], model: &str) -> Result<PlanArgs, Unanswered> {
    // What the server's environment says is not what a client asks.
    let command = PlanArgs::augment_args(Command::new("plan"));
    let command = command.mut_args(|a| a.env(None::<&str>));
    let words = ["plan"].into_iter().chain(words.iter().map(String::as_str));
    let words = words.chain(["--", model]);
    let read = command.try_get_matches_from(words);
    let args = read.and_then(|m| PlanArgs::from_arg_matches(&m));
    args.map_err(|e| {
        let (what, tip) = told(&e);
        let tip = tip.map_or_else(String::new, |t| format!("; {t}"));
        mistake(None, format!("{what}{tip}"))
    })
}

/// Verdicts for many loads, each of the plan that the load alone would have.
fn grid(asked: &Asked, patience: &Patience) -> Result<Grid, Unanswered> {
    let (mut args, model) = read(asked)?;
    let first = plan::answered(&args, &model).map_err(|e| refused(&e))?;
    let (users, contexts) = axes(&first);
    // One card for all loads, where the plan chose it.
    let device = first.device.map(|d| d.name);
    args.device.gpu.clone_from(&device);
    let mut cells = Vec::new();
    for &context in &contexts {
        for &n in &users {
            if patience.is_over() {
                return Err(Unanswered::Late);
            }
            args.load.users = Some(n);
            args.load.context = Some(context);
            let cell = match plan::answered(&args, &model) {
                Ok(report) => Cell {
                    users: n,
                    context,
                    verdict: report.answer.verdict,
                    devices: Some(report.answer.devices),
                    text: report.answer.text,
                    kv_need_bytes: Some(report.kv.need.pool_bytes),
                    kv_pool_bytes: Some(report.kv.pool_bytes),
                },
                // An engine may refuse a load that others do not.
                Err(e) => Cell {
                    users: n,
                    context,
                    verdict: "none".to_owned(),
                    devices: None,
                    text: e.what,
                    kv_need_bytes: None,
                    kv_pool_bytes: None,
                },
            };
            cells.push(cell);
        }
    }
    Ok(Grid {
        device,
        users,
        contexts,
        cells,
    })
}

/// Powers of two, and what was asked.
fn axes(report: &PlanReport) -> (Vec<u64>, Vec<u64>) {
    let mut users: Vec<u64> = (0..)
        .map(|i| 1 << i)
        .take_while(|n| *n <= GRID_USERS)
        .collect();
    users.extend(report.load.users);
    users.sort_unstable();
    users.dedup();
    let longest = report.model.max_context.unwrap_or(report.load.context);
    let longest = longest.max(report.load.context);
    let halves = std::iter::successors(Some(longest), |n| Some(n / 2));
    let halves = halves.take_while(|n| *n >= SHORTEST_CONTEXT);
    let mut contexts: Vec<u64> = halves.take(GRID_CONTEXTS).collect();
    contexts.push(report.load.context);
    contexts.sort_unstable();
    contexts.dedup();
    (users, contexts)
}
