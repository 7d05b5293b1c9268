//! How published checkpoints store their weights, where a configuration that is passed on leaves that out.
//!
//! A data file: for each checkpoint the `quantization_config` that it is published with (`source` says where it was read),
//! its list of modules that keep their type above all, which differs from one checkpoint of a maker to the next. Lists that
//! name a module of every layer are written with a `*`.
//!
//! This table is keyed by hub ids, which nothing else of the project may be: it stands in for the file of a checkpoint that
//! a report names and does not quote, so it is private to [`super`]. `plan`, `serve` and `compare` read a model's own files
//! and cannot reach it, whatever a folder is called; a report's own words come before it; each use is listed as assumed.

use std::sync::OnceLock;

use serde_json::Value;

const DATA: &str = include_str!("../../data/published.jsonl");

/// One way that checkpoints are stored in.
struct Published {
    checkpoints: Vec<String>,
    quantization: Value,
}

fn all() -> &'static [Published] {
    static ALL: OnceLock<Vec<Published>> = OnceLock::new();
    ALL.get_or_init(|| DATA.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Published> {
    let value: Value = serde_json::from_str(line).ok()?;
    let checkpoints = value.get("checkpoints")?.as_array()?;
    value.get("source")?.as_str()?;
    Some(Published {
        checkpoints: checkpoints
            .iter()
            .filter_map(|c| c.as_str().map(str::to_owned))
            .collect(),
        quantization: value.get("quantization_config")?.clone(),
    })
}

/// The `quantization_config` of a published checkpoint, by its hub id; case is ignored.
pub(super) fn quantization(checkpoint: &str) -> Option<&'static Value> {
    all()
        .iter()
        .find(|p| {
            p.checkpoints
                .iter()
                .any(|c| c.eq_ignore_ascii_case(checkpoint))
        })
        .map(|p| &p.quantization)
}

/// The same of NVIDIA's checkpoint of a model in a format: of `Qwen/Qwen3.6-27B` in `NVFP4` that is
/// `nvidia/Qwen3.6-27B-NVFP4`.
pub(super) fn of_nvidia(model: &str, format: &str) -> Option<&'static Value> {
    let bare = model.rsplit('/').next().unwrap_or(model);
    quantization(&format!("nvidia/{bare}-{format}"))
}

/// Whether a `quantization_config` says which modules keep their type: exporters always do, but for an empty list.
pub(super) fn names_modules(quantization: &Value) -> bool {
    [
        "ignore",
        "exclude_modules",
        "modules_to_not_convert",
        "ignored_layers",
        "quantized_layers",
    ]
    .iter()
    .any(|key| quantization.get(key).is_some_and(|v| !v.is_null()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_model::Config;
    use plimsoll_model::quant::QuantScheme;
    use serde_json::json;

    #[test]
    fn every_line_is_read_and_names_modules() {
        assert_eq!(all().len(), DATA.lines().count());
        for p in all() {
            let json = json!({"quantization_config": p.quantization});
            let config = Config::root(&json).expect("an object");
            let read = QuantScheme::from_config(&config);
            assert!(matches!(read, Ok(Some(_))), "{:?}: {read:?}", p.checkpoints);
            assert!(names_modules(&p.quantization), "{:?}", p.checkpoints);
        }
        assert!(!names_modules(&json!({"quant_method": "modelopt"})));
    }

    #[test]
    fn checkpoints_are_found_by_id() {
        assert!(quantization("NVIDIA/Gemma-4-31B-IT-NVFP4").is_some());
        assert!(of_nvidia("google/gemma-4-31b-it", "NVFP4").is_some());
        assert!(quantization("google/gemma-4-31b-it").is_none());
        assert!(of_nvidia("x", "FP8").is_none());
    }
}
