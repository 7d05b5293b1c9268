//! The weight format of a report whose configuration does not state one.
//!
//! In order: the configuration's own `quantization_config`; the report's `quantization`; as a last
//! resort the scheme that a checkpoint's name ends with (`w8a8`, `FP8-dynamic`, `NVFP4` ...), which
//! is a statement about the weights by whoever made them, not about which model it is.

use plimsoll_model::quant::QuantFormat;
use serde_json::{Value, json};

use super::published;

/// What to do to the weights.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Weights {
    /// As the configuration says: quantised there, or not at all.
    AsConfigured,
    /// As if the configuration carried this `quantization_config`.
    Stored(Value),
    /// Quantised while loading.
    Online(QuantFormat),
    /// Not known, with the reason.
    Unknown(String),
}

/// The weight format, and what was assumed.
pub(super) fn weights(
    configured: bool,
    quantization: Option<&str>,
    model: &str,
) -> (Weights, Option<String>) {
    if configured {
        return (Weights::AsConfigured, None);
    }
    let text = quantization.unwrap_or("").trim().to_ascii_lowercase();
    let by_name = of_name(model);
    let from_name = |scheme: Scheme| {
        (
            Weights::Stored(scheme.config()),
            Some(format!(
                "weight format {} from the checkpoint's name",
                scheme.0
            )),
        )
    };
    let from_text = |scheme: Scheme| {
        (
            Weights::Stored(scheme.config()),
            Some(format!("weight format {}: its usual layout", scheme.0)),
        )
    };
    let has = |part: &str| text.contains(part);
    if text.is_empty() || text == "none" {
        return by_name.map_or((Weights::AsConfigured, None), from_name);
    }
    if has("gguf") {
        return (Weights::AsConfigured, None);
    }
    if has("fp8") && has("dynamic") {
        return from_text(Scheme("fp8-dynamic", 8));
    }
    if text == "fp8" {
        return by_name.map_or(
            (
                Weights::Online(QuantFormat::Fp8Tensor {
                    static_input: false,
                }),
                Some("fp8 applied while loading an unquantised checkpoint".to_owned()),
            ),
            from_name,
        );
    }
    if has("bitsandbytes") || text.starts_with("bnb") {
        return (
            Weights::Online(QuantFormat::Bnb4),
            Some("bitsandbytes in 4 bits".to_owned()),
        );
    }
    let bits = bits(&text).or(by_name.map(|s| s.1)).or(bits(model));
    if has("nvfp4")
        && has("modelopt")
        && let Some(published) = published::of_nvidia(model, "NVFP4")
    {
        return (
            Weights::Stored(published.clone()),
            Some("weight format of NVIDIA's NVFP4 checkpoint of the model".to_owned()),
        );
    }
    let scheme = if has("nvfp4") || has("modelopt_fp4") {
        Some(Scheme("nvfp4", 4))
    } else if has("mxfp4") {
        Some(Scheme("mxfp4", 4))
    } else if has("awq") {
        Some(Scheme("awq", bits.unwrap_or(4)))
    } else if has("gptq_marlin") {
        Some(Scheme("gptq_marlin", bits.unwrap_or(4)))
    } else if has("gptq") {
        Some(Scheme("gptq", bits.unwrap_or(4)))
    } else if has("auto_round") || has("auto-round") || has("autoround") {
        Some(Scheme("auto-round", bits.unwrap_or(4)))
    } else if has("w4a16") {
        Some(Scheme("w4a16", 4))
    } else if has("w8a16") {
        Some(Scheme("w8a16", 8))
    } else if has("w8a8") {
        Some(Scheme("w8a8", 8))
    } else {
        None
    };
    if let Some(scheme) = scheme {
        return from_text(scheme);
    }
    if has("aqlm") {
        return (
            Weights::Stored(aqlm(&text, model)),
            Some("weight format aqlm: its books as named, else one of 16 bits".to_owned()),
        );
    }
    if has("compressed-tensors") || has("compressed_tensors") || has("modelopt") {
        if let Some(scheme) = by_name {
            return from_name(scheme);
        }
        return (
            Weights::Unknown(format!(
                "`{}` does not say how the weights are packed, and the configuration has no \
                 quantization_config",
                quantization.unwrap_or("")
            )),
            None,
        );
    }
    (
        Weights::Unknown(format!(
            "weight format `{}` is not modelled",
            quantization.unwrap_or("")
        )),
        None,
    )
}

/// A scheme by its usual name, and bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scheme(&'static str, u64);

/// The scheme that a checkpoint's name ends with, if any.
fn of_name(model: &str) -> Option<Scheme> {
    let lower = model
        .rsplit('/')
        .next()
        .unwrap_or(model)
        .to_ascii_lowercase()
        .replace('_', "-");
    let has = |part: &str| lower.contains(part);
    let four = || bits(&lower).unwrap_or(4);
    if has("fp8-dynamic") {
        Some(Scheme("fp8-dynamic", 8))
    } else if has("nvfp4") {
        Some(Scheme("nvfp4", 4))
    } else if has("mxfp4") {
        Some(Scheme("mxfp4", 4))
    } else if has("w8a8") {
        Some(Scheme("w8a8", 8))
    } else if has("w4a16") {
        Some(Scheme("w4a16", 4))
    } else if has("w8a16") {
        Some(Scheme("w8a16", 8))
    } else if has("awq") {
        Some(Scheme("awq", four()))
    } else if has("gptq") {
        Some(Scheme("gptq", four()))
    } else if has("-fp8") {
        Some(Scheme("fp8", 8))
    } else {
        None
    }
}

