//! `plimsoll accuracy`.

use std::process::ExitCode;

use crate::args::AccuracyArgs;
use crate::error::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(_: &AccuracyArgs, _: &mut Output) -> Result<ExitCode, Failure> {
    Err(Failure::new(Exit::Failure, "E-TODO", "not yet"))
}
