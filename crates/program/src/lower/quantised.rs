//! Published layouts of quantised matrices, as grids of numbers ([`Quantised`]).
//!
//! Sources: AutoAWQ `awq/utils/packing_utils.py` and `modules/linear/gemm.py`; AutoGPTQ and GPTQModel
//! `nn_modules/qlinear/` with `utils/model.py: convert_gptq_v1_to_v2_format`; compressed-tensors
//! `compressors/pack_quantized/helpers.py`; DeepSeek-V3 `inference/kernel.py: weight_dequant`; OCP Microscaling
//! Formats 1.0, sections 5.3.3 and 5.4.1, for MXFP4.

use std::sync::Arc;

use plimsoll_model::quant::{GptqZeros, QuantFormat, QuantScheme};
use plimsoll_model::{Axis, TensorSpec};
use plimsoll_units::{DType, SizeOverflow};

use super::LowerError;
use super::build::Builder;
use crate::quantised::{Grid, Number, Order, Packed, Quantised, Zero};

/// Elements that share a scale in MXFP4.
const MXFP4_BLOCK: u64 = 32;
/// Types of scales.
const SCALES: &[DType] = &[DType::F32, DType::F16, DType::Bf16, DType::F8E8m0];
/// Last names of tensors that say how inputs or cached keys and values may be quantised, or repeat a shape: inputs are not
/// quantised as they say, and the cache has a type of its own.
const UNREAD: &[&str] = &[
    "input_scale",
    "activation_scale",
    "input_global_scale",
    "input_zero_point",
    "k_scale",
    "v_scale",
    "weight_shape",
];

/// A stored matrix.
#[derive(Clone)]
pub(super) struct Stored<'a> {
    /// Its elements, or their codes.
    pub(super) tensor: &'a TensorSpec,
    /// Whether inputs come first.
    pub(super) transposed: bool,
    /// What elements come of where they are quantised.
    pub(super) quantised: Option<Arc<Quantised>>,
}

/// Whether a tensor of a quantised checkpoint is left out on purpose.
pub(super) fn is_unread(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    UNREAD.contains(&last)
}

/// Whether weights stored so can be read.
///
/// # Errors
/// What they are, and what to do.
pub(super) fn check(scheme: &QuantScheme) -> Result<(), String> {
    let whole = |bits: u64| matches!(bits, 2 | 4 | 8);
    let readable = match scheme.format {
        QuantFormat::Fp8Tensor { .. }
        | QuantFormat::Fp8Channel
        | QuantFormat::Fp8Block { .. }
        | QuantFormat::Int8Channel { .. }
        | QuantFormat::Int8Tensor
        | QuantFormat::Int8Group { .. }
        | QuantFormat::Mxfp4 => true,
        QuantFormat::Gptq { bits, .. } if scheme.extras.gptq_zeros == GptqZeros::Unknown => {
            return Err(format!(
                "its weights are quantised as {bits}-bit auto-round with zero points, which are stored in two ways that no config tells apart; \
                 use a checkpoint of the gptq or awq format"
            ));
        }
        QuantFormat::Gptq { bits, .. } | QuantFormat::Packed { bits, .. } => whole(bits),
        QuantFormat::Awq { bits, .. } => bits == 4,
        QuantFormat::Aqlm { .. }
        | QuantFormat::Mxfp4Packed
        | QuantFormat::Mxfp8
        | QuantFormat::Nvfp4
        | QuantFormat::Nvfp4Weights
        | QuantFormat::Bnb4
        | QuantFormat::Bnb4Double
        | QuantFormat::Bnb8 => false,
    };
    let readable = readable && scheme.others.is_empty();
    let packing = if scheme.extras.other_packing {
        ", packed for one kernel alone"
    } else {
        ""
    };
    if readable && packing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "its weights are quantised as {}{packing}, which is not read yet: use a checkpoint in bf16, fp8, AWQ (gemm), GPTQ or \
         compressed-tensors of 2, 4 or 8 bits",
        scheme.name()
    ))
}

/// What is known of a grid before its tensor is found.
struct Wanted {
    leaf: &'static str,
    number: Number,
    block: [u64; 2],
    inputs_first: bool,
    types: &'static [DType],
}

