//! `plimsoll models`.

use std::process::ExitCode;

use plimsoll_model::{Assume, catalogue, from_config};

use crate::args::ModelsCommand;
use crate::error::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(command: &ModelsCommand, output: &mut Output) -> Result<ExitCode, Failure> {
    let demo = crate::demo::entry();
    match command {
        ModelsCommand::List => {
            let mut text = String::new();
            for e in catalogue::entries().iter().chain([&demo]) {
                let aliases = e.aliases.join(", ");
                text.push_str(&format!("{:<24} {aliases}\n", e.name));
            }
            output.line(&text)?;
        }
        ModelsCommand::Show { name, config } => {
            let own = (name == crate::demo::NAME).then_some(&demo);
            let entry = own.or_else(|| catalogue::find(name)).ok_or_else(|| {
                Failure::new(
                    Exit::NotFound,
                    "E-MODEL-004",
                    format!("no built-in model is called `{name}`"),
                )
                .hint("`plimsoll models list` shows them")
            })?;
            if *config {
                let text = serde_json::to_string_pretty(&entry.config).map_err(|e| {
                    Failure::new(
                        Exit::Failure,
                        "E-IO-002",
                        format!("cannot write the config as JSON: {e}"),
                    )
                })?;
                output.line(&text)?;
            } else {
                let spec = from_config(&entry.config, Assume::Nothing).map_err(|e| {
                    Failure::new(Exit::Corrupt, "E-MODEL-001", format!("{name}: {e}"))
                })?;
                let stored = spec
                    .stored_bytes()
                    .map_err(plimsoll_plan::PlanError::from)?;
                let parameters = spec.parameters().map_err(plimsoll_plan::PlanError::from)?;
                let mut text = format!(
                    "{}\n  architecture  {}\n  family        {}\n  parameters    {}\n  stored        {stored} as {}\n  layers        {}\n  hidden        {}\n  vocabulary    {}\n",
                    entry.name,
                    spec.architecture,
                    spec.family,
                    plimsoll_report::thousands(parameters),
                    spec.dtype,
                    spec.layers.len(),
                    spec.hidden,
                    spec.vocab,
                );
                if let Some(q) = &spec.quant {
                    text.push_str(&format!("  quantised     {}\n", q.name()));
                }
                if let Some(c) = spec.max_context {
                    text.push_str(&format!(
                        "  context       {}\n",
                        plimsoll_report::thousands(c)
                    ));
                }
                text.push_str(&format!(
                    "  also called   {}\n  source        {}\n",
                    entry.aliases.join(", "),
                    entry.source
                ));
                output.line(&text)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
