//! `llama.cpp`: being written.
use super::{Context, EngineStage, EngineVersion};
use crate::error::PlanError;

pub(super) fn stage(_: &Context<'_>, _: EngineVersion) -> Result<EngineStage, PlanError> {
    Err(PlanError::Load("llama.cpp is not modelled yet".to_owned()))
}
