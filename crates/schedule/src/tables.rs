//! Block tables as the scheduler's changes leave them.

use std::collections::BTreeMap;

use plimsoll_kv::DeltaOp;
use plimsoll_units::SeqId;

use crate::decision::DecisionHash;
use crate::step::{SeqEvent, Step};

/// Of every sequence, each group's pages by block, from its first token on. Blocks that left a window keep a
/// page that is another's by now: nobody reads there.
#[derive(Debug)]
pub struct Tables {
    groups: usize,
    of: BTreeMap<SeqId, Vec<Vec<u32>>>,
    digest: DecisionHash,
}

impl Tables {
    /// No sequence yet, in a pool of so many groups of layers.
    #[must_use]
    pub fn new(groups: usize) -> Self {
        Self {
            groups,
            of: BTreeMap::new(),
            digest: DecisionHash::default(),
        }
    }

    /// Forgets all sequences; the digest stays.
    pub fn clear(&mut self) {
        self.of.clear();
    }

    /// A sequence's table of one group; empty for one that is unknown.
    #[must_use]
    pub fn get(&self, seq: SeqId, group: usize) -> &[u32] {
        self.of.get(&seq).map_or(&[], |t| &t[group])
    }

    /// Takes the tables of a step's rows into the digest, as they are when its rows are computed.
    pub fn note(&mut self, step: &Step) {
        for row in &step.rows {
            for (group, table) in self.of.get(&row.seq).into_iter().flatten().enumerate() {
                self.digest.table(row.seq, group, table);
            }
        }
    }

    /// A digest of every table that was [noted](Self::note), in order.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest.get()
    }

    /// Takes a step's events and changes in, in their order.
    pub fn apply(&mut self, step: &Step, mut event: impl FnMut(&SeqEvent)) {
        let mut events = step.events.iter().peekable();
        for (i, delta) in step.kv.deltas.iter().map(Some).chain([None]).enumerate() {
            while let Some((_, e)) = events.next_if(|(at, _)| *at <= i) {
                event(e);
                self.event(e);
            }
            let Some(d) = delta else { return };
            let Some(table) = self.of.get_mut(&d.seq) else {
                continue;
            };
            let table = &mut table[usize::from(d.group)];
            match d.op {
                DeltaOp::Append { index, page } | DeltaOp::Replace { index, page } => {
                    let index = index as usize;
                    if table.len() <= index {
                        table.resize(index + 1, 0);
                    }
                    table[index] = page.0;
                }
                DeltaOp::Truncate { len } => table.truncate(len as usize),
            }
        }
    }

    fn event(&mut self, e: &SeqEvent) {
        match *e {
            SeqEvent::Start { seq, .. } => {
                self.of.insert(seq, vec![Vec::new(); self.groups]);
            }
            SeqEvent::Fork { seq, from, .. } => {
                let table = self.of.get(&from).cloned();
                self.of
                    .insert(seq, table.unwrap_or_else(|| vec![Vec::new(); self.groups]));
            }
            SeqEvent::Truncate { seq, to } => {
                if let Some(t) = self.of.get_mut(&seq).filter(|_| to == 0) {
                    t.iter_mut().for_each(Vec::clear);
                }
            }
            SeqEvent::Drop { seq } => {
                self.of.remove(&seq);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_kv::Delta;
    use plimsoll_units::BlockId;

    use super::*;
    use crate::request::RequestId;
    use crate::step::{Output, Row};

    fn step(pages: [u32; 2], at: usize) -> Step {
        let seq = SeqId(1);
        let request = RequestId(0);
        let mut step = Step::default();
        let start = |seq| SeqEvent::Start {
            seq,
            request,
            index: 0,
        };
        let from = SeqId(0);
        let fork = SeqEvent::Fork {
            seq,
            from,
            request,
            index: 1,
        };
        step.events = vec![(0, start(from)), (at, fork)];
        for (index, page) in (0..).zip(pages) {
            let op = DeltaOp::Append {
                index,
                page: BlockId(page),
            };
            step.kv.deltas.push(Delta {
                seq: from,
                group: 0,
                op,
            });
        }
        step.rows.push(Row {
            seq,
            request,
            index: 1,
            start: 0,
            tokens: 0..1,
            output: Output::None,
        });
        step
    }

    fn digest(step: &Step) -> u64 {
        let mut tables = Tables::new(1);
        tables.apply(step, |_| {});
        tables.note(step);
        tables.digest()
    }

    #[test]
    fn another_page_and_another_moment_of_a_fork_show_in_the_digest() {
        let one = digest(&step([5, 6], 2));
        assert_eq!(one, digest(&step([5, 6], 2)));
        for other in [step([5, 7], 2), step([6, 5], 2), step([5, 6], 1)] {
            assert_ne!(one, digest(&other));
        }
    }
}
