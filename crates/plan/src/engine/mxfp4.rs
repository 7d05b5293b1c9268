//! What kernels' layouts of mxfp4 experts add to their plain size.

use plimsoll_model::quant::QuantFormat;
use plimsoll_model::{Axis, Role};
use plimsoll_units::{Bytes, SizeOverflow};

use super::Context;
use crate::error::PlanError;

/// How a kernel lays out mxfp4 experts.
pub(super) struct ExpertLayout {
    /// The inner size is a multiple of this.
    pub(super) inner: u64,
    /// The hidden size that gate and up read is a multiple of this.
    pub(super) hidden_in: u64,
    /// The hidden size that down writes is a multiple of this.
    pub(super) hidden_out: u64,
    /// Bytes of a row of packed values are a multiple of this.
    pub(super) value_row: u64,
    /// Rows of scales are a multiple of this.
    pub(super) scale_rows: u64,
    /// Whether the scales as loaded stay allocated beside the kernel's.
    pub(super) keeps_scales: bool,
    /// Bytes of an element of a bias.
    pub(super) bias: u64,
}

/// What the layout of mxfp4 experts adds to their plain size, over all layers of the stage.
///
/// # Errors
/// A size past 64 bits.
pub(super) fn padding(context: &Context<'_>, layout: &ExpertLayout) -> Result<u64, PlanError> {
    let spec = context.spec;
    if !spec
        .quant
        .as_ref()
        .is_some_and(|q| q.format == QuantFormat::Mxfp4)
    {
        return Ok(0);
    }
    let parallel = &context.deployment.parallel;
    let up = |n: u64, step: u64| n.div_ceil(step).checked_mul(step).ok_or(SizeOverflow);
    let mut sum = 0_u64;
    for t in spec.tensors.iter().filter(|t| t.role == Role::Experts) {
        let (Some(l), Some(layer), Some(experts)) = (t.linear, t.layer, t.experts) else {
            continue;
        };
        if !context.stage.layers.contains(&u64::from(layer)) {
            continue;
        }
        let split = if parallel.expert_parallel {
            1
        } else {
            parallel.tp.max(1)
        };
        let copies = experts.div_ceil(parallel.ep().max(1));
        // The split dimension is the inner one: outputs of gate and up (two rows each), inputs of down.
        let (out, inp) = match l.axis {
            Axis::Out => (l.out / split, l.inp),
            Axis::In => (l.out, l.inp / split),
        };
        let (padded_out, padded_inp) = match l.axis {
            Axis::Out => (2 * up(out / 2, layout.inner)?, up(inp, layout.hidden_in)?),
            Axis::In => (up(out, layout.hidden_out)?, up(inp, layout.inner)?),
        };
        let values =
            Bytes::product([up(padded_inp.div_ceil(2), layout.value_row)?, padded_out])?.get();
        let loaded_scales = Bytes::product([padded_inp.div_ceil(32), padded_out])?.get();
        let scales = Bytes::product([padded_inp.div_ceil(32), up(padded_out, layout.scale_rows)?])?
            .get()
            .checked_add(if layout.keeps_scales {
                loaded_scales
            } else {
                0
            })
            .ok_or(SizeOverflow)?;
        let plain = Bytes::product([inp.div_ceil(2), out])?
            .add(Bytes::product([inp.div_ceil(32), out])?)?
            .get();
        // The inventory has 16-bit biases.
        let bias = padded_out
            .checked_mul(layout.bias)
            .ok_or(SizeOverflow)?
            .saturating_sub(out.saturating_mul(2));
        let more = values
            .checked_add(scales)
            .and_then(|n| n.checked_add(bias))
            .ok_or(SizeOverflow)?
            .saturating_sub(plain);
        let all = more.checked_mul(copies).ok_or(SizeOverflow)?;
        sum = sum.checked_add(all).ok_or(SizeOverflow)?;
    }
    Ok(sum)
}
