//! How far predictions are from what was printed.

use super::figure::Figure;
use super::predict::{Prediction, tokens_follow_length};
use super::record::Reported;
use super::version::EngineName;
use crate::engine::{Engine, Version};
use crate::evaluate::evaluate;
use crate::settings::Settings;
use crate::term::Region;
use plimsoll_units::Bytes;

/// One figure, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Which.
    pub figure: Figure,
    /// Predicted, or why not.
    pub predicted: Result<super::Estimate, String>,
    /// Printed, if it was.
    pub reported: Option<f64>,
    /// Signed error, percent, where both are there.
    pub error_pct: Option<f64>,
    /// Whether the printed figure lies within the interval, rounding allowed for.
    pub inside: Option<bool>,
    /// Whether the prediction, rounded as the engine rounds, is the printed figure.
    pub same_print: Option<bool>,
}

/// Errors of one term over many records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Records that report it and were predicted.
    pub n: u64,
    /// Records that report it and for which a bound is known: no error counts them.
    pub bounds: u64,
    /// Bounds that the printed figure keeps.
    pub bounds_kept: u64,
    /// Records that report it and were not.
    pub unpredicted: u64,
    /// Mean of absolute errors, percent.
    pub mean_abs_pct: Option<f64>,
    /// Their median.
    pub median_abs_pct: Option<f64>,
    /// Their 95th percentile, nearest rank.
    pub p95_abs_pct: Option<f64>,
    /// Mean of signed errors: above zero where predictions are too large.
    pub mean_pct: Option<f64>,
    /// The record with the largest absolute error, and that error.
    pub worst: Option<(String, f64)>,
    /// Share of printed figures within the interval, percent.
    pub interval_coverage_pct: Option<f64>,
    /// Records whose prediction prints as the very same figure.
    pub same_print: u64,
}

/// What was printed of `figure`.
///
/// A negative KV budget is no pool: such a start is judged as one that failed.
fn reported(r: &Reported, figure: Figure) -> Option<f64> {
    match figure {
        Figure::Weights => r.weights_gib.or(r.weights_buffer_mib.map(|m| m / 1024.0)),
        Figure::Activation => r.activation_gib,
        Figure::NonTorch => r.non_torch_gib,
        Figure::KvPool => r.kv_available_gib.filter(|g| *g >= 0.0),
        Figure::KvTokens => r.kv_tokens,
        Figure::MaxConcurrency => r.max_concurrency,
        Figure::KvBuffer => r.kv_buffer_mib,
        Figure::ComputeBuffer => r.compute_buffer_mib,
        Figure::GraphEstimate => r.graph_estimate_gib,
    }
}

/// Judges one record: every figure that is predicted or printed.
#[must_use]
pub fn judge(p: &Prediction, r: &Reported) -> Vec<Judged> {
    Figure::ALL
        .iter()
        .filter_map(|&figure| {
            let printed = reported(r, figure);
            let predicted = p
                .figures
                .iter()
                .find(|(f, _)| *f == figure)
                .map(|(_, e)| e.clone());
            match (predicted, printed) {
                (None, None) => None,
                (None, Some(_)) => Some(judge_figure(
                    figure,
                    Err(format!("not a figure of {}", p.engine.name())),
                    printed,
                )),
                (Some(predicted), _) => Some(judge_figure(figure, predicted, printed)),
            }
        })
        .collect()
}

/// Judges one figure.
#[must_use]
pub fn judge_figure(
    figure: Figure,
    predicted: Result<super::Estimate, String>,
    reported: Option<f64>,
) -> Judged {
    let both = match (&predicted, reported) {
        (Ok(e), Some(r)) => Some((*e, r)),
        _ => None,
    };
    // Half a unit of the last printed digit.
    let half = 0.5 / 10_f64.powi(i32::try_from(figure.decimals()).unwrap_or(0));
    // Rounding of decimal fractions in binary.
    let slack = half * 1.000_001;
    Judged {
        figure,
        error_pct: both.and_then(|(e, r)| {
            let divisor = r.max(figure.least_divisor());
            (divisor > 0.0).then(|| 100.0 * (e.value - r) / divisor)
        }),
        inside: both.map(|(e, r)| r >= e.low - slack && r <= e.high + slack),
        same_print: both.map(|(e, r)| (e.value - r).abs() <= slack),
        predicted,
        reported,
    }
}

/// Tokens of a printed pool under the predicted layout: what is wrong with the blocks, apart from
/// what is wrong with the pool. The interval is that of the pool's rounding.
#[must_use]
pub fn tokens_given_pool(p: &Prediction, r: &Reported) -> Option<Judged> {
    let e = p.evaluation.as_ref()?;
    let [stage] = e.stages.as_slice() else {
        return None;
    };
    let gib = r.kv_available_gib.filter(|g| *g > 0.0)?;
    r.kv_tokens?;
    if p.engine != EngineName::TensorRtLlm {
        p.release?;
    }
    let sglang = p.engine == EngineName::SgLang;
    let tokens = |gib: f64| -> Option<f64> {
        let pool = Bytes::from_gib(gib.max(0.0)).ok()?;
        let c = stage.kv.capacity(pool, e.max_model_len).ok()?;
        if sglang {
            // It prints what the tokens take, not what was divided.
            let blocks = pool.get() / c.bytes_per_block.get().max(1);
            #[allow(clippy::cast_precision_loss, reason = "a figure for comparison")]
            return Some(blocks.saturating_mul(c.block_size) as f64);
        }
        #[allow(clippy::cast_precision_loss, reason = "a figure for comparison")]
        Some(c.tokens as f64)
    };
    let estimate = super::Estimate {
        value: tokens(gib)?,
        low: tokens(gib - 0.005)?,
        high: tokens(gib + 0.005)?,
        kind: "derived",
    };
    let open = |s: &Settings| s.max_model_len.is_none();
    if p.settings.as_ref().is_some_and(open) && tokens_follow_length(e) {
        return None;
    }
    Some(judge_figure(Figure::KvTokens, Ok(estimate), r.kv_tokens))
}

