//! [`Chooser`]: who turns logits into tokens; and [`Choices`], which does so as each request asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use plimsoll_schedule::{Draw, Output, RequestId, Row, RowOutput, SeqEvent};
use plimsoll_units::{Bytes, SeqId};

use crate::sample::{
    Histories, History, Place, PromptTokens, SampleError, Sampler, SamplingParams,
};
use crate::text::{Detokenizer, Stops, TextError, Tokenizer};

/// Who turns logits into tokens.
pub trait Chooser {
    /// What a row yields; `logits` may be changed.
    fn row(&mut self, row: &Row, position: u32, logits: &mut [f32]) -> RowOutput;
    /// What happens to a sequence, in order, before the step's rows.
    fn event(&mut self, event: &SeqEvent);
    /// Tokens of a row, before it is computed: what a sequence's history is made of.
    fn tokens(&mut self, _row: &Row, _tokens: &[u32]) {}
    /// Whether logits of every position are wanted, whatever rows ask for.
    fn wants_all(&self) -> bool {
        false
    }
    /// Buffers that it made at its start, and how much of them was used at most.
    fn buffers(&self) -> (Bytes, Bytes) {
        (Bytes::ZERO, Bytes::ZERO)
    }
    /// Logits of one position, where all are wanted.
    fn position(&mut self, _row: &Row, _position: u32, _logits: &[f32]) {}
}

/// What one request asks for.
#[derive(Clone, Debug)]
struct Asked {
    params: SamplingParams,
    prompt: PromptTokens,
    counts: bool,
    /// Where its text stands when it begins, where it may end by a stop string.
    text: Option<TextSoFar>,
}

/// The text of a sequence, as far as its tokens are known.
#[derive(Clone, Debug)]
struct TextSoFar {
    detokenizer: Detokenizer,
    stops: Stops,
    /// Tokens taken in, the prompt's among them.
    len: u32,
}

impl TextSoFar {
    /// One more token; whether a stop string ends with it.
    fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<bool, TextError> {
        let text = self.detokenizer.push(tokenizer, token)?;
        self.len += 1;
        Ok(self.stops.push(&text).1)
    }
}

/// Why the tokens of a request cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// Its logits.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// Its text, in which stop strings are looked for.
    #[error(transparent)]
    Text(#[from] TextError),
}

/// The next tokens of all requests, by each one's parameters.
#[derive(Debug)]
pub struct Choices {
    sampler: Sampler,
    histories: Histories,
    asked: BTreeMap<RequestId, Asked>,
    tokenizer: Option<Arc<Tokenizer>>,
    texts: BTreeMap<SeqId, TextSoFar>,
    failed: Vec<(RequestId, ChoiceError)>,
    top: Vec<(u32, f32)>,
}

impl Choices {
    /// For a vocabulary of so many tokens; stop strings are looked for in the text that `tokenizer` makes.
    #[must_use]
    pub fn new(vocab: u32, tokenizer: Option<Arc<Tokenizer>>) -> Self {
        Self {
            sampler: Sampler::new(vocab),
            histories: Histories::default(),
            asked: BTreeMap::new(),
            tokenizer,
            texts: BTreeMap::new(),
            failed: Vec::new(),
            top: Vec::new(),
        }
    }

    /// A request is about to come, whose sequences end by `stops` too.
    pub fn expect(&mut self, id: RequestId, prompt: &[u32], params: SamplingParams, stops: Stops) {
        let counts = params.has_penalties();
        let text = (!stops.is_empty()).then(|| TextSoFar {
            detokenizer: Detokenizer::new(prompt, false),
            stops,
            len: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
        });
        let prompt = PromptTokens::new(prompt, counts);
        self.asked.insert(
            id,
            Asked {
                params,
                prompt,
                counts,
                text,
            },
        );
    }

    /// A request has ended.
    pub fn forget(&mut self, id: RequestId) {
        self.asked.remove(&id);
    }

