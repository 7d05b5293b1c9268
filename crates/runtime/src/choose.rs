//! [`Chooser`]: who turns logits into tokens; and [`Choices`], which does so as each request asks.

use std::collections::BTreeMap;

use plimsoll_schedule::{Draw, Output, RequestId, Row, RowOutput, SeqEvent};
use plimsoll_units::Bytes;

use crate::sample::{
    Histories, History, Place, PromptTokens, SampleError, Sampler, SamplingParams,
};

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
}

/// The next tokens of all requests, by each one's parameters.
#[derive(Debug)]
pub struct Choices {
    sampler: Sampler,
    histories: Histories,
    asked: BTreeMap<RequestId, Asked>,
    failed: Vec<(RequestId, SampleError)>,
    top: Vec<(u32, f32)>,
}

impl Choices {
    /// For a vocabulary of so many tokens.
    #[must_use]
    pub fn new(vocab: u32) -> Self {
        Self {
            sampler: Sampler::new(vocab),
            histories: Histories::default(),
            asked: BTreeMap::new(),
            failed: Vec::new(),
            top: Vec::new(),
        }
    }

    /// A request is about to come.
    pub fn expect(&mut self, id: RequestId, prompt: &[u32], params: SamplingParams) {
        let counts = params.has_penalties();
        let prompt = PromptTokens::new(prompt, counts);
        self.asked.insert(
            id,
            Asked {
                params,
                prompt,
                counts,
            },
        );
    }

    /// A request has ended.
    pub fn forget(&mut self, id: RequestId) {
        self.asked.remove(&id);
    }

    /// Requests whose tokens cannot be chosen, since the last call: they are to be cancelled.
    pub fn take_failed(&mut self) -> Vec<(RequestId, SampleError)> {
        std::mem::take(&mut self.failed)
    }

    fn draws(
        &mut self,
        row: &Row,
        position: u32,
        logits: &[f32],
    ) -> Result<RowOutput, SampleError> {
        let Self {
            sampler,
            histories,
            asked,
            top,
            ..
        } = self;
        let (Some(asked), Some(history)) = (asked.get(&row.request), histories.get(row.seq)) else {
            return Err(SampleError::Nothing);
        };
        let mut draw = |i: u32| {
            let place = Place {
                index: row.index + i,
                position,
            };
            sampler.draw(logits, &asked.params, history, place, top)
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
    }
}
