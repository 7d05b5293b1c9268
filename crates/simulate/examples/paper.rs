//! Prints docs/paper.md.

#[allow(clippy::print_stdout, reason = "its output is the page")]
fn main() -> Result<(), plimsoll_simulate::paper::PaperError> {
    print!("{}", plimsoll_simulate::paper::page()?);
    Ok(())
}
