//! From a MODEL argument to a spec.

use plimsoll_model::{Assume, ModelSpec, catalogue, from_config};

use crate::error::{Exit, Failure};

/// A model as loaded.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) read_from: String,
    pub(crate) spec: ModelSpec,
}

pub(crate) fn load(model: &str, assume: Assume, _offline: bool) -> Result<Loaded, Failure> {
    let entry = catalogue::find(model);
    if let Some(entry) = entry {
        let spec = from_config(&entry.config, assume)
            .map_err(|e| Failure::new(Exit::Corrupt, "E-MODEL-001", format!("{model}: {e}")))?;
        return Ok(Loaded {
            name: model.to_owned(),
            read_from: format!("built-in catalogue ({})", entry.source),
            spec,
        });
    }
    if catalogue::is_unpublished(model) {
        return Err(Failure::new(
            Exit::NotFound,
            "E-MODEL-003",
            format!("no shape of {model} has been published, so its memory cannot be planned"),
        )
        .why("a plan needs layers, heads and sizes, and guesses nothing")
        .hint("plan a model of known shape; `plimsoll models list` shows the built-in ones"));
    }
    let text = std::fs::read_to_string(model)
        .map_err(|e| Failure::new(Exit::NotFound, "E-MODEL-004", format!("{model}: {e}")))?;
    let json: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Failure::new(Exit::Corrupt, "E-MODEL-001", format!("{model}: {e}")))?;
    let spec = from_config(&json, assume)
        .map_err(|e| Failure::new(Exit::Corrupt, "E-MODEL-001", format!("{model}: {e}")))?;
    Ok(Loaded {
        name: model.to_owned(),
        read_from: model.to_owned(),
        spec,
    })
}
