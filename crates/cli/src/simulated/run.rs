//! [`Prepared::run`]: one run of one server.

use std::fs::File;
use std::io::BufWriter;
use std::num::NonZeroU32;
use std::path::Path;

use plimsoll_kv::KvConfig;
use plimsoll_report::simulation::{Pool, Run};
use plimsoll_report::thousands;
use plimsoll_schedule::{Admission, Limits, SchedulerConfig, Tenant};
use plimsoll_simulate::contiguous::{self, Reservation};
use plimsoll_simulate::log::LogWriter;
use plimsoll_simulate::paged::{self, Asked, Faults, preempt_name, router_name};
use plimsoll_simulate::workload::{WorkloadError, fill_tokens};
use plimsoll_simulate::{Arrival, Recorder, RecorderConfig, RunFacts, Sink};

use super::setup::named;
use super::{Prepared, Seen, TenantShare, Traffic};
use crate::error::{Exit, Failure};

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// Our scheduler and block manager.
    Paged,
    /// A baseline.
    Contiguous(contiguous::Server),
}

impl Server {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Paged => "paged",
            Self::Contiguous(contiguous::Server::StaticBatch) => "static",
            Self::Contiguous(contiguous::Server::Orca(r)) => match r {
                Reservation::Max => "orca-max",
                Reservation::Pow2 => "orca-pow2",
                Reservation::Oracle => "orca-oracle",
            },
        }
    }
}

/// What one server made of its requests.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) run: Run,
    pub(crate) seen: Seen,
    pub(crate) notes: Vec<String>,
}

impl Prepared {
    /// Serves `traffic` from its first request to the end of its last one, and records what `config` says.
    pub(crate) fn run(
        &self,
        server: Server,
        traffic: &Traffic,
        config: RecorderConfig,
        log: Option<&Path>,
    ) -> Result<Ran, Failure> {
        let mut recorder = Recorder::new(config);
        let (facts, seen, notes) = self.serve(server, traffic, &mut recorder, log)?;
        Ok(Ran {
            run: recorder.run(facts),
            seen,
            notes,
        })
    }

    /// Serves `traffic` and tells `sink`. `log` records the decisions of the paged server.
    pub(crate) fn serve(
        &self,
        server: Server,
        traffic: &Traffic,
        sink: &mut impl Sink,
        log: Option<&Path>,
    ) -> Result<(RunFacts, Seen, Vec<String>), Failure> {
        let mut workload = traffic.open(u64::from(self.max_model_len))?;
        let mut seen = Seen::default();
        let arrivals = workload.by_ref().inspect(|a| {
            if let Ok(a) = a {
                seen.add(a);
            }
        });
        let facts = match server {
            Server::Paged => self.paged(traffic, arrivals, sink, log)?,
            Server::Contiguous(which) => self.contiguous(which, traffic, arrivals, sink)?,
        };
        let counts = workload.notes();
        let mut notes = Vec::new();
        let mut note = |n: u64, what: &str| {
            if n > 0 {
                notes.push(format!("{} {what}", thousands(n)));
            }
        };
        note(
            counts.clamped,
            "requests were cut to the longest that the model takes",
        );
        note(
            counts.failed_skipped,
            "rows of failed requests were passed over",
        );
        note(
            counts.reordered,
            "rows came late by a little and arrive with their successors",
        );
        Ok((facts, seen, notes))
    }

    fn paged(
        &self,
        traffic: &Traffic,
        arrivals: impl Iterator<Item = Result<Arrival, WorkloadError>>,
        sink: &mut impl Sink,
        log: Option<&Path>,
    ) -> Result<RunFacts, Failure> {
        let config = self.paged_config(traffic)?;
        let seed = config.seed;
        let vocabulary = NonZeroU32::new(self.vocab).unwrap_or(NonZeroU32::MIN);
        let fill = |i: u64, a: &Arrival, out: &mut Vec<u32>| {
            fill_tokens(a, i, seed, vocabulary, out);
        };
        let failed = |e: paged::RunError<WorkloadError>| match e {
            paged::RunError::Arrivals(e) => traffic.failure(&e),
            other => Failure::new(Exit::Failure, "E-SIM-001", other.to_string())
                .hint("please report it with the command line"),
        };
        let fleet = self.case.fleet;
        let summary = if let Some(path) = log.filter(|_| fleet.replicas == NonZeroU32::MIN) {
            let cannot = |e| Failure::cannot_write(path, &e);
            let file = File::create(path).map_err(cannot)?;
            let log = LogWriter::new(
                BufWriter::new(file),
                &config.scheduler,
                &config.kv,
                &config.belief,
            );
            let (summary, log) = paged::run(&config, arrivals, fill, sink, log).map_err(failed)?;
            log.end(summary.decision_hash, None).map_err(cannot)?;
            summary
        } else {
            paged::run_fleet(&config, fleet, arrivals, fill, sink).map_err(failed)?
        };
        let block_size = self.case.block_size;
        let mut policies = vec![
            named("allocation", format!("blocks of {block_size} tokens")),
            named("preempt", preempt_name(config.scheduler.preempt)),
            named(
                "admission",
                match config.scheduler.admission {
                    Admission::Optimistic => "optimistic",
                    Admission::Guaranteed => "guaranteed",
                },
            ),
            named(
                "prefix cache",
                if config.kv.prefix_cache { "on" } else { "off" },
            ),
        ];
        if !self.case.tenants.is_empty() {
            let shares = self.case.tenants.iter();
            let shares: Vec<String> = shares
                .map(|t| format!("{} to {}", t.floor, t.cap))
                .collect();
            policies.push(named("tenants", shares.join(", ")));
        }
        let replicas = u64::from(fleet.replicas.get());
        if replicas > 1 {
            policies.push(named("replicas", replicas.to_string()));
            policies.push(named("router", router_name(fleet.router)));
        }
        Ok(RunFacts {
            label: Server::Paged.label().to_owned(),
            policies,
            // All replicas' together, as the classes of memory are.
            pool: Pool {
                slots: replicas * self.slots(),
                pages: Some(replicas * u64::from(self.pages)),
                page_bytes: Some(self.layout.page.get()),
                block_size: Some(block_size),
            },
            decision_hash: Some(summary.decision_hash),
        })
    }

