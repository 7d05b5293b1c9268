//! Where the values of `serve`'s flags come from: the command line, the environment, a file, or the defaults.
//!
//! A file's values are put before the flags that were typed, as if they had been typed there, unless the flag was typed
//! or stands in the environment. So there is one parser for all of them, one set of names and one set of errors.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::Value;

use crate::error::{Exit, Failure};

/// The command whose flags have these other places.
const COMMAND: &str = "serve";
/// Flags that ask for something else than serving.
const ASKS: [&str; 5] = ["config", "print_config", "dry_run", "json", "help"];
/// Values that are nobody's business.
const SECRET: [&str; 1] = ["api_key"];
/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Where a value is from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Typed,
    Environment(String),
    File(PathBuf),
    Default,
    Unset,
}

/// A flag and what it was set to.
#[derive(Clone, Debug)]
struct Setting {
    key: String,
    values: Vec<String>,
    origin: Origin,
    /// Whether more than one can be given.
    list: bool,
}

/// All flags of `serve` but those that ask for something else.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings(Vec<Setting>);

/// What was typed, and where its values are from, or why it makes no sense.
#[derive(Debug)]
pub(crate) enum Refused {
    Typed(clap::Error),
    File(Failure),
}

/// The name of a flag in the environment.
fn variable(long: &str) -> String {
    format!("PLIMSOLL_{}", long.to_uppercase().replace('-', "_"))
}

fn is_setting(arg: &Arg) -> bool {
    !ASKS.contains(&arg.get_id().as_str()) && !arg.is_global_set()
}

/// The command with the flags of `serve` in the environment too.
pub(crate) fn with_environment(command: Command) -> Command {
    command.mut_subcommand(COMMAND, |c| {
        c.mut_args(|arg| {
            let name = match arg.get_long() {
                Some(long) if is_setting(&arg) || long == "config" => variable(long),
                _ if arg.is_positional() => variable(arg.get_id().as_str()),
                _ => return arg,
            };
            // Told once, and not beside every flag.
            let arg = arg.env(name).hide_env(true);
            match arg.get_action() {
                ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
                _ => arg,
            }
        })
    })
}

/// Reads a command line, with what a file adds to it.
pub(crate) fn read(
    command: &mut Command,
    args: Vec<OsString>,
) -> Result<(ArgMatches, Settings), Refused> {
    let looked = command
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(&args);
    let serve = looked.as_ref().ok().and_then(|m| m.subcommand());
    let Some((COMMAND, typed)) = serve else {
        let matches = command.try_get_matches_from_mut(&args);
        return Ok((matches.map_err(Refused::Typed)?, Settings::default()));
    };
    let file = typed.get_one::<PathBuf>("config").cloned();
    let arguments: Vec<Arg> = command
        .find_subcommand(COMMAND)
        .map(|c| c.get_arguments().cloned().collect())
        .unwrap_or_default();
    let mut more = Vec::new();
    if let Some(path) = &file {
        more = of_file(path, &arguments, typed).map_err(Refused::File)?;
    }
    let at = args
        .iter()
        .position(|a| a == COMMAND)
        .map_or(0, |at| at + 1);
    let mut all = args.clone();
    all.splice(at..at, more.iter().cloned());
    let matches = command.try_get_matches_from_mut(&all).map_err(|e| {
        match (&file, command.try_get_matches_from_mut(&args)) {
            (Some(path), Ok(_)) => Refused::File(in_file(path, &e)),
            _ => Refused::Typed(e),
        }
    })?;
    let settings = match matches.subcommand() {
        Some((_, m)) => Settings::of(&arguments, m, typed, file.as_deref()),
        None => Settings::default(),
    };
    Ok((matches, settings))
}

