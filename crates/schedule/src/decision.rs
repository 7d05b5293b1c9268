//! [`DecisionHash`]: one number for everything that was ever decided.

use plimsoll_kv::DeltaOp;
use plimsoll_units::SeqId;

use crate::step::{Output, Step};

/// A running digest of steps. Not cryptographic: it tells runs apart that differ by accident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DecisionHash(u64);

impl DecisionHash {
    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    const fn mix(&mut self, x: u64) {
        // The multiplier of FxHash: odd, with bits well spread.
        self.0 = (self.0.rotate_left(5) ^ x).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// One sequence's pages of one group.
    pub(crate) fn table(&mut self, seq: SeqId, group: usize, pages: &[u32]) {
        self.mix(seq.0);
        self.mix((group as u64) << 32 | pages.len() as u64);
        pages.iter().for_each(|p| self.mix(u64::from(*p)));
    }

    pub(crate) fn step(&mut self, step: &Step) {
        self.mix(step.number);
        for d in &step.kv.deltas {
            let (kind, index, page) = match d.op {
                DeltaOp::Append { index, page } => (1, index, page.0),
                DeltaOp::Replace { index, page } => (2, index, page.0),
                DeltaOp::Truncate { len } => (3, len, 0),
            };
            self.mix(d.seq.0 ^ kind << 56);
            self.mix(u64::from(index) << 32 | u64::from(page));
        }
        for c in &step.kv.copies {
            self.mix(u64::from(c.from.0) << 32 | u64::from(c.to.0));
        }
        for (kind, ops) in [(4, &step.kv.swaps_out), (5, &step.kv.swaps_in)] {
            for s in ops {
                self.mix(s.tag ^ kind << 56);
                self.mix(u64::from(s.page.0) << 32 | u64::from(s.slot));
            }
        }
        for r in &step.rows {
            let output = match r.output {
                Output::None => 0,
                Output::Sample { draws } => 1 + u64::from(draws),
                Output::Candidates { k } => 1 << 32 | u64::from(k),
            };
            self.mix(r.seq.0);
            self.mix(u64::from(r.start) << 32 | u64::from(r.tokens.end - r.tokens.start));
            self.mix(output);
        }
    }
}
