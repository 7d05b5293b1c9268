//! Accelerators: what the driver reports of each, how fast it is, and how it is linked.
//!
//! A pure catalogue: a data file with a source for every entry. Memory is what a process sees, not
//! the marketing size: an "80 GB" H100 offers 79.19 GiB. It detects nothing (that is
//! `plimsoll-host`) and knows no prices (users give them).

use std::sync::OnceLock;

use plimsoll_units::Bytes;
use serde::Deserialize;

const DATA: &str = include_str!("../data/devices.toml");

/// One kind of accelerator.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Canonical name, lower case.
    pub name: String,
    /// Other names, the driver's among them.
    pub aliases: Vec<String>,
    /// Who makes it.
    pub vendor: String,
    /// Architecture, as `hopper`.
    pub arch: String,
    /// CUDA compute capability, for NVIDIA: major, minor.
    pub compute_capability: Option<(u32, u32)>,
    /// Streaming multiprocessors (AMD: compute units).
    pub multiprocessors: Option<u64>,
    /// Bytes of L2 cache.
    pub l2_bytes: Option<u64>,
    /// The size on the box.
    pub marketing_memory: String,
    /// What the driver reports as total.
    pub driver_total: Bytes,
    /// What a process can see as total (`cudaMemGetInfo`).
    pub usable: Bytes,
    /// How well `usable` is known.
    pub confidence: Confidence,
    /// Where the memory figures were printed.
    pub memory_source: String,
    /// Memory bandwidth, bytes per second.
    pub bandwidth: Option<f64>,
    /// Dense rates by element type, operations per second.
    pub dense_flops: Vec<(String, f64)>,
    /// Link between devices: kind and total bytes per second.
    pub link: Option<(String, f64)>,
    /// Where rates and links were read.
    pub source: String,
    /// What the reader should know.
    pub note: Option<String>,
}

/// How well a device's usable memory is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Printed by a process on such a device.
    Printed,
    /// From a datasheet or the driver's total, so a little less may be usable.
    Datasheet,
    /// Computed from the driver's total and the difference seen on its relatives.
    Derived,
    /// Given by the user.
    Given,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    device: Vec<Raw>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    #[serde(default)]
    aliases: Vec<String>,
    vendor: String,
    #[serde(default)]
    arch: String,
    compute_capability: Option<String>,
    multiprocessors: Option<u64>,
    l2_bytes: Option<u64>,
    marketing_memory: String,
    driver_total_bytes: u64,
    usable_bytes: Option<u64>,
    #[serde(default)]
    memory_source: String,
    bandwidth_bytes_per_s: Option<f64>,
    #[serde(default)]
    dense_flops: toml::Table,
    link: Option<Link>,
    #[serde(default, rename = "pcie")]
    _pcie: Option<toml::Table>,
    #[serde(default)]
    source: String,
    #[serde(default)]
    confidence: Option<String>,
    #[serde(default)]
    note: Option<String>,
}

#[derive(Deserialize)]
struct Link {
    kind: String,
    bytes_per_s: Option<f64>,
}

/// What `cudaMemGetInfo` shows less than NVML's total, in thousandths, on NVIDIA cards whose usable
/// size nobody printed: the median of the catalogue's printed cards (a test recomputes it).
const UNSEEN_PER_MILLE: u64 = 13;

impl Raw {
    fn device(self) -> Device {
        let driver_total = Bytes::new(self.driver_total_bytes);
        let unseen = self.driver_total_bytes / 1000 * UNSEEN_PER_MILLE;
        let derived = driver_total.saturating_sub(Bytes::new(unseen));
        let usable = self.usable_bytes.map_or(derived, Bytes::new);
        let confidence = match (self.usable_bytes, self.confidence.as_deref()) {
            (None, _) | (Some(_), Some("derived")) => Confidence::Derived,
            (Some(_), Some("printed")) => Confidence::Printed,
            (Some(_), _) => Confidence::Datasheet,
        };
        let compute_capability = self.compute_capability.as_deref().and_then(|c| {
            let (major, minor) = c.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        #[allow(clippy::cast_precision_loss, reason = "rates, not sizes")]
        let number = |v: &toml::Value| v.as_float().or_else(|| v.as_integer().map(|i| i as f64));
        Device {
            name: self.name,
            aliases: self.aliases,
            vendor: self.vendor,
            arch: self.arch,
            compute_capability,
            multiprocessors: self.multiprocessors,
            l2_bytes: self.l2_bytes,
            marketing_memory: self.marketing_memory,
            driver_total,
            usable,
            confidence,
            memory_source: self.memory_source,
            bandwidth: self.bandwidth_bytes_per_s,
            dense_flops: self
                .dense_flops
                .iter()
                .filter_map(|(k, v)| Some((k.clone(), number(v)?)))
                .collect(),
            link: self.link.and_then(|l| Some((l.kind, l.bytes_per_s?))),
            source: self.source,
            note: self.note,
        }
    }
}

/// Every device, in file order.
pub fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        toml::from_str::<File>(DATA)
            .map(|f| f.device.into_iter().map(Raw::device).collect())
            .unwrap_or_default()
    })
}

