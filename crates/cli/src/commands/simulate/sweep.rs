//! `plimsoll simulate --sweep`: every combination of some values, on every server.

use std::process::ExitCode;

use plimsoll_model::Assume;
use plimsoll_report::simulation::{
    Axis, Named, Point, PointRun, SWEEP_SCHEMA, SweepReport, sweep_charts, sweep_csv, sweep_html,
    sweep_table,
};
use plimsoll_report::thousands;
use plimsoll_simulate::RecorderConfig;

use super::{
    case, has_folder, json, measured, servers, several, shaped, source, threads, write_charts,
    write_file,
};
use crate::args::{ServerArg, SimulateArgs, Sweep};
use crate::error::{Exit, Failure};
use crate::load::load;
use crate::output::Output;
use crate::progress::Progress;
use crate::simulated::{Prepared, Ran, Server, Traffic, in_order};

/// Most points of one sweep.
const POINTS_MAX: usize = 10_000;

/// Most notes that are repeated from the runs.
const NOTES_MAX: usize = 5;

pub(super) fn run(args: &SimulateArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let combinations = combinations(&args.sweep)?;
    for path in [&args.html, &args.csv].into_iter().flatten() {
        has_folder(path)?;
    }
    let servers = servers(args, &ServerArg::ALL);
    let name = args.model.as_deref().unwrap_or_default();
    let model = load(name, Assume::Nothing, args.offline)?;
    let mut source = source(args)?;
    source.hold()?;
    let profile = measured(args)?;
    let mut cases = Vec::with_capacity(combinations.len());
    for values in &combinations {
        let mut typed = args.clone();
        for (sweep, i) in args.sweep.iter().zip(values) {
            (sweep.flag.set)(&mut typed, &sweep.values[*i].1);
        }
        several(&typed, &servers)?;
        let profile = profile.clone();
        cases.push((case(&typed, profile)?, shaped(source.clone(), &typed)?));
    }
    // What does not fit or cannot be split is a result.
    let prepared: Vec<(Result<Prepared, Failure>, Traffic)> = cases
        .into_iter()
        .map(|(case, traffic)| (case.prepare(&model.spec), traffic))
        .collect();
    let jobs: Vec<(usize, Server)> = (0..prepared.len())
        .filter(|i| prepared[*i].0.is_ok())
        .flat_map(|i| servers.iter().map(move |s| (i, *s)))
        .collect();
    if let Some(failure) = none_can_run(&prepared).filter(|_| jobs.is_empty()) {
        return Err(failure);
    }
    let config = RecorderConfig {
        slo: args.slo,
        // The series is not shown.
        buckets: 2,
        ..RecorderConfig::default()
    };
    let progress = Progress::new();
    let ran = in_order(
        &jobs,
        threads(args),
        |(i, server)| {
            let (prepared, traffic) = &prepared[*i];
            prepared.clone()?.run(*server, traffic, config, None)
        },
        |done| progress.count(done, jobs.len(), "runs"),
    )?;
    drop(progress);
    let report = report(args, &model.name, &combinations, &prepared, &jobs, ran);
    if let Some(path) = &args.html {
        write_file(path, &sweep_html(&report))?;
    }
    if let Some(path) = &args.csv {
        write_file(path, &sweep_csv(&report))?;
    }
    if let Some(folder) = &args.svg {
        write_charts(folder, &sweep_charts(&report))?;
    }
    if args.json {
        output.line(&json(&report)?)?;
    } else {
        output.line(&sweep_table(&report, output.look()))?;
    }
    let finished = |p: &Point| p.runs.iter().any(|r| r.requests.finished > 0);
    Ok(if report.points.iter().any(finished) {
        ExitCode::SUCCESS
    } else {
        crate::exit(Exit::DoesNotFit)
    })
}

