//! Accelerators: what the driver reports of each, how fast it is, and how it is linked.
//!
//! A pure catalogue: a data file with a source for every entry. Memory is what a process sees, not
//! the marketing size: an "80 GB" H100 offers 79.19 GiB. A card that can be cut into slices (MIG) is a
//! device, and so is each slice. It detects nothing (that is `plimsoll-host`) and knows no prices
//! (users give them).

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
    /// Whether CPU and GPU have one memory, so that what the host's processes take is missing here.
    pub unified: bool,
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
    /// What the device can be cut into, one of each kind: devices with a share of its memory, its
    /// bandwidth and its multiprocessors, and no link.
    pub slices: Vec<Device>,
    /// The card that it is a slice of. Slices reach neither one another nor another card: there is no
    /// peer-to-peer access and no NCCL between them, and a process sees one. Source: NVIDIA's MIG User
    /// Guide, "Application Considerations".
    pub slice_of: Option<String>,
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
    #[serde(default)]
    unified: bool,
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
    slices: Vec<Slice>,
    #[serde(default)]
    slices_source: String,
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

/// A profile of MIG. It has its share of the memory's slices, and so of the bandwidth, in eighths.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slice {
    profile: String,
    instances: u64,
    bytes: u64,
    multiprocessors: u64,
    memory_eighths: u64,
}

/// What `cudaMemGetInfo` shows less than NVML's total, in MiB, on cards whose usable size nobody
/// printed: the median of the catalogue's printed NVIDIA cards (a test recomputes it). It does not
/// grow with the card, so it is no share: 373 MiB of 8 GB, 469 of 80. On AMD's printed cards there is
/// no difference.
const UNSEEN_MIB: u64 = 464;