    fn paged_config(&self, traffic: &Traffic) -> Result<paged::Config, Failure> {
        let case = &self.case;
        let tenants = u16::try_from(traffic.tenants()).unwrap_or(1);
        let mut scheduler = SchedulerConfig::new(Limits {
            max_model_len: self.max_model_len,
            vocab: self.vocab,
            max_width: case.max_num_seqs,
            tenants,
        });
        scheduler.max_seqs = case.max_num_seqs;
        scheduler.max_batched_tokens =
            u32::try_from(case.max_num_batched_tokens).unwrap_or(u32::MAX);
        scheduler.tenants = self.tenants(usize::from(tenants))?;
        scheduler.admission = case.admission;
        scheduler.preempt = case.preempt;
        // The plan's pool holds the null page too.
        let mut kv = KvConfig::new(self.layout.clone(), self.pages - 1);
        kv.swap_pages = self.swap_pages;
        kv.prefix_cache = case.prefix_cache;
        kv.tenants = tenants;
        Ok(paged::Config {
            scheduler,
            kv,
            belief: self.belief.clone(),
            truth: self.truth.clone(),
            asked: Asked::Most,
            branching: case.branching,
            faults: Faults::default(),
            measure_sharing: false,
            seed: traffic.spec.seed,
            until: None,
        })
    }

    /// The rights of `n` tenants, in pages.
    fn tenants(&self, n: usize) -> Result<Vec<Tenant>, Failure> {
        let shares = &self.case.tenants;
        if shares.is_empty() {
            return Ok(vec![Tenant::FREE; n]);
        }
        if shares.len() != n {
            return Err(Failure::new(
                Exit::Usage,
                "E-SIM-017",
                format!(
                    "--tenants names {} tenants, and the workload has {n}",
                    shares.len()
                ),
            )
            .hint("give FLOOR:CAP for each; `--workload sharegpt:tenants=weights(3,1)` has two"));
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a number of 32 bits"
        )]
        let pages = |share: f64| (share * f64::from(self.pages - 1)) as u32;
        let tenant = |t: &TenantShare| Tenant {
            floor: pages(t.floor),
            cap: if t.cap < 1.0 { pages(t.cap) } else { u32::MAX },
        };
        Ok(shares.iter().map(tenant).collect())
    }

    fn contiguous(
        &self,
        server: contiguous::Server,
        traffic: &Traffic,
        arrivals: impl Iterator<Item = Result<Arrival, WorkloadError>>,
        sink: &mut impl Sink,
    ) -> Result<RunFacts, Failure> {
        let reserves = match server {
            contiguous::Server::Orca(Reservation::Pow2) => "the next power of two",
            contiguous::Server::Orca(Reservation::Oracle) => "what will be used",
            contiguous::Server::Orca(Reservation::Max) | contiguous::Server::StaticBatch => {
                "the longest length"
            }
        };
        let slots = self.contiguous_slots();
        let config = contiguous::Config {
            slots,
            max_tokens: u64::from(self.max_model_len),
            server,
            max_batch: Some(u64::from(self.case.max_num_seqs)),
            until: None,
        };
        contiguous::run(&config, arrivals, &self.truth, sink).map_err(|e| match e {
            contiguous::RunError::Arrivals(e) => traffic.failure(&e),
            other => Failure::new(Exit::Failure, "E-SIM-001", other.to_string())
                .hint("check the rates and the workload"),
        })?;
        Ok(RunFacts {
            label: Server::Contiguous(server).label().to_owned(),
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
}
