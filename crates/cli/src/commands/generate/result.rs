//! What came of one prompt, as JSON: `--json`, and the lines of `--prompts`.

use plimsoll_runtime::sample::{Logprobs, TokenLogprobs};
use plimsoll_runtime::text::{TextError, Tokenizer};
use plimsoll_schedule::{Completion, End, Ended};
use serde_json::{Value, json};

/// One answer.
pub(super) struct Choice<'a> {
    pub(super) text: String,
    pub(super) completion: &'a Completion,
}

/// All of a prompt.
pub(super) struct Answered<'a> {
    pub(super) ended: &'a Ended,
    pub(super) choices: Vec<Choice<'a>>,
    pub(super) prompt: &'a [u32],
    pub(super) logprobs: &'a Logprobs,
    /// Whether those of the prompt were asked for.
    pub(super) told: bool,
    pub(super) seed: Option<u64>,
    pub(super) error: Option<String>,
}

impl Answered<'_> {
    pub(super) fn json(&self, tokenizer: &Tokenizer) -> Result<Value, TextError> {
        let mut choices = Vec::new();
        for c in &self.choices {
            let mut choice = json!({
                "text": c.text,
                "tokens": c.completion.tokens.len(),
                "finish_reason": match c.completion.end {
                    End::Stop => "stop",
                    End::Length => "length",
                    End::Error => "error",
                },
                "cumulative_logprob": c.completion.logprob,
            });
            if let Some(l) = self.logprobs.of(c.completion) {
                choice["logprobs"] = told(&l, tokenizer)?.into();
            }
            choices.push(choice);
        }
        let tokens = self.ended.completions.iter().map(|c| c.tokens.len());
        let mut all = json!({
            "index": self.ended.request.0,
            "choices": choices,
            "prompt_tokens": self.prompt.len(),
            "output_tokens": tokens.sum::<usize>(),
            "cached_tokens": self.ended.cached_tokens,
            "preemptions": self.ended.swaps + self.ended.recomputes,
        });
        if let Some(seed) = self.seed {
            all["seed"] = seed.into();
        }
        if self.told {
            // Nothing comes before the first token.
            let first = json!({
                "token": tokenizer.decode(&self.prompt[..1], true)?,
                "id": self.prompt[0],
                "logprob": null,
                "top": [],
            });
            let rest = told(&self.logprobs.prompt, tokenizer)?;
            all["prompt_logprobs"] = std::iter::once(first).chain(rest).collect();
        }
        if let Some(e) = &self.error {
            all["error"] = e.as_str().into();
        }
        Ok(all)
    }
}

/// Each token with its log probability and the likeliest ones at its place. −∞ has no number in JSON: `null`.
fn told(logprobs: &TokenLogprobs, tokenizer: &Tokenizer) -> Result<Vec<Value>, TextError> {
    let one = |(id, logprob): (u32, f32)| {
        let token = tokenizer.decode(&[id], true)?;
        Ok(json!({ "token": token, "id": id, "logprob": logprob }))
    };
    let mut all = Vec::new();
    for (token, top) in logprobs.iter() {
        let mut entry = one(token)?;
        let top: Result<Vec<Value>, TextError> = top.iter().map(|t| one(*t)).collect();
        entry["top"] = top?.into();
        all.push(entry);
    }
    Ok(all)
}
