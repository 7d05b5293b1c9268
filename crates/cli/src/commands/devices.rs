//! `plimsoll devices`.

use std::process::ExitCode;

use plimsoll_device::devices;

use crate::error::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(json: bool, output: &mut Output) -> Result<ExitCode, Failure> {
    let mut text = String::new();
    for d in devices()
        .iter()
        .flat_map(|d| [d].into_iter().chain(&d.slices))
    {
        if json {
            let value = serde_json::json!({
                "name": d.name, "aliases": d.aliases, "vendor": d.vendor, "arch": d.arch,
                "usable_bytes": d.usable.get(), "driver_total_bytes": d.driver_total.get(),
                "unified": d.unified, "note": d.note, "memory_source": d.memory_source, "bandwidth_bytes_per_s": d.bandwidth, "source": d.source,
            });
            text.push_str(&value.to_string());
            text.push('\n');
        } else {
            let bandwidth = d
                .bandwidth
                .map_or_else(String::new, |b| format!("{:.0} GB/s", b / 1e9));
            text.push_str(&format!(
                "{:<24} {:>8} on the box  {:>10} {:<14}  {bandwidth:>10}  {}\n",
                d.name,
                d.marketing_memory,
                d.usable.to_string(),
                if d.unified {
                    "usable, shared"
                } else {
                    "usable"
                },
                d.aliases.first().map_or("", String::as_str)
            ));
        }
    }
    if text.is_empty() {
        return Err(Failure::new(
            Exit::Failure,
            "E-DEVICE-002",
            "the device catalogue is empty",
        ));
    }
    output.line(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// That no device is called `name`, with the names that look like it.
pub(crate) fn unknown(name: &str) -> Failure {
    let near = similar(name);
    let failure = Failure::new(
        Exit::Usage,
        "E-DEVICE-001",
        format!("no device is called `{name}`"),
    );
    if near.is_empty() {
        failure.hint("`plimsoll devices` lists them; `plan --memory 24GiB` plans for any other")
    } else {
        failure.hint(format!(
            "did you mean {}? `plimsoll devices` lists all",
            near.join(", ")
        ))
    }
}

/// Catalogue names that contain what was typed, or the other way round; at most four.
fn similar(name: &str) -> Vec<String> {
    let plain = |s: &str| s.to_ascii_lowercase().replace(['-', '_', ' '], "");
    let wanted = plain(name);
    let mut found: Vec<String> = devices()
        .iter()
        .filter(|d| {
            d.aliases.iter().chain([&d.name]).any(|a| {
                let a = plain(a);
                wanted.len() >= 2 && (a.contains(&wanted) || wanted.contains(&a))
            })
        })
        .map(|d| d.name.clone())
        .collect();
    found.truncate(4);
    found
}
