//! [`SamplingParams`]: how tokens of one request are chosen, as found to make sense.

/// Temperatures between 0 and this count as this (vLLM's `_MAX_TEMP`): below, the likeliest token wins by so much
/// that only rounding is left of the others.
const LEAST_TEMPERATURE: f32 = 0.01;
/// Most tokens with a bias of their own.
pub const MAX_BIASES: usize = 1024;
/// Most alternatives with their log probability, beside the chosen token.
pub const MAX_LOGPROBS: u32 = 20;
/// Most stop ids of a request.
pub const MAX_STOP_IDS: usize = 64;

/// What was asked for, with the names of the APIs; the default is the whole distribution, unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 to 2; 0 is greedy.
    pub temperature: f32,
    /// Only the k likeliest tokens; 0, or the vocabulary and above, keeps all.
    pub top_k: u32,
    /// Above 0 to 1: only the likeliest tokens that have this probability together.
    pub top_p: f32,
    /// 0 to 1: only tokens of at least this share of the likeliest one's probability.
    pub min_p: f32,
    /// 0.01 to 100: divides the positive logits of tokens that occurred, multiplies the negative ones; 1 is none.
    pub repetition_penalty: f32,
    /// −2 to 2: taken off the logits of tokens that were generated.
    pub presence_penalty: f32,
    /// −2 to 2: taken off the logits of tokens as often as they were generated.
    pub frequency_penalty: f32,
    /// −100 to 100, added to the logit of a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// What the draws depend on, with sequence and position.
    pub seed: u64,
    /// Whether log probabilities of tokens are told, and of how many alternatives beside: 0 to 20.
    pub logprobs: Option<u32>,
    /// The same of the prompt's tokens.
    pub prompt_logprobs: Option<u32>,
    /// Tokens before an end is possible.
    pub min_tokens: u32,
    /// Tokens that end a sequence, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Whether the model's own end tokens are tokens as others.
    pub ignore_eos: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
            prompt_logprobs: None,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
        }
    }
}

/// What is wrong with what was asked for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A number outside of its range.
    #[error("{name} is {value}: use {range}")]
    Range {
        /// The parameter.
        name: &'static str,
        /// What was asked for.
        value: f64,
        /// What is possible.
        range: &'static str,
    },
    /// A list that is too long.
    #[error("{name} has {len} entries: use at most {max}")]
    TooMany {
        /// The parameter.
        name: &'static str,
        /// Its entries.
        len: usize,
        /// Entries at most.
        max: usize,
    },
    /// A token that the model does not have.
    #[error("{name} names token {token}: ids are below {vocab}")]
    NoSuchToken {
        /// The parameter.
        name: &'static str,
        /// The id.
        token: u32,
        /// Ids are below this.
        vocab: u32,
    },
    /// A token with two biases.
    #[error("logit_bias names token {0} twice: give each token one bias")]
    TwoBiases(u32),
    /// An end that cannot come.
    #[error("min_tokens is {min} and max_tokens is {max}: min_tokens must not be above")]
    MinTokens {
        /// Tokens before an end.
        min: u32,
        /// Tokens at most.
        max: u32,
    },
}

/// How tokens of one request are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    pub(super) asked: Sampling,
    /// Tokens that end a sequence, sorted.
    pub(super) ends: Vec<u32>,
    /// Tokens at most.
    max_tokens: u32,
}