impl Raw {
    fn device(self) -> Device {
        let driver_total = Bytes::new(self.driver_total_bytes);
        let unseen = if self.vendor == "amd" { 0 } else { UNSEEN_MIB };
        let derived = driver_total.saturating_sub(Bytes::new(unseen << 20));
        let usable = self.usable_bytes.map_or(derived, Bytes::new);
        let confidence = match (self.usable_bytes, self.confidence.as_deref()) {
            (_, Some("datasheet")) => Confidence::Datasheet,
            (Some(_), Some("printed")) => Confidence::Printed,
            _ => Confidence::Derived,
        };
        let compute_capability = self.compute_capability.as_deref().and_then(|c| {
            let (major, minor) = c.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        #[allow(clippy::cast_precision_loss, reason = "rates, not sizes")]
        let number = |v: &toml::Value| v.as_float().or_else(|| v.as_integer().map(|i| i as f64));
        let whole = Device {
            name: self.name,
            aliases: self.aliases,
            vendor: self.vendor,
            arch: self.arch,
            compute_capability,
            multiprocessors: self.multiprocessors,
            l2_bytes: self.l2_bytes,
            marketing_memory: self.marketing_memory,
            unified: self.unified,
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
            slices: Vec::new(),
            slice_of: None,
            source: self.source,
            note: self.note,
        };
        let slices = self.slices.iter();
        let slices = slices.map(|s| s.device(&whole, &self.slices_source));
        Device {
            slices: slices.collect(),
            ..whole
        }
    }
}

impl Slice {
    /// This slice of a card.
    fn device(&self, whole: &Device, source: &str) -> Device {
        #[allow(clippy::cast_precision_loss, reason = "shares of rates")]
        let share = |part: u64, of: u64| part as f64 / of.max(1) as f64;
        let memory = share(self.memory_eighths, 8);
        let compute = share(
            self.multiprocessors,
            whole.multiprocessors.unwrap_or(self.multiprocessors),
        );
        let size = self.profile.split('.').nth(1).unwrap_or_default();
        let rates = whole.dense_flops.iter();
        Device {
            name: format!("{}:{}", whole.name, self.profile),
            // As CUDA prints it.
            aliases: whole
                .aliases
                .iter()
                .filter(|a| a.contains("NVIDIA"))
                .map(|a| format!("{a} MIG {}", self.profile))
                .collect(),
            multiprocessors: Some(self.multiprocessors),
            l2_bytes: whole.l2_bytes.map(|b| b * self.memory_eighths / 8),
            marketing_memory: size.replace("gb", " GB"),
            driver_total: Bytes::new(self.bytes),
            usable: Bytes::new(self.bytes),
            confidence: Confidence::Printed,
            memory_source: source.to_owned(),
            bandwidth: whole.bandwidth.map(|b| b * memory),
            dense_flops: rates.map(|(t, f)| (t.clone(), f * compute)).collect(),
            link: None,
            slice_of: Some(whole.name.clone()),
            note: Some(match self.instances {
                1 => "one on a card".to_owned(),
                n => format!("up to {n} on a card"),
            }),
            ..whole.clone()
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
/// A slice is `h100:3g.40gb`, or as CUDA prints it, `NVIDIA H100 80GB HBM3 MIG 3g.40gb`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Device> {
    let wanted = normal(name);
    if let Some(whole) = whole(&wanted) {
        return Some(whole);
    }
    let (card, profile) = wanted
        .split_once(':')
        .or_else(|| wanted.rsplit_once("-mig-"))?;
    let mut slices = whole(card)?.slices.iter();
    slices.find(|s| s.name.split_once(':').is_some_and(|(_, p)| p == profile))
}

/// The device with this normal name, slices aside.
fn whole(wanted: &str) -> Option<&'static Device> {
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
            unified: false,
            driver_total: usable,
            usable,
            confidence: Confidence::Given,
            memory_source: "given on the command line".to_owned(),
            bandwidth: None,
            dense_flops: Vec::new(),
            link: None,
            slices: Vec::new(),
            slice_of: None,
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
#[allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_data_file_parses_and_has_the_cards_everybody_names() {
        let file: Result<File, _> = toml::from_str(DATA);
        assert!(file.is_ok(), "{:?}", file.err());
        for name in [
            "a100-40g",
            "a100-80g",
            "h100",
            "h200",
            "l4",
            "t4",
            "rtx-4090",
            "RTX 4090",
            "gb10",
            "Apple M4 Max",
            "tpu-v6e",
            "trn2",
            "Tesla P40",
            "Intel(R) Arc(TM) Pro B70 Graphics",
            "NVIDIA H20-3e",
            "vera-rubin",
            "mi455x",
            "trn3",
            "m5-ultra",
            "Ascend910B",
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
    fn every_rate_names_where_it_was_read() {
        for d in devices() {
            assert!(!d.source.is_empty(), "{}", d.name);
            assert!(!d.source.contains("knowledge"), "{}", d.name);
            assert!(d.bandwidth.is_some(), "{}", d.name);
        }
    }

    #[test]
    fn narrower_types_are_no_slower() {
        for d in devices() {
            let rate = |t: &str| d.dense_flops.iter().find(|(n, _)| n == t).map(|r| r.1);
            for (wide, narrow) in [("tf32", "f16"), ("bf16", "fp8"), ("fp8", "fp4")] {
                if let (Some(wide), Some(narrow)) = (rate(wide), rate(narrow)) {
                    assert!(narrow >= wide, "{}: {narrow} below {wide}", d.name);
                    assert!(
                        narrow <= wide * 5.0,
                        "{}: {narrow} far above {wide}",
                        d.name
                    );
                }
            }
            if let (Some(f16), Some(bf16), true) = (rate("f16"), rate("bf16"), d.arch != "gaudi3") {
                assert!((f16 - bf16).abs() < 1.0, "{}: {f16} and {bf16}", d.name);
            }
        }
    }

    #[test]
    fn metals_working_set_follows_from_the_machines_memory() {
        let macs = || devices().iter().filter(|d| d.vendor == "apple");
        for derived in macs().filter(|d| d.confidence == Confidence::Derived) {
            let mut printed = macs().filter(|d| d.confidence == Confidence::Printed);
            let same = printed
                .any(|d| (d.driver_total, d.usable) == (derived.driver_total, derived.usable));
            assert!(same, "{}", derived.name);
        }
        // That is why they may be derived: the printed ones of one size agree to 2 MiB.
        for a in macs().filter(|d| d.confidence == Confidence::Printed) {
            for b in macs().filter(|b| b.driver_total == a.driver_total) {
                let apart = a.usable.get().abs_diff(b.usable.get());
                assert!(apart < 2 << 20, "{} and {}: {apart}", a.name, b.name);
            }
        }
    }

    #[test]
    fn what_processes_do_not_see_is_the_median_of_printed_cards() {
        let mut unseen: Vec<u64> = devices()
            .iter()
            .filter(|d| d.vendor == "nvidia" && d.confidence == Confidence::Printed)
            .filter(|d| !d.unified)
            .map(|d| d.driver_total.saturating_sub(d.usable).get() >> 20)
            .collect();
        unseen.sort_unstable();
        let median = unseen[unseen.len() / 2];
        assert!(median.abs_diff(UNSEEN_MIB) <= 16, "{median} MiB");
    }

    #[test]
    fn on_amd_cards_processes_see_the_drivers_total() {
        let cards = devices().iter().filter(|d| d.vendor == "amd" && !d.unified);
        let mut known: Vec<Confidence> = Vec::new();
        for d in cards {
            assert_eq!(d.usable, d.driver_total, "{}", d.name);
            known.push(d.confidence);
        }
        // The printed ones are why the derived ones are so.
        assert!(known.contains(&Confidence::Printed) && known.contains(&Confidence::Derived));
    }

    #[test]
    fn what_nobody_printed_is_said_to_be_derived_or_a_datasheets() {
        for (name, confidence) in [
            ("t4", Confidence::Printed),
            ("a10", Confidence::Derived),
            ("trn2", Confidence::Datasheet),
        ] {
            assert_eq!(find(name).unwrap().confidence, confidence, "{name}");
        }
    }

    #[test]
    fn slices_are_found_by_profile_and_by_the_drivers_name() {
        let slice = find("h100:3g.40gb").unwrap();
        for name in [
            "h100-80g-sxm:3g.40gb",
            "H100:3G.40GB",
            "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        ] {
            assert_eq!(find(name), Some(slice), "{name}");
        }
        for name in [
            "h100:3g.20gb",
            "h100:",
            "t4:1g.5gb",
            ":3g.40gb",
            "h100-mig-",
        ] {
            assert_eq!(find(name), None, "{name}");
        }
        assert_eq!(slice.marketing_memory, "40 GB");
        assert_eq!(slice.usable, Bytes::new(((39 << 10) + 384) << 20));
        assert_eq!(slice.multiprocessors, Some(60));
        let whole = find("h100").unwrap();
        assert_eq!(slice.bandwidth, whole.bandwidth.map(|b| b / 2.0));
        assert!(slice.link.is_none() && whole.link.is_some());
        let f16 = |d: &Device| d.dense_flops.iter().find(|(t, _)| t == "f16").unwrap().1;
        assert!((f16(slice) / f16(whole) - 60.0 / 132.0).abs() < 1e-12);
    }

    #[test]
    fn slices_fill_no_more_than_their_card() {
        for d in devices() {
            for s in &d.slices {
                let memory = s.bandwidth.unwrap() / d.bandwidth.unwrap();
                let bytes = s.usable.gib() / d.driver_total.gib();
                // An instance holds up to an eighth of itself less than its share.
                assert!(bytes <= memory && bytes > memory * 0.85, "{}", s.name);
                assert!(s.multiprocessors < Some(d.multiprocessors.unwrap() + 1));
                assert!(s.slices.is_empty() && s.usable == s.driver_total);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let mut all: Vec<String> = devices()
            .iter()
            .flat_map(|d| d.slices.iter().chain([d]))
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
