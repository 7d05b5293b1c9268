//! [`Pipeline`]: what is done to requests between their source and whoever asks for them.
//!
//! The order is that of [`Shaping`]'s fields: skip, repeat, limit, clamp, re-time.

use std::sync::Arc;

use plimsoll_units::Nanos;

use super::error::{WorkloadError, bad};
use super::random::{Clock, mix, to_u64};
use super::spec::{Repeat, Retime, Shaping};
use super::{Notes, Requests};
use crate::{Arrival, Content};

/// Memory for the rows of a trace that is repeated: 256 MiB, about 3 million rows without block
/// ids. Rows beyond the limit of requests are never held.
pub const REPEAT_BYTES_MAX: u64 = 256 << 20;

/// Requests on their way.
#[derive(Debug)]
pub(super) struct Pipeline {
    passes: Passes,
    left: Option<u64>,
    max_model_tokens: Option<u64>,
    timing: Timing,
    index: u64,
    pub(super) notes: Notes,
}

#[derive(Debug)]
enum Timing {
    Keep,
    Speed(f64),
    Process(Box<Clock>),
}

impl Pipeline {
    pub(super) fn new(
        requests: Requests,
        shaping: &Shaping,
        clock: Option<Clock>,
    ) -> Result<Self, WorkloadError> {
        let endless = matches!(requests, Requests::Synthetic(_));
        if shaping.repeat != Repeat::No && shaping.limit.is_none() && !endless {
            return Err(bad("repeat", "without end: limit the number of requests"));
        }
        if let Some(n @ 0..2) = shaping.max_model_tokens {
            return Err(bad(
                "max_model_tokens",
                format!("{n}: a request has a token of prompt and one of output"),
            ));
        }
        let timing = match (shaping.retime, clock) {
            (_, Some(clock)) => Timing::Process(Box::new(clock)),
            (Retime::Speed(f), None) => {
                if !(f.is_finite() && f > 0.0) {
                    return Err(bad("speed", format!("{f}: must be above 0 and finite")));
                }
                Timing::Speed(f)
            }
            (Retime::Keep | Retime::Process(_), None) => Timing::Keep,
        };
        Ok(Self {
            passes: Passes {
                requests,
                skip: shaping.skip,
                start: None,
                latest: 0,
                repeat: if endless { Repeat::No } else { shaping.repeat },
                held: Vec::new(),
                held_bytes: 0,
                replay: None,
            },
            left: shaping.limit,
            max_model_tokens: shaping.max_model_tokens,
            timing,
            index: 0,
            notes: Notes::default(),
        })
    }

    pub(super) fn next(&mut self) -> Result<Option<Arrival>, WorkloadError> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let Some(mut arrival) = self.passes.next(&mut self.notes)? else {
            return Ok(None);
        };
        self.left = self.left.map(|n| n - 1);
        if let Some(max) = self.max_model_tokens
            && clamp(&mut arrival, max)
        {
            self.notes.clamped += 1;
        }
        match &mut self.timing {
            Timing::Keep => {}
            Timing::Speed(factor) => {
                let at = to_u64(arrival.at.get() as f64 / *factor);
                arrival.at = Nanos(at.ok_or(WorkloadError::TimeOverflow { index: self.index })?);
            }
            Timing::Process(clock) => arrival.at = clock.next()?,
        }
        self.index += 1;
        Ok(Some(arrival))
    }
}

/// Cuts a request to `max` tokens in all, at least 2; whether that changed it.
fn clamp(arrival: &mut Arrival, max: u64) -> bool {
    let prompt = arrival.prompt_tokens.min(max - 1);
    let output = arrival.output_tokens.min(max - prompt);
    let changed = (prompt, output) != (arrival.prompt_tokens, arrival.output_tokens);
    if prompt < arrival.prompt_tokens {
        match &mut arrival.content {
            Content::Unique => {}
            Content::SharedPrefix { tokens, .. } => *tokens = prompt.min(*tokens),
            Content::Blocks { ids, block_tokens } => {
                let keep = usize::try_from(prompt.div_ceil(*block_tokens)).unwrap_or(usize::MAX);
                if let Some(kept) = ids.get(..keep) {
                    *ids = Arc::from(kept);
                }
            }
        }
    }
    (arrival.prompt_tokens, arrival.output_tokens) = (prompt, output);
    changed
}

