//! [`Front`]: the queue, the clock and the sink that both contiguous servers stand behind.

use std::collections::VecDeque;

use plimsoll_schedule::{CostModel, StepLoad};
use plimsoll_units::Nanos;

use super::{Config, RunError};
use crate::arrival::{Arrival, Fan};
use crate::record::{Finished, Sink, Slots, State};

/// What a contiguous server needs to know of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// When it arrived.
    pub(super) arrived: Nanos,
    /// Tokens of its prompt.
    pub(super) prompt: u64,
    /// Tokens that each of its sequences will generate.
    pub(super) output: u64,
    /// How many sequences it runs.
    pub(super) sequences: u64,
    /// Whose it is.
    pub(super) tenant: u32,
}

impl Request {
    fn new(a: &Arrival) -> Self {
        Self {
            arrived: a.at,
            prompt: a.prompt_tokens,
            output: a.output_tokens,
            sequences: match a.fan {
                Fan::One => 1,
                Fan::Parallel(n) | Fan::Beam(n) => u64::from(n),
            },
            tenant: a.tenant,
        }
    }

    /// Tokens of one of its sequences when it ends; `None` past 2^64 or where it has none to run.
    pub(super) fn total(&self) -> Option<u64> {
        let some = self.prompt > 0 && self.output > 0 && self.sequences > 0;
        self.prompt.checked_add(self.output).filter(|_| some)
    }

    /// Adds the step in which it computes token `generated + 1` of each of its sequences, after
    /// `generated` before.
    ///
    /// The first computes the prompt once, whole, draws a token for every sequence and copies the
    /// prompt's keys and values to the chunks of all but one. Later steps have a row per sequence.
    /// What beams copy from one another is not charged, in the baseline's favour: implementations
    /// avoid it by indirection.
    pub(super) fn add_step(&self, generated: u64, cost: &CostModel, load: &mut StepLoad) {
        if generated == 0 {
            cost.add_row(load, 0, self.prompt, self.sequences);
            let copied = cost
                .work
                .attention
                .iter()
                .map(|a| a.token_bytes)
                .fold(0, u64::saturating_add)
                .saturating_mul(self.prompt)
                .saturating_mul(self.sequences - 1);
            load.copied_bytes = load.copied_bytes.saturating_add(copied);
        } else {
            for _ in 0..self.sequences {
                cost.add_row(load, self.prompt + generated - 1, 1, 1);
            }
        }
    }

    /// Live tokens of one of its sequences during that step: those whose slots are written by its
    /// end.
    pub(super) const fn live(&self, generated: u64) -> u64 {
        self.prompt + generated
    }

    /// Its record, when it ended well.
    pub(super) const fn finished(&self, first_token: Nanos, ended: Nanos) -> Finished {
        Finished {
            arrived: self.arrived,
            first_token,
            ended,
            prompt_tokens: self.prompt,
            output_tokens: self.output.saturating_mul(self.sequences),
            longest_output: self.output,
            cached_tokens: 0,
            swaps: 0,
            recomputes: 0,
            tenant: self.tenant,
        }
    }
}

/// Arrivals, the queue, the clock and the sink.
pub(super) struct Front<'s, I, F, S> {
    arrivals: I,
    admits: F,
    until: Option<Nanos>,
    next: Option<Arrival>,
    slots: u64,
    /// Requests that arrived and have not started, in order.
    pub(super) waiting: VecDeque<Request>,
    /// The present.
    pub(super) now: Nanos,
    /// Whom to tell.
    pub(super) sink: &'s mut S,
}

impl<'s, E, I, F, S> Front<'s, I, F, S>
where
    I: Iterator<Item = Result<Arrival, E>>,
    F: Fn(&Request) -> bool,
    S: Sink,
{
    /// At time 0; `admits` says which requests can ever run.
    pub(super) fn new(
        arrivals: I,
        admits: F,
        config: &Config,
        sink: &'s mut S,
    ) -> Result<Self, RunError<E>> {
        let mut front = Self {
            arrivals,
            admits,
            until: config.until,
            next: None,
            slots: config.slots,
            waiting: VecDeque::new(),
            now: Nanos(0),
            sink,
        };
        front.pull(Nanos(0))?;
        front.receive(Nanos(0), None)?;
        Ok(front)
    }

    /// Runs a step of `took`, during which `state` holds except for who waits. Whether the run goes
    /// on: if not, the step was cut short and nothing may follow.
    pub(super) fn step(&mut self, state: State, took: Nanos) -> Result<bool, RunError<E>> {
        let end = self.now.0.checked_add(took.0).map(Nanos);
        let end = end.ok_or(RunError::ClockOverflow)?;
        self.tell(self.now, state);
        match self.until {
            Some(until) if end > until => {
                self.receive(until, Some(state))?;
                self.tell(until, state);
                Ok(false)
            }
            _ => {
                self.receive(end, Some(state))?;
                self.now = end;
                Ok(true)
            }
        }
    }

    /// Waits for the next arrival with an empty pool. Whether there is one.
    pub(super) fn idle(&mut self) -> Result<bool, RunError<E>> {
        let state = State {
            slots: Slots {
                free: self.slots,
                ..Slots::default()
            },
            ..State::default()
        };
        self.tell(self.now, state);
        let Some(next) = &self.next else {
            if let Some(until) = self.until {
                self.tell(until, state);
            }
            return Ok(false);
        };
        self.now = next.at;
        self.receive(self.now, None)?;
        Ok(true)
    }

    fn tell(&mut self, at: Nanos, mut state: State) {
        state.waiting = self.waiting.len() as u64;
        state.short_of_memory &= state.waiting > 0;
        self.sink.state(at, &state);
    }

    /// Queues or refuses what arrives up to `to`, and tells how many wait from then on.
    fn receive(&mut self, to: Nanos, state: Option<State>) -> Result<(), RunError<E>> {
        while let Some(arrival) = self.next.take_if(|a| a.at <= to) {
            let request = Request::new(&arrival);
            if (self.admits)(&request) {
                self.waiting.push_back(request);
                if let Some(state) = state {
                    self.tell(arrival.at, state);
                }
            } else {
                self.sink.refused(arrival.at);
            }
            self.pull(arrival.at)?;
        }
        Ok(())
    }

    /// Reads the next arrival, which must not be before `before`; none at or after the end.
    fn pull(&mut self, before: Nanos) -> Result<(), RunError<E>> {
        let next = self.arrivals.next().transpose();
        let Some(arrival) = next.map_err(RunError::Arrivals)? else {
            return Ok(());
        };
        if arrival.at < before {
            return Err(RunError::Disordered {
                at: arrival.at,
                before,
            });
        }
        self.next = Some(arrival).filter(|a| self.until.is_none_or(|until| a.at < until));
        Ok(())
    }
}
