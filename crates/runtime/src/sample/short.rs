//! [`Shortlist`]: what a device tells of a row of logits, from which a token is chosen as it is from all of them.
//!
//! A device knows neither requests nor histories. It is told how a row is weighed and how many of its likeliest tokens
//! are looked at ([`Brief`]), and sums and compares as the processors do, in their order (`cu/sample.cu`). Where that
//! does not do, whoever chooses asks for the whole row.

use plimsoll_program::SHORT_KEYS;
use plimsoll_schedule::{Draw, Output};

use super::softmax::log_of_sum;
use super::{
    Cut, History, Known, Place, SampleError, Sampler, SamplingParams, logit, logprob_of, margin,
    token, uniform,
};

/// Words before the keys of a shortlist.
const HEAD: usize = plimsoll_program::SHORT_HEAD as usize;

/// What is told of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Brief {
    /// How many of the likeliest tokens, best first.
    pub keys: u32,
    /// Temperature of the weights that are added up; 0 for none.
    pub temperature: f32,
    /// How far below the largest logit others weigh nothing.
    pub margin: f32,
    /// From 0 to below 1: where among the weights a token is picked.
    pub pick: Option<f64>,
}

impl Brief {
    /// What a row of `vocab` logits must tell for a request to go on; nothing where it takes the whole row.
    pub(crate) fn new(
        params: &SamplingParams,
        history: &History,
        output: Output,
        place: Place,
        vocab: u32,
    ) -> Option<Self> {
        let asked = params.asked();
        if params.changes(history.generated()) {
            return None;
        }
        let mut keys = asked.logprobs.unwrap_or(0);
        let mut brief = Self {
            keys: 0,
            temperature: 0.0,
            margin: f32::NEG_INFINITY,
            pick: None,
        };
        match output {
            Output::None => return None,
            Output::Candidates { k } => keys = keys.max(k),
            Output::Sample { draws } if asked.temperature > 0.0 => {
                brief.temperature = asked.temperature;
                brief.margin = margin(asked);
                match asked.top_k {
                    _ if params.is_plain() && draws == 1 => {
                        brief.pick = Some(uniform(asked.seed, place));
                    }
                    _ if params.is_plain() => return None,
                    0 => keys = SHORT_KEYS,
                    k => keys = keys.max(k),
                }
            }
            Output::Sample { .. } => {}
        }
        brief.keys = keys.min(vocab);
        (brief.keys <= SHORT_KEYS).then_some(brief)
    }

    /// As a device is told of it ([`plimsoll_program::BRIEF_WORDS`]).
    #[must_use]
    pub fn words(brief: Option<&Self>) -> [u32; 8] {
        let Some(b) = brief else { return [0; 8] };
        let pick = b.pick.unwrap_or(0.0).to_bits();
        [
            1,
            b.keys,
            b.temperature.to_bits(),
            b.margin.to_bits(),
            pick as u32,
            (pick >> 32) as u32,
            b.pick.is_some().into(),
            0,
        ]
    }
}

/// Shortlists of some rows, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Shortlists<'a> {
    /// What the device wrote.
    pub words: &'a [u64],
    /// Words of each.
    pub each: usize,
}

impl<'a> Shortlists<'a> {
    /// That of a row for which there was a brief.
    #[must_use]
    pub fn get(&self, row: usize, brief: &Brief) -> Option<Shortlist<'a>> {
        let words = self.words.chunks_exact(self.each).nth(row)?;
        let (head, keys) = words.split_at_checked(HEAD)?;
        Some(Shortlist {
            head,
            keys: keys.get(..brief.keys as usize)?,
        })
    }
}

/// What a row of logits comes to. A word of the head is a token, and above it the bits of its logit, or an f64.
#[derive(Clone, Copy, Debug)]
pub struct Shortlist<'a> {
    /// The likeliest token; the first with an odd logit, or `u32::MAX`; the one picked; the sum of e^(x − max); the sum
    /// of weights.
    head: &'a [u64],
    /// The likeliest tokens, as the sampler's keys, best first.
    keys: &'a [u64],
}

impl Shortlist<'_> {
    fn pair(&self, at: usize) -> (u32, f32) {
        let word = self.head[at];
        (word as u32, f32::from_bits((word >> 32) as u32))
    }

    /// The largest logit and its token, and what is taken off logits to get log probabilities.
    fn check(&self) -> Result<((u32, f32), f64), SampleError> {
        let (odd, logit) = self.pair(1);
        if odd != u32::MAX {
            return Err(SampleError::Numerical {
                token: odd,
                infinite: logit.is_infinite(),
            });
        }
        let best = self.pair(0);
        if best.1 == f32::NEG_INFINITY {
            return Err(SampleError::Nothing);
        }
        Ok((best, log_of_sum(f64::from_bits(self.head[3]), best.1)))
    }
}

impl Sampler {
    /// As [`draw`](Self::draw), of a row that nothing changes; nothing where it takes the whole row. `vocab` is how many
    /// logits it has.
    ///
    /// # Errors
    /// [`SampleError`].
    pub(crate) fn draw_short(
        &mut self,
        short: &Shortlist<'_>,
        params: &SamplingParams,
        place: Place,
        top: &mut Vec<(u32, f32)>,
    ) -> Result<Option<Draw>, SampleError> {
        let asked = params.asked();
        let (best, off) = short.check()?;
        top.clear();
        let told = short.keys.iter().take(asked.logprobs.unwrap_or(0) as usize);
        top.extend(told.map(|&k| (token(k), logprob_of(logit(k), off))));
        let (token, logit) = if asked.temperature == 0.0 {
            best
        } else if params.is_plain() {
            short.pair(2)
        } else {
            let cut = Cut::new(asked, best.1);
            self.keys.clear();
            let kept = short.keys.iter().take_while(|k| logit(**k) >= cut.least);
            self.keys.extend(kept);
            self.used[1] = self.used[1].max(self.keys.len());
            let known = Known {
                sorted: self.keys.len(),
                all: self.keys.len() < short.keys.len() || self.keys.len() == self.vocab,
                weight: f64::from_bits(short.head[4]),
            };
            let u = uniform(asked.seed, place);
            let Some(drawn) = self.among(asked, cut, known, u) else {
                return Ok(None);
            };
            let of = short.keys.iter().find(|k| token(**k) == drawn);
            (drawn, of.map_or(f32::NEG_INFINITY, |k| logit(*k)))
        };
        Ok(Some(Draw {
            token,
            logprob: logprob_of(logit, off),
            ends: params.ends(token),
        }))
    }

    /// As [`candidates`](Self::candidates), of a row that nothing changes.
    ///
    /// # Errors
    /// [`SampleError`].
    pub(crate) fn candidates_short(
        short: &Shortlist<'_>,
        params: &SamplingParams,
        k: u32,
        out: &mut Vec<Draw>,
        top: &mut Vec<(u32, f32)>,
    ) -> Result<(), SampleError> {
        let (_, off) = short.check()?;
        top.clear();
        let told = params.asked().logprobs.unwrap_or(0) as usize;
        let all = short
            .keys
            .iter()
            .map(|&k| (token(k), logprob_of(logit(k), off)));
        top.extend(all.clone().take(told));
        out.clear();
        let possible = all.take(k as usize).filter(|t| t.1 > f32::NEG_INFINITY);
        out.extend(possible.map(|(token, logprob)| Draw {
            token,
            logprob,
            ends: params.ends(token),
        }));
        if out.is_empty() && k > 0 {
            return Err(SampleError::Nothing);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
