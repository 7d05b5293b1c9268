//! Two backends of one suite, each carrying the same out, and what differs after.

use super::*;
use crate::backend::Backend;
use crate::sample::{Brief, History, Place, Sampler, Sampling, SamplingParams};
use plimsoll_schedule::Output;

/// Two backends of one suite.
pub(super) struct Both<'a, A, B> {
    pub(super) oracle: A,
    pub(super) other: B,
    pub(super) pool: &'a mut Pool,
    pub(super) suite: &'a Suite,
    pub(super) random: Random,
    pub(super) outcomes: &'a mut Vec<Outcome>,
}

fn bytes_of(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Whether the tokens that are chosen of a backend's shortlists are those chosen of whole rows.
fn same_tokens<B: Backend>(all: &[f32], rows: usize, of: &mut B) -> Result<bool, BackendError> {
    let vocab = all.len() / rows.max(1);
    let tokens = u32::try_from(vocab).unwrap_or(u32::MAX);
    let place = Place {
        index: 0,
        position: 7,
    };
    let history = History::default();
    let asked = |row: usize| Sampling {
        temperature: [0.0, 0.9, 0.7][row % 3],
        top_k: [0, 0, 20][row % 3],
        top_p: [1.0, 1.0, 0.9][row % 3],
        min_p: 0.05,
        seed: row as u64,
        logprobs: Some(5),
        ..Sampling::default()
    };
    let params = (0..rows)
        .map(|row| SamplingParams::new(asked(row), tokens, &[], 1))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| BackendError::Step(e.to_string()))?;
    let one = Output::Sample { draws: 1 };
    let brief = |p| Brief::new(p, &history, one, place, tokens);
    let briefs: Vec<_> = params.iter().map(brief).collect();
    let lists = of.shortlists(&briefs)?;
    let mut sampler = Sampler::new(tokens);
    for (i, (row, params)) in all.chunks(vocab).zip(&params).enumerate() {
        let (mut top, mut top_there) = (Vec::new(), Vec::new());
        let here = sampler.draw(row, params, &history, None, place, &mut top);
        let list = briefs[i].as_ref().and_then(|b| lists.get(i, b));
        let Some(list) = list else { return Ok(false) };
        let there = sampler.draw_short(&list, params, place, &mut top_there);
        if here.map(Some) != there || top != top_there {
            return Ok(false);
        }
    }
    Ok(true)
}

