//! [`Sharing`]: blocks that copy-on-write saves.

use plimsoll_schedule::Scheduler;

/// Blocks in the tables of the requests that run, and the pages behind them, each added up over steps.
///
/// What requests share by the prefix cache counts too: without it, only what the sequences of one request share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Blocks in tables: those that there would be without sharing.
    pub blocks: u128,
    /// Pages that are held.
    pub pages: u128,
}

impl Sharing {
    /// One more step, which was just scheduled. Walks all tables.
    pub(crate) fn note(&mut self, s: &Scheduler) {
        // Sizes were checked when the pool was made.
        let held = s.kv().usage().unwrap_or_default().held;
        self.blocks += u128::from(s.table_blocks());
        self.pages += u128::from(held);
    }

    /// Blocks saved over blocks without sharing, in percent (Kwon et al., figure 15); 0 where there are none.
    #[must_use]
    pub fn saved_percent(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a share to print")]
        let share = |a: u128, b: u128| a as f64 / b.max(1) as f64;
        100.0 * share(self.blocks.saturating_sub(self.pages), self.blocks)
    }
}
