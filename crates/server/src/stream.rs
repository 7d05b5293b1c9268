//! Answers that come as they are written: server-sent events, as OpenAI sends them.
//!
//! The connection pulls: it takes from the mailbox what there is, whenever it can write. Whoever reads slowly finds more
//! in one piece; whoever leaves drops the mailbox, and that cancels the request.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use plimsoll_runtime::sample::TokenLogprobs;
use plimsoll_runtime::text::Answer;
use serde::Serialize;

use crate::answer::{Head, Usage, called, function, reason};
use crate::engine::{Event, Finished, Token};
use crate::error::ApiError;
use crate::log::Outcome;
use crate::logprobs::{self, Entry};
use crate::mailbox::Events;
use crate::prepare::{Prepared, Route, Told};
use crate::reply::{self, ChatLogprobs, Columns, Delta, ToolCall};
use crate::state::{Flying, State};
use crate::tools::{Call, Calls};

/// Events that go into one piece of a body.
const BATCH: usize = 64;

/// One answer under way.
#[derive(Debug)]
struct Choice {
    answer: Answer,
    /// Where calls of tools are looked for, if there may be any, and whether there were.
    calls: Option<Calls>,
    called: bool,
    tokens: u32,
    /// Whether its first piece is out.
    begun: bool,
    over: bool,
    /// Where its next token stands in its text.
    offset: usize,
}

/// Log probabilities of a token, in the shape of its route.
enum Logprobs {
    None,
    Completion(Columns),
    Chat(ChatLogprobs),
}

/// What ends a stream early.
struct Cut(Pin<Box<dyn Future<Output = ApiError> + Send>>);

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cut")
    }
}

/// A stream under way.
#[derive(Debug)]
struct Stream {
    state: Arc<State>,
    head: Head,
    route: Route,
    told: Vec<Told>,
    n: u32,
    include_usage: bool,
    usage: Usage,
    choices: Vec<Choice>,
    /// Log probabilities of prompts, where they are told.
    prompts: Vec<Option<TokenLogprobs>>,
    /// Prompts that have not ended.
    open: usize,
    events: Events,
    over: bool,
    /// Why it must end early, when it must.
    cut: Cut,
    /// How it ended, for the log.
    outcome: Outcome,
    /// Counted as in flight until the last byte is taken.
    _flying: Flying,
}

