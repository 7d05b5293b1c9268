//! Weight formats: what a quantised checkpoint stores in place of a linear layer's weight.
//!
//! Each format replaces `module.weight` by packed weights, scales and zero points, under the
//! names that its exporter writes. Sources, by `quant_method`: AutoGPTQ / GPTQModel, AutoAWQ,
//! `compressed-tensors` (float-, int- and pack-quantized, nvfp4), DeepSeek's block `fp8`,
//! OpenAI's `mxfp4`, NVIDIA `modelopt`, bitsandbytes.

use plimsoll_units::{DType, SizeOverflow};

use crate::ModelError;
use crate::config::Config;
use crate::spec::ModelSpec;
use crate::tensor::{Axis, Linear, Role, Shard, TensorSpec};

/// How the weights of linear layers are stored, and which are left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantScheme {
    /// The layout.
    pub format: QuantFormat,
    /// Modules that keep their type.
    pub ignore: Vec<Pattern>,
    /// `quant_method` as written, for engines whose loader depends on it.
    pub method: String,
}

/// One layout of a quantised weight matrix `[out, inp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantFormat {
    /// 8-bit float, one scale per tensor; `static_input`: a stored activation scale too.
    Fp8Tensor {
        /// Whether an activation scale is stored.
        static_input: bool,
    },
    /// 8-bit float, one scale per output row.
    Fp8Channel,
    /// 8-bit float, one f32 scale per block of `rows` × `cols`.
    Fp8Block {
        /// Rows of a block.
        rows: u64,
        /// Columns of a block.
        cols: u64,
    },
    /// 8-bit integer, one scale per output row.
    Int8Channel {
        /// Whether an activation scale is stored.
        static_input: bool,
    },
    /// GPTQ: packed `qweight`, `qzeros`, 16-bit scales per group and `g_idx`.
    Gptq {
        /// Bits per weight.
        bits: u64,
        /// Inputs per group; `None` for one group per column.
        group: Option<u64>,
    },
    /// AWQ: packed `qweight`, `qzeros`, 16-bit scales per group.
    Awq {
        /// Bits per weight.
        bits: u64,
        /// Inputs per group.
        group: u64,
    },
    /// compressed-tensors `pack-quantized`: packed weight, 16-bit scales, optional zero points.
    Packed {
        /// Bits per weight.
        bits: u64,
        /// Inputs per group; `None` for one scale per output row.
        group: Option<u64>,
        /// Whether zero points are stored.
        zero_points: bool,
        /// Whether a group index is stored (activation ordering).
        g_idx: bool,
    },
    /// 4-bit float with one power-of-two scale per 32 (routed experts of gpt-oss).
    Mxfp4,
    /// 4-bit float with one e4m3 scale per 16 and a per-tensor f32 scale.
    Nvfp4,
    /// bitsandbytes 4-bit with f32 `absmax` per 64.
    Bnb4,
    /// bitsandbytes 8-bit with one f32 scale per output row.
    Bnb8,
}

impl QuantFormat {
    /// A short name for reports.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Fp8Tensor { .. } => "fp8, one scale per tensor".to_owned(),
            Self::Fp8Channel => "fp8, one scale per row".to_owned(),
            Self::Fp8Block { rows, cols } => format!("fp8, one scale per {rows}x{cols} block"),
            Self::Int8Channel { .. } => "int8, one scale per row".to_owned(),
            Self::Gptq { bits, group } => format!("gptq {bits}-bit, group {}", group_name(group)),
            Self::Awq { bits, group } => format!("awq {bits}-bit, group {group}"),
            Self::Packed { bits, group, .. } => {
                format!("packed {bits}-bit, group {}", group_name(group))
            }
            Self::Mxfp4 => "mxfp4".to_owned(),
            Self::Nvfp4 => "nvfp4".to_owned(),
            Self::Bnb4 => "bitsandbytes 4-bit".to_owned(),
            Self::Bnb8 => "bitsandbytes 8-bit".to_owned(),
        }
    }
}

fn group_name(group: Option<u64>) -> String {
    group.map_or_else(|| "whole row".to_owned(), |g| g.to_string())
}

