//! `plimsoll simulate`.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Cursor, Read};
use std::num::NonZeroU32;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use plimsoll_device::Device;
use plimsoll_kv::{KvConfig, Layout};
use plimsoll_model::Assume;
use plimsoll_plan::{Deployment, Engine, KvType, Load, Settings, evaluate};
use plimsoll_program::{GroupKind, KvRules, Parallel, PoolGeometry};
use plimsoll_report::simulation::{
    Named, Pool, Run, SIMULATION_SCHEMA, Setup, SimulationReport, charts, series_csv,
    simulation_html, simulation_table,
};
use plimsoll_report::thousands;
use plimsoll_schedule::{
    Admission, CostModel, Limits, NoLog, Preempt, Rates, SchedulerConfig, Tenant, Work,
};
use plimsoll_simulate::contiguous::{self, Reservation, Server};
use plimsoll_simulate::log::{LogError, LogWriter, PAGES_MAX, replay_log};
use plimsoll_simulate::paged::{self, Asked, Branching, Faults, preempt_name};
use plimsoll_simulate::workload::{
    Repeat, SyntheticSpec, Workload, WorkloadError, WorkloadSource, WorkloadSpec, fill_tokens,
};
use plimsoll_simulate::{Arrival, Recorder, RecorderConfig, RunFacts};
use plimsoll_units::{Bytes, DType, Nanos};

use crate::args::{AdmissionArg, PreemptArg, ServerArg, SimulateArgs};
use crate::commands::devices::unknown;
use crate::error::{Exit, Failure};
use crate::load::{Loaded, load};
use crate::output::Output;

/// Requests of a synthetic workload unless told.
const REQUESTS: u64 = 2000;
/// The longest sequence whose block table is kept account of: 16 million tokens, beyond any published model.
const MODEL_LEN_MAX: u64 = 1 << 24;
/// Most of standard input that is held where several servers read it.
const STDIN_BYTES_MAX: u64 = 1 << 30;

pub(crate) fn run(args: &SimulateArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    if let Some(path) = &args.replay {
        return replay(path, output);
    }
    let mut servers: Vec<ServerArg> = Vec::new();
    for server in &args.servers {
        if !servers.contains(server) {
            servers.push(*server);
        }
    }
    if args.log.is_some() && !servers.contains(&ServerArg::Paged) {
        return Err(Failure::new(
            Exit::Usage,
            "E-USAGE-009",
            "--log records the paged run, and --servers leaves it out",
        )
        .hint("add paged to `--servers`, or leave `--log` out"));
    }
    for path in [&args.html, &args.csv, &args.log].into_iter().flatten() {
        has_folder(path)?;
    }
    let name = args.model.as_deref().unwrap_or_default();
    let model = load(name, Assume::Nothing, args.offline)?;
    let case = Case::new(args, model, servers.len())?;
    // Each run is alone in its thread and depends on nothing else: any number of threads gives the same.
    let outcomes: Vec<Result<Ran, Failure>> = std::thread::scope(|scope| {
        let handles: Vec<_> = servers
            .iter()
            .map(|server| scope.spawn(|| case.run(*server)))
            .collect();
        handles
            .into_iter()
            .map(|h| {
                h.join().unwrap_or_else(|_| {
                    Err(Failure::new(
                        Exit::Failure,
                        "E-SIM-001",
                        "a simulation stopped in the middle",
                    )
                    .hint("this is a fault of ours: please report it with the command line"))
                })
            })
            .collect()
    });
    let mut runs = Vec::new();
    let mut notes = Vec::new();
    let mut seen = Seen::default();
    for outcome in outcomes {
        let ran = outcome?;
        // Every server meets the same requests.
        seen = ran.seen;
        for note in ran.notes {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        runs.push(ran.run);
    }
    let nothing_ran = runs.iter().all(|r| r.requests.finished == 0);
    if nothing_ran {
        notes.push(
            "every request was refused: each needs more blocks than the pool has, or more sequences than \
             --max-num-seqs"
                .to_owned(),
        );
    }
    let report = SimulationReport {
        schema: SIMULATION_SCHEMA.to_owned(),
        setup: case.setup(&seen),
        runs,
        notes,
    };
    if let Some(path) = &args.html {
        write_file(path, &simulation_html(&report))?;
    }
    if let Some(path) = &args.csv {
        write_file(path, &series_csv(&report))?;
    }
    if let Some(folder) = &args.svg {
        std::fs::create_dir_all(folder).map_err(|e| cannot_write(folder, &e))?;
        for chart in charts(&report) {
            write_file(
                &folder.join(format!("{}.svg", chart.name)),
                &chart.standalone,
            )?;
        }
    }
    if args.json {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|e| Failure::new(Exit::Failure, "E-IO-002", e.to_string()))?;
        output.line(&text)?;
    } else {
        let look = output.look();
        output.line(&simulation_table(&report, look))?;
    }
    Ok(if nothing_ran {
        crate::exit(Exit::DoesNotFit)
    } else {
        ExitCode::SUCCESS
    })
}

