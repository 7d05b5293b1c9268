//! `plimsoll schema`.

use std::process::ExitCode;

use crate::args::SchemaOf;
use crate::error::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(of: SchemaOf, output: &mut Output) -> Result<ExitCode, Failure> {
    let SchemaOf::Plan = of;
    let text = serde_json::to_string_pretty(&plimsoll_report::plan_schema()).map_err(|e| {
        Failure::new(
            Exit::Failure,
            "E-IO-002",
            format!("cannot write the schema: {e}"),
        )
    })?;
    output.line(&text)?;
    Ok(ExitCode::SUCCESS)
}
