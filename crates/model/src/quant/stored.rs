//! [`apply`]: the tensors that a scheme stores in place of each weight.

use plimsoll_units::{DType, SizeOverflow};

use super::{QuantFormat, QuantScheme};
use crate::ModelError;
use crate::spec::ModelSpec;
use crate::tensor::{Axis, Linear, Shard, TensorSpec};

/// Replaces every weight that `scheme` applies to, and records it on the spec.
///
/// # Errors
/// [`ModelError::Contradiction`] where a shape does not divide as the format needs.
pub fn apply(spec: &mut ModelSpec, scheme: QuantScheme) -> Result<(), ModelError> {
    let mut tensors = Vec::with_capacity(spec.tensors.len() * 2);
    let mut applied = false;
    for tensor in spec.tensors.drain(..) {
        if scheme.extras.kv_scales
            && let Some(attention) = tensor.name.strip_suffix("k_proj.weight")
        {
            for name in ["k_scale", "v_scale"] {
                tensors.push(TensorSpec {
                    name: format!("{attention}{name}"),
                    shape: vec![1],
                    shard: Shard::Replicated,
                    linear: None,
                    ..tensor.clone()
                });
            }
        }
        match tensor.linear {
            Some(linear) if scheme.applies_to(&tensor) => {
                applied = true;
                replace(&tensor, linear, &scheme, &mut tensors)?;
            }
            _ => tensors.push(tensor),
        }
    }
    if !applied && !scheme.others.is_empty() {
        return Err(ModelError::Contradiction(
            "`quantization_config` names modules one by one, and the model has none of them"
                .to_owned(),
        ));
    }
    spec.tensors = tensors;
    spec.quant = Some(scheme);
    Ok(())
}

