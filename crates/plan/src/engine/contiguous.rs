//! `contiguous`: the servers that paging replaced. Weights, and one run of slots per sequence.
//!
//! Source: Kwon et al., SOSP 2023, sections 3 and 6.1 (Orca Max, Pow2, Oracle).

use plimsoll_program::WeightRules;

use super::ideal::{token_law, whole_device};
use super::{Context, EngineStage, Reserve, Takes, in_use, weight_terms};
use crate::error::PlanError;
use crate::kv::ContiguousLaw;

pub(super) fn stage(context: &Context<'_>, reserve: Reserve) -> Result<EngineStage, PlanError> {
    let rules = WeightRules {
        dtype: context.settings.dtype,
        ..WeightRules::stored()
    };
    let tokens = token_law(context, "contiguous")?;
    let law = ContiguousLaw {
        bytes_per_token: tokens.bytes_per_token()?,
        bytes_per_sequence: tokens.bytes_per_sequence()?,
        reserve,
        max_len: context.max_model_len,
        layers: context.stage.layers.end - context.stage.layers.start,
    };
    Ok(EngineStage {
        layers: None,
        budget: whole_device(context),
        terms: weight_terms(context, &rules, "checkpoint")?,
        outside: in_use(context).into_iter().collect(),
        host: Vec::new(),
        kv: Box::new(law),
        takes: Takes::Rest,
        notes: vec![
            "the KV allocator alone is modelled: activations and driver are left out".to_owned(),
            "window layers keep every token, as contiguous servers do".to_owned(),
        ],
    })
}
