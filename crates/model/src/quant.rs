//! Weight formats: what a quantised checkpoint stores in place of a linear layer's weight.
//!
//! Each format replaces `module.weight` by packed weights, scales and zero points, under the
//! names that its exporter writes. Sources, by `quant_method`: AutoGPTQ / GPTQModel, AutoAWQ,
//! `compressed-tensors` (every preset of its version 0.17), transformers' fine-grained `fp8` and
//! `fbgemm_fp8`, OpenAI's `mxfp4`, NVIDIA `modelopt`, bitsandbytes 0.4x, AQLM. The golden files of
//! `tests/quantised.rs` are what those libraries store, written by `tools/oracles/quant_shapes.py`.

use crate::ModelError;
use crate::config::{Config, shorten};
use crate::tensor::{Role, TensorSpec};

mod formats;
mod mixed;
mod stored;

use formats::{awq, bits, blocks, compressed_group, fp8, group, is_dynamic, modelopt};
pub use stored::apply;

/// How the weights of linear layers are stored, and which are left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantScheme {
    /// The layout.
    pub format: QuantFormat,
    /// Modules that have another one.
    pub others: Vec<(Pattern, QuantFormat)>,
    /// Modules that keep their type.
    pub ignore: Vec<Pattern>,
    /// The modules that it is limited to; empty for every linear layer.
    pub targets: Vec<Pattern>,
    /// `quant_method` as written, for engines whose loader depends on it.
    pub method: String,
    /// What is stored beside the packed weights and their scales.
    pub extras: Extras,
}

/// What a scheme stores or covers beyond its layout's plain form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Whether 8-bit integers have a zero point beside every scale.
    pub zero_points: bool,
    /// Whether a stored activation scale has a zero point beside it.
    pub input_zero_point: bool,
    /// Whether each attention layer stores a scale for its keys and one for its values.
    pub kv_scales: bool,
    /// Whether the checkpoint asks for keys and values in 8-bit floats.
    pub kv_fp8: bool,
    /// Whether the output head is quantised too.
    pub head: bool,
    /// Whether linear layers of a vision or audio tower are quantised too.
    pub tower: bool,
    /// Whether per-tensor fp8 scales have the names of transformers' fine-grained layout.
    pub fine_grained: bool,
    /// Whether bitsandbytes' 4-bit type is `fp4`, not `nf4`: part of a tensor's name.
    pub fp4: bool,
    /// Whether GPTQ's groups are of inputs anywhere (`desc_act`), not of neighbours.
    pub by_activation: bool,
    /// Whether GPTQ's configuration says that its numbers lie evenly around zero (`sym`).
    pub symmetric: bool,
    /// What the zero points of GPTQ's layout stand for.
    pub gptq_zeros: GptqZeros,
    /// Whether words are packed in another order than that of GPTQ and of AWQ's `gemm`.
    pub other_packing: bool,
}

