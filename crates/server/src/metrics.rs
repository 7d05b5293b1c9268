//! `GET /metrics`: what Prometheus reads.
//!
//! Everything is answered from what the engine's thread has published and from counters, so a scrape waits for nobody.
//! What vLLM has too has its name, its labels and its bucket bounds; what is ours begins with `plimsoll:`. Every label
//! is bounded: by the routes, codes and phases that there are, and by the tenants of the configuration.

use std::collections::VecDeque;
use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use plimsoll_schedule::{End, Ended, Place};
use plimsoll_units::Bytes;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::code::Code;
use crate::engine::{Published, Snapshot};
use crate::error::ApiError;
use crate::memory::{REMEMBERED, Refused, Region};
use crate::state::now_ms;

/// What it is written as.
pub(crate) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Bounds of vLLM's histograms.
const FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
const SEQUENCES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTIONS: &[f64] = &[0.0, 1.0, 2.0, 5.0, 10.0, 20.0];

/// 1, 2, 5, 10, 20, 50 ... up to `most`.
fn one_two_five(most: u32) -> Vec<f64> {
    let decades = (0..10).map(|e| 10_u64.pow(e));
    let all = decades.flat_map(|d| [d, 2 * d, 5 * d]);
    let all = all.take_while(|n| *n <= u64::from(most));
    #[allow(clippy::cast_precision_loss, reason = "below 2^32")]
    all.map(|n| n as f64).collect()
}

/// How a request ended, by vLLM's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Stop,
    Length,
    Abort,
    Error,
}

impl Reason {
    const NAMES: [&str; 4] = ["stop", "length", "abort", "error"];

    /// A request with several answers ended as the best of them, unless one is an error.
    fn of(ended: &Ended) -> Self {
        let mut ends = ended.completions.iter().map(|c| c.end);
        let first = ends.next();
        match first {
            _ if first == Some(End::Error) || ends.any(|e| e == End::Error) => Self::Error,
            Some(End::Length) => Self::Length,
            _ => Self::Stop,
        }
    }
}

/// Where requests are when nobody waits for them any more.
const PHASES: [&str; 4] = ["queued", "prefill", "decode", "preempted"];

/// How an HTTP request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpEnd {
    /// To its last byte.
    Whole,
    /// The client's mistake.
    Client,
    /// Ours.
    Server,
    /// By an error after its first byte.
    Cut,
    /// The client went away.
    Left,
}

impl HttpEnd {
    const fn name(self) -> &'static str {
        match self {
            Self::Whole => "ok",
            Self::Client => "client_error",
            Self::Server => "server_error",
            Self::Cut => "cut",
            Self::Left => "left",
        }
    }
}

/// An HTTP request that is counted, once, when this goes.
#[derive(Debug)]
pub(crate) struct Counted {
    metrics: Arc<Metrics>,
    route: String,
    end: HttpEnd,
}

impl Counted {
    pub(crate) const fn ends(&mut self, end: HttpEnd) {
        self.end = end;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let route = std::mem::take(&mut self.route);
        let labels = vec![("route", route), ("outcome", self.end.name().to_owned())];
        self.metrics.http.get_or_create(&labels).inc();
    }
}

