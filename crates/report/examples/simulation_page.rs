//! Writes the made-up report as a page, as pictures and as CSV into the folder named by the first
//! argument: `cargo run -p plimsoll-report --example simulation_page -- page`.

#[path = "../tests/fake/mod.rs"]
mod fake;

use std::path::PathBuf;

use plimsoll_report::simulation::{charts, series_csv, simulation_html};

fn main() -> std::io::Result<()> {
    let folder: PathBuf = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    let report = fake::report();
    std::fs::write(folder.join("report.html"), simulation_html(&report))?;
    std::fs::write(folder.join("series.csv"), series_csv(&report))?;
    for c in charts(&report) {
        std::fs::write(folder.join(format!("{}.svg", c.name)), c.standalone)?;
    }
    Ok(())
}
