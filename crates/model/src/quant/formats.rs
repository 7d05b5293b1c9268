//! The layouts that a `quantization_config` names, by `quant_method`.

use super::{Extras, Pattern, QuantFormat};
use crate::ModelError;
use crate::config::Config;

pub(super) fn bits(q: &Config<'_>) -> Result<u64, ModelError> {
    let bits = q.dim(&["bits", "w_bit"], "it is the width of a packed weight")?;
    if ![2, 3, 4, 8].contains(&bits) {
        return Err(q.reject("bits", "expected 2, 3, 4 or 8"));
    }
    Ok(bits)
}

/// `group_size`; −1 means one group for the whole row.
pub(super) fn group(q: &Config<'_>) -> Result<Option<u64>, ModelError> {
    for key in ["group_size", "q_group_size"] {
        if q.get(key).and_then(serde_json::Value::as_i64) == Some(-1) {
            return Ok(None);
        }
        if q.has(key) {
            return q
                .dim(&[key], "it is the number of inputs per scale")
                .map(Some);
        }
    }
    Ok(None)
}

/// AQLM's books. Source: AQLM `aqlm/inference.py` (`QuantizedLinear`); vLLM 0.5 to 0.9 `quantization/aqlm.py`.
pub(super) fn aqlm(q: &Config<'_>) -> Result<QuantFormat, ModelError> {
    let bits = q.dim(&["nbits_per_codebook"], "it is the width of a code")?;
    if !(1..=16).contains(&bits) {
        return Err(q.reject("nbits_per_codebook", "expected 1 to 16"));
    }
    if q.opt("out_group_size")?.unwrap_or(1) != 1 {
        return Err(q.reject(
            "out_group_size",
            "expected 1: vectors over several outputs are not supported",
        ));
    }
    Ok(QuantFormat::Aqlm {
        books: q.dim(&["num_codebooks"], "it is the number of books of a matrix")?,
        bits,
        group: q.dim(&["in_group_size"], "it is the number of inputs of a vector")?,
    })
}

pub(super) fn awq(q: &Config<'_>) -> Result<QuantFormat, ModelError> {
    Ok(QuantFormat::Awq {
        bits: bits(q)?,
        group: group(q)?.unwrap_or(128),
    })
}

/// GPTQ's `modules_in_block_to_quantize`: lists of names inside a decoder layer.
pub(super) fn blocks(q: &Config<'_>) -> Result<Vec<Pattern>, ModelError> {
    let key = "modules_in_block_to_quantize";
    let Some(value) = q.get(key) else {
        return Ok(Vec::new());
    };
    let groups = value
        .as_array()
        .ok_or_else(|| q.reject(key, "expected an array"))?;
    let mut patterns = Vec::new();
    for group in groups {
        let names = match group {
            serde_json::Value::Array(names) => names.as_slice(),
            name => std::slice::from_ref(name),
        };
        for name in names {
            let name = name
                .as_str()
                .ok_or_else(|| q.reject(key, "expected module names"))?;
            patterns.push(Pattern::Name(name.to_owned()));
        }
    }
    Ok(patterns)
}

pub(super) fn fp8(q: &Config<'_>, method: &str) -> Result<QuantFormat, ModelError> {
    if let Some(block) = q.numbers("weight_block_size")? {
        return match block.as_slice() {
            [rows, cols] if *rows > 0 && *cols > 0 => Ok(QuantFormat::Fp8Block {
                rows: *rows,
                cols: *cols,
            }),
            _ => Err(q.reject("weight_block_size", "expected two numbers, 1 or more")),
        };
    }
    if method == "fbgemm_fp8" {
        return Ok(QuantFormat::Fp8Channel);
    }
    Ok(QuantFormat::Fp8Tensor {
        static_input: q.str("activation_scheme") == Some("static"),
    })
}

/// A layout that ModelOpt names in `quant_algo`; `default` where it is silent.
pub(super) fn modelopt(q: &Config<'_>, default: &str) -> Result<QuantFormat, ModelError> {
    let algo = q.str("quant_algo").unwrap_or(default);
    match algo.to_ascii_uppercase().as_str() {
        "FP8" => Ok(QuantFormat::Fp8Tensor { static_input: true }),
        "NVFP4" => Ok(QuantFormat::Nvfp4),
        "W4A16_NVFP4" => Ok(QuantFormat::Nvfp4Weights),
        "MXFP8" => Ok(QuantFormat::Mxfp8),
        _ => Err(q.reject("quant_algo", "expected FP8, NVFP4, W4A16_NVFP4 or MXFP8")),
    }
}

