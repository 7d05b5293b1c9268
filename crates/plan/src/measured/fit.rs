//! How well a fitted constant holds: on the reports it stands for, and with each model left out.
//!
//! A constant enters its term linearly, so the fit without some reports is the shipped value plus
//! the median residual of the others (the shipped values are medians too: a few runs hold memory
//! that no cause explains, and must not move the rest). "One model out" leaves out all reports
//! whose models have the same shape, so that a fine-tune does not vouch for its parent.

use plimsoll_model::ModelSpec;

use super::figure::Figure;
use super::metrics::Judged;
use super::predict::Prediction;
use super::version::EngineName;
use crate::engine::Version;
use crate::engine::vllm::Constant;

/// Further captures of the default sizes, up to 512: 51 sizes less the first.
const CAPTURED_SIZES: f64 = 50.0;

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// Ids of the reports that it stands for.
    pub records: Vec<String>,
    /// Models among them, by shape.
    pub models: usize,
    /// The value that these reports alone would give.
    pub refitted: f64,
    /// Mean absolute error of the term on them, percent.
    pub in_sample_error_pct: f64,
    /// The same, each model's reports predicted by a fit without them; `None` with one model.
    pub leave_one_out_error_pct: Option<f64>,
}

/// One report that a constant stands for.
struct Point {
    id: String,
    model: (u64, u64, usize),
    /// Reported less predicted, GiB.
    residual: f64,
    reported: f64,
    /// How often the constant enters.
    times: f64,
}

/// Judges `constant` on reports; `None` where no report shows its term.
#[must_use]
pub fn fit<'a>(
    constant: &Constant,
    reports: impl IntoIterator<Item = (&'a str, &'a Prediction, Vec<Judged>)>,
) -> Option<Fit> {
    let points: Vec<Point> = reports
        .into_iter()
        .filter_map(|(id, p, judged)| point(constant.name, id, p, &judged))
        .collect();
    if points.is_empty() {
        return None;
    }
    let mut models: Vec<(u64, u64, usize)> = points.iter().map(|p| p.model).collect();
    models.sort_unstable();
    models.dedup();
    let shift = |out: Option<(u64, u64, usize)>| {
        median(
            points
                .iter()
                .filter(|p| Some(p.model) != out)
                .map(|p| p.residual / p.times)
                .collect(),
        )
    };
    let error = |p: &Point, shift: f64| {
        // All of these terms are memory in GiB.
        let divisor = p.reported.max(Figure::NonTorch.least_divisor());
        100.0 * (p.residual - shift * p.times).abs() / divisor
    };
    #[allow(clippy::cast_precision_loss, reason = "a count of records")]
    let n = points.len() as f64;
    let in_sample = points.iter().map(|p| error(p, 0.0)).sum::<f64>() / n;
    let left_out = (models.len() > 1).then(|| {
        points
            .iter()
            .map(|p| error(p, shift(Some(p.model)).unwrap_or(0.0)))
            .sum::<f64>()
            / n
    });
    Some(Fit {
        models: models.len(),
        refitted: constant.value + shift(None).unwrap_or(0.0),
        in_sample_error_pct: in_sample,
        leave_one_out_error_pct: left_out,
        records: points.into_iter().map(|p| p.id).collect(),
    })
}

