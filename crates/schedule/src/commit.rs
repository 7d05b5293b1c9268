//! What an output does to sequences: they grow, fork, end, and give their blocks back.

use plimsoll_kv::Table;
use plimsoll_kv::planted::{self, Bug};
use plimsoll_units::Nanos;

use crate::beam::{self, Decision};
use crate::group::{Completion, End, Group, Phase, Sequence};
use crate::learn::Learned;
use crate::notice::{Ended, Notice};
use crate::request::{Beam, Fan, RequestId};
use crate::scheduler::{Placed, Scheduler};
use crate::step::{Draw, RowOutput, SeqEvent, StepOutput};

/// An output that does not match its step: a fault of the executor. The step counts as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the step has {rows} rows and the executor returned {outputs}")]
pub struct OutputMismatch {
    /// Rows of the step.
    pub rows: usize,
    /// Outputs returned.
    pub outputs: usize,
}

impl Scheduler {
    /// Takes in what the step under way yielded.
    ///
    /// # Errors
    /// [`OutputMismatch`]; the step is then taken as failed.
    pub fn commit(&mut self, output: StepOutput, now: Nanos) -> Result<(), OutputMismatch> {
        if !self.is_under_way() {
            return Ok(());
        }
        let (rows, outputs) = (self.step.rows.len(), output.rows.len());
        if rows != outputs {
            self.fail();
            return Err(OutputMismatch { rows, outputs });
        }
        if Learned::is_told_by(&self.cost, &self.step) {
            let load = self.cost.load(&self.step, self.kv.layout().page);
            self.learned.step(&mut self.cost, &load, output.elapsed.0);
        }
        let lost = self.settle_transfers(&output.failed_transfers);
        self.end_step();
        if planted::is(Bug::FailedSwapInPublished) {
            self.publish_resumed();
        }
        for gi in lost {
            self.lose(gi);
        }
        self.publish_resumed();
        let mut placed = std::mem::take(&mut self.placed);
        let mut from = 0;
        // The rows of a request lie together.
        while let Some(first) = placed.get(from) {
            let gi = first.group;
            let end = placed[from..]
                .iter()
                .position(|p| p.group != gi)
                .map_or(placed.len(), |n| from + n);
            let alive = self.groups[gi as usize].as_ref();
            if alive.is_some_and(|g| g.phase == Phase::Running) {
                for p in &placed[from..end] {
                    self.commit_row(p);
                }
                self.take_outputs(gi, &output.rows[from..end], now);
            }
            from = end;
        }
        placed.clear();
        self.placed = placed;
        self.sweep_cancelled();
        Ok(())
    }

    /// The tokens of one row are there.
    fn commit_row(&mut self, row: &Placed) {
        let Self {
            groups, kv, stats, ..
        } = self;
        let Some(group) = groups[row.group as usize].as_mut() else {
            return;
        };
        let Some(s) = group.seqs.get(row.seq as usize) else {
            return;
        };
        let (computed, prompt) = (group.computed(s), group.request.prompt_len());
        let s = &mut group.seqs[row.seq as usize];
        let Some(t) = s.table.as_mut() else { return };
        let again = computed.saturating_sub(t.committed()).min(row.tokens);
        stats.recomputed_tokens += u64::from(again);
        kv.commit(t, row.tokens, &s.tokens);
        group.prompt_computed = group.prompt_computed.max(t.committed().min(prompt));
    }

    /// The step under way was not carried out, or not to its end: whoever had a part in it is computed again.
    /// Table changes and events count as taken in.
    pub fn fail(&mut self) {
        if !self.is_under_way() {
            return;
        }
        self.stats.failures += 1;
        let mut hit: Vec<u32> = self.placed.iter().map(|p| p.group).collect();
        hit.extend(&self.left);
        hit.extend(&self.resumed);
        hit.sort_unstable();
        hit.dedup();
        for gi in self.left.clone() {
            self.undo(gi);
        }
        self.end_step();
        for gi in hit {
            if self.groups[gi as usize].is_some() {
                self.lose(gi);
            }
        }
        self.placed.clear();
        self.sweep_cancelled();
    }