impl<'a> Builder<'a> {
    /// The matrix `module` of this size, as it is stored: `transposed` where a plain one has its inputs first.
    pub(super) fn stored(
        &mut self,
        layer: Option<usize>,
        module: &str,
        [rows, columns]: [u64; 2],
        transposed: bool,
    ) -> Result<Stored<'a>, LowerError> {
        if let Some((tensor, quantised)) = self.quantised(layer, module, [rows, columns])? {
            return Ok(Stored {
                tensor,
                transposed: false,
                quantised: Some(Arc::new(quantised)),
            });
        }
        let shape = if transposed {
            [columns, rows]
        } else {
            [rows, columns]
        };
        Ok(Stored {
            tensor: self.take(layer, &format!("{module}.weight"), &shape)?,
            transposed,
            quantised: None,
        })
    }

    /// Experts' matrices of MXFP4, all in one tensor: blocks of 32 elements, two a byte, and a power of two for each.
    pub(super) fn mxfp4(
        &mut self,
        layer: usize,
        module: &str,
        experts: u64,
        [rows, columns]: [u64; 2],
    ) -> Result<Stored<'a>, LowerError> {
        let at = Some(layer);
        let groups = columns.div_ceil(MXFP4_BLOCK);
        let scales = self.take(at, &format!("{module}_scales"), &[rows, groups])?;
        let blocks = [rows, groups, MXFP4_BLOCK / 2];
        let tensor = self.take(at, &format!("{module}_blocks"), &blocks)?;
        let all = [rows.checked_mul(experts), groups.checked_mul(MXFP4_BLOCK)];
        let [Some(out), Some(inp)] = all else {
            return Err(SizeOverflow.into());
        };
        let grid = |leaf, dtype, number, block| Grid {
            leaf,
            dtype,
            number,
            block,
            inputs_first: false,
        };
        let codes = Number::E2m1(packed(4, Axis::In));
        Ok(Stored {
            tensor,
            transposed: false,
            quantised: Some(Arc::new(Quantised {
                size: [out, inp],
                codes: grid("_blocks", tensor.dtype, codes, [1, 1]),
                scales: grid("_scales", scales.dtype, Number::Power, [1, MXFP4_BLOCK]),
                zero: Zero::Same(0),
                order: None,
            })),
        })
    }

    /// The tensor with a module's codes and how they are read, where the module is quantised.
    fn quantised(
        &mut self,
        layer: Option<usize>,
        module: &str,
        size: [u64; 2],
    ) -> Result<Option<(&'a TensorSpec, Quantised)>, LowerError> {
        let Some(scheme) = self.scheme() else {
            return Ok(None);
        };
        let leaf = match scheme.format {
            QuantFormat::Gptq { .. } | QuantFormat::Awq { .. } => ".qweight",
            QuantFormat::Packed { .. } => ".weight_packed",
            _ => ".weight",
        };
        let Some(tensor) = self.find(layer, &format!("{module}{leaf}")) else {
            return Ok(None);
        };
        // Modules that the scheme leaves alone have a plain weight.
        if leaf == ".weight" && !matches!(tensor.dtype, DType::F8E4m3 | DType::I8) {
            return Ok(None);
        }
        let [out, inp] = size;
        let whole = |group: Option<u64>| group.unwrap_or(inp).max(1);
        let stem = tensor.name.strip_suffix(leaf).unwrap_or(&tensor.name);
        let mut find = |wanted: Wanted| self.grid(layer, stem, size, &wanted);
        let scales = |leaf: &'static str, block, inputs_first| Wanted {
            leaf,
            number: Number::Plain,
            block,
            inputs_first,
            types: SCALES,
        };
        let plain = |leaf: &'static str, types: &'static [DType]| Wanted {
            leaf,
            number: Number::Plain,
            block: [1, 1],
            inputs_first: false,
            types,
        };
        let words = |leaf: &'static str, number, block, inputs_first| Wanted {
            leaf,
            number: Number::Whole(number),
            block,
            inputs_first,
            types: &[DType::I32],
        };
        let quantised = match scheme.format {
            QuantFormat::Fp8Tensor { .. } => {
                let leaf = if scheme.extras.fine_grained {
                    ".weight_scale_inv"
                } else {
                    ".weight_scale"
                };
                Quantised {
                    size,
                    codes: find(plain(".weight", &[DType::F8E4m3]))?,
                    scales: find(scales(leaf, [out, inp], false))?,
                    zero: Zero::Same(0),
                    order: None,
                }
            }
            QuantFormat::Fp8Channel => Quantised {
                size,
                codes: find(plain(".weight", &[DType::F8E4m3]))?,
                scales: find(scales(".weight_scale", [1, inp], false))?,
                zero: Zero::Same(0),
                order: None,
            },
            QuantFormat::Fp8Block { rows, cols } => {
                let leaf = if scheme.is_compressed() {
                    ".weight_scale"
                } else {
                    ".weight_scale_inv"
                };
                Quantised {
                    size,
                    codes: find(plain(".weight", &[DType::F8E4m3]))?,
                    scales: find(scales(leaf, [rows, cols], false))?,
                    zero: Zero::Same(0),
                    order: None,
                }
            }
            QuantFormat::Int8Channel { .. }
            | QuantFormat::Int8Tensor
            | QuantFormat::Int8Group { .. } => {
                let block = match scheme.format {
                    QuantFormat::Int8Group { group } => [1, whole(Some(group))],
                    QuantFormat::Int8Tensor => [out, inp],
                    _ => [1, inp],
                };
                let zero = if scheme.extras.zero_points {
                    let wanted = Wanted {
                        block,
                        ..plain(".weight_zero_point", &[DType::I8])
                    };
                    Zero::Stored(find(wanted)?)
                } else {
                    Zero::Same(0)
                };
                Quantised {
                    size,
                    codes: find(plain(".weight", &[DType::I8]))?,
                    scales: find(scales(".weight_scale", block, false))?,
                    zero,
                    order: None,
                }
            }
            QuantFormat::Gptq { bits, group } => {
                let block = [1, whole(group)];
                let bits = narrow(bits);
                let zeros = match scheme.extras.gptq_zeros {
                    GptqZeros::LessOne => Some(ones(bits)),
                    GptqZeros::Own => Some(0),
                    GptqZeros::Middle | GptqZeros::Unknown => None,
                };
                // Looked for where it is not read, too.
                let along = Packed {
                    plus: zeros.unwrap_or(0),
                    ..packed(bits, Axis::Out)
                };
                let stored = Zero::Stored(find(words(".qzeros", along, block, true))?);
                Quantised {
                    size,
                    codes: find(words(".qweight", packed(bits, Axis::In), [1, 1], true))?,
                    scales: find(scales(".scales", block, true))?,
                    zero: match zeros {
                        Some(_) => stored,
                        None => middle(bits),
                    },
                    order: Some(Order {
                        leaf: self.order(layer, stem, ".g_idx", inp)?,
                        sorted: !scheme.extras.by_activation,
                    }),
                }
            }
            QuantFormat::Awq { group, .. } => {
                let block = [1, whole(Some(group))];
                let along = Packed {
                    interleaved: true,
                    ..packed(4, Axis::Out)
                };
                Quantised {
                    size,
                    codes: find(words(".qweight", along, [1, 1], true))?,
                    scales: find(scales(".scales", block, true))?,
                    zero: Zero::Stored(find(words(".qzeros", along, block, true))?),
                    order: None,
                }
            }
            QuantFormat::Packed {
                bits,
                group,
                zero_points,
                g_idx,
            } => {
                let block = [1, whole(group)];
                let bits = narrow(bits);
                let along = |axis| packed(bits, axis);
                let zero = if zero_points {
                    let wanted = words(".weight_zero_point", along(Axis::Out), block, false);
                    Zero::Stored(find(wanted)?)
                } else {
                    middle(bits)
                };
                Quantised {
                    size,
                    codes: find(words(".weight_packed", along(Axis::In), [1, 1], false))?,
                    scales: find(scales(".weight_scale", block, false))?,
                    zero,
                    order: match g_idx {
                        true => Some(Order {
                            leaf: self.order(layer, stem, ".weight_g_idx", inp)?,
                            sorted: false,
                        }),
                        false => None,
                    },
                }
            }
            // `check` has refused the others; MXFP4 is of experts.
            _ => return Ok(None),
        };
        Ok(Some((tensor, quantised)))
    }

    /// A grid of the module whose stored name is `stem`.
    fn grid(
        &mut self,
        layer: Option<usize>,
        stem: &str,
        size: [u64; 2],
        wanted: &Wanted,
    ) -> Result<Grid, LowerError> {
        let t = self.found(layer, &format!("{stem}{}", wanted.leaf))?;
        let grid = Grid {
            leaf: wanted.leaf,
            dtype: t.dtype,
            number: wanted.number,
            block: wanted.block,
            inputs_first: wanted.inputs_first,
        };
        if !wanted.types.contains(&t.dtype) {
            let types: Vec<&str> = wanted.types.iter().map(|d| d.name()).collect();
            return Err(LowerError::Tensor(format!(
                "`{}` is stored as {}, expected {}",
                t.name,
                t.dtype,
                types.join(", ")
            )));
        }
        let shape = grid.shape(size);
        // Exporters store a scale of one element as [], [1] or [1, 1].
        let real = |s: &[u64]| -> Vec<u64> { s.iter().copied().filter(|d| *d != 1).collect() };
        if real(&t.shape) != real(&shape) {
            return Err(LowerError::Tensor(format!(
                "`{}` is {:?}, expected {shape:?} beside a matrix of {size:?}",
                t.name, t.shape
            )));
        }
        Ok(grid)
    }

    /// Looks for the tensor with the group of each of so many inputs.
    fn order(
        &mut self,
        layer: Option<usize>,
        stem: &str,
        leaf: &'static str,
        inputs: u64,
    ) -> Result<&'static str, LowerError> {
        self.take(layer, &format!("{stem}{leaf}"), &[inputs])?;
        Ok(leaf)
    }
}

/// Bits of a number that `check` has seen.
fn narrow(bits: u64) -> u8 {
    u8::try_from(bits).unwrap_or(u8::MAX)
}

const fn packed(bits: u8, along: Axis) -> Packed {
    Packed {
        bits,
        along,
        interleaved: false,
        plus: 0,
    }
}

/// A one in each number of a word.
fn ones(bits: u8) -> u32 {
    (0..32 / u32::from(bits.max(1))).fold(0, |all, i| all | 1 << (i * u32::from(bits)))
}

/// What stands for zero where nothing else does: the middle of the numbers of so many bits.
fn middle(bits: u8) -> Zero {
    Zero::Same(1_u8.checked_shl(u32::from(bits) - 1).unwrap_or(0))
}