/// The device with this name or alias. Case, spaces, `_` and a leading vendor word are ignored, so
/// that `NVIDIA A100-SXM4-40GB` as printed by the driver and `a100-sxm4-40gb` are the same.
#[must_use]
pub fn find(name: &str) -> Option<&'static Device> {
    let wanted = normal(name);
    devices()
        .iter()
        .find(|d| normal(&d.name) == wanted || d.aliases.iter().any(|a| normal(a) == wanted))
}

fn normal(name: &str) -> String {
    let lower = name.trim().to_ascii_lowercase().replace([' ', '_'], "-");
    let bare = ["nvidia-", "amd-", "intel-", "geforce-", "tesla-", "quadro-"]
        .iter()
        .fold(lower.as_str(), |n, v| n.strip_prefix(v).unwrap_or(n));
    bare.to_owned()
}

impl Device {
    /// A device of which only the memory is known.
    #[must_use]
    pub fn of_size(usable: Bytes) -> Self {
        Self {
            name: format!("a device of {usable}"),
            aliases: Vec::new(),
            vendor: "unknown".to_owned(),
            arch: String::new(),
            compute_capability: None,
            multiprocessors: None,
            l2_bytes: None,
            marketing_memory: usable.to_string(),
            driver_total: usable,
            usable,
            confidence: Confidence::Given,
            memory_source: "given on the command line".to_owned(),
            bandwidth: None,
            dense_flops: Vec::new(),
            link: None,
            source: String::new(),
            note: None,
        }
    }

    /// No device in particular: room for anything, to ask only what is needed.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            name: "no device".to_owned(),
            ..Self::of_size(Bytes::new(1 << 60))
        }
    }

    /// Whether it is [`Device::unlimited`].
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.usable == Bytes::new(1 << 60)
    }

    /// Whether it is an NVIDIA device of at least this compute capability.
    #[must_use]
    pub fn has_compute(&self, major: u32, minor: u32) -> bool {
        self.compute_capability.is_some_and(|c| c >= (major, minor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_file_parses_and_has_the_cards_everybody_names() {
        let file: Result<File, _> = toml::from_str(DATA);
        assert!(file.is_ok(), "{:?}", file.err());
        for name in [
            "a100-40g", "a100-80g", "h100", "h200", "l4", "t4", "rtx-4090", "RTX 4090",
        ] {
            assert!(find(name).is_some(), "{name}");
        }
    }

    #[test]
    fn usable_memory_is_below_the_drivers_total() {
        for d in devices() {
            assert!(d.usable <= d.driver_total, "{}", d.name);
            assert!(d.usable > Bytes::new(1 << 30), "{}", d.name);
        }
    }

    #[test]
    fn the_share_unseen_by_processes_is_the_median_of_printed_cards() {
        let mut shares: Vec<f64> = devices()
            .iter()
            .filter(|d| d.vendor == "nvidia" && d.confidence == Confidence::Printed)
            .map(|d| 1.0 - d.usable.gib() / d.driver_total.gib())
            .collect();
        shares.sort_by(f64::total_cmp);
        let median = shares[shares.len() / 2] * 1000.0;
        assert!((median - UNSEEN_PER_MILLE as f64).abs() < 0.5, "{median}");
    }

    #[test]
    fn names_are_unique() {
        let mut all: Vec<String> = devices()
            .iter()
            .flat_map(|d| {
                d.aliases
                    .iter()
                    .chain([&d.name])
                    .map(|n| normal(n))
                    .collect::<std::collections::BTreeSet<_>>()
            })
            .collect();
        let n = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), n);
    }
}
