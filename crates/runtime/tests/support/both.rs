//! Runs that are compared.

use std::path::Path;

use plimsoll_schedule::{Fan, Stats};

use super::{Model, Run, expected};

pub(crate) const ONE: Fan = Fan::Sample { n: 1, best_of: 1 };

/// A fixture's model and its prompt.
pub(crate) fn fixture(name: &str) -> (Model, Vec<u32>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    (Model::open(&folder), expected(&folder).0)
}

/// What was generated, every position's logits and the scheduler's counters are the same. Returns the latter.
pub(crate) fn assert_equal(here: &Run, there: &Run, what: &str) -> Stats {
    let ((texts, seen, stats), (texts_there, seen_there, stats_there)) = (here, there);
    assert_eq!(texts, texts_there, "{what}");
    assert_eq!(seen.len(), seen_there.len(), "{what}");
    for (at, logits) in seen {
        assert_eq!(Some(logits), seen_there.get(at), "{what}: {at:?}");
    }
    assert_eq!(stats, stats_there, "{what}");
    *stats
}
