//! A planned deployment under its workload: Plimsoll's scheduler with the pool that the plan's engine leaves.

use std::num::NonZeroU32;

use plimsoll_model::ModelSpec;
use plimsoll_plan::{Engine, Evaluation, KvType, Settings, served};
use plimsoll_report::{Fleets, PlanReport, Replay, quoted, thousands};
use plimsoll_simulate::recorder::Field;
use plimsoll_simulate::{Recorder, RecorderConfig, Slo};

use super::demand::Demand;
use crate::error::{Exit, Failure};
use crate::load::Loaded;
use crate::simulated::{Case, Prepared, Server};

/// A server that can be replayed, and how `simulate` is told of it.
pub(super) struct Replayer {
    pub(super) prepared: Prepared,
    command: Option<String>,
}

impl Replayer {
    /// The replicas of `e`, planned under `settings` for requests of up to `longest` tokens.
    ///
    /// # Errors
    /// Where it has stages or expert ranks, which are not simulated, or no room, or no known rates.
    pub(super) fn new(
        model: &str,
        spec: &ModelSpec,
        settings: &Settings,
        e: &Evaluation,
        longest: u64,
    ) -> Result<Self, Failure> {
        let p = e.deployment.parallel;
        let stage = match e.stages.as_slice() {
            [stage] if !p.expert_parallel => stage,
            _ => {
                return Err(Failure::new(
                    Exit::Usage,
                    "E-SIM-021",
                    "pipeline stages and expert ranks are not simulated",
                )
                .hint("plan with tensor parallelism and replicas alone: `--tp` and `--dp`"));
            }
        };
        let plain = Case::new(e.deployment.device.clone());
        let bounded =
            |n: Option<u64>, plain: u32| n.map_or(plain, |n| u32::try_from(n).unwrap_or(u32::MAX));
        let mut case = Case {
            tp: p.tp,
            kv_memory: Some(stage.pool),
            swap_space: settings.swap,
            block_size: settings.block_size.unwrap_or(plain.block_size),
            max_model_len: Some(longest.max(2)),
            max_num_seqs: bounded(settings.max_num_seqs, plain.max_num_seqs),
            max_num_batched_tokens: settings
                .max_num_batched_tokens
                .unwrap_or(plain.max_num_batched_tokens),
            kv_cache_dtype: Some(settings.kv_type).filter(|k| *k != KvType::Auto),
            prefix_cache: settings.prefix_caching.unwrap_or(plain.prefix_cache),
            ..plain.clone()
        };
        case.fleet.replicas = u32::try_from(p.dp)
            .ok()
            .and_then(NonZeroU32::new)
            .unwrap_or(NonZeroU32::MIN);
        // `simulate` serves a model in its own type: where the engine has another, that is no command of its.
        let served = served(spec, settings)?;
        let changed = settings.quantization.is_some() || served.dtype != spec.dtype;
        let command = (!changed).then(|| server_command(model, &case, &plain));
        Ok(Self {
            prepared: case.prepare(&served)?,
            command,
        })
    }

    /// The same server as `n` replicas.
    pub(super) fn replicas(&self, n: NonZeroU32) -> Prepared {
        let mut prepared = self.prepared.clone();
        prepared.case.fleet.replicas = n;
        prepared
    }

    /// The command that runs `n` replicas under the requests of `demand`.
    pub(super) fn command(&self, n: NonZeroU32, demand: &Demand<'_>) -> Option<String> {
        let server = self.command.as_ref()?;
        Some(format!("{server} --replicas {n} {}", demand.flags()))
    }

    /// Replays the requests of `demand`.
    pub(super) fn replay(&self, demand: &Demand<'_>) -> Result<Replay, Failure> {
        let traffic = demand.traffic()?;
        let mut recorder = recorder(None);
        let (facts, seen, _) = self
            .prepared
            .serve(Server::Paged, &traffic, &mut recorder, None)?;
        let run = recorder.run(facts);
        let [_, busy, saturated] = recorder.weighted();
        let telling = if saturated.time > 0 { saturated } else { busy };
        let per_request = |n: u64| n as f64 / run.requests.finished.max(1) as f64;
        let case = &self.prepared.case;
        Ok(Replay {
            requests: demand.requests(),
            rate_per_s: demand.rate(),
            seed: demand.seed(),
            replicas: u64::from(case.fleet.replicas.get()),
            tp: case.tp,
            finished: run.requests.finished,
            refused: run.requests.refused,
            saturated_share: if run.duration_s > 0.0 {
                run.kv.saturated_s / run.duration_s
            } else {
                0.0
            },
            running_mean: telling.mean(Field::Running),
            live_share: run.kv.saturated.unwrap_or(run.kv.busy).token_states,
            swaps_per_request: per_request(run.preemptions.swap),
            recomputes_per_request: per_request(run.preemptions.recompute),
            recomputed_share: run.preemptions.recomputed_tokens as f64
                / seen.tokens().max(1) as f64,
            requests_per_s: run.requests_per_s,
            output_tokens_per_s: run.output_tokens_per_s,
            ttft: run.latency.ttft,
            inter_token: run.latency.inter_token,
            command: self.command(case.fleet.replicas, demand),
        })
    }
}