/// Pushes what `scheme` stores for one weight matrix.
fn replace(
    t: &TensorSpec,
    l: Linear,
    scheme: &QuantScheme,
    into: &mut Vec<TensorSpec>,
) -> Result<(), ModelError> {
    let format = scheme.format_of(t)?;
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
    let compressed = scheme.is_compressed();
    // NVIDIA and transformers store scalars as such, the others as one element.
    let fine = scheme.extras.fine_grained;
    let one: &[u64] = if scheme.method.starts_with("modelopt") || fine {
        &[]
    } else {
        &[1]
    };
    let own_scale = if compressed { scale_type } else { DType::F32 };
    let whole = Shard::Replicated;
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
            let (of_weight, of_input) = if fine {
                (".weight_scale_inv", ".activation_scale")
            } else {
                (".weight_scale", ".input_scale")
            };
            push(of_weight, one, own_scale, whole, false);
            if static_input {
                push(of_input, one, own_scale, whole, false);
            }
        }
        QuantFormat::Fp8Channel => {
            push(".weight", &t.shape, DType::F8E4m3, t.shard, true);
            push(".weight_scale", &[out, 1], own_scale, per_out, false);
        }
        QuantFormat::Mxfp8 => {
            push(".weight", &t.shape, DType::F8E4m3, t.shard, true);
            let scales = [out, inp.div_ceil(32)];
            push(".weight_scale", &scales, DType::U8, t.shard, false);
        }
        QuantFormat::Fp8Block { rows, cols } => {
            push(".weight", &t.shape, DType::F8E4m3, t.shard, true);
            let shape = [out.div_ceil(rows), inp.div_ceil(cols)];
            // One scale covers a block of rows or columns: heads and columns share it, so the
            // split is by whole blocks, and the even share is exact where the engine accepts it.
            let name = if compressed {
                ".weight_scale"
            } else {
                ".weight_scale_inv"
            };
            push(name, &shape, own_scale, t.shard, false);
        }
        QuantFormat::Int8Channel { .. }
        | QuantFormat::Int8Tensor
        | QuantFormat::Int8Group { .. } => {
            let (scales, shard): (&[u64], Shard) = match format {
                QuantFormat::Int8Group { group } => (&[out, groups(Some(group))], t.shard),
                QuantFormat::Int8Tensor => (&[1], whole),
                _ => (&[out, 1], per_out),
            };
            push(".weight", &t.shape, DType::I8, t.shard, true);
            push(".weight_scale", scales, scale_type, shard, false);
            if scheme.extras.zero_points {
                push(".weight_zero_point", scales, DType::I8, shard, false);
            }
            if format == (QuantFormat::Int8Channel { static_input: true }) {
                push(".input_scale", &[1], scale_type, whole, false);
                if scheme.extras.input_zero_point {
                    push(".input_zero_point", &[1], DType::I8, whole, false);
                }
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
        QuantFormat::Aqlm { books, bits, group } => {
            let code = if bits > 8 { DType::I16 } else { DType::I8 };
            let codes = [out, inp.div_ceil(group), books];
            push(".codes", &codes, code, t.shard, true);
            let vectors = [books, 1 << bits.min(16), 1, group];
            push(".codebooks", &vectors, DType::F16, whole, false);
            push(".scales", &[out, 1, 1, 1], DType::F16, per_out, false);
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
        QuantFormat::Mxfp4Packed => {
            let (packed, scales) = ([out, inp.div_ceil(2)], [out, inp.div_ceil(32)]);
            push(".weight_packed", &packed, DType::U8, t.shard, true);
            push(".weight_scale", &scales, DType::U8, t.shard, false);
        }
        QuantFormat::Nvfp4 | QuantFormat::Nvfp4Weights => {
            let (weight, of_weight, of_input) = if compressed {
                (
                    ".weight_packed",
                    ".weight_global_scale",
                    ".input_global_scale",
                )
            } else {
                (".weight", ".weight_scale_2", ".input_scale")
            };
            let (packed, scales) = ([out, inp.div_ceil(2)], [out, inp.div_ceil(16)]);
            push(weight, &packed, DType::U8, t.shard, true);
            push(".weight_scale", &scales, DType::F8E4m3, t.shard, false);
            push(of_weight, one, DType::F32, whole, false);
            if format == QuantFormat::Nvfp4 {
                push(of_input, one, DType::F32, whole, false);
            }
        }
        QuantFormat::Bnb4 | QuantFormat::Bnb4Double => {
            let elements = out.checked_mul(inp).ok_or(SizeOverflow)?;
            let blocks = elements.div_ceil(64);
            let packed = [elements.div_ceil(2), 1];
            push(".weight", &packed, DType::U8, t.shard, true);
            push(".weight.quant_map", &[16], DType::F32, whole, false);
            let double = format == QuantFormat::Bnb4Double;
            if double {
                push(".weight.absmax", &[blocks], DType::U8, t.shard, false);
                let nested = [blocks.div_ceil(256)];
                push(".weight.nested_absmax", &nested, DType::F32, whole, false);
                push(".weight.nested_quant_map", &[256], DType::F32, whole, false);
            } else {
                push(".weight.absmax", &[blocks], DType::F32, t.shard, false);
            }
            let kind = if scheme.extras.fp4 { "fp4" } else { "nf4" };
            let state = bnb_state(kind, t.dtype, &t.shape, double);
            let name = format!(".weight.quant_state.bitsandbytes__{kind}");
            push(&name, &[state], DType::U8, whole, false);
        }
        QuantFormat::Bnb8 => {
            push(".weight", &t.shape, DType::I8, t.shard, true);
            push(".SCB", &[out], DType::F32, per_out, false);
            push(".weight_format", &[], DType::U8, whole, false);
        }
    }
    Ok(())
}

/// Bytes of the JSON text that bitsandbytes stores beside a 4-bit matrix. The offset of a nested
/// scale is a number of any length; 20 characters is the usual one.
fn bnb_state(kind: &str, dtype: DType, shape: &[u64], double: bool) -> u64 {
    let dtype = match dtype {
        DType::F16 => "float16",
        DType::F32 => "float32",
        _ => "bfloat16",
    };
    let shape: Vec<String> = shape.iter().map(u64::to_string).collect();
    let mut text = format!(
        "{{\"quant_type\": \"{kind}\", \"blocksize\": 64, \"dtype\": \"{dtype}\", \"shape\": [{}]}}",
        shape.join(", ")
    );
    if double {
        text.push_str(
            ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": ",
        );
        text.push_str(&"0".repeat(20));
    }
    text.len() as u64
}
