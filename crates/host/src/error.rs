//! [`HostError`]: why something of the machine could not be read, in four parts.

use std::fmt;

/// What sort of failure it is; the binary chooses the exit code by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such file, model or revision.
    NotFound,
    /// It is there, but not for this user.
    Forbidden,
    /// Not cached, and the network may not be used.
    Offline,
    /// A file that is damaged, or no model, or contradicts itself.
    Corrupt,
    /// It may work later.
    Temporary,
    /// Nobody answers there.
    Unreachable,
    /// The disk, or a server that does not do what it must.
    Io,
    /// The argument makes no sense.
    Usage,
}

/// Why something could not be read.
#[derive(Clone, PartialEq, Eq)]
pub struct HostError {
    kind: Kind,
    /// What failed.
    pub what: String,
    /// Where: a path, an address, an offset.
    pub place: String,
    /// Why.
    pub why: String,
    /// The next step.
    pub next: String,
}

impl HostError {
    /// An error of this kind; the other parts follow.
    #[must_use]
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            place: String::new(),
            why: String::new(),
            next: String::new(),
        }
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Sets where it happened.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = place.to_string();
        self
    }

    /// Sets why it happened.
    #[must_use]
    pub fn because(mut self, why: impl fmt::Display) -> Self {
        self.why = why.to_string();
        self
    }

    /// Sets the next step.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

impl fmt::Display for HostError {
    /// `what: where: why`, without the parts that are empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for part in [&self.place, &self.why] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {self} (next: {})", self.kind, self.next)
    }
}

impl std::error::Error for HostError {}
