//! `plimsoll simulate`.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter};
use std::num::NonZeroU32;
use std::path::Path;
use std::process::ExitCode;

use plimsoll_device::Device;
use plimsoll_kv::{KvConfig, Layout};
use plimsoll_model::Assume;
use plimsoll_plan::{Deployment, Engine, KvType, Load, Settings, evaluate};
use plimsoll_program::{KvRules, Parallel, PoolGeometry};
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
use plimsoll_simulate::{Recorder, RecorderConfig, RunFacts};
use plimsoll_units::{Bytes, DType};

use crate::args::{AdmissionArg, PreemptArg, ServerArg, SimulateArgs};
use crate::error::{Exit, Failure};
use crate::load::{Loaded, load};
use crate::output::Output;

/// Requests of a synthetic workload unless told.
const REQUESTS: u64 = 2000;

pub(crate) fn run(args: &SimulateArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    if let Some(path) = &args.replay {
        return replay(path, output);
    }
    let name = args.model.as_deref().unwrap_or_default();
    let model = load(name, Assume::Nothing, args.offline)?;
    let case = Case::new(args, model)?;
    let mut servers = args.servers.clone();
    servers.dedup();
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
    for outcome in outcomes {
        let ran = outcome?;
        for note in ran.notes {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        runs.push(ran.run);
    }
    let report = SimulationReport {
        schema: SIMULATION_SCHEMA.to_owned(),
        setup: case.setup(&runs),
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
    Ok(ExitCode::SUCCESS)
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
    notes: Vec<String>,
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
}

impl<'a> Case<'a> {
    fn new(args: &'a SimulateArgs, model: Loaded) -> Result<Self, Failure> {
        let device = plimsoll_device::find(&args.gpu).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "E-USAGE-004",
                format!("`{}` is no known device", args.gpu),
            )
            .hint("`plimsoll devices` lists them")
        })?;
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
        let longest = args.max_model_len.or(spec.max_context).unwrap_or(8192);
        let max_model_len = u32::try_from(longest.min(1 << 24)).unwrap_or(u32::MAX);
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
            Ok(0) => return Err(no_room(args, layout.page)),
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
        Ok(Self {
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

    /// Slots of the pool: one token's place.
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

    fn open(&self) -> Result<Workload, Failure> {
        let source: Option<Box<dyn BufRead + Send>> = match &self.args.trace {
            None => None,
            Some(path) => Some(Box::new(BufReader::new(File::open(path).map_err(|e| {
                Failure::new(
                    Exit::NotFound,
                    "E-SIM-009",
                    format!("cannot open the trace {}: {e}", path.display()),
                )
                .hint("check the path; `--workload azure-conv` needs no file")
            })?))),
        };
        self.workload
            .open(source)
            .map_err(|e| self.bad_workload(&e))
    }

    fn bad_workload(&self, e: &WorkloadError) -> Failure {
        match &self.args.trace {
            Some(path) => Failure::new(
                Exit::Corrupt,
                "E-SIM-010",
                format!("{}: {e}", path.display()),
            )
            .hint("known are Azure, BurstGPT and length CSV, and Mooncake JSONL"),
            None => bad_text(e),
        }
    }

    fn run(&self, server: ServerArg) -> Result<Ran, Failure> {
        let mut workload = self.open()?;
        let mut recorder = Recorder::new(RecorderConfig::default());
        let facts = match server {
            ServerArg::Paged => self.paged(&mut workload, &mut recorder)?,
            _ => self.contiguous(server, &mut workload, &mut recorder)?,
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
            notes,
        })
    }

    fn paged(&self, workload: &mut Workload, recorder: &mut Recorder) -> Result<RunFacts, Failure> {
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
        let mut kv = KvConfig::new(self.layout.clone(), self.pages);
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
        let fill = |i: u64, a: &plimsoll_simulate::Arrival, out: &mut Vec<u32>| {
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
                paged::run(&config, workload, fill, recorder, log).map_err(failed)?;
            log.end(summary.decision_hash)
                .map_err(|e| cannot_write(path, &e))?;
            summary
        } else {
            paged::run(&config, workload, fill, recorder, NoLog)
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
        workload: &mut Workload,
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
        let config = contiguous::Config {
            slots: self.slots(),
            max_tokens: u64::from(self.limits.max_model_len),
            server: which,
            max_batch: Some(u64::from(self.args.max_num_seqs)),
            until: None,
        };
        contiguous::run(&config, workload, &self.cost, recorder).map_err(|e| match e {
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
                slots: self.slots(),
                pages: None,
                page_bytes: None,
                block_size: None,
            },
            decision_hash: None,
        })
    }

    fn setup(&self, runs: &[Run]) -> Setup {
        let args = self.args;
        let r = &self.cost.rates;
        let text = match &args.trace {
            Some(path) => format!("trace {}", path.display()),
            None => args.workload.clone(),
        };
        let rate = args
            .rate
            .map(|r| format!(" at {r} requests/s"))
            .unwrap_or_default();
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
            workload: text + &rate,
            requests: runs
                .first()
                .map_or(0, |r| r.requests.finished + r.requests.refused),
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
    Failure::new(
        Exit::DoesNotFit,
        "E-FIT-001",
        format!(
            "{} has no room for one KV block of {page} beside the model",
            args.gpu
        ),
    )
    .hint("choose a larger device, or divide the model with `--tp 2`")
}

fn bad_text(e: &WorkloadError) -> Failure {
    Failure::new(Exit::Usage, "E-SIM-011", e.to_string()).hint(
        "write sharegpt, alpaca, azure-code, azure-conv, or synthetic:in=64,out=lognormal(200,0.8)",
    )
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
            .hint("write requests per second, above 0"));
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
