//! Our own scheduler and block manager under a virtual clock.
//!
//! The very crates that serve decide here; [`World`] stands in for the executor. Order of events,
//! which decides ties: a step ends; what it yielded is told; requests that arrived up to and including
//! that moment are submitted; the next step starts. Memory is that of the living requests.

mod world;

use plimsoll_kv::{KvCache, KvConfig, Scope, TenantId};
use plimsoll_schedule::{
    Beam, CostModel, Driver, Fan as Sequences, Limits, Log, Notice, Preempt, Request, RequestId,
    Scheduler, SchedulerConfig, Stats, Turn,
};
use plimsoll_units::{Bytes, Nanos};

pub use world::{Branching, Faults, World};

use crate::arrival::{Arrival, Fan};
use crate::record::{Finished, Sink, Slots, State};
use crate::recorder::Counts;

/// What requests ask for, as opposed to where they will end by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// As many tokens as the model allows: nobody knows how long an answer will be.
    #[default]
    Most,
    /// Exactly as many as there will be.
    Exact,
}

/// One simulated server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The scheduler; its limits must allow the workload's longest request.
    pub scheduler: SchedulerConfig,
    /// The pool.
    pub kv: KvConfig,
    /// What the scheduler believes of times.
    pub belief: CostModel,
    /// What times are.
    pub truth: CostModel,
    /// What requests ask for.
    pub asked: Asked,
    /// How beams branch.
    pub branching: Branching,
    /// What goes wrong.
    pub faults: Faults,
    /// Whether blocks saved by sharing are counted, which walks all tables at every step.
    pub measure_sharing: bool,
    /// Seed of generated tokens, branching and faults.
    pub seed: u64,
    /// When to stop, finished or not; `None` to go on until every request has ended.
    pub until: Option<Nanos>,
}

/// What a run did, beyond what its sink was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The scheduler's counters.
    pub stats: Stats,
    /// Digest of every decision.
    pub decision_hash: u64,
    /// When the last step ended.
    pub ended: Nanos,
    /// Most pages held at once.
    pub pages_peak: u64,
    /// Blocks in tables, added up over steps; 0 unless asked for.
    pub table_blocks: u128,
    /// Pages behind them, added up alike.
    pub shared_pages: u128,
    /// Requests that were cut off by `until`.
    pub unfinished: u64,
}

/// Why a run stopped before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError<E> {
    /// The source of arrivals failed.
    #[error(transparent)]
    Arrivals(E),
    /// Arrivals go back in time.
    #[error("an arrival at {at} ns follows one at {before} ns: sort the arrivals by time")]
    Disordered {
        /// The earlier one's time, which came later.
        at: Nanos,
        /// The time of the one before.
        before: Nanos,
    },
    /// The scheduler has requests and does nothing: a fault of ours.
    #[error(
        "the scheduler stands still at {0} ns: please report this with the command that led to it"
    )]
    Stuck(Nanos),
}

/// A living request, as the run sees it.
#[derive(Clone, Copy, Debug)]
struct Life {
    arrival: Nanos,
    first: Option<Nanos>,
    last: Nanos,
    prompt: u64,
    output: u64,
    longest: u64,
    tenant: u32,
}

