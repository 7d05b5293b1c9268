//! Kernels that treat each token's row alone: norms, activations, rotary embeddings, the choice of experts.

#![allow(unsafe_code)]

use crate::cpu::Level;
use crate::lanes::{LANES, Lanes, at_level, for_levels};
use crate::math;

/// How a norm is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// x / sqrt(mean(x²) + eps).
    Rms {
        /// Added to the mean.
        eps: f32,
    },
    /// (x − mean) / sqrt(variance + eps).
    Layer {
        /// Added to the variance.
        eps: f32,
    },
}

/// Normalises one row of x, or one head of it, and multiplies by `weight`, then adds `bias`, where given.
///
/// # Panics
/// Where lengths differ.
pub fn norm(
    level: Level,
    kind: Norm,
    x: &[f32],
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    assert!(out.len() == x.len());
    assert!(weight.is_none_or(|w| w.len() == x.len()) && bias.is_none_or(|b| b.len() == x.len()));
    at_level!(level, norm_row(kind, x, weight, bias, out));
}

/// As [`norm`], in place.
///
/// # Panics
/// Where lengths differ.
pub fn norm_in_place(
    level: Level,
    kind: Norm,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    x: &mut [f32],
) {
    assert!(weight.is_none_or(|w| w.len() == x.len()) && bias.is_none_or(|b| b.len() == x.len()));
    at_level!(level, norm_row_in_place(kind, weight, bias, x));
}

for_levels!(
    norm_row,
    norm_of(kind: Norm, x: &[f32], weight: Option<&[f32]>, bias: Option<&[f32]>, out: &mut [f32])
);
for_levels!(
    norm_row_in_place,
    norm_in_place_of(kind: Norm, weight: Option<&[f32]>, bias: Option<&[f32]>, x: &mut [f32])
);

#[inline(always)]
fn norm_of<V: Lanes>(
    kind: Norm,
    x: &[f32],
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (mean, scale) = mean_and_scale::<V>(kind, x);
    for (i, (x, out)) in x.chunks(LANES).zip(out.chunks_mut(LANES)).enumerate() {
        normalised::<V>(i * LANES, x, mean, scale, weight, bias).store_some(out);
    }
}

#[inline(always)]
fn norm_in_place_of<V: Lanes>(
    kind: Norm,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    x: &mut [f32],
) {
    let (mean, scale) = mean_and_scale::<V>(kind, x);
    for (i, x) in x.chunks_mut(LANES).enumerate() {
        normalised::<V>(i * LANES, x, mean, scale, weight, bias).store_some(x);
    }
}

/// What is taken from each element, and what it is multiplied by then.
#[inline(always)]
fn mean_and_scale<V: Lanes>(kind: Norm, x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let (mean, eps) = match kind {
        Norm::Rms { eps } => (0.0, eps),
        Norm::Layer { eps } => {
            let sum = x
                .chunks(LANES)
                .fold(V::splat(0.0), |s, x| s.add(V::load_some(x, 0.0)));
            (sum.sum() / n, eps)
        }
    };
    let m = V::splat(mean);
    let squares = x.chunks(LANES).fold(V::splat(0.0), |s, x| {
        let d = V::load_some(x, mean).sub(m);
        d.fma(d, s)
    });
    (mean, 1.0 / (squares.sum() / n + eps).sqrt())
}

/// The elements of a row from `at` on, at most a register of them.
#[inline(always)]
fn normalised<V: Lanes>(
    at: usize,
    x: &[f32],
    mean: f32,
    scale: f32,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
) -> V {
    let mut y = V::load_some(x, mean)
        .sub(V::splat(mean))
        .mul(V::splat(scale));
    if let Some(w) = weight {
        y = y.mul(V::load_some(&w[at..at + x.len()], 0.0));
    }
    if let Some(b) = bias {
        y = y.add(V::load_some(&b[at..at + x.len()], 0.0));
    }
    y
}

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e^−x).
    Silu,
    /// x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2.
    GeluTanh,
    /// x (1 + erf(x / sqrt(2))) / 2.
    Gelu,
    /// max(x, 0).
    Relu,
    /// 1 / (1 + e^−x).
    Sigmoid,
}

