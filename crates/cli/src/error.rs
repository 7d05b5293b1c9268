//! [`Failure`]: an error as the user sees it, with its exit code.
//!
//! Four lines: what, where, why, next step. Exit codes are an interface, listed in README.md.

use std::path::Path;

use plimsoll_plan::PlanError;
use plimsoll_report::{ErrorBody, ErrorReport};

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something failed while running.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The answer is "does not fit"; the plan is still printed.
    DoesNotFit = 3,
    /// A model that is not there or not allowed.
    NotFound = 4,
    /// Not cached, and the network may not be used.
    Offline = 5,
    /// A file that is corrupt or contradicts itself.
    Corrupt = 65,
    /// A server that nobody answers for.
    Unreachable = 69,
    /// Try again later.
    Temporary = 75,
    /// A configuration that makes no sense.
    Config = 78,
}

/// An error on its way to the user.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Stable code, as E-MODEL-001.
    pub(crate) code: &'static str,
    pub(crate) what: String,
    pub(crate) why: Vec<String>,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, code: &'static str, what: impl Into<String>) -> Self {
        Self {
            exit,
            code,
            what: what.into(),
            why: Vec::new(),
            hint: None,
        }
    }

    pub(crate) fn why(mut self, text: impl Into<String>) -> Self {
        self.why.push(text.into());
        self
    }

    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = Some(text.into());
        self
    }

    /// `path` cannot be written.
    pub(crate) fn cannot_write(path: &Path, e: &std::io::Error) -> Self {
        Self::new(
            Exit::Failure,
            "E-IO-004",
            format!("cannot write {}: {e}", path.display()),
        )
        .hint("name a file in a folder that exists and has room")
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut out = format!("error[{}]: {}\n", self.code, self.what);
        for w in &self.why {
            out.push_str(&format!("  because {w}\n"));
        }
        if let Some(h) = &self.hint {
            out.push_str(&format!("  try: {h}\n"));
        }
        out
    }

    /// For a program.
    pub(crate) fn report(&self) -> ErrorReport {
        ErrorReport {
            error: ErrorBody {
                code: self.code.to_owned(),
                message: self.what.clone(),
                hint: self.hint.clone(),
                details: self.why.clone(),
            },
        }
    }
}

impl From<PlanError> for Failure {
    fn from(e: PlanError) -> Self {
        let (code, hint) = match &e {
            PlanError::Slices { card, .. } => {
                let hint = format!(
                    "write `--dp` for replicas on several slices, or give one larger slice or the whole card, `--gpu {card}`"
                );
                return Self::new(Exit::Usage, "E-PLAN-006", e.to_string()).hint(hint);
            }
            PlanError::Parallel(_) | PlanError::Shard(_) => (
                "E-PLAN-001",
                "choose degrees that divide heads, MLP columns and experts, or leave them out and let the planner choose",
            ),
            PlanError::Refused { .. } => (
                "E-PLAN-002",
                "leave that setting out, or choose another `--engine`",
            ),
            PlanError::Size(_) => (
                "E-PLAN-003",
                "use smaller numbers of users, tokens or bytes",
            ),
            PlanError::Model(_) => (
                "E-MODEL-002",
                "leave out what changes the model, such as `--quantization`",
            ),
            PlanError::Load(_) => ("E-PLAN-004", "change `--users`, `--context` or `--prompt`"),
        };
        Self::new(Exit::Usage, code, e.to_string()).hint(hint)
    }
}
