//! Rotary frequencies, in the order of operations of transformers' `modeling_rope_utils.py` and in its f32.

use plimsoll_model::{Rope, RopeScaling};

/// Frequencies after scaling, and what cosines and sines are multiplied by.
pub(super) struct Frequencies {
    pub(super) values: Vec<f32>,
    pub(super) scale: f32,
}

/// Why a scaling cannot be lowered.
pub(super) const DYNAMIC: &str = "dynamic rotary scaling makes logits depend on how long a sequence becomes: limit the context to the trained one";

/// `None` where the scaling needs what only a sequence's length says.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "transformers computes in f32; sizes are below 2^31"
)]
pub(super) fn frequencies(rope: &Rope, context: u64) -> Option<Frequencies> {
    let dim = rope.dim;
    let exponents = (0..dim / 2).map(|i| (2 * i) as f32 / dim as f32);
    // f64 and one rounding: libraries differ in the last bit of f32 powers, and this is the nearest to all.
    let powers: Vec<f32> = exponents
        .map(|e| libm::pow(f64::from(rope.theta as f32), f64::from(e)) as f32)
        .collect();
    let plain = powers.iter().map(|p| 1.0 / p);
    let (values, scale) = match &rope.scaling {
        RopeScaling::None => (plain.collect(), 1.0),
        RopeScaling::Linear { factor } => (plain.map(|f| f / *factor as f32).collect(), 1.0),
        RopeScaling::Dynamic { trained } if context <= *trained => (plain.collect(), 1.0),
        RopeScaling::Dynamic { .. } => return None,
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original,
        } => {
            let bend = |f| llama3(f, *factor as f32, [*low, *high], *original as f64);
            (plain.map(bend).collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            fast,
            slow,
            original,
            truncate,
            attention,
        } => {
            let range = yarn_range(rope, [*fast, *slow], *original as f64, *truncate);
            (yarn(&powers, *factor as f32, range), *attention as f32)
        }
        RopeScaling::LongRope {
            divisors,
            original,
            attention,
        } => {
            let values = match divisors {
                Some([short, long]) => {
                    let divisors = if context > *original { long } else { short };
                    let pairs = divisors.iter().zip(&powers);
                    pairs.map(|(d, p)| 1.0 / (*d as f32 * p)).collect()
                }
                None => plain.collect(),
            };
            (values, *attention as f32)
        }
    };
    Some(Frequencies { values, scale })
}

#[allow(clippy::cast_possible_truncation, reason = "as transformers")]
fn llama3(f: f32, factor: f32, [low, high]: [f64; 2], original: f64) -> f32 {
    let wavelength = (2.0 * std::f64::consts::PI) as f32 / f;
    if wavelength < (original / high) as f32 {
        return f;
    }
    if wavelength > (original / low) as f32 {
        return f / factor;
    }
    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * f / factor + smooth * f
}

/// The places between which frequencies are blended.
#[allow(
    clippy::cast_precision_loss,
    clippy::suboptimal_flops,
    reason = "as transformers; sizes are below 2^31"
)]
fn yarn_range(rope: &Rope, turns: [f64; 2], original: f64, truncate: bool) -> [f64; 2] {
    let dim = rope.dim as f64;
    let place = |turns: f64| {
        (dim * libm::log(original / (turns * 2.0 * std::f64::consts::PI)))
            / (2.0 * libm::log(rope.theta))
    };
    let [mut low, mut high] = turns.map(place);
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    [low.max(0.0), high.min(dim - 1.0)]
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::suboptimal_flops,
    reason = "as transformers; there are fewer than 2^24 frequencies"
)]
fn yarn(powers: &[f32], factor: f32, [low, high]: [f64; 2]) -> Vec<f32> {
    let high = if low == high { high + 0.001 } else { high };
    let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
    let blend = |(i, p): (usize, &f32)| {
        let kept = 1.0 - ramp(i);
        1.0 / (factor * p) * (1.0 - kept) + 1.0 / p * kept
    };
    powers.iter().enumerate().map(blend).collect()
}
