//! Samples: from one row of logits, the next token.
//!
//! Promises: a draw depends on the row, the parameters, the history and (seed, sequence index, position) alone:
//! not on the batch, the machine or what was drawn before; equal logits are told apart by the lower token id;
//! a row with NaN or +∞ is an error of its own request, and −∞ means never.
//!
//! The order is vLLM's (`vllm/v1/sample/sampler.py`): log probabilities come from the raw logits; then the least
//! length, biases and penalties, which change greedy choices too; then temperature, min-p, top-k and top-p.

mod history;
mod logprobs;
mod params;
mod search;
mod short;
mod softmax;

use plimsoll_schedule::Draw;
use plimsoll_units::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::guide::Mask;

pub use history::{Histories, History, PromptTokens};
pub use logprobs::{Logprobs, TokenLogprob, TokenLogprobs};
pub use params::{MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS, Sampling, SamplingError, SamplingParams};
pub(crate) use search::Path;
pub use search::SearchLogprobs;
pub use short::{Brief, Shortlist, Shortlists};
use softmax::{SPAN, exp, log_sum_exp, sum, sum_of_span};

/// How many of the likeliest tokens are sorted first where top-p asks for an unknown number; then 16 times more.
const FIRST_SORTED: usize = 256;

/// What the random number of a draw depends on, beside the request's seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The sequence's place in its request.
    pub index: u32,
    /// Position of the token that is drawn.
    pub position: u32,
}

/// Why nothing can be chosen from a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit that is no number, or +∞: the model's weights are damaged, or its arithmetic overflowed.
    #[error("the logit of token {token} is {}: check the weights with --check-weights", if *.infinite { "infinite" } else { "not a number" })]
    Numerical {
        /// The first token concerned.
        token: u32,
        /// Whether it is infinite.
        infinite: bool,
    },
    /// No token is left.
    #[error("no token has a finite logit: check the weights with --check-weights")]
    Nothing,
    /// A row of another length than the vocabulary's.
    #[error("a row has {found} logits, the vocabulary {vocab} tokens")]
    Width {
        /// Logits of the row.
        found: usize,
        /// Tokens.
        vocab: usize,
    },
}

/// Buffers for one row at a time, made once for a vocabulary.
#[derive(Debug)]
pub struct Sampler {
    /// The row as changed.
    logits: Vec<f32>,
    /// Tokens with their logits, sorted as far as needed.
    keys: Vec<u64>,
    vocab: usize,
    /// Most of each that was used: logits and keys.
    used: [usize; 2],
}

/// A logit and its token as one number: the larger the logit the smaller it is, then the lower the token.
fn key(logit: f32, token: usize) -> u64 {
    // Adding 0 makes −0 and 0 equal.
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    u64::from(!ascending) << 32 | token as u64
}

/// The token of a key.
const fn token(key: u64) -> u32 {
    key as u32
}

/// The logit of a key.
fn logit(key: u64) -> f32 {
    let ascending = !((key >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 {
        ascending & !(1 << 31)
    } else {
        !ascending
    })
}

/// What logits weigh at a temperature.
#[derive(Clone, Copy, Debug)]
struct Cut {
    max: f32,
    /// Those below weigh nothing.
    least: f32,
    temperature: f32,
}

impl Cut {
    fn new(asked: &Sampling, max: f32) -> Self {
        Self {
            max,
            least: max + margin(asked),
            temperature: asked.temperature,
        }
    }

    /// Of the likeliest token's probability; 1 for itself.
    #[inline]
    fn weight(&self, x: f32) -> f32 {
        let weight = exp((x - self.max) / self.temperature);
        if x >= self.least { weight } else { 0.0 }
    }
}

/// How far below the largest logit others may be by min-p: a threshold of logits, so that of two the larger is never
/// the one that is left out.
fn margin(asked: &Sampling) -> f32 {
    if asked.min_p > 0.0 {
        asked.temperature * libm::logf(asked.min_p)
    } else {
        f32::NEG_INFINITY
    }
}

/// Keys of which tokens are drawn.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// So many of the first are in order.
    sorted: usize,
    /// Whether there are no others.
    all: bool,
    /// What all others weigh together with them, where that is asked for.
    weight: f64,
}

