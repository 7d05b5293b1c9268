//! From a [`Recorder`] to the wire form of one run.

use plimsoll_report::simulation::{
    Classes, Goodput, KvUse, Latency, Named, Pool, Preemptions, PrefixCache, Refusal, Requests,
    Run, TenantCounts, TimeSeries, Track,
};

use super::series::{Counts, Field, Series, Weighted};
use super::spread::SECOND;
use super::{Recorder, Tenant};

/// What the caller knows of a run besides what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFacts {
    /// What tells it from other runs of the report.
    pub label: String,
    /// Its policies by name.
    pub policies: Vec<Named>,
    /// Its pool.
    pub pool: Pool,
    /// Hash over its decisions, where there is one.
    pub decision_hash: Option<u64>,
}

impl Recorder {
    /// The wire form. Call [`Recorder::finish`] first, or the last state is missing.
    #[must_use]
    pub fn run(&self, facts: RunFacts) -> Run {
        let from = self.config.from.max(self.start.unwrap_or_default());
        let end = self.config.to.map_or(self.now, |to| self.now.min(to));
        let duration_s = seconds(end.0.saturating_sub(from.0));
        let per_s = |n: f64| {
            if duration_s > 0.0 {
                n / duration_s
            } else {
                0.0
            }
        };
        let c = &self.counts;
        Run {
            label: facts.label,
            policies: facts.policies,
            pool: facts.pool,
            from_s: seconds(from.0),
            duration_s,
            busy_share: per_s(seconds(self.busy.time)),
            requests: Requests {
                finished: self.finished,
                refused: self.refused,
                cancelled: self.cancelled,
                refusals: self
                    .reasons
                    .iter()
                    .map(|(reason, count)| Refusal {
                        reason: reason.clone(),
                        count: *count,
                    })
                    .collect(),
            },
            requests_per_s: per_s(self.finished as f64),
            output_tokens_per_s: per_s(self.output_tokens as f64),
            goodput: self.config.slo.map(|slo| {
                // Whoever was turned away was not served in time.
                let all = self.finished + self.refused;
                Goodput {
                    requests: self.good,
                    requests_per_s: per_s(self.good as f64),
                    share: self.good as f64 / all.max(1) as f64,
                    attained: all > 0 && slo.attained(self.good, all),
                }
            }),
            latency: Latency {
                ttft: self.ttft.percentiles(),
                inter_token: self.gaps.percentiles(),
                e2e: self.e2e.percentiles(),
                normalised: self.normalised.percentiles(),
            },
            batch_mean: self.busy.mean(Field::Batch),
            running_mean: self.busy.mean(Field::Running),
            steps: c.steps,
            preemptions: preemptions(c),
            prefix_cache: PrefixCache {
                queried_tokens: c.queried_tokens,
                cached_tokens: c.cached_tokens,
                hit_share: (c.queried_tokens > 0)
                    .then(|| c.cached_tokens as f64 / c.queried_tokens as f64),
            },
            copied_blocks: c.copied_blocks,
            kv: KvUse {
                live_share_at_saturation: self.live_share_at_saturation(),
                saturated_s: seconds(self.saturated.time),
                saturated_steps: self.saturated_steps,
                saturated: (self.saturated.slots() > 0).then(|| classes(&self.saturated)),
                busy: classes(&self.busy),
                whole: classes(&self.whole),
                high_water_pages: self.pages_peak,
                high_water_slots: self.slots_peak,
            },
            tenants: self.tenants.iter().map(|(id, t)| tenant(*id, t)).collect(),
            decision_hash: facts.decision_hash.map(|h| format!("{h:016x}")),
            series: series(&self.series),
        }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND
}

fn preemptions(c: &Counts) -> Preemptions {
    Preemptions {
        swap: c.swap_preemptions,
        recompute: c.recompute_preemptions,
        swapped_bytes: c.swapped_bytes,
        recomputed_tokens: c.recomputed_tokens,
        swap_time_s: seconds(c.swap_ns),
        recompute_time_s: seconds(c.recompute_ns),
    }
}

fn tenant(id: u32, t: &Tenant) -> TenantCounts {
    let mean_s = |sum: u128| (t.measured > 0).then(|| sum as f64 / t.measured as f64 / SECOND);
    TenantCounts {
        tenant: id,
        finished: t.finished,
        output_tokens: t.output_tokens,
        good: t.good,
        ttft_mean_s: mean_s(t.ttft),
        ttft_max_s: (t.measured > 0).then(|| seconds(t.ttft_max)),
        e2e_mean_s: mean_s(t.e2e),
    }
}

fn classes(w: &Weighted) -> Classes {
    let all = w.slots().max(1) as f64;
    let share = |f: Field| w.sums[f as usize] as f64 / all;
    Classes {
        token_states: share(Field::TokenStates),
        reserved: share(Field::Reserved),
        internal: share(Field::Internal),
        external: share(Field::External),
        cached: share(Field::Cached),
        free: share(Field::Free),
    }
}

fn series(s: &Series) -> TimeSeries {
    let buckets = s.buckets();
    let track = |f: Field| Track {
        mean: buckets
            .iter()
            .map(|b| (b.weighted.mean(f) * 1000.0).round() / 1000.0)
            .collect(),
        max: buckets.iter().map(|b| b.maxima[f as usize]).collect(),
    };
    let count = |of: fn(&Counts) -> u64| buckets.iter().map(|b| of(&b.counts)).collect();
    TimeSeries {
        width_s: seconds(s.width()),
        start_s: (0..buckets.len() as u64)
            .map(|i| seconds(i.saturating_mul(s.width())))
            .collect(),
        token_states: track(Field::TokenStates),
        reserved: track(Field::Reserved),
        internal: track(Field::Internal),
        external: track(Field::External),
        cached: track(Field::Cached),
        free: track(Field::Free),
        running: track(Field::Running),
        batch: track(Field::Batch),
        waiting: track(Field::Waiting),
        preempted: track(Field::Preempted),
        swapped_bytes: track(Field::SwappedBytes),
        steps: count(|c| c.steps),
        swap_preemptions: count(|c| c.swap_preemptions),
        recompute_preemptions: count(|c| c.recompute_preemptions),
        queried_tokens: count(|c| c.queried_tokens),
        cached_tokens: count(|c| c.cached_tokens),
    }
}
