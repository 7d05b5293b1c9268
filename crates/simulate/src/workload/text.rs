//! The text form of a synthetic workload, as a command line gives it.

use std::borrow::Cow;
use std::str::FromStr;

use super::error::{WorkloadError, bad, shorten};
use super::lengths::{Lengths, Quantiles};
use super::presets::{PRESETS, Preset};
use super::spec::{ArrivalProcess, FanSpec, PrefixSpec, SyntheticSpec, Tenant, WorkloadSpec};
use crate::Fan;

/// Where a lognormal of the text form ends unless told: the context of current long-context models.
const TOKENS_MAX: u64 = 131_072;

impl FromStr for SyntheticSpec {
    type Err = WorkloadError;

    /// Reads the text form.
    ///
    /// `sharegpt`, `sharegpt:rate=4,fan=parallel(4)`, `synthetic:in=lognormal(161,0.8),out=fixed(64)`:
    /// a preset or `synthetic`, then settings. `synthetic` needs `in` and `out`.
    ///
    /// | setting | value |
    /// |---|---|
    /// | `in`, `out` | `64`, `fixed(64)`, `uniform(min,max)`, `lognormal(mean,cv[,min,max])`, `quantiles(0:3,0.5:13,1:99[,mean:20])` |
    /// | `rate` | requests per second, or `inf`; 1 unless told |
    /// | `cv` | of the gaps: Gamma arrivals in place of Poisson |
    /// | `total` | longest input and output together |
    /// | `prefix` | `shared(count,tokens[,share[,zipf]])` |
    /// | `fan` | `parallel(n[,share])` or `beam(width[,share])` |
    /// | `tenants` | `weights(3,1,1)`, each optionally `weight:priority` |
    ///
    /// # Errors
    /// [`WorkloadError::BadSpec`], with what could stand there. Values are checked when the
    /// workload is opened.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (name, settings) = s.split_once(':').unwrap_or((s, ""));
        let name = name.trim();
        let (mut input, mut output, mut spec) = match Preset::named(name) {
            Some(preset) => (true, true, preset.spec()),
            None if name == "synthetic" => (false, false, blank()),
            None => return Err(bad("workload", unknown(name))),
        };
        for setting in split(settings)? {
            let Some((key, value)) = setting.split_once('=') else {
                return Err(bad(
                    "workload",
                    format!("`{}` is no setting: write key=value", shorten(setting)),
                ));
            };
            let value = value.trim();
            match key.trim() {
                "in" => (spec.input, input) = (lengths("in", value)?, true),
                "out" => (spec.output, output) = (lengths("out", value)?, true),
                "rate" => spec.arrivals = spec.arrivals.at(number("rate", value)?),
                "cv" => {
                    spec.arrivals = ArrivalProcess::Gamma {
                        per_second: spec.arrivals.per_second(),
                        cv: number("cv", value)?,
                    }
                }
                "total" => spec.max_total = Some(number("total", value)?),
                "prefix" => spec.prefix = Some(prefix(value)?),
                "fan" => spec.fan = Some(fan(value)?),
                "tenants" => spec.tenants = tenants(value)?,
                other => {
                    return Err(bad(
                        "workload",
                        format!(
                            "no setting `{}`: use in, out, rate, cv, total, prefix, fan or tenants",
                            shorten(other)
                        ),
                    ));
                }
            }
        }
        for (given, what) in [(input, "in"), (output, "out")] {
            if !given {
                return Err(bad(
                    what,
                    "not given: write, for example, synthetic:in=lognormal(161,0.8),out=fixed(64)",
                ));
            }
        }
        Ok(spec)
    }
}

impl FromStr for WorkloadSpec {
    type Err = WorkloadError;

    /// A synthetic workload, unshaped, with seed 0. A trace has no text form: it is a file.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self::synthetic)
    }
}