/// What a file's values are as flags.
fn of_file(path: &Path, arguments: &[Arg], typed: &ArgMatches) -> Result<Vec<OsString>, Failure> {
    let bad = |what: String| {
        Failure::new(
            Exit::Config,
            "E-CONFIG-001",
            format!("{}: {what}", path.display()),
        )
        .hint("`plimsoll serve --print-config` prints such a file")
    };
    let text = match std::fs::metadata(path) {
        Ok(m) if m.len() > MAX_FILE => return Err(bad(format!("{} bytes are too many", m.len()))),
        _ => std::fs::read_to_string(path).map_err(|e| bad(format!("cannot be read: {e}")))?,
    };
    let table: toml::Table = toml::from_str(&text).map_err(|e| {
        let before = e
            .span()
            .and_then(|s| text.get(..s.start))
            .unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        bad(format!("line {line}: {}", e.message()))
    })?;
    let mut positional = None;
    let mut flags = Vec::new();
    for (key, value) in table {
        let name = key.replace('_', "-");
        let arg = arguments.iter().find(|a| match a.get_long() {
            Some(long) => {
                long == name || a.get_all_aliases().is_some_and(|all| all.contains(&&*name))
            }
            None => a.is_positional() && a.get_id().as_str() == name,
        });
        if arg.is_some_and(|a| !is_setting(a)) {
            return Err(bad(format!("{key} is for the command line")));
        }
        // From the command line or the environment it is known already. Without such a flag it is an error with a
        // suggestion, which the parser makes.
        let known = arg.and_then(|a| typed.value_source(a.get_id().as_str()));
        if known.is_some_and(|s| s != ValueSource::DefaultValue) {
            continue;
        }
        let one = |value: Value| match value {
            Value::String(s) => Ok(s),
            Value::Integer(n) => Ok(n.to_string()),
            Value::Float(x) => Ok(x.to_string()),
            Value::Boolean(b) => Ok(b.to_string()),
            Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
                Err(bad(format!("{key} is no string, number, true or false")))
            }
        };
        let values = match value {
            Value::Array(all) => all.into_iter().map(one).collect::<Result<Vec<_>, _>>()?,
            value => vec![one(value)?],
        };
        for value in values {
            match arg {
                Some(a) if a.is_positional() => positional = Some(value),
                Some(a) if matches!(a.get_action(), ArgAction::SetTrue) => match value.as_str() {
                    "true" => flags.push(format!("--{name}").into()),
                    "false" => {}
                    _ => return Err(bad(format!("{key} is true or false, not {value:?}"))),
                },
                _ => flags.push(format!("--{name}={value}").into()),
            }
        }
    }
    if let Some(value) = positional {
        if value.starts_with('-') {
            return Err(bad(format!("{value:?} is no model")));
        }
        flags.insert(0, value.into());
    }
    Ok(flags)
}

/// What the parser says is wrong, in one line, and its tip.
pub(crate) fn told(e: &clap::Error) -> (String, Option<String>) {
    let text = e.render().to_string();
    let what = text.lines().take_while(|l| !l.trim().is_empty());
    let what: Vec<&str> = what.map(str::trim).collect();
    let what = what.join(" ");
    let tip = text
        .lines()
        .find_map(|l| l.trim_start().strip_prefix("tip: "));
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    (what.to_owned(), tip.map(str::to_owned))
}

/// What the parser says of a value that a file has.
fn in_file(path: &Path, e: &clap::Error) -> Failure {
    let (what, tip) = told(e);
    let tip = tip.unwrap_or_else(|| {
        "`plimsoll serve --help` lists the flags, which are its keys without dashes before them"
            .to_owned()
    });
    Failure::new(
        Exit::Config,
        "E-CONFIG-001",
        format!("{}: {what}", path.display()),
    )
    .hint(tip)
}

impl Settings {
    fn of(arguments: &[Arg], all: &ArgMatches, typed: &ArgMatches, file: Option<&Path>) -> Self {
        let setting = |arg: &Arg| {
            let id = arg.get_id().as_str();
            let key = arg.get_long().unwrap_or(id);
            let from = |m: &ArgMatches| {
                m.value_source(id)
                    .filter(|s| *s != ValueSource::DefaultValue)
            };
            let origin = match (from(typed), from(all), file) {
                (Some(ValueSource::EnvVariable), ..) => Origin::Environment(variable(key)),
                (Some(_), ..) => Origin::Typed,
                (None, Some(_), Some(path)) => Origin::File(path.to_owned()),
                (None, ..) if all.value_source(id).is_some() => Origin::Default,
                _ => Origin::Unset,
            };
            let raw = all.get_raw(id).into_iter().flatten();
            let values: Vec<String> = raw.map(|v| v.to_string_lossy().into_owned()).collect();
            let values = match arg.get_action() {
                // Its raw value is empty where it was typed.
                ArgAction::SetTrue => vec![all.get_flag(id).to_string()],
                _ => values,
            };
            Setting {
                key: key.to_owned(),
                values,
                origin,
                list: matches!(arg.get_action(), ArgAction::Append),
            }
        };
        let own = arguments.iter().filter(|a| is_setting(a));
        Self(own.map(setting).collect())
    }

    /// As a file that `--config` takes, each value with where it is from; secrets are not shown.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for s in &self.0 {
            let origin = match &s.origin {
                Origin::Typed => "command line".to_owned(),
                Origin::Environment(name) => name.clone(),
                Origin::File(path) => path.display().to_string(),
                Origin::Default => "default".to_owned(),
                Origin::Unset => "not set".to_owned(),
            };
            let secret = SECRET.contains(&s.key.replace('-', "_").as_str());
            let value = |v: &String| match v.as_str() {
                "true" | "false" => v.clone(),
                _ if v.parse::<i64>().is_ok_and(|n| n.to_string() == *v) => v.clone(),
                _ => Value::String(v.clone()).to_string(),
            };
            let line = match (s.values.as_slice(), &s.origin) {
                (_, Origin::Unset) | ([], _) => format!("# {} =", s.key),
                _ if secret => format!("# {} = \"...\"", s.key),
                (all, _) if s.list => {
                    let all: Vec<String> = all.iter().map(value).collect();
                    format!("{} = [{}]", s.key, all.join(", "))
                }
                ([one, ..], _) => format!("{} = {}", s.key, value(one)),
            };
            text.push_str(&format!("{line:<44} # {origin}\n"));
        }
        text
    }
}
