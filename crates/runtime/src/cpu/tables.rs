//! Block tables as the scheduler's changes leave them.

use std::collections::BTreeMap;

use plimsoll_kv::DeltaOp;
use plimsoll_schedule::{SeqEvent, Step};
use plimsoll_units::SeqId;

/// Of every sequence, each group's pages by block, from its first token on. Blocks that left a window keep a
/// page that is another's by now: nobody reads there.
#[derive(Debug)]
pub(super) struct Tables {
    groups: usize,
    of: BTreeMap<SeqId, Vec<Vec<u32>>>,
}

impl Tables {
    pub(super) const fn new(groups: usize) -> Self {
        Self {
            groups,
            of: BTreeMap::new(),
        }
    }

    /// A sequence's table of one group; empty for one that is unknown.
    pub(super) fn get(&self, seq: SeqId, group: usize) -> &[u32] {
        self.of.get(&seq).map_or(&[], |t| &t[group])
    }

    /// Takes a step's events and changes in, in their order.
    pub(super) fn apply(&mut self, step: &Step, mut event: impl FnMut(&SeqEvent)) {
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
