//! `plimsoll`: words, flags and exit codes; everything else is in the crates below.

mod args;
mod commands;
mod error;
mod load;
mod output;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::error::{Exit, Failure};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut output = Output::new(&cli.global);
    let json = match &cli.command {
        Command::Plan(a) => a.json,
        Command::Compare(a) => a.json,
        Command::Accuracy(a) => a.json,
        Command::Devices { json } | Command::Doctor { json } => *json,
        Command::Models(_) | Command::Schema { .. } | Command::Completions { .. } => false,
    };
    let result = match cli.command {
        Command::Plan(args) => commands::plan::run(&args, &mut output),
        Command::Models(command) => commands::models::run(&command, &mut output),
        Command::Devices { json } => commands::devices::run(json, &mut output),
        Command::Compare(args) => commands::compare::run(&args, &mut output),
        Command::Accuracy(args) => commands::accuracy::run(&args, &mut output),
        Command::Schema { of } => commands::schema::run(of, &mut output),
        Command::Doctor { json } => commands::doctor::run(json, &mut output),
        Command::Completions { shell } => commands::completions::run(shell, &mut output),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            report(&failure, json, &mut output);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Errors go to stderr; with `--json` the object goes to stdout, where programs look.
fn report(failure: &Failure, json: bool, output: &mut Output) {
    if json {
        let text = serde_json::to_string_pretty(&failure.report()).unwrap_or_default();
        // Nothing is left to tell anybody if stdout is gone too.
        let _ = output.line(&text);
    } else {
        output.talk(failure.text().trim_end());
    }
}

/// The exit code of a "no".
pub(crate) fn exit(code: Exit) -> ExitCode {
    ExitCode::from(code as u8)
}