/// A connection that is counted as long as this lives.
#[derive(Debug)]
pub(crate) struct Open(Arc<Metrics>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is told of a request in the engine, for its histograms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeline {
    /// When its headers were read.
    pub(crate) arrived: Instant,
    /// When the engine took it.
    pub(crate) queued: Instant,
    /// When its first step began.
    pub(crate) scheduled: Option<Instant>,
    pub(crate) first: Option<Instant>,
    pub(crate) last: Option<Instant>,
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    pub(crate) sequences: u32,
}

/// Counters and histograms, from the start of the process on.
#[derive(Debug)]
pub(crate) struct Metrics {
    first_token: Histogram,
    between_tokens: Histogram,
    per_token: Histogram,
    whole: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt: Histogram,
    generation: Histogram,
    n: Histogram,
    max_tokens: Histogram,
    preemptions: Histogram,
    step_tokens: Histogram,
    ended: [Counter; 4],
    pub(crate) prompt_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    cancelled: [Counter; 4],
    /// Prompts that were let in.
    pub(crate) requests: Counter,
    pub(crate) believed_ns: Counter,
    pub(crate) panics: Counter,
    http: Family<Vec<(&'static str, String)>, Counter>,
    refusals: Family<[(&'static str, &'static str); 1], Counter>,
    refused: AtomicU64,
    connections: AtomicU64,
    recent: Mutex<VecDeque<Refused>>,
}

impl Metrics {
    pub(crate) fn new(max_model_len: u32) -> Self {
        let of = |bounds: &[f64]| Histogram::new(bounds.iter().copied());
        let tokens = one_two_five(max_model_len);
        Self {
            first_token: of(FIRST_TOKEN_S),
            between_tokens: of(TOKEN_S),
            per_token: of(TOKEN_S),
            whole: of(REQUEST_S),
            queue: of(REQUEST_S),
            prefill: of(REQUEST_S),
            decode: of(REQUEST_S),
            inference: of(REQUEST_S),
            prompt: of(&tokens),
            generation: of(&tokens),
            n: of(SEQUENCES),
            max_tokens: of(&tokens),
            preemptions: of(PREEMPTIONS),
            step_tokens: of(STEP_TOKENS),
            ended: Default::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            cancelled: Default::default(),
            requests: Counter::default(),
            believed_ns: Counter::default(),
            panics: Counter::default(),
            http: Family::default(),
            refusals: Family::default(),
            refused: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            recent: Mutex::default(),
        }
    }

    /// Counts an HTTP request from now on; unless told, its client went away.
    pub(crate) fn count(self: &Arc<Self>, route: Option<&str>) -> Counted {
        Counted {
            metrics: Arc::clone(self),
            route: route.unwrap_or("none").to_owned(),
            end: HttpEnd::Left,
        }
    }

    pub(crate) fn open(self: &Arc<Self>) -> Open {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self))
    }

    /// A request was answered by an error and nothing else.
    pub(crate) fn refuse(&self, code: Code) {
        self.refusals.get_or_create(&[("code", code.name())]).inc();
    }

    /// A request for tokens was not let in; it is remembered for a while.
    pub(crate) fn remember(&self, why: &ApiError, tenant: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let (pages_needed, pages_available) = why.pages.as_deref().copied().unzip();
        let refused = Refused {
            at_ms: now_ms(),
            code: why.code.name().to_owned(),
            reason: why.message().chars().take(200).collect(),
            tenant: tenant.to_owned(),
            pages_needed,
            pages_available,
        };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(refused);
    }

    /// The last refusals, oldest first, and how many there were.
    pub(crate) fn refusals(&self) -> (Vec<Refused>, u64) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let all = recent.iter().cloned().collect();
        (all, self.refused.load(Ordering::Relaxed))
    }

    /// A step of so many tokens was carried out.
    pub(crate) fn stepped(&self, tokens: usize) {
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        self.step_tokens.observe(tokens as f64);
    }

    /// A request has another token; `before` is when its sequence had the one before.
    pub(crate) fn token(&self, line: &mut Timeline, before: Option<Instant>, now: Instant) {
        self.generated_tokens.inc();
        if line.first.is_none() {
            self.begins(line, now);
        }
        if let Some(before) = before {
            self.between_tokens.observe((now - before).as_secs_f64());
        }
        line.last = Some(now);
    }

    fn begins(&self, line: &mut Timeline, now: Instant) {
        line.first = Some(now);
        self.prompt_tokens.inc_by(line.prompt_tokens.into());
        self.first_token.observe(since(line.arrived, now));
    }

    /// A request ended by itself. A beam search has all its tokens only now.
    pub(crate) fn ended(&self, line: &mut Timeline, ended: &Ended, now: Instant) {
        let tokens: usize = ended.completions.iter().map(|c| c.tokens.len()).sum();
        if line.first.is_none() && tokens > 0 {
            self.generated_tokens.inc_by(tokens as u64);
            self.begins(line, now);
        }
        self.ended[Reason::of(ended) as usize].inc();
        self.whole.observe(since(line.arrived, now));
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let tokens = tokens as f64;
        self.prompt.observe(line.prompt_tokens.into());
        self.generation.observe(tokens);
        self.n.observe(line.sequences.into());
        self.max_tokens.observe(line.max_tokens.into());
        self.preemptions
            .observe((ended.swaps + ended.recomputes).into());
        let Some(scheduled) = line.scheduled else {
            return;
        };
        self.queue.observe(since(line.queued, scheduled));
        if let (Some(first), Some(last)) = (line.first, line.last) {
            self.prefill.observe(since(scheduled, first));
            self.decode.observe(since(first, last));
            self.inference.observe(since(scheduled, last));
            let more = tokens / f64::from(line.sequences.max(1)) - 1.0;
            if more > 0.0 {
                self.per_token.observe(since(first, last) / more);
            }
        }
    }

    /// A request ended otherwise.
    pub(crate) fn gave_up(&self, reason: Reason) {
        self.ended[reason as usize].inc();
    }

    /// Nobody waited any more for a request that was there.
    pub(crate) fn cancelled(&self, place: Place) {
        let phase = match place {
            Place::Waiting => 0,
            Place::Prefill => 1,
            Place::Decode => 2,
            Place::Swapped | Place::Dropped => 3,
        };
        self.cancelled[phase].inc();
    }
}

