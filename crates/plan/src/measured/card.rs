//! The card that a report names, in the catalogue.

use plimsoll_device::{Device, find};

/// The device that `text` names: `H100`, `H100 80GB`, `NVIDIA GeForce RTX 4090`, `A100-80GB`.
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
    let short = with_short_size(text);
    find(&short).ok_or_else(|| format!("`{text}` is not in the device catalogue"))
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
        assert_eq!(name("24GB-class GPU"), None);
        assert_eq!(name("H200 or H20 (page says 8x H200/H20)"), None);
        assert!(card(None).is_err());
    }
}