/// Which modules an ignore list names.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// A name, a prefix, a part of the path, or a glob with `*`.
    Name(String),
    /// A regular expression (compressed-tensors `re:`), matched from the start.
    Regex(regex_lite::Regex),
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(a), Self::Name(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Pattern {
    fn parse(config: &Config<'_>, key: &str, text: &str) -> Result<Self, ModelError> {
        let Some(expression) = text.strip_prefix("re:") else {
            return Ok(Self::Name(text.to_owned()));
        };
        regex_lite::Regex::new(&format!("^(?:{expression})"))
            .map(Self::Regex)
            .map_err(|e| config.reject(key, format!("`{text}` is not a regular expression: {e}")))
    }

    fn matches(&self, module: &str) -> bool {
        match self {
            Self::Regex(r) => r.is_match(module),
            Self::Name(n) if n.contains('*') => glob(n, module),
            Self::Name(n) => module.match_indices(n.as_str()).any(|(at, m)| {
                let before = at == 0 || module.as_bytes()[at - 1] == b'.';
                let end = at + m.len();
                let after = end == module.len() || module.as_bytes()[end] == b'.';
                before && after
            }),
        }
    }
}

/// Whether `text` starts with what `pattern` describes, `*` standing for anything but a dot's end.
fn glob(pattern: &str, text: &str) -> bool {
    let mut rest = text;
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else {
        return false;
    };
    let Some(after) = rest.strip_prefix(first) else {
        return false;
    };
    rest = after;
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty() || rest.starts_with('.') || pattern.ends_with('*')
}

const SUFFIXES: &[&str] = &[
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "input_scale",
    "scales",
    "qzeros",
    "g_idx",
    "weight_g_idx",
    "weight_zero_point",
    "weight_shape",
    "absmax",
    "_scales",
];

/// Whether a tensor only describes a quantised one.
#[must_use]
pub fn is_auxiliary(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    SUFFIXES
        .iter()
        .any(|s| last == *s || (s.starts_with('_') && last.ends_with(s)))
}

impl QuantScheme {
    /// Reads `quantization_config` (or `compression_config`), wherever the wrapper keeps it.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for a method or layout that is unknown: its bytes are not guessed.
    pub fn from_config(config: &Config<'_>) -> Result<Option<Self>, ModelError> {
        let text = config.text()?;
        for place in [config, &text] {
            for key in ["quantization_config", "compression_config"] {
                if let Some(q) = place.object(key)? {
                    return Self::read(&q).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn read(q: &Config<'_>) -> Result<Self, ModelError> {
        let method = q.str("quant_method").unwrap_or("").to_ascii_lowercase();
        let format = match method.as_str() {
            "fp8" | "fbgemm_fp8" => fp8(q, &method)?,
            "gptq" | "gptq_marlin" => QuantFormat::Gptq {
                bits: bits(q)?,
                group: group(q)?,
            },
            "awq" | "awq_marlin" => QuantFormat::Awq {
                bits: bits(q)?,
                group: group(q)?.unwrap_or(128),
            },
            "auto-round" | "auto_round" | "intel/auto-round" => QuantFormat::Gptq {
                bits: bits(q)?,
                group: group(q)?,
            },
            "compressed-tensors" | "compressed_tensors" => compressed(q)?,
            "mxfp4" | "gpt_oss_mxfp4" => QuantFormat::Mxfp4,
            "modelopt" | "modelopt_fp4" => modelopt(q)?,
            "bitsandbytes" if q.flag("load_in_8bit", false)? => QuantFormat::Bnb8,
            "bitsandbytes" => QuantFormat::Bnb4,
            "" if q.has("config_groups") => compressed(q)?,
            _ => {
                return Err(q.reject(
                    "quant_method",
                    "expected one of fp8, fbgemm_fp8, gptq, awq, auto-round, compressed-tensors, mxfp4, \
                     modelopt, bitsandbytes",
                ));
            }
        };
        let mut ignore = Vec::new();
        for key in [
            "ignore",
            "ignored_layers",
            "modules_to_not_convert",
            "exclude_modules",
            "llm_int8_skip_modules",
        ] {
            for text in q.strings(key)?.unwrap_or_default() {
                ignore.push(Pattern::parse(q, key, text)?);
            }
        }
        Ok(Self {
            format,
            ignore,
            method,
        })
    }

    /// A scheme that an engine applies while loading an unquantised checkpoint.
    #[must_use]
    pub fn online(format: QuantFormat) -> Self {
        Self {
            format,
            ignore: Vec::new(),
            method: "online".to_owned(),
        }
    }

    /// Whether it changes `tensor`.
    #[must_use]
    pub fn applies_to(&self, tensor: &TensorSpec) -> bool {
        let quantised_role = match tensor.role {
            Role::Experts => true,
            // gpt-oss and its like quantise nothing but the experts.
            _ if self.format == QuantFormat::Mxfp4 => false,
            Role::Attention | Role::State | Role::Mlp | Role::SharedExperts | Role::Mtp => true,
            Role::Embedding
            | Role::Position
            | Role::Router
            | Role::Norm
            | Role::Head
            | Role::Encoder
            | Role::Other => false,
        };
        let module = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
        quantised_role && tensor.linear.is_some() && !self.ignore.iter().any(|p| p.matches(module))
    }
}

fn bits(q: &Config<'_>) -> Result<u64, ModelError> {
    let bits = q.dim(&["bits", "w_bit"], "it is the width of a packed weight")?;
    if ![2, 3, 4, 8].contains(&bits) {
        return Err(q.reject("bits", "expected 2, 3, 4 or 8"));
    }
    Ok(bits)
}

/// `group_size`; −1 means one group for the whole row.
fn group(q: &Config<'_>) -> Result<Option<u64>, ModelError> {
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

fn fp8(q: &Config<'_>, method: &str) -> Result<QuantFormat, ModelError> {
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

fn modelopt(q: &Config<'_>) -> Result<QuantFormat, ModelError> {
    let algo = q.str("quant_algo").unwrap_or("NVFP4");
    match algo.to_ascii_uppercase().as_str() {
        "FP8" => Ok(QuantFormat::Fp8Tensor { static_input: true }),
        "NVFP4" => Ok(QuantFormat::Nvfp4),
        _ => Err(q.reject("quant_algo", "expected FP8 or NVFP4")),
    }
}

fn compressed(q: &Config<'_>) -> Result<QuantFormat, ModelError> {
    let groups = q
        .object("config_groups")?
        .ok_or_else(|| ModelError::Missing {
            field: q.path_of("config_groups"),
            why: "it says how the weights are packed",
        })?;
    let mut found: Option<QuantFormat> = None;
    for key in groups.keys() {
        let Some(group) = groups.object(key)? else {
            continue;
        };
        let Some(weights) = group.object("weights")? else {
            continue;
        };
        let input = group.object("input_activations")?;
        let format = compressed_group(q, &weights, input.as_ref())?;
        if found.is_some_and(|f| f != format) {
            return Err(q.reject(
                "config_groups",
                "groups with different weight formats are not supported",
            ));
        }
        found = Some(format);
    }
    found.ok_or_else(|| q.reject("config_groups", "no group states a weight format"))
}

fn compressed_group(
    q: &Config<'_>,
    weights: &Config<'_>,
    input: Option<&Config<'_>>,
) -> Result<QuantFormat, ModelError> {
    let bits = weights.dim(&["num_bits"], "it is the width of a stored weight")?;
    let float = weights.str("type") == Some("float");
    let strategy = weights.str("strategy").unwrap_or("tensor");
    let static_input = match input {
        Some(i) => !i.flag("dynamic", false).unwrap_or(true),
        None => false,
    };
    let packed = q.str("format").is_some_and(|f| f.contains("pack"));
    Ok(match (float, bits, strategy) {
        (true, 8, "channel") => QuantFormat::Fp8Channel,
        (true, 8, "block") => match weights.numbers("block_structure")?.as_deref() {
            Some([rows, cols]) if *rows > 0 && *cols > 0 => QuantFormat::Fp8Block {
                rows: *rows,
                cols: *cols,
            },
            _ => QuantFormat::Fp8Block {
                rows: 128,
                cols: 128,
            },
        },
        (true, 8, _) => QuantFormat::Fp8Tensor { static_input },
        (true, 4, _) if weights.opt("group_size")? == Some(32) => QuantFormat::Mxfp4,
        (true, 4, _) => QuantFormat::Nvfp4,
        (false, 8, _) if !packed => QuantFormat::Int8Channel { static_input },
        (false, 2 | 3 | 4 | 8, _) => QuantFormat::Packed {
            bits,
            group: weights.opt("group_size")?.filter(|g| *g > 0),
            zero_points: !weights.flag("symmetric", true)?,
            g_idx: weights.str("actorder") == Some("group"),
        },
        _ => {
            return Err(weights.reject(
                "num_bits",
                "expected 8-bit or 4-bit float, or 2- to 8-bit integers",
            ));
        }
    })
}

/// Replaces every weight that `scheme` applies to, and records it on the spec.
///
/// # Errors
/// [`ModelError::Contradiction`] where a shape does not divide as the format needs.
pub fn apply(spec: &mut ModelSpec, scheme: QuantScheme) -> Result<(), ModelError> {
    let mut tensors = Vec::with_capacity(spec.tensors.len() * 2);
    for tensor in spec.tensors.drain(..) {
        match tensor.linear {
            Some(linear) if scheme.applies_to(&tensor) => {
                replace(&tensor, linear, scheme.format, &mut tensors)?;
            }
            _ => tensors.push(tensor),
        }
    }
    spec.tensors = tensors;
    spec.quant = Some(scheme);
    Ok(())
}

/// Pushes what `format` stores for one weight matrix.
fn replace(
    t: &TensorSpec,
    l: Linear,
    format: QuantFormat,
    into: &mut Vec<TensorSpec>,
) -> Result<(), ModelError> {
    let (out, inp) = (l.out, l.inp);
    let module = t.name.strip_suffix(".weight").unwrap_or(&t.name).to_owned();
    // A scale per output row follows the outputs' split; where inputs are split all ranks need it.
    let per_out = if l.axis == Axis::Out {
        t.shard
    } else {
        Shard::Replicated
    };
    let per_inp = if l.axis == Axis::In {
        t.shard
    } else {
        Shard::Replicated
    };
    let scale_type = if t.dtype.is_scalar() {
        t.dtype
    } else {
        DType::F16
    };
    let mut push = |suffix: &str, shape: &[u64], dtype: DType, shard: Shard, weight: bool| {
        into.push(TensorSpec {
            name: format!("{module}{suffix}"),
            shape: shape.to_vec(),
            dtype,
            shard,
            linear: weight.then_some(l),
            ..t.clone()
        });
    };
    let groups = |g: Option<u64>| inp.div_ceil(g.unwrap_or(inp).max(1));
    // Packing: `per` values of `bits` bits in one 32-bit word, along one axis.
    let packed = |n: u64, bits: u64| -> Result<u64, ModelError> {
        n.checked_mul(bits)
            .map(|b| b.div_ceil(32))
            .ok_or(ModelError::from(SizeOverflow))
    };
    match format {
        QuantFormat::Fp8Tensor { static_input } => {
            push(".weight", &t.shape, DType::F8E4m3, t.shard, true);
            push(".weight_scale", &[1], DType::F32, Shard::Replicated, false);
            if static_input {
                push(".input_scale", &[1], DType::F32, Shard::Replicated, false);
            }
        }
        QuantFormat::Fp8Channel => {
            push(".weight", &t.shape, DType::F8E4m3, t.shard, true);
            push(".weight_scale", &[out, 1], scale_type, per_out, false);
        }
        QuantFormat::Fp8Block { rows, cols } => {
            push(".weight", &t.shape, DType::F8E4m3, t.shard, true);
            let shape = [out.div_ceil(rows), inp.div_ceil(cols)];
            // One scale covers a block of rows or columns: heads and columns share it, so the
            // split is by whole blocks, and the even share is exact where the engine accepts it.
            push(".weight_scale_inv", &shape, DType::F32, t.shard, false);
        }
        QuantFormat::Int8Channel { static_input } => {
            push(".weight", &t.shape, DType::I8, t.shard, true);
            push(".weight_scale", &[out, 1], scale_type, per_out, false);
            if static_input {
                push(".input_scale", &[1], DType::F32, Shard::Replicated, false);
            }
        }
        QuantFormat::Gptq { bits, group } => {
            push(
                ".qweight",
                &[packed(inp, bits)?, out],
                DType::I32,
                t.shard,
                true,
            );
            push(
                ".qzeros",
                &[groups(group), packed(out, bits)?],
                DType::I32,
                t.shard,
                false,
            );
            push(".scales", &[groups(group), out], DType::F16, t.shard, false);
            push(".g_idx", &[inp], DType::I32, per_inp, false);
        }
        QuantFormat::Awq { bits, group } => {
            push(
                ".qweight",
                &[inp, packed(out, bits)?],
                DType::I32,
                t.shard,
                true,
            );
            push(
                ".qzeros",
                &[groups(Some(group)), packed(out, bits)?],
                DType::I32,
                t.shard,
                false,
            );
            push(
                ".scales",
                &[groups(Some(group)), out],
                DType::F16,
                t.shard,
                false,
            );
        }
        QuantFormat::Packed {
            bits,
            group,
            zero_points,
            g_idx,
        } => {
            push(
                ".weight_packed",
                &[out, packed(inp, bits)?],
                DType::I32,
                t.shard,
                true,
            );
            push(
                ".weight_scale",
                &[out, groups(group)],
                scale_type,
                t.shard,
                false,
            );
            push(".weight_shape", &[2], DType::I64, Shard::Replicated, false);
            if zero_points {
                push(
                    ".weight_zero_point",
                    &[packed(out, bits)?, groups(group)],
                    DType::I32,
                    t.shard,
                    false,
                );
            }
            if g_idx {
                push(".weight_g_idx", &[inp], DType::I32, per_inp, false);
            }
        }
        QuantFormat::Mxfp4 => {
            push(
                "_blocks",
                &[out, inp.div_ceil(32), 16],
                DType::U8,
                t.shard,
                true,
            );
            push(
                "_scales",
                &[out, inp.div_ceil(32)],
                DType::U8,
                t.shard,
                false,
            );
        }
        QuantFormat::Nvfp4 => {
            push(".weight", &[out, inp.div_ceil(2)], DType::U8, t.shard, true);
            push(
                ".weight_scale",
                &[out, inp.div_ceil(16)],
                DType::F8E4m3,
                t.shard,
                false,
            );
            push(
                ".weight_scale_2",
                &[1],
                DType::F32,
                Shard::Replicated,
                false,
            );
            push(".input_scale", &[1], DType::F32, Shard::Replicated, false);
        }
        QuantFormat::Bnb4 => {
            let elements = out.checked_mul(inp).ok_or(SizeOverflow)?;
            push(
                ".weight",
                &[elements.div_ceil(2), 1],
                DType::U8,
                t.shard,
                true,
            );
            push(
                ".absmax",
                &[elements.div_ceil(64)],
                DType::F32,
                t.shard,
                false,
            );
        }
        QuantFormat::Bnb8 => {
            push(".weight", &t.shape, DType::I8, t.shard, true);
            push(".weight_scale", &[out], DType::F32, per_out, false);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignore_lists_name_modules_prefixes_and_globs() {
        let name = |s: &str| Pattern::Name(s.to_owned());
        assert!(name("lm_head").matches("lm_head"));
        assert!(name("self_attn").matches("model.layers.3.self_attn.q_proj"));
        assert!(!name("attn").matches("model.layers.3.self_attn.q_proj"));
        assert!(name("model.layers.*.self_attn").matches("model.layers.3.self_attn.q_proj"));
        assert!(!name("model.layers.*.self_attn").matches("model.layers.3.mlp.experts"));
        let re = Pattern::Regex(regex_lite::Regex::new("^(?:.*mlp.gate$)").unwrap());
        assert!(
            re.matches("model.layers.0.mlp.gate") && !re.matches("model.layers.0.mlp.gate_proj")
        );
    }

    #[test]
    fn auxiliary_tensors_are_no_parameters() {
        assert!(is_auxiliary("model.layers.0.mlp.up_proj.weight_scale"));
        assert!(is_auxiliary("model.layers.0.mlp.experts.down_proj_scales"));
        assert!(!is_auxiliary("model.layers.0.mlp.up_proj.weight"));
    }
}
