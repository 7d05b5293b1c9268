//! `plimsoll man`: manual pages, made of the same texts as `--help`.

use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};

use crate::args::Cli;
use crate::commands::simulate::write_file;
use crate::error::{Exit, Failure};
use crate::output::Output;

/// Prints the page of one command, or writes the pages of all into a folder.
pub(crate) fn run(
    command: Option<&str>,
    dir: Option<&Path>,
    output: &mut Output,
) -> Result<ExitCode, Failure> {
    let mut cli = Cli::command();
    cli.build();
    let all = pages(&cli);
    if let Some(dir) = dir {
        for (name, page) in &all {
            write_file(&dir.join(format!("{name}.1")), &rendered(page)?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = command.map_or_else(
        || "plimsoll".to_owned(),
        |c| format!("plimsoll-{}", c.trim().replace(' ', "-")),
    );
    let Some((_, page)) = all.iter().find(|(name, _)| *name == wanted) else {
        let known: Vec<&str> = all
            .iter()
            .filter_map(|(name, _)| name.strip_prefix("plimsoll-"))
            .collect();
        return Err(Failure::new(
            Exit::Usage,
            "E-USAGE-013",
            format!("no command is called `{}`", command.unwrap_or_default()),
        )
        .hint(format!("there are {}", known.join(", "))));
    };
    output.line(&rendered(page)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The name of each page with its command, those within others among them.
fn pages(cli: &Command) -> Vec<(String, Command)> {
    let mut out = vec![("plimsoll".to_owned(), cli.clone())];
    let mut open: Vec<(String, &Command)> = vec![("plimsoll".to_owned(), cli)];
    while let Some((above, command)) = open.pop() {
        for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
            let name = format!("{above}-{}", sub.get_name());
            out.push((name.clone(), sub.clone().name(name.clone())));
            open.push((name, sub));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

fn rendered(command: &Command) -> Result<String, Failure> {
    let mut page = Vec::new();
    let failed = |what: String| {
        Failure::new(
            Exit::Failure,
            "E-IO-002",
            format!("cannot write a manual page: {what}"),
        )
    };
    // A page without a date is the same on every day that it is made.
    clap_mangen::Man::new(command.clone())
        .date("")
        .render(&mut page)
        .map_err(|e| failed(e.to_string()))?;
    String::from_utf8(page).map_err(|e| failed(e.to_string()))
}
