//! The card that a report names, in the catalogue.

use plimsoll_device::{Confidence, Device, devices, find};
use plimsoll_units::Bytes;

use super::card_name::{described, named};
use super::record::Setup;

/// The device that `text` names: `H100`, `8x H100 80GB`, `NVIDIA GeForce RTX 4090`, `RTX PRO 6000-class (SM120)`, with
/// a remark or without.
///
/// # Errors
/// The reason where it names none, several, or one that the catalogue lacks.
pub fn card(text: Option<&str>) -> Result<&'static Device, String> {
    let Some(text) = text.map(str::trim).filter(|t| !t.is_empty()) else {
        return Err("no card is named".to_owned());
    };
    // What follows a comma or stands in brackets is a remark, as in `NVIDIA Thor, unified memory`, or another card.
    let remark = |t: &str| !t.contains(|c: char| c.is_ascii_digit());
    let bare = match text.split_once([',', '(']) {
        Some((name, rest)) if remark(rest) => name,
        _ => text,
    };
    find(text)
        .or_else(|| named(text))
        .or_else(|| named(bare))
        .ok_or_else(|| format!("`{text}` is not in the device catalogue"))
}

/// Cards that a text leaves open: `H200 or H20`, `24GB-class GPU`, `32GB Volta/Turing-class`, `compute capability < 8`.
pub(super) fn candidates(text: Option<&str>) -> Vec<&'static Device> {
    let Some(text) = text else { return Vec::new() };
    let head = text.split('(').next().unwrap_or(text);
    for between in [" or ", "/"] {
        let parts: Vec<&str> = head.split(between).collect();
        if let ([_, _, ..], Some(all)) = (
            parts.as_slice(),
            parts
                .iter()
                .map(|t| card(Some(t)).ok())
                .collect::<Option<Vec<_>>>(),
        ) {
            return all;
        }
    }
    let all = described(text);
    if all.is_empty() { described(head) } else { all }
}

/// The card of a setup: the one that it names, with the total that a process saw of it, or a card of that total.
///
/// # Errors
/// The reason where the setup shows neither.
pub fn device(setup: &Setup) -> Result<Device, String> {
    let named = card(setup.gpu.as_deref()).cloned();
    let total = setup
        .total_gpu_memory_gib
        .and_then(|g| Bytes::from_gib(g).ok())
        .filter(|b| *b > Bytes::ZERO);
    match (named, total) {
        (Ok(mut d), Some(total)) => {
            // Two printed decimals: keep the catalogue's exact figure where they agree.
            if (d.usable.gib() - total.gib()).abs() > 0.01 {
                d.usable = total;
            }
            Ok(d)
        }
        (Ok(d), None) => Ok(d),
        (Err(_), Some(total)) => {
            // The size alone names a card where only one kind has it to the printed digit; a size that
            // was derived is known no better than a card's neighbour.
            let mut same = devices()
                .iter()
                .filter(|d| d.confidence == Confidence::Printed)
                .filter(|d| (d.usable.gib() - total.gib()).abs() <= 0.005);
            match (same.next(), same.next()) {
                (Some(d), None) => Ok(d.clone()),
                _ => Ok(Device::of_size(total)),
            }
        }
        (Err(reason), None) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_as_people_write_them() {
        let name = |t: &str| card(Some(t)).map(|d| d.name.as_str()).ok();
        assert_eq!(name("H100 80GB"), Some("h100-80g-sxm"));
        assert_eq!(name("H100"), Some("h100-80g-sxm"));
        assert_eq!(name("A100-80GB"), Some("a100-80g-sxm"));
        assert_eq!(name("RTX 5060 Ti 16GB"), Some("rtx-5060-ti-16g"));
        assert_eq!(name("NVIDIA GeForce RTX 3090 Ti"), Some("rtx-3090-ti-24g"));
        assert_eq!(
            name("NVIDIA Thor, unified memory"),
            Some("jetson-thor-128g")
        );
        assert_eq!(name("RTX 4090, RTX 3090"), None, "two cards");
        assert_eq!(name("24GB-class GPU"), None);
        assert_eq!(name("H200 or H20 (page says 8x H200/H20)"), None);
        assert!(card(None).is_err());
    }

    #[test]
    fn cards_left_open() {
        let names = |t: &str| {
            let all = candidates(Some(t));
            all.iter().map(|d| d.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(
            names("H200 or H20 (page says 8x H200/H20)"),
            ["h200-141g-sxm", "h20-96g"]
        );
        assert_eq!(names("A100/H100"), ["a100-80g-sxm", "h100-80g-sxm"]);
        assert_eq!(
            names("32GB Volta/Turing-class (log: XFormers backend for Volta and Turing)"),
            ["v100-32g-sxm", "v100-32g-pcie"]
        );
        assert!(names("H200 or something").is_empty());
        assert!(candidates(None).is_empty());
    }
}
