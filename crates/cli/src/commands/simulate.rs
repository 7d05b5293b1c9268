//! `plimsoll simulate`.

mod find;
mod sweep;

use std::fs::File;
use std::io::BufReader;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::process::ExitCode;

use plimsoll_model::Assume;
use plimsoll_report::simulation::{
    Chart, SIMULATION_SCHEMA, SimulationReport, charts, series_csv, simulation_html,
    simulation_table,
};
use plimsoll_report::thousands;
use plimsoll_schedule::{Admission, Preempt};
use plimsoll_simulate::RecorderConfig;
use plimsoll_simulate::contiguous::{self, Reservation};
use plimsoll_simulate::log::{LogError, replay_log};
use plimsoll_simulate::paged::{Branching, Fleet, Router};

use crate::args::{AdmissionArg, FindArg, PreemptArg, RouterArg, ServerArg, SimulateArgs};
use crate::commands::devices::unknown;
use crate::error::{Exit, Failure};
use crate::load::load;
use crate::output::Output;
use crate::simulated::{Case, Measured, Seen, Server, Traffic, in_order};

pub(crate) fn run(args: &SimulateArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    if let Some(path) = &args.replay {
        return replay(path, output);
    }
    if let (Some(FindArg::MaxRate), Some(slo)) = (args.find, args.slo) {
        return find::run(args, slo, output);
    }
    if !args.sweep.is_empty() {
        return sweep::run(args, output);
    }
    let servers = servers(args, &ServerArg::ALL);
    if args.log.is_some() && !servers.contains(&Server::Paged) {
        return Err(Failure::new(
            Exit::Usage,
            "E-USAGE-009",
            "--log records the paged run, and --servers leaves it out",
        )
        .hint("add paged to `--servers`, or leave `--log` out"));
    }
    several(args, &servers)?;
    for path in [&args.html, &args.csv, &args.log].into_iter().flatten() {
        has_folder(path)?;
    }
    let name = args.model.as_deref().unwrap_or_default();
    let model = load(name, Assume::Nothing, args.offline)?;
    let prepared = case(args, measured(args)?)?.prepare(&model.spec)?;
    let mut traffic = shaped(source(args)?, args)?;
    if servers.len() > 1 {
        traffic.hold()?;
    }
    let config = RecorderConfig {
        slo: args.slo,
        ..RecorderConfig::default()
    };
    // A run depends on nothing else, so any number of threads gives the same.
    let outcomes = in_order(
        &servers,
        threads(args),
        |server| {
            let log = args.log.as_deref().filter(|_| *server == Server::Paged);
            prepared.run(*server, &traffic, config, log)
        },
        |_| (),
    )?;
    let mut runs = Vec::new();
    let mut notes = Vec::new();
    let mut seen = Seen::default();
    for ran in outcomes {
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
        setup: prepared.setup(&model.name, &traffic, &seen, config.slo),
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
        write_charts(folder, &charts(&report))?;
    }
    if args.json {
        output.line(&json(&report)?)?;
    } else {
        output.line(&simulation_table(&report, output.look()))?;
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
        "{} inputs, {} steps\nsharing saves {:.1} % of the blocks in tables\nrecorded {:016x}\nreplayed {:016x}",
        thousands(result.inputs),
        thousands(result.steps),
        result.sharing.saved_percent(),
        result.recorded,
        result.replayed
    ))?;
    if result.recorded == result.replayed {
        output.line("every decision is the same")?;
    }
    if let Some((recorded, replayed)) = result.tables {
        output.line(&format!(
            "block tables recorded {recorded:016x}\nblock tables replayed {replayed:016x}"
        ))?;
        if recorded == replayed {
            output.line("every block table is the same")?;
        }
    }
    if result.is_same() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(
        Exit::Failure,
        "E-SIM-004",
        if result.recorded == result.replayed {
            "the run computed by other block tables than the replay has"
        } else {
            "the replay decided otherwise than the recorded run"
        },
    )
    .hint("the log was changed, or written by another version of this program"))
}

/// Tells of a missing folder before the run rather than after it.
fn has_folder(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    match folder.map(std::fs::metadata) {
        Some(Err(e)) => Err(Failure::cannot_write(path, &e)),
        _ => Ok(()),
    }
}

pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|e| Failure::cannot_write(path, &e))
}

