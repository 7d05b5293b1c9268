//! [`Exchange`]: what ranks on devices meet by, beside their buffers.

use std::ops::Range;

use plimsoll_units::{Bytes, SizeOverflow};

use crate::program::{BufferId, Op, Program};

/// Parts of what is added up begin at a multiple of so many elements.
const ALIGN: u64 = 16;
/// Bytes of an element.
const F32: u64 = 4;

/// What a rank on a device has to meet the others by; nothing where it is alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// On the device: what all ranks have of a part of the elements, before it is added up or put together.
    pub device: Bytes,
    /// On the host: what the rank shows to the others.
    pub host: Bytes,
}

impl Exchange {
    /// That of a program.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn of(program: &Program) -> Result<Self, SizeOverflow> {
        let ranks = program.rank.of;
        let (mut device, mut host) = (0_u64, 0_u64);
        let rows = |id: BufferId| {
            let b = program.buffer(id);
            Ok((b.rows.most([program.tokens, program.outputs])?, b.width))
        };
        let product = |a: u64, b: u64| a.checked_mul(b).ok_or(SizeOverflow);
        for op in &program.ops {
            let (all, at_once) = match *op {
                Op::AllReduce { x } => {
                    let (rows, width) = rows(x)?;
                    let all = product(rows, width)?;
                    (all, each(all, ranks).ok_or(SizeOverflow)?)
                }
                // Rows are put together as many at a time as there is room for, and at least one.
                Op::AllGather { x, .. } => {
                    let (rows, width) = rows(x)?;
                    (product(rows, width)?, width)
                }
                _ => continue,
            };
            host = host.max(all);
            device = device.max(product(ranks, at_once)?);
        }
        Ok(Self {
            device: Bytes::product([device, F32])?,
            host: Bytes::product([host, F32])?,
        })
    }

    /// Both.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes(&self) -> Result<Bytes, SizeOverflow> {
        self.device.add(self.host)
    }

    /// The elements, of `len`, that a rank adds up for all `ranks`.
    #[must_use]
    pub fn part(len: u64, rank: u64, ranks: u64) -> Range<u64> {
        let at = |rank: u64| each(len, ranks).map_or(len, |e| rank.saturating_mul(e).min(len));
        at(rank)..at(rank.saturating_add(1))
    }
}

/// Elements of a part at most.
fn each(len: u64, ranks: u64) -> Option<u64> {
    len.div_ceil(ranks.max(1)).checked_next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_one_another_and_are_all() {
        for ranks in [1, 2, 3, 4, 8] {
            for len in [0, 1, 15, 16, 17, 100, 1000] {
                let mut end = 0;
                for rank in 0..ranks {
                    let part = Exchange::part(len, rank, ranks);
                    assert_eq!(part.start, end);
                    assert!(part.end - part.start <= each(len, ranks).unwrap());
                    end = part.end;
                }
                assert_eq!(end, len);
            }
        }
    }
}