/// For runs whose series is not shown.
pub(super) fn recorder(slo: Option<Slo>) -> Recorder {
    Recorder::new(RecorderConfig {
        slo,
        buckets: 2,
        ..RecorderConfig::default()
    })
}

/// `simulate` with the flags that differ from its defaults.
fn server_command(model: &str, case: &Case, plain: &Case) -> String {
    let mut out = format!(
        "plimsoll simulate {} --gpu {}",
        quoted(model),
        case.device.name
    );
    let mut flag = |name: &str, value: String, default: String| {
        if value != default {
            out.push_str(&format!(" --{name} {value}"));
        }
    };
    let none = String::new;
    flag("tp", case.tp.to_string(), plain.tp.to_string());
    if let Some(kv) = case.kv_memory {
        flag("kv-memory", kv.get().to_string(), none());
    }
    flag(
        "swap-space",
        case.swap_space.get().to_string(),
        plain.swap_space.get().to_string(),
    );
    flag(
        "block-size",
        case.block_size.to_string(),
        plain.block_size.to_string(),
    );
    if let Some(n) = case.max_model_len {
        flag("max-model-len", n.to_string(), none());
    }
    flag(
        "max-num-seqs",
        case.max_num_seqs.to_string(),
        plain.max_num_seqs.to_string(),
    );
    flag(
        "max-num-batched-tokens",
        case.max_num_batched_tokens.to_string(),
        plain.max_num_batched_tokens.to_string(),
    );
    if let Some(k) = case.kv_cache_dtype {
        flag("kv-cache-dtype", k.to_string(), none());
    }
    if !case.prefix_cache {
        out.push_str(" --no-enable-prefix-caching");
    }
    out
}

/// What the workload adds to a plan: its lengths, a replay where one can be made, and what that rests on.
pub(super) fn add(
    model: &Loaded,
    settings: &Settings,
    e: &Evaluation,
    demand: &Demand<'_>,
    fleets: Option<Fleets>,
    report: &mut PlanReport,
) {
    let replay = if e.deployment.device.is_unlimited() {
        Err("nothing is replayed without a device: add `--gpu`".to_owned())
    } else {
        Replayer::new(&model.name, &model.spec, settings, e, demand.longest())
            .and_then(|r| r.replay(demand))
            .map_err(|f| format!("not replayed: {}", f.what))
    };
    match &replay {
        Ok(_) => report.notes.extend(rests_on(settings, demand)),
        Err(why) => report.notes.push(why.clone()),
    }
    if demand.clamped() > 0 {
        report.notes.push(format!(
            "{} requests were cut to the longest that the model takes",
            thousands(demand.clamped())
        ));
    }
    report.workload = Some(demand.wire(replay.ok(), fleets));
}

/// What a replay of a plan rests on, one sentence each.
fn rests_on(settings: &Settings, demand: &Demand<'_>) -> Vec<String> {
    let mut out = Vec::new();
    if settings.engine != Engine::Plimsoll {
        out.push(format!(
            "the replay is of Plimsoll's scheduler with the pool that {} leaves: another scheduler batches and preempts \
             otherwise",
            settings.engine
        ));
    }
    out.push(
        "times are modelled: 55 % of the device's dense 16-bit operations and 80 % of its memory bandwidth; \
         collectives between tensor-parallel devices take none"
            .to_owned(),
    );
    if demand.has_slo() {
        out.push(
            "a fleet keeps the service level where enough requests after the first tenth do, in their second half too, and no queue \
             grows: as `simulate --find max-rate` judges"
                .to_owned(),
        );
    }
    if settings.mtp || settings.draft.is_some() {
        out.push("the replay does not speculate".to_owned());
    }
    if demand.shared() {
        out.push(
            "users are counted without the prefixes that prompts share; the replay shares them"
                .to_owned(),
        );
    }
    out
}