fn since(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}

/// Memory beside the engine's: what was planned, and what the process had at most.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) regions: Vec<(String, Bytes)>,
    pub(crate) peak: Option<fn() -> Option<Bytes>>,
}

impl Planned {
    /// Planned, committed and used at most, region by region. What has no arena is what the process had beside them.
    pub(crate) fn regions(&self, now: &Snapshot) -> Vec<Region> {
        let in_memory = now
            .regions
            .iter()
            .filter(|u| u.region.name() != "swap_file");
        let committed: u64 = in_memory.map(|u| u.committed.get()).sum();
        let beside = self.peak.and_then(|peak| peak());
        let beside = beside.map(|peak| peak.get().saturating_sub(committed));
        let region = |(name, planned): &(String, Bytes)| {
            let used = now.regions.iter().find(|u| u.region.name() == name);
            Region {
                region: name.clone(),
                planned_bytes: planned.get(),
                committed_bytes: used.map(|u| u.committed.get()),
                high_water_bytes: match used {
                    Some(u) => Some(u.high_water.get()),
                    // What a driver takes, for graphs too, is not the process's.
                    None => beside.filter(|_| name == "reserve"),
                },
            }
        };
        self.regions.iter().map(region).collect()
    }
}

/// All that is told, by name.
#[derive(Debug)]
pub(crate) struct Scrape {
    /// With the model's name on all of them.
    vllm: Registry,
    own: Registry,
}

impl Scrape {
    pub(crate) fn new(
        metrics: &Arc<Metrics>,
        published: &Arc<Published>,
        planned: &Planned,
        model: &str,
    ) -> Self {
        let label = ("model_name".into(), model.to_owned().into());
        let mut vllm = Registry::with_labels(std::iter::once(label));
        let m = metrics;
        for (name, help, histogram) in [
            (
                "time_to_first_token_seconds",
                "From a request's headers to its first token",
                &m.first_token,
            ),
            (
                "inter_token_latency_seconds",
                "Between two tokens of a sequence",
                &m.between_tokens,
            ),
            (
                "request_time_per_output_token_seconds",
                "Mean time between tokens of requests that ended",
                &m.per_token,
            ),
            (
                "e2e_request_latency_seconds",
                "From a request's headers to its last token",
                &m.whole,
            ),
            (
                "request_queue_time_seconds",
                "From when the engine took a request to its first step",
                &m.queue,
            ),
            (
                "request_prefill_time_seconds",
                "From a request's first step to its first token",
                &m.prefill,
            ),
            (
                "request_decode_time_seconds",
                "From a request's first token to its last",
                &m.decode,
            ),
            (
                "request_inference_time_seconds",
                "From a request's first step to its last token",
                &m.inference,
            ),
            (
                "request_prompt_tokens",
                "Tokens of prompts of requests that ended",
                &m.prompt,
            ),
            (
                "request_generation_tokens",
                "Tokens generated for requests that ended",
                &m.generation,
            ),
            (
                "request_params_n",
                "Sequences that requests asked for",
                &m.n,
            ),
            (
                "request_params_max_tokens",
                "Tokens that requests asked for",
                &m.max_tokens,
            ),
            (
                "request_num_preemptions",
                "Times that requests gave way before they ended",
                &m.preemptions,
            ),
            ("iteration_tokens_total", "Tokens of a step", &m.step_tokens),
        ] {
            vllm.register(format!("vllm:{name}"), help, histogram.clone());
        }
        let collect = |kind| {
            Box::new(Collected {
                kind,
                metrics: Arc::clone(metrics),
                published: Arc::clone(published),
                planned: planned.clone(),
            })
        };
        vllm.register_collector(collect(Kind::Vllm));
        let mut own = Registry::default();
        own.register(
            "plimsoll:http_requests",
            "HTTP requests that ended, by route and by how they ended",
            metrics.http.clone(),
        );
        own.register(
            "plimsoll:refusals",
            "HTTP requests that were answered by an error and nothing else, by its code",
            metrics.refusals.clone(),
        );
        own.register(
            "plimsoll:panics",
            "Mistakes of the server that ended what they happened in",
            metrics.panics.clone(),
        );
        own.register_collector(collect(Kind::Own));
        Self { vllm, own }
    }

