//! `plimsoll compare`.

use std::process::ExitCode;

use crate::args::CompareArgs;
use crate::error::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(_: &CompareArgs, _: &mut Output) -> Result<ExitCode, Failure> {
    Err(Failure::new(Exit::Failure, "E-TODO", "not yet"))
}
