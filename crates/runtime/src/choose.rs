//! [`Chooser`]: who turns logits into tokens; and [`Choices`], which does so as each request asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use plimsoll_kernels::Pool;
use plimsoll_schedule::{Draw, Output, RequestId, Row, RowOutput, SeqEvent};
use plimsoll_units::{Bytes, SeqId};

use crate::guide::{GrammarError, Guide};
use crate::sample::{
    Brief, Histories, History, Logprobs, Path, Place, PromptTokens, SampleError, Sampler,
    SamplingParams, SearchLogprobs, Shortlist, TokenLogprobs,
};
use crate::text::{Detokenizer, Stops, TextError, Tokenizer};

/// A row whose logits are there.
#[derive(Debug)]
pub struct Asking<'a> {
    /// Which.
    pub row: &'a Row,
    /// Position of the token that comes.
    pub position: u32,
    /// Its logits.
    pub logits: Logits<'a>,
    /// Where what it yields is put: nothing where a shortlist does not do, and all of its logits are wanted.
    pub out: Option<RowOutput>,
}

/// What is known of a row's logits.
#[derive(Debug)]
pub enum Logits<'a> {
    /// All, which may be changed.
    All(&'a mut [f32]),
    /// What was [asked for](Chooser::brief).
    Short(Shortlist<'a>),
}

/// Who turns logits into tokens.
pub trait Chooser {
    /// What rows yield; `pool` is free meanwhile.
    fn rows(&mut self, _pool: &mut Pool, rows: &mut [Asking<'_>]) {
        for a in rows {
            if let Logits::All(logits) = &mut a.logits {
                a.out = Some(self.row(a.row, a.position, logits));
            }
        }
    }
    /// What must be told of a row for its token at `position` to be chosen; nothing where it takes all of its logits.
    fn brief(&self, _row: &Row, _position: u32) -> Option<Brief> {
        None
    }
    /// What a row yields; `logits` may be changed.
    fn row(&mut self, row: &Row, position: u32, logits: &mut [f32]) -> RowOutput;
    /// What happens to a sequence, in order, before the step's rows.
    fn event(&mut self, event: &SeqEvent);
    /// Tokens of a row, before it is computed: what a sequence's history is made of.
    fn tokens(&mut self, _row: &Row, _tokens: &[u32]) {}
    /// Whether logits of every position of a row are wanted, whatever it asks for.
    fn wants_all(&self, _row: &Row) -> bool {
        false
    }
    /// Buffers that it made at its start, and how much of them was used at most.
    fn buffers(&self) -> (Bytes, Bytes) {
        (Bytes::ZERO, Bytes::ZERO)
    }
    /// Forgets all requests and sequences, as after a panic.
    fn restart(&mut self) {}
    /// Logits of one position, where all are wanted; whether they are numbers.
    fn position(&mut self, _row: &Row, _position: u32, _logits: &[f32]) -> bool {
        true
    }
}

/// What one request asks for.
#[derive(Debug)]
struct Asked {
    params: SamplingParams,
    prompt: PromptTokens,
    /// The whole prompt, where log probabilities of its tokens are told.
    told: Vec<u32>,
    logprobs: Logprobs,
    counts: bool,
    /// Where its text stands when it begins, where it may end by a stop string.
    text: Option<TextSoFar>,
    /// Where its sequences begin in their grammar, where they have one.
    guide: Option<Guide>,
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
    /// Its grammar: too much work, or a token that it does not allow.
    #[error("its grammar: {0}")]
    Grammar(#[from] GrammarError),
    /// The grammar and what else was asked for leave no token.
    #[error("its grammar and its other parameters leave no token: loosen either")]
    DeadEnd,
}

/// What a row yields.
#[derive(Debug)]
struct Chosen {
    output: RowOutput,
    /// Of each draw, where log probabilities are told.
    told: Vec<Told>,
    /// Where a search looks and log probabilities are told: its width, and the likeliest tokens.
    looked: Option<(u32, Vec<(u32, f32)>)>,
}

/// The log probability of a token that was drawn, and those of the likeliest.
#[derive(Debug)]
struct Told {
    /// The sequence's place in its request.
    index: u32,
    token: (u32, f32),
    top: Vec<(u32, f32)>,
}

/// The next tokens of all requests, by each one's parameters.
#[derive(Debug)]
pub struct Choices {
    /// One for each thread that chooses.
    samplers: Vec<Mutex<Sampler>>,
    threads: usize,
    histories: Histories,
    asked: BTreeMap<RequestId, Asked>,
    tokenizer: Option<Arc<Tokenizer>>,
    texts: BTreeMap<SeqId, TextSoFar>,
    /// Where sequences stand in their grammars; by one thread at a time.
    guides: BTreeMap<SeqId, (RequestId, Mutex<Guide>)>,
    /// Of the sequences of searches whose log probabilities are told.
    paths: BTreeMap<SeqId, Path>,
    failed: Vec<(RequestId, ChoiceError)>,
    top: Vec<(u32, f32)>,
    vocab: u32,
}

fn samplers(vocab: u32, threads: usize) -> Vec<Mutex<Sampler>> {
    let each = || Mutex::new(Sampler::new(vocab));
    std::iter::repeat_with(each).take(threads).collect()
}

impl Choices {
    /// For a vocabulary of so many tokens, on up to so many threads; stop strings are looked for in the text that
    /// `tokenizer` makes.
    #[must_use]
    pub fn new(vocab: u32, threads: usize, tokenizer: Option<Arc<Tokenizer>>) -> Self {
        let threads = threads.max(1);
        Self {
            samplers: samplers(vocab, threads),
            threads,
            histories: Histories::default(),
            asked: BTreeMap::new(),
            tokenizer,
            texts: BTreeMap::new(),
            guides: BTreeMap::new(),
            paths: BTreeMap::new(),
            failed: Vec::new(),
            top: Vec::new(),
            vocab,
        }
    }

    /// A request is about to come, whose sequences end by `stops` too.
    pub fn expect(&mut self, id: RequestId, prompt: &[u32], params: SamplingParams, stops: Stops) {
        self.expect_guided(id, prompt, params, stops, None);
    }

    /// As [`expect`](Self::expect); sequences keep to a grammar, where there is one.
    pub fn expect_guided(
        &mut self,
        id: RequestId,
        prompt: &[u32],
        params: SamplingParams,
        stops: Stops,
        guide: Option<Guide>,
    ) {
        let counts = params.has_penalties();
        let text = (!stops.is_empty()).then(|| TextSoFar {
            detokenizer: Detokenizer::new(prompt, false),
            stops,
            len: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
        });
        let told = match params.asked().prompt_logprobs {
            Some(_) => prompt.to_vec(),
            None => Vec::new(),
        };
        let prompt = PromptTokens::new(prompt, counts);
        self.asked.insert(
            id,
            Asked {
                params,
                prompt,
                told,
                logprobs: Logprobs::default(),
                counts,
                text,
                guide,
            },
        );
    }

    /// A request has ended.
    pub fn forget(&mut self, id: RequestId) {
        self.asked.remove(&id);
        // Its sequences are dropped by the next step, which may be long after; others wait for their places.
        self.guides.retain(|_, g| g.0 != id);
    }

    /// A request's log probabilities so far, as they were asked for.
    #[must_use]
    pub fn logprobs(&self, id: RequestId) -> Option<&Logprobs> {
        self.asked.get(&id).map(|a| &a.logprobs)
    }

    /// Takes a request's log probabilities, as they were asked for.
    pub fn take_logprobs(&mut self, id: RequestId) -> Logprobs {
        let asked = self.asked.get_mut(&id);
        asked
            .map(|a| std::mem::take(&mut a.logprobs))
            .unwrap_or_default()
    }

    /// Requests whose tokens could not be chosen, since the last call: they have ended.
    pub fn take_failed(&mut self) -> Vec<(RequestId, ChoiceError)> {
        std::mem::take(&mut self.failed)
    }

    /// What a row yields, and what is told of it beside; the same on any thread and by any sampler. Nothing where its
    /// shortlist does not do.
    fn choose(
        &self,
        sampler: &mut Sampler,
        row: &Row,
        position: u32,
        logits: &Logits<'_>,
    ) -> Result<Option<Chosen>, ChoiceError> {
        let (Some(asked), Some(history)) =
            (self.asked.get(&row.request), self.histories.get(row.seq))
        else {
            return Err(SampleError::Nothing.into());
        };
        let params = &asked.params;
        let ends = |token: u32| match (self.texts.get(&row.seq), &self.tokenizer) {
            (Some(text), Some(t)) => text.clone().push(t, token),
            _ => Ok(false),
        };
        let mask = match self.guides.get(&row.seq).map(|g| g.1.lock()) {
            _ if row.output == Output::None => None,
            None => None,
            Some(Ok(mut guide)) => Some(guide.mask()?),
            // Whoever had it panicked.
            Some(Err(_)) => return Err(ChoiceError::DeadEnd),
        };
        let mask = mask.as_ref();
        let dead_end = |e: SampleError| match e {
            SampleError::Nothing if mask.is_some() => ChoiceError::DeadEnd,
            e => e.into(),
        };
        let (mut told, mut looked) = (Vec::new(), None);
        let mut draw = |i: u32| -> Result<Option<Draw>, ChoiceError> {
            let place = Place {
                index: row.index + i,
                position,
            };
            let mut top = Vec::new();
            let draw = match logits {
                Logits::All(logits) => sampler
                    .draw(logits, params, history, mask, place, &mut top)
                    .map(Some),
                Logits::Short(short) => sampler.draw_short(short, params, place, &mut top),
            };
            let Some(mut draw) = draw.map_err(dead_end)? else {
                return Ok(None);
            };
            draw.ends |= ends(draw.token)?;
            if params.asked().logprobs.is_some() {
                told.push(Told {
                    index: place.index,
                    token: (draw.token, draw.logprob),
                    top,
                });
            }
            Ok(Some(draw))
        };
        let output = match row.output {
            Output::None => Some(RowOutput::None),
            Output::Sample { draws: 1 } => draw(0)?.map(RowOutput::One),
            Output::Sample { draws } => (0..draws)
                .map(draw)
                .collect::<Result<Option<_>, _>>()?
                .map(RowOutput::Many),
            Output::Candidates { k } => {
                let mut out = Vec::with_capacity(k as usize);
                let mut top = Vec::new();
                match logits {
                    Logits::All(logits) => sampler
                        .candidates(logits, params, history, mask, k, &mut out, &mut top)
                        .map_err(dead_end)?,
                    Logits::Short(short) => {
                        Sampler::candidates_short(short, params, k, &mut out, &mut top)?;
                    }
                }
                for d in &mut out {
                    d.ends |= ends(d.token)?;
                }
                // A search asks for twice its width.
                looked = params.asked().logprobs.map(|_| (k.div_ceil(2), top));
                Some(RowOutput::Many(out))
            }
        };
        Ok(output.map(|output| Chosen {
            output,
            told,
            looked,
        }))
    }

    /// Keeps what is told of a row, or why nothing can be chosen; what the row yields.
    fn keep(&mut self, row: &Row, chosen: Result<Chosen, ChoiceError>) -> RowOutput {
        if self.failed.iter().any(|f| f.0 == row.request) {
            return RowOutput::Failed;
        }
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(e) => {
                self.failed.push((row.request, e));
                return RowOutput::Failed;
            }
        };
        let generated = self.histories.get(row.seq).map_or(0, History::generated);
        if let Some(asked) = self.asked.get_mut(&row.request) {
            let alternatives = asked.params.asked().logprobs.unwrap_or(0).min(self.vocab);
            let most = asked.params.max_tokens() as usize;
            for Told { index, token, top } in &chosen.told {
                let new = || TokenLogprobs::new(most, alternatives as usize);
                let told = asked.logprobs.sequences.entry(*index).or_insert_with(new);
                told.put(generated as usize, *token, top);
            }
            if let Some((width, top)) = &chosen.looked {
                let search = &mut asked.logprobs.search;
                if search.is_empty() {
                    *search = SearchLogprobs::new(*width as usize, most, alternatives as usize);
                }
                let path = self.paths.entry(row.seq).or_default();
                search.put(generated as usize, path, top);
            }
        }
        chosen.output
    }
}

impl Chooser for Choices {
    fn restart(&mut self) {
        // A panic may have taken them, or left them locked. The old ones go first: both together were not planned.
        self.samplers.clear();
        self.samplers = samplers(self.vocab, self.threads);
        self.histories = Histories::default();
        self.asked.clear();
        self.texts.clear();
        // A new sequence of the same number keeps to no grammar of an old one, and others get its place.
        self.guides.clear();
        self.paths.clear();
        self.failed.clear();
    }

    fn row(&mut self, row: &Row, position: u32, logits: &mut [f32]) -> RowOutput {
        let mut samplers = std::mem::take(&mut self.samplers);
        let chosen = match samplers.first_mut().map(Mutex::get_mut) {
            Some(Ok(sampler)) => self.choose(sampler, row, position, &Logits::All(logits)),
            _ => Err(SampleError::Nothing.into()),
        };
        self.samplers = samplers;
        let chosen = chosen.and_then(|c| c.ok_or_else(|| SampleError::Nothing.into()));
        self.keep(row, chosen)
    }

    fn rows(&mut self, pool: &mut Pool, rows: &mut [Asking<'_>]) {
        let samplers = std::mem::take(&mut self.samplers);
        // Every n-th row by one sampler, whichever thread has it: so all are used, and each row by the same one.
        let n = samplers.len().min(rows.len());
        let chosen: Vec<Mutex<Vec<_>>> = (0..n).map(|_| Mutex::default()).collect();
        let (this, asking) = (&*self, &*rows);
        pool.run(n, |i| {
            let (Ok(mut sampler), Ok(mut chosen)) = (samplers[i].lock(), chosen[i].lock()) else {
                return;
            };
            for a in asking.iter().skip(i).step_by(n) {
                chosen.push(this.choose(&mut sampler, a.row, a.position, &a.logits));
            }
        });
        self.samplers = samplers;
        let mut chosen: Vec<_> = chosen
            .into_iter()
            .map(|c| c.into_inner().unwrap_or_default().into_iter())
            .collect();
        for (i, a) in rows.iter_mut().enumerate() {
            let next = chosen.get_mut(i % n.max(1)).and_then(Iterator::next);
            let next = next.unwrap_or_else(|| Err(SampleError::Nothing.into()));
            // Nothing is kept of a row that is asked again.
            a.out = next.transpose().map(|chosen| self.keep(a.row, chosen));
        }
    }

    fn brief(&self, row: &Row, position: u32) -> Option<Brief> {
        let (asked, history) = (self.asked.get(&row.request)?, self.histories.get(row.seq)?);
        let place = Place {
            index: row.index,
            position,
        };
        let brief = || Brief::new(&asked.params, history, row.output, place, self.vocab);
        (!self.guides.contains_key(&row.seq)).then(brief).flatten()
    }

    fn wants_all(&self, row: &Row) -> bool {
        let end = row.start + (row.tokens.end - row.tokens.start);
        self.asked.get(&row.request).is_some_and(|a| {
            // What is computed again was told before.
            let known = a.logprobs.prompt.len();
            known + 1 < a.told.len() && (end as usize) > known
        })
    }

    fn position(&mut self, row: &Row, position: u32, logits: &[f32]) -> bool {
        let Some(asked) = self.asked.get_mut(&row.request) else {
            return true;
        };
        let (at, k) = (
            position as usize,
            asked.params.asked().prompt_logprobs.unwrap_or(0),
        );
        // The token that these logits are about.
        let Some(&next) = asked.told.get(at + 1) else {
            return true;
        };
        let sampler = self.samplers.first_mut().map(Mutex::get_mut);
        let Some(Ok(sampler)) = sampler else {
            return false;
        };
        match sampler.logprob(logits, next, k, &mut self.top) {
            Ok(logprob) => {
                if asked.logprobs.prompt.is_empty() {
                    let alternatives = k.min(self.vocab) as usize;
                    asked.logprobs.prompt = TokenLogprobs::new(asked.told.len() - 1, alternatives);
                }
                asked.logprobs.prompt.put(at, (next, logprob), &self.top);
                true
            }
            Err(e) => {
                self.failed.push((row.request, e.into()));
                false
            }
        }
    }

    fn event(&mut self, event: &SeqEvent) {
        let asked = &self.asked;
        match *event {
            SeqEvent::Start { seq, request, .. } => {
                let text = asked.get(&request).and_then(|a| a.text.clone());
                self.texts.extend(text.map(|t| (seq, t)));
                let guide = asked.get(&request).and_then(|a| a.guide.as_ref());
                self.guides
                    .extend(guide.map(|g| (seq, (request, Mutex::new(g.fork())))));
            }
            SeqEvent::Fork { seq, from, .. } => {
                // As in `Histories::follow`: whoever is known only gets blocks.
                if !self.texts.contains_key(&seq) {
                    let text = self.texts.get(&from).cloned();
                    self.texts.extend(text.map(|t| (seq, t)));
                }
                if !self.guides.contains_key(&seq) {
                    let guide = self
                        .guides
                        .get(&from)
                        .and_then(|g| Some((g.0, Mutex::new(g.1.lock().ok()?.fork()))));
                    self.guides.extend(guide.map(|g| (seq, g)));
                }
                if !self.paths.contains_key(&seq) {
                    let path = self.paths.get(&from).copied();
                    self.paths.extend(path.map(|p| (seq, p)));
                }
            }
            SeqEvent::Drop { seq } => {
                self.texts.remove(&seq);
                self.guides.remove(&seq);
                self.paths.remove(&seq);
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
        let samplers = self.samplers.iter().filter_map(|s| s.lock().ok());
        samplers.fold((Bytes::ZERO, Bytes::ZERO), |sum, s| {
            let (all, used) = s.buffers();
            let add = |a: Bytes, b: Bytes| a.add(b).unwrap_or(a);
            (add(sum.0, all), add(sum.1, used))
        })
    }

    fn tokens(&mut self, row: &Row, tokens: &[u32]) {
        let prompt = self.asked.get(&row.request).map_or(0, |a| a.prompt.len());
        if let Some(Ok(guide)) = self.guides.get_mut(&row.seq).map(|g| g.1.get_mut()) {
            // What was computed before was taken in before, and the prompt is no part of the text.
            let known = (prompt + guide.len()).saturating_sub(row.start) as usize;
            for &token in tokens.iter().skip(known) {
                if let Err(e) = guide.push(token) {
                    self.failed.push((row.request, e.into()));
                    return;
                }
            }
        }
        if let Some(h) = self.histories.get_mut(row.seq) {
            let known = h.len();
            h.observe(row.start, tokens);
            // One at a time comes that was not computed before: the one that was chosen last.
            if let (true, Some(path), Some(&token)) =
                (h.len() > known, self.paths.get_mut(&row.seq), tokens.last())
            {
                path.push(token);
            }
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
