//! Log probabilities as clients read them: a list of objects in chats, columns in completions.

use plimsoll_runtime::sample::TokenLogprobs;
use plimsoll_runtime::text::{TextError, Tokenizer};
use serde_json::{Map, json};

use crate::reply::{ChatLogprobs, Columns, Likely, TokenLogprob};

/// What stands for −∞, which JSON has no number for; vLLM's too.
const LEAST: f32 = -9999.0;

/// A token with its log probability, and the likeliest ones at its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    /// `None` for the first token of a prompt: nothing comes before it.
    pub(crate) logprob: Option<f32>,
    pub(crate) id: u32,
    pub(crate) top: &'a [(u32, f32)],
}

/// The tokens of a sequence.
pub(crate) fn entries(all: &TokenLogprobs) -> impl Iterator<Item = Entry<'_>> {
    all.iter().map(|((id, logprob), top)| Entry {
        logprob: Some(logprob),
        id,
        top,
    })
}

/// A chat's.
pub(crate) fn chat<'a>(
    tokenizer: &Tokenizer,
    entries: impl Iterator<Item = Entry<'a>>,
) -> Result<ChatLogprobs, TextError> {
    let one = |id: u32, logprob: f32| -> Result<Likely, TextError> {
        let token = tokenizer.decode(&[id], true)?;
        Ok(Likely {
            bytes: token.as_bytes().to_vec(),
            token,
            logprob: logprob.max(LEAST).into(),
        })
    };
    let mut content = Vec::new();
    for e in entries {
        let own = one(e.id, e.logprob.unwrap_or(LEAST))?;
        let top: Result<_, TextError> = e.top.iter().map(|t| one(t.0, t.1)).collect();
        content.push(TokenLogprob {
            own,
            top_logprobs: top?,
        });
    }
    Ok(ChatLogprobs {
        content,
        refusal: (),
    })
}

/// A completion's; places in the text count characters from `offset`, which moves on.
pub(crate) fn completion<'a>(
    tokenizer: &Tokenizer,
    entries: impl Iterator<Item = Entry<'a>>,
    offset: &mut usize,
) -> Result<Columns, TextError> {
    let (mut tokens, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for e in entries {
        let token = tokenizer.decode(&[e.id], true)?;
        let top = match e.logprob {
            None => None,
            Some(own) => {
                let mut map = Map::new();
                for &(id, logprob) in e.top {
                    let text = tokenizer.decode(&[id], true)?;
                    // Tokens that are parts of characters may look alike: the likeliest goes first.
                    map.entry(text).or_insert(json!(logprob.max(LEAST)));
                }
                map.entry(token.clone()).or_insert(json!(own.max(LEAST)));
                Some(map)
            }
        };
        offsets.push(*offset);
        *offset += token.chars().count();
        tokens.push(token);
        logprobs.push(e.logprob.map(|l| l.max(LEAST).into()));
        tops.push(top);
    }
    Ok(Columns {
        tokens,
        token_logprobs: logprobs,
        top_logprobs: tops,
        text_offset: offsets,
    })
}

/// A prompt's tokens, the first without a log probability.
pub(crate) fn prompt<'a>(
    ids: &[u32],
    all: &'a TokenLogprobs,
) -> impl Iterator<Item = Entry<'a>> + use<'a> {
    let first = ids.first().map(|&id| Entry {
        logprob: None,
        id,
        top: &[],
    });
    first.into_iter().chain(entries(all))
}
