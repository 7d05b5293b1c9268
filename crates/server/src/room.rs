//! What a request holds, from when it was read until its answer is written: room for it is taken before the engine
//! hears of it, so that all requests together stay within what was planned.

use std::sync::Arc;
use std::time::Duration;

use axum::body::HttpBody as _;
use axum::response::Response;
use tokio::sync::OwnedSemaphorePermit;

use crate::code::Code;
use crate::error::ApiError;
use crate::mailbox::MAILBOX_BYTES;
use crate::prepare::{Prepared, Told};
use crate::state::State;

/// A request, whatever it asks: its parameters and places in lists.
const REQUEST: usize = 4 << 10;
/// A token of a prompt: here, in the engine's lists, and as text that is told again.
const PROMPT_TOKEN: usize = 24;
/// A token of an answer that is told in one piece.
const TOKEN: usize = 32;
/// A log probability as JSON: its token as text and bytes, as values and as what is written of them. Measured: 366 for
/// those of completions.
const LOGPROB: usize = 768;
/// A sequence under way: its detokenizer, and what may become a stop string.
const SEQUENCE: usize = 1 << 10;

const _: () = assert!(
    REQUEST + SEQUENCE + MAILBOX_BYTES <= 70 << 10,
    "plan counts as much for every connection: plan/src/engine/plimsoll/http.rs"
);

/// How long whoever looks waits for those who look already.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Room that is others' again when the last of its owners is gone.
#[derive(Clone, Debug)]
pub(crate) struct Room(#[allow(dead_code, reason = "held")] Arc<OwnedSemaphorePermit>);

/// Bytes that a body's requests may come to.
fn bytes(prepared: &Prepared) -> usize {
    let alternatives = |k: Option<u32>| k.map_or(0, |k| k as usize + 1);
    let one = |(told, width): (&Told, usize)| {
        let (prompt, asked) = (told.ids.len(), told.params.asked());
        let before = prompt
            .saturating_mul(alternatives(asked.prompt_logprobs))
            .saturating_mul(LOGPROB)
            .saturating_mul(prepared.n as usize);
        let told_at_once = if prepared.streams {
            0
        } else {
            let each = TOKEN + alternatives(asked.logprobs) * LOGPROB;
            (told.params.max_tokens() as usize)
                .saturating_mul(each)
                .saturating_mul(width)
        };
        let rest = REQUEST + prompt.saturating_mul(PROMPT_TOKEN) + width * SEQUENCE;
        rest.saturating_add(before).saturating_add(told_at_once)
    };
    let widths = prepared
        .jobs
        .iter()
        .map(|j| j.request.fan().width() as usize);
    let mailbox = if prepared.streams { MAILBOX_BYTES } else { 0 };
    prepared
        .told
        .iter()
        .zip(widths)
        .map(one)
        .fold(mailbox, usize::saturating_add)
}

/// Takes a place among those who look at what the server itself does, or plan: what they are told may be long.
pub(crate) async fn look(state: &State) -> Result<Room, ApiError> {
    let place = Arc::clone(&state.looks).acquire_owned();
    match tokio::time::timeout(LOOK_TIMEOUT, place).await {
        Ok(Ok(place)) => Ok(Room(Arc::new(place))),
        _ => Err(ApiError::watchers()),
    }
}

/// Takes the room that a body's requests need.
pub(crate) fn take(state: &State, prepared: &Prepared) -> Result<Room, ApiError> {
    let (bytes, most) = (bytes(prepared), state.options.requests_bytes);
    if bytes > most {
        let message = format!(
            "what is asked for may take {bytes} bytes, and requests have {most} in all: ask for fewer tokens, log probabilities or sequences, or stream it"
        );
        return Err(ApiError::invalid(Code::AnswerTooLarge, message).param("max_tokens"));
    }
    room(state, bytes)
}

/// Takes the room of an answer that is whole, until it is read: whoever only has tokens counted may be in no hurry.
pub(crate) fn hold(state: &State, mut response: Response) -> Result<Response, ApiError> {
    let bytes = response.body().size_hint().lower();
    let room = room(state, usize::try_from(bytes).unwrap_or(usize::MAX))?;
    response.extensions_mut().insert(room);
    Ok(response)
}

fn room(state: &State, bytes: usize) -> Result<Room, ApiError> {
    let room = state.requests_room(bytes);
    room.map(|r| Room(Arc::new(r))).ok_or_else(|| {
        let message = "requests in flight take all the memory that there is for them";
        ApiError::busy(message, Duration::from_secs(1))
    })
}