/// AQLM's configuration, with books as a text or a name has them (`2Bit-1x16`, `2x8`).
fn aqlm(text: &str, model: &str) -> Value {
    let lower = model.to_ascii_lowercase();
    let words = text
        .split(['-', '_', ' ', '/'])
        .chain(lower.split(['-', '_', '/']));
    let books = words.into_iter().find_map(|word| {
        let (books, bits) = word.split_once('x')?;
        let books = books.parse::<u64>().ok().filter(|n| (1..=8).contains(n))?;
        let bits = bits.parse::<u64>().ok().filter(|n| (1..=16).contains(n))?;
        Some((books, bits))
    });
    let (books, bits) = books.unwrap_or((1, 16));
    json!({
        "quant_method": "aqlm", "num_codebooks": books, "nbits_per_codebook": bits,
        "in_group_size": 8, "out_group_size": 1,
        "linear_weights_not_to_quantize": ["lm_head.weight"],
    })
}

/// Bits that a text names.
fn bits(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    for n in [2, 3, 4, 8] {
        let forms = [
            format!("int{n}"),
            format!("{n}bit"),
            format!("{n}-bit"),
            format!("w{n}a"),
        ];
        if forms.iter().any(|f| lower.contains(f)) {
            return Some(n);
        }
    }
    None
}

impl Scheme {
    /// The `quantization_config` that such checkpoints carry.
    fn config(self) -> Value {
        let Self(name, bits) = self;
        let compressed = |format: &str, weights: Value, input: Value| {
            json!({
                "quant_method": "compressed-tensors",
                "format": format,
                "config_groups": {
                    "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": input}
                },
                "ignore": ["lm_head"],
            })
        };
        match name {
            "fp8-dynamic" => compressed(
                "float-quantized",
                json!({"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true}),
                json!({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}),
            ),
            "w8a8" => compressed(
                "int-quantized",
                json!({"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true}),
                json!({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true}),
            ),
            "w4a16" | "w8a16" => compressed(
                "pack-quantized",
                json!({"num_bits": bits, "type": "int", "strategy": "group", "group_size": 128, "symmetric": true}),
                Value::Null,
            ),
            "nvfp4" => {
                json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]})
            }
            "mxfp4" => json!({"quant_method": "mxfp4"}),
            "fp8" => json!({"quant_method": "fp8", "activation_scheme": "static"}),
            // GPTQ, AWQ and AutoRound write groups of 128 unless told otherwise.
            method => json!({"quant_method": method, "bits": bits, "group_size": 128}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(q: Option<&str>, model: &str) -> Weights {
        weights(false, q, model).0
    }

    #[test]
    fn the_report_wins_over_the_name() {
        assert_eq!(of(None, "org/Llama-8B"), Weights::AsConfigured);
        assert!(matches!(
            of(Some("fp8"), "org/Llama-8B"),
            Weights::Online(_)
        ));
        assert!(matches!(
            of(Some("fp8"), "org/Llama-FP8-dynamic"),
            Weights::Stored(_)
        ));
        let Weights::Stored(v) = of(Some("gptq_marlin"), "org/x-quantized.w4a16") else {
            panic!("a stored format");
        };
        assert_eq!(v["quant_method"], "gptq_marlin");
        assert_eq!(v["bits"], 4);
        let Weights::Stored(v) = of(Some("modelopt nvfp4"), "Qwen/Qwen3.6-35B-A3B") else {
            panic!("a stored format");
        };
        assert_eq!(v["quant_algo"], "MIXED_PRECISION");
        let aqlm = |model: &str| match of(Some("aqlm"), model) {
            Weights::Stored(v) => (v["num_codebooks"].clone(), v["nbits_per_codebook"].clone()),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            aqlm("org/Llama-3.1-8B-AQLM-PV-2Bit-1x16-hf"),
            (json!(1), json!(16))
        );
        assert_eq!(
            aqlm("org/Llama-2-7b-AQLM-2Bit-2x8-hf"),
            (json!(2), json!(8))
        );
        assert_eq!(aqlm("org/Mixtral-8x7B-Instruct"), (json!(1), json!(16)));
        assert!(matches!(of(Some("quip"), "x"), Weights::Unknown(_)));
        assert!(matches!(
            of(Some("int4 (compressed-tensors QAT)"), "x"),
            Weights::Unknown(_)
        ));
        assert!(matches!(of(None, "x-quantized.w8a8"), Weights::Stored(_)));
    }

    #[test]
    fn made_up_configs_are_read_by_the_model_crate() {
        for scheme in [
            Scheme("fp8-dynamic", 8),
            Scheme("w8a8", 8),
            Scheme("w4a16", 4),
            Scheme("w8a16", 8),
            Scheme("nvfp4", 4),
            Scheme("mxfp4", 4),
            Scheme("fp8", 8),
            Scheme("gptq", 4),
            Scheme("awq", 4),
            Scheme("auto-round", 4),
        ] {
            let json = json!({"quantization_config": scheme.config()});
            let config = plimsoll_model::Config::root(&json).expect("an object");
            let read = plimsoll_model::quant::QuantScheme::from_config(&config);
            assert!(matches!(read, Ok(Some(_))), "{scheme:?}: {read:?}");
        }
    }
}
