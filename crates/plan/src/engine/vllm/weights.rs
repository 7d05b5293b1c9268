//! "Model loading took": what torch counts as allocated once the model is loaded.
//!
//! More than the tensors' bytes, for three reasons, all exact:
//! - projections that the model code fuses are one allocation (`qkv_proj`, `gate_up_proj`, the experts
//!   of a layer in `w13` and `w2`: `model_executor/layers/linear.py`, `fused_moe/layer.py`);
//! - the caching allocator rounds each allocation, and leaves what remains of a 2 MiB granule in the
//!   block where it is at most 1 MiB (`c10/cuda/CUDACachingAllocator.cpp`: `round_size`,
//!   `get_allocation_size`, `should_split`);
//! - sines and cosines of rotary embeddings are buffers (`layers/rotary_embedding/base.py`).

use std::collections::BTreeMap;

use plimsoll_model::quant::QuantFormat;
use plimsoll_model::{Mixer, Role};
use plimsoll_program::{LocalTensor, WeightRules, rank_tensors};
use plimsoll_units::{Bytes, DType, SizeOverflow};

use super::super::mxfp4::{self, ExpertLayout};
use super::super::{Context, Engine, Version, absorbed, activation_dtype};
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

/// Rows of the vocabulary are padded to this (`vocab_parallel_embedding.py`).
const VOCAB_PADDING: u64 = 64;
/// The allocator's smallest step.
const SMALL_STEP: u64 = 512;
/// From this size on, an allocation is a segment of its own, in steps of [`LARGE_STEP`].
const OWN_SEGMENT: u64 = 10 << 20;
/// Step of a segment of its own.
const LARGE_STEP: u64 = 2 << 20;
/// What remains of a segment is split off only if it is larger than this.
const SPLIT_ABOVE: u64 = 1 << 20;

/// What an allocation of `bytes` counts for.
fn allocated(bytes: u64) -> Result<u64, SizeOverflow> {
    let up = |step: u64| bytes.div_ceil(step).checked_mul(step).ok_or(SizeOverflow);
    let small = up(SMALL_STEP)?;
    if small < OWN_SEGMENT {
        return Ok(small);
    }
    let segment = up(LARGE_STEP)?;
    Ok(if segment - small <= SPLIT_ABOVE {
        segment
    } else {
        small
    })
}

/// The parameter that holds a tensor, as the pieces of its name: fused ones give the same pieces.
fn parameter(name: &str) -> [&str; 3] {
    // By whole path segments: `gate_up_proj` and `kv_proj` are names of their own.
    let mut at = 0;
    while let Some(end) = name[at..].find('.').map(|n| at + n) {
        let whole = match &name[at..end] {
            "q_proj" | "k_proj" | "v_proj" | "query" | "key" | "value" => "qkv_proj",
            "gate_proj" | "up_proj" => "gate_up_proj",
            "w1" | "w3" => "w13",
            _ => {
                at = end + 1;
                continue;
            }
        };
        return [&name[..at], whole, &name[end..]];
    }
    [name, "", ""]
}

/// What the allocator adds to a list of parameters.
#[derive(Clone, Copy, Debug, Default)]
struct Rounding {
    /// As the rule has it.
    expected: u64,
    /// What remains of a granule may be given to another tensor or stay: at most all of it stays.
    most: u64,
    /// Parameters so far.
    parameters: u64,
}

impl Rounding {
    /// Counts `parameters` in and empties the list.
    fn add(&mut self, parameters: &mut Vec<([&str; 3], u64)>) -> Result<(), SizeOverflow> {
        for (_, bytes) in parameters.drain(..) {
            let counted = allocated(bytes)? - bytes;
            let large = if bytes >= OWN_SEGMENT {
                SPLIT_ABOVE
            } else {
                SMALL_STEP
            };
            self.expected = self.expected.checked_add(counted).ok_or(SizeOverflow)?;
            self.most = self
                .most
                .checked_add(large.max(counted))
                .ok_or(SizeOverflow)?;
            self.parameters += 1;
        }
        Ok(())
    }
}

