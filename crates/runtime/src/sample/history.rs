//! [`History`]: which tokens a sequence had, for penalties and for its length.

use std::collections::BTreeMap;
use std::sync::Arc;

use plimsoll_schedule::{RequestId, SeqEvent};
use plimsoll_units::SeqId;

/// The tokens of a prompt, each once and sorted; shared by the sequences of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptTokens {
    distinct: Arc<[u32]>,
    len: u32,
}

impl PromptTokens {
    /// Those of `prompt`; where no penalty asks for them, `wanted` is false and only the length is kept.
    #[must_use]
    pub fn new(prompt: &[u32], wanted: bool) -> Self {
        let mut distinct = if wanted { prompt.to_vec() } else { Vec::new() };
        distinct.sort_unstable();
        distinct.dedup();
        Self {
            distinct: distinct.into(),
            // Prompts are checked against the model's length.
            len: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
        }
    }
}

impl PromptTokens {
    /// Tokens of the prompt.
    #[must_use]
    pub(crate) const fn len(&self) -> u32 {
        self.len
    }
}

/// What a sequence had so far.
///
/// It grows by looking at the query tokens of every row, so it needs no word of the scheduler on what was drawn:
/// a token that was preempted and is computed again lies below the length, and is not counted twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    prompt: PromptTokens,
    /// Tokens known.
    len: u32,
    /// How often each token was generated, by token. One entry per distinct token: bounded by the model's length.
    counts: Option<Vec<(u32, u32)>>,
}

impl History {
    /// Of a sequence that begins with a prompt; `counts` says whether penalties ask what was generated.
    #[must_use]
    pub fn new(prompt: PromptTokens, counts: bool) -> Self {
        Self {
            len: prompt.len,
            prompt,
            counts: counts.then(Vec::new),
        }
    }

    /// Looks at a row's query tokens, the first of which stands at `start`.
    pub fn observe(&mut self, start: u32, tokens: &[u32]) {
        // What is below the length was seen before.
        let known = self.len.saturating_sub(start) as usize;
        for &token in tokens.iter().skip(known) {
            self.len = self.len.saturating_add(1);
            let Some(counts) = &mut self.counts else {
                continue;
            };
            match counts.binary_search_by_key(&token, |c| c.0) {
                Ok(at) => counts[at].1 += 1,
                Err(at) => counts.insert(at, (token, 1)),
            }
        }
    }

    /// Tokens, those of the prompt among them: the position of the next.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that were generated.
    #[must_use]
    pub const fn generated(&self) -> u32 {
        self.len.saturating_sub(self.prompt.len)
    }

    /// How often each token was generated, in the order of tokens.
    #[must_use]
    pub fn counts(&self) -> &[(u32, u32)] {
        self.counts.as_deref().unwrap_or_default()
    }

    /// The tokens of the prompt, each once, in order.
    #[must_use]
    pub fn prompt(&self) -> &[u32] {
        &self.prompt.distinct
    }
}

/// The histories of all living sequences.
#[derive(Debug, Default)]
pub struct Histories {
    by_seq: BTreeMap<SeqId, History>,
}

impl Histories {
    /// Follows an event; `start` makes the history of a sequence that begins with its request's prompt.
    pub fn follow(&mut self, event: &SeqEvent, start: impl FnOnce(RequestId) -> History) {
        match *event {
            SeqEvent::Start { seq, request, .. } => {
                self.by_seq.insert(seq, start(request));
            }
            SeqEvent::Fork {
                seq, from, request, ..
            } => {
                // Whoever is known gets the prompt's blocks after it was computed again; its tokens are its own.
                if !self.by_seq.contains_key(&seq) {
                    let history = self.by_seq.get(&from).cloned();
                    let history = history.unwrap_or_else(|| start(request));
                    self.by_seq.insert(seq, history);
                }
            }
            // Tables are cut; the tokens stay.
            SeqEvent::Truncate { .. } => {}
            SeqEvent::Drop { seq } => {
                self.by_seq.remove(&seq);
            }
        }
    }

    /// That of a sequence.
    #[must_use]
    pub fn get(&self, seq: SeqId) -> Option<&History> {
        self.by_seq.get(&seq)
    }

    /// That of a sequence, to observe.
    #[must_use]
    pub fn get_mut(&mut self, seq: SeqId) -> Option<&mut History> {
        self.by_seq.get_mut(&seq)
    }

    /// Sequences alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_seq.len()
    }

    /// Whether no sequence is alive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_seq.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_generated_once() {
        let mut h = History::new(PromptTokens::new(&[5, 3, 5], true), true);
        assert_eq!((h.prompt(), h.len(), h.generated()), (&[3, 5][..], 3, 0));
        h.observe(1, &[3, 5]);
        assert_eq!(h.counts(), [], "the prompt is not generated");
        h.observe(3, &[9]);
        h.observe(4, &[5]);
        // Preempted, and computed again in two chunks, the second with a new token.
        h.observe(0, &[5, 3, 5, 9]);
        h.observe(4, &[5, 9]);
        assert_eq!(
            (h.counts(), h.len(), h.generated()),
            (&[(5, 1), (9, 2)][..], 6, 3)
        );
        let mut short = History::new(PromptTokens::new(&[5, 3, 5], false), false);
        short.observe(3, &[9]);
        assert_eq!(
            (short.prompt(), short.counts(), short.generated()),
            (&[][..], &[][..], 1)
        );
    }

    #[test]
    fn follows_sequences() {
        let (request, index) = (RequestId(4), 0);
        let (a, b) = (SeqId(1), SeqId(2));
        let mut all = Histories::default();
        let start = |r: RequestId| {
            assert_eq!(r, request);
            History::new(PromptTokens::new(&[7], true), true)
        };
        all.follow(
            &SeqEvent::Start {
                seq: a,
                request,
                index,
            },
            start,
        );
        all.get_mut(a).unwrap().observe(1, &[8]);
        all.follow(
            &SeqEvent::Fork {
                seq: b,
                from: a,
                request,
                index: 1,
            },
            start,
        );
        all.get_mut(b).unwrap().observe(2, &[9]);
        all.follow(&SeqEvent::Truncate { seq: b, to: 0 }, start);
        assert_eq!(all.get(a).unwrap().counts(), [(8, 1)]);
        assert_eq!(all.get(b).unwrap().counts(), [(8, 1), (9, 1)]);
        // The prompt was computed again, and `b` gets its blocks: it used to get the counts of `a` too.
        let again = SeqEvent::Fork {
            seq: b,
            from: a,
            request,
            index: 1,
        };
        all.follow(&again, start);
        assert_eq!(all.get(b).unwrap().counts(), [(8, 1), (9, 1)]);
        all.follow(&SeqEvent::Drop { seq: a }, start);
        assert_eq!((all.get(a), all.len(), all.is_empty()), (None, 1, false));
    }
}
