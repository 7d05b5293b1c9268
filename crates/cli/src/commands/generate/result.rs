//! What came of one prompt, as JSON: `--json`, and the lines of `--prompts`.
//!
//! It is written piece by piece: as a tree of JSON values, log probabilities would take many times the memory that is
//! planned for them.

use plimsoll_runtime::sample::{Logprobs, TokenLogprobs};
use plimsoll_runtime::text::Tokenizer;
use plimsoll_schedule::{Completion, End, Ended};
use serde::ser::{Error, SerializeMap};
use serde::{Serialize, Serializer};

/// One answer.
pub(super) struct Choice<'a> {
    pub(super) text: String,
    pub(super) completion: &'a Completion,
}

/// All of a prompt.
pub(super) struct Answered<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) ended: &'a Ended,
    pub(super) choices: Vec<Choice<'a>>,
    pub(super) prompt: &'a [u32],
    pub(super) logprobs: &'a Logprobs,
    /// Whether those of the prompt were asked for.
    pub(super) told: bool,
    pub(super) seed: Option<u64>,
    pub(super) error: Option<String>,
}

impl Serialize for Answered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokens = self.ended.completions.iter().map(|c| c.tokens.len());
        let mut all = serializer.serialize_map(None)?;
        all.serialize_entry("index", &self.ended.request.0)?;
        all.serialize_entry("choices", &Choices(self))?;
        all.serialize_entry("prompt_tokens", &self.prompt.len())?;
        all.serialize_entry("output_tokens", &tokens.sum::<usize>())?;
        all.serialize_entry("cached_tokens", &self.ended.cached_tokens)?;
        let preemptions = self.ended.swaps + self.ended.recomputes;
        all.serialize_entry("preemptions", &preemptions)?;
        if let Some(seed) = self.seed {
            all.serialize_entry("seed", &seed)?;
        }
        if self.told {
            let told = Told {
                tokenizer: self.tokenizer,
                first: self.prompt.first().copied(),
                logprobs: &self.logprobs.prompt,
            };
            all.serialize_entry("prompt_logprobs", &told)?;
        }
        if let Some(e) = &self.error {
            all.serialize_entry("error", e)?;
        }
        all.end()
    }
}

struct Choices<'a>(&'a Answered<'a>);

impl Serialize for Choices<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let of = |choice| OneChoice {
            answered: self.0,
            choice,
        };
        serializer.collect_seq(self.0.choices.iter().map(of))
    }
}

struct OneChoice<'a> {
    answered: &'a Answered<'a>,
    choice: &'a Choice<'a>,
}

impl Serialize for OneChoice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let completion = self.choice.completion;
        let why = match completion.end {
            End::Stop => "stop",
            End::Length => "length",
            End::Error => "error",
        };
        let mut one = serializer.serialize_map(None)?;
        one.serialize_entry("text", &self.choice.text)?;
        one.serialize_entry("tokens", &completion.tokens.len())?;
        one.serialize_entry("finish_reason", why)?;
        one.serialize_entry("cumulative_logprob", &completion.logprob)?;
        if let Some(logprobs) = self.answered.logprobs.of(completion) {
            let told = Told {
                tokenizer: self.answered.tokenizer,
                first: None,
                logprobs: &logprobs,
            };
            one.serialize_entry("logprobs", &told)?;
        }
        one.end()
    }
}

/// Tokens with their log probabilities.
struct Told<'a> {
    tokenizer: &'a Tokenizer,
    /// A prompt's first token: nothing comes before it.
    first: Option<u32>,
    logprobs: &'a TokenLogprobs,
}

impl Serialize for Told<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = |id, logprob, top| Place {
            tokenizer: self.tokenizer,
            id,
            logprob,
            top: Some(top),
        };
        let first = self.first.map(|id| place(id, None, &[][..]));
        let rest = self.logprobs.iter();
        let rest = rest.map(|((id, logprob), top)| place(id, Some(logprob), top));
        serializer.collect_seq(first.into_iter().chain(rest))
    }
}

/// A token with its log probability and the likeliest ones at its place; or one of these, which has none.
struct Place<'a> {
    tokenizer: &'a Tokenizer,
    id: u32,
    /// −∞ has no number in JSON: `null`.
    logprob: Option<f32>,
    top: Option<&'a [(u32, f32)]>,
}

impl Serialize for Place<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let token = self.tokenizer.decode(&[self.id], true);
        let mut one = serializer.serialize_map(None)?;
        one.serialize_entry("token", &token.map_err(S::Error::custom)?)?;
        one.serialize_entry("id", &self.id)?;
        one.serialize_entry("logprob", &self.logprob.map(f64::from))?;
        if let Some(top) = self.top {
            let top = Top {
                tokenizer: self.tokenizer,
                top,
            };
            one.serialize_entry("top", &top)?;
        }
        one.end()
    }
}

/// The likeliest tokens at a place.
struct Top<'a> {
    tokenizer: &'a Tokenizer,
    top: &'a [(u32, f32)],
}

impl Serialize for Top<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let place = |&(id, logprob): &(u32, f32)| Place {
            tokenizer: self.tokenizer,
            id,
            logprob: Some(logprob),
            top: None,
        };
        serializer.collect_seq(self.top.iter().map(place))
    }
}
