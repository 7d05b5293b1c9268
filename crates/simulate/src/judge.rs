//! [`Judge`]: whether a server keeps a service level at the rate of a run, as far as a run that ends can tell.
//!
//! A run starts with an empty server, and an overloaded one looks good until its queue has grown. So the first
//! tenth of the requests is not judged; of the rest, and of its second half alone, enough must keep the level; and
//! whoever comes last must not wait longer than whoever came first by more than a small share of the time between
//! them: that share is how much faster requests come than they are served.

use plimsoll_report::simulation::Limit;
use plimsoll_units::Nanos;

use crate::record::{Finished, Sink, State};
use crate::recorder::{Counts, Recorder, Slo};

/// Parts of a run: the first is warm-up, and waits are compared between the second and the last.
const PARTS: usize = 10;

/// A [`Recorder`] that also remembers every request.
#[derive(Clone, Debug)]
pub struct Judge {
    recorder: Recorder,
    slo: Slo,
    requests: Vec<Outcome>,
}

/// What came of one request.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    arrived: Nanos,
    /// Time to the first token; `None` where it was refused.
    wait: Option<Nanos>,
    kept_ttft: bool,
    kept_per_token: bool,
}

impl Outcome {
    fn kept(&self) -> bool {
        self.kept_ttft && self.kept_per_token
    }
}

/// What a run says of a service level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Requests of the run.
    pub requests: u64,
    /// Time from the first arrival to the last.
    pub span: Nanos,
    /// Requests judged.
    pub judged: u64,
    /// Share of them that kept the level.
    pub share: f64,
    /// Share of their second half that did.
    pub second_half_share: f64,
    /// How much longer the last tenth of the requests waited for a first token than the second tenth, on average,
    /// in seconds; negative where it waited less.
    pub wait_growth_s: f64,
    /// What broke the level; `None` where it was kept.
    pub limited_by: Option<Limit>,
}

impl Judge {
    /// A judge of this level.
    #[must_use]
    pub fn new(recorder: Recorder, slo: Slo) -> Self {
        Self {
            recorder,
            slo,
            requests: Vec::new(),
        }
    }

    /// The run in figures, and the verdict. `growth` is the share of the run's span by which waits may grow.
    #[must_use]
    pub fn verdict(mut self, growth: f64) -> (Recorder, Verdict) {
        // Requests end in any order.
        self.requests.sort_by_key(|r| r.arrived);
        let verdict = judged(&self.requests, &self.slo, growth);
        (self.recorder, verdict)
    }
}

fn judged(all: &[Outcome], slo: &Slo, growth: f64) -> Verdict {
    let n = all.len();
    let part = (n / PARTS).max(1).min(n);
    // A run of one request has nothing to warm up with.
    let judged = &all[(n / PARTS)..];
    let second = &judged[judged.len() / 2..];
    let span = match (all.first(), all.last()) {
        (Some(a), Some(b)) => b.arrived.0 - a.arrived.0,
        _ => 0,
    };
    let first_waits = &judged[..part.min(judged.len())];
    let wait_growth_s = mean_wait_s(&all[n - part..]) - mean_wait_s(first_waits);
    let grows = wait_growth_s > growth * span as f64 / 1e9 && n > PARTS;
    let broken = [judged, second]
        .into_iter()
        .find(|part| !slo.attained(kept(part), part.len() as u64));
    Verdict {
        requests: n as u64,
        span: Nanos(span),
        judged: judged.len() as u64,
        share: share(judged),
        second_half_share: share(second),
        wait_growth_s,
        limited_by: match broken {
            Some(part) => Some(culprit(part)),
            None => grows.then_some(Limit::Queue),
        },
    }
}

fn kept(part: &[Outcome]) -> u64 {
    part.iter().filter(|r| r.kept()).count() as u64
}

fn share(part: &[Outcome]) -> f64 {
    kept(part) as f64 / part.len().max(1) as f64
}

fn mean_wait_s(part: &[Outcome]) -> f64 {
    let waits: Vec<u64> = part.iter().filter_map(|r| r.wait).map(|w| w.0).collect();
    let sum: u128 = waits.iter().map(|w| u128::from(*w)).sum();
    sum as f64 / waits.len().max(1) as f64 / 1e9
}

/// What most of the requests that did not keep the level failed by.
fn culprit(part: &[Outcome]) -> Limit {
    let count = |f: fn(&Outcome) -> bool| part.iter().filter(|r| f(r)).count();
    let refused = count(|r| r.wait.is_none());
    let ttft = count(|r| r.wait.is_some() && !r.kept_ttft);
    let later = count(|r| r.wait.is_some() && !r.kept_per_token);
    if refused > ttft.max(later) {
        Limit::Refused
    } else if ttft >= later {
        Limit::Ttft
    } else {
        Limit::Itl
    }
}

impl Sink for Judge {
    fn state(&mut self, at: Nanos, state: &State) {
        self.recorder.state(at, state);
    }

