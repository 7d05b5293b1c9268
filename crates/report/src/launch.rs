//! [`Launch`]: a server's start as words.

use std::fmt::Display;

/// How a server of an engine is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    engine: &'static str,
    environment: Vec<(&'static str, String)>,
    words: Vec<String>,
}

impl Launch {
    /// `engine` started by `words`: the program, then what stands before its flags.
    pub(crate) fn new(engine: &'static str, words: &[&str]) -> Self {
        Self {
            engine,
            environment: Vec::new(),
            words: words.iter().map(|w| (*w).to_owned()).collect(),
        }
    }

    /// Adds a flag with its value.
    pub(crate) fn flag(&mut self, name: &str, value: impl Display) {
        self.words.push(name.to_owned());
        self.words.push(value.to_string());
    }

    /// Adds flags, those with a value and those without.
    pub(crate) fn flags(&mut self, all: Vec<(&'static str, Option<String>)>) {
        for (name, value) in all {
            self.words.push(name.to_owned());
            self.words.extend(value);
        }
    }

    /// Adds a flag without one.
    pub(crate) fn switch(&mut self, name: &str) {
        self.words.push(name.to_owned());
    }

    /// Sets a variable of its environment.
    pub(crate) fn variable(&mut self, name: &'static str, value: String) {
        self.environment.push((name, value));
    }

    /// The variables of its environment that are set for it.
    #[must_use]
    pub fn environment(&self) -> &[(&'static str, String)] {
        &self.environment
    }

    /// The engine.
    #[must_use]
    pub const fn engine(&self) -> &'static str {
        self.engine
    }

    /// The program and its arguments.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// One line for a shell.
    #[must_use]
    pub fn command(&self) -> String {
        let set = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={}", quoted(value)));
        let words: Vec<String> = set.chain(self.words.iter().map(|w| quoted(w))).collect();
        words.join(" ")
    }
}

/// A word for a shell.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_read_more_into_them() {
        assert_eq!(quoted("sharegpt:rate=4"), "sharegpt:rate=4");
        assert_eq!(quoted("azure-code:fan=beam(4)"), "'azure-code:fan=beam(4)'");
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
        assert_eq!(quoted(""), "''");
        let mut l = Launch::new("plimsoll", &["plimsoll", "serve", "my model"]);
        l.flag("--tp", 2);
        assert_eq!(l.command(), "plimsoll serve 'my model' --tp 2");
    }
}