/// vLLM's printed estimate of graph memory against ours. Releases before 0.21 print it and take
/// nothing off, so the prediction is that of the first which does.
#[must_use]
pub fn graph_estimate(p: &Prediction, r: &Reported) -> Option<Judged> {
    r.graph_estimate_gib?;
    let release = p.release?;
    if release < Version::new(0, 18) || p.evaluation.as_ref()?.deployment.device.is_unlimited() {
        return None;
    }
    let e = p.evaluation.as_ref()?;
    let settings = Settings {
        engine: Engine::Vllm(release.max(Version::new(0, 21))),
        ..p.settings.clone()?
    };
    let e = evaluate(p.spec.as_ref()?, &e.deployment, &settings, &e.load).ok()?;
    let term = e
        .stages
        .first()?
        .terms
        .iter()
        .find(|t| t.region == Region::Graphs)?;
    let estimate = super::Estimate {
        value: term.bytes.gib(),
        low: term.low().gib(),
        high: term.high().gib(),
        kind: term.kind.name(),
    };
    Some(judge_figure(
        Figure::GraphEstimate,
        Ok(estimate),
        r.graph_estimate_gib,
    ))
}

/// Adds up judged figures of one term; `items` are record ids with their judgement.
#[must_use]
pub fn metrics<'a>(items: impl IntoIterator<Item = (&'a str, &'a Judged)>) -> Metrics {
    let mut m = Metrics::default();
    let mut errors: Vec<f64> = Vec::new();
    let mut signed = 0.0;
    let mut inside = 0_u64;
    for (id, j) in items {
        if j.reported.is_none() {
            continue;
        }
        let Some(e) = j.error_pct else {
            m.unpredicted += 1;
            continue;
        };
        if matches!(&j.predicted, Ok(p) if p.kind == "bound") {
            m.bounds += 1;
            m.bounds_kept += u64::from(j.inside == Some(true));
            continue;
        }
        m.n += 1;
        signed += e;
        errors.push(e.abs());
        inside += u64::from(j.inside == Some(true));
        m.same_print += u64::from(j.same_print == Some(true));
        if m.worst.as_ref().is_none_or(|(_, w)| e.abs() > w.abs()) {
            m.worst = Some((id.to_owned(), e));
        }
    }
    if errors.is_empty() {
        return m;
    }
    errors.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss, reason = "counts of records")]
    let n = errors.len() as f64;
    #[allow(clippy::cast_precision_loss, reason = "counts of records")]
    let covered = inside as f64;
    m.mean_abs_pct = Some(errors.iter().sum::<f64>() / n);
    m.mean_pct = Some(signed / n);
    let mid = errors.len() / 2;
    m.median_abs_pct = Some(if errors.len() % 2 == 1 {
        errors[mid]
    } else {
        f64::midpoint(errors[mid - 1], errors[mid])
    });
    // Nearest rank: the smallest error that at least 95 % do not exceed.
    let rank = (errors.len() * 95).div_ceil(100);
    m.p95_abs_pct = Some(errors[rank.saturating_sub(1)]);
    m.interval_coverage_pct = Some(100.0 * covered / n);
    m
}

#[cfg(test)]
mod tests {
    use super::super::Estimate;
    use super::*;

    fn judged(value: f64, reported: f64) -> Judged {
        judge_figure(
            Figure::KvPool,
            Ok(Estimate {
                value,
                low: value - 1.0,
                high: value + 1.0,
                kind: "calibrated",
            }),
            Some(reported),
        )
    }

    #[test]
    fn errors_are_relative_to_at_least_one_gib() {
        assert_eq!(judged(11.0, 10.0).error_pct, Some(10.0));
        assert_eq!(judged(0.6, 0.5).error_pct.map(f64::round), Some(10.0));
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let all: Vec<Judged> = (1..=20)
            .map(|i| judged(100.0 + f64::from(i), 100.0))
            .collect();
        let m = metrics(all.iter().map(|j| ("x", j)));
        assert_eq!(
            (m.n, m.median_abs_pct, m.p95_abs_pct),
            (20, Some(10.5), Some(19.0))
        );
        assert_eq!(m.interval_coverage_pct, Some(5.0));
        assert_eq!(m.worst, Some(("x".to_owned(), 20.0)));
    }

    #[test]
    fn a_bound_is_kept_or_not_and_has_no_error() {
        let bound = |reported| {
            judge_figure(
                Figure::Activation,
                Ok(Estimate {
                    value: 2.0,
                    low: 0.0,
                    high: 2.0,
                    kind: "bound",
                }),
                Some(reported),
            )
        };
        let (kept, broken) = (bound(1.0), bound(3.0));
        let m = metrics([("a", &kept), ("b", &broken)]);
        assert_eq!(
            (m.n, m.unpredicted, m.bounds, m.bounds_kept, m.mean_abs_pct),
            (0, 0, 2, 1, None)
        );
    }

    #[test]
    fn nothing_is_dropped_silently() {
        let refused = judge_figure(Figure::Weights, Err("no".to_owned()), Some(1.0));
        let m = metrics([("a", &refused)]);
        assert_eq!((m.n, m.unpredicted, m.mean_abs_pct), (0, 1, None));
    }
}