/// Runs `arrivals` through one server. `tokens` fills a prompt's token ids (called with the arrival's
/// number), where the prefix cache is on; else prompts are blanks.
///
/// # Errors
/// [`RunError`]; what happened before has been told to the sink.
pub fn run<E, L: Log>(
    config: &Config,
    arrivals: impl IntoIterator<Item = Result<Arrival, E>>,
    mut tokens: impl FnMut(u64, &Arrival, &mut Vec<u32>),
    sink: &mut impl Sink,
    log: L,
) -> Result<(Summary, L), RunError<E>> {
    let cache = KvCache::new(config.kv.clone());
    let page = cache.layout().page;
    let has_prefix_cache = cache.has_prefix_cache();
    let scheduler = Scheduler::new(config.scheduler.clone(), cache, config.belief.clone());
    let mut run = Run {
        world: World::new(config, page),
        lives: Vec::new(),
        free: Vec::new(),
        driver: Driver::new(scheduler, log),
        notices: Vec::new(),
        summary: Summary::default(),
        limits: config.scheduler.limits,
        asked: config.asked,
    };
    let mut arrivals = arrivals.into_iter();
    let mut next = pull(&mut arrivals, Nanos(0))?;
    let mut number = 0;
    let mut now = Nanos(0);
    let mut prompt = Vec::new();
    loop {
        if config.until.is_some_and(|end| now >= end) {
            break;
        }
        while let Some(a) = next.take_if(|a| a.at <= now) {
            prompt.clear();
            if has_prefix_cache {
                tokens(number, &a, &mut prompt);
            } else {
                prompt.resize(usize::try_from(a.prompt_tokens).unwrap_or(usize::MAX), 0);
            }
            run.submit(&a, &prompt, sink);
            number += 1;
            next = pull(&mut arrivals, a.at)?;
        }
        let before = *run.driver.scheduler().stats();
        let summary = &mut run.summary;
        let turn = run.driver.turn(&mut run.world, now, |s, step| {
            let (state, pages) = observe(s, step.rows.len() as u64);
            summary.pages_peak = summary.pages_peak.max(pages);
            sink.state(now, &state);
            sink.pages(pages);
            if config.measure_sharing {
                summary.table_blocks += u128::from(s.table_blocks());
                summary.shared_pages += u128::from(pages);
            }
        });
        if !matches!(turn, Ok(Turn::Idle)) {
            let after = *run.driver.scheduler().stats();
            sink.count(now, &counts(&config.truth, page, &before, &after));
        }
        match turn {
            Ok(Turn::Stepped { elapsed }) => now = Nanos(now.0.saturating_add(elapsed.0)),
            Ok(Turn::Idle) => {
                if !run.driver.scheduler().is_idle() {
                    return Err(RunError::Stuck(now));
                }
                sink.state(now, &observe(run.driver.scheduler(), 0).0);
                match &next {
                    Some(a) => now = a.at,
                    None => break,
                }
            }
            // A step that failed takes its time, and is computed again.
            Err(_) => now = Nanos(now.0.saturating_add(config.truth.rates.step_ns.max(1))),
        }
        run.tell(now, sink);
    }
    let s = run.driver.scheduler();
    sink.state(now, &observe(s, 0).0);
    run.summary.stats = *s.stats();
    run.summary.decision_hash = s.decision_hash();
    run.summary.ended = now;
    run.summary.unfinished = run.lives.iter().flatten().count() as u64;
    Ok((run.summary, run.driver.into_log()))
}

/// What one step added to the counters, with what it cost.
fn counts(cost: &CostModel, page: Bytes, before: &Stats, after: &Stats) -> Counts {
    let pages = after.pages_out + after.pages_in - before.pages_out - before.pages_in;
    let bytes = page.times(pages).unwrap_or(Bytes::MAX);
    let lost = after.recomputed_tokens - before.recomputed_tokens;
    Counts {
        steps: after.steps - before.steps,
        swap_preemptions: after.swaps - before.swaps,
        recompute_preemptions: after.recomputes - before.recomputes,
        recomputed_tokens: lost,
        swapped_bytes: bytes.get(),
        swap_ns: if pages > 0 {
            cost.swap(bytes, pages).0
        } else {
            0
        },
        recompute_ns: if lost > 0 {
            cost.recompute(0, lost).0
        } else {
            0
        },
        queried_tokens: after.queried_tokens - before.queried_tokens,
        cached_tokens: after.cached_tokens - before.cached_tokens,
        copied_blocks: after.pages_copied - before.pages_copied,
    }
}

fn pull<E>(
    arrivals: &mut impl Iterator<Item = Result<Arrival, E>>,
    before: Nanos,
) -> Result<Option<Arrival>, RunError<E>> {
    let Some(next) = arrivals.next() else {
        return Ok(None);
    };
    let a = next.map_err(RunError::Arrivals)?;
    if a.at < before {
        return Err(RunError::Disordered { at: a.at, before });
    }
    Ok(Some(a))
}

struct Run<L> {
    world: World,
    lives: Vec<Option<Life>>,
    free: Vec<u32>,
    driver: Driver<L>,
    notices: Vec<Notice>,
    summary: Summary,
    limits: Limits,
    asked: Asked,
}

impl<L: Log> Run<L> {
    fn submit(&mut self, a: &Arrival, prompt: &[u32], sink: &mut impl Sink) {
        let fan = match a.fan {
            Fan::One => Sequences::ONE,
            Fan::Parallel(n) => Sequences::Sample { n, best_of: n },
            Fan::Beam(width) => Sequences::Beam(Beam {
                width,
                length_penalty: 1.0,
                early_stopping: true,
            }),
        };
        let room = u64::from(self.limits.max_model_len).saturating_sub(a.prompt_tokens);
        let asked = match self.asked {
            Asked::Most => room,
            Asked::Exact => a.output_tokens,
        };
        let max_tokens = u32::try_from(asked).unwrap_or(u32::MAX);
        let tenant = TenantId(u16::try_from(a.tenant).unwrap_or(u16::MAX));
        let scope = Scope {
            tenant,
            // Tenants do not see each other's prefixes.
            salt: if a.tenant == 0 {
                Vec::new()
            } else {
                a.tenant.to_le_bytes().to_vec()
            },
            ..Scope::default()
        };
        let slot = self
            .free
            .last()
            .copied()
            .unwrap_or_else(|| u32::try_from(self.lives.len()).unwrap_or(u32::MAX));
        let id = RequestId(u64::from(slot));
        let request = Request::new(id, prompt.into(), max_tokens, fan, scope, &self.limits);
        let taken = match request {
            Ok(r) => self
                .driver
                .submit(r.with_priority(a.priority), a.at)
                .is_ok(),
            Err(_) => false,
        };
        if !taken {
            sink.refused(a.at);
            return;
        }
        if self.free.pop().is_none() {
            self.lives.push(None);
        }
        self.world.expect(slot, a.prompt_tokens, a.output_tokens);
        self.lives[slot as usize] = Some(Life {
            arrival: a.at,
            first: None,
            last: a.at,
            prompt: a.prompt_tokens,
            output: 0,
            longest: 0,
            tenant: a.tenant,
        });
    }