    fn token(&mut self, gap: Nanos) {
        self.recorder.token(gap);
    }

    fn finished(&mut self, f: &Finished) {
        self.recorder.finished(f);
        self.requests.push(Outcome {
            arrived: f.arrived,
            wait: Some(Nanos(f.first_token.0.saturating_sub(f.arrived.0))),
            kept_ttft: self.slo.kept_ttft(f),
            kept_per_token: self.slo.kept_per_token(f),
        });
    }

    fn refused(&mut self, at: Nanos) {
        self.recorder.refused(at);
        self.requests.push(Outcome {
            arrived: at,
            wait: None,
            kept_ttft: false,
            kept_per_token: false,
        });
    }

    fn count(&mut self, at: Nanos, counts: &Counts) {
        self.recorder.count(at, counts);
    }

    fn pages(&mut self, held: u64) {
        self.recorder.pages(held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::RecorderConfig;

    const SECOND: u64 = 1_000_000_000;

    /// The verdict on requests that arrive one a second, wait as `wait_ms` says of their number and then take
    /// `gap_ms` per token; `None` is refused. They end in the opposite order.
    fn verdict(slo: &Slo, n: u64, of: impl Fn(u64) -> Option<(u64, u64)>) -> Verdict {
        let mut judge = Judge::new(Recorder::new(RecorderConfig::default()), *slo);
        for i in (0..n).rev() {
            let arrived = Nanos(i * SECOND);
            let Some((wait_ms, gap_ms)) = of(i) else {
                judge.refused(arrived);
                continue;
            };
            let first = arrived.0 + wait_ms * 1_000_000;
            judge.finished(&Finished {
                arrived,
                first_token: Nanos(first),
                ended: Nanos(first + 9 * gap_ms * 1_000_000),
                prompt_tokens: 1,
                output_tokens: 10,
                longest_output: 10,
                cached_tokens: 0,
                swaps: 0,
                recomputes: 0,
                tenant: 0,
            });
        }
        judge.verdict(0.01).1
    }

    fn slo(ttft_ms: Option<u64>, gap_ms: Option<u64>) -> Slo {
        let ms = |n: u64| Nanos(n * 1_000_000);
        Slo {
            ttft: ttft_ms.map(ms),
            per_token: gap_ms.map(ms),
            attain: 0.9,
        }
    }

    #[test]
    fn a_steady_run_is_judged_after_its_warm_up() {
        let both = slo(Some(100), Some(10));
        // The first tenth breaks it, and 5 % of the rest.
        let v = verdict(&both, 1000, |i| {
            Some(if i < 100 || i % 20 == 0 {
                (900, 5)
            } else {
                (90, 5)
            })
        });
        assert_eq!((v.requests, v.judged, v.limited_by), (1000, 900, None));
        assert_eq!(v.span, Nanos(999 * SECOND));
        assert!((v.share - 0.95).abs() < 1e-9 && (v.second_half_share - 0.95).abs() < 0.01);
    }

    #[test]
    fn the_bound_that_is_broken_is_named() {
        let both = slo(Some(100), Some(10));
        assert_eq!(
            verdict(&both, 100, |_| Some((101, 5))).limited_by,
            Some(Limit::Ttft)
        );
        assert_eq!(
            verdict(&both, 100, |_| Some((99, 11))).limited_by,
            Some(Limit::Itl)
        );
        let refusing = verdict(&both, 100, |i| (i % 5 > 0).then_some((99, 5)));
        assert_eq!(refusing.limited_by, Some(Limit::Refused));
    }

    #[test]
    fn a_second_half_that_breaks_it_counts() {
        let ttft = slo(Some(100), None);
        // 8 % of all, but 16 % of the second half.
        let v = verdict(&ttft, 1000, |i| {
            Some((if i >= 550 && i % 6 == 0 { 200 } else { 50 }, 1))
        });
        assert!(v.share > 0.9 && v.second_half_share < 0.9, "{v:?}");
        assert_eq!(v.limited_by, Some(Limit::Ttft));
    }

    #[test]
    fn a_queue_that_grows_is_no_steady_state_whatever_the_level() {
        let later = slo(None, Some(10));
        // Requests come 2 % faster than they are served.
        let v = verdict(&later, 1000, |i| Some((20 * i, 5)));
        assert_eq!((v.share, v.limited_by), (1.0, Some(Limit::Queue)));
        // Waits that are long, and stay as long.
        let v = verdict(&later, 1000, |i| Some((20_000 + i % 7, 5)));
        assert_eq!(v.limited_by, None);
    }

    #[test]
    fn runs_of_few_requests_are_judged() {
        let both = slo(Some(100), Some(10));
        assert_eq!(verdict(&both, 1, |_| Some((99, 5))).limited_by, None);
        assert!(verdict(&both, 1, |_| Some((101, 5))).limited_by.is_some());
        assert_eq!(verdict(&both, 3, |_| Some((99, 5))).judged, 3);
        assert_eq!(verdict(&both, 0, |_| None).requests, 0);
    }
}
