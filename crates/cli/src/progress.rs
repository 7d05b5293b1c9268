//! [`Progress`]: how far work is, on one line of stderr, for people who wait.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Cells of the bar.
const BAR: usize = 24;

/// Time between two drawings.
const EVERY: Duration = Duration::from_millis(100);

/// A line on stderr that is gone at the end; nothing where stderr is no terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    /// When the line was last drawn; `None` where it never is.
    drawn: Option<Mutex<Instant>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let shown = std::io::stderr().is_terminal();
        Self {
            drawn: shown.then(|| Mutex::new(Instant::now())),
        }
    }

    /// `done` of `all` things called `what` are done.
    pub(crate) fn count(&self, done: usize, all: usize, what: &str) {
        self.show(|| bar(done, all, what));
    }

    /// Shows `text` in place of what was shown.
    pub(crate) fn show(&self, text: impl FnOnce() -> String) {
        let Some(Ok(mut drawn)) = self.drawn.as_ref().map(Mutex::try_lock) else {
            return;
        };
        if drawn.elapsed() >= EVERY {
            *drawn = Instant::now();
            let _ = write!(std::io::stderr(), "\r\u{1b}[K{}", text());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}

fn bar(done: usize, all: usize, what: &str) -> String {
    let full = BAR * done.min(all) / all.max(1);
    let (a, b) = ("#".repeat(full), ".".repeat(BAR - full));
    format!("[{a}{b}] {done}/{all} {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills() {
        assert_eq!(bar(0, 0, "runs"), format!("[{}] 0/0 runs", ".".repeat(24)));
        let half = format!("[{}{}] 5/10 runs", "#".repeat(12), ".".repeat(12));
        assert_eq!(bar(5, 10, "runs"), half);
        assert!(bar(10, 10, "runs").starts_with(&format!("[{}]", "#".repeat(24))));
    }
}
