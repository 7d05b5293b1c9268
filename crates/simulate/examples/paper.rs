//! Prints docs/paper.md.

use std::error::Error;

use plimsoll_simulate::{paper, tradeoff};

#[allow(clippy::print_stdout, reason = "its output is the page")]
fn main() -> Result<(), Box<dyn Error>> {
    print!("{}", paper::page()?);
    print!(
        "\n## Swap, recompute or auto, on a grid\n\n{}",
        tradeoff::report()?
    );
    Ok(())
}