    pub(crate) fn text(&self) -> Result<String, Error> {
        let mut text = String::with_capacity(32 << 10);
        prometheus_text::encode(&mut text, &self.vllm)?;
        prometheus_text::encode(&mut text, &self.own)?;
        Ok(text)
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Vllm,
    Own,
}

/// What is read when it is asked for.
#[derive(Debug)]
struct Collected {
    kind: Kind,
    metrics: Arc<Metrics>,
    published: Arc<Published>,
    planned: Planned,
}

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let now = self.published.snapshot();
        let mut out = Out(encoder);
        match self.kind {
            Kind::Vllm => self.vllm(&now, &mut out),
            Kind::Own => self.own(&now, &mut out),
        }
    }
}

/// No labels beside those of all.
const NONE: [(&str, &str); 0] = [];

/// Samples on their way out.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        self.counters(name, help, [(NONE, value)])
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in all {
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> Result<(), Error> {
        self.gauges(name, help, [(NONE, value)])
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        all: impl IntoIterator<Item = (L, f64)>,
    ) -> Result<(), Error> {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in all {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

/// A size or a count as Prometheus has it.
#[allow(clippy::cast_precision_loss, reason = "below 2^52 wherever it matters")]
const fn float(n: u64) -> f64 {
    n as f64
}

impl Collected {
    fn vllm(&self, now: &Snapshot, out: &mut Out<'_>) -> Result<(), Error> {
        let s = &now.stats;
        out.gauge(
            "vllm:num_requests_running",
            "Requests that hold pages and get rows",
            float(now.running as u64),
        )?;
        out.gauge(
            "vllm:num_requests_waiting",
            "Requests that wait, those that gave way among them",
            float((now.waiting + now.preempted) as u64),
        )?;
        let pages = f64::from(now.pages.max(1));
        out.gauge(
            "vllm:kv_cache_usage_perc",
            "The part of the KV cache that requests hold, 1 being all of it",
            f64::from(now.pages_held) / pages,
        )?;
        out.counter(
            "vllm:prefix_cache_queries",
            "Tokens of prompts looked up in the prefix cache",
            s.queried_tokens,
        )?;
        out.counter(
            "vllm:prefix_cache_hits",
            "Tokens of prompts found in the prefix cache",
            s.cached_tokens,
        )?;
        out.counter(
            "vllm:num_preemptions",
            "Times that requests gave way",
            s.swaps + s.recomputes,
        )?;
        out.counter(
            "vllm:prompt_tokens",
            "Tokens of prompts that were read, found ones among them",
            self.metrics.prompt_tokens.get(),
        )?;
        out.counter(
            "vllm:prompt_tokens_cached",
            "Tokens of prompts that the prefix cache had",
            s.cached_tokens,
        )?;
        out.counter(
            "vllm:prompt_tokens_recomputed",
            "Tokens that were computed again, after their request gave way",
            s.recomputed_tokens,
        )?;
        out.counter(
            "vllm:generation_tokens",
            "Tokens that were generated",
            self.metrics.generated_tokens.get(),
        )?;
        let ended = Reason::NAMES.iter().zip(&self.metrics.ended);
        out.counters(
            "vllm:request_success",
            "Requests that ended, by how",
            ended.map(|(name, n)| ([("finished_reason", *name)], n.get())),
        )?;
        let config = vec![
            ("block_size", now.block_tokens.to_string()),
            ("num_gpu_blocks", now.pages.to_string()),
        ];
        out.gauges(
            "vllm:cache_config_info",
            "The KV cache: tokens of a page, and pages",
            [(config, 1.0)],
        )
    }

    fn own(&self, now: &Snapshot, out: &mut Out<'_>) -> Result<(), Error> {
        let (s, u) = (&now.stats, &now.usage);
        let regions = self.planned.regions(now);
        let of = |bytes: fn(&Region) -> Option<u64>| {
            let some = regions.iter().filter_map(move |r| Some((r, bytes(r)?)));
            some.map(|(r, b)| ([("region", r.region.clone())], float(b)))
        };
        out.gauges(
            "plimsoll:memory_planned_bytes",
            "What was planned, by region",
            of(|r| Some(r.planned_bytes)),
        )?;
        out.gauges(
            "plimsoll:memory_committed_bytes",
            "What was committed at the start, by region; the reserve has no arena",
            of(|r| r.committed_bytes),
        )?;
        out.gauges(
            "plimsoll:memory_high_water_bytes",
            "What was used at most so far, by region; of the reserve, what the process had beside the arenas",
            of(|r| r.high_water_bytes),
        )?;
        let states = [
            ("free", u.free),
            ("held", u.held),
            ("cached", u.cached),
            ("in_transit", u.in_transit),
        ];
        out.gauges(
            "plimsoll:kv_pages",
            "Pages of the KV cache, by state",
            states.map(|(state, n)| ([("state", state)], float(n))),
        )?;
        out.gauge(
            "plimsoll:swap_pages_used",
            "Pages in swap space",
            float(u.swapped),
        )?;
        out.gauge(
            "plimsoll:swap_pages",
            "Places in swap space",
            f64::from(now.swap_pages),
        )?;
        let classes = [
            ("token_states", u.token_states),
            ("reserved", u.reserved),
            ("internal", u.internal),
            ("external", u.external),
        ];
        out.gauges(
            "plimsoll:kv_held_bytes",
            "Bytes of held pages: states of tokens, and waste by class",
            classes.map(|(class, b)| ([("class", class)], float(b.get()))),
        )?;
        let owners = self.published.tenants.iter().zip(&now.charged);
        out.gauges(
            "plimsoll:kv_owner_bytes",
            "Bytes of pages that tenants are charged for",
            owners.map(|(name, pages)| {
                let bytes = pages.saturating_mul(now.page_bytes);
                ([("owner", name.clone())], float(bytes))
            }),
        )?;
        out.counters(
            "plimsoll:preemptions",
            "Times that requests gave way, by how",
            [("swap", s.swaps), ("recompute", s.recomputes)].map(|(kind, n)| ([("kind", kind)], n)),
        )?;
        out.counters(
            "plimsoll:swapped_bytes",
            "Bytes of pages that went to swap space and came back",
            [("out", s.pages_out), ("in", s.pages_in)].map(|(direction, pages)| {
                let bytes = pages.saturating_mul(now.page_bytes);
                ([("direction", direction)], bytes)
            }),
        )?;
        out.counter(
            "plimsoll:forgotten_tokens",
            "Tokens whose keys and values were given up by preemption",
            s.forgotten_tokens,
        )?;
        out.counter(
            "plimsoll:recomputed_tokens",
            "Of the forgotten tokens, those computed again: the prefix cache had not kept them",
            s.recomputed_tokens,
        )?;
        out.counter(
            "plimsoll:preemption_believed_nanoseconds",
            "What preemptions were believed to cost when they were decided",
            self.metrics.believed_ns.get(),
        )?;
        out.counter(
            "plimsoll:kv_copy_on_write",
            "Pages that were copied because one of their holders wrote",
            s.pages_copied,
        )?;
        let cancelled = PHASES.iter().zip(&self.metrics.cancelled);
        out.counters(
            "plimsoll:cancellations",
            "Requests whose client went away or whose time was up, by where they were",
            cancelled.map(|(phase, n)| ([("phase", *phase)], n.get())),
        )?;
        out.counter(
            "plimsoll:requests",
            "Requests that were let in; of a body with several prompts each is one",
            self.metrics.requests.get(),
        )?;
        out.counter("plimsoll:engine_steps", "Steps", s.steps)?;
        out.counter(
            "plimsoll:step_failures",
            "Transfers and steps that failed and were made good",
            s.failures,
        )?;
        out.counter(
            "plimsoll:restarts",
            "Times that the engine began anew after a fault",
            now.restarts.into(),
        )?;
        out.gauge(
            "plimsoll:open_connections",
            "Connections of clients",
            float(self.metrics.connections.load(Ordering::Relaxed)),
        )?;
        let stepping = now.stepping.map_or(Duration::ZERO, |s| s.elapsed());
        out.gauge(
            "plimsoll:step_under_way_seconds",
            "How long the step under way has taken",
            stepping.as_secs_f64(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_lengths_are_one_two_five() {
        assert_eq!(
            one_two_five(100),
            [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0],
            "as vLLM's documentation has it"
        );
        assert_eq!(one_two_five(8192).last(), Some(&5000.0));
        assert!(one_two_five(0).is_empty());
    }
}
