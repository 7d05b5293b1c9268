//! What `plan` is to serve, as a workload: flags that `simulate` has too.

use std::path::PathBuf;

use clap::Args;
use plimsoll_simulate::Slo;

use super::simulate::slo;

/// Flags that describe one kind of request, in place of a mix of them.
const ONE_KIND: [&str; 7] = [
    "context",
    "lengths",
    "prompt",
    "n",
    "beam_width",
    "shared_prefix",
    "prefix_hit",
];

/// Requests as they come, in place of users and a context.
#[derive(Debug, Args)]
#[command(next_help_heading = "Workload")]
pub(crate) struct WorkloadArgs {
    /// Plan for these lengths, and replay them: sharegpt, azure-conv, synthetic:in=...,out=... as for `simulate`
    #[arg(long, value_name = "TEXT", group = "traffic", conflicts_with_all = ONE_KIND)]
    pub(crate) workload: Option<String>,
    /// The same from a trace: Azure or BurstGPT CSV, Mooncake JSONL, or lengths; - for standard input
    #[arg(long, value_name = "FILE", group = "traffic", conflicts_with_all = ONE_KIND)]
    pub(crate) trace: Option<PathBuf>,
    /// How fast they arrive: 20, 20/s, 600/min; without it, the replay sends all of them at once
    #[arg(long, value_name = "RATE", requires = "traffic", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Find the fewest devices that keep this service level at --rate: ttft=1s,itl=50ms,attain=0.99
    #[arg(long, value_name = "BOUNDS", requires = "rate", value_parser = slo)]
    pub(crate) slo: Option<Slo>,
    /// Requests of a replay (default: 2,000, or ten minutes of --rate and up to 20,000)
    #[arg(long, value_name = "N", requires = "traffic", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) requests: Option<u64>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

/// Arrivals per second, from a number per second, minute or hour.
fn rate(s: &str) -> Result<f64, String> {
    let (number, per) = s.split_once('/').unwrap_or((s, "s"));
    let seconds = match per.trim() {
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        _ => {
            return Err(format!(
                "`{s}` has no known unit: write 20/s, 600/min or 36000/h"
            ));
        }
    };
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| format!("`{s}` is no rate: write 20, 20/s or 600/min"))?;
    let rate = number / seconds;
    if rate.is_finite() && rate > 0.0 && rate <= 1e9 {
        Ok(rate)
    } else {
        Err(format!(
            "`{s}` is out of range: use above 0 and up to 1e9 per second"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_unit_of_time() {
        assert_eq!(rate("20"), Ok(20.0));
        assert_eq!(rate("20/s"), Ok(20.0));
        assert_eq!(rate("600/min"), Ok(10.0));
        assert_eq!(rate("1.8e4 / h"), Ok(5.0));
        for bad in [
            "", "/s", "x", "-1", "0", "nan", "inf", "2e9", "5/day", "5/", "1/2/s",
        ] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
