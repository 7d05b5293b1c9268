//! `plimsoll simulate --find max-rate`: the highest rate at which a service level holds.

use std::process::ExitCode;

use plimsoll_model::Assume;
use plimsoll_report::simulation::{FIND_SCHEMA, FindReport, Found, Percentiles, Probe, find_table};
use plimsoll_report::thousands;
use plimsoll_simulate::judge::{Judge, Verdict};
use plimsoll_simulate::search::highest;
use plimsoll_simulate::{Recorder, RecorderConfig, Slo};

use super::{case, json, measured, servers, several, shaped, source, threads};
use crate::args::{ServerArg, SimulateArgs};
use crate::error::{Exit, Failure};
use crate::load::load;
use crate::output::Output;
use crate::progress::Progress;
use crate::simulated::{Prepared, Server, Traffic, in_order};

/// The answer and the next rate that fails are this close.
const PRECISION: f64 = 0.01;

/// Most probes of one server. Twelve doublings and seven halvings are usual.
const PROBES_MAX: u32 = 48;

/// Requests per second that are alone: hours apart.
const ALONE_PER_S: f64 = 1e-4;

/// Most requests of the probe in which they are alone.
const ALONE_REQUESTS: u64 = 1000;

/// Most requests that a probe adds to those asked for.
const REQUESTS_MAX: u64 = 100_000;

/// Most requests that may be asked for: every request of a probe is held until it is judged.
const HELD_MAX: u64 = 10_000_000;

pub(super) fn run(args: &SimulateArgs, slo: Slo, output: &mut Output) -> Result<ExitCode, Failure> {
    held(args.requests.unwrap_or_default())?;
    let servers = servers(args, &[ServerArg::Paged]);
    several(args, &servers)?;
    let name = args.model.as_deref().unwrap_or_default();
    let model = load(name, Assume::Nothing, args.offline)?;
    let prepared = case(args, measured(args)?)?.prepare(&model.spec)?;
    // A trace without arrival times has a rate in every probe, so here too.
    let mut traffic = shaped(source(args)?, args)?.at_rate(1.0)?;
    traffic.hold()?;
    let seen = prepared.survey(&traffic)?;
    held(seen.requests)?;
    let progress = Progress::new();
    let search = |server: &Server| {
        let search = Search {
            prepared: &prepared,
            traffic: &traffic,
            server: *server,
            requests: seen.requests,
            slo,
        };
        search.run(&progress)
    };
    let found = in_order(&servers, threads(args), search, |_| ())?;
    drop(progress);
    let mut setup = prepared.setup(&model.name, &traffic, &seen, Some(slo));
    setup.workload = format!("Requests of {}; {}", traffic.name, seen.lengths());
    let report = FindReport {
        schema: FIND_SCHEMA.to_owned(),
        setup,
        precision: PRECISION,
        judged: judged(seen.requests),
        servers: found,
        notes: Vec::new(),
    };
    if args.json {
        output.line(&json(&report)?)?;
    } else {
        output.line(&find_table(&report, output.look()))?;
    }
    Ok(if report.servers.iter().any(|f| f.rate_per_s.is_some()) {
        ExitCode::SUCCESS
    } else {
        crate::exit(Exit::DoesNotFit)
    })
}

/// Whether so many requests can be held.
fn held(requests: u64) -> Result<(), Failure> {
    if requests <= HELD_MAX {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Usage,
        "E-SIM-018",
        format!(
            "{} requests are too many for a search, which holds those of a probe",
            thousands(requests)
        ),
    )
    .hint(format!("choose `--requests` up to {}", thousands(HELD_MAX))))
}

/// How probes are judged.
fn judged(requests: u64) -> Vec<String> {
    let percent = PRECISION * 100.0;
    vec![
        format!(
            "A probe has at least {} requests, and at least as many as arrive in {:.0} times the time that one alone \
             takes, up to {}.",
            thousands(requests),
            1.0 / PRECISION,
            thousands(REQUESTS_MAX)
        ),
        "Its first tenth is not judged; the rest must keep the service level, and so must the second half of the rest."
            .to_owned(),
        format!(
            "The last tenth may wait longer than the second by {percent} % of the time in which requests arrive; more is \
             a growing queue."
        ),
        format!(
            "Requests arrive by the workload's process at the rate, those of a trace by a Poisson process. The answer \
             and the next rate that fails are {percent} % apart."
        ),
    ]
}

/// One server's search.
struct Search<'a> {
    prepared: &'a Prepared,
    traffic: &'a Traffic,
    server: Server,
    /// Fewest requests of a probe.
    requests: u64,
    slo: Slo,
}

impl Search<'_> {
    fn run(&self, progress: &Progress) -> Result<Found, Failure> {
        let label = self.server.label();
        let mut probes = Vec::new();
        let (alone, e2e_s) = self.probe(ALONE_PER_S, self.requests.min(ALONE_REQUESTS))?;
        let limited_by = alone.limited_by;
        probes.push(alone);
        // What is broken by a request alone is broken at every rate.
        let (Some(e2e_s), None) = (e2e_s.filter(|s| *s > 0.0), limited_by) else {
            return Ok(Found {
                label: label.to_owned(),
                rate_per_s: None,
                fails_at_per_s: None,
                limited_by,
                probes,
            });
        };
        let bracket = highest(1.0 / e2e_s, PRECISION, PROBES_MAX, |rate| {
            progress.show(|| format!("{label}: {rate} requests per second"));
            let least = (rate * e2e_s / PRECISION).ceil();
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "not negative, and bounded before use"
            )]
            let requests = (least as u64).min(REQUESTS_MAX).max(self.requests);
            let (probe, _) = self.probe(rate, requests)?;
            let kept = probe.kept;
            probes.push(probe);
            Ok::<bool, Failure>(kept)
        })?;
        let at = |rate: f64| probes.iter().find(|p| p.rate_per_s == rate);
        Ok(Found {
            label: label.to_owned(),
            rate_per_s: bracket.holds,
            fails_at_per_s: bracket.fails,
            limited_by: bracket.fails.and_then(at).and_then(|p| p.limited_by),
            probes,
        })
    }

    /// Runs `requests` at `rate`; also the mean time of a request from end to end, in seconds.
    fn probe(&self, rate: f64, requests: u64) -> Result<(Probe, Option<f64>), Failure> {
        let traffic = self.traffic.clone().at_rate(rate)?.limited(requests);
        let config = RecorderConfig {
            // The series is not shown.
            buckets: 2,
            ..RecorderConfig::default()
        };
        let mut judge = Judge::new(Recorder::new(config), self.slo);
        let (facts, ..) = self
            .prepared
            .serve(self.server, &traffic, &mut judge, None)?;
        let (recorder, verdict) = judge.verdict(PRECISION);
        let run = recorder.run(facts);
        let p99 = |p: Option<Percentiles>| p.map(|p| p.p99_s);
        let Verdict {
            requests,
            span,
            share,
            second_half_share,
            wait_growth_s,
            limited_by,
            ..
        } = verdict;
        let probe = Probe {
            rate_per_s: rate,
            requests,
            arrivals_s: span.0 as f64 / 1e9,
            kept: limited_by.is_none(),
            limited_by,
            share,
            second_half_share,
            wait_growth_s,
            output_tokens_per_s: run.output_tokens_per_s,
            ttft_p99_s: p99(run.latency.ttft),
            inter_token_p99_s: p99(run.latency.inter_token),
        };
        Ok((probe, run.latency.e2e.map(|p| p.mean_s)))
    }
}
