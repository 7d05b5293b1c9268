//! From a MODEL argument to a spec: `plimsoll-host` finds and reads, this gives its errors a code.

use plimsoll_host::{Env, HostError, Kind, LoadOptions};
use plimsoll_model::{Assume, ModelSpec, catalogue};

use crate::error::{Exit, Failure};

/// A model as loaded.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) read_from: String,
    pub(crate) spec: ModelSpec,
}

/// Finds and reads `model`.
pub(crate) fn load(model: &str, assume: Assume, offline: bool) -> Result<Loaded, Failure> {
    if catalogue::is_unpublished(model) {
        return Err(Failure::new(
            Exit::NotFound,
            "E-MODEL-003",
            format!("no shape of {model} has been published, so its memory cannot be planned"),
        )
        .why("a plan needs layers, heads and sizes, and guesses nothing")
        .hint("plan a model of known shape; `plimsoll models list` shows the built-in ones"));
    }
    let mut options = LoadOptions::new(Env::process());
    options.assume = assume;
    options.offline = offline;
    let located = crate::demo::find(model)?;
    let loaded = plimsoll_host::load(&located.reference, &options).map_err(|e| failure(&e))?;
    Ok(Loaded {
        name: model.to_owned(),
        read_from: loaded.origin,
        spec: loaded.spec,
    })
}

/// What, where, why and next step, with the exit code of its kind.
pub(crate) fn failure(e: &HostError) -> Failure {
    let (exit, code) = match e.kind() {
        Kind::NotFound => (Exit::NotFound, "E-MODEL-004"),
        Kind::Forbidden => (Exit::NotFound, "E-MODEL-005"),
        Kind::Offline => (Exit::Offline, "E-HUB-001"),
        Kind::Corrupt => (Exit::Corrupt, "E-MODEL-001"),
        Kind::Unreachable => (Exit::Unreachable, "E-TOP-001"),
        Kind::Temporary => (Exit::Temporary, "E-HUB-002"),
        Kind::Io => (Exit::Failure, "E-IO-003"),
        Kind::Usage => (Exit::Usage, "E-USAGE-001"),
    };
    let what = if e.place.is_empty() {
        e.what.clone()
    } else {
        format!("{}: {}", e.place, e.what)
    };
    let mut failure = Failure::new(exit, code, what);
    if !e.why.is_empty() {
        failure = failure.why(e.why.clone());
    }
    if !e.next.is_empty() {
        failure = failure.hint(e.next.clone());
    }
    failure
}
