//! [`Teacher`]: generates the likeliest tokens, or those that it is given, and keeps the logits that each was chosen by, so
//! that two backends can be compared position by position ([`Agreement`]).

use plimsoll_schedule::{Draw, Output, Row, RowOutput, SeqEvent};

use crate::choose::Chooser;

/// A chooser for one sequence.
#[derive(Debug, Default)]
pub struct Teacher {
    /// What comes, one after the other; the likeliest tokens where nothing is left.
    given: Vec<u32>,
    /// Logits of each position, in order.
    logits: Vec<Vec<f32>>,
}

impl Teacher {
    /// One that gives these tokens first.
    #[must_use]
    pub const fn new(given: Vec<u32>) -> Self {
        Self {
            given,
            logits: Vec::new(),
        }
    }

    /// Logits of each position, in order.
    #[must_use]
    pub fn logits(&self) -> &[Vec<f32>] {
        &self.logits
    }
}

impl Chooser for Teacher {
    fn row(&mut self, row: &Row, _: u32, logits: &mut [f32]) -> RowOutput {
        if row.output == Output::None {
            return RowOutput::None;
        }
        let given = self.given.get(self.logits.len()).copied();
        let token = given.unwrap_or_else(|| likeliest(logits).0);
        self.logits.push(logits.to_vec());
        RowOutput::One(Draw {
            token,
            logprob: 0.0,
            ends: false,
        })
    }

    fn event(&mut self, _: &SeqEvent) {}
}

/// The likeliest token, the first of several, and how much less likely the next one is.
fn likeliest(logits: &[f32]) -> (u32, f32) {
    let (mut first, mut second, mut token) = (f32::NEG_INFINITY, f32::NEG_INFINITY, 0);
    for (i, &x) in (0..).zip(logits) {
        if x > first {
            (first, second, token) = (x, first, i);
        } else if x > second {
            second = x;
        }
    }
    (token, first - second)
}

/// How two backends' logits of the same positions go together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Positions that were compared.
    pub positions: usize,
    /// Those where the same token is the likeliest.
    pub equal: usize,
    /// Those where the two likeliest are further apart than the tolerance, on the first backend.
    pub sure: usize,
    /// Of these, those where the same token is the likeliest.
    pub sure_equal: usize,
    /// Those whose logits are the same to the bit.
    pub same: usize,
    /// The largest difference of two logits; NaN where only one is a number.
    pub largest: f32,
    /// The largest logit of the first backend.
    pub size: f32,
}

impl Agreement {
    /// That of some positions, where a difference of `tolerance` times the largest logit is no surprise.
    #[must_use]
    pub fn of(first: &[Vec<f32>], second: &[Vec<f32>], tolerance: f32) -> Self {
        let all = first.iter().flatten();
        let size = all.fold(0.0_f32, |a, x| a.max(x.abs()));
        let mut found = Self {
            size,
            ..Self::default()
        };
        for (a, b) in first.iter().zip(second) {
            let ((token, apart), (other, _)) = (likeliest(a), likeliest(b));
            let (equal, sure) = (token == other, apart > tolerance * size);
            let same = a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits());
            found.positions += 1;
            found.equal += usize::from(equal);
            found.sure += usize::from(sure);
            found.sure_equal += usize::from(sure && equal);
            found.same += usize::from(same);
            for (x, y) in a.iter().zip(b).filter(|_| !same) {
                let off = (x - y).abs();
                found.largest = if off > found.largest || off.is_nan() {
                    off
                } else {
                    found.largest
                };
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_counted_by_what_they_say() {
        let first = vec![
            vec![0.0, 4.0, 1.0],
            vec![3.9, 4.0, 1.0],
            vec![-8.0, 0.0, 2.0],
            vec![0.0, 4.0, 1.0],
        ];
        // The same, a turn where nothing was sure, one where it was, and a small difference.
        let second = vec![
            first[0].clone(),
            vec![4.0, 3.9, 1.0],
            vec![-8.0, 2.0, 0.0],
            vec![0.0, 4.0, 1.5],
        ];
        let found = Agreement::of(&first, &second, 0.05);
        let want = Agreement {
            positions: 4,
            equal: 2,
            sure: 3,
            sure_equal: 2,
            same: 1,
            largest: 2.0,
            size: 8.0,
        };
        assert_eq!(found, want);
        let broken = vec![vec![0.0, f32::NAN, 0.0]];
        assert!(Agreement::of(&first, &broken, 0.05).largest.is_nan());
    }
}