/// The response of a stream whose prompts were let in.
pub(crate) fn response(
    state: Arc<State>,
    head: Head,
    prepared: Prepared,
    events: Events,
    flying: Flying,
    cut: impl Future<Output = ApiError> + Send + 'static,
) -> Response {
    let Prepared {
        route,
        told,
        n,
        include_usage,
        ..
    } = prepared;
    let choice = |t: &Told| Choice {
        answer: t.answer.clone(),
        calls: t.calls.clone(),
        called: false,
        tokens: 0,
        begun: false,
        over: false,
        offset: 0,
    };
    let each = |t| std::iter::repeat_with(move || choice(t)).take(n as usize);
    let outcome = Outcome::default();
    let stream = Stream {
        head,
        route,
        n,
        include_usage,
        usage: Usage::of(&told),
        choices: told.iter().flat_map(each).collect(),
        prompts: told.iter().map(|_| None).collect(),
        open: told.len(),
        told,
        events,
        over: false,
        cut: Cut(Box::pin(cut)),
        outcome: outcome.clone(),
        state,
        _flying: flying,
    };
    let pieces = stream::unfold(stream, |mut stream| async {
        let piece = stream.next().await?;
        Some((Ok::<_, Infallible>(piece), stream))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.extensions_mut().insert(outcome);
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Proxies that collect pieces would hold tokens back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn data(out: &mut String, value: &impl Serialize) {
    // Keys are texts and nothing here fails.
    if let Ok(text) = serde_json::to_string(value) {
        let _ = write!(out, "data: {text}\n\n");
    }
}

impl Choice {
    /// What of more text is shown, and the calls, when all are known.
    fn calls(&mut self, text: String, over: bool) -> (String, Vec<Call>) {
        let Some(reader) = self.calls.as_mut().filter(|c| c.named().is_none()) else {
            return (text, Vec::new());
        };
        let mut shown = reader.push(&text);
        if !over {
            return (shown, Vec::new());
        }
        let (rest, calls) = reader.finish();
        shown.push_str(&rest);
        self.called = !calls.is_empty();
        (shown, calls)
    }
}

impl Stream {
    /// The next piece, when there is something to tell; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = String::new();
        while out.is_empty() {
            if self.over {
                return None;
            }
            let mut next = tokio::select! {
                biased;
                why = &mut self.cut.0 => {
                    self.fail(&why, &mut out);
                    break;
                }
                event = self.events.recv() => event,
            };
            for more in (0..BATCH).rev() {
                if let Err(e) = self.take(next, &mut out) {
                    self.fail(&e, &mut out);
                }
                // What is taken out is told: nothing is after the last of a batch.
                if self.over || more == 0 {
                    break;
                }
                match self.events.try_recv() {
                    Ok(event) => next = Some(event),
                    Err(_) => break,
                }
            }
        }
        Some(out.into())
    }

    /// Ends it by an error: without [DONE], since the answer is not whole.
    fn fail(&mut self, why: &ApiError, out: &mut String) {
        data(out, &why.reply());
        self.outcome.error(why.code);
        self.over = true;
    }

    fn take(&mut self, event: Option<Event>, out: &mut String) -> Result<(), ApiError> {
        match event {
            None => Err(ApiError::cut(self.state.is_draining())),
            Some(Event::Refused(refusal)) => Err(refusal.into()),
            Some(Event::Failed(why)) => Err(ApiError::failed(&why)),
            Some(Event::Expired) => Err(ApiError::expired(self.state.options.queue_timeout)),
            Some(Event::Slow) => Err(ApiError::slow()),
            Some(Event::Accepted) => Ok(()),
            Some(Event::Prompt(place, logprobs)) => {
                if let Some(slot) = self.prompts.get_mut(place) {
                    *slot = Some(logprobs);
                }
                Ok(())
            }
            Some(Event::Token(place, token)) => self.token(place, &token, out),
            Some(Event::Finished(place, finished)) => self.finished(place, &finished, out),
        }
    }

    fn token(&mut self, place: usize, token: &Token, out: &mut String) -> Result<(), ApiError> {
        let at = place * self.n as usize + token.index as usize;
        self.begin(place, at, out)?;
        let state = Arc::clone(&self.state);
        let tokenizer = &state.model.tokenizer;
        let (Some(told), Some(choice)) = (self.told.get(place), self.choices.get_mut(at)) else {
            return Ok(());
        };
        choice.tokens += 1;
        self.usage.completion += 1;
        let params = &told.params;
        let ends = token.ends && params.ends(token.id);
        let mut text = choice.answer.push(tokenizer, token.id, ends)?;
        let over = match (token.ends, choice.tokens >= params.max_tokens()) {
            (true, _) => Some("stop"),
            (false, true) => Some("length"),
            _ => None,
        };
        if over.is_some() {
            text.push_str(&choice.answer.finish(tokenizer)?);
            choice.over = true;
        }
        let named = choice.calls.as_ref().and_then(Calls::named);
        if let Some(name) = named.map(str::to_owned) {
            // All of it is arguments of one call.
            let begins = !std::mem::replace(&mut choice.called, true);
            let arguments = std::mem::take(&mut text);
            let call = if begins {
                function(&state, Call { name, arguments }, Some(0))
            } else {
                ToolCall {
                    id: None,
                    kind: None,
                    function: reply::Function {
                        name: None,
                        arguments,
                    },
                    index: Some(0),
                }
            };
            self.chunk(chat_choice(at, Delta::call(call), None, None), out);
        }
        let Some(choice) = self.choices.get_mut(at) else {
            return Ok(());
        };
        let (text, calls) = choice.calls(text, over.is_some());
        let entry = params.asked().logprobs.map(|_| Entry {
            logprob: Some(token.logprob),
            id: token.id,
            top: &token.top,
        });
        let logprobs = match (entry, self.route) {
            (None, _) => Logprobs::None,
            (Some(e), Route::Chat) => {
                Logprobs::Chat(logprobs::chat(tokenizer, std::iter::once(e))?)
            }
            (Some(e), Route::Completion) => {
                let entry = std::iter::once(e);
                let columns = logprobs::completion(tokenizer, entry, &mut choice.offset)?;
                Logprobs::Completion(columns)
            }
        };
        if !text.is_empty() || !matches!(logprobs, Logprobs::None) {
            self.piece(at, text, logprobs, None, out);
        }
        for (i, call) in calls.into_iter().enumerate() {
            let delta = Delta::call(function(&state, call, Some(i)));
            self.chunk(chat_choice(at, delta, None, None), out);
        }
        if let Some(reason) = over {
            let reason = called(reason, self.choices.get(at).is_some_and(|c| c.called));
            self.piece(at, String::new(), Logprobs::None, Some(reason), out);
        }
        Ok(())
    }

    /// What comes before the first token of an answer: who speaks, or the prompt.
    fn begin(&mut self, place: usize, at: usize, out: &mut String) -> Result<(), ApiError> {
        let (Some(told), Some(choice)) = (self.told.get(place), self.choices.get_mut(at)) else {
            return Ok(());
        };
        if std::mem::replace(&mut choice.begun, true) {
            return Ok(());
        }
        match self.route {
            Route::Chat => {
                self.chunk(chat_choice(at, Delta::begin(), None, None), out);
            }
            Route::Completion => {
                let Some(echo) = told.echo.clone() else {
                    return Ok(());
                };
                let prompt = self.prompts.get(place).and_then(Option::as_ref);
                let logprobs = prompt.map(|p| {
                    let all = logprobs::prompt(&told.ids, p);
                    logprobs::completion(&self.state.model.tokenizer, all, &mut choice.offset)
                });
                let logprobs = logprobs.transpose()?;
                let logprobs = logprobs.map_or(Logprobs::None, Logprobs::Completion);
                self.piece(at, echo, logprobs, None, out);
            }
        }
        Ok(())
    }

    fn finished(
        &mut self,
        place: usize,
        finished: &Finished,
        out: &mut String,
    ) -> Result<(), ApiError> {
        self.usage.cached += u64::from(finished.ended.cached_tokens);
        for c in &finished.ended.completions {
            let at = place * self.n as usize + c.index as usize;
            let reason = reason(c.end, finished.error.as_ref())?;
            // Its last token said so already, unless it had none.
            if self.choices.get(at).is_some_and(|c| !c.over) {
                self.piece(at, String::new(), Logprobs::None, Some(reason), out);
            }
        }
        self.open -= 1;
        if self.open == 0 {
            if self.include_usage {
                let usage = Some(Some(self.usage.reply()));
                data(out, &self.head.object(true, Vec::new(), usage));
            }
            out.push_str("data: [DONE]\n\n");
            self.over = true;
        }
        Ok(())
    }

    /// A piece of an answer.
    fn piece(
        &self,
        at: usize,
        text: String,
        logprobs: Logprobs,
        reason: Option<&'static str>,
        out: &mut String,
    ) {
        let choice = match self.route {
            Route::Chat => {
                let delta = match reason {
                    None => Delta::content(text),
                    Some(_) => Delta::default(),
                };
                let logprobs = match logprobs {
                    Logprobs::Chat(l) => Some(l),
                    Logprobs::None | Logprobs::Completion(_) => None,
                };
                chat_choice(at, delta, logprobs, reason)
            }
            Route::Completion => reply::Choice::Completion {
                index: at as u64,
                text,
                logprobs: match logprobs {
                    Logprobs::Completion(l) => Some(l),
                    Logprobs::None | Logprobs::Chat(_) => None,
                },
                finish_reason: reason,
            },
        };
        self.chunk(choice, out);
    }

    fn chunk(&self, choice: reply::Choice, out: &mut String) {
        let usage = self.include_usage.then_some(None);
        data(out, &self.head.object(true, vec![choice], usage));
    }
}

fn chat_choice(
    at: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    reason: Option<&'static str>,
) -> reply::Choice {
    reply::Choice::Chunk {
        index: at as u64,
        delta,
        logprobs,
        finish_reason: reason,
    }
}
