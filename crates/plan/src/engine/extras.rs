//! What may stand beside a model on its devices: LoRA adapters, a draft model, multi-token prediction.

use std::borrow::Cow;

use plimsoll_model::{Axis, LayerSpec, ModelSpec, Role, Shard, ShardError};
use plimsoll_units::{Bytes, SizeOverflow};

use super::{Context, activation_dtype};
use crate::error::PlanError;
use crate::term::{Region, Term};

/// The model with the layers that speculation adds to its cache: those of a draft model, or copies of
/// the last layer for multi-token prediction.
pub(super) fn with_speculation<'a>(context: &Context<'a>) -> Cow<'a, ModelSpec> {
    let spec = context.spec;
    let mut more: Vec<LayerSpec> = Vec::new();
    if let Some(draft) = &context.settings.draft {
        more.extend(draft.layers.iter().copied());
    }
    if context.settings.mtp
        && let Some(last) = spec.layers.last()
    {
        more.extend((0..spec.mtp_layers).map(|_| *last));
    }
    if more.is_empty() {
        return Cow::Borrowed(spec);
    }
    let mut changed = spec.clone();
    changed.layers.extend(more);
    Cow::Owned(changed)
}

/// Slots for adapters: for every linear layer that they wrap, `slots` pairs of `[rank, inputs]` and
/// `[outputs, rank]` in the model's type.
///
/// The first of a pair is whole where outputs are split, and the second where inputs are. Source:
/// vLLM `lora/layers/column_parallel_linear.py`, `row_parallel_linear.py`: `create_lora_weights`.
/// Experts, embeddings and the head are not wrapped here.
pub(super) fn adapters(context: &Context<'_>) -> Result<Option<Term>, PlanError> {
    let Some(lora) = context.settings.lora else {
        return Ok(None);
    };
    let tp = context.deployment.parallel.tp;
    let width = activation_dtype(context).bytes(1)?.get();
    let (mut sum, mut layers) = (Bytes::ZERO, 0_u64);
    for t in &context.spec.tensors {
        let wrapped = matches!(
            t.role,
            Role::Attention | Role::State | Role::Mlp | Role::SharedExperts
        );
        let here = t
            .layer
            .is_some_and(|l| context.stage.layers.contains(&u64::from(l)));
        let (Some(l), true, true) = (t.linear, wrapped, here) else {
            continue;
        };
        let local = |n: u64, axis: Axis| -> Result<u64, ShardError> {
            if l.axis != axis || t.shard == Shard::Replicated {
                return Ok(n);
            }
            t.shard.local_elements(n, tp, |v| v)
        };
        let row = local(l.inp, Axis::In)?
            .checked_add(local(l.out, Axis::Out)?)
            .ok_or(PlanError::Size(SizeOverflow))?;
        sum = sum.add(Bytes::product([lora.slots, lora.rank, row, width])?)?;
        layers += 1;
    }
    Ok(Some(
        Term::exact(Region::Adapters, "LoRA slots", sum)
            .formula("slots x rank x (inputs + outputs) x type, over the wrapped linear layers")
            .input("slots", lora.slots)
            .input("rank", lora.rank)
            .input("linear layers", layers)
            .source("vLLM lora/layers: create_lora_weights"),
    ))
}