    /// Requests whose tokens cannot be chosen, since the last call: they are to be cancelled.
    pub fn take_failed(&mut self) -> Vec<(RequestId, ChoiceError)> {
        std::mem::take(&mut self.failed)
    }

    fn draws(
        &mut self,
        row: &Row,
        position: u32,
        logits: &[f32],
    ) -> Result<RowOutput, ChoiceError> {
        let Self {
            sampler,
            histories,
            asked,
            tokenizer,
            texts,
            top,
            ..
        } = self;
        let (Some(asked), Some(history)) = (asked.get(&row.request), histories.get(row.seq)) else {
            return Err(SampleError::Nothing.into());
        };
        let ends = |token: u32| match (texts.get(&row.seq), &*tokenizer) {
            (Some(text), Some(t)) => text.clone().push(t, token),
            _ => Ok(false),
        };
        let mut draw = |i: u32| -> Result<Draw, ChoiceError> {
            let place = Place {
                index: row.index + i,
                position,
            };
            let mut draw = sampler.draw(logits, &asked.params, history, place, top)?;
            draw.ends |= ends(draw.token)?;
            Ok(draw)
        };
        Ok(match row.output {
            Output::None => RowOutput::None,
            Output::Sample { draws: 1 } => RowOutput::One(draw(0)?),
            Output::Sample { draws } => {
                RowOutput::Many((0..draws).map(draw).collect::<Result<_, _>>()?)
            }
            Output::Candidates { k } => {
                let mut out = Vec::with_capacity(k as usize);
                sampler.candidates(logits, &asked.params, history, k, &mut out)?;
                for d in &mut out {
                    d.ends |= ends(d.token)?;
                }
                RowOutput::Many(out)
            }
        })
    }
}

impl Chooser for Choices {
    fn row(&mut self, row: &Row, position: u32, logits: &mut [f32]) -> RowOutput {
        self.draws(row, position, logits).unwrap_or_else(|e| {
            self.failed.push((row.request, e));
            // It is cancelled before anybody sees this.
            let end = Draw {
                token: 0,
                logprob: f32::NEG_INFINITY,
                ends: true,
            };
            match row.output {
                Output::None => RowOutput::None,
                Output::Sample { draws: 1 } => RowOutput::One(end),
                Output::Sample { draws: n } | Output::Candidates { k: n } => {
                    RowOutput::Many(vec![end; n as usize])
                }
            }
        })
    }

    fn event(&mut self, event: &SeqEvent) {
        let asked = &self.asked;
        match *event {
            SeqEvent::Start { seq, request, .. } => {
                let text = asked.get(&request).and_then(|a| a.text.clone());
                self.texts.extend(text.map(|t| (seq, t)));
            }
            SeqEvent::Fork { seq, from, .. } => {
                let text = self.texts.get(&from).cloned();
                self.texts.extend(text.map(|t| (seq, t)));
            }
            SeqEvent::Drop { seq } => {
                self.texts.remove(&seq);
            }
            // Tokens that were generated stay.
            SeqEvent::Truncate { .. } => {}
        }
        self.histories
            .follow(event, |request| match asked.get(&request) {
                Some(a) => History::new(a.prompt.clone(), a.counts),
                None => History::new(PromptTokens::new(&[], false), false),
            });
    }

    fn buffers(&self) -> (Bytes, Bytes) {
        self.sampler.buffers()
    }

    fn tokens(&mut self, row: &Row, tokens: &[u32]) {
        if let Some(h) = self.histories.get_mut(row.seq) {
            h.observe(row.start, tokens);
        }
        if let (Some(text), Some(t)) = (self.texts.get_mut(&row.seq), &self.tokenizer) {
            let known = text.len.saturating_sub(row.start) as usize;
            for &token in tokens.iter().skip(known) {
                if let Err(e) = text.push(t, token) {
                    self.failed.push((row.request, e.into()));
                    return;
                }
            }
        }
    }
}
