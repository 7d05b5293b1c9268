//! [`LengthMix`]: how long requests are when they end, in memory that does not grow with their number.

use std::collections::BTreeMap;

use crate::{Arrival, Content, Fan};

/// Bits of a length that its bin keeps: lengths of one bin differ by less than 1 in 64.
const BIN_BITS: u32 = 6;

/// Requests by how long they are at their end, prompt and output together, with exact sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LengthMix {
    requests: u64,
    prompt_tokens: u128,
    output_tokens: u128,
    /// The longest, and how many are that long.
    longest: (u64, u64),
    /// Sequences of one request at most.
    sequences: u32,
    /// Whether prompts have parts in common.
    shared: bool,
    /// By the first bits of the length: requests, and their tokens.
    bins: BTreeMap<u64, (u64, u128)>,
}

impl LengthMix {
    /// One more request.
    pub fn add(&mut self, a: &Arrival) {
        let length = a.prompt_tokens.saturating_add(a.output_tokens).max(1);
        self.requests += 1;
        self.prompt_tokens += u128::from(a.prompt_tokens);
        self.output_tokens += u128::from(a.output_tokens);
        match length.cmp(&self.longest.0) {
            std::cmp::Ordering::Greater => self.longest = (length, 1),
            std::cmp::Ordering::Equal => self.longest.1 += 1,
            std::cmp::Ordering::Less => {}
        }
        let width = match a.fan {
            Fan::One => 1,
            Fan::Parallel(n) | Fan::Beam(n) => n,
        };
        self.sequences = self.sequences.max(width);
        self.shared |= a.content != Content::Unique;
        let bin = self.bins.entry(bin(length)).or_default();
        bin.0 += 1;
        bin.1 += u128::from(length);
    }

    /// Requests.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.requests
    }

    /// Tokens of a prompt, mean; 0 without requests.
    #[must_use]
    pub fn prompt_mean(&self) -> f64 {
        self.prompt_tokens as f64 / self.requests.max(1) as f64
    }

    /// Tokens that a sequence of a request has generated at its end, mean; 0 without requests.
    #[must_use]
    pub fn output_mean(&self) -> f64 {
        self.output_tokens as f64 / self.requests.max(1) as f64
    }

    /// Tokens of the longest request.
    #[must_use]
    pub const fn longest(&self) -> u64 {
        self.longest.0
    }

    /// Sequences of one request at most.
    #[must_use]
    pub const fn sequences(&self) -> u32 {
        self.sequences
    }

    /// Whether prompts have parts in common.
    #[must_use]
    pub const fn shared(&self) -> bool {
        self.shared
    }

    /// Lengths and how many requests have them, shortest first: the longest one as it is, and the others in about
    /// `classes` equally large classes, each by its mean. A mean that is not whole stands as the two lengths around
    /// it, so all lengths together have exactly the tokens of the requests.
    #[must_use]
    pub fn lengths(&self, classes: u64) -> Vec<(u64, u64)> {
        let (longest, top) = self.longest;
        let mut out: BTreeMap<u64, u64> = BTreeMap::new();
        let mut add = |length: u64, n: u64| {
            if n > 0 {
                *out.entry(length).or_default() += n;
            }
        };
        add(longest, top);
        let rest = self.requests - top;
        let (mut seen, mut class) = (0, (0, 0));
        for (key, &(n, tokens)) in &self.bins {
            let without = if *key == bin(longest) { top } else { 0 };
            let n = n - without;
            seen += n;
            class.0 += n;
            class.1 += tokens - u128::from(without) * u128::from(longest);
            // How many classes end here or before.
            let ended = |n: u64| u128::from(n) * u128::from(classes) / u128::from(rest.max(1));
            if class.0 > 0 && ended(seen) > ended(seen - class.0) {
                let (n, tokens) = std::mem::take(&mut class);
                let (mean, more) = (tokens / u128::from(n), tokens % u128::from(n));
                let mean = u64::try_from(mean).unwrap_or(u64::MAX);
                let more = u64::try_from(more).unwrap_or(u64::MAX);
                add(mean, n - more);
                add(mean + 1, more);
            }
        }
        out.into_iter().collect()
    }
}

/// The first bits of a length, and how many follow.
fn bin(length: u64) -> u64 {
    let bits = u64::BITS - length.leading_zeros();
    let cut = bits.saturating_sub(BIN_BITS);
    u64::from(cut) << BIN_BITS | length >> cut
}

#[cfg(test)]
mod tests {
    use plimsoll_units::Nanos;

    use super::*;

    fn request(prompt_tokens: u64, output_tokens: u64) -> Arrival {
        Arrival {
            at: Nanos(0),
            prompt_tokens,
            output_tokens,
            content: Content::Unique,
            fan: Fan::One,
            tenant: 0,
            priority: 0,
        }
    }

    fn mix(lengths: impl IntoIterator<Item = u64>) -> LengthMix {
        let mut mix = LengthMix::default();
        for length in lengths {
            mix.add(&request(1, length - 1));
        }
        mix
    }

    #[test]
    fn few_lengths_stand_for_themselves() {
        assert_eq!(mix([5]).lengths(4), [(5, 1)]);
        assert_eq!(mix([7, 5, 7, 5, 5]).lengths(4), [(5, 3), (7, 2)]);
        assert_eq!(mix([]).lengths(4), []);
    }

    #[test]
    fn classes_have_the_tokens_of_the_requests() {
        let all: Vec<u64> = (0..10_000_u64)
            .map(|i| 2 + i * i % 7919 * (i % 13))
            .collect();
        let mix = mix(all.iter().copied());
        for classes in [1, 2, 16, 100] {
            let lengths = mix.lengths(classes);
            assert!(lengths.len() as u64 <= 2 * classes + 3, "{}", lengths.len());
            assert!(lengths.windows(2).all(|w| w[0].0 < w[1].0));
            assert_eq!(lengths.iter().map(|(_, n)| n).sum::<u64>(), 10_000);
            let tokens: u64 = lengths.iter().map(|(length, n)| length * n).sum();
            assert_eq!(tokens, all.iter().sum::<u64>());
            let longest = *all.iter().max().unwrap();
            assert_eq!(lengths.last().unwrap().0, longest);
        }
        assert_eq!(mix.longest(), *all.iter().max().unwrap());
    }

    /// Each class lies between the quantiles that bound it, to the width of a bin.
    #[test]
    fn classes_follow_the_distribution() {
        let mix = mix((1..=6400_u64).map(|i| i + 1));
        let lengths = mix.lengths(4);
        let mean: Vec<u64> = lengths.iter().map(|(l, _)| *l).collect();
        for (quarter, expected) in [(0, 800), (1, 2400), (2, 4000), (3, 5600)] {
            let near = |l: &u64| l.abs_diff(expected) <= expected / 16;
            assert!(mean.iter().any(near), "{quarter}: {mean:?}");
        }
    }

    #[test]
    fn what_else_the_requests_have_is_kept() {
        let mut mix = LengthMix::default();
        mix.add(&request(10, 5));
        assert_eq!((mix.sequences(), mix.shared()), (1, false));
        mix.add(&Arrival {
            fan: Fan::Beam(4),
            content: Content::SharedPrefix { id: 1, tokens: 5 },
            ..request(20, 7)
        });
        assert_eq!((mix.sequences(), mix.shared()), (4, true));
        assert_eq!((mix.requests(), mix.longest()), (2, 27));
        assert!((mix.prompt_mean() - 15.0).abs() < 1e-12);
        assert!((mix.output_mean() - 6.0).abs() < 1e-12);
    }
}