/// Whether a report belongs to a constant, and with which weight.
fn point(name: &str, id: &str, p: &Prediction, judged: &[Judged]) -> Option<Point> {
    // Constants of V0 and of SGLang rest on reports that name a month; others on those that name a release.
    let dated = name.starts_with("non_torch_v0") || name.starts_with("sglang");
    let release = p.said.number().or(p.release.filter(|_| dated));
    if name == "sglang_loading" {
        let weights = p.engine == EngineName::SgLang;
        return weights
            .then(|| residual(Figure::Weights, 1.0, id, p, judged))
            .flatten();
    }
    if name.starts_with("sglang_before") {
        // What was free is printed where it is known, and then nothing is estimated.
        let e = p.evaluation.as_ref()?;
        let ranks = e
            .deployment
            .parallel
            .tp
            .saturating_mul(e.deployment.parallel.pp);
        let known = p.settings.as_ref()?.free_before_loading.is_some();
        let mine = p.engine == EngineName::SgLang
            && !known
            && (ranks > 1) == (name == "sglang_before_ranks");
        // More taken before is less for the pool, by the share.
        return mine
            .then(|| residual(Figure::KvPool, -1.0, id, p, judged))
            .flatten();
    }
    let release = release?;
    let e = p.evaluation.as_ref()?;
    let parallel = e.deployment.parallel;
    let new = (Version::new(0, 18)..Version::new(0, 21)).contains(&release);
    let old = (Version::new(0, 11)..Version::new(0, 18)).contains(&release);
    let (tp, pp) = (parallel.tp > 1, parallel.pp > 1);
    let v0 = (Version::new(0, 6)..crate::engine::vllm::FIRST_V1).contains(&release);
    let snapshot = release.minor > 6 || release.patch >= 5;
    let times = match name {
        "non_torch_v0_one_device" => (v0 && snapshot && !tp && !pp).then_some(1.0),
        "non_torch_v0_tp" => (v0 && snapshot && (tp || pp)).then_some(1.0),
        "non_torch_v0_with_context" => (v0 && !snapshot && !tp && !pp).then_some(1.0),
        "non_torch_one_device" => (new && !tp && !pp).then_some(1.0),
        "non_torch_pp_only" => (new && !tp && pp).then_some(1.0),
        "non_torch_tp" => (new && tp).then_some(1.0),
        "non_torch_one_device_old" => (old && !tp && !pp).then_some(1.0),
        "non_torch_tp_old" => (old && tp).then_some(1.0),
        "non_torch_per_layer" => new.then(|| {
            let layers = e
                .stages
                .first()
                .map_or(0, |s| s.stage.layers.end - s.stage.layers.start);
            #[allow(clippy::cast_precision_loss, reason = "layers of a model")]
            let n = layers.saturating_mul(parallel.tp) as f64;
            n
        }),
        // Constants of the graph estimate are in MiB.
        "graph_first_piecewise" => Some(1.0 / 1024.0),
        "graph_per_layer" => {
            let layers: u64 = e
                .stages
                .first()
                .map_or(0, |s| s.stage.layers.end - s.stage.layers.start);
            #[allow(clippy::cast_precision_loss, reason = "layers of a model")]
            let n = layers as f64 * CAPTURED_SIZES / 1024.0;
            Some(n)
        }
        _ => None,
    }?;
    let figure = if name.starts_with("graph") {
        Figure::GraphEstimate
    } else {
        Figure::NonTorch
    };
    (times > 0.0)
        .then(|| residual(figure, times, id, p, judged))
        .flatten()
}

/// What a report's figure says of a constant that enters it `times` times.
fn residual(
    figure: Figure,
    times: f64,
    id: &str,
    p: &Prediction,
    judged: &[Judged],
) -> Option<Point> {
    let j = judged.iter().find(|j| j.figure == figure)?;
    let (Ok(estimate), Some(reported)) = (&j.predicted, j.reported) else {
        return None;
    };
    // Pools that a flag caps say nothing of what was free.
    if figure == Figure::KvPool && p.settings.as_ref()?.max_total_tokens.is_some() {
        return None;
    }
    Some(Point {
        id: id.to_owned(),
        model: p.spec.as_ref().map_or((0, 0, 0), shape),
        residual: reported - estimate.value,
        reported,
        times,
    })
}

/// What two checkpoints of one model have in common.
fn shape(spec: &ModelSpec) -> (u64, u64, usize) {
    (spec.hidden, spec.vocab, spec.layers.len())
}

fn median(mut all: Vec<f64>) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    let mid = all.len() / 2;
    match all.len() {
        0 => None,
        n if n % 2 == 1 => Some(all[mid]),
        _ => Some(f64::midpoint(all[mid - 1], all[mid])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
