//! The card that a report names, in the catalogue.

use plimsoll_device::{Confidence, Device, devices, find};
use plimsoll_units::Bytes;

use super::record::Setup;

/// The device that `text` names: `H100`, `H100 80GB`, `NVIDIA GeForce RTX 4090`, `A100-80GB`, with a remark or without.
///
/// # Errors
/// The reason where it names none, several, or one that the catalogue lacks.
pub fn card(text: Option<&str>) -> Result<&'static Device, String> {
    let Some(text) = text.map(str::trim).filter(|t| !t.is_empty()) else {
        return Err("no card is named".to_owned());
    };
    if let Some(device) = find(text) {
        return Ok(device);
    }
    // What follows a comma is a remark, as in `NVIDIA Thor, unified memory`, or another card.
    let (name, remark) = text.split_once(',').unwrap_or((text, ""));
    let name = if remark.contains(|c: char| c.is_ascii_digit()) {
        text
    } else {
        name
    };
    let short = with_short_size(name);
    find(name)
        .or_else(|| find(&short))
        .ok_or_else(|| format!("`{text}` is not in the device catalogue"))
}

/// Cards that a text leaves open: `H200 or H20`, `24GB-class GPU`, `32GB Volta/Turing-class`.
pub(super) fn candidates(text: Option<&str>) -> Vec<&'static Device> {
    let Some(text) = text else { return Vec::new() };
    let lower = text.to_ascii_lowercase();
    if let Some((one, other)) = lower.split_once(" or ") {
        let first_word = |t: &str| t.split([' ', '(', ',']).next().unwrap_or("").to_owned();
        let named: Option<Vec<_>> = [first_word(one), first_word(other)]
            .iter()
            .map(|t| card(Some(t)).ok())
            .collect();
        return named.unwrap_or_default();
    }
    if !lower.contains("class") {
        return Vec::new();
    }
    let digits: String = lower.chars().take_while(char::is_ascii_digit).collect();
    let size = format!("{digits} gb");
    let archs: Vec<&str> = ["volta", "turing", "ampere", "ada", "hopper", "blackwell"]
        .into_iter()
        .filter(|a| lower.contains(a))
        .collect();
    devices()
        .iter()
        .filter(|d| d.marketing_memory.to_ascii_lowercase() == size)
        .filter(|d| archs.is_empty() || archs.iter().any(|a| d.arch.eq_ignore_ascii_case(a)))
        .collect()
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

/// `H100 80GB` as the catalogue writes it: `H100 80g`.
fn with_short_size(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let words: Vec<String> = lower
        .split([' ', '-', '_'])
        .filter(|w| !w.is_empty())
        .map(|w| match w.strip_suffix("gb").or(w.strip_suffix("gib")) {
            Some(n) if !n.is_empty() && n.chars().all(|c| c.is_ascii_digit()) => format!("{n}g"),
            _ => w.to_owned(),
        })
        .collect();
    words.join("-")
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
}
