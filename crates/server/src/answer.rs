//! Answers that come in one piece, and what they have in common with streams.

use plimsoll_runtime::text::{TextError, Tokenizer};
use plimsoll_schedule::{Completion, End};

use crate::code::Code;
use crate::engine::{Event, Finished, Why};
use crate::error::ApiError;
use crate::logprobs;
use crate::mailbox::Events;
use crate::prepare::{Route, Told};
use crate::reply::{self, Choice, Function, Message, Reply, ToolCall};
use crate::state::{State, now_s};
use crate::tools::Call;

/// What every piece of an answer begins with.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    route: Route,
    id: String,
    created: u64,
    model: String,
}

impl Head {
    pub(crate) fn new(state: &State, route: Route) -> Self {
        let kind = match route {
            Route::Completion => "cmpl",
            Route::Chat => "chatcmpl",
        };
        Self {
            route,
            id: format!("{kind}-{:016x}{:016x}", state.draw(), state.draw()),
            created: now_s(),
            model: state.options.name.clone(),
        }
    }

    /// The answer's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// An object with these choices; a piece of a stream, or the whole.
    pub(crate) fn object(
        &self,
        streams: bool,
        choices: Vec<Choice>,
        usage: Option<Option<reply::Usage>>,
    ) -> Reply<'_> {
        Reply {
            id: &self.id,
            object: match (self.route, streams) {
                (Route::Completion, _) => "text_completion",
                (Route::Chat, false) => "chat.completion",
                (Route::Chat, true) => "chat.completion.chunk",
            },
            created: self.created,
            model: &self.model,
            system_fingerprint: (),
            choices,
            usage,
        }
    }
}

/// Tokens that were read and written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: u64,
    pub(crate) completion: u64,
    pub(crate) cached: u64,
}

impl Usage {
    pub(crate) fn of(told: &[Told]) -> Self {
        Self {
            prompt: told.iter().map(|t| t.ids.len() as u64).sum(),
            ..Self::default()
        }
    }

    pub(crate) fn reply(self) -> reply::Usage {
        reply::Usage {
            prompt_tokens: self.prompt,
            completion_tokens: self.completion,
            total_tokens: self.prompt + self.completion,
            prompt_tokens_details: reply::PromptDetails {
                cached_tokens: self.cached,
            },
            completion_tokens_details: reply::CompletionDetails {
                reasoning_tokens: 0,
            },
        }
    }
}

/// How a sequence ended, as clients read it; `why`, where that is an error.
pub(crate) fn reason(end: End, why: Option<&Why>) -> Result<&'static str, ApiError> {
    match end {
        End::Stop => Ok("stop"),
        End::Length => Ok("length"),
        End::Error => {
            let (code, what) = why
                .map_or((Code::NumericalError, "its logits are no numbers"), |w| {
                    (w.code, &*w.message)
                });
            let message = format!("the answer ended with an error: {what}");
            Err(ApiError::server(code, message))
        }
    }
}

/// How an answer ended that calls tools: unless it was cut, by its calls.
pub(crate) fn called(reason: &'static str, calls: bool) -> &'static str {
    match reason {
        "stop" if calls => "tool_calls",
        other => other,
    }
}

/// A call as clients read it, under an id that nobody guesses.
pub(crate) fn function(state: &State, call: Call, index: Option<usize>) -> ToolCall {
    ToolCall {
        id: Some(format!("call_{:016x}{:016x}", state.draw(), state.draw())),
        kind: Some("function"),
        function: Function {
            name: Some(call.name),
            arguments: call.arguments,
        },
        index,
    }
}

/// Waits until all prompts have ended; what came of each, by their places.
pub(crate) async fn collect(
    state: &State,
    events: &mut Events,
    prompts: usize,
) -> Result<Vec<Finished>, ApiError> {
    let mut all: Vec<Option<Finished>> = (0..prompts).map(|_| None).collect();
    while all.iter().any(Option::is_none) {
        match events.recv().await {
            Some(Event::Finished(place, finished)) => {
                if let Some(slot) = all.get_mut(place) {
                    *slot = Some(*finished);
                }
            }
            Some(Event::Refused(refusal)) => return Err(refusal.into()),
            Some(Event::Failed(why)) => return Err(ApiError::failed(&why)),
            Some(Event::Expired) => return Err(ApiError::expired(state.options.queue_timeout)),
            Some(_) => {}
            None => return Err(ApiError::cut(state.is_draining())),
        }
    }
    Ok(all.into_iter().flatten().collect())
}

/// The whole answer.
pub(crate) fn whole<'a>(
    state: &State,
    head: &'a Head,
    told: &[Told],
    finished: &mut [Finished],
    n: u32,
    ranked: bool,
) -> Result<Reply<'a>, ApiError> {
    let tokenizer = &state.model.tokenizer;
    let mut usage = Usage::of(told);
    let mut choices = Vec::new();
    for (place, (told, f)) in told.iter().zip(finished).enumerate() {
        usage.cached += u64::from(f.ended.cached_tokens);
        let (completions, why) = (&mut f.ended.completions, f.error.as_ref());
        // Of more beams the best, as they stand.
        completions.truncate(n as usize);
        if !ranked {
            completions.sort_by_key(|c| c.index);
        }
        for (i, c) in completions.iter().enumerate() {
            usage.completion += c.tokens.len() as u64;
            let index = place as u64 * u64::from(n) + i as u64;
            let reason = reason(c.end, why)?;
            let mut text = text(tokenizer, told, c)?;
            let mut calls = Vec::new();
            if let Some(mut reader) = told.calls.clone() {
                let before = reader.push(&text);
                let (rest, found) = reader.finish();
                text = before + &rest;
                calls = found;
            }
            let reason = called(reason, !calls.is_empty());
            let own = f.logprobs.of(c);
            let own = own.as_deref();
            choices.push(match head.route {
                Route::Chat => {
                    let logprobs = own.map(|l| logprobs::chat(tokenizer, logprobs::entries(l)));
                    let logprobs = logprobs.transpose()?;
                    let said = calls.is_empty() || !text.is_empty();
                    let calls = calls.into_iter().map(|c| function(state, c, None));
                    Choice::Chat {
                        index,
                        message: Message {
                            role: "assistant",
                            content: said.then_some(text),
                            refusal: (),
                            tool_calls: calls.collect(),
                        },
                        logprobs,
                        finish_reason: reason,
                    }
                }
                Route::Completion => {
                    let before = told.params.asked().prompt_logprobs.is_some();
                    let before = before.then(|| logprobs::prompt(&told.ids, &f.logprobs.prompt));
                    let logprobs = own.map(|l| {
                        let all = before.into_iter().flatten().chain(logprobs::entries(l));
                        logprobs::completion(tokenizer, all, &mut 0)
                    });
                    let echo = told.echo.as_deref().unwrap_or_default();
                    Choice::Completion {
                        index,
                        text: format!("{echo}{text}"),
                        logprobs: logprobs.transpose()?,
                        finish_reason: Some(reason),
                    }
                }
            });
        }
    }
    Ok(head.object(false, choices, Some(Some(usage.reply()))))
}

fn text(tokenizer: &Tokenizer, told: &Told, c: &Completion) -> Result<String, TextError> {
    let mut answer = told.answer.clone();
    let mut text = String::new();
    let last = c.tokens.len().saturating_sub(1);
    for (i, &token) in c.tokens.iter().enumerate() {
        let ends = i == last && c.end == End::Stop && told.params.ends(token);
        text.push_str(&answer.push(tokenizer, token, ends)?);
    }
    text.push_str(&answer.finish(tokenizer)?);
    Ok(text)
}
