//! [`SearchLogprobs`]: what was likeliest wherever a beam search looked, until its results are known.

use super::logprobs::TokenLogprobs;

/// Where one sequence of a search stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Path {
    /// The look before the last token, and that token; without a meaning at the first look.
    before: (u32, u32),
    /// The last look.
    at: u32,
}

impl Path {
    /// The sequence goes on with `token`.
    pub(crate) const fn push(&mut self, token: u32) {
        self.before = (self.at, token);
    }
}

/// The likeliest tokens of every row that a search looked at: a tree, since beams share what they have in common.
///
/// A search looks at as many rows of a length as it has beams, so the tree has no more looks than its sequences have
/// tokens, whichever of them are alive in the end. Its memory is taken once: 8 bytes for each look and alternative.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchLogprobs {
    alternatives: usize,
    /// Each look after the first: the one before it, and the token between them. By length.
    looks: Vec<(u32, u32)>,
    /// Where the looks of each length begin.
    lengths: Vec<u32>,
    top: Vec<(u32, f32)>,
}

impl SearchLogprobs {
    /// Room for so many beams of so many tokens.
    pub(crate) fn new(beams: usize, tokens: usize, alternatives: usize) -> Self {
        let looks = beams.saturating_mul(tokens);
        Self {
            alternatives,
            looks: Vec::with_capacity(looks),
            lengths: Vec::with_capacity(tokens),
            top: Vec::with_capacity(looks.saturating_mul(alternatives)),
        }
    }

    /// A sequence that has generated `length` tokens is looked at; one that is computed again is known.
    pub(crate) fn put(&mut self, length: usize, path: &mut Path, top: &[(u32, f32)]) {
        if length == self.lengths.len() {
            self.lengths.push(self.end());
        }
        if let Some(at) = self.find(length, path.before) {
            path.at = at;
            return;
        }
        path.at = self.end();
        self.looks.push(path.before);
        self.top.extend(top.iter().take(self.alternatives));
    }

    /// The tokens of a result, of which these are the log probabilities, and the likeliest ones at their places.
    pub(crate) fn of(&self, tokens: &[u32], logprobs: &[f32]) -> TokenLogprobs {
        let mut told = TokenLogprobs::new(tokens.len(), self.alternatives);
        let mut before = (0, 0);
        for (length, (&token, &logprob)) in tokens.iter().zip(logprobs).enumerate() {
            let Some(at) = self.find(length, before) else {
                break;
            };
            let from = at as usize * self.alternatives;
            let top = self.top.get(from..from + self.alternatives);
            told.put(length, (token, logprob), top.unwrap_or_default());
            before = (at, token);
        }
        told
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.looks.is_empty()
    }

    fn end(&self) -> u32 {
        // A search has far fewer rows.
        u32::try_from(self.looks.len()).unwrap_or(u32::MAX)
    }

    fn find(&self, length: usize, before: (u32, u32)) -> Option<u32> {
        let from = *self.lengths.get(length)?;
        let to = self.lengths.get(length + 1).copied();
        (from..to.unwrap_or(self.end())).find(|at| self.looks.get(*at as usize) == Some(&before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two beams from one, of which the second dies and the first forks; a look that is repeated is no other.
    #[test]
    fn a_result_has_what_was_likeliest_on_its_own_way() {
        let mut all = SearchLogprobs::new(2, 3, 1);
        let room = (all.looks.capacity(), all.top.capacity());
        let mut a = Path::default();
        all.put(0, &mut a, &[(7, -0.1), (8, -0.2)]);
        let mut b = a;
        a.push(7);
        b.push(8);
        all.put(1, &mut a, &[(1, -1.0)]);
        all.put(1, &mut b, &[(2, -2.0)]);
        all.put(1, &mut b, &[(2, -2.0)]);
        let mut c = a;
        a.push(5);
        c.push(6);
        all.put(2, &mut a, &[(3, -3.0)]);
        all.put(2, &mut c, &[(4, -4.0)]);
        let told = |tokens: &[u32]| -> Vec<(u32, u32)> {
            let told = all.of(tokens, &[-0.5; 3]);
            told.iter().map(|(t, top)| (t.0, top[0].0)).collect()
        };
        assert_eq!(told(&[7, 5, 9]), [(7, 7), (5, 1), (9, 3)]);
        assert_eq!(told(&[7, 6, 9]), [(7, 7), (6, 1), (9, 4)]);
        assert_eq!(told(&[8, 2]), [(8, 7), (2, 2)]);
        assert_eq!(told(&[8, 2, 9]).len(), 2, "nobody looked there");
        assert_eq!((all.looks.capacity(), all.top.capacity()), room);
        assert_eq!(all.looks.len(), 5);
    }
}
