//! `plimsoll doctor`, and `--gpu auto`.

use std::process::ExitCode;

use plimsoll_device::Device;

use crate::error::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(_json: bool, output: &mut Output) -> Result<ExitCode, Failure> {
    output.line("no accelerator found")?;
    Ok(ExitCode::SUCCESS)
}

/// The device of this machine.
pub(crate) fn detected() -> Result<Device, Failure> {
    Err(Failure::new(
        Exit::Usage,
        "E-DEVICE-003",
        "no accelerator was found on this machine",
    )
    .hint("name one with `--gpu h100`, or a size with `--memory 24GiB`"))
}