/// `out = f(gate) * up`, where `up` is given; else `out = f(gate)`.
///
/// # Panics
/// Where lengths differ.
pub fn activate(level: Level, f: Activation, gate: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.is_none_or(|u| u.len() == out.len()));
    at_level!(level, activate_row(f, gate, up, out));
}

for_levels!(
    activate_row,
    activate_of(f: Activation, gate: &[f32], up: Option<&[f32]>, out: &mut [f32])
);

#[inline(always)]
fn activate_of<V: Lanes>(f: Activation, gate: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    let s = V::splat;
    for (i, (g, out)) in gate.chunks(LANES).zip(out.chunks_mut(LANES)).enumerate() {
        let x = V::load_some(g, 0.0);
        let mut y = match f {
            Activation::Silu => x.div(s(0.0).sub(x).exp().add(s(1.0))),
            Activation::GeluTanh => {
                let cube = x.mul(x).mul(x);
                let t = cube.fma(s(0.044_715), x).mul(s(0.797_884_6)).tanh();
                x.mul(s(0.5)).mul(t.add(s(1.0)))
            }
            Activation::Gelu => {
                // Models with it are old and small: lane by lane.
                let erf = x
                    .array()
                    .map(|x| math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
                x.mul(s(0.5)).mul(V::load(&erf).add(s(1.0)))
            }
            Activation::Relu => x.max(s(0.0)),
            Activation::Sigmoid => s(1.0).div(s(0.0).sub(x).exp().add(s(1.0))),
        };
        if let Some(up) = up {
            y = y.mul(V::load_some(&up[i * LANES..i * LANES + g.len()], 0.0));
        }
        y.store_some(out);
    }
}

/// `out = (u + 1) · g · sigmoid(alpha · g)`, of pairs of a gate g, at most `limit`, and an u, between −`limit` and `limit`.
///
/// # Panics
/// Where `x` is not twice as long as `out`.
pub fn clamped_swiglu(level: Level, limit: f32, alpha: f32, x: &[f32], out: &mut [f32]) {
    assert!(x.len() == 2 * out.len());
    at_level!(level, clamped_swiglu_row(limit, alpha, x, out));
}

for_levels!(
    clamped_swiglu_row,
    clamped_swiglu_of(limit: f32, alpha: f32, x: &[f32], out: &mut [f32])
);

#[inline(always)]
fn clamped_swiglu_of<V: Lanes>(limit: f32, alpha: f32, x: &[f32], out: &mut [f32]) {
    let s = V::splat;
    for (pairs, out) in x.chunks(2 * LANES).zip(out.chunks_mut(LANES)) {
        let (mut gate, mut up) = ([0.0; LANES], [0.0; LANES]);
        for (i, pair) in pairs.chunks_exact(2).enumerate() {
            (gate[i], up[i]) = (pair[0], pair[1]);
        }
        // In this order NaN stays.
        let gate = s(limit).min(V::load(&gate));
        let up = s(-limit).max(s(limit).min(V::load(&up)));
        let share = s(0.0).sub(gate.mul(s(alpha))).exp().add(s(1.0));
        gate.div(share).mul(up.add(s(1.0))).store_some(out);
    }
}

/// Turns the first `2 * cos.len()` elements of a head: element i with element i + `cos.len()`.
///
/// # Panics
/// Where `x` is too short or `sin` has another length than `cos`.
pub fn rotate(level: Level, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(cos.len() == sin.len() && x.len() >= 2 * cos.len());
    at_level!(level, rotate_head(x, cos, sin));
}

for_levels!(rotate_head, rotate_of(x: &mut [f32], cos: &[f32], sin: &[f32]));

#[inline(always)]
fn rotate_of<V: Lanes>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = x.split_at_mut(cos.len());
    for (i, low) in low.chunks_mut(LANES).enumerate() {
        let range = i * LANES..i * LANES + low.len();
        let high = &mut high[range.clone()];
        let (c, s) = (
            V::load_some(&cos[range.clone()], 0.0),
            V::load_some(&sin[range], 0.0),
        );
        let (a, b) = (V::load_some(low, 0.0), V::load_some(high, 0.0));
        // The product that is subtracted or added is rounded by itself, as in the models' own code.
        a.mul(c).sub(b.mul(s)).store_some(low);
        b.mul(c).add(a.mul(s)).store_some(high);
    }
}

