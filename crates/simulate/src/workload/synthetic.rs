//! [`Synthetic`]: requests drawn from distributions, each from a stream of its own.

use super::error::{WorkloadError, bad};
use super::lengths::Sampler;
use super::random::{Clock, Stream, Uniform};
use super::spec::{FanSpec, PrefixSpec, SyntheticSpec, Tenant};
use crate::{Arrival, Content, Fan};

/// Prefixes to choose from: their cumulative weights are held, 8 bytes each.
const PREFIXES_MAX: u64 = 1 << 20;
/// Points of the input distribution over which the output's mean is solved, where the input
/// limits the output: the error is far below one token.
const INPUT_POINTS: u32 = 64;

/// Requests without end.
#[derive(Clone, Debug)]
pub(super) struct Synthetic {
    clock: Clock,
    input: (Sampler, Uniform),
    output: (Sampler, Uniform),
    max_total: Option<u64>,
    prefix: Option<Prefixes>,
    fan: Option<(FanSpec, Uniform)>,
    tenants: Option<Tenants>,
}

#[derive(Clone, Debug)]
struct Prefixes {
    spec: PrefixSpec,
    choice: Choice,
    uniform: Uniform,
}

#[derive(Clone, Debug)]
struct Tenants {
    list: Vec<Tenant>,
    choice: Choice,
    uniform: Uniform,
}

/// A choice among weighted things.
#[derive(Clone, Debug)]
struct Choice {
    cumulative: Vec<f64>,
}

impl Synthetic {
    pub(super) fn new(spec: &SyntheticSpec, seed: u64) -> Result<Self, WorkloadError> {
        let stream = |s| Uniform::new(seed, s);
        let (input, output) = lengths(spec)?;
        let prefix = match spec.prefix {
            None => None,
            Some(p) => Some(Prefixes {
                choice: prefix_choice(p)?,
                spec: p,
                uniform: stream(Stream::Prefix),
            }),
        };
        if let Some(f) = spec.fan {
            share("fan", f.share)?;
            if matches!(f.fan, Fan::Parallel(0) | Fan::Beam(0)) {
                return Err(bad("fan", "0 sequences: a request has at least 1"));
            }
        }
        let tenants = if spec.tenants.is_empty() {
            None
        } else {
            Some(Tenants {
                choice: Choice::new("tenants", spec.tenants.iter().map(|t| t.weight))?,
                list: spec.tenants.clone(),
                uniform: stream(Stream::Tenant),
            })
        };
        Ok(Self {
            clock: Clock::new(spec.arrivals, seed)?,
            input: (input, stream(Stream::Input)),
            output: (output, stream(Stream::Output)),
            max_total: spec.max_total,
            prefix,
            fan: spec.fan.map(|f| (f, stream(Stream::Fan))),
            tenants,
        })
    }

    pub(super) fn next(&mut self) -> Result<Arrival, WorkloadError> {
        let at = self.clock.next()?;
        let cap = self.max_total.map(|t| t - self.output.0.min());
        let mut prompt_tokens = self.input.0.quantile(self.input.1.next(), cap);
        // `cap` leaves room for the shortest output.
        let cap = self.max_total.map(|t| t - prompt_tokens);
        let output_tokens = self.output.0.quantile(self.output.1.next(), cap);
        let content = self.prefix.as_mut().map_or(Content::Unique, Prefixes::draw);
        if let Content::SharedPrefix { tokens, .. } = content {
            // Both are below 2^32.
            prompt_tokens += tokens;
        }
        let fan = self.fan.as_mut().map_or(Fan::One, |(spec, uniform)| {
            if uniform.next() < spec.share {
                spec.fan
            } else {
                Fan::One
            }
        });
        let (tenant, priority) = self.tenants.as_mut().map_or((0, 0), Tenants::draw);
        Ok(Arrival {
            at,
            prompt_tokens,
            output_tokens,
            content,
            fan,
            tenant,
            priority,
        })
    }
}

