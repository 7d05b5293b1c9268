//! `plimsoll schema`.

use std::process::ExitCode;

use crate::args::SchemaOf;
use crate::error::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(of: SchemaOf, output: &mut Output) -> Result<ExitCode, Failure> {
    let schema = match of {
        SchemaOf::Plan => plimsoll_report::plan_schema(),
        SchemaOf::Cards => plimsoll_report::cards_schema(),
        SchemaOf::Simulate => plimsoll_report::simulation::simulation_schema(),
        SchemaOf::Sweep => plimsoll_report::simulation::sweep_schema(),
        SchemaOf::Find => plimsoll_report::simulation::find_schema(),
        SchemaOf::Profile => plimsoll_report::profile_schema(),
    };
    let text = serde_json::to_string_pretty(&schema).map_err(|e| {
        Failure::new(
            Exit::Failure,
            "E-IO-002",
            format!("cannot write the schema: {e}"),
        )
    })?;
    output.line(&text)?;
    Ok(ExitCode::SUCCESS)
}
