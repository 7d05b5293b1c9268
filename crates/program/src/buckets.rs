//! [`Buckets`]: the few sizes that decode steps are carried out in, so that a device can have the kernels of each recorded
//! before the first one (CUDA graphs, of which vLLM keeps one for each of such sizes, too).

use std::ops::Range;

use plimsoll_units::{Bytes, SizeOverflow};

use crate::inputs::{ATTENTION_PART, StepInputs};
use crate::program::{Op, Program};

/// Bytes of a device that a recorded kernel takes at most: graphs of 1,000 kernels took less than the 2 MiB in which an H200
/// (driver 580) counts its memory.
pub const RECORDED_KERNEL: u64 = 2 << 10;

/// Sizes of decode steps, in each of whose rows one token is computed. A step is carried out in the smallest that has room
/// for its rows, and for the parts of its longest sequence where attention treats them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Rows, and of each the parts: powers of two, the last as many as the longest sequence has.
    steps: Vec<(u64, Vec<u64>)>,
    most_parts: u64,
}

impl Buckets {
    /// Those of a program whose sequences have at most `context` tokens; `apart` says whether its attention ever treats parts
    /// of a sequence apart. None where ranks meet: what they do there is no kernel.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn of(program: &Program, context: u64, apart: bool) -> Result<Self, SizeOverflow> {
        let inputs = StepInputs::of(program, context)?;
        let most_parts = context.div_ceil(ATTENTION_PART).max(1);
        let meets = |op: &Op| matches!(op, Op::AllReduce { .. } | Op::AllGather { .. });
        let most_rows = match program.ops.iter().any(meets) {
            true => 0,
            false => program.outputs.min(program.tokens),
        };
        let parts = |rows: u64| -> Vec<u64> {
            let treated = |parts: u64| {
                program.ops.iter().any(|op| {
                    let of = match op {
                        Op::Attention(a) => a.parted(),
                        Op::Latent(a) => a.parted(),
                        _ => return false,
                    };
                    apart && inputs.apart(of, rows, parts).is_some()
                })
            };
            let all = doubled(most_parts);
            all.into_iter().filter(|n| *n == 1 || treated(*n)).collect()
        };
        let rows = sizes(most_rows);
        Ok(Self {
            steps: rows.into_iter().map(|n| (n, parts(n))).collect(),
            most_parts,
        })
    }

    /// The rows that a step of `rows` is carried out with, if there are as many.
    #[must_use]
    pub fn rows(&self, rows: u64) -> Option<u64> {
        let at = self.steps.partition_point(|(n, _)| *n < rows);
        self.steps.get(at).map(|(n, _)| *n)
    }

    /// The parts that a step of such a size is carried out with whose longest sequence has `longest` tokens.
    #[must_use]
    pub fn parts(&self, rows: u64, longest: u64) -> u64 {
        let parts = longest.div_ceil(ATTENTION_PART).max(1);
        let parts = parts.next_power_of_two().min(self.most_parts);
        let of = self.steps.iter().find(|(n, _)| *n == rows);
        let there = of.is_some_and(|(_, all)| all.contains(&parts));
        if there { parts } else { 1 }
    }

    /// All rows, fewest first.
    pub fn all_rows(&self) -> impl Iterator<Item = u64> + '_ {
        self.steps.iter().map(|(n, _)| *n)
    }

    /// All rows, with all their parts.
    pub fn all(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let each = |(n, parts): &(u64, Vec<u64>)| {
            let n = *n;
            parts.clone().into_iter().map(move |p| (n, p))
        };
        self.steps.iter().flat_map(each)
    }

    /// What recordings of all of them, and of the head for as many rows of logits, take of a device at most.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes(&self, program: &Program) -> Result<Bytes, SizeOverflow> {
        let head = program.head();
        let body = Bytes::product([self.all().count() as u64, kernels(program, 0..head)])?;
        let heads = kernels(program, head..program.ops.len());
        let heads = Bytes::product([self.all_rows().count() as u64, heads])?;
        body.add(heads)?.times(RECORDED_KERNEL)
    }
}

/// Kernels that some operations are at most, over as many rows as a grid has blocks for.
fn kernels(program: &Program, ops: Range<usize>) -> u64 {
    let of = |i: usize| match program.ops[i] {
        // What is written, parts of what is read, and those put together.
        Op::Attention(_) | Op::Latent(_) => 3,
        // Inputs may be quantised before.
        _ => 1 + u64::from(program.scratch[i].is_some()),
    };
    ops.map(of).sum()
}

/// Powers of two up to `most`, and `most`.
fn doubled(most: u64) -> Vec<u64> {
    let mut all: Vec<u64> = (0..u64::BITS)
        .map(|i| 1_u64 << i)
        .take_while(|n| *n < most)
        .collect();
    all.push(most);
    all
}

/// Powers of two up to `most`, from 16 on what lies halfway between them too, and `most`: at most a third of rows is
/// nobody's where it costs.
fn sizes(most: u64) -> Vec<u64> {
    if most == 0 {
        return Vec::new();
    }
    let mut all: Vec<u64> = doubled(most)
        .into_iter()
        .flat_map(|n| [n, if n < 16 { n } else { n + n / 2 }])
        .filter(|n| *n <= most)
        .chain([most])
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_few_and_end_with_the_most() {
        assert_eq!(sizes(0), [0; 0]);
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(12), [1, 2, 4, 8, 12]);
        let all = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256];
        assert_eq!(sizes(256), all);
        assert_eq!(doubled(1), [1]);
        assert_eq!(doubled(19), [1, 2, 4, 8, 16, 19]);
    }

    #[test]
    fn a_step_has_the_smallest_size_with_room_for_it() {
        let buckets = Buckets {
            steps: vec![(1, vec![1, 2, 3]), (2, vec![1, 2]), (5, vec![1])],
            most_parts: 3,
        };
        let rows = [0, 1, 2, 3, 5, 6].map(|n| buckets.rows(n));
        let expected = [Some(1), Some(1), Some(2), Some(5), Some(5), None];
        assert_eq!(rows, expected);
        let parts = [0, 512, 513, 1024, 1025, 1536].map(|n| buckets.parts(1, n));
        assert_eq!(parts, [1, 1, 2, 2, 3, 3]);
        // Of three parts there is no room for two rows: nothing is treated apart.
        assert_eq!((buckets.parts(2, 1025), buckets.parts(5, 1025)), (1, 1));
        let all: Vec<(u64, u64)> = buckets.all().collect();
        assert_eq!(all, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (5, 1)]);
    }
}
