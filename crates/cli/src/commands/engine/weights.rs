//! `--check-weights`: whether stored weights are numbers, told by tensor before any is loaded.

use plimsoll_model::json::printable;
use plimsoll_report::{short_bytes, thousands};
use plimsoll_runtime::weights::{Checkpoint, TensorCheck, check as check_weights};

use crate::error::{Exit, Failure};
use crate::progress::Progress;

/// Tensors that are named; the rest is counted.
const LISTED: usize = 8;

/// Reads every tensor. Matrices of zeros are no error: some are meant.
pub(super) fn check(checkpoint: &Checkpoint) -> Result<(), Failure> {
    let progress = Progress::new();
    let odd = check_weights(checkpoint, &|done, all| {
        progress.show(|| {
            let (done, all) = (short_bytes(done.get()), short_bytes(all.get()));
            format!("checking {done} of {all}")
        });
    });
    drop(progress);
    let corrupt = |what: String| {
        Failure::new(Exit::Corrupt, "E-GEN-008", what).hint("fetch the model's files again")
    };
    let odd = odd.map_err(|e| corrupt(e.to_string()))?;
    let broken: Vec<&TensorCheck> = odd.iter().filter(|t| t.nan + t.infinite > 0).collect();
    if broken.is_empty() {
        return Ok(());
    }
    let what = format!(
        "{} of the tensors have elements that are no finite numbers",
        broken.len()
    );
    let mut failure = corrupt(what);
    for t in broken.iter().take(LISTED) {
        failure = failure.why(format!(
            "`{}` has {} NaN and {} infinite among {} elements",
            printable(&t.tensor),
            thousands(t.nan),
            thousands(t.infinite),
            thousands(t.elements)
        ));
    }
    if broken.len() > LISTED {
        failure = failure.why(format!("{} more are alike", broken.len() - LISTED));
    }
    Err(failure)
}