    fn sweep_cancelled(&mut self) {
        for gi in std::mem::take(&mut self.cancelled) {
            // It may have ended in the very step.
            if self.groups[gi as usize].is_none() {
                continue;
            }
            let request = self.group(gi).request.id();
            self.notices.push(Notice::Cancelled { request });
            self.remove(gi);
        }
    }

    /// Failed transfers: out, the pages are taken back; in, what came is worthless. Either way the request is
    /// computed again: those are returned.
    fn settle_transfers(&mut self, failed: &[u64]) -> Vec<u32> {
        let mut lost = Vec::new();
        for &tag in failed {
            let of = |gi: &u32| self.group(*gi).request.id() == RequestId(tag);
            if let Some(gi) = self.left.iter().copied().find(of) {
                self.undo(gi);
                lost.push(gi);
            } else if let Some(gi) = self.resumed.iter().copied().find(of)
                && !planted::is(Bug::FailedSwapInUsed)
            {
                lost.push(gi);
            }
        }
        self.stats.failures += lost.len() as u64;
        lost
    }

    /// Whoever came back from swap space is in the prefix cache again.
    fn publish_resumed(&mut self) {
        let Self {
            groups,
            kv,
            resumed,
            ..
        } = self;
        for gi in resumed.iter() {
            let Some(group) = groups[*gi as usize].as_mut() else {
                continue;
            };
            // What was lost has no tables.
            for s in &mut group.seqs {
                if let Some(t) = s.table.as_mut() {
                    kv.publish_again(t, group.request.scope(), &s.tokens);
                }
            }
        }
    }

