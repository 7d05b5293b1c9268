//! Iteration-level scheduling over contiguous chunks: the Orca baselines of the PagedAttention
//! paper.
//!
//! First come, first served: the head of the queue starts as soon as a chunk for each of its
//! sequences can be allocated, and nobody overtakes it. A request keeps its chunks until it ends; no
//! one is preempted. A prompt enters whole, in one iteration with everybody else's decode, as in
//! Orca: there is no chunked prefill.
//!
//! Where the slots are (Kwon et al., figure 2): *token states* are live tokens; *reserved* is what
//! the request will still use, its true final length less its live tokens; *internal* is what the
//! [`Reservation`] takes beyond the true final length (0 for Oracle); *external* is what the buddy
//! allocator adds by rounding up. Unallocated slots are *free*, and lost as well while requests
//! wait: the paper's external class is external and free together.
//!
//! Source: Kwon et al. (SOSP 2023), sections 3.1 and 6.1; Yu et al. (OSDI 2022), section 4.

use plimsoll_schedule::{CostModel, StepLoad};
use plimsoll_units::Nanos;

use super::buddy::{Buddy, Chunk};
use super::front::{Front, Request};
use super::{Config, Reservation, RunError};
use crate::arrival::Arrival;
use crate::record::{Sink, Slots, State};

/// How large the pool is and how much of it a request asks for.
#[derive(Debug)]
pub(super) struct Pool {
    slots: u64,
    max_tokens: u64,
    max_batch: u64,
    reservation: Reservation,
}

impl Pool {
    pub(super) fn new(config: &Config, reservation: Reservation) -> Self {
        Self {
            slots: config.slots,
            max_tokens: config.max_tokens,
            max_batch: config.max_batch.unwrap_or(u64::MAX),
            reservation,
        }
    }

    /// Whether a request could run alone.
    pub(super) fn admits(&self, r: &Request) -> bool {
        let fits = |reserved| r.sequences <= Buddy::capacity(self.slots, reserved);
        r.sequences <= self.max_batch && self.reserved(r).is_some_and(fits)
    }

    /// Slots that the policy reserves for one sequence; `None` for requests that are too long.
    fn reserved(&self, r: &Request) -> Option<u64> {
        let total = r.total().filter(|&t| t <= self.max_tokens)?;
        Some(match self.reservation {
            Reservation::Max => self.max_tokens,
            Reservation::Oracle => total,
            Reservation::Pow2 => r
                .output
                .checked_next_power_of_two()
                .and_then(|output| output.checked_add(r.prompt))
                .map_or(self.max_tokens, |t| t.min(self.max_tokens)),
        })
    }
}

/// A request that holds chunks.
#[derive(Debug)]
struct Running {
    request: Request,
    /// One per sequence.
    chunks: Vec<Chunk>,
    /// Slots that the policy reserved for each.
    reserved: u64,
    /// Tokens that each sequence has.
    generated: u64,
    first_token: Nanos,
    last_token: Nanos,
}

impl Running {
    fn add_slots(&self, slots: &mut Slots) {
        let r = &self.request;
        let (live, total) = (r.live(self.generated), r.prompt + r.output);
        for chunk in &self.chunks {
            slots.token_states += live;
            slots.reserved += total - live;
            slots.internal += self.reserved - total;
            slots.external += chunk.slots() - self.reserved;
        }
    }

    /// Every sequence has its next token.
    fn advance(&mut self, now: Nanos, sink: &mut impl Sink) {
        if self.generated == 0 {
            self.first_token = now;
        } else {
            let gap = Nanos(now.0 - self.last_token.0);
            (0..self.request.sequences).for_each(|_| sink.token(gap));
        }
        self.generated += 1;
        self.last_token = now;
    }
}

pub(super) fn serve<E, I, F, S>(
    pool: &Pool,
    mut front: Front<'_, I, F, S>,
    cost: &CostModel,
) -> Result<(), RunError<E>>
where
    I: Iterator<Item = Result<Arrival, E>>,
    F: Fn(&Request) -> bool,
    S: Sink,
{
    let mut buddy = Buddy::new(pool.slots);
    let mut running: Vec<Running> = Vec::new();
    let mut sequences = 0;
    loop {
        while let Some(next) = front.waiting.front()
            && let Some(started) = start(pool, &mut buddy, sequences, next)
        {
            front.waiting.pop_front();
            sequences += started.request.sequences;
            running.push(started);
        }
        if running.is_empty() {
            if front.idle()? {
                continue;
            }
            return Ok(());
        }
        let mut load = StepLoad::default();
        let mut slots = Slots {
            free: buddy.free_slots(),
            ..Slots::default()
        };
        for r in &running {
            r.request.add_step(r.generated, cost, &mut load);
            r.add_slots(&mut slots);
        }
        let state = State {
            slots,
            running: sequences,
            batch: load.rows,
            short_of_memory: sequences < pool.max_batch,
            ..State::default()
        };
        if !front.step(state, cost.step(&load))? {
            return Ok(());
        }
        for r in &mut running {
            r.advance(front.now, front.sink);
        }
        for ended in running.extract_if(.., |r| r.generated == r.request.output) {
            sequences -= ended.request.sequences;
            let record = ended.request.finished(ended.first_token, front.now);
            front.sink.finished(&record);
            ended.chunks.into_iter().for_each(|c| buddy.free(c));
        }
    }
}

/// The request with its chunks; `None` while they are not to be had.
fn start(pool: &Pool, buddy: &mut Buddy, sequences: u64, request: &Request) -> Option<Running> {
    if sequences + request.sequences > pool.max_batch {
        return None;
    }
    let reserved = pool.reserved(request)?;
    let mut chunks = Vec::new();
    for _ in 0..request.sequences {
        if let Some(chunk) = buddy.allocate(reserved) {
            chunks.push(chunk);
        } else {
            // All or nothing.
            chunks.into_iter().for_each(|c| buddy.free(c));
            return None;
        }
    }
    Some(Running {
        request: *request,
        chunks,
        reserved,
        generated: 0,
        first_token: Nanos(0),
        last_token: Nanos(0),
    })
}
