//! [`Replica`]: one server as a machine that takes one step at a time.

use std::collections::VecDeque;

use plimsoll_kv::{KvCache, Scope, TenantId};
use plimsoll_schedule::{
    Beam, CostModel, Driver, Fan as Sequences, Limits, Log, Notice, Request, RequestId, Scheduler,
    Stats, Turn,
};
use plimsoll_units::{Bytes, Nanos};

use super::fleet::View;
use super::{Asked, Config, World};
use crate::arrival::{Arrival, Fan};
use crate::record::{Finished, Sink, Slots, State};
use crate::recorder::Counts;

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

/// The scheduler stands still though it has requests.
pub(super) struct Stuck;

/// One server: its scheduler, its pool, and the world that carries out its steps.
pub(super) struct Replica<L> {
    /// When the step under way ends and the next one starts; `None` while it waits for a request.
    pub(super) ready: Option<Nanos>,
    /// Requests that were routed here and have not ended.
    pub(super) in_flight: u64,
    /// Its place in the fleet.
    index: usize,
    /// Requests that came while a step was under way, with their numbers.
    inbox: VecDeque<(u64, Arrival)>,
    world: World,
    lives: Vec<Option<Life>>,
    free: Vec<u32>,
    driver: Driver<L>,
    notices: Vec<Notice>,
    prompt: Vec<u32>,
    page: Bytes,
    has_prefix_cache: bool,
    measure_sharing: bool,
    truth: CostModel,
    limits: Limits,
    asked: Asked,
}

impl<L: Log> Replica<L> {
    pub(super) fn new(config: &Config, index: u32, log: L) -> Self {
        let cache = KvCache::new(config.kv.clone());
        let page = cache.layout().page;
        let has_prefix_cache = cache.has_prefix_cache();
        let scheduler = Scheduler::new(config.scheduler.clone(), cache, config.belief.clone());
        Self {
            ready: Some(Nanos(0)),
            in_flight: 0,
            index: index as usize,
            inbox: VecDeque::new(),
            world: World::new(config, page, index),
            lives: Vec::new(),
            free: Vec::new(),
            driver: Driver::new(scheduler, log),
            notices: Vec::new(),
            prompt: Vec::new(),
            page,
            has_prefix_cache,
            measure_sharing: config.measure_sharing,
            truth: config.truth.clone(),
            limits: config.scheduler.limits,
            asked: config.asked,
        }
    }

    pub(super) fn into_log(self) -> L {
        self.driver.into_log()
    }

    pub(super) fn scheduler(&self) -> &Scheduler {
        self.driver.scheduler()
    }

    /// Requests that were let in and have not ended.
    pub(super) fn unfinished(&self) -> u64 {
        self.lives.iter().flatten().count() as u64
    }

    /// What it holds between two steps.
    pub(super) fn at_rest(&self) -> (State, u64) {
        observe(self.scheduler(), 0)
    }

    /// Request `number` arrives here; it is submitted when the step under way has ended.
    pub(super) fn route(&mut self, number: u64, a: Arrival) {
        self.ready.get_or_insert(a.at);
        self.in_flight += 1;
        self.inbox.push_back((number, a));
    }

    /// Submits what has arrived and carries out one step from `now`.
    pub(super) fn step<S: Sink>(
        &mut self,
        now: Nanos,
        tokens: &mut impl FnMut(u64, &Arrival, &mut Vec<u32>),
        view: &mut View<'_, S>,
    ) -> Result<(), Stuck> {
        let mut prompt = std::mem::take(&mut self.prompt);
        while let Some((number, a)) = self.inbox.pop_front() {
            prompt.clear();
            if self.has_prefix_cache {
                tokens(number, &a, &mut prompt);
            } else {
                prompt.resize(usize::try_from(a.prompt_tokens).unwrap_or(usize::MAX), 0);
            }
            self.submit(&a, &prompt, view.sink);
        }
        self.prompt = prompt;
        let before = *self.scheduler().stats();
        let (index, measure_sharing) = (self.index, self.measure_sharing);
        let turn = self.driver.turn(&mut self.world, now, |s, step| {
            let (state, pages) = observe(s, step.rows.len() as u64);
            view.step(now, index, (state, pages));
            if measure_sharing {
                view.summary.sharing.note(s);
            }
        });
        if !matches!(turn, Ok(Turn::Idle)) {
            let after = *self.scheduler().stats();
            let counts = counts(&self.truth, self.page, &before, &after);
            view.sink.count(now, &counts);
        }
        self.ready = match turn {
            Ok(Turn::Stepped { elapsed }) => Some(Nanos(now.0.saturating_add(elapsed.0))),
            Ok(Turn::Idle) => {
                if !self.scheduler().is_idle() {
                    return Err(Stuck);
                }
                view.rest(now, index, self.at_rest());
                None
            }
            // A step that failed takes its time, and is computed again.
            Err(_) => Some(Nanos(now.0.saturating_add(self.truth.rates.step_ns.max(1)))),
        };
        Ok(())
    }

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
            self.in_flight -= 1;
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
    pub(super) fn tell(&mut self, now: Nanos, sink: &mut impl Sink) {
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
                    self.end(index);
                }
                Notice::Cancelled { .. } => {
                    self.end(index);
                }
                Notice::Preempted { .. } => {}
            }
        }
        self.notices = notices;
    }

    fn end(&mut self, index: usize) {
        self.lives[index] = None;
        self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
        self.in_flight -= 1;
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