fn replay(path: &Path, output: &mut Output) -> Result<ExitCode, Failure> {
    let file = File::open(path).map_err(|e| {
        Failure::new(
            Exit::NotFound,
            "E-SIM-002",
            format!("cannot open {}: {e}", path.display()),
        )
        .hint("give the file that `simulate --log` wrote")
    })?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(Failure::new(
            Exit::NotFound,
            "E-SIM-002",
            format!("cannot open {}: it is a folder", path.display()),
        )
        .hint("give the file that `simulate --log` wrote"));
    }
    let result = replay_log(BufReader::new(file)).map_err(|e| {
        let exit = match e {
            LogError::Io(_) => Exit::Failure,
            _ => Exit::Corrupt,
        };
        Failure::new(exit, "E-SIM-003", format!("{}: {e}", path.display()))
            .hint("record the run again with `simulate --log`")
    })?;
    output.line(&format!(
        "{} inputs, {} steps\nrecorded {:016x}\nreplayed {:016x}",
        thousands(result.inputs),
        thousands(result.steps),
        result.recorded,
        result.replayed
    ))?;
    if result.recorded == result.replayed {
        output.line("every decision is the same")?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(
        Exit::Failure,
        "E-SIM-004",
        "the replay decided otherwise than the recorded run",
    )
    .hint("the log was changed, or written by another version of this program"))
}

/// Tells of a missing folder before the run rather than after it.
fn has_folder(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    match folder.map(std::fs::metadata) {
        Some(Err(e)) => Err(cannot_write(path, &e)),
        _ => Ok(()),
    }
}

fn cannot_write(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Failure,
        "E-IO-004",
        format!("cannot write {}: {e}", path.display()),
    )
    .hint("name a file in a folder that exists and has room")
}

fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|e| cannot_write(path, &e))
}

/// What one server made of the workload.
struct Ran {
    run: Run,
    seen: Seen,
    notes: Vec<String>,
}

/// The requests that a server was given, in sums.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    requests: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    last: Nanos,
}

impl Seen {
    fn add(&mut self, a: &Arrival) {
        self.requests += 1;
        self.prompt_tokens = self.prompt_tokens.saturating_add(a.prompt_tokens);
        self.output_tokens = self.output_tokens.saturating_add(a.output_tokens);
        self.last = a.at;
    }

    /// How fast they came and how long they were.
    fn words(&self) -> String {
        let n = self.requests;
        let mean = |tokens: u64| thousands(tokens.saturating_add(n / 2) / n.max(1));
        // The first one arrives at 0.
        let span_s = self.last.0 as f64 / 1e9;
        let rate = (n.saturating_sub(1)) as f64 / span_s;
        let arrivals = match rate {
            _ if n <= 1 => String::new(),
            r if r >= 1e6 => ", all at once".to_owned(),
            r if r >= 1000.0 => format!(", {} per second", thousands(r.round() as u64)),
            r if r >= 1.0 => format!(", {r:.2} per second"),
            r if r >= 0.001 => format!(", {r:.4} per second"),
            _ => format!(", one in {} s", thousands((1.0 / rate).round() as u64)),
        };
        format!(
            "{arrivals}; prompts of {} and answers of {} tokens on average",
            mean(self.prompt_tokens),
            mean(self.output_tokens)
        )
    }
}

/// Everything that the runs have in common.
struct Case<'a> {
    args: &'a SimulateArgs,
    model: Loaded,
    device: &'static Device,
    layout: Layout,
    /// Bytes of the pool on each device, whole pages.
    pool: Bytes,
    pages: u32,
    swap_pages: u32,
    cost: CostModel,
    limits: Limits,
    workload: WorkloadSpec,
    /// Standard input, where it is the trace and several servers read it.
    stdin: Option<Arc<[u8]>>,
}

