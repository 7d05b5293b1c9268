//! Prompts: one from the command line, or many from a file of JSON lines.

use serde_json::Value;

use crate::args::generate::GenerateArgs;
use crate::demo;
use crate::error::{Exit, Failure};

/// Most of a file of prompts.
const FILE_BYTES_MAX: u64 = 1 << 30;

pub(super) struct Prompt {
    pub(super) text: String,
    pub(super) max_tokens: Option<u32>,
}

pub(super) fn read(args: &GenerateArgs) -> Result<Vec<Prompt>, Failure> {
    let Some(path) = &args.prompts else {
        let demo = demo::is_meant(&args.model).then(|| demo::PROMPT.to_owned());
        let text = args.prompt.clone().or(demo).ok_or_else(|| {
            Failure::new(Exit::Usage, "E-GEN-003", "there is no prompt")
                .hint("add `-p TEXT`, or `--prompts FILE`")
        })?;
        return Ok(vec![Prompt {
            text,
            max_tokens: None,
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
        let bad = |what: &str| {
            Failure::new(
                Exit::Corrupt,
                "E-GEN-001",
                format!("{place}, line {}: {what}", i + 1),
            )
            .hint("write {\"prompt\": \"...\", \"max_tokens\": 64}")
        };
        let value: Value = serde_json::from_str(line).map_err(|e| bad(&e.to_string()))?;
        let text = value
            .get("prompt")
            .and_then(Value::as_str)
            .ok_or_else(|| bad("no text under `prompt`"))?;
        let max_tokens = match value.get("max_tokens") {
            None | Some(Value::Null) => None,
            Some(n) => {
                let n = n.as_u64().and_then(|n| u32::try_from(n).ok());
                Some(
                    n.filter(|n| *n > 0)
                        .ok_or_else(|| bad("`max_tokens` is no number of tokens"))?,
                )
            }
        };
        all.push(Prompt {
            text: text.to_owned(),
            max_tokens,
        });
    }
    if all.is_empty() {
        return Err(
            Failure::new(Exit::Corrupt, "E-GEN-001", format!("{place} has no prompt"))
                .hint("write {\"prompt\": \"...\"} on a line"),
        );
    }
    Ok(all)
}
