//! Checkpoints whose modules are not all stored alike: ModelOpt's `MIXED_PRECISION`, with a map of modules, and
//! compressed-tensors' groups.
//!
//! Sources: vLLM `model_executor/layers/quantization/modelopt.py` (`ModelOptMixedPrecisionConfig`), and
//! compressed-tensors `quantization/lifecycle/apply.py`: what a group names by module comes before what it names by class.

use std::collections::BTreeMap;

use super::{Extras, Pattern, QuantFormat, compressed_group, is_dynamic, modelopt as algorithm};
use crate::ModelError;
use crate::config::{Config, shorten};

/// Whether ModelOpt names a layout for each module.
pub(super) fn is_mixed(q: &Config<'_>) -> bool {
    let algo = q.str("quant_algo").unwrap_or_default();
    algo.eq_ignore_ascii_case("MIXED_PRECISION")
}

/// ModelOpt's `quantized_layers`: a layout for each module.
pub(super) fn modelopt(
    q: &Config<'_>,
    targets: &mut Vec<Pattern>,
    others: &mut Vec<(Pattern, QuantFormat)>,
) -> Result<QuantFormat, ModelError> {
    let key = "quantized_layers";
    let layers = q.object(key)?.ok_or_else(|| ModelError::Missing {
        field: q.path_of(key),
        why: "it says how each module is stored",
    })?;
    let mut modules: BTreeMap<String, QuantFormat> = BTreeMap::new();
    for name in layers.keys() {
        let Some(layer) = layers.object(name)? else {
            continue;
        };
        if layer.str("quant_algo") == Some("UNQUANTIZED") {
            continue;
        }
        let format = algorithm(&layer, "")?;
        let module = first_expert(name);
        let before = modules.insert(module, format);
        if before.is_some_and(|f| f != format) {
            let reason = format!(
                "the experts of one layer are stored alike, and those of `{}` are not",
                shorten(name)
            );
            return Err(q.reject(key, reason));
        }
    }
    let count = |format| modules.values().filter(|f| **f == format).count();
    let most = modules.values().copied().max_by_key(|f| count(*f));
    let most = most.ok_or_else(|| q.reject(key, "expected modules with their `quant_algo`"))?;
    for (name, format) in modules {
        if format == most {
            targets.push(Pattern::Name(name));
        } else {
            others.push((Pattern::Name(name), format));
        }
    }
    Ok(most)
}

/// A module's name with the first expert in place of any.
fn first_expert(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    for i in 1..parts.len() {
        let number = parts[i].bytes().all(|b| b.is_ascii_digit());
        if number && parts[i - 1] == "experts" {
            parts[i] = "0";
        }
    }
    parts.join(".")
}

/// compressed-tensors' `config_groups`.
pub(super) fn compressed(
    q: &Config<'_>,
    extras: &mut Extras,
    targets: &mut Vec<Pattern>,
    others: &mut Vec<(Pattern, QuantFormat)>,
) -> Result<QuantFormat, ModelError> {
    let groups = q
        .object("config_groups")?
        .ok_or_else(|| ModelError::Missing {
            field: q.path_of("config_groups"),
            why: "it says how the weights are packed",
        })?;
    // Whatever is a linear layer and not in the ignore list.
    extras.head = true;
    extras.tower = true;
    // ModelOpt writes a name here, compressed-tensors the parts.
    let named = q.str("kv_cache_scheme").is_some();
    if named {
        extras.kv_scales = true;
    } else if let Some(kv) = q.object("kv_cache_scheme")? {
        extras.kv_scales = !is_dynamic(&kv);
    }
    let mut everything: Option<QuantFormat> = None;
    let mut named: Vec<(Pattern, QuantFormat)> = Vec::new();
    let mut beside: Option<Extras> = None;
    for key in groups.keys() {
        let Some(group) = groups.object(key)? else {
            continue;
        };
        let Some(weights) = group.object("weights")? else {
            continue;
        };
        let input = group.object("input_activations")?;
        let stated = group.str("format").or(q.str("format"));
        let mut stored = *extras;
        let format = compressed_group(&weights, input.as_ref(), stated, &mut stored)?;
        if beside.is_some_and(|b| b != stored) {
            let reason = "groups of which some store zero points and some do not are not supported";
            return Err(q.reject("config_groups", reason));
        }
        beside = Some(stored);
        match group.strings("targets")? {
            Some(names) if !names.contains(&"Linear") => {
                for name in names {
                    named.push((Pattern::parse(&group, "targets", name)?, format));
                }
            }
            _ if everything.is_some_and(|f| f != format) => {
                let reason = "two groups are of all linear layers, in different formats";
                return Err(q.reject("config_groups", reason));
            }
            _ => everything = Some(format),
        }
    }
    *extras = beside.unwrap_or(*extras);
    let first = everything.or_else(|| named.first().map(|(_, format)| *format));
    let first =
        first.ok_or_else(|| q.reject("config_groups", "no group states a weight format"))?;
    for (pattern, format) in named {
        if format != first {
            others.push((pattern, format));
        } else if everything.is_none() {
            targets.push(pattern);
        }
    }
    Ok(first)
}
