//! [`grid`]: how full a deployment gets, by users and context.

use plimsoll_units::Bytes;

use crate::error::PlanError;
use crate::evaluate::Evaluation;

/// Most columns and rows.
const COLUMNS: usize = 14;
/// The shortest context that has a row.
const SHORTEST: u64 = 1024;

/// A deployment under many loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Users at once, rising, by powers of two.
    pub users: Vec<u64>,
    /// Tokens per sequence, rising, by powers of two up to the longest that the engine accepts.
    pub contexts: Vec<u64>,
    /// For each context, for each number of users.
    pub cells: Vec<Vec<Cell>>,
}

/// The device that is fullest under one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// What the load needs there for its cache and beside it.
    pub need: Bytes,
    /// What there is for that, by the expected figures.
    pub room: Bytes,
}

impl Cell {
    /// Whether it fits by the expected figures.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.need <= self.room
    }
}

/// The loads around that of `asked` users, all replicas together, for which `e` was judged: from one user to the first
/// number that no context fits, from 1,024 tokens to the longest sequence, and the load itself.
///
/// # Errors
/// [`PlanError`] where a law cannot be asked. Loads whose sizes leave 64 bits need all there is.
pub fn grid(e: &Evaluation, asked: u64) -> Result<Grid, PlanError> {
    let longest = e.max_model_len;
    let mut contexts: Vec<u64> = doublings(SHORTEST.min(longest), longest);
    if contexts.last() != Some(&longest) {
        contexts.push(longest);
    }
    let contexts = with(thinned(contexts), e.load.context);
    let shortest = contexts.first().copied().unwrap_or(longest);
    let mut users = Vec::new();
    for n in doublings(1, 1 << 30) {
        users.push(n);
        if !cell(e, n, shortest)?.fits() {
            break;
        }
    }
    let users = with(thinned(users), asked);
    let cells = contexts
        .iter()
        .map(|&c| users.iter().map(|&n| cell(e, n, c)).collect())
        .collect::<Result<_, _>>()?;
    Ok(Grid {
        users,
        contexts,
        cells,
    })
}

/// `from`, twice that, and so on up to `to`.
fn doublings(from: u64, to: u64) -> Vec<u64> {
    std::iter::successors(Some(from.max(1)), |n| n.checked_mul(2))
        .take_while(|n| *n <= to)
        .collect()
}

/// Every second of them, or every third and so on, the last among them, so that they are few enough.
fn thinned(all: Vec<u64>) -> Vec<u64> {
    let step = all.len().div_ceil(COLUMNS).max(1);
    let last = all.len().saturating_sub(1);
    all.into_iter()
        .enumerate()
        .filter(|(i, _)| (last - i).is_multiple_of(step))
        .map(|(_, n)| n)
        .collect()
}

/// `one` among them, in order.
fn with(mut all: Vec<u64>, one: u64) -> Vec<u64> {
    all.push(one);
    all.sort_unstable();
    all.dedup();
    all
}

fn cell(e: &Evaluation, users: u64, context: u64) -> Result<Cell, PlanError> {
    let replica = Evaluation::replica_users(users, e.deployment.parallel.dp);
    let load = e.load.with_context(context).with_users(replica);
    let mut fullest: Option<Cell> = None;
    for stage in &e.stages {
        let here = match stage.needs(&load) {
            Ok(need) => Cell {
                need,
                room: stage.room(),
            },
            // What leaves 64 bits fits nowhere.
            Err(PlanError::Size(_)) => Cell {
                need: Bytes::new(u64::MAX),
                room: stage.room(),
            },
            Err(e) => return Err(e),
        };
        let fuller = fullest.is_none_or(|f| {
            let share = |c: Cell| u128::from(c.need.get()) * u128::from(f.room.get().max(1));
            let other = u128::from(f.need.get()) * u128::from(here.room.get().max(1));
            share(here) > other
        });
        if fuller {
            fullest = Some(here);
        }
    }
    fullest.ok_or_else(|| PlanError::Load("the plan has no stage".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_and_always_the_longest() {
        assert_eq!(doublings(1, 9), [1, 2, 4, 8]);
        assert_eq!(thinned((1..=14).collect()), (1..=14).collect::<Vec<_>>());
        assert_eq!(thinned((1..=15).collect()), [1, 3, 5, 7, 9, 11, 13, 15]);
        assert_eq!(thinned((1..=28).collect::<Vec<_>>()).last(), Some(&28));
        assert_eq!(with(vec![1, 4], 2), [1, 2, 4]);
        assert_eq!(with(vec![1, 4], 4), [1, 4]);
    }
}
