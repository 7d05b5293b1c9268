//! [`Env`]: the environment as a value.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Environment variables, of this process or made up by a test.
#[derive(Clone, Default)]
pub struct Env {
    vars: BTreeMap<String, String>,
    process: bool,
}

impl std::fmt::Debug for Env {
    /// Names only: a value may be a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.vars.keys()).finish()
    }
}

impl Env {
    /// Those of this process; names and values that are not UTF-8 are left out.
    #[must_use]
    pub fn process() -> Self {
        let vars = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        Self {
            vars,
            process: true,
        }
    }

    /// Whether it is that of this process.
    #[must_use]
    pub const fn is_process(&self) -> bool {
        self.process
    }

    /// These and no others.
    #[must_use]
    pub fn of<'a>(vars: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let vars = vars
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        Self {
            vars,
            process: false,
        }
    }

    /// A variable that is set and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.vars
            .get(name)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }

    /// Whether a variable says yes, as the hub's libraries read it.
    #[must_use]
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_ascii_lowercase().as_str()))
    }

    /// A variable as a path, with a leading `~` replaced by the home folder.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let value = self.get(name)?;
        let rest = match value.strip_prefix('~') {
            Some("") => Some(""),
            Some(rest) => rest.strip_prefix('/'),
            None => None,
        };
        match (rest, self.home()) {
            (Some(rest), Some(home)) => Some(home.join(rest)),
            _ => Some(PathBuf::from(value)),
        }
    }

    /// The home folder.
    #[must_use]
    pub fn home(&self) -> Option<PathBuf> {
        self.get("HOME")
            .or_else(|| self.get("USERPROFILE"))
            .map(PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_flags_and_paths_and_hides_values() {
        let env = Env::of([
            ("A", "Yes"),
            ("B", "0"),
            ("C", ""),
            ("P", "~/x"),
            ("HOME", "/h"),
            ("HF_TOKEN", "hf_secret"),
        ]);
        assert!(env.is_true("A") && !env.is_true("B") && !env.is_true("C") && !env.is_true("D"));
        assert_eq!(env.get("C"), None);
        assert_eq!(env.path("P"), Some(PathBuf::from("/h/x")));
        assert!(!format!("{env:?}").contains("secret"));
    }
}