impl<A: Inside, B: Inside> Both<'_, A, B> {
    fn write(&mut self, region: Region, from: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.oracle.write(region, from, bytes)?;
        self.other.write(region, from, bytes)
    }

    pub(super) fn weights(&mut self) -> Result<(), BackendError> {
        let bytes = bytes_of(self.suite.words.iter().copied());
        self.write(Region::Weights, 0, &bytes)
    }

    fn outcome(&mut self, op: &'static str) -> &mut Outcome {
        let at = self.outcomes.iter().position(|o| o.op == op);
        let at = at.unwrap_or_else(|| {
            self.outcomes.push(Outcome {
                op,
                cases: 0,
                elements: 0,
                wrong: Vec::new(),
            });
            self.outcomes.len() - 1
        });
        &mut self.outcomes[at]
    }

    /// Compares a part of an arena, as words; what differs first.
    fn same(
        &mut self,
        region: Region,
        from: u64,
        bytes: u64,
    ) -> Result<(u64, Option<String>), BackendError> {
        let mut both = [vec![0; index(bytes)], vec![0; index(bytes)]];
        self.oracle.read(region, from, &mut both[0])?;
        self.other.read(region, from, &mut both[1])?;
        let [want, got] = both;
        let words = |all: &[u8]| -> Vec<u32> {
            let four = all.as_chunks().0.iter();
            four.map(|w| u32::from_le_bytes(*w)).collect()
        };
        let (want, got) = (words(&want), words(&got));
        let mut differ = want
            .iter()
            .zip(&got)
            .enumerate()
            .filter(|(_, (a, b))| a != b);
        let first = differ.next().map(|(at, (a, b))| {
            format!(
                "word {at}: {} where {} is meant ({} words differ)",
                f32::from_bits(*b),
                f32::from_bits(*a),
                1 + differ.count()
            )
        });
        Ok((want.len() as u64, first))
    }

    /// Every case over every step.
    pub(super) fn steps(&mut self, progress: &mut impl FnMut(&str)) -> Result<(), BackendError> {
        let suite = self.suite;
        let mut tables = Tables::new(suite.program.geometry.groups.len());
        for step in &suite.steps {
            tables.apply(step, |_| {});
            self.oracle.begin(step, &tables)?;
            self.other.begin(step, &tables)?;
            for case in &suite.cases {
                progress(case.op);
                let (elements, wrong) = match self.step(case, step, &tables) {
                    Ok(done) => done,
                    Err(e) => (0, Some(e.to_string())),
                };
                let outcome = self.outcome(case.op);
                outcome.cases += u32::from(step.number == 1);
                outcome.elements += elements;
                if let Some(what) = wrong {
                    let at = format!("{}, step {}: {what}", case.how, step.number);
                    outcome.wrong.push(at);
                }
            }
            self.logits(step);
        }
        Ok(())
    }

    fn step(
        &mut self,
        case: &Case,
        step: &Step,
        tables: &Tables,
    ) -> Result<(u64, Option<String>), BackendError> {
        let program = &self.suite.program;
        let parts: Vec<(u64, u64)> = case
            .buffers
            .clone()
            .map(|b| {
                let b = program.buffer(BufferId(b));
                let rows = b.rows.most([TOKENS, OUTPUTS]).unwrap_or(0);
                (b.offset.get(), rows * b.width)
            })
            .collect();
        for &(from, elements) in &parts {
            let numbers: Vec<u32> = (0..elements)
                .map(|_| self.random.number().to_bits())
                .collect();
            self.write(Region::Activations, from, &bytes_of(numbers))?;
        }
        let wanted: Vec<u32> = step.rows.iter().map(|r| r.tokens.end - 1).collect();
        let ops = case.ops.clone();
        self.oracle
            .run(self.pool, step, tables, ops.clone(), &wanted)?;
        self.other.run(self.pool, step, tables, ops, &wanted)?;
        let mut compared = 0;
        for (i, (from, elements)) in parts.into_iter().enumerate() {
            let (n, wrong) = self.same(Region::Activations, from, 4 * elements)?;
            compared += n;
            if let Some(what) = wrong {
                return Ok((compared, Some(format!("buffer {i}, {what}"))));
            }
        }
        if case.paged {
            let (n, wrong) = self.same_pages()?;
            compared += n;
            return Ok((compared, wrong.map(|what| format!("pages, {what}"))));
        }
        Ok((compared, None))
    }

    fn same_pages(&mut self) -> Result<(u64, Option<String>), BackendError> {
        let page = self.suite.program.geometry.page.get();
        self.same(Region::KvCache, 0, page * u64::from(self.suite.pages))
    }

    /// The logits as they come to the host, of rows that are gathered again.
    fn logits(&mut self, step: &Step) {
        let Some(gather) = self.suite.cases.first() else {
            return;
        };
        let (ops, rows) = (gather.ops.clone(), step.rows.len());
        let wanted: Vec<u32> = step.rows.iter().map(|r| r.tokens.end - 1).collect();
        let tables = Tables::new(0);
        let mut one = || -> Result<(u64, bool), BackendError> {
            self.oracle
                .run(self.pool, step, &tables, ops.clone(), &wanted)?;
            self.other
                .run(self.pool, step, &tables, ops.clone(), &wanted)?;
            let bits = |x: &mut [f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let want = bits(self.oracle.logits(0..rows)?);
            let got = bits(self.other.logits(0..rows)?);
            let all = self.oracle.logits(0..rows)?;
            let chosen = !self.other.shortens() || same_tokens(all, rows, &mut self.other)?;
            Ok((want.len() as u64, want == got && chosen))
        };
        let (elements, wrong) = match one() {
            Ok((n, true)) => (n, None),
            Ok((n, false)) => (n, Some("others came".to_owned())),
            Err(e) => (0, Some(e.to_string())),
        };
        let outcome = self.outcome(LOGITS);
        outcome.cases += u32::from(step.number == 1);
        outcome.elements += elements;
        outcome.wrong.extend(wrong);
    }

    /// Pages that are copied, and that leave and come back elsewhere.
    pub(super) fn moves(&mut self) -> Result<(), BackendError> {
        let pages = self.suite.pages;
        let page = self.suite.program.geometry.page.get();
        let all: Vec<u32> = (0..page / 4 * u64::from(pages))
            .map(|_| self.random.number().to_bits())
            .collect();
        self.write(Region::KvCache, 0, &bytes_of(all))?;
        // More than are told at once.
        let copies: Vec<BlockCopy> = (0..2 * small(OUTPUTS) + 1)
            .map(|i| BlockCopy {
                from: BlockId(1 + i),
                to: BlockId(pages - 1 - i),
            })
            .collect();
        let copied = (self.oracle.copy(&copies)).and_then(|()| self.other.copy(&copies));
        self.moved(COPY, copied);
        let swap = |page: u32, slot: u32| SwapOp {
            tag: 0,
            page: BlockId(page),
            slot,
            generation: 0,
        };
        let (out, back) = (
            [swap(pages - 1, 2), swap(3, 0), swap(7, 3)],
            [swap(1, 3), swap(pages - 2, 0), swap(9, 2)],
        );
        let mut swapped = || -> Result<(), BackendError> {
            for lost in [
                self.oracle.swap_out(self.pool, &out)?,
                self.other.swap_out(self.pool, &out)?,
                self.oracle.swap_in(self.pool, &back)?,
                self.other.swap_in(self.pool, &back)?,
            ] {
                if !lost.is_empty() {
                    return Err(BackendError::Step("a page did not arrive".to_owned()));
                }
            }
            Ok(())
        };
        let swapped = swapped();
        self.moved(SWAP, swapped);
        Ok(())
    }

    fn moved(&mut self, op: &'static str, done: Result<(), BackendError>) {
        let (elements, wrong) = match done.and_then(|()| self.same_pages()) {
            Ok(same) => same,
            Err(e) => (0, Some(e.to_string())),
        };
        let outcome = self.outcome(op);
        outcome.cases += 1;
        outcome.elements += elements;
        outcome.wrong.extend(wrong);
    }
}
