//! `plimsoll explain`: what an error code means, and what to do.

use std::process::ExitCode;

use crate::error::{Exit, Failure};
use crate::output::Output;

/// Every code with its section.
const PAGE: &str = include_str!("../../../../docs/errors.md");

/// The code and text of each section.
fn sections() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGE.split("\n## ").skip(1).filter_map(|section| {
        let (heading, rest) = section.split_once('\n')?;
        // The heading of the next part of the page is none of this one.
        let text = rest.split("\n# ").next().unwrap_or(rest);
        Some((heading, text.trim()))
    })
}

/// The code that a heading names, without the status behind it.
fn code_of(heading: &str) -> &str {
    heading.split_once(' ').map_or(heading, |(code, _)| code)
}

pub(crate) fn run(code: Option<&str>, output: &mut Output) -> Result<ExitCode, Failure> {
    let Some(code) = code else {
        let list: Vec<String> = sections()
            .map(|(heading, text)| {
                let first = text.lines().next().unwrap_or_default();
                format!("{heading:<28} {first}")
            })
            .collect();
        output.line(&list.join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    };
    let asked = code.trim().trim_end_matches(':');
    let asked = asked
        .strip_prefix("error[")
        .and_then(|c| c.strip_suffix(']'))
        .unwrap_or(asked);
    let found = sections().find(|(heading, _)| code_of(heading).eq_ignore_ascii_case(asked));
    let Some((heading, text)) = found else {
        return Err(Failure::new(
            Exit::NotFound,
            "E-USAGE-012",
            format!("no error has the code `{code}`"),
        )
        .hint("`plimsoll explain` alone lists all of them"));
    };
    output.line(&format!("{heading}\n\n{text}"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_says_something_of_one_code() {
        let all: Vec<_> = sections().collect();
        assert!(all.len() > 100, "{}", all.len());
        for (i, (heading, text)) in all.iter().enumerate() {
            assert!(text.lines().count() >= 2, "{heading}: {text}");
            assert!(!text.contains('#'), "{heading}: {text}");
            let same = |(h, _): &(&str, &str)| code_of(h) == code_of(heading);
            assert_eq!(all.iter().position(same), Some(i), "{heading} stands twice");
        }
    }

    /// Codes in the sources of this crate.
    fn written(dir: &std::path::Path, found: &mut std::collections::BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                written(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for part in text.split("\"E-").skip(1) {
                let code = part.split('"').next().unwrap_or_default();
                let numbered = code.split_once('-').is_some_and(|(kind, n)| {
                    kind.chars().all(|c| c.is_ascii_uppercase()) && n.parse::<u32>().is_ok()
                });
                if numbered {
                    found.insert(format!("E-{code}"));
                }
            }
        }
    }

    #[test]
    fn every_code_has_a_section_and_every_section_a_code() {
        let mut codes = std::collections::BTreeSet::new();
        let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        written(&sources, &mut codes);
        let mut headings = codes;
        for (name, status) in plimsoll_server::error_codes() {
            headings.insert(format!("{name} ({status})"));
        }
        let explained: std::collections::BTreeSet<String> =
            sections().map(|(h, _)| h.to_owned()).collect();
        let missing: Vec<_> = headings.difference(&explained).collect();
        let left_over: Vec<_> = explained.difference(&headings).collect();
        assert!(missing.is_empty(), "without a section: {missing:?}");
        assert!(left_over.is_empty(), "without a code: {left_over:?}");
    }
}