impl Sampler {
    /// Buffers for rows of `vocab` logits.
    #[must_use]
    pub fn new(vocab: u32) -> Self {
        let vocab = vocab as usize;
        // Written, so that the system gives the memory now.
        let (mut logits, mut keys) = (Vec::with_capacity(vocab), Vec::with_capacity(vocab));
        logits.resize(vocab, f32::NEG_INFINITY);
        keys.resize(vocab, u64::MAX);
        Self {
            logits,
            keys,
            vocab,
            used: [0; 2],
        }
    }

    /// Bytes of its buffers, and how many of them were used at most.
    #[must_use]
    pub fn buffers(&self) -> (Bytes, Bytes) {
        let bytes = |logits: usize, keys: usize| {
            Bytes::new((logits * size_of::<f32>() + keys * size_of::<u64>()) as u64)
        };
        let [logits, keys] = self.used;
        (
            bytes(self.logits.capacity(), self.keys.capacity()),
            bytes(logits, keys),
        )
    }

    /// Draws the next token of a sequence, of those that `mask` allows. `top` becomes the likeliest tokens with their log probabilities, as
    /// many as the parameters ask for, best first.
    ///
    /// # Errors
    /// [`SampleError`].
    pub fn draw(
        &mut self,
        row: &[f32],
        params: &SamplingParams,
        history: &History,
        mask: Option<&Mask>,
        place: Place,
        top: &mut Vec<(u32, f32)>,
    ) -> Result<Draw, SampleError> {
        let asked = &params.asked;
        let off = self.raw(row, asked.logprobs.unwrap_or(0), top)?;
        self.change(row, params, history, mask);
        let (best, max) = largest(&self.logits);
        if max == f32::NEG_INFINITY {
            return Err(SampleError::Nothing);
        }
        let token = if asked.temperature == 0.0 {
            best
        } else {
            self.random(params, max, uniform(asked.seed, place))
        };
        Ok(Draw {
            token,
            logprob: logprob(row, token, off),
            ends: params.ends(token),
        })
    }

