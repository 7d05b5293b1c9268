//! Lengths of prompts and outputs: the paper's means, and spreads that it does not print.

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, StandardNormal};

use super::{Dataset, MAX_TOKENS, float, whole};

/// How output lengths spread: the distribution of their logarithm, but for its place and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Lognormal: the most outputs near the maximum length.
    Lognormal,
    /// Weibull.
    Weibull,
    /// A power of a uniform variate: no output beyond a longest one.
    Power,
}

impl Shape {
    /// A draw of the standard logarithm.
    fn sample(self, rng: &mut ChaCha8Rng) -> f64 {
        match self {
            Self::Lognormal => StandardNormal.sample(rng),
            Self::Weibull => {
                let x: f64 = Exp1.sample(rng);
                x.ln()
            }
            Self::Power => {
                let x: f64 = Exp1.sample(rng);
                -x
            }
        }
    }

    /// The density of the standard logarithm, up to a factor.
    fn density(self, z: f64) -> f64 {
        match self {
            Self::Lognormal => (-z * z / 2.0).exp(),
            Self::Weibull => (z - z.exp()).exp(),
            Self::Power => z.exp(),
        }
    }

    /// Beyond these lies less than one in ten thousand.
    const fn reach(self) -> (f64, f64) {
        match self {
            Self::Lognormal => (-5.0, 5.0),
            Self::Weibull => (-10.0, 3.0),
            Self::Power => (-10.0, 0.0),
        }
    }
}

/// Prompt and output lengths, cut at the maximum length in sum. Prompts are lognormal, and a prompt's
/// length says nothing of its output's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Place and width of the logarithm.
    prompt: (f64, f64),
    output: (f64, f64),
    shape: Shape,
}

/// Steps of the quadrature, on each axis.
const STEPS: u32 = 160;

/// The width of the logarithm of a lognormal variate with this coefficient of variation.
fn lognormal_width(cv: f64) -> f64 {
    (1.0 + cv * cv).ln().sqrt()
}

impl Lengths {
    /// Lengths of which, after the cut, the means are the data set's. The coefficient of variation of
    /// prompts and the width of outputs' logarithm are those before it.
    #[must_use]
    pub fn new(dataset: &Dataset, prompt_cv: f64, shape: Shape, output_width: f64) -> Self {
        let mut lengths = Self {
            prompt: (dataset.prompt_mean.ln(), lognormal_width(prompt_cv)),
            output: (dataset.output_mean.ln(), output_width),
            shape,
        };
        // The first correction is the mean of the shape; the cut takes a little off, which the others
        // give back.
        for _ in 0..20 {
            let m = lengths.moments();
            lengths.prompt.0 += (dataset.prompt_mean / m.prompt).ln();
            lengths.output.0 += (dataset.output_mean / m.output).ln();
        }
        lengths
    }

    /// One request: tokens of its prompt and of its output, each at least 1.
    pub fn sample(&self, rng: &mut ChaCha8Rng) -> (u64, u64) {
        let length = |(place, width): (f64, f64), z: f64| whole((place + width * z).exp()).max(1);
        loop {
            let prompt = length(self.prompt, Shape::Lognormal.sample(rng));
            let output = length(self.output, self.shape.sample(rng));
            if prompt.saturating_add(output) <= MAX_TOKENS {
                return (prompt, output);
            }
        }
    }

    /// Live tokens of a running request, averaged over its steps.
    #[must_use]
    pub fn live_mean(&self) -> f64 {
        let m = self.moments();
        m.product / m.output + m.output_square / (2.0 * m.output)
    }

    fn moments(&self) -> Moments {
        let grid = |(place, width): (f64, f64), shape: Shape| -> Vec<(f64, f64)> {
            let (from, to) = shape.reach();
            (0..=STEPS)
                .map(|i| {
                    let z = from + (to - from) * f64::from(i) / f64::from(STEPS);
                    // The trapezoidal rule.
                    let end = if i == 0 || i == STEPS { 0.5 } else { 1.0 };
                    ((place + width * z).exp(), end * shape.density(z))
                })
                .collect()
        };
        let prompts = grid(self.prompt, Shape::Lognormal);
        let outputs = grid(self.output, self.shape);
        let (mut m, mut all) = (Moments::default(), 0.0);
        for &(p, p_weight) in &prompts {
            for &(o, o_weight) in &outputs {
                if p + o > float(MAX_TOKENS) {
                    break;
                }
                let w = p_weight * o_weight;
                all += w;
                m.prompt += w * p;
                m.output += w * o;
                m.product += w * p * o;
                m.output_square += w * o * o;
            }
        }
        Moments {
            prompt: m.prompt / all,
            output: m.output / all,
            product: m.product / all,
            output_square: m.output_square / all,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    prompt: f64,
    output: f64,
    product: f64,
    output_square: f64,
}