    /// Passes on what has happened in the step that ended at `now`.
    fn tell(&mut self, now: Nanos, sink: &mut impl Sink) {
        let mut notices = std::mem::take(&mut self.notices);
        self.driver.scheduler_mut().take_notices(&mut notices);
        for notice in notices.drain(..) {
            let slot = match &notice {
                Notice::Token { request, .. } | Notice::Cancelled { request } => request.0,
                Notice::Finished(e) => e.request.0,
                Notice::Preempted { .. } => continue,
            };
            let Ok(index) = usize::try_from(slot) else {
                continue;
            };
            let Some(life) = self.lives.get_mut(index).and_then(Option::as_mut) else {
                continue;
            };
            match notice {
                Notice::Token { .. } => {
                    life.output += 1;
                    if life.first.is_none() {
                        life.first = Some(now);
                    } else if now > life.last {
                        sink.token(Nanos(now.0 - life.last.0));
                    }
                    life.last = now;
                }
                Notice::Finished(ended) => {
                    let longest = ended
                        .completions
                        .iter()
                        .map(|c| c.tokens.len() as u64)
                        .max();
                    let all: u64 = ended
                        .completions
                        .iter()
                        .map(|c| c.tokens.len() as u64)
                        .sum();
                    life.longest = longest.unwrap_or(0);
                    sink.finished(&Finished {
                        arrived: life.arrival,
                        first_token: life.first.unwrap_or(now),
                        ended: now,
                        prompt_tokens: life.prompt,
                        output_tokens: life.output.max(all),
                        longest_output: life.longest,
                        cached_tokens: u64::from(ended.cached_tokens),
                        swaps: ended.swaps,
                        recomputes: ended.recomputes,
                        tenant: life.tenant,
                    });
                    self.lives[index] = None;
                    self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
                }
                Notice::Cancelled { .. } => {
                    self.lives[index] = None;
                    self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
                }
                Notice::Preempted { .. } => {}
            }
        }
        self.notices = notices;
    }
}

/// The state while a step of `batch` rows is under way, and the pages held.
fn observe(s: &Scheduler, batch: u64) -> (State, u64) {
    let kv = s.kv();
    // Sizes were checked when the pool was made.
    let usage = kv.usage().unwrap_or_default();
    let layout = kv.layout();
    let page = layout.page.get().max(1);
    // Bytes as slots of the group whose blocks have the fewest.
    let per_page = u64::from(
        layout
            .groups
            .iter()
            .map(|g| g.slots)
            .filter(|s| *s > 0)
            .min()
            .unwrap_or(1),
    );
    let slots = |bytes: u64| {
        let exact = u128::from(bytes) * u128::from(per_page) / u128::from(page);
        u64::try_from(exact).unwrap_or(u64::MAX)
    };
    let all = usage.pages * per_page;
    // Tokens of the step under way exist: their keys and values are being written, as the contiguous servers
    // count theirs. Nothing is reserved beyond them.
    let token_states = slots(
        usage
            .token_states
            .get()
            .saturating_add(usage.reserved.get()),
    );
    let reserved = 0;
    let cached = usage.cached * per_page;
    let free = usage.free * per_page;
    let state = State {
        slots: Slots {
            token_states,
            reserved,
            external: usage.in_transit * per_page,
            cached,
            free,
            internal: all - token_states - reserved - cached - free - usage.in_transit * per_page,
        },
        running: u64::from(s.running_seqs()),
        batch,
        waiting: s.waiting() as u64,
        preempted: s.preempted() as u64,
        swapped_bytes: usage.swapped * page,
        short_of_memory: s.is_short_of_pages(),
    };
    (state, usage.held)
}

/// The words of the policies, for reports.
#[must_use]
pub const fn preempt_name(p: Preempt) -> &'static str {
    match p {
        Preempt::Auto => "auto",
        Preempt::Swap => "swap",
        Preempt::Recompute => "recompute",
    }
}