/// The two samplers; the output's mean is solved over what inputs leave of the total.
fn lengths(spec: &SyntheticSpec) -> Result<(Sampler, Sampler), WorkloadError> {
    let Some(total) = spec.max_total else {
        return Ok((
            Sampler::new("in", &spec.input, &[])?,
            Sampler::new("out", &spec.output, &[])?,
        ));
    };
    // Only the shortest lengths are wanted of these, whatever their means.
    let least = |what, l| Sampler::new(what, l, &[]).map(|s| s.min());
    let (least_in, least_out) = (least("in", &spec.input)?, least("out", &spec.output)?);
    let Some(input_cap) = total.checked_sub(least_out).filter(|&c| c >= least_in) else {
        return Err(bad(
            "total",
            format!("{total} tokens: the shortest request has {least_in} and {least_out}"),
        ));
    };
    let input = Sampler::new("in", &spec.input, &[input_cap])?;
    let caps: Vec<u64> = (0..INPUT_POINTS)
        .map(|i| (f64::from(i) + 0.5) / f64::from(INPUT_POINTS))
        .map(|u| total - input.quantile(u, Some(input_cap)))
        .collect();
    let output = Sampler::new("out", &spec.output, &caps)?;
    Ok((input, output))
}

fn prefix_choice(p: PrefixSpec) -> Result<Choice, WorkloadError> {
    share("prefix", p.share)?;
    if !(1..=PREFIXES_MAX).contains(&p.count) || !(1..1 << 32).contains(&p.tokens) {
        return Err(bad(
            "prefix",
            format!(
                "{} prefixes of {} tokens: from 1 to {PREFIXES_MAX}, of 1 to 2^32 - 1 tokens",
                p.count, p.tokens
            ),
        ));
    }
    if !(0.0..=10.0).contains(&p.zipf) {
        return Err(bad(
            "prefix",
            format!("Zipf exponent {}: must be in 0 to 10", p.zipf),
        ));
    }
    Choice::new(
        "prefix",
        (1..=p.count).map(|i| libm::pow(i as f64, -p.zipf)),
    )
}

fn share(what: &'static str, share: f64) -> Result<(), WorkloadError> {
    if (0.0..=1.0).contains(&share) {
        return Ok(());
    }
    Err(bad(what, format!("share {share}: must be in 0 to 1")))
}

impl Prefixes {
    /// Draws twice whatever comes out, so that another share leaves the choices as they are.
    fn draw(&mut self) -> Content {
        let (has_one, which) = (self.uniform.next(), self.uniform.next());
        if has_one >= self.spec.share {
            return Content::Unique;
        }
        Content::SharedPrefix {
            id: self.choice.pick(which) as u64,
            tokens: self.spec.tokens,
        }
    }
}

impl Tenants {
    fn draw(&mut self) -> (u32, i32) {
        let i = self.choice.pick(self.uniform.next());
        let number = u32::try_from(i).unwrap_or(u32::MAX);
        (number, self.list.get(i).map_or(0, |t| t.priority))
    }
}

impl Choice {
    fn new(what: &'static str, weights: impl Iterator<Item = f64>) -> Result<Self, WorkloadError> {
        let mut sum = 0.0;
        let mut cumulative = Vec::new();
        for weight in weights {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(bad(what, format!("weight {weight}: must be 0 or above")));
            }
            sum += weight;
            cumulative.push(sum);
        }
        if sum <= 0.0 || !sum.is_finite() {
            return Err(bad(what, "the weights add up to nothing"));
        }
        Ok(Self { cumulative })
    }

    fn pick(&self, u: f64) -> usize {
        let sum = self.cumulative.last().copied().unwrap_or(0.0);
        let i = self.cumulative.partition_point(|&c| c <= u * sum);
        i.min(self.cumulative.len().saturating_sub(1))
    }
}
