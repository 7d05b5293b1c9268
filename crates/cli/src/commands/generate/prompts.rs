//! Prompts: one from the command line, or many from a file of JSON lines.

use plimsoll_model::json::printable;

use super::asked::Asked;
use crate::args::generate::GenerateArgs;
use crate::demo;
use crate::error::{Exit, Failure};

/// Most of a file of prompts.
const FILE_BYTES_MAX: u64 = 1 << 30;

pub(super) struct Prompt {
    pub(super) text: String,
    /// Where it stands, for errors.
    pub(super) place: String,
    pub(super) asked: Asked,
}

/// All prompts. One line that is wrong is an error before anything runs: answers of hours are not for lines that were
/// meant otherwise.
pub(super) fn read(args: &GenerateArgs) -> Result<Vec<Prompt>, Failure> {
    let flags = Asked::flags(args);
    let together = |asked: &Asked, searches, place: &str| {
        let what = asked.check(searches);
        what.map_err(|e| Failure::new(Exit::Usage, "E-GEN-003", format!("{place}: {e}")))
    };
    let Some(path) = &args.prompts else {
        together(&flags, flags.searches(), "the prompt")?;
        let demo = demo::is_meant(&args.model).then(|| demo::PROMPT.to_owned());
        let text = args.prompt.clone().or(demo).ok_or_else(|| {
            Failure::new(Exit::Usage, "E-GEN-003", "there is no prompt")
                .hint("add `-p TEXT`, or `--prompts FILE`")
        })?;
        return Ok(vec![Prompt {
            text,
            place: "the prompt".to_owned(),
            asked: flags,
        }]);
    };
    let place = path.display();
    let missing = |e: std::io::Error| {
        Failure::new(
            Exit::NotFound,
            "E-GEN-001",
            format!("cannot read {place}: {e}"),
        )
        .hint("name a file of JSON lines")
    };
    let size = std::fs::metadata(path).map_err(missing)?.len();
    if size > FILE_BYTES_MAX {
        return Err(Failure::new(
            Exit::Usage,
            "E-GEN-001",
            format!("{place} has {size} bytes"),
        )
        .hint("split it: a gibibyte is read at most"));
    }
    let text = std::fs::read_to_string(path).map_err(missing)?;
    let mut all = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let place = format!("{place}, line {}", i + 1);
        let bad = |what: &str| {
            Failure::new(Exit::Corrupt, "E-GEN-001", format!("{place}: {what}"))
                .hint("write {\"prompt\": \"...\", \"max_tokens\": 64}")
        };
        let asked: Asked = serde_json::from_str(line).map_err(|e| {
            let text = e.to_string();
            // The line is always its first.
            let what = text.rsplit_once(" at line ").map_or(&*text, |t| t.0);
            bad(&format!("column {}: {}", e.column(), printable(what)))
        })?;
        let Some(text) = asked.prompt.clone() else {
            return Err(bad("no text under `prompt`"));
        };
        if asked.max_tokens == Some(0) {
            return Err(bad("`max_tokens` is no number of tokens"));
        }
        // What flags ask of draws is not for a line that searches.
        let own = asked.clone();
        let asked = asked.or(&flags);
        together(&own, asked.searches(), &place)?;
        all.push(Prompt { text, place, asked });
    }
    if all.is_empty() {
        return Err(
            Failure::new(Exit::Corrupt, "E-GEN-001", format!("{place} has no prompt"))
                .hint("write {\"prompt\": \"...\"} on a line"),
        );
    }
    Ok(all)
}
