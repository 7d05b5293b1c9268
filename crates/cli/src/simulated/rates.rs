//! Rates other than the published ones: changes to some of them, and measured profiles.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use plimsoll_device::Device;
use plimsoll_report::{PROFILE_SCHEMA, Profile, ProfileRates, ProfileTimes, thousands};
use plimsoll_schedule::Rates;
use plimsoll_schedule::fit::{FitError, Fitted, TimedStep, TimedSwap, fit};

use crate::error::{Exit, Failure};

/// Most bytes of a profile: some hundred thousand timed steps.
const PROFILE_BYTES_MAX: u64 = 64 << 20;

/// Rates given in place of others, by the names of `Rates`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateChanges {
    pub(crate) flops_per_s: Option<u64>,
    pub(crate) memory_bytes_per_s: Option<u64>,
    pub(crate) link_bytes_per_s: Option<u64>,
    pub(crate) transfer_ns: Option<u64>,
    pub(crate) transfers_per_block: Option<u64>,
    pub(crate) step_ns: Option<u64>,
    pub(crate) row_ns: Option<u64>,
}

impl RateChanges {
    /// `base` with these changes.
    pub(crate) fn over(&self, base: Rates) -> Rates {
        Rates {
            flops_per_s: self.flops_per_s.unwrap_or(base.flops_per_s),
            memory_bytes_per_s: self.memory_bytes_per_s.unwrap_or(base.memory_bytes_per_s),
            link_bytes_per_s: self.link_bytes_per_s.unwrap_or(base.link_bytes_per_s),
            transfer_ns: self.transfer_ns.unwrap_or(base.transfer_ns),
            transfers_per_block: self.transfers_per_block.unwrap_or(base.transfers_per_block),
            step_ns: self.step_ns.unwrap_or(base.step_ns),
            row_ns: self.row_ns.unwrap_or(base.row_ns),
        }
    }
}

/// Rates that were measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Where they were read.
    name: String,
    /// How they came about.
    pub(crate) words: String,
    /// The device they were measured on.
    device: &'static Device,
    pub(crate) rates: Rates,
}

impl Measured {
    /// Reads a profile.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let not_found = |why: String| {
            Failure::new(
                Exit::NotFound,
                "E-SIM-014",
                format!("cannot read the profile {name}: {why}"),
            )
            .hint("check the path; `plimsoll schema profile` describes the file")
        };
        let corrupt = |what: String| {
            Failure::new(Exit::Corrupt, "E-SIM-015", format!("{name}: {what}"))
                .hint("`plimsoll schema profile` describes the file")
        };
        let mut text = Vec::new();
        let file = File::open(path).map_err(|e| not_found(e.to_string()))?;
        file.take(PROFILE_BYTES_MAX + 1)
            .read_to_end(&mut text)
            .map_err(|e| not_found(e.to_string()))?;
        if text.len() as u64 > PROFILE_BYTES_MAX {
            return Err(corrupt("larger than any profile".to_owned()));
        }
        let profile: Profile = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
        if profile.schema != PROFILE_SCHEMA {
            let found = &profile.schema;
            return Err(corrupt(format!(
                "its schema is `{found}`, not `{PROFILE_SCHEMA}`"
            )));
        }
        let device = plimsoll_device::find(&profile.device).ok_or_else(|| {
            corrupt(format!(
                "its device `{}` is none that is known",
                profile.device
            ))
            .hint("`plimsoll devices` lists them")
        })?;
        let (rates, words) = match (&profile.rates, &profile.timed) {
            (Some(r), None) => (
                rates(r).map_err(|field| corrupt(format!("{field} is 0")))?,
                format!("measured in {name}"),
            ),
            (None, Some(times)) => {
                let fitted = fitted(times).map_err(|e| corrupt(e.to_string()))?;
                let words = format!(
                    "fitted to {} steps and {} swaps timed in {name}, off by {:.1} % on average",
                    thousands(times.steps.len() as u64),
                    thousands(times.swaps.len() as u64),
                    fitted.error * 100.0
                );
                (fitted.rates, words)
            }
            (Some(_), Some(_)) => {
                return Err(corrupt("it has both rates and timed work".to_owned()));
            }
            (None, None) => {
                return Err(corrupt("it has neither rates nor timed work".to_owned()));
            }
        };
        Ok(Self {
            name,
            words,
            device,
            rates,
        })
    }

    /// The rates, as those of `device`.
    pub(crate) fn of(&self, device: &Device) -> Result<Rates, Failure> {
        if self.device.name == device.name {
            return Ok(self.rates);
        }
        Err(Failure::new(
            Exit::Usage,
            "E-SIM-016",
            format!(
                "the profile {} is of {}, and the device is {}",
                self.name, self.device.name, device.name
            ),
        )
        .hint(format!("add `--gpu {}`", self.device.name)))
    }
}

fn fitted(times: &ProfileTimes) -> Result<Fitted, FitError> {
    let steps: Vec<TimedStep> = times
        .steps
        .iter()
        .map(|s| TimedStep {
            rows: s.rows,
            linear_flops: s.linear_flops,
            attention_flops: s.attention_flops,
            kv_bytes: s.kv_bytes,
            seconds: s.seconds,
        })
        .collect();
    let swaps: Vec<TimedSwap> = times
        .swaps
        .iter()
        .map(|s| TimedSwap {
            transfers: s.blocks,
            bytes: s.bytes,
            seconds: s.seconds,
        })
        .collect();
    fit(times.weight_bytes, &steps, &swaps)
}

/// The rates of a profile, or the name of one that is 0 and must not be.
fn rates(p: &ProfileRates) -> Result<Rates, &'static str> {
    for (name, value) in [
        ("flops_per_s", p.flops_per_s),
        ("memory_bytes_per_s", p.memory_bytes_per_s),
        ("link_bytes_per_s", p.link_bytes_per_s),
        ("transfers_per_block", p.transfers_per_block),
    ] {
        if value == 0 {
            return Err(name);
        }
    }
    Ok(Rates {
        flops_per_s: p.flops_per_s,
        memory_bytes_per_s: p.memory_bytes_per_s,
        link_bytes_per_s: p.link_bytes_per_s,
        transfer_ns: p.transfer_ns,
        transfers_per_block: p.transfers_per_block,
        step_ns: p.step_ns,
        row_ns: p.row_ns,
    })
}