/// How a token's experts are chosen and weighed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// Weights are shares of the scores of the chosen experts, not the scores themselves.
    pub renormalise: bool,
    /// Scores are 1 / (1 + e^−x), not shares of the softmax.
    pub sigmoid: bool,
    /// Added to scores for the choice.
    pub bias: Option<&'a [f32]>,
    /// The groups that the choice is limited to.
    pub groups: Option<ExpertGroups>,
}

/// Experts in groups: `taken` of `count`, those whose `best` best experts count most together.
#[derive(Clone, Copy, Debug)]
pub struct ExpertGroups {
    /// How many there are.
    pub count: usize,
    /// How many are taken.
    pub taken: usize,
    /// How many of its experts a group is judged by.
    pub best: usize,
}

/// A token's experts by its router's logits: the numbers of the `out.len() / 2` best, of equal ones the first,
/// ascending, then their weights.
///
/// # Panics
/// Where there are fewer logits or biases, `out` is empty, or groups do not divide the experts.
pub fn route(logits: &[f32], how: &Choice<'_>, out: &mut [f32]) {
    let (experts, weights) = out.split_at_mut(out.len() / 2);
    // The order of logits is that of their softmax. 0 is added because −0 equals it.
    let key = |e: usize| {
        let score = if how.sigmoid {
            sigmoid(logits[e])
        } else {
            logits[e]
        };
        score + how.bias.map_or(0.0, |b| b[e])
    };
    let keys: Vec<f32> = (0..logits.len()).map(key).collect();
    let mut all: Vec<usize> = match how.groups {
        Some(groups) => in_best_groups(&keys, groups),
        None => (0..logits.len()).collect(),
    };
    best_first(&keys, experts.len(), &mut all);
    let chosen = &mut all[..experts.len()];
    chosen.sort_unstable();
    let top = logits.iter().fold(f32::MIN, |top, l| top.max(*l));
    let score = |l: f32| {
        if how.sigmoid {
            sigmoid(l)
        } else {
            math::exp(l - top)
        }
    };
    for ((e, number), weight) in chosen.iter().zip(experts).zip(&mut *weights) {
        #[allow(
            clippy::cast_precision_loss,
            reason = "there are fewer than 2^24 experts"
        )]
        let exact = *e as f32;
        (*number, *weight) = (exact, score(logits[*e]));
    }
    let sum: f32 = match (how.renormalise, how.sigmoid) {
        // What DeepSeek-V3's code adds, for scores that are all 0.
        (true, true) => weights.iter().sum::<f32>() + 1e-20,
        (true, false) => weights.iter().sum(),
        (false, true) => 1.0,
        (false, false) => logits.iter().map(|l| score(*l)).sum(),
    };
    weights.iter_mut().for_each(|w| *w /= sum);
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-x))
}

/// Puts the `n` of `all` with the largest keys, of equal ones the first, at its beginning, in any order.
fn best_first(keys: &[f32], n: usize, all: &mut [usize]) {
    all.select_nth_unstable_by(n - 1, |a, b| keys[*b].total_cmp(&keys[*a]).then(a.cmp(b)));
}