/// Requests from the first one wanted on, again and again where asked.
#[derive(Debug)]
struct Passes {
    requests: Requests,
    skip: u64,
    /// When the first request that is kept arrived.
    start: Option<u64>,
    /// When the latest did, since then.
    latest: u64,
    repeat: Repeat,
    held: Vec<Arrival>,
    held_bytes: u64,
    replay: Option<Replay>,
}

/// Where a repeated trace is.
#[derive(Debug)]
struct Replay {
    pass: u64,
    place: usize,
    /// Time from the start of one pass to that of the next.
    period: u64,
}

impl Passes {
    fn next(&mut self, notes: &mut Notes) -> Result<Option<Arrival>, WorkloadError> {
        if self.replay.is_some() {
            return self.again(notes);
        }
        if self.start.is_none() {
            for _ in 0..self.skip {
                if self.requests.next(notes)?.is_none() {
                    return Err(WorkloadError::Empty { skipped: self.skip });
                }
            }
        }
        let Some(mut arrival) = self.requests.next(notes)? else {
            if self.start.is_none() {
                return Err(WorkloadError::Empty { skipped: self.skip });
            }
            if self.repeat == Repeat::No {
                return Ok(None);
            }
            let n = self.held.len() as u64;
            // One mean gap after the last arrival; a trace without extent stays at its moment.
            let gap = self.latest.checked_div(n - 1).unwrap_or(0);
            self.replay = Some(Replay {
                pass: 1,
                place: 0,
                period: self.latest.saturating_add(gap),
            });
            return self.again(notes);
        };
        let start = *self.start.get_or_insert(arrival.at.get());
        // Sources come by time, so this is never negative.
        self.latest = arrival.at.get().saturating_sub(start);
        arrival.at = Nanos(self.latest);
        if self.repeat != Repeat::No {
            self.hold(&arrival)?;
        }
        notes.passes = 1;
        Ok(Some(arrival))
    }

    fn hold(&mut self, arrival: &Arrival) -> Result<(), WorkloadError> {
        let ids = match &arrival.content {
            Content::Blocks { ids, .. } => size_of_val::<[u64]>(ids),
            Content::Unique | Content::SharedPrefix { .. } => 0,
        };
        self.held_bytes += (size_of::<Arrival>() + ids) as u64;
        if self.held_bytes > REPEAT_BYTES_MAX {
            return Err(WorkloadError::RepeatTooLong {
                bytes_max: REPEAT_BYTES_MAX,
            });
        }
        self.held.push(arrival.clone());
        Ok(())
    }

    fn again(&mut self, notes: &mut Notes) -> Result<Option<Arrival>, WorkloadError> {
        let Some(replay) = &mut self.replay else {
            return Ok(None);
        };
        if replay.place == self.held.len() {
            replay.place = 0;
            replay.pass += 1;
        }
        let Some(mut arrival) = self.held.get(replay.place).cloned() else {
            return Ok(None);
        };
        notes.passes = replay.pass + 1;
        let at = replay
            .pass
            .checked_mul(replay.period)
            .and_then(|offset| offset.checked_add(arrival.at.get()));
        arrival.at = Nanos(at.ok_or(WorkloadError::TimeOverflow {
            index: replay.pass.saturating_mul(self.held.len() as u64),
        })?);
        if self.repeat == Repeat::FreshContent
            && let Content::Blocks { ids, .. } = &mut arrival.content
        {
            // A bijection per pass: distinct ids stay distinct, and those of two passes meet by
            // chance alone (2^-64 per pair).
            *ids = ids.iter().map(|&id| mix(id ^ mix(replay.pass))).collect();
        }
        replay.place += 1;
        Ok(Some(arrival))
    }
}
