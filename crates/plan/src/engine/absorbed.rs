//! The copies that latent attention keeps of `kv_b_proj`: decoding multiplies queries and outputs by its halves, for
//! which there are no quantised kernels.
//!
//! Sources: vLLM `model_executor/layers/attention/mla_attention.py` (`process_weights_after_loading`; before 0.16
//! `v1/attention/backends/mla/common.py`): `W_UK_T` and `W_UV` are views of the weight where that has 16 bits, and of a 16-bit
//! copy where not. SGLang `srt/models/deepseek_v2.py` (`post_load_weights`, later
//! `deepseek_common/deepseek_weight_loader.py`): `w_kc` and `w_vc` are copies whatever the weight is; in 8 bits
//! where one scale does for the whole of it, which NVIDIA's cards do not do for blocks of 128.

use plimsoll_model::quant::QuantFormat;
use plimsoll_model::{LatentAttention, Mixer, ModelSpec};
use plimsoll_units::{Bytes, DType, SizeOverflow};

use super::Context;
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

/// How a layer's `kv_b_proj` is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// In 16 or 32 bits.
    Plain,
    /// As 8-bit floats; whether a scale is for a block of it.
    Fp8 {
        /// Whether it is.
        blocks: bool,
    },
    /// Otherwise packed.
    Packed,
}

/// Bytes of a 16-bit element.
const WIDE: u64 = 2;

fn stored(spec: &ModelSpec, layer: u64) -> Stored {
    let parts = || {
        spec.tensors.iter().filter(move |t| {
            t.layer.is_some_and(|l| u64::from(l) == layer) && t.name.contains(".kv_b_proj.")
        })
    };
    let weight = parts().find(|t| t.name.ends_with(".kv_b_proj.weight"));
    match weight.map(|t| t.dtype) {
        Some(DType::F8E4m3) => Stored::Fp8 {
            blocks: spec
                .quant
                .as_ref()
                .is_some_and(|q| matches!(q.format, QuantFormat::Fp8Block { .. })),
        },
        Some(DType::Bf16 | DType::F16 | DType::F32) => Stored::Plain,
        Some(_) => Stored::Packed,
        None if parts().next().is_some() => Stored::Packed,
        None => Stored::Plain,
    }
}

/// What vLLM keeps beside the weights.
pub(super) fn vllm(context: &Context<'_>) -> Result<Option<Term>, PlanError> {
    term(
        context,
        |s| if s == Stored::Plain { 0 } else { WIDE },
        "vLLM layers/attention/mla_attention.py: process_weights_after_loading",
    )
}

/// What SGLang keeps beside the weights.
pub(super) fn sglang(context: &Context<'_>) -> Result<Option<Term>, PlanError> {
    let nvidia = context.deployment.device.vendor != "amd";
    term(
        context,
        |s| match s {
            Stored::Fp8 { blocks } if !(blocks && nvidia) => 1,
            Stored::Fp8 { .. } | Stored::Plain | Stored::Packed => WIDE,
        },
        "SGLang srt/models/deepseek_v2.py: w_kc, w_vc",
    )
}

fn term(
    context: &Context<'_>,
    width: impl Fn(Stored) -> u64,
    source: &str,
) -> Result<Option<Term>, PlanError> {
    let tp = context.deployment.parallel.tp.max(1);
    let mut sum = Bytes::ZERO;
    let mut layers = 0_u64;
    for (i, layer) in (0_u64..).zip(&context.spec.layers) {
        let Mixer::Latent(a) = &layer.mixer else {
            continue;
        };
        if !context.stage.layers.contains(&i) {
            continue;
        }
        let bytes = elements(a, tp)?.times(width(stored(context.spec, i)))?;
        layers += u64::from(bytes > Bytes::ZERO);
        sum = sum.add(bytes)?;
    }
    Ok((layers > 0).then(|| {
        Term::exact(Region::Weights, "latents' projections again", sum)
            .kind(Kind::Derived)
            .formula("layers x rank x heads x (key and value elements) x element")
            .input("layers", layers)
            .source(source)
    }))
}

/// Elements of one layer's projection on one rank.
fn elements(a: &LatentAttention, tp: u64) -> Result<Bytes, SizeOverflow> {
    let head = a.nope_dim.checked_add(a.v_dim).ok_or(SizeOverflow)?;
    Bytes::product([a.rank, a.q_heads.div_ceil(tp), head])
}