/// What replicas do not go with.
fn several(args: &SimulateArgs, servers: &[Server]) -> Result<(), Failure> {
    let fleet = args.replicas.is_some_and(|n| n > NonZeroU32::MIN);
    if fleet && servers.iter().any(|s| *s != Server::Paged) {
        return Err(Failure::new(
            Exit::Usage,
            "E-SIM-020",
            "--replicas is for the paged server, and --servers names another",
        )
        .hint("leave `--servers` out, or run the others without `--replicas`"));
    }
    if fleet && args.log.is_some() {
        return Err(Failure::new(
            Exit::Usage,
            "E-SIM-020",
            "--log records one server, and --replicas asks for several",
        )
        .hint("leave one of the two out"));
    }
    Ok(())
}

fn write_charts(folder: &Path, charts: &[Chart]) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| Failure::cannot_write(folder, &e))?;
    for chart in charts {
        let path = folder.join(format!("{}.svg", chart.name));
        write_file(&path, &chart.standalone)?;
    }
    Ok(())
}

fn json(report: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(report)
        .map_err(|e| Failure::new(Exit::Failure, "E-IO-002", e.to_string()))
}

/// The servers asked for, each once; `unless_told` where none was.
fn servers(args: &SimulateArgs, unless_told: &[ServerArg]) -> Vec<Server> {
    let swept = |name| args.sweep.iter().any(|s| s.flag.name == name);
    let asked = match args.servers.as_slice() {
        [] if args.replicas.is_some() || swept("replicas") => &[ServerArg::Paged],
        [] => unless_told,
        given => given,
    };
    let mut servers: Vec<Server> = Vec::new();
    for server in asked.iter().map(|s| Server::from(*s)) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

/// Runs at once.
fn threads(args: &SimulateArgs) -> usize {
    args.threads
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
}

/// The profile that is named.
fn measured(args: &SimulateArgs) -> Result<Option<Measured>, Failure> {
    args.profile.as_deref().map(Measured::read).transpose()
}

/// The server that the flags describe.
fn case(args: &SimulateArgs, profile: Option<Measured>) -> Result<Case, Failure> {
    Ok(Case {
        device: plimsoll_device::find(&args.gpu)
            .ok_or_else(|| unknown(&args.gpu))?
            .clone(),
        tp: args.tp,
        fleet: Fleet {
            replicas: args.replicas.unwrap_or(NonZeroU32::MIN),
            router: args.router.into(),
        },
        kv_memory: args.kv_memory,
        swap_space: args.swap_space,
        block_size: args.block_size,
        max_model_len: args.max_model_len,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens,
        admission: args.admission.into(),
        preempt: args.preempt.into(),
        kv_cache_dtype: args.kv_cache_dtype,
        prefix_cache: !args.no_enable_prefix_caching,
        tenants: args.tenants.clone().map_or_else(Vec::new, |t| t.0),
        profile,
        rates: args.rates.unwrap_or_default(),
        belief: args.belief,
        branching: Branching {
            drift: args.beam_drift,
        },
    })
}

/// Where requests come from.
fn source(args: &SimulateArgs) -> Result<Traffic, Failure> {
    match &args.trace {
        Some(path) => Ok(Traffic::trace(path)),
        None => Traffic::synthetic(&args.workload),
    }
}

/// The requests that the flags make of `source`.
fn shaped(mut source: Traffic, args: &SimulateArgs) -> Result<Traffic, Failure> {
    if let Some(rate) = args.rate {
        source = source.at_rate(rate)?;
    }
    if let Some(n) = args.requests {
        source = source.limited(n);
    }
    Ok(source.seeded(args.seed))
}

impl From<ServerArg> for Server {
    fn from(arg: ServerArg) -> Self {
        let orca = |r| Self::Contiguous(contiguous::Server::Orca(r));
        match arg {
            ServerArg::Paged => Self::Paged,
            ServerArg::OrcaMax => orca(Reservation::Max),
            ServerArg::OrcaPow2 => orca(Reservation::Pow2),
            ServerArg::OrcaOracle => orca(Reservation::Oracle),
            ServerArg::Static => Self::Contiguous(contiguous::Server::StaticBatch),
        }
    }
}

impl From<RouterArg> for Router {
    fn from(arg: RouterArg) -> Self {
        match arg {
            RouterArg::RoundRobin => Self::RoundRobin,
            RouterArg::LeastLoaded => Self::LeastLoaded,
        }
    }
}

impl From<AdmissionArg> for Admission {
    fn from(arg: AdmissionArg) -> Self {
        match arg {
            AdmissionArg::Optimistic => Self::Optimistic,
            AdmissionArg::Guaranteed => Self::Guaranteed,
        }
    }
}

impl From<PreemptArg> for Preempt {
    fn from(arg: PreemptArg) -> Self {
        match arg {
            PreemptArg::Auto => Self::Auto,
            PreemptArg::Swap => Self::Swap,
            PreemptArg::Recompute => Self::Recompute,
        }
    }
}
