//! [`PRESETS`]: synthetic workloads by name, as data with sources.
//!
//! Input and output lengths are drawn independently of each other; in the traces they are not
//! quite.

use std::borrow::Cow;

use super::lengths::{Lengths, Quantiles};
use super::spec::{ArrivalProcess, SyntheticSpec};

/// A workload by name.
#[derive(Debug)]
pub struct Preset {
    /// How it is asked for.
    pub name: &'static str,
    /// Where the numbers come from, and which are assumed.
    pub source: &'static str,
    /// Prompt tokens.
    pub input: Lengths,
    /// Generated tokens.
    pub output: Lengths,
    /// Longest prompt and output together.
    pub max_total: Option<u64>,
    /// Requests per second, Poisson, unless another rate is asked for.
    pub per_second: f64,
}

impl Preset {
    /// The preset of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|p| p.name == name)
    }

    /// As a spec, to be changed.
    #[must_use]
    pub fn spec(&self) -> SyntheticSpec {
        SyntheticSpec {
            arrivals: ArrivalProcess::Poisson {
                per_second: self.per_second,
            },
            input: self.input.clone(),
            output: self.output.clone(),
            max_total: self.max_total,
            prefix: None,
            fan: None,
            tenants: Vec::new(),
        }
    }
}

/// Longest sequence of the OPT models that the paper serves.
const OPT_TOKENS_MAX: u64 = 2048;

/// All presets.
pub static PRESETS: [Preset; 4] = [
    Preset {
        name: "sharegpt",
        source: "Kwon et al., SOSP 2023 (arXiv 2309.06180), Fig. 11: mean input 161.31, output \
                 337.99; cut at OPT's 2048 tokens; 2 requests/s as in Fig. 13a. Spreads are not \
                 published. Outputs that are drawn have cv 0.87 (1.04 before the cut): Orca (Max) uses \
                 20.4 % of 15,728 slots in 7 requests, hence 458 live tokens each = 161.31 + 337.99 \
                 (1 + cv^2)/2 where residence is proportional to the output. Input cv 0.8 is \
                 assumed.",
        input: Lengths::LogNormal {
            mean: 161.31,
            cv: 0.8,
            min: 1,
            max: OPT_TOKENS_MAX - 1,
        },
        output: Lengths::LogNormal {
            mean: 337.99,
            cv: 1.04,
            min: 1,
            max: OPT_TOKENS_MAX - 1,
        },
        max_total: Some(OPT_TOKENS_MAX),
        per_second: 2.0,
    },
    Preset {
        name: "alpaca",
        source: "Kwon et al., SOSP 2023 (arXiv 2309.06180), Fig. 11: mean input 19.31, output \
                 58.45; cut at OPT's 2048 tokens; 30 requests/s as in Fig. 13b. The spreads (cv 0.7 \
                 and 1.0) are assumed; the paper says that they are below ShareGPT's in tokens.",
        input: Lengths::LogNormal {
            mean: 19.31,
            cv: 0.7,
            min: 1,
            max: OPT_TOKENS_MAX - 1,
        },
        output: Lengths::LogNormal {
            mean: 58.45,
            cv: 1.0,
            min: 1,
            max: OPT_TOKENS_MAX - 1,
        },
        max_total: Some(OPT_TOKENS_MAX),
        per_second: 30.0,
    },
    Preset {
        name: "azure-code",
        source: "Azure LLM inference trace 2023, code service (Azure/AzurePublicDataset, CC-BY \
                 4.0): quantiles and means computed from its 8,819 requests in 3,436 s.",
        input: Lengths::Quantiles(Quantiles {
            knots: Cow::Borrowed(&[
                (0.0, 3),
                (0.25, 578),
                (0.5, 1469),
                (0.75, 2745),
                (0.9, 5194),
                (0.99, 7436),
                (1.0, 7437),
            ]),
            mean: Some(2047.85),
        }),
        output: Lengths::Quantiles(Quantiles {
            knots: Cow::Borrowed(&[
                (0.0, 6),
                (0.25, 9),
                (0.5, 13),
                (0.75, 24),
                (0.9, 55),
                (0.99, 252),
                (1.0, 1899),
            ]),
            mean: Some(27.88),
        }),
        max_total: None,
        per_second: 8818.0 / 3436.0,
    },
    Preset {
        name: "azure-conv",
        source: "Azure LLM inference trace 2023, conversation service (Azure/AzurePublicDataset, \
                 CC-BY 4.0): quantiles and means computed from its 19,366 requests in 3,502 s; the \
                 smallest lengths, which affect little, are taken as 1.",
        input: Lengths::Quantiles(Quantiles {
            knots: Cow::Borrowed(&[
                (0.0, 1),
                (0.25, 396),
                (0.5, 1020),
                (0.75, 1189),
                (0.9, 2735),
                (0.99, 4142),
                (1.0, 14_050),
            ]),
            mean: Some(1154.70),
        }),
        output: Lengths::Quantiles(Quantiles {
            knots: Cow::Borrowed(&[
                (0.0, 1),
                (0.5, 129),
                (0.75, 395),
                (0.9, 424),
                (0.99, 601),
                (1.0, 1000),
            ]),
            mean: Some(211.13),
        }),
        max_total: None,
        per_second: 19_365.0 / 3502.0,
    },
];