/// Which value of every swept flag each point has; the last one changes fastest.
fn combinations(sweeps: &[Sweep]) -> Result<Vec<Vec<usize>>, Failure> {
    for (i, sweep) in sweeps.iter().enumerate() {
        let name = sweep.flag.name;
        if sweeps[..i].iter().any(|s| s.flag.name == name) {
            return Err(Failure::new(
                Exit::Usage,
                "E-USAGE-010",
                format!("--sweep names {name} twice"),
            )
            .hint(format!("write all of its values in one: {name}=V1,V2")));
        }
    }
    let points = sweeps.iter().try_fold(1_usize, |n, sweep| {
        n.checked_mul(sweep.values.len())
            .filter(|n| *n <= POINTS_MAX)
    });
    if points.is_none() {
        return Err(Failure::new(
            Exit::Usage,
            "E-USAGE-011",
            format!(
                "--sweep makes more than {} points",
                thousands(POINTS_MAX as u64)
            ),
        )
        .hint("give fewer values, or sweep in several commands"));
    }
    let mut out = vec![Vec::new()];
    for sweep in sweeps {
        out = out
            .iter()
            .flat_map(|point: &Vec<usize>| {
                (0..sweep.values.len()).map(|i| [point.as_slice(), &[i]].concat())
            })
            .collect();
    }
    Ok(out)
}

/// The first point's failure, in the name of all.
fn none_can_run(prepared: &[(Result<Prepared, Failure>, Traffic)]) -> Option<Failure> {
    let first = prepared.iter().find_map(|(p, _)| p.as_ref().err())?;
    Some(match prepared.len() as u64 {
        1 => first.clone(),
        n => first.clone().why(format!(
            "none of the {} points of the sweep can run; this is the first",
            thousands(n)
        )),
    })
}

fn report(
    args: &SimulateArgs,
    model: &str,
    combinations: &[Vec<usize>],
    prepared: &[(Result<Prepared, Failure>, Traffic)],
    jobs: &[(usize, Server)],
    ran: Vec<Ran>,
) -> SweepReport {
    let mut points: Vec<Point> = combinations
        .iter()
        .zip(prepared)
        .map(|(values, (prepared, _))| Point {
            settings: args
                .sweep
                .iter()
                .zip(values)
                .map(|(sweep, i)| Named {
                    name: sweep.flag.name.to_owned(),
                    value: sweep.values[*i].0.clone(),
                })
                .collect(),
            kv_bytes: prepared.as_ref().ok().map(|p| p.pool.get()),
            reason: prepared.as_ref().err().map(|e| e.what.clone()),
            runs: Vec::new(),
        })
        .collect();
    let seen = ran.first().map(|r| r.seen).unwrap_or_default();
    let mut notes: Vec<String> = Vec::new();
    for ((i, _), ran) in jobs.iter().zip(ran) {
        for note in ran.notes {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        points[*i].runs.push(PointRun::from(ran.run));
    }
    let more = notes.len().saturating_sub(NOTES_MAX);
    notes.truncate(NOTES_MAX);
    if more > 0 {
        notes.push(format!("and {more} more of this kind"));
    }
    let nothing = points
        .iter()
        .flat_map(|p| &p.runs)
        .filter(|r| r.requests.finished == 0)
        .count();
    if nothing > 0 {
        notes.push(format!(
            "in {} runs every request was refused: each needs more blocks than the pool has, or more sequences than \
             --max-num-seqs",
            thousands(nothing as u64)
        ));
    }
    // There is a job, so there is a first point.
    let first = jobs.first().map(|(i, _)| &prepared[*i]);
    let setup = first.and_then(|(p, traffic)| {
        let prepared = p.as_ref().ok()?;
        Some(prepared.setup(model, traffic, &seen, args.slo))
    });
    SweepReport {
        schema: SWEEP_SCHEMA.to_owned(),
        setup: setup.unwrap_or_default(),
        swept: args.sweep.iter().map(axis).collect(),
        points,
        notes,
    }
}

fn axis(sweep: &Sweep) -> Axis {
    Axis {
        name: sweep.flag.name.to_owned(),
        values: sweep.values.iter().map(|(text, _)| text.clone()).collect(),
        numbers: sweep
            .values
            .iter()
            .map(|(_, typed)| (sweep.flag.number)(typed))
            .collect(),
    }
}
