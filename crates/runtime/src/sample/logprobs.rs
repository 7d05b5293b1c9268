//! [`Logprobs`]: log probabilities of tokens, from when they are computed to when somebody takes them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use plimsoll_schedule::Completion;

use super::search::SearchLogprobs;

/// Of a request's tokens, over the whole distribution: before temperature, penalties and anything else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logprobs {
    /// Of the prompt's tokens from the second on, where they were asked for.
    pub prompt: TokenLogprobs,
    /// Of what each sequence generated, by its place in the request, where they were asked for.
    pub sequences: BTreeMap<u32, TokenLogprobs>,
    /// Of what a beam search generated, where they were asked for.
    pub search: SearchLogprobs,
}

impl Logprobs {
    /// Those of what was generated, where they were asked for; a beam's are put together.
    #[must_use]
    pub fn of(&self, completion: &Completion) -> Option<Cow<'_, TokenLogprobs>> {
        if self.search.is_empty() {
            return self.sequences.get(&completion.index).map(Cow::Borrowed);
        }
        let (tokens, logprobs) = (&completion.tokens, &completion.logprobs);
        Some(Cow::Owned(self.search.of(tokens, logprobs)))
    }
}

/// A token with its log probability, and the likeliest tokens at its place, best first.
pub type TokenLogprob<'a> = ((u32, f32), &'a [(u32, f32)]);

/// Of tokens in a row: each with its log probability and the likeliest tokens at its place, best first.
///
/// Its memory is taken once, for as many tokens as can come: 8 bytes for each of them and of its alternatives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    alternatives: usize,
    /// The token, then its alternatives.
    entries: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Room for so many tokens.
    #[must_use]
    pub fn new(tokens: usize, alternatives: usize) -> Self {
        Self {
            alternatives,
            entries: Vec::with_capacity(tokens.saturating_mul(alternatives + 1)),
        }
    }

    /// Puts a token at `place`: what stood there and behind is computed again and forgotten.
    pub(crate) fn put(&mut self, place: usize, token: (u32, f32), top: &[(u32, f32)]) {
        self.entries
            .truncate(place.saturating_mul(self.alternatives + 1));
        self.entries.push(token);
        self.entries.extend(top.iter().take(self.alternatives));
    }

    /// Tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() / (self.alternatives + 1)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The token at `place` and its alternatives.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<TokenLogprob<'_>> {
        let start = place.checked_mul(self.alternatives + 1)?;
        let entry = self.entries.get(start..start + self.alternatives + 1)?;
        entry.split_first().map(|(token, top)| (*token, top))
    }

    /// Each token and its alternatives.
    pub fn iter(&self) -> impl Iterator<Item = TokenLogprob<'_>> {
        let all = self.entries.chunks_exact(self.alternatives + 1);
        all.filter_map(|c| c.split_first().map(|(token, top)| (*token, top)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_computed_again_is_kept_once() {
        let mut all = TokenLogprobs::new(3, 2);
        let room = all.entries.capacity();
        for place in [0, 1, 2, 1, 2] {
            let x = place as f32;
            let token = u32::try_from(place).unwrap();
            all.put(place, (token, -x), &[(7, -0.5), (8, -x - 1.0), (9, -9.0)]);
        }
        let tokens: Vec<_> = all
            .iter()
            .map(|(t, top)| (t.0, top.len(), top[1]))
            .collect();
        assert_eq!(
            tokens,
            [(0, 2, (8, -1.0)), (1, 2, (8, -2.0)), (2, 2, (8, -3.0))]
        );
        assert_eq!((all.len(), all.entries.capacity()), (3, room));
    }
}