/// Bytes of keys' projections in layers without one of values: the fused parameter has room for both.
fn keys_as_values(parts: &[LocalTensor<'_>]) -> Result<u64, SizeOverflow> {
    let (keys, values) = (".k_proj.weight", ".v_proj.weight");
    let mut layers: BTreeMap<u32, (u64, bool)> = BTreeMap::new();
    for part in parts.iter().filter(|p| p.role == Role::Attention) {
        let Some(layer) = part.tensor.layer else {
            continue;
        };
        let found = layers.entry(layer).or_default();
        if part.tensor.name.ends_with(keys) {
            found.0 = part.each.times(part.copies)?.get();
        }
        found.1 |= part.tensor.name.ends_with(values);
    }
    let without = layers.values().filter(|(_, values)| !values);
    without
        .map(|(keys, _)| *keys)
        .try_fold(0_u64, |sum, k| sum.checked_add(k).ok_or(SizeOverflow))
}

/// From here on vLLM gives such weights to Machete on Hopper, which leaves what it does not use where it is.
const MACHETE: Version = Version::new(0, 6);

/// Whether Marlin's kernels take GPTQ weights: symmetric ones of 4 or 8 bits need no zero points then, and those that are
/// in order no index.
///
/// Source: vLLM `quantization/gptq_marlin.py` (`is_gptq_marlin_compatible`) and `kernels/linear/mixed_precision/` (0.19:
/// `choose_mp_linear_kernel` prefers Machete, and only Marlin frees them); 0.5.4 has Marlin alone.
fn repacks_gptq(context: &Context<'_>) -> bool {
    let Some(q) = &context.spec.quant else {
        return false;
    };
    let device = &context.deployment.device;
    let named = q.method == "gptq_marlin";
    let hopper = matches!(device.compute_capability, Some((9, _)));
    let machete = matches!(context.settings.engine, Engine::Vllm(v) if v >= MACHETE) && hopper;
    let runs = device.has_compute(8, 0) || device.is_unlimited() && named;
    let symmetric = named || q.method == "gptq" && q.extras.symmetric;
    let bits = matches!(q.format, QuantFormat::Gptq { bits: 4 | 8, .. });
    runs && symmetric && bits && !machete
}

/// The stored tensors of one rank, role by role.
pub(in crate::engine) fn tensors(context: &Context<'_>) -> Result<Vec<Term>, PlanError> {
    Ok(stored(context)?.0)
}

/// The stored tensors, what the allocator adds to them, and the bytes of keys that are loaded as values too.
fn stored(context: &Context<'_>) -> Result<(Vec<Term>, Rounding, u64), PlanError> {
    let spec = context.spec;
    let marlin = repacks_gptq(context);
    let ordered = spec.quant.as_ref().is_some_and(|q| !q.extras.by_activation);
    let rules = WeightRules {
        dtype: Some(activation_dtype(context)),
        vocab_multiple: VOCAB_PADDING,
        mtp: context.settings.mtp,
        encoder: true,
        encoder_replicated: false,
        keep_order_index: !(marlin && ordered),
        packed: None,
        widened: None,
    };
    let parallel = &context.deployment.parallel;
    let parts = rank_tensors(spec, parallel, context.stage, &rules)?;
    let mut plain: BTreeMap<Role, (u64, u64)> = BTreeMap::new();
    // The parameters of the layer at hand: fused ones lie in one layer, and layers in sequence.
    let mut layer_parameters: Vec<([&str; 3], u64)> = Vec::new();
    let mut layer = None;
    let mut rounding = Rounding::default();
    for part in parts
        .iter()
        .filter(|p| !(marlin && p.tensor.name.ends_with(".qzeros")))
    {
        let bytes = part.each.times(part.copies)?.get();
        if part.tensor.layer != layer {
            rounding.add(&mut layer_parameters)?;
            layer = part.tensor.layer;
        }
        let name = parameter(&part.tensor.name);
        match layer_parameters.iter_mut().find(|(n, _)| *n == name) {
            Some((_, sum)) => *sum = sum.checked_add(bytes).ok_or(SizeOverflow)?,
            None => layer_parameters.push((name, bytes)),
        }
        let row = plain.entry(part.role).or_default();
        row.0 = row.0.checked_add(bytes).ok_or(SizeOverflow)?;
        row.1 = row.1.saturating_add(part.copies);
    }
    rounding.add(&mut layer_parameters)?;
    let doubled = keys_as_values(&parts)?;
    let from = if spec.from_headers {
        "file headers"
    } else {
        "config"
    };
    let layers = &context.stage.layers;
    let terms = Role::ALL
        .iter()
        .filter_map(|role| Some((role, plain.get(role)?)))
        .map(|(role, (bytes, tensors))| {
            Term::exact(Region::Weights, role.name(), Bytes::new(*bytes))
                .formula(format!(
                    "sum of {tensors} stored tensors, split over TP {}",
                    parallel.tp
                ))
                .input("tensors", tensors)
                .input("tp", parallel.tp)
                .input("layers", format!("{}..{}", layers.start, layers.end))
                .input("vocabulary padded to a multiple of", VOCAB_PADDING)
                .input("read from", from)
                .source("vLLM model_executor/layers/linear.py, vocab_parallel_embedding.py")
        })
        .collect();
    Ok((terms, rounding, doubled))
}

/// The weight terms of one rank.
pub(super) fn terms(context: &Context<'_>, version: Version) -> Result<Vec<Term>, PlanError> {
    let spec = context.spec;
    let (mut terms, rounding, doubled) = stored(context)?;
    if doubled > 0 {
        terms.push(
            Term::exact(Region::Weights, "keys as values", Bytes::new(doubled))
                .kind(Kind::Derived)
                .formula("the projection of keys again, where the checkpoint has none of values")
                .source("vLLM models/gemma4.py: qkv_proj has a part for each"),
        );
    }
    terms.extend(super::padding::experts(context)?);
    let widened = widened_scales(context, version)?;
    if widened > 0 {
        terms.push(
            Term::exact(Region::Weights, "scales widened", Bytes::new(widened))
                .kind(Kind::Derived)
                .formula("3 bytes more for each scale of 64 weights")
                .source("vLLM model_loader/bitsandbytes_loader.py: dequantize_dq"),
        );
    }
    terms.extend(absorbed::vllm(context)?);
    let padding = mxfp4::padding(context, &expert_layout(context))?;
    if padding > 0 {
        terms.push(
            Term::exact(Region::Weights, "expert layout", Bytes::new(padding))
                .kind(Kind::Derived)
                .formula("mxfp4 experts as their kernel wants them, less their plain size")
                .source(
                    "vLLM fused_moe/oracle/mxfp4.py: mxfp4_round_up_hidden_size_and_intermediate_size; \
                     triton_kernels layout_details/hopper_value.py, hopper_scale.py",
                ),
        );
    }
    // DeepSeek V4's tables have 32 bits (`deepseek_scaling_rope.py`, `DeepseekV4ScalingRotaryEmbedding`).
    let compressed = |m: &Mixer| matches!(m, Mixer::Latent(a) if a.compressed.is_some());
    let width = if spec.layers.iter().any(|l| compressed(&l.mixer)) {
        4
    } else {
        activation_dtype(context).bytes(1)?.get()
    };
    let mut rotary = 0_u64;
    for table in &spec.rotary {
        let bytes = Bytes::product([table.positions, table.dim, width])?.get();
        rotary = rotary.checked_add(allocated(bytes)?).ok_or(SizeOverflow)?;
    }
    if rotary > 0 {
        terms.push(
            Term::exact(Region::Weights, "rotary tables", Bytes::new(rotary))
                .kind(Kind::Derived)
                .formula("sum over tables of positions x rotated elements x type")
                .input("tables", spec.rotary.len())
                .input("positions", spec.rotary.first().map_or(0, |t| t.positions))
                .input("rotated elements", spec.rotary.first().map_or(0, |t| t.dim))
                .source("vLLM layers/rotary_embedding/base.py: cos_sin_cache"),
        );
    }
    terms.push(
        Term::exact(
            Region::Weights,
            "allocator rounding",
            Bytes::new(rounding.expected),
        )
        .kind(Kind::Calibrated {
            low: Bytes::ZERO,
            high: Bytes::new(rounding.most),
        })
        .formula(
            "per parameter: up to 512 B; up to 2 MiB from 10 MiB on where at most 1 MiB remains",
        )
        .input("parameters", rounding.parameters)
        .source("c10/cuda/CUDACachingAllocator.cpp: round_size, should_split"),
    );
    Ok(terms)
}

/// How vLLM's kernel for a card lays out mxfp4 experts; biases are in f32.
fn expert_layout(context: &Context<'_>) -> ExpertLayout {
    match context.deployment.device.compute_capability {
        // Triton's swizzled layouts (triton_kernels `hopper_value.py`, `hopper_scale.py`).
        Some((9, _)) => ExpertLayout {
            inner: 64,
            hidden_in: 1,
            hidden_out: 1,
            value_row: 64,
            scale_rows: 256,
            keeps_scales: true,
            bias: 4,
        },
        // TensorRT-LLM's kernels.
        Some((10.., _)) => ExpertLayout {
            inner: 256,
            hidden_in: 256,
            hidden_out: 256,
            value_row: 1,
            scale_rows: 1,
            keeps_scales: false,
            bias: 4,
        },
        // Marlin.
        _ => ExpertLayout {
            inner: 128,
            hidden_in: 256,
            hidden_out: 256,
            value_row: 1,
            scale_rows: 1,
            keeps_scales: false,
            bias: 4,
        },
    }
}

/// From here on bitsandbytes' 8-bit scales become f32 while they are loaded (`dequantize_dq`).
const SCALES_WIDENED: Version = Version {
    major: 0,
    minor: 9,
    patch: 2,
};

/// What bitsandbytes makes of a checkpoint that is quantised while it is loaded: scales in 8 bits, which later releases
/// widen at once.
///
/// Source: vLLM `model_executor/model_loader/bitsandbytes_loader.py` (`compress_statistics`, `dequantize_dq`).
pub(crate) fn as_loaded(version: Version, format: QuantFormat) -> QuantFormat {
    match format {
        QuantFormat::Bnb4 if version < SCALES_WIDENED => QuantFormat::Bnb4Double,
        other => other,
    }
}

/// What bitsandbytes' stored 8-bit scales take more in f32.
fn widened_scales(context: &Context<'_>, version: Version) -> Result<u64, SizeOverflow> {
    if version < SCALES_WIDENED {
        return Ok(0);
    }
    let tp = context.deployment.parallel.tp.max(1);
    let mine =
        |layer: Option<u32>| layer.is_none_or(|l| context.stage.layers.contains(&u64::from(l)));
    context
        .spec
        .tensors
        .iter()
        .filter(|t| t.dtype == DType::U8 && t.name.ends_with(".weight.absmax") && mine(t.layer))
        .try_fold(0_u64, |sum, t| {
            let scales = Bytes::product(t.shape.iter().copied())?;
            // Three bytes more each.
            let more = scales.times(3)?.get() / tp;
            sum.checked_add(more).ok_or(SizeOverflow)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_keeps_at_most_one_mebibyte() {
        let mib = |x: f64| (x * 1_048_576.0) as u64;
        assert_eq!(allocated(1), Ok(512));
        assert_eq!(allocated(mib(9.0)), Ok(mib(9.0)));
        assert_eq!(allocated(mib(259.0)), Ok(mib(260.0)));
        assert_eq!(allocated(mib(129.5)), Ok(mib(130.0)));
        // 1.5 MiB remain: they are split off and used by others.
        assert_eq!(allocated(mib(24.5)), Ok(mib(24.5)));
    }

    #[test]
    fn fused_projections_are_one_parameter() {
        let p = |name: &str| parameter(name).concat();
        assert_eq!(
            p("l.0.self_attn.k_proj.weight"),
            "l.0.self_attn.qkv_proj.weight"
        );
        assert_eq!(p("l.0.mlp.up_proj.weight"), "l.0.mlp.gate_up_proj.weight");
        assert_eq!(
            p("l.0.mlp.gate_up_proj.weight"),
            "l.0.mlp.gate_up_proj.weight"
        );
        assert_eq!(
            p("l.0.self_attn.o_proj.weight"),
            "l.0.self_attn.o_proj.weight"
        );
        assert_eq!(
            p("mlp.experts.{e}.gate_proj.weight"),
            p("mlp.experts.{e}.up_proj.weight")
        );
    }
}