fn blank() -> SyntheticSpec {
    SyntheticSpec {
        arrivals: ArrivalProcess::Poisson { per_second: 1.0 },
        input: Lengths::Fixed(1),
        output: Lengths::Fixed(1),
        max_total: None,
        prefix: None,
        fan: None,
        tenants: Vec::new(),
    }
}

fn unknown(name: &str) -> String {
    let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
    format!(
        "no workload `{}`: use {}, or synthetic:in=…,out=…",
        shorten(name),
        names.join(", ")
    )
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Result<Vec<&str>, WorkloadError> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_u32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth = depth.saturating_add(1),
            ')' => {
                depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| bad("workload", "a `)` without its `(`"))?;
            }
            ',' if depth == 0 => {
                parts.push(text[from..i].trim());
                from = i + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err(bad("workload", "a `(` without its `)`"));
    }
    parts.push(text[from..].trim());
    parts.retain(|p| !p.is_empty());
    Ok(parts)
}

fn number<T: FromStr>(what: &'static str, text: &str) -> Result<T, WorkloadError> {
    text.parse().map_err(|_| {
        bad(
            what,
            format!("`{}` is not a number of its kind", shorten(text)),
        )
    })
}

/// `name(a,b)`: the name and its arguments.
fn call<'a>(what: &'static str, text: &'a str) -> Result<(&'a str, Vec<&'a str>), WorkloadError> {
    let parts = text
        .strip_suffix(')')
        .and_then(|t| t.split_once('('))
        .ok_or_else(|| bad(what, format!("`{}`: write name(…)", shorten(text))))?;
    Ok((parts.0.trim(), parts.1.split(',').map(str::trim).collect()))
}

fn lengths(what: &'static str, text: &str) -> Result<Lengths, WorkloadError> {
    if let Ok(n) = text.parse() {
        return Ok(Lengths::Fixed(n));
    }
    let (name, args) = call(what, text)?;
    match (name, args.as_slice()) {
        ("fixed", [n]) => Ok(Lengths::Fixed(number(what, n)?)),
        ("uniform", [min, max]) => Ok(Lengths::Uniform {
            min: number(what, min)?,
            max: number(what, max)?,
        }),
        ("lognormal", [mean, cv]) => Ok(Lengths::LogNormal {
            mean: number(what, mean)?,
            cv: number(what, cv)?,
            min: 1,
            max: TOKENS_MAX,
        }),
        ("lognormal", [mean, cv, min, max]) => Ok(Lengths::LogNormal {
            mean: number(what, mean)?,
            cv: number(what, cv)?,
            min: number(what, min)?,
            max: number(what, max)?,
        }),
        ("quantiles", args) => quantiles(what, args),
        _ => Err(bad(
            what,
            format!(
                "`{}`: use fixed(n), uniform(min,max), lognormal(mean,cv[,min,max]) or \
                 quantiles(0:a,0.5:b,1:c[,mean:m])",
                shorten(text)
            ),
        )),
    }
}

fn quantiles(what: &'static str, args: &[&str]) -> Result<Lengths, WorkloadError> {
    let (mut knots, mut mean) = (Vec::new(), None);
    for arg in args {
        let Some((p, tokens)) = arg.split_once(':') else {
            return Err(bad(
                what,
                format!("`{}`: write probability:tokens", shorten(arg)),
            ));
        };
        if p.trim() == "mean" {
            mean = Some(number(what, tokens.trim())?);
        } else {
            knots.push((number(what, p.trim())?, number(what, tokens.trim())?));
        }
    }
    Ok(Lengths::Quantiles(Quantiles {
        knots: Cow::Owned(knots),
        mean,
    }))
}

fn prefix(text: &str) -> Result<PrefixSpec, WorkloadError> {
    let what = "prefix";
    let (name, args) = call(what, text)?;
    let optional = |i: usize, default: f64| args.get(i).map_or(Ok(default), |a| number(what, a));
    match (name, args.as_slice()) {
        ("shared", [count, tokens, rest @ ..]) if rest.len() <= 2 => Ok(PrefixSpec {
            count: number(what, count)?,
            tokens: number(what, tokens)?,
            share: optional(2, 1.0)?,
            zipf: optional(3, 0.0)?,
        }),
        _ => Err(bad(
            what,
            format!(
                "`{}`: write shared(count,tokens[,share[,zipf]])",
                shorten(text)
            ),
        )),
    }
}

