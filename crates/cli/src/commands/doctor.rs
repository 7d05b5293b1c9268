//! `plimsoll doctor`, and `--gpu auto`.

mod gpu;
mod model;

use std::process::ExitCode;

use plimsoll_device::{Confidence, Device};
use plimsoll_host::gpu::{DetectedGpu, detect};
use plimsoll_host::memory::host;
use plimsoll_units::Bytes;

use crate::args::doctor::DoctorArgs;
use crate::error::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(args: &DoctorArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let json = args.json;
    if let Some(gpu) = args.gpu {
        return match &args.model {
            Some(model) => model::run(gpu, model, args, output),
            None => gpu::run(gpu, json, output),
        };
    }
    let gpus = detect();
    let memory = host();
    let size = |b: Option<Bytes>| b.map_or_else(|| "unknown".to_owned(), |b| b.to_string());
    if json {
        let rows: Vec<serde_json::Value> = gpus
            .iter()
            .map(|g| {
                serde_json::json!({
                    "name": g.name,
                    "total_bytes": g.total.map(Bytes::get),
                    "used_bytes": g.used.map(Bytes::get),
                    "free_bytes": g.free.map(Bytes::get),
                    "uuid": g.uuid,
                    "driver": g.driver,
                    "catalogue": plimsoll_device::find(&g.name).map(|d| d.name.clone()),
                })
            })
            .collect();
        let value = serde_json::json!({
            "schema": "plimsoll.doctor/1",
            "accelerators": rows,
            "host_usable_bytes": memory.usable().map(Bytes::get),
        });
        output.line(&value.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!(
        "host memory: {} usable by this process\n",
        size(memory.usable())
    );
    if gpus.is_empty() {
        text.push_str("accelerators: none found (no NVIDIA driver, no AMD device in sysfs)\n");
    }
    for g in &gpus {
        let known = plimsoll_device::find(&g.name).map_or_else(
            || "not in the catalogue".to_owned(),
            |d| format!("planned as {}", d.name),
        );
        text.push_str(&format!(
            "accelerator: {}, {} in all, {} in use; {known}\n",
            g.name,
            size(g.total),
            size(g.used)
        ));
    }
    output.line(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Left to the system and to other processes where no budget is given.
const OTHERS_MIB: u64 = 256;

/// This machine's processors with a budget of `memory`, else with what this process may take.
pub(crate) fn cpu(memory: Option<Bytes>) -> Result<Device, Failure> {
    let (usable, source) = match memory {
        Some(given) => (given, "given (--memory)".to_owned()),
        None => {
            let usable = host().usable().ok_or_else(|| {
                Failure::new(
                    Exit::Usage,
                    "E-DEVICE-005",
                    "this machine does not say how much memory it has",
                )
                .hint("give a budget with `--memory 64GiB`")
            })?;
            let others = Bytes::new(OTHERS_MIB << 20);
            let source = format!(
                "what this machine and its control group's limit leave, less {OTHERS_MIB} MiB for others"
            );
            (usable.saturating_sub(others), source)
        }
    };
    Ok(Device {
        name: "cpu".to_owned(),
        vendor: "cpu".to_owned(),
        memory_source: source,
        ..Device::of_size(usable)
    })
}

/// The device of this machine: the catalogue's entry where the driver's name is known, with the
/// driver's total; else a device of the size that the driver states.
pub(crate) fn detected() -> Result<Device, Failure> {
    let none = || {
        Failure::new(
            Exit::Usage,
            "E-DEVICE-003",
            "no accelerator was found on this machine",
        )
        .hint("name one with `--gpu h100`, or a size with `--memory 24GiB`")
    };
    let gpu = detect().into_iter().next().ok_or_else(none)?;
    from_driver(&gpu).ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            "E-DEVICE-004",
            format!(
                "the driver of {} does not say how much memory it has",
                gpu.name
            ),
        )
        .hint("give it with `--memory 24GiB`")
    })
}

fn from_driver(gpu: &DetectedGpu) -> Option<Device> {
    if let Some(known) = plimsoll_device::find(&gpu.name) {
        // Cards of one name come in sizes: the driver's total decides.
        let same = gpu
            .total
            .is_none_or(|t| t.get().abs_diff(known.driver_total.get()) < 1 << 30);
        if same {
            return Some(known.clone());
        }
    }
    let total = gpu.total?;
    Some(Device {
        name: gpu.name.clone(),
        compute_capability: gpu.compute,
        confidence: Confidence::Derived,
        memory_source: "the driver's total on this machine".to_owned(),
        ..Device::of_size(total)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_host::gpu::Vendor;

    fn gpu(name: &str, mib: u64) -> DetectedGpu {
        DetectedGpu {
            vendor: Vendor::Nvidia,
            name: name.to_owned(),
            total: Bytes::from_mib(mib).ok(),
            used: None,
            free: None,
            uuid: None,
            driver: None,
            compute: Some((8, 6)),
        }
    }

    #[test]
    fn a_known_name_with_another_size_is_another_card() {
        let known = from_driver(&gpu("NVIDIA H100 80GB HBM3", 81_559)).unwrap();
        assert_eq!(known.name, "h100-80g-sxm");
        let odd = from_driver(&gpu("NVIDIA GeForce RTX 3060", 8192)).unwrap();
        assert_eq!(odd.usable, Bytes::from_mib(8192).unwrap());
    }
}
