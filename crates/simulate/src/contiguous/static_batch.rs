//! Batches that start and end together: FasterTransformer behind a dynamic batcher.
//!
//! When no batch runs, the batcher takes whoever waits, first come, first served, up to the largest
//! batch that fits at the maximum length; it does not wait for more. All prompts are computed in one
//! step, then every sequence decodes until the longest has ended. A sequence that ended stays a row
//! of every step (the linear layers compute it, attention skips it) and its slots are of no use
//! until the batch ends, and that is when its answer is returned.
//!
//! Where the slots are: *token states* and *reserved* as in [`super::orca`], for sequences that have
//! not ended; *internal* is the rest of what the batch holds, those that ended included. What no
//! sequence of the batch holds is *free*.
//!
//! Source: Kwon et al. (SOSP 2023), section 6.1, "Baseline 1"; FasterTransformer's
//! `masked_multihead_attention` skips rows whose `finished` flag is set.

use plimsoll_schedule::{CostModel, StepLoad};
use plimsoll_units::Nanos;

use super::front::{Front, Request};
use super::{Config, RunError};
use crate::arrival::Arrival;
use crate::record::{Sink, Slots, State};

/// How large a batch may be.
#[derive(Debug)]
pub(super) struct Limits {
    slots: u64,
    max_tokens: u64,
    batch: u64,
}

impl Limits {
    pub(super) fn new(config: &Config) -> Self {
        let fit = config.slots.checked_div(config.max_tokens).unwrap_or(0);
        Self {
            slots: config.slots,
            max_tokens: config.max_tokens,
            batch: config.max_batch.map_or(fit, |max| max.min(fit)),
        }
    }

    /// Whether a request could run alone.
    pub(super) fn admits(&self, r: &Request) -> bool {
        r.sequences <= self.batch && r.total().is_some_and(|t| t <= self.max_tokens)
    }
}

/// A request of the batch, and when its first token was there.
#[derive(Debug)]
struct Member {
    request: Request,
    first_token: Nanos,
}

pub(super) fn serve<E, I, F, S>(
    limits: &Limits,
    mut front: Front<'_, I, F, S>,
    cost: &CostModel,
) -> Result<(), RunError<E>>
where
    I: Iterator<Item = Result<Arrival, E>>,
    F: Fn(&Request) -> bool,
    S: Sink,
{
    loop {
        let mut rows = 0;
        let mut batch: Vec<Member> = Vec::new();
        while let Some(next) = front
            .waiting
            .pop_front_if(|r| rows + r.sequences <= limits.batch)
        {
            rows += next.sequences;
            batch.push(Member {
                request: next,
                first_token: Nanos(0),
            });
        }
        if batch.is_empty() {
            if front.idle()? {
                continue;
            }
            return Ok(());
        }
        let longest = batch.iter().map(|m| m.request.output).max().unwrap_or(0);
        for generated in 0..longest {
            let began = front.now;
            let (state, load) = step(limits, &batch, rows, generated, cost);
            if !front.step(state, cost.step(&load))? {
                return Ok(());
            }
            if generated == 0 {
                batch.iter_mut().for_each(|m| m.first_token = front.now);
                continue;
            }
            // Steps of a batch follow one another, so a step is the gap between two tokens.
            let gap = Nanos(front.now.0 - began.0);
            for m in batch.iter().filter(|m| generated < m.request.output) {
                (0..m.request.sequences).for_each(|_| front.sink.token(gap));
            }
        }
        for m in &batch {
            front
                .sink
                .finished(&m.request.finished(m.first_token, front.now));
        }
    }
}

/// The step that computes token `generated + 1`.
fn step(
    limits: &Limits,
    batch: &[Member],
    rows: u64,
    generated: u64,
    cost: &CostModel,
) -> (State, StepLoad) {
    let mut load = StepLoad::default();
    let mut state = State {
        short_of_memory: true,
        ..State::default()
    };
    let held = rows * limits.max_tokens;
    let slots = &mut state.slots;
    for Member { request: r, .. } in batch {
        if generated < r.output {
            r.add_step(generated, cost, &mut load);
            state.running += r.sequences;
            slots.token_states += r.sequences * r.live(generated);
            slots.reserved += r.sequences * (r.output - generated);
        } else {
            // Padding: nothing is read and nothing is drawn.
            (0..r.sequences).for_each(|_| cost.add_row(&mut load, 0, 1, 0));
        }
    }
    *slots = Slots {
        internal: held - slots.token_states - slots.reserved,
        free: limits.slots - held,
        ..*slots
    };
    state.batch = load.rows;
    (state, load)
}