/// What the zero points of GPTQ's layout stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GptqZeros {
    /// Themselves and one more: a stored word is one less in each of its numbers (AutoGPTQ, "v1").
    #[default]
    LessOne,
    /// Themselves (`checkpoint_format: gptq_v2`).
    Own,
    /// The middle of the numbers that there are, whatever is stored (symmetric auto-round, which stores either).
    Middle,
    /// Nobody says: auto-round stores them in both ways.
    Unknown,
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
    /// 8-bit integers, one scale per tensor.
    Int8Tensor,
    /// 8-bit integers, one scale per group of inputs; 4-bit values too, where nothing packs them.
    Int8Group {
        /// Inputs per group.
        group: u64,
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
    /// AQLM: sums of vectors from learnt books, each book of a matrix with 2^`bits` vectors of `group` inputs.
    Aqlm {
        /// Books per matrix.
        books: u64,
        /// Bits of a code.
        bits: u64,
        /// Inputs per vector.
        group: u64,
    },
    /// 4-bit float with one power-of-two scale per 32 (routed experts of gpt-oss).
    Mxfp4,
    /// The same 4-bit float for any linear layer, two values in a byte (compressed-tensors).
    Mxfp4Packed,
    /// 8-bit float with one power-of-two scale per 32.
    Mxfp8,
    /// 4-bit float with one e4m3 scale per 16, and an f32 scale per tensor for weights and inputs.
    Nvfp4,
    /// The same for weights alone.
    Nvfp4Weights,
    /// bitsandbytes 4-bit with f32 `absmax` per 64.
    Bnb4,
    /// bitsandbytes 4-bit whose `absmax` is itself quantised to 8 bits.
    Bnb4Double,
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
            Self::Int8Tensor => "int8, one scale per tensor".to_owned(),
            Self::Int8Group { group } => format!("int8, group {group}"),
            Self::Gptq { bits, group } => format!("gptq {bits}-bit, group {}", group_name(group)),
            Self::Awq { bits, group } => format!("awq {bits}-bit, group {group}"),
            Self::Packed { bits, group, .. } => {
                format!("packed {bits}-bit, group {}", group_name(group))
            }
            Self::Aqlm { books, bits, group } => format!("aqlm {books}x{bits}, group {group}"),
            Self::Mxfp4 | Self::Mxfp4Packed => "mxfp4".to_owned(),
            Self::Mxfp8 => "mxfp8".to_owned(),
            Self::Nvfp4 => "nvfp4".to_owned(),
            Self::Nvfp4Weights => "nvfp4, weights only".to_owned(),
            Self::Bnb4 => "bitsandbytes 4-bit".to_owned(),
            Self::Bnb4Double => "bitsandbytes 4-bit, double".to_owned(),
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
            .map_err(|e| {
                config.reject(
                    key,
                    format!("`{}` is not a regular expression: {e}", shorten(text)),
                )
            })
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
    "weight_global_scale",
    "input_scale",
    "activation_scale",
    "input_global_scale",
    "input_zero_point",
    "k_scale",
    "v_scale",
    "scales",
    "codebooks",
    "qzeros",
    "g_idx",
    "weight_g_idx",
    "weight_zero_point",
    "weight_shape",
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "bitsandbytes__nf4",
    "bitsandbytes__fp4",
    "SCB",
    "weight_format",
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
        // ModelOpt's own files do not name it.
        let unnamed = if q.has("quant_algo") { "modelopt" } else { "" };
        let method = q
            .str("quant_method")
            .unwrap_or(unnamed)
            .to_ascii_lowercase();
        // Libraries that replace every linear layer they are not told to leave reach the tower too;
        // those that quantise block by block never do.
        let mut extras = Extras::default();
        let mut targets = Vec::new();
        let mut others = Vec::new();
        let format = match method.as_str() {
            "fp8" | "fbgemm_fp8" => {
                extras.tower = true;
                extras.fine_grained = q.is_null("weight_block_size");
                fp8(q, &method)?
            }
            "gptq" | "gptq_marlin" => {
                extras.head = q.flag("lm_head", false)?;
                targets = blocks(q)?;
                extras.by_activation = q.flag("desc_act", false)?;
                extras.symmetric = q.flag("sym", false)?;
                let form = q.str("checkpoint_format").or(q.str("format"));
                match form.unwrap_or("gptq") {
                    "gptq" => {}
                    "gptq_v2" => extras.gptq_zeros = GptqZeros::Own,
                    _ => extras.other_packing = true,
                }
                QuantFormat::Gptq {
                    bits: bits(q)?,
                    group: group(q)?,
                }
            }
            "awq" | "awq_marlin" => {
                let version = q.str("version").or(q.str("format")).unwrap_or("gemm");
                extras.other_packing = !version.eq_ignore_ascii_case("gemm");
                awq(q)?
            }
            "auto-round" | "auto_round" | "intel/auto-round" => {
                if q.str("packing_format").is_some_and(|f| f.contains("awq")) {
                    awq(q)?
                } else {
                    extras.gptq_zeros = match q.flag("sym", true)? {
                        true => GptqZeros::Middle,
                        false => GptqZeros::Unknown,
                    };
                    QuantFormat::Gptq {
                        bits: bits(q)?,
                        group: group(q)?,
                    }
                }
            }
            "compressed-tensors" | "compressed_tensors" => {
                mixed::compressed(q, &mut extras, &mut targets, &mut others)?
            }
            "" if q.has("config_groups") => {
                mixed::compressed(q, &mut extras, &mut targets, &mut others)?
            }
            "aqlm" => formats::aqlm(q)?,
            "mxfp4" | "gpt_oss_mxfp4" => QuantFormat::Mxfp4,
            "modelopt" | "modelopt_fp4" | "modelopt_mixed" if mixed::is_mixed(q) => {
                // Whatever is named.
                extras.tower = true;
                extras.head = true;
                mixed::modelopt(q, &mut targets, &mut others)?
            }
            "modelopt" | "modelopt_fp4" => {
                extras.tower = true;
                modelopt(q, "NVFP4")?
            }
            "bitsandbytes" => {
                extras.tower = true;
                extras.fp4 = q.str("bnb_4bit_quant_type") == Some("fp4");
                if q.flag("load_in_8bit", false)? {
                    QuantFormat::Bnb8
                } else if q.flag("bnb_4bit_use_double_quant", false)? {
                    QuantFormat::Bnb4Double
                } else {
                    QuantFormat::Bnb4
                }
            }
            _ => {
                return Err(q.reject(
                    "quant_method",
                    "expected one of fp8, fbgemm_fp8, gptq, awq, auto-round, compressed-tensors, mxfp4, \
                     modelopt, bitsandbytes, aqlm",
                ));
            }
        };
        extras.kv_fp8 = formats::kv_fp8(q, &method);
        let mut ignore = Vec::new();
        for key in [
            "ignore",
            "ignored_layers",
            "modules_to_not_convert",
            "exclude_modules",
            "llm_int8_skip_modules",
            "linear_weights_not_to_quantize",
        ] {
            for text in q.strings(key)?.unwrap_or_default() {
                let text = text.strip_suffix(".weight").unwrap_or(text);
                ignore.push(Pattern::parse(q, key, text)?);
            }
        }
        Ok(Self {
            format,
            others,
            ignore,
            targets,
            method,
            extras,
        })
    }

    /// A scheme that an engine applies while loading an unquantised checkpoint.
    #[must_use]
    pub fn online(format: QuantFormat) -> Self {
        Self {
            format,
            others: Vec::new(),
            ignore: Vec::new(),
            targets: Vec::new(),
            method: "online".to_owned(),
            extras: Extras::default(),
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
            Role::Head => self.extras.head,
            Role::Encoder => self.extras.tower,
            Role::Embedding | Role::Position | Role::Router | Role::Norm | Role::Other => false,
        };
        let module = module(tensor);
        let named = |patterns: &[Pattern]| patterns.iter().any(|p| p.matches(&module));
        quantised_role
            && tensor.linear.is_some()
            && !named(&self.ignore)
            && (self.targets.is_empty()
                || named(&self.targets)
                || self.others.iter().any(|(p, _)| p.matches(&module)))
    }

    /// The layout of `tensor`, to which it [applies](Self::applies_to).
    ///
    /// # Errors
    /// [`ModelError::Contradiction`] where it is named with two.
    fn format_of(&self, tensor: &TensorSpec) -> Result<QuantFormat, ModelError> {
        if self.others.is_empty() {
            return Ok(self.format);
        }
        let module = module(tensor);
        let other = self.others.iter().filter(|(p, _)| p.matches(&module));
        let target = self.targets.iter().filter(|p| p.matches(&module));
        let mut formats = other.map(|(_, f)| *f).chain(target.map(|_| self.format));
        let first = formats.next().unwrap_or(self.format);
        match formats.find(|f| *f != first) {
            Some(other) => Err(ModelError::Contradiction(format!(
                "`{}` is said to be stored in two ways: {} and {}",
                shorten(&module),
                first.name(),
                other.name()
            ))),
            None => Ok(first),
        }
    }

    /// A short name for reports: of every layout, where there are several.
    #[must_use]
    pub fn name(&self) -> String {
        let mut names = vec![self.format.name()];
        for (_, format) in &self.others {
            let name = format.name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(" and ")
    }

    /// compressed-tensors keeps scales in the model's type; the others in 32 bits.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.method.starts_with("compressed") || self.method.is_empty()
    }
}

/// A tensor's module as lists name it: they name experts by number, and treat all of a layer alike.
fn module(tensor: &TensorSpec) -> String {
    let name = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
    name.replace("{e}", "0")
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