/// The experts of the best groups.
fn in_best_groups(keys: &[f32], groups: ExpertGroups) -> Vec<usize> {
    let size = keys.len() / groups.count;
    assert!(size * groups.count == keys.len());
    let judged = |group: &[f32]| {
        let mut best: Vec<usize> = (0..size).collect();
        best_first(group, groups.best, &mut best);
        // The largest first, as a sum is rounded.
        let best = &mut best[..groups.best];
        best.sort_unstable_by(|a, b| group[*b].total_cmp(&group[*a]));
        best.iter().map(|e| group[*e]).sum::<f32>() + 0.0
    };
    let judged: Vec<f32> = keys.chunks(size).map(judged).collect();
    let mut order: Vec<usize> = (0..groups.count).collect();
    best_first(&judged, groups.taken, &mut order);
    let taken = order[..groups.taken].iter();
    taken.flat_map(|g| g * size..(g + 1) * size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::numbers;

    fn levels() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|l| l.is_available())
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn norms_are_right_and_alike_at_every_level() {
        for n in [1, 7, 16, 33, 576] {
            let (x, w, b) = (numbers(1, n), numbers(2, n), numbers(3, n));
            for kind in [Norm::Rms { eps: 1e-5 }, Norm::Layer { eps: 1e-5 }] {
                let mut first = Vec::new();
                for level in levels() {
                    let mut out = vec![0.0; n];
                    norm(level, kind, &x, Some(&w), Some(&b), &mut out);
                    if first.is_empty() {
                        first = bits(&out);
                    }
                    assert_eq!(first, bits(&out), "{level:?}");
                    let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                    let mean = match kind {
                        Norm::Rms { .. } => 0.0,
                        Norm::Layer { .. } => exact.iter().sum::<f64>() / n as f64,
                    };
                    let square = exact.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
                    let scale = 1.0 / (square / n as f64 + 1e-5).sqrt();
                    for i in 0..n {
                        let y = (exact[i] - mean) * scale * f64::from(w[i]) + f64::from(b[i]);
                        assert!((f64::from(out[i]) - y).abs() < 2e-6, "{kind:?} {n}: {y}");
                    }
                }
            }
        }
    }

    #[test]
    fn activations_are_right_and_alike_at_every_level() {
        let gate: Vec<f32> = (-400..400).map(|i| i as f32 / 4.0).collect();
        let up = numbers(9, gate.len());
        let exact = |f, x: f64| match f {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + (0.797_884_560_802_865 * (x + 0.044_715 * x * x * x)).tanh())
            }
            Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::Relu => x.max(0.0),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        };
        for f in [
            Activation::Silu,
            Activation::GeluTanh,
            Activation::Gelu,
            Activation::Relu,
            Activation::Sigmoid,
        ] {
            let mut first = Vec::new();
            for level in levels() {
                let mut out = vec![0.0; gate.len()];
                activate(level, f, &gate, Some(&up), &mut out);
                if first.is_empty() {
                    first = bits(&out);
                }
                assert_eq!(first, bits(&out), "{level:?}");
                for i in 0..gate.len() {
                    let y = exact(f, f64::from(gate[i])) * f64::from(up[i]);
                    let error = (f64::from(out[i]) - y).abs();
                    assert!(
                        error <= 4e-6 * y.abs().max(0.1),
                        "{f:?}({}): {error}",
                        gate[i]
                    );
                }
            }
        }
    }

    #[test]
    fn a_clamped_swiglu_is_right_and_alike_at_every_level() {
        // Gates and ups on both sides of the limit.
        let x: Vec<f32> = numbers(12, 2 * 50).iter().map(|x| x * 20.0).collect();
        assert!(x.iter().any(|x| *x > 7.0) && x.iter().any(|x| *x < -7.0));
        let mut first = Vec::new();
        for level in levels() {
            let mut out = vec![0.0; 50];
            clamped_swiglu(level, 7.0, 1.702, &x, &mut out);
            if first.is_empty() {
                first = bits(&out);
            }
            assert_eq!(first, bits(&out), "{level:?}");
            for (pair, out) in x.chunks(2).zip(&out) {
                let (g, u) = (
                    f64::from(pair[0]).min(7.0),
                    f64::from(pair[1]).clamp(-7.0, 7.0),
                );
                let y = (u + 1.0) * g / (1.0 + (-1.702 * g).exp());
                assert!(
                    (f64::from(*out) - y).abs() <= 4e-6 * y.abs().max(0.1),
                    "{pair:?}: {out}"
                );
            }
            let mut out = vec![0.0; 2];
            clamped_swiglu(level, 7.0, 1.702, &[f32::NAN, 1.0, 1.0, f32::NAN], &mut out);
            assert!(out.iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn a_route_has_the_largest_logits_ascending_and_of_equal_ones_the_first() {
        let inf = f32::INFINITY;
        let cases: [(&[f32], [f32; 2]); 7] = [
            (&[0.5, 2.0, -1.0, 1.0], [1.0, 3.0]),
            (&[3.0, 2.0, -1.0, 1.0], [0.0, 1.0]),
            (&[1.0, 1.0, 1.0, 1.0], [0.0, 1.0]),
            (&[0.0, 1.0, 1.0, 1.0], [1.0, 2.0]),
            (&[-0.0, -1.0, 0.0, 0.0], [0.0, 2.0]),
            (&[-inf, -inf, -inf, 1.0], [0.0, 3.0]),
            (&[-3.0, f32::NAN, -5.0, -2.0], [1.0, 3.0]),
        ];
        for (logits, want) in cases {
            let mut out = [0.0; 4];
            let how = Choice {
                renormalise: true,
                ..Choice::default()
            };
            route(logits, &how, &mut out);
            assert_eq!(out[..2], want, "{logits:?}");
        }
    }

    #[test]
    fn weights_of_a_route_are_shares_of_all_or_of_the_chosen() {
        let logits = numbers(11, 64);
        let exact: Vec<f64> = logits.iter().map(|l| f64::from(*l).exp()).collect();
        for renormalise in [false, true] {
            let mut out = [0.0; 16];
            let how = Choice {
                renormalise,
                ..Choice::default()
            };
            route(&logits, &how, &mut out);
            let chosen = &out[..8].iter().map(|e| *e as usize).collect::<Vec<_>>();
            let sum: f64 = if renormalise {
                chosen.iter().map(|e| exact[*e]).sum()
            } else {
                exact.iter().sum()
            };
            for (e, w) in chosen.iter().zip(&out[8..]) {
                assert!((f64::from(*w) - exact[*e] / sum).abs() < 1e-7);
            }
        }
    }

    #[test]
    fn a_route_stays_in_the_best_groups_and_biases_only_choose() {
        let logits = [2.0, -3.0, -3.0, 1.5, 1.4, -9.0, 0.0, 0.1];
        let groups = |best| {
            Some(ExpertGroups {
                count: 4,
                taken: 2,
                best,
            })
        };
        let chosen = |how: &Choice<'_>| {
            let mut out = [0.0; 6];
            route(&logits, how, &mut out);
            out
        };
        // By their best expert: pairs 0 and 1.
        let how = Choice {
            groups: groups(1),
            ..Choice::default()
        };
        assert_eq!(chosen(&how)[..3], [0.0, 1.0, 3.0]);
        // By two sigmoids together: pairs 3 (1.02) and 0 (0.93).
        let mut how = Choice {
            sigmoid: true,
            groups: groups(2),
            ..Choice::default()
        };
        let out = chosen(&how);
        assert_eq!(out[..3], [0.0, 6.0, 7.0]);
        assert_eq!(out[3..], [2.0, 0.0, 0.1].map(sigmoid));
        // A bias makes pair 2 the best and its second expert one of three, with the weight of its own score.
        let bias = [0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0];
        (how.bias, how.renormalise) = (Some(&bias[..]), true);
        let out = chosen(&how);
        assert_eq!(out[..3], [4.0, 5.0, 7.0]);
        let scores = [1.4, -9.0, 0.1].map(|x: f64| 1.0 / (1.0 + (-x).exp()));
        for (got, score) in out[3..].iter().zip(scores) {
            assert!((f64::from(*got) - score / scores.iter().sum::<f64>()).abs() < 1e-7);
        }
    }

    #[test]
    fn a_rotation_keeps_lengths_and_is_alike_at_every_level() {
        let angles: Vec<f32> = (0..20).map(|i| i as f32 / 3.0).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let mut first = Vec::new();
        for level in levels() {
            let before = numbers(4, 50);
            let mut x = before.clone();
            rotate(level, &mut x, &cos, &sin);
            if first.is_empty() {
                first = bits(&x);
            }
            assert_eq!(first, bits(&x), "{level:?}");
            assert_eq!(x[40..], before[40..]);
            for i in 0..20 {
                let long = |x: &[f32]| x[i].hypot(x[i + 20]);
                assert!((long(&x) - long(&before)).abs() < 1e-6);
            }
        }
    }
}
