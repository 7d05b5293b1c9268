//! What the start-up profile measures besides weights.

use plimsoll_units::Bytes;

use super::super::{Context, Version, activation_dtype};
use super::Defaults;
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

/// Activation peak, non-torch memory and graphs.
pub(super) fn terms(
    context: &Context<'_>,
    _version: Version,
    d: &Defaults,
) -> Result<Vec<Term>, PlanError> {
    let spec = context.spec;
    let width = activation_dtype(context).bytes(1)?.get();
    let hidden = Bytes::product([d.batched_tokens, spec.hidden, width])?;
    let sampler = Bytes::product([d.sequences, spec.vocab, 14])?;
    let bytes = hidden.add(sampler)?;
    Ok(vec![
        Term::exact(Region::Activations, "activation peak", bytes)
            .kind(Kind::Bound)
            .formula("R x vocabulary x 14 + T x hidden x dtype"),
    ])
}

/// What the process uses outside the budget.
pub(super) fn outside(_: &Context<'_>, _: Version) -> Result<Vec<Term>, PlanError> {
    Ok(Vec::new())
}