fn fan(text: &str) -> Result<FanSpec, WorkloadError> {
    let what = "fan";
    let (name, args) = call(what, text)?;
    let (n, share) = match args.as_slice() {
        [n] => (number(what, n)?, 1.0),
        [n, share] => (number(what, n)?, number(what, share)?),
        _ => (0, 1.0),
    };
    match name {
        "parallel" if n > 0 => Ok(FanSpec {
            fan: Fan::Parallel(n),
            share,
        }),
        "beam" if n > 0 => Ok(FanSpec {
            fan: Fan::Beam(n),
            share,
        }),
        _ => Err(bad(
            what,
            format!(
                "`{}`: write parallel(n[,share]) or beam(width[,share]), n at least 1",
                shorten(text)
            ),
        )),
    }
}

fn tenants(text: &str) -> Result<Vec<Tenant>, WorkloadError> {
    let what = "tenants";
    let (name, args) = call(what, text)?;
    if name != "weights" {
        return Err(bad(
            what,
            format!("`{}`: write weights(3,1:-1,…)", shorten(text)),
        ));
    }
    args.iter()
        .map(|arg| {
            let (weight, priority) = arg.split_once(':').unwrap_or((arg, "0"));
            Ok(Tenant {
                weight: number(what, weight.trim())?,
                priority: number(what, priority.trim())?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_presets_and_settings() {
        let s: SyntheticSpec = "sharegpt:rate=4, fan=parallel(4,0.5),cv=2".parse().unwrap();
        assert_eq!(
            s.arrivals,
            ArrivalProcess::Gamma {
                per_second: 4.0,
                cv: 2.0
            }
        );
        assert_eq!(
            s.fan,
            Some(FanSpec {
                fan: Fan::Parallel(4),
                share: 0.5
            })
        );
        assert_eq!(s.max_total, Some(2048));

        let s: SyntheticSpec = "synthetic:in=lognormal(161,0.8),out=64,prefix=shared(4,341),\
                                tenants=weights(3,1:-1),rate=inf"
            .parse()
            .unwrap();
        assert_eq!(s.output, Lengths::Fixed(64));
        assert_eq!(s.prefix.map(|p| (p.count, p.tokens)), Some((4, 341)));
        assert_eq!(s.tenants[1].priority, -1);
        assert_eq!(s.arrivals.per_second(), f64::INFINITY);

        let s: SyntheticSpec = "synthetic:in=quantiles(0:3,0.5:13,1:99,mean:25),out=uniform(1,9)"
            .parse()
            .unwrap();
        assert!(WorkloadSpec::synthetic(s).open(None).is_ok());
    }

    #[test]
    fn says_what_to_write_instead() {
        for (text, help) in [
            ("sharegtp", "use sharegpt, alpaca, azure-code, azure-conv"),
            ("synthetic", "synthetic:in=lognormal"),
            ("synthetic:in=64", "out: not given"),
            ("alpaca:rate", "key=value"),
            ("alpaca:speed=2", "use in, out, rate"),
            ("alpaca:in=gauss(1,2)", "use fixed(n)"),
            ("alpaca:in=lognormal(1,2", "without its"),
            ("alpaca:in=lognormal(1,2))", "without its"),
            ("alpaca:rate=fast", "not a number"),
            ("alpaca:fan=parallel(0)", "at least 1"),
            ("alpaca:prefix=shared(1)", "shared(count,tokens"),
            ("alpaca:tenants=3", "name(…)"),
        ] {
            let error = text.parse::<SyntheticSpec>().unwrap_err().to_string();
            assert!(error.contains(help), "{text}: {error}");
        }
    }
}
