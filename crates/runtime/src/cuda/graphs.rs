//! Steps that are recorded before the first one, so that the device starts all kernels of a step at once.
//!
//! A decode step, each of whose rows has one token, is carried out in one of a [few sizes](Buckets). The rows that it
//! lacks are nobody's: token 0 at position 0, whose keys, values and state go to the null page, which nobody reads but
//! they. So in all steps of a size kernels are told the same, but for lists that lie at the same places; and as no row's
//! bits depend on other rows, on how many there are, or on how attention is parted, nothing else changes.
//!
//! Recordings are made when weights are loaded, and each is carried out once: what the driver takes for them it takes
//! before requests come, not during one.

use std::collections::BTreeMap;
use std::ops::Range;

use plimsoll_cuda::Graph;
use plimsoll_program::Buckets;
use plimsoll_schedule::{Step as Rows, Tables};
use plimsoll_units::Bytes;

use super::Cuda;
use super::lists::Lists;
use super::ops::Step;
use crate::backend::BackendError;

/// What was recorded.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    buckets: Option<Buckets>,
    /// Where the head's operations begin, and end.
    head: Range<usize>,
    /// All operations before the head, by rows and parts.
    bodies: BTreeMap<(u64, u64), Recorded>,
    /// The head's, by rows of logits.
    heads: BTreeMap<u64, Recorded>,
}

#[derive(Clone, Copy, Debug)]
struct Recorded {
    graph: Graph,
    /// What its kernels use at most.
    activations: Bytes,
    inputs: Bytes,
}

impl Graphs {
    /// The size that a step of so many rows, one token each, is carried out in, if it is recorded.
    pub(super) fn rows(&self, rows: usize) -> Option<u64> {
        self.buckets.as_ref()?.rows(rows as u64)
    }

    /// The size that some operations over so many rows of logits are carried out in, if it is recorded.
    pub(super) fn outputs(&self, ops: &Range<usize>, rows: usize) -> Option<u64> {
        let there = rows > 0 && *ops == self.head;
        there.then(|| self.rows(rows)).flatten()
    }

    /// Parts of sequences of a step of such a size.
    pub(super) fn parts(&self, rows: u64, longest: u64) -> u64 {
        self.buckets.as_ref().map_or(1, |b| b.parts(rows, longest))
    }

    fn of(&self, ops: &Range<usize>, step: Step, lists: &Lists) -> Option<Recorded> {
        if *ops == self.head {
            return self.heads.get(&step.outputs).copied();
        }
        let rows = lists.bucket.filter(|_| *ops == (0..self.head.start))?;
        self.bodies.get(&(rows, lists.parts)).copied()
    }
}

/// What recordings came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recordings {
    /// How many there are.
    pub count: usize,
    /// What they took of the device's memory, where it knows: of all that was taken meanwhile, whoever took it.
    pub bytes: Option<Bytes>,
}

impl Cuda {
    /// Records decode steps of all sizes, once weights are loaded.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn record(&mut self) -> Result<Recordings, BackendError> {
        self.device.wait()?;
        let free = self.device.free();
        let buckets = Buckets::of(&self.program, self.context, self.fast)
            .map_err(|e| BackendError::Step(e.to_string()))?;
        let used = (self.activations.used, self.inputs.used);
        let head = self.program.head();
        let mut graphs = Graphs {
            head: head..self.program.ops.len(),
            ..Graphs::default()
        };
        let (nobody, tables) = (Rows::default(), Tables::new(0));
        self.positions.clear();
        for (rows, parts) in buckets.all() {
            let step = Step {
                tokens: rows,
                rows,
                outputs: 0,
            };
            self.tell(&nobody, &tables, Some(rows))?;
            self.lists.parts = parts;
            let recorded = self.record_one(0..head, step)?;
            graphs.bodies.insert((rows, parts), recorded);
        }
        for outputs in buckets.all_rows().filter(|_| !graphs.head.is_empty()) {
            let step = Step {
                tokens: outputs,
                rows: outputs,
                outputs,
            };
            self.wanted(&[], outputs)?;
            let recorded = self.record_one(graphs.head.clone(), step)?;
            graphs.heads.insert(outputs, recorded);
        }
        self.device.wait()?;
        (self.activations.used, self.inputs.used) = used;
        self.lists = Lists::default();
        let count = graphs.bodies.len() + graphs.heads.len();
        graphs.buckets = Some(buckets);
        self.graphs = graphs;
        let taken = free.zip(self.device.free());
        Ok(Recordings {
            count,
            bytes: taken.map(|(before, after)| Bytes::new(before.saturating_sub(after))),
        })
    }

    fn record_one(&mut self, ops: Range<usize>, step: Step) -> Result<Recorded, BackendError> {
        (self.activations.used, self.inputs.used) = (Bytes::ZERO, Bytes::ZERO);
        self.device.record()?;
        let walked = self.walk(step.tokens, step.rows, step.outputs, ops.clone());
        // Whatever went wrong, the device goes back to starting kernels.
        let graph = self.device.recorded();
        walked?;
        let recorded = Recorded {
            graph: graph?,
            activations: self.activations.used,
            inputs: self.inputs.used,
        };
        self.replay(recorded, ops, step)?;
        Ok(recorded)
    }

    /// Carries some operations out, by a recording where there is one.
    pub(super) fn carry_out(&mut self, step: Step, ops: Range<usize>) -> Result<(), BackendError> {
        match self.graphs.of(&ops, step, &self.lists) {
            Some(recorded) => self.replay(recorded, ops, step),
            None => self.walk(step.tokens, step.rows, step.outputs, ops),
        }
    }

    fn replay(
        &mut self,
        recorded: Recorded,
        ops: Range<usize>,
        step: Step,
    ) -> Result<(), BackendError> {
        self.activations.mark(recorded.activations);
        self.inputs.mark(recorded.inputs);
        if self.device.replay(recorded.graph)? {
            return Ok(());
        }
        self.walk(step.tokens, step.rows, step.outputs, ops)
    }
}
