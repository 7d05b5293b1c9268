//! One step of a beam search: candidates in, forks and drops out.
//!
//! As vLLM and transformers do it: every beam brings twice the width of candidates; all are ranked by the
//! sum of their log probabilities; those that end go to the finished, the best others go on.

use crate::request::Beam;
use crate::step::Draw;

/// A candidate and the beam that it continues.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// Which living beam.
    pub(crate) parent: usize,
    pub(crate) draw: Draw,
    /// Sum of log probabilities.
    pub(crate) logprob: f64,
}

/// What a step of the search decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Decision {
    /// Beams that go on, best first.
    pub(crate) live: Vec<Choice>,
    /// Beams that end here, best first.
    pub(crate) finished: Vec<Choice>,
}

/// Chooses among the candidates of all beams. Ties go to the earlier beam, then to its earlier candidate.
pub(crate) fn choose<'a>(width: usize, beams: impl Iterator<Item = (f64, &'a [Draw])>) -> Decision {
    let mut all: Vec<Choice> = beams
        .enumerate()
        .flat_map(|(parent, (sum, draws))| {
            draws.iter().map(move |&draw| Choice {
                parent,
                draw,
                logprob: sum + f64::from(draw.logprob),
            })
        })
        .collect();
    all.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
    let mut decision = Decision::default();
    for (rank, choice) in all.into_iter().enumerate() {
        if choice.draw.ends {
            // An end that `width` others beat would not be kept.
            if rank < width {
                decision.finished.push(choice);
            }
        } else if decision.live.len() < width {
            decision.live.push(choice);
        }
    }
    decision
}

/// A beam's score: the sum of its log probabilities over its length to the power of the penalty.
pub(crate) fn score(beam: &Beam, logprob: f64, length: usize) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
    let length = length.max(1) as f64;
    logprob / libm::pow(length, beam.length_penalty)
}

/// Whether the search is over. `worst` is the lowest score of the best `width` finished beams, where there
/// are that many; `best_live` the highest sum of a live beam of `length` generated tokens.
pub(crate) fn is_over(beam: &Beam, worst: Option<f64>, best_live: f64, length: usize) -> bool {
    match worst {
        None => false,
        Some(_) if beam.early_stopping => true,
        Some(worst) => worst >= score(beam, best_live, length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(token: u32, logprob: f32, ends: bool) -> Draw {
        Draw {
            token,
            logprob,
            ends,
        }
    }

    #[test]
    fn the_best_continuations_win_whoever_they_continue() {
        let a = [draw(1, -0.1, false), draw(2, -0.2, false)];
        let b = [draw(3, -0.1, false), draw(4, -5.0, false)];
        let d = choose(2, [(-1.0, &a[..]), (-3.0, &b[..])].into_iter());
        let live: Vec<_> = d.live.iter().map(|c| (c.parent, c.draw.token)).collect();
        assert_eq!(live, [(0, 1), (0, 2)]);
    }

    #[test]
    fn an_end_counts_only_among_the_best() {
        let a = [
            draw(1, -0.1, false),
            draw(9, -0.2, true),
            draw(2, -0.3, false),
            draw(9, -0.4, true),
        ];
        let d = choose(2, [(0.0, &a[..])].into_iter());
        assert_eq!(d.finished.len(), 1);
        assert_eq!(d.live.len(), 2);
    }
}
