//! Where buffers lie: those that are never alive together share space.

use plimsoll_units::{Bytes, SizeOverflow};

use crate::program::{Buffer, BufferId, Op};

/// Buffers begin at cache lines.
const ALIGNMENT: Bytes = Bytes::new(64);

/// Sets the offsets and returns the bytes of the arena: the largest buffer first, each at the first place that is
/// free whenever it is alive.
pub(super) fn place<'a>(
    buffers: &mut [Buffer],
    ops: impl DoubleEndedIterator<Item = (&'a Op, Option<BufferId>)> + Clone,
    result: BufferId,
    limits: [u64; 2],
) -> Result<Bytes, SizeOverflow> {
    let sizes = buffers
        .iter()
        .map(|b| {
            let rows = b.rows.most(limits)?;
            Bytes::product([rows, b.width, 4])
        })
        .collect::<Result<Vec<Bytes>, SizeOverflow>>()?;
    let together = alive_together(buffers.len(), ops, result);
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(sizes[i]));
    let mut placed: Vec<(usize, Bytes, Bytes)> = Vec::new();
    let mut all = Bytes::ZERO;
    for i in order {
        let mut taken: Vec<(Bytes, Bytes)> = placed
            .iter()
            .filter(|(j, ..)| together[i][*j])
            .map(|&(_, from, to)| (from, to))
            .collect();
        taken.sort_unstable();
        let mut at = Bytes::ZERO;
        for (from, to) in taken {
            if at.add(sizes[i])? <= from {
                break;
            }
            at = at.max(to.round_up(ALIGNMENT)?);
        }
        let end = at.add(sizes[i])?;
        buffers[i].offset = at;
        placed.push((i, at, end));
        all = all.max(end);
    }
    Ok(all)
}

/// Which buffers are alive during the same operation: from where one is written whole to where it is last read, and
/// an operation's own while it lasts.
fn alive_together<'a>(
    n: usize,
    ops: impl DoubleEndedIterator<Item = (&'a Op, Option<BufferId>)> + Clone,
    result: BufferId,
) -> Vec<Vec<bool>> {
    let mut together = vec![vec![false; n]; n];
    let mut alive = vec![false; n];
    alive[usize::from(result.0)] = true;
    // What comes after the rows are gathered can be done again for others.
    for (op, _) in ops.clone() {
        if let Op::Gather { x, .. } = op {
            alive[usize::from(x.0)] = true;
        }
    }
    for (op, scratch) in ops.rev() {
        let (reads, write) = op.buffers();
        let here = |i: usize| {
            let id = BufferId(u16::try_from(i).unwrap_or(u16::MAX));
            alive[i] || id == write || scratch == Some(id) || reads.contains(&id)
        };
        let now: Vec<usize> = (0..n).filter(|&i| here(i)).collect();
        for &i in &now {
            for &j in &now {
                together[i][j] = true;
            }
        }
        alive[usize::from(write.0)] = false;
        for id in reads {
            alive[usize::from(id.0)] = true;
        }
    }
    together
}
