//! `plimsoll`: words, flags and exit codes; everything else is in the crates below.

mod args;
mod commands;
mod demo;
mod error;
mod load;
mod output;
mod progress;
mod settings;
mod simulated;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, Command, Global};
use crate::error::{Exit, Failure};
use crate::output::Output;
use crate::settings::{Refused, Settings};

fn main() -> ExitCode {
    let (cli, settings) = match parse() {
        Ok(both) => both,
        Err(Refused::Typed(e)) => return mistyped(&e),
        Err(Refused::File(failure)) => {
            let mut output = Output::new(&Global::default());
            let json = std::env::args_os().any(|a| a == "--json");
            report(&failure, json, &mut output);
            return ExitCode::from(failure.exit as u8);
        }
    };
    let mut output = Output::new(&cli.global);
    let json = match &cli.command {
        Command::Plan(a) => a.json,
        Command::Simulate(a) => a.json,
        Command::Compare(a) => a.json,
        Command::Accuracy(a) => a.json,
        Command::Devices { json } => *json,
        Command::Doctor(a) => a.json,
        Command::Bench(a) => a.json,
        Command::Generate(a) => a.json,
        Command::Serve(a) => a.json,
        Command::Top(_)
        | Command::Models(_)
        | Command::Schema { .. }
        | Command::Explain { .. }
        | Command::Man { .. }
        | Command::Completions { .. } => false,
    };
    let result = match cli.command {
        Command::Plan(args) => commands::plan::run(&args, &mut output),
        Command::Simulate(args) => commands::simulate::run(&args, &mut output),
        Command::Generate(args) => commands::generate::run(&args, &mut output),
        Command::Serve(args) => commands::serve::run(&args, &settings, &mut output),
        Command::Top(args) => commands::top::run(&args, &mut output),
        Command::Bench(args) => commands::bench::run(&args, &mut output),
        Command::Models(command) => commands::models::run(&command, &mut output),
        Command::Devices { json } => commands::devices::run(json, &mut output),
        Command::Compare(args) => commands::compare::run(&args, &mut output),
        Command::Accuracy(args) => commands::accuracy::run(&args, &mut output),
        Command::Schema { of } => commands::schema::run(of, &mut output),
        Command::Explain { code } => commands::explain::run(code.as_deref(), &mut output),
        Command::Man { command, dir } => {
            commands::man::run(command.as_deref(), dir.as_deref(), &mut output)
        }
        Command::Doctor(args) => commands::doctor::run(&args, &mut output),
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

/// What was typed. Negative numbers are values, so that the error names the flag which has no use for
/// them.
fn parse() -> Result<(Cli, Settings), Refused> {
    let command = Cli::command().mut_subcommands(|c| {
        c.mut_args(|a| {
            let takes_values = a.get_action().takes_values();
            a.allow_negative_numbers(takes_values)
        })
    });
    let mut command = settings::with_environment(command);
    let (matches, settings) = settings::read(&mut command, std::env::args_os().collect())?;
    let cli =
        Cli::from_arg_matches(&matches).map_err(|e| Refused::Typed(e.format(&mut command)))?;
    Ok((cli, settings))
}

/// Help and version, and command lines that cannot be read: as JSON where JSON was asked for.
fn mistyped(e: &clap::Error) -> ExitCode {
    let json = e.use_stderr() && std::env::args_os().any(|a| a == "--json");
    if !json {
        // Nothing is left to tell anybody if the stream is gone.
        let _ = e.print();
        return ExitCode::from(if e.use_stderr() { Exit::Usage as u8 } else { 0 });
    }
    let (what, tip) = settings::told(e);
    let tip = tip.unwrap_or_else(|| "`--help` lists the flags and their values".to_owned());
    let failure = Failure::new(Exit::Usage, "E-USAGE-008", what).hint(tip);
    let text = serde_json::to_string_pretty(&failure.report()).unwrap_or_default();
    let _ = writeln!(std::io::stdout(), "{text}");
    ExitCode::from(Exit::Usage as u8)
}

/// Errors go to stderr; with `--json` the object goes to stdout, where programs look.
fn report(failure: &Failure, json: bool, output: &mut Output) {
    if json {
        let text = serde_json::to_string_pretty(&failure.report()).unwrap_or_default();
        // Where stdout cannot be written to, stderr still can.
        if output.line(&text).is_err() {
            output.talk(failure.text().trim_end());
        }
    } else {
        output.talk(failure.text().trim_end());
    }
}

/// The exit code of a "no".
pub(crate) fn exit(code: Exit) -> ExitCode {
    ExitCode::from(code as u8)
}