impl SamplingParams {
    /// Checks what was asked for, of a model with `vocab` rows of logits that ends by `eos`, for a request of at
    /// most `max_tokens` tokens. Ends that have no logit cannot be chosen and are left out.
    ///
    /// # Errors
    /// [`SamplingError`], naming what to change.
    pub fn new(
        asked: Sampling,
        vocab: u32,
        eos: &[u32],
        max_tokens: u32,
    ) -> Result<Self, SamplingError> {
        let mut asked = asked;
        let range = |name, value: f32, ok: bool, range| {
            if ok {
                Ok(())
            } else {
                let value = f64::from(value);
                Err(SamplingError::Range { name, value, range })
            }
        };
        let Sampling {
            temperature,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            ..
        } = asked;
        range(
            "temperature",
            temperature,
            (0.0..=2.0).contains(&temperature),
            "0 to 2",
        )?;
        range(
            "top_p",
            top_p,
            top_p > 0.0 && top_p <= 1.0,
            "above 0, up to 1",
        )?;
        range("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1")?;
        range(
            "repetition_penalty",
            repetition_penalty,
            (0.01..=100.0).contains(&repetition_penalty),
            "0.01 to 100",
        )?;
        for (name, value) in [
            ("presence_penalty", presence_penalty),
            ("frequency_penalty", frequency_penalty),
        ] {
            range(name, value, (-2.0..=2.0).contains(&value), "-2 to 2")?;
        }
        for (name, count) in [
            ("logprobs", asked.logprobs),
            ("prompt_logprobs", asked.prompt_logprobs),
        ] {
            if let Some(count) = count.filter(|n| *n > MAX_LOGPROBS) {
                return Err(SamplingError::Range {
                    name,
                    value: count.into(),
                    range: "0 to 20",
                });
            }
        }
        if asked.min_tokens > max_tokens {
            return Err(SamplingError::MinTokens {
                min: asked.min_tokens,
                max: max_tokens,
            });
        }
        for (name, len, max) in [
            ("logit_bias", asked.logit_bias.len(), MAX_BIASES),
            ("stop_token_ids", asked.stop_token_ids.len(), MAX_STOP_IDS),
        ] {
            if len > max {
                return Err(SamplingError::TooMany { name, len, max });
            }
        }
        let known = |name, token: u32| {
            if token < vocab {
                Ok(())
            } else {
                Err(SamplingError::NoSuchToken { name, token, vocab })
            }
        };
        asked.logit_bias.sort_by_key(|b| b.0);
        let mut last = None;
        for &(token, bias) in &asked.logit_bias {
            known("logit_bias", token)?;
            range(
                "logit_bias",
                bias,
                (-100.0..=100.0).contains(&bias),
                "-100 to 100",
            )?;
            if last.replace(token) == Some(token) {
                return Err(SamplingError::TwoBiases(token));
            }
        }
        for &token in &asked.stop_token_ids {
            known("stop_token_ids", token)?;
        }
        if asked.temperature > 0.0 {
            asked.temperature = asked.temperature.max(LEAST_TEMPERATURE);
        }
        if asked.top_k >= vocab {
            asked.top_k = 0;
        }
        let own = if asked.ignore_eos { &[] } else { eos };
        let mut ends: Vec<u32> = own.iter().chain(&asked.stop_token_ids).copied().collect();
        ends.retain(|&t| t < vocab);
        ends.sort_unstable();
        ends.dedup();
        Ok(Self {
            asked,
            ends,
            max_tokens,
        })
    }

    /// What was asked for, as it is used.
    #[must_use]
    pub const fn asked(&self) -> &Sampling {
        &self.asked
    }

    /// Tokens of a sequence at most.
    #[must_use]
    pub const fn max_tokens(&self) -> u32 {
        self.max_tokens
    }

    /// Whether tokens are drawn of all that min-p leaves.
    pub(super) fn is_plain(&self) -> bool {
        self.asked.top_k == 0 && self.asked.top_p >= 1.0
    }

    /// Whether logits are changed before a sequence that has generated so many tokens is given another.
    pub(super) fn changes(&self, generated: u32) -> bool {
        let waits = generated < self.asked.min_tokens && !self.ends.is_empty();
        waits || !self.asked.logit_bias.is_empty() || self.has_penalties()
    }

    /// Whether `token` ends a sequence.
    #[must_use]
    pub fn ends(&self, token: u32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// Whether tokens that occurred before change what is chosen.
    #[must_use]
    pub fn has_penalties(&self) -> bool {
        let a = &self.asked;
        a.repetition_penalty != 1.0 || a.presence_penalty != 0.0 || a.frequency_penalty != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Sampling)) -> Result<SamplingParams, SamplingError> {
        let mut asked = Sampling::default();
        change(&mut asked);
        SamplingParams::new(asked, 100, &[2, 7], 10)
    }