    /// The `k` likeliest next tokens, best first, for a beam search; those that cannot be are left out. `top` as for
    /// [`draw`](Self::draw).
    ///
    /// # Errors
    /// [`SampleError`].
    #[allow(
        clippy::too_many_arguments,
        reason = "as for a draw, and two buffers of whoever asks"
    )]
    pub fn candidates(
        &mut self,
        row: &[f32],
        params: &SamplingParams,
        history: &History,
        mask: Option<&Mask>,
        k: u32,
        out: &mut Vec<Draw>,
        top: &mut Vec<(u32, f32)>,
    ) -> Result<(), SampleError> {
        let off = self.raw(row, params.asked.logprobs.unwrap_or(0), top)?;
        out.clear();
        self.change(row, params, history, mask);
        let logits = std::mem::take(&mut self.logits);
        self.best(&logits, k as usize);
        out.extend(self.keys.iter().map(|&k| Draw {
            token: token(k),
            logprob: logprob(row, token(k), off),
            ends: params.ends(token(k)),
        }));
        out.retain(|d| logits.get(d.token as usize) != Some(&f32::NEG_INFINITY));
        self.logits = logits;
        if out.is_empty() && k > 0 {
            return Err(SampleError::Nothing);
        }
        Ok(())
    }

    /// The log probability of `token`, for prompts; `top` becomes the `k` likeliest tokens with theirs, best first.
    ///
    /// # Errors
    /// [`SampleError`].
    pub fn logprob(
        &mut self,
        row: &[f32],
        token: u32,
        k: u32,
        top: &mut Vec<(u32, f32)>,
    ) -> Result<f32, SampleError> {
        let off = self.raw(row, k, top)?;
        Ok(logprob(row, token, off))
    }

    /// What is taken off the logits of a row to get log probabilities, and the `k` largest of these.
    fn raw(&mut self, row: &[f32], k: u32, top: &mut Vec<(u32, f32)>) -> Result<f64, SampleError> {
        let max = self.check(row)?;
        let off = log_sum_exp(row, max);
        top.clear();
        if k > 0 {
            self.best(row, k as usize);
            top.extend(
                self.keys
                    .iter()
                    .map(|&k| (token(k), logprob(row, token(k), off))),
            );
        }
        Ok(off)
    }

    /// The largest logit of a row that has no odd one.
    fn check(&self, row: &[f32]) -> Result<f32, SampleError> {
        if row.len() != self.vocab {
            return Err(SampleError::Width {
                found: row.len(),
                vocab: self.vocab,
            });
        }
        // Without a way out early, so by vectors; who it is is asked only where there is one.
        if !row.iter().fold(true, |ok, &x| ok & (x < f32::INFINITY)) {
            let odd = row.iter().position(|x| x.is_nan() || *x == f32::INFINITY);
            let at = odd.unwrap_or(0);
            return Err(SampleError::Numerical {
                token: u32::try_from(at).unwrap_or(u32::MAX),
                infinite: row.get(at).is_some_and(|x| x.is_infinite()),
            });
        }
        match largest(row).1 {
            f32::NEG_INFINITY => Err(SampleError::Nothing),
            max => Ok(max),
        }
    }

    /// Copies the row, with what changes greedy choices too: least length, biases, penalties.
    fn change(
        &mut self,
        row: &[f32],
        params: &SamplingParams,
        history: &History,
        mask: Option<&Mask>,
    ) {
        self.logits.clear();
        self.logits.extend_from_slice(row);
        self.used[0] = self.used[0].max(row.len());
        let logits = &mut self.logits;
        if let Some(mask) = mask {
            for (token, x) in (0..).zip(logits.iter_mut()) {
                if !mask.allows(token) {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
        let asked = &params.asked;
        let mut at = |token: u32, f: &dyn Fn(f32) -> f32| {
            if let Some(x) = logits.get_mut(token as usize) {
                *x = f(*x).min(f32::MAX);
            }
        };
        if history.generated() < asked.min_tokens {
            for &token in &params.ends {
                at(token, &|_| f32::NEG_INFINITY);
            }
        }
        for &(token, bias) in &asked.logit_bias {
            at(token, &|x| x + bias);
        }
        if !params.has_penalties() {
            return;
        }
        let r = asked.repetition_penalty;
        let repeated = |x: f32| if x > 0.0 { x / r } else { x * r };
        if r != 1.0 {
            let counts = history.counts();
            for &(token, _) in counts {
                at(token, &repeated);
            }
            for &token in history.prompt() {
                if counts.binary_search_by_key(&token, |c| c.0).is_err() {
                    at(token, &repeated);
                }
            }
        }
        for &(token, count) in history.counts() {
            // Exact: counts are below 2^24.
            let frequency = asked.frequency_penalty * count as f32;
            at(token, &|x| x - frequency - asked.presence_penalty);
        }
    }

    /// The `k` largest of `logits`, best first, as keys.
    fn best(&mut self, logits: &[f32], k: usize) {
        self.keys.clear();
        self.keys
            .extend(logits.iter().enumerate().map(|(i, &x)| key(x, i)));
        self.used[1] = self.used[1].max(self.keys.len());
        sort_first(&mut self.keys, k);
        self.keys.truncate(k);
    }

    /// A token of the distribution that temperature, min-p, top-k and top-p leave; `u` is from 0 to below 1.
    fn random(&mut self, params: &SamplingParams, max: f32, u: f64) -> u32 {
        let asked = &params.asked;
        let cut = Cut::new(asked, max);
        if params.is_plain() {
            return self.plain(cut, u);
        }
        self.keys.clear();
        let kept = self.logits.iter().enumerate();
        let kept = kept.filter(|x| *x.1 >= cut.least);
        self.keys.extend(kept.map(|(i, &x)| key(x, i)));
        self.used[1] = self.used[1].max(self.keys.len());
        let known = Known {
            sorted: 0,
            all: true,
            weight: if asked.top_k == 0 {
                sum(&self.logits, |x| cut.weight(x))
            } else {
                0.0
            },
        };
        self.among(asked, cut, known, u).unwrap_or(0)
    }

    /// A token of all that have a weight.
    fn plain(&mut self, cut: Cut, u: f64) -> u32 {
        let weight = |x: f32| cut.weight(x);
        self.keys.clear();
        let spans = self.logits.chunks(SPAN);
        self.keys
            .extend(spans.map(|x| sum_of_span(x, weight).to_bits()));
        self.used[1] = self.used[1].max(self.keys.len());
        let spans = self.keys.iter().map(|s| f64::from_bits(*s));
        let target = u * spans.clone().sum::<f64>();
        let (span, before) = pick(0.0, spans, target);
        let first = span * SPAN;
        let weights = self.logits[first..].iter().take(SPAN);
        let (at, _) = pick(before, weights.map(|x| f64::from(weight(*x))), target);
        u32::try_from(first + at).unwrap_or(u32::MAX)
    }

    /// A token of those whose keys there are; nothing where it may be one of others.
    fn among(&mut self, asked: &Sampling, cut: Cut, mut known: Known, u: f64) -> Option<u32> {
        let weight = |k: &u64| f64::from(cut.weight(logit(*k)));
        if asked.top_k > 0 {
            let k = asked.top_k as usize;
            if k > self.keys.len() && !known.all {
                return None;
            }
            let k = k.min(self.keys.len());
            if known.sorted < k {
                sort_first(&mut self.keys, k);
            }
            self.keys.truncate(k);
            known = Known {
                sorted: k,
                all: true,
                weight: self.keys.iter().map(weight).sum(),
            };
        }
        let mut total = known.weight;
        if asked.top_p < 1.0 {
            // In an order that does not depend on how far is sorted.
            let wanted = f64::from(asked.top_p) * known.weight;
            let mut n = 0;
            total = 0.0;
            // At least one, and all before which less than p lies.
            while n < self.keys.len() && (n == 0 || total < wanted) {
                if n == known.sorted {
                    known.sorted = (n * 16).max(FIRST_SORTED).min(self.keys.len());
                    sort_first(&mut self.keys, known.sorted);
                }
                total += weight(&self.keys[n]);
                n += 1;
            }
            if total < wanted && !known.all {
                return None;
            }
            self.keys.truncate(n);
        }
        let (n, _) = pick(0.0, self.keys.iter().map(weight), u * total);
        self.keys.get(n).map(|k| token(*k))
    }
}

/// The token with the largest logit, the lowest of several, and the logit.
fn largest(row: &[f32]) -> (u32, f32) {
    // The largest by vectors, then the first that equals it.
    let (chunks, rest) = row.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (m, x) in lanes.iter_mut().zip(chunk) {
            *m = if *x > *m { *x } else { *m };
        }
    }
    let max = lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
    let at = row.iter().position(|&x| x == max).unwrap_or(0);
    (u32::try_from(at).unwrap_or(u32::MAX), max)
}

fn logprob(row: &[f32], token: u32, off: f64) -> f32 {
    let x = row.get(token as usize);
    x.map_or(f32::NEG_INFINITY, |&x| logprob_of(x, off))
}

/// The log probability of a logit.
fn logprob_of(logit: f32, off: f64) -> f32 {
    // Adding 0 makes −0 and 0 equal, as keys have it.
    (f64::from(logit) - off) as f32 + 0.0
}

/// Sorts so that the first `k` keys are the smallest, in order.
fn sort_first(keys: &mut [u64], k: usize) {
    if k < keys.len() {
        if k == 0 {
            return;
        }
        keys.select_nth_unstable(k - 1);
    }
    let k = k.min(keys.len());
    keys[..k].sort_unstable();
}

/// The first place at which `before` and the weights so far exceed `target`, and their sum before it; the last with a
/// weight where rounding leaves none.
fn pick(before: f64, weights: impl Iterator<Item = f64>, target: f64) -> (usize, f64) {
    let (mut sum, mut found) = (before, (0, before));
    for (i, w) in weights.enumerate() {
        if w > 0.0 {
            found = (i, sum);
            sum += w;
            if sum > target {
                break;
            }
        }
    }
    found
}

/// A number from 0 to below 1: 53 bits of ChaCha8 under a key of seed, sequence index and position.
fn uniform(seed: u64, place: Place) -> f64 {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..12].copy_from_slice(&place.index.to_le_bytes());
    key[12..16].copy_from_slice(&place.position.to_le_bytes());
    let bits = ChaCha8Rng::from_seed(key).next_u64() >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
