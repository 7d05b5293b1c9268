//! Accelerators of this machine.
//!
//! NVIDIA: the management library, and where that is absent (a container without it) what the
//! driver shows under `/proc`, which has names but no sizes. AMD: what the kernel shows under
//! `/sys`. Nothing found is an empty list. Which devices a process may use
//! (`CUDA_VISIBLE_DEVICES`) is not looked at.

use std::path::{Path, PathBuf};

use plimsoll_model::json::printable;
use plimsoll_units::Bytes;

use crate::nvml;

/// Who made a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
}

/// A device as its driver reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetectedGpu {
    /// Who made it.
    pub vendor: Vendor,
    /// Its name, as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// All of its memory.
    pub total: Option<Bytes>,
    /// What is in use now, the driver's own share included.
    pub used: Option<Bytes>,
    /// What is free now.
    pub free: Option<Bytes>,
    /// Its unique id.
    pub uuid: Option<String>,
    /// The driver's version.
    pub driver: Option<String>,
    /// CUDA compute capability.
    pub compute: Option<(u32, u32)>,
}

/// Where the machine shows itself.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// Whether NVIDIA's library may be loaded.
    pub nvml: bool,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
            nvml: true,
        }
    }
}

/// All accelerators of this machine.
#[must_use]
pub fn detect() -> Vec<DetectedGpu> {
    detect_in(&Roots::default())
}

/// All accelerators under these roots.
#[must_use]
pub fn detect_in(roots: &Roots) -> Vec<DetectedGpu> {
    let mut list = if roots.nvml {
        nvml::devices()
    } else {
        Vec::new()
    };
    if list.is_empty() {
        list = nvidia_proc(&roots.proc);
    }
    list.extend(amd(&roots.sys));
    list
}

/// The entries of a folder that is allowed to be absent, sorted by name.
fn entries(dir: &Path) -> Vec<(String, PathBuf)> {
    let mut list: Vec<(String, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|e| {
            let e = e.ok()?;
            Some((e.file_name().into_string().ok()?, e.path()))
        })
        .collect();
    list.sort();
    list
}

/// A short file of the kernel as text.
fn line(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = printable(text.trim());
    (!text.is_empty()).then_some(text)
}

fn number(path: &Path) -> Option<u64> {
    line(path)?.parse().ok()
}

/// `/proc/driver/nvidia/gpus/*/information`: `Model:` and `GPU UUID:`.
fn nvidia_proc(proc: &Path) -> Vec<DetectedGpu> {
    let base = proc.join("driver/nvidia");
    // `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 ...`
    let driver = std::fs::read_to_string(base.join("version"))
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("NVRM version"))?;
            let is_version = |w: &&str| {
                w.contains('.')
                    && w.split('.')
                        .all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
            };
            line.split_whitespace().find(is_version).map(str::to_owned)
        });
    entries(&base.join("gpus"))
        .into_iter()
        .filter_map(|(_, path)| {
            let text = std::fs::read_to_string(path.join("information")).ok()?;
            let field = |key: &str| {
                let line = text.lines().find_map(|l| l.strip_prefix(key))?;
                Some(printable(line.trim_start_matches(':').trim())).filter(|v| !v.is_empty())
            };
            Some(DetectedGpu {
                vendor: Vendor::Nvidia,
                name: field("Model")?,
                total: None,
                used: None,
                free: None,
                uuid: field("GPU UUID").filter(|u| !u.contains('?')),
                driver: driver.clone(),
                compute: None,
            })
        })
        .collect()
}

/// PCI vendor number of AMD.
const AMD: &str = "0x1002";

/// `/sys/class/drm/card*/device/mem_info_vram_*`, which the amdgpu driver writes.
fn amd(sys: &Path) -> Vec<DetectedGpu> {
    let driver = line(&sys.join("module/amdgpu/version"));
    entries(&sys.join("class/drm"))
        .into_iter()
        // `card0`, not its connectors `card0-DP-1`.
        .filter(|(name, _)| {
            name.strip_prefix("card")
                .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        })
        .filter_map(|(_, path)| {
            let dir = path.join("device");
            if line(&dir.join("vendor")).as_deref() != Some(AMD) {
                return None;
            }
            let total = number(&dir.join("mem_info_vram_total"))?;
            let used = number(&dir.join("mem_info_vram_used")).filter(|&u| u <= total);
            let id = line(&dir.join("device")).unwrap_or_default();
            Some(DetectedGpu {
                vendor: Vendor::Amd,
                name: line(&dir.join("product_name"))
                    .unwrap_or_else(|| format!("AMD GPU {id}").trim().to_owned()),
                total: Some(Bytes::new(total)),
                used: used.map(Bytes::new),
                free: used.map(|u| Bytes::new(total - u)),
                uuid: line(&dir.join("unique_id")),
                driver: driver.clone(),
                compute: None,
            })
        })
        .collect()
}
