//! The built-in models: a data file of configs, each with its source.
//!
//! An entry holds what that model's `config.json` holds, and nothing else: no parameter count, no
//! byte total. `plimsoll models show NAME --config` prints it, and planning that file gives the
//! same plan as planning the name.

use std::sync::OnceLock;

use serde_json::Value;

const DATA: &str = include_str!("../data/catalogue.jsonl");

/// One built-in model.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name, lower case.
    pub name: String,
    /// Other names, hub ids among them.
    pub aliases: Vec<String>,
    /// Its `config.json`.
    pub config: Value,
    /// Where the config was read.
    pub source: String,
}

/// Models that people ask for but whose shape nobody has published.
const UNPUBLISHED: &[&str] = &[
    "gpt-3.5",
    "gpt-3.5-turbo",
    "gpt-4",
    "gpt-4-turbo",
    "gpt-4o",
    "gpt-4.1",
    "gpt-5",
    "o1",
    "o3",
    "o4-mini",
    "claude",
    "gemini",
    "grok-2",
    "grok-3",
];

/// Whether `name` is a well-known model without a published shape.
#[must_use]
pub fn is_unpublished(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let bare = name.rsplit('/').next().unwrap_or(&name);
    UNPUBLISHED.iter().any(|u| {
        bare == *u
            || bare
                .strip_prefix(u)
                .is_some_and(|rest| rest.starts_with('-') && rest != "-oss")
    }) && find(&name).is_none()
}

/// All built-in models, in file order.
///
/// # Panics
/// Never: a test reads every line of the embedded file.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES.get_or_init(|| DATA.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Entry> {
    let value: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| Some(value.get(key)?.as_str()?.to_owned());
    Some(Entry {
        name: text("name")?,
        aliases: value
            .get("aliases")?
            .as_array()?
            .iter()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect(),
        config: value.get("config")?.clone(),
        source: text("source")?,
    })
}

/// The entry with this name or alias; case is ignored.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    entries().iter().find(|e| {
        e.name.eq_ignore_ascii_case(name) || e.aliases.iter().any(|a| a.eq_ignore_ascii_case(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Assume, from_config};

    #[test]
    fn every_line_is_an_entry_that_lowers() {
        let lines = DATA.lines().filter(|l| !l.trim().is_empty()).count();
        assert_eq!(
            entries().len(),
            lines,
            "a line of the catalogue does not parse"
        );
        for e in entries() {
            if let Err(err) = from_config(&e.config, Assume::Nothing) {
                panic!("{}: {err}", e.name);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = entries()
            .iter()
            .flat_map(|e| e.aliases.iter().chain([&e.name]))
            .map(|n| n.to_ascii_lowercase())
            .collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
