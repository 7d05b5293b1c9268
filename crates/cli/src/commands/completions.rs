//! `plimsoll completions`.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::Cli;
use crate::error::Failure;
use crate::output::Output;

pub(crate) fn run(shell: clap_complete::Shell, output: &mut Output) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "plimsoll", &mut text);
    output.line(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