/// Whether a checkpoint asks for keys and values in 8-bit floats: `kv_cache_quant_algo` or `kv_cache_scheme`, by name or
/// by parts. Sources: ModelOpt's `hf_quant_config.json`; compressed-tensors; vLLM `utils/torch_utils.py`
/// (`get_kv_cache_quant_algo_string`).
///
/// ModelOpt's parts must say that they are not dynamic; compressed-tensors' are not unless they say so. The scheme comes
/// before the algorithm.
pub(super) fn kv_fp8(q: &Config<'_>, method: &str) -> bool {
    let said = ["kv_cache_scheme", "kv_cache_quant_algo"]
        .into_iter()
        .find_map(|key| q.get(key).filter(|v| !v.is_null()));
    match said {
        Some(serde_json::Value::String(name)) => name.eq_ignore_ascii_case("fp8"),
        Some(parts) => {
            let dynamic = parts.get("dynamic").and_then(serde_json::Value::as_bool);
            parts.get("num_bits").and_then(serde_json::Value::as_u64) == Some(8)
                && parts.get("type").and_then(serde_json::Value::as_str) == Some("float")
                && !dynamic.unwrap_or(method.starts_with("modelopt"))
        }
        None => false,
    }
}

/// Whether scales are computed at run time and so not stored; `"local"` still stores a global one.
pub(super) fn is_dynamic(scheme: &Config<'_>) -> bool {
    scheme.get("dynamic") == Some(&serde_json::Value::Bool(true))
}

pub(super) fn compressed_group(
    weights: &Config<'_>,
    input: Option<&Config<'_>>,
    stated: Option<&str>,
    extras: &mut Extras,
) -> Result<QuantFormat, ModelError> {
    let bits = weights.dim(&["num_bits"], "it is the width of a stored weight")?;
    let float = weights.str("type") == Some("float");
    let group = weights.opt("group_size")?.filter(|g| *g > 0);
    let strategy = weights.str("strategy").unwrap_or(match group {
        Some(_) => "group",
        None => "tensor",
    });
    let asymmetric = !weights.flag("symmetric", true)?;
    let static_input = input.is_some_and(|i| !is_dynamic(i));
    if let Some(input) = input.filter(|_| static_input) {
        extras.input_zero_point |= !input.flag("symmetric", true)?;
    }
    let packed = stated.is_none_or(|f| f.contains("pack"));
    let block = match weights.numbers("block_structure") {
        Ok(Some(list)) => list,
        Ok(None) => Vec::new(),
        // Early versions wrote "128x128".
        Err(_) => {
            let text = weights.str("block_structure").unwrap_or_default();
            text.split('x').filter_map(|n| n.parse().ok()).collect()
        }
    };
    Ok(match (float, bits, strategy) {
        (true, 8, "channel") if static_input => {
            return Err(weights.reject(
                "strategy",
                "a stored activation scale beside one weight scale per row is not supported",
            ));
        }
        (true, 8, "channel") => QuantFormat::Fp8Channel,
        (true, 8, "block") => match block.as_slice() {
            [rows, cols] if *rows > 0 && *cols > 0 => QuantFormat::Fp8Block {
                rows: *rows,
                cols: *cols,
            },
            _ => {
                return Err(weights.reject("block_structure", "expected two numbers, 1 or more"));
            }
        },
        (true, 8, "group") if group == Some(32) => QuantFormat::Mxfp8,
        (true, 8, "tensor") => QuantFormat::Fp8Tensor { static_input },
        (true, 4, _) if group == Some(32) => QuantFormat::Mxfp4Packed,
        (true, 4, _) if static_input => QuantFormat::Nvfp4,
        (true, 4, _) => QuantFormat::Nvfp4Weights,
        (false, 2 | 3 | 4 | 8, _) if packed && !(bits == 8 && stated.is_none()) => {
            QuantFormat::Packed {
                bits,
                group,
                zero_points: asymmetric,
                g_idx: weights.str("actorder") == Some("group"),
            }
        }
        (false, 2..=8, _) => {
            extras.zero_points |= asymmetric;
            match (strategy, group) {
                ("channel", _) => QuantFormat::Int8Channel { static_input },
                ("tensor", _) if !static_input => QuantFormat::Int8Tensor,
                ("group", Some(group)) if !static_input => QuantFormat::Int8Group { group },
                _ => {
                    return Err(weights.reject(
                        "strategy",
                        "expected channel, group or tensor, the latter two without stored activation scales",
                    ));
                }
            }
        }
        _ => {
            return Err(weights.reject(
                "num_bits",
                "expected 8-bit or 4-bit float in a known strategy, or 2- to 8-bit integers",
            ));
        }
    })
}