    fn undo(&mut self, gi: u32) {
        let Self { groups, kv, .. } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return;
        };
        let tag = group.request.id().0;
        let mut tables: Vec<&mut Table> = group
            .seqs
            .iter_mut()
            .filter_map(|s| s.table.as_mut())
            .collect();
        kv.undo_swap_out(tag, &mut tables);
    }

    /// What a request has computed is lost: it waits to compute it again.
    fn lose(&mut self, gi: u32) {
        self.detach(gi);
        self.forget(gi);
        let group = self.group_mut(gi);
        group.phase = Phase::Dropped;
        let rank = group.rank;
        self.preempted.insert((rank, gi));
    }

    fn take_outputs(&mut self, gi: u32, outputs: &[RowOutput], now: Nanos) {
        let group = self.group_mut(gi);
        let id = group.request.id();
        if group.promised > 0 && group.seqs.iter().all(|s| s.len() <= s.committed() + 1) {
            let left = std::mem::take(&mut group.promised);
            self.promised -= u64::from(left);
        }
        if outputs.contains(&RowOutput::Failed) {
            self.finish_failed(gi, now);
            return;
        }
        let group = self.group_mut(gi);
        if group.waits_for_leader() {
            let early = planted::is(Bug::RejoinTooEarly);
            if early || group.seqs[0].committed() >= group.request.prompt_len() {
                self.rejoin(gi);
            }
            return;
        }
        if outputs.iter().all(|o| o.draws().is_empty()) {
            return;
        }
        match group.request.fan() {
            Fan::Sample { n, best_of } => {
                if group.forked {
                    for (i, o) in outputs.iter().enumerate() {
                        if let Some(&draw) = o.draws().first() {
                            self.grow(gi, i, draw, id);
                        }
                    }
                } else {
                    let draws = outputs[0].draws();
                    self.first_draws(gi, draws, best_of, id);
                }
                self.reap(gi);
                if self.group(gi).seqs.is_empty() {
                    self.finish(gi, n, now);
                }
            }
            Fan::Beam(beam) => self.beam_step(gi, beam, outputs, now),
        }
    }

    /// The prompt's draws: one sequence becomes as many.
    fn first_draws(&mut self, gi: u32, draws: &[Draw], best_of: u32, id: RequestId) {
        for index in 1..best_of.min(u32::try_from(draws.len()).unwrap_or(u32::MAX)) {
            let index = if planted::is(Bug::ForksDrawAlike) {
                0
            } else {
                index
            };
            self.fork(gi, 0, index);
        }
        self.group_mut(gi).forked = true;
        for (i, &draw) in draws.iter().enumerate() {
            self.grow(gi, i, draw, id);
        }
    }

    /// Another sequence with everything that the one at `from` has.
    fn fork(&mut self, gi: u32, from: usize, index: u32) {
        let seq = self.new_seq();
        let Self { groups, kv, .. } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return;
        };
        let parent = &group.seqs[from];
        let child = Sequence {
            id: seq,
            index,
            table: parent.table.as_ref().map(|t| kv.fork(t, seq)),
            tokens: parent.tokens.clone(),
            score: parent.score,
            logprobs: parent.logprobs.clone(),
            ended: false,
        };
        let (from, request) = (parent.id, group.request.id());
        group.seqs.push(child);
        self.event(SeqEvent::Fork {
            seq,
            from,
            request,
            index,
        });
    }

    /// After the prompt was computed again, every sequence gets it.
    fn rejoin(&mut self, gi: u32) {
        let Self { groups, kv, .. } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return;
        };
        let request = group.request.id();
        let (lead, rest) = group.seqs.split_at_mut(1);
        let Some(table) = lead[0].table.as_ref() else {
            return;
        };
        let mut events = Vec::with_capacity(rest.len());
        for s in rest {
            s.table = Some(kv.fork(table, s.id));
            events.push(SeqEvent::Fork {
                seq: s.id,
                from: lead[0].id,
                request,
                index: s.index,
            });
        }
        for e in events {
            self.event(e);
        }
    }

    /// One more token for a sequence; it ends by itself or by its length.
    fn grow(&mut self, gi: u32, i: usize, draw: Draw, id: RequestId) {
        let group = self.group_mut(gi);
        let limit = group.request.prompt_len() + group.request.max_tokens();
        let prompt = group.request.prompt_len() as usize;
        let Some(s) = group.seqs.get_mut(i) else {
            return;
        };
        s.tokens.push(draw.token);
        s.score += f64::from(draw.logprob);
        s.ended = draw.ends || s.len() >= limit;
        let index = s.index;
        if s.ended {
            let done = Completion {
                index,
                tokens: s.tokens[prompt..].to_vec(),
                logprob: s.score,
                logprobs: Vec::new(),
                score: s.score,
                end: if draw.ends { End::Stop } else { End::Length },
            };
            group.done.push(done);
        }
        self.notices.push(Notice::Token {
            request: id,
            index,
            draw,
        });
    }

    /// Lets go of sequences that have ended.
    fn reap(&mut self, gi: u32) {
        let group = self.group_mut(gi);
        if !group.seqs.iter().any(|s| s.ended) {
            return;
        }
        let before = group.width();
        let (ended, alive) = std::mem::take(&mut group.seqs)
            .into_iter()
            .partition(|s: &Sequence| s.ended);
        group.seqs = alive;
        let after = group.width();
        self.running_seqs = self.running_seqs - before + after;
        for mut s in ended {
            let table = s.table.take();
            self.drop_seq(s.id, table);
        }
    }

    fn beam_step(&mut self, gi: u32, beam: Beam, outputs: &[RowOutput], now: Nanos) {
        let group = self.group_mut(gi);
        let prompt = group.request.prompt_len() as usize;
        let max = group.request.max_tokens() as usize;
        let width = beam.width as usize;
        let beams = group
            .seqs
            .iter()
            .zip(outputs)
            .map(|(s, o)| (s.score, o.draws()));
        let Decision { live, finished } = beam::choose(width, beams);
        for c in finished {
            keep_best(group, &beam, &c, prompt, End::Stop);
        }
        let length = group.seqs.first().map_or(0, |s| s.tokens.len() - prompt) + 1;
        let worst = (group.done.len() >= width)
            .then(|| group.done.last().map(|d| d.score))
            .flatten();
        let best_live = live.first().map_or(f64::NEG_INFINITY, |c| c.logprob);
        let over = live.is_empty() || beam::is_over(&beam, worst, best_live, length);
        if over || length >= max {
            if !over {
                for c in &live {
                    keep_best(group, &beam, c, prompt, End::Length);
                }
            }
            self.finish(gi, beam.width, now);
            return;
        }
        self.regroup(gi, &live);
    }

    /// Beams that nobody continues go first; then each continued beam's first child takes its place, and
    /// the others fork from it.
    fn regroup(&mut self, gi: u32, live: &[beam::Choice]) {
        let before = self.group(gi).width();
        let parents = self.group(gi).seqs.len();
        let continued = |p: usize| live.iter().any(|c| c.parent == p);
        for p in (0..parents).filter(|p| !continued(*p)) {
            let s = &mut self.group_mut(gi).seqs[p];
            s.ended = true;
            if let Some(t) = s.table.take() {
                if planted::is(Bug::DeadBeamKept) {
                    std::mem::forget(t);
                } else {
                    self.kv.release(t);
                }
            }
        }
        // Sequence of each choice: the parent's for its first child, a fork for the others.
        let mut place = vec![usize::MAX; live.len()];
        for (i, c) in live.iter().enumerate() {
            let first = live[..i].iter().all(|e| e.parent != c.parent);
            if first {
                place[i] = c.parent;
            } else {
                let index = u32::try_from(i).unwrap_or(u32::MAX);
                self.fork(gi, c.parent, index);
                place[i] = self.group(gi).seqs.len() - 1;
            }
        }
        let group = self.group_mut(gi);
        group.forked = true;
        let mut old: Vec<Option<Sequence>> = std::mem::take(&mut group.seqs)
            .into_iter()
            .map(Some)
            .collect();
        for (i, c) in live.iter().enumerate() {
            if let Some(mut s) = old[place[i]].take() {
                s.index = u32::try_from(i).unwrap_or(u32::MAX);
                s.tokens.push(c.draw.token);
                s.logprobs.push(c.draw.logprob);
                s.score = c.logprob;
                group.seqs.push(s);
            }
        }
        let after = group.width();
        self.running_seqs = self.running_seqs - before + after;
        for s in old.into_iter().flatten() {
            self.drop_seq(s.id, s.table);
        }
    }

    /// All sequences of a request end with what they have; nobody else begins with blocks that may be damaged.
    fn finish_failed(&mut self, gi: u32, now: Nanos) {
        let Self { groups, kv, .. } = self;
        let Some(group) = groups[gi as usize].as_mut() else {
            return;
        };
        for t in group.tables() {
            kv.unpublish(t);
        }
        let prompt = group.request.prompt_len() as usize;
        for d in &mut group.done {
            d.end = End::Error;
        }
        group.done.extend(group.seqs.iter().map(|s| Completion {
            index: s.index,
            tokens: s.tokens[prompt..].to_vec(),
            logprob: s.score,
            logprobs: s.logprobs.clone(),
            score: s.score,
            end: End::Error,
        }));
        let wanted = match group.request.fan() {
            Fan::Sample { n, .. } => n,
            Fan::Beam(b) => b.width,
        };
        self.finish(gi, wanted, now);
    }

    fn finish(&mut self, gi: u32, n: u32, now: Nanos) {
        let Some(group) = self.remove(gi) else { return };
        let mut completions = group.done;
        let ranked = match group.request.fan() {
            Fan::Beam(_) => true,
            Fan::Sample { n, best_of } => best_of > n,
        };
        if ranked {
            completions.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
        } else {
            completions.sort_by_key(|c| c.index);
        }
        let answer = completions.iter().map(|c| c.tokens.len() as u64).sum();
        completions.truncate(n as usize);
        self.note_finish(now, answer);
        if planted::is(Bug::EndsTwice) {
            self.notices.push(Notice::Cancelled {
                request: group.request.id(),
            });
        }
        self.notices.push(Notice::Finished(Box::new(Ended {
            request: group.request.id(),
            completions,
            cached_tokens: group.cached_tokens,
            swaps: group.swaps,
            recomputes: group.recomputes,
        })));
    }
}

/// Keeps a beam that ends with this choice while it is among the best; they are in order of their scores.
fn keep_best(group: &mut Group, beam: &Beam, choice: &beam::Choice, prompt: usize, end: End) {
    let parent = &group.seqs[choice.parent];
    let mut tokens = parent.tokens[prompt..].to_vec();
    tokens.push(choice.draw.token);
    let mut logprobs = parent.logprobs.clone();
    logprobs.push(choice.draw.logprob);
    let score = beam::score(beam, choice.logprob, tokens.len());
    let at = group.done.partition_point(|d| d.score >= score);
    let done = Completion {
        index: u32::try_from(choice.parent).unwrap_or(u32::MAX),
        tokens,
        logprob: choice.logprob,
        logprobs,
        score,
        end,
    };
    group.done.insert(at, done);
    group.done.truncate(beam.width as usize);
}