    #[test]
    fn takes_what_is_in_range_and_names_what_is_not() {
        type Set = fn(&mut Sampling, f32);
        let cases: [(&str, Set, &[f32], &[f32]); 6] = [
            (
                "temperature",
                |a, x| a.temperature = x,
                &[0.0, 1e-45, 2.0],
                &[-0.1, 2.1, 1e38],
            ),
            (
                "top_p",
                |a, x| a.top_p = x,
                &[1e-30, 1.0],
                &[0.0, -0.5, 1.000_000_1],
            ),
            ("min_p", |a, x| a.min_p = x, &[0.0, 1.0], &[-0.1, 1.1]),
            (
                "repetition_penalty",
                |a, x| a.repetition_penalty = x,
                &[0.01, 100.0],
                &[0.0, 1e-30, 1e30],
            ),
            (
                "presence_penalty",
                |a, x| a.presence_penalty = x,
                &[-2.0, 2.0],
                &[-2.01, 2.01],
            ),
            (
                "frequency_penalty",
                |a, x| a.frequency_penalty = x,
                &[-2.0, 2.0],
                &[-2.01, 2.01],
            ),
        ];
        for (name, set, good, bad) in cases {
            for x in good {
                assert!(check(|a| set(a, *x)).is_ok(), "{name} {x}");
            }
            for x in bad
                .iter()
                .chain(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY])
            {
                let e = check(|a| set(a, *x)).unwrap_err().to_string();
                assert!(e.starts_with(name), "{e}");
            }
        }
        assert_eq!(
            check(|a| a.temperature = 1e-45).unwrap().asked.temperature,
            LEAST_TEMPERATURE
        );
        assert!(check(|a| a.logprobs = Some(20)).is_ok());
        assert!(check(|a| a.logprobs = Some(21)).is_err());
        assert!(check(|a| a.prompt_logprobs = Some(21)).is_err());
        assert!(check(|a| a.min_tokens = 10).is_ok());
        assert!(matches!(
            check(|a| a.min_tokens = 11),
            Err(SamplingError::MinTokens { min: 11, max: 10 })
        ));
        for k in [0, 1, 99] {
            assert_eq!(check(|a| a.top_k = k).unwrap().asked.top_k, k);
        }
        assert_eq!(check(|a| a.top_k = u32::MAX).unwrap().asked.top_k, 0);
    }

    #[test]
    fn checks_ids_against_the_rows_of_logits() {
        assert!(check(|a| a.logit_bias = vec![(99, 100.0), (0, -100.0)]).is_ok());
        let e = check(|a| a.logit_bias = vec![(100, 1.0)]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "logit_bias names token 100: ids are below 100"
        );
        assert!(check(|a| a.logit_bias = vec![(1, 101.0)]).is_err());
        assert!(check(|a| a.logit_bias = vec![(1, f32::NAN)]).is_err());
        assert!(matches!(
            check(|a| a.logit_bias = vec![(1, 1.0), (3, 1.0), (1, 2.0)]),
            Err(SamplingError::TwoBiases(1))
        ));
        assert!(
            check(|a| a.logit_bias = vec![(1, 1.0); 1025])
                .unwrap_err()
                .to_string()
                .contains("1025 entries")
        );
        assert!(check(|a| a.stop_token_ids = vec![100]).is_err());
        let p = check(|a| a.stop_token_ids = vec![9, 2]).unwrap();
        assert_eq!(p.ends, [2, 7, 9]);
        let p = check(|a| (a.stop_token_ids, a.ignore_eos) = (vec![9, 9], true)).unwrap();
        assert_eq!((p.ends(9), p.ends(2)), (true, false));
        let p = SamplingParams::new(Sampling::default(), 5, &[2, 7], 1).unwrap();
        assert_eq!(p.ends, [2], "an end without a logit is left out");
    }
}