impl<'a> Case<'a> {
    fn new(args: &'a SimulateArgs, model: Loaded, servers: usize) -> Result<Self, Failure> {
        let device = plimsoll_device::find(&args.gpu).ok_or_else(|| unknown(&args.gpu))?;
        let rates = Rates::of(device).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "E-SIM-005",
                format!(
                    "no rates are known of {}: its time cannot be modelled",
                    device.name
                ),
            )
            .hint("choose a device with published rates, such as a100-80g or h100")
        })?;
        let spec = &model.spec;
        if let Some(n @ (0..2 | MODEL_LEN_MAX..)) = args.max_model_len {
            return Err(Failure::new(
                Exit::Usage,
                "E-SIM-012",
                format!("--max-model-len {n} cannot be simulated"),
            )
            .why("a request has at least a token of prompt and one of output")
            .hint(format!(
                "give from 2 to {} tokens",
                thousands(MODEL_LEN_MAX - 1)
            )));
        }
        let longest = args.max_model_len.or(spec.max_context).unwrap_or(8192);
        let longest = longest.clamp(2, MODEL_LEN_MAX - 1);
        let max_model_len = u32::try_from(longest).unwrap_or(u32::MAX);
        let parallel = Parallel {
            tp: args.tp,
            ..Parallel::default()
        };
        let dtype = match args.kv_cache_dtype {
            None | Some(KvType::Auto) => spec.dtype,
            Some(KvType::Plain(d)) => d,
            Some(other) => {
                return Err(Failure::new(
                    Exit::Usage,
                    "E-SIM-006",
                    format!("--kv-cache-dtype {other} is a format of vLLM's kernels"),
                )
                .hint("use bf16, f16, f32, fp8 or int8"));
            }
        };
        let settings = Settings {
            kv_type: KvType::Plain(dtype),
            block_size: Some(args.block_size),
            max_model_len: Some(u64::from(max_model_len)),
            max_num_seqs: Some(u64::from(args.max_num_seqs)),
            max_num_batched_tokens: Some(args.max_num_batched_tokens),
            kv_memory: args.kv_memory,
            swap: args.swap_space,
            ..Settings::new(Engine::Plimsoll)
        };
        let deployment = Deployment {
            device: device.clone(),
            parallel,
            in_use: Bytes::ZERO,
        };
        let plan = evaluate(spec, &deployment, &settings, &Load::plain(1, 1))?;
        let stage = plan
            .stages
            .first()
            .ok_or_else(|| no_room(args, Bytes::ZERO))?;
        let pool = match args.kv_memory {
            Some(given) => given,
            None if stage.over_budget => Bytes::ZERO,
            None => stage.pool,
        };
        let rules = KvRules {
            dtype,
            state_dtype: match dtype {
                DType::F32 | DType::F16 | DType::Bf16 => dtype,
                _ => spec.dtype,
            },
            block_size: args.block_size,
        };
        let geometry = PoolGeometry::new(spec, &parallel, &stage.stage, &rules)
            .map_err(plimsoll_plan::PlanError::from)?;
        let layout = Layout::new(&geometry).map_err(|e| {
            Failure::new(Exit::Usage, "E-SIM-007", e.to_string())
                .hint("choose another `--block-size`")
        })?;
        let pages = pool.whole(layout.page);
        let pages = match u32::try_from(pages) {
            // One page is the null page.
            Ok(0 | 1) => return Err(no_room(args, layout.page)),
            Ok(p) if p <= PAGES_MAX => p,
            _ => {
                return Err(Failure::new(
                    Exit::Usage,
                    "E-SIM-008",
                    format!("{} blocks are too many to simulate", thousands(pages)),
                )
                .hint(format!(
                    "choose a larger `--block-size`: at most {} blocks are kept account of",
                    thousands(u64::from(PAGES_MAX))
                )));
            }
        };
        let swap_pages = args.swap_space.whole(layout.page).min(u64::from(PAGES_MAX));
        let work = Work::new(spec, &geometry, args.tp).map_err(plimsoll_plan::PlanError::from)?;
        let workload = the_workload(args, u64::from(max_model_len))?;
        let tenants = match &workload.source {
            WorkloadSource::Synthetic(s) => s.tenants.len().clamp(1, 1 << 12),
            WorkloadSource::Trace(_) => 1,
        };
        let limits = Limits {
            max_model_len,
            vocab: u32::try_from(spec.vocab).unwrap_or(u32::MAX).max(1),
            max_width: args.max_num_seqs,
            tenants: u16::try_from(tenants).unwrap_or(1),
        };
        let stdin = if servers > 1 && args.trace.as_deref().is_some_and(is_stdin) {
            Some(held_stdin()?)
        } else {
            None
        };
        Ok(Self {
            stdin,
            pool: layout
                .page
                .times(u64::from(pages))
                .map_err(plimsoll_plan::PlanError::from)?,
            pages,
            swap_pages: u32::try_from(swap_pages).unwrap_or(PAGES_MAX),
            cost: CostModel { work, rates },
            args,
            model,
            device,
            layout,
            limits,
            workload,
        })
    }

    /// Slots of the paged pool: one token's place in the group whose blocks hold the fewest.
    fn slots(&self) -> u64 {
        let slots = self
            .layout
            .groups
            .iter()
            .map(|g| g.slots)
            .filter(|s| *s > 0)
            .min();
        u64::from(self.pages) * u64::from(slots.unwrap_or(1))
    }

    /// Slots of the same memory where every layer keeps every token, windows or not, as contiguous servers
    /// did: their sequences are one run of memory. States, which do not grow, are left out.
    fn contiguous_slots(&self) -> u64 {
        let token: u64 = self
            .layout
            .groups
            .iter()
            .filter(|g| g.kind != GroupKind::State)
            .map(|g| g.row.get())
            .sum();
        self.pool.get().checked_div(token).unwrap_or(0)
    }

    fn open(&self) -> Result<Workload, Failure> {
        let source: Option<Box<dyn BufRead + Send>> = match (&self.args.trace, &self.stdin) {
            (None, _) => None,
            (Some(_), Some(held)) => Some(Box::new(Cursor::new(Arc::clone(held)))),
            (Some(path), None) if is_stdin(path) => {
                Some(Box::new(BufReader::new(std::io::stdin())))
            }
            (Some(path), None) => Some(Box::new(BufReader::new(open_trace(path)?))),
        };
        self.workload
            .open(source)
            .map_err(|e| self.bad_workload(&e))
    }

    fn bad_workload(&self, e: &WorkloadError) -> Failure {
        let Some(path) = &self.args.trace else {
            return bad_text(e);
        };
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
        Failure::new(exit, "E-SIM-010", format!("{}: {e}", trace_name(path))).hint(hint)
    }

    fn run(&self, server: ServerArg) -> Result<Ran, Failure> {
        let mut workload = self.open()?;
        let mut recorder = Recorder::new(RecorderConfig::default());
        let mut given = Seen::default();
        let mut arrivals = workload.by_ref().inspect(|a| {
            if let Ok(a) = a {
                given.add(a);
            }
        });
        let facts = match server {
            ServerArg::Paged => self.paged(&mut arrivals, &mut recorder)?,
            _ => self.contiguous(server, &mut arrivals, &mut recorder)?,
        };
        let seen = workload.notes();
        let mut notes = Vec::new();
        let mut note = |n: u64, what: &str| {
            if n > 0 {
                notes.push(format!("{} {what}", thousands(n)));
            }
        };
        note(
            seen.clamped,
            "requests were cut to the longest that the model takes",
        );
        note(
            seen.failed_skipped,
            "rows of failed requests were passed over",
        );
        note(
            seen.reordered,
            "rows came late by a little and arrive with their successors",
        );
        Ok(Ran {
            run: recorder.run(facts),
            seen: given,
            notes,
        })
    }

    fn paged(
        &self,
        arrivals: impl Iterator<Item = Result<Arrival, WorkloadError>>,
        recorder: &mut Recorder,
    ) -> Result<RunFacts, Failure> {
        let args = self.args;
        let mut scheduler = SchedulerConfig::new(self.limits);
        scheduler.max_seqs = args.max_num_seqs;
        scheduler.max_batched_tokens =
            u32::try_from(args.max_num_batched_tokens).unwrap_or(u32::MAX);
        scheduler.tenants = vec![Tenant::FREE; usize::from(self.limits.tenants)];
        scheduler.admission = match args.admission {
            AdmissionArg::Optimistic => Admission::Optimistic,
            AdmissionArg::Guaranteed => Admission::Guaranteed,
        };
        scheduler.preempt = match args.preempt {
            PreemptArg::Auto => Preempt::Auto,
            PreemptArg::Swap => Preempt::Swap,
            PreemptArg::Recompute => Preempt::Recompute,
        };
        // The plan's pool holds the null page too.
        let mut kv = KvConfig::new(self.layout.clone(), self.pages - 1);
        kv.swap_pages = self.swap_pages;
        kv.prefix_cache = !args.no_enable_prefix_caching;
        kv.tenants = self.limits.tenants;
        let policies = vec![
            named(
                "allocation",
                format!("blocks of {} tokens", args.block_size),
            ),
            named("preempt", preempt_name(scheduler.preempt)),
            named(
                "admission",
                match scheduler.admission {
                    Admission::Optimistic => "optimistic",
                    Admission::Guaranteed => "guaranteed",
                },
            ),
            named("prefix cache", if kv.prefix_cache { "on" } else { "off" }),
        ];
        let config = paged::Config {
            scheduler,
            kv,
            belief: self.cost.clone(),
            truth: self.cost.clone(),
            asked: Asked::Most,
            branching: Branching::default(),
            faults: Faults::default(),
            measure_sharing: false,
            seed: args.seed,
            until: None,
        };
        let vocabulary = NonZeroU32::new(self.limits.vocab).unwrap_or(NonZeroU32::MIN);
        let fill = |i: u64, a: &Arrival, out: &mut Vec<u32>| {
            fill_tokens(a, i, args.seed, vocabulary, out);
        };
        let failed = |e: paged::RunError<WorkloadError>| match e {
            paged::RunError::Arrivals(e) => self.bad_workload(&e),
            other => Failure::new(Exit::Failure, "E-SIM-001", other.to_string())
                .hint("please report it with the command line"),
        };
        let summary = if let Some(path) = &args.log {
            let file = File::create(path).map_err(|e| cannot_write(path, &e))?;
            let log = LogWriter::new(
                BufWriter::new(file),
                &config.scheduler,
                &config.kv,
                &config.belief,
            );
            let (summary, log) =
                paged::run(&config, arrivals, fill, recorder, log).map_err(failed)?;
            log.end(summary.decision_hash)
                .map_err(|e| cannot_write(path, &e))?;
            summary
        } else {
            paged::run(&config, arrivals, fill, recorder, NoLog)
                .map_err(failed)?
                .0
        };
        recorder.finish(summary.ended);
        Ok(RunFacts {
            label: "paged".to_owned(),
            policies,
            pool: Pool {
                slots: self.slots(),
                pages: Some(u64::from(self.pages)),
                page_bytes: Some(self.layout.page.get()),
                block_size: Some(args.block_size),
            },
            decision_hash: Some(summary.decision_hash),
        })
    }

    fn contiguous(
        &self,
        server: ServerArg,
        arrivals: impl Iterator<Item = Result<Arrival, WorkloadError>>,
        recorder: &mut Recorder,
    ) -> Result<RunFacts, Failure> {
        let (label, which, reserves) = match server {
            ServerArg::OrcaPow2 => (
                "orca-pow2",
                Server::Orca(Reservation::Pow2),
                "the next power of two",
            ),
            ServerArg::OrcaOracle => (
                "orca-oracle",
                Server::Orca(Reservation::Oracle),
                "what will be used",
            ),
            ServerArg::Static => ("static", Server::StaticBatch, "the longest length"),
            ServerArg::OrcaMax | ServerArg::Paged => (
                "orca-max",
                Server::Orca(Reservation::Max),
                "the longest length",
            ),
        };
        let slots = self.contiguous_slots();
        let config = contiguous::Config {
            slots,
            max_tokens: u64::from(self.limits.max_model_len),
            server: which,
            max_batch: Some(u64::from(self.args.max_num_seqs)),
            until: None,
        };
        contiguous::run(&config, arrivals, &self.cost, recorder).map_err(|e| match e {
            contiguous::RunError::Arrivals(e) => self.bad_workload(&e),
            other => Failure::new(Exit::Failure, "E-SIM-001", other.to_string())
                .hint("check the rates and the workload"),
        })?;
        Ok(RunFacts {
            label: label.to_owned(),
            policies: vec![named(
                "allocation",
                format!("contiguous, reserves {reserves}"),
            )],
            pool: Pool {
                slots,
                pages: None,
                page_bytes: None,
                block_size: None,
            },
            decision_hash: None,
        })
    }

    fn setup(&self, seen: &Seen) -> Setup {
        let args = self.args;
        let r = &self.cost.rates;
        let source = match &args.trace {
            Some(path) => trace_name(path),
            None => args.workload.clone(),
        };
        let workload = format!(
            "{} {} of {source}{}",
            thousands(seen.requests),
            if seen.requests == 1 {
                "request"
            } else {
                "requests"
            },
            seen.words()
        );
        let costs = [
            ("flops_per_s", r.flops_per_s),
            ("memory_bytes_per_s", r.memory_bytes_per_s),
            ("link_bytes_per_s", r.link_bytes_per_s),
            ("transfer_ns", r.transfer_ns),
            ("step_ns", r.step_ns),
            ("row_ns", r.row_ns),
            ("weight_bytes", self.cost.work.weight_bytes),
            ("token_flops", self.cost.work.token_flops),
        ];
        Setup {
            model: self.model.name.clone(),
            device: if args.tp > 1 {
                format!("{} x {}", args.tp, self.device.name)
            } else {
                self.device.name.clone()
            },
            kv_bytes: self.pool.get(),
            swap_bytes: args.swap_space.get(),
            max_batched_tokens: args.max_num_batched_tokens,
            max_sequences: u64::from(args.max_num_seqs),
            seed: args.seed,
            workload,
            requests: seen.requests,
            costs: costs
                .iter()
                .map(|(name, value)| named(name, thousands(*value)))
                .collect(),
            slo: None,
            modelled: [
                "The scheduler and the block manager of the paged run are the ones that serve; their \
                 decisions are real.",
                "A step takes the larger of streaming the weights and computing linear layers, plus \
                 attention, copies, transfers and fixed costs, one after the other.",
                "Rates are 55 % of the device's dense 16-bit operations and 80 % of its memory \
                 bandwidth, and 25 GB/s to host memory.",
                "Contiguous servers reserve as the paper's baselines do; none of them splits prompts or \
                 preempts.",
            ]
            .map(str::to_owned)
            .to_vec(),
            not_modelled: [
                "What a model says: answers end where the workload says, whatever was generated.",
                "Collectives between tensor-parallel devices, and kernels' efficiency at small sizes.",
                "Tokenising, the network, and clients that go away.",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }
}

fn named(name: &str, value: impl Into<String>) -> Named {
    Named {
        name: name.to_owned(),
        value: value.into(),
    }
}

fn no_room(args: &SimulateArgs, page: Bytes) -> Failure {
    if let Some(given) = args.kv_memory {
        return Failure::new(
            Exit::DoesNotFit,
            "E-FIT-001",
            format!("--kv-memory {given} has no room for two KV blocks of {page}, one of which is the null block"),
        )
        .hint("give more, or choose a smaller `--block-size`");
    }
    Failure::new(
        Exit::DoesNotFit,
        "E-FIT-001",
        format!(
            "{} has no room for two KV blocks of {page} (one is the null block) beside the model and a step of {} tokens and {} sequences",
            args.gpu,
            thousands(args.max_num_batched_tokens),
            thousands(u64::from(args.max_num_seqs))
        ),
    )
    .hint("choose a larger device, a higher `--tp`, a smaller `--block-size`, or a smaller step by `--max-num-batched-tokens` and `--max-num-seqs`")
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

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn trace_name(path: &Path) -> String {
    if is_stdin(path) {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    }
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
                "standard input holds more than {}, and every server reads it",
                Bytes::new(STDIN_BYTES_MAX)
            ),
        )
        .hint(
            "write the trace to a file, or run one server by `--servers paged`: both are streamed",
        ));
    }
    Ok(held.into())
}

fn the_workload(args: &SimulateArgs, longest: u64) -> Result<WorkloadSpec, Failure> {
    let mut spec = match &args.trace {
        Some(_) => WorkloadSpec::trace(),
        None => {
            let text: SyntheticSpec = args.workload.parse().map_err(|e| bad_text(&e))?;
            WorkloadSpec::synthetic(text)
        }
    };
    if let Some(rate) = args.rate {
        if !(rate.is_finite() && rate > 0.0) {
            return Err(Failure::new(
                Exit::Usage,
                "E-USAGE-007",
                format!("--rate {rate} is no rate"),
            )
            .hint("write requests per second, above 0; 1e9 sends everything at once"));
        }
        spec = spec.at_rate(rate);
    }
    spec.seed = args.seed;
    spec.shaping.max_model_tokens = Some(longest);
    spec.shaping.limit = match (&spec.source, args.requests) {
        (_, Some(n)) => Some(n),
        (WorkloadSource::Synthetic(_), None) => Some(REQUESTS),
        (WorkloadSource::Trace(_), None) => None,
    };
    // More requests than the trace has: it starts again.
    if args.trace.is_some() && args.requests.is_some() {
        spec.shaping.repeat = Repeat::FreshContent;
    }
    Ok(spec)
}
