//! Contiguous allocation, as before paging: each sequence reserves one run of slots up front.
//!
//! The three reservations are those of Kwon et al. (SOSP 2023, section 6.1): the maximum length
//! always (Orca Max), the next power of two of the length (Orca Pow2), or exactly the length that
//! will be reached (Orca Oracle). A buddy allocator gives out addresses; for sequences of one size it
//! places as many as whole runs fit.

use plimsoll_program::GroupKind;
use plimsoll_units::{Bytes, SizeOverflow};

use super::{Capacity, GroupReport, KvLaw, Need};
use crate::engine::Reserve;
use crate::error::PlanError;
use crate::settings::Load;

/// Runs of slots, one per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContiguousLaw {
    /// Bytes of one token over all layers.
    pub bytes_per_token: Bytes,
    /// Bytes of fixed state per sequence.
    pub bytes_per_sequence: Bytes,
    /// How much is reserved.
    pub reserve: Reserve,
    /// The longest sequence that the server accepts.
    pub max_len: u64,
    /// Layers, for the report.
    pub layers: u64,
}

/// The next power of two from `n` on, or `None` past 2^63.
#[must_use]
pub const fn round_to_power_of_two(n: u64) -> Option<u64> {
    n.checked_next_power_of_two()
}

impl ContiguousLaw {
    /// Slots that a sequence of `tokens` reserves.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn slots(&self, tokens: u64) -> Result<u64, SizeOverflow> {
        match self.reserve {
            Reserve::Max => Ok(self.max_len.max(tokens)),
            Reserve::Pow2 => round_to_power_of_two(tokens).ok_or(SizeOverflow),
            Reserve::Oracle => Ok(tokens),
        }
    }

    fn run(&self, tokens: u64) -> Result<Bytes, SizeOverflow> {
        self.bytes_per_token
            .times(self.slots(tokens)?)?
            .add(self.bytes_per_sequence)
    }
}

impl KvLaw for ContiguousLaw {
    fn need(&self, load: &Load) -> Result<Need, PlanError> {
        // Nothing is shared: every sequence has its own run.
        let sequences = load.users.checked_mul(load.sequences).ok_or(SizeOverflow)?;
        let pool = self.run(load.context)?.times(sequences)?;
        let live = self
            .bytes_per_token
            .times(load.context)?
            .add(self.bytes_per_sequence)?
            .times(sequences)?;
        // Slots up to the longest length may still be used; those beyond never can.
        let usable = self
            .slots(load.context)?
            .min(self.max_len.max(load.context));
        let reserved = self
            .bytes_per_token
            .times(usable - load.context)?
            .times(sequences)?;
        Ok(Need {
            pool,
            token_states: live,
            reserved,
            internal: pool.saturating_sub(live).saturating_sub(reserved),
            external: Bytes::ZERO,
        })
    }

    #[allow(clippy::cast_precision_loss, reason = "a ratio for print")]
    fn capacity(&self, pool: Bytes, max_len: u64) -> Result<Capacity, PlanError> {
        let slots = pool.whole(self.bytes_per_token);
        let run = self.run(max_len)?;
        Ok(Capacity {
            blocks: None,
            bytes_per_block: run,
            block_size: self.slots(max_len)?,
            tokens: slots,
            max_concurrency: pool.whole(run) as f64,
            groups: vec![GroupReport {
                kind: GroupKind::Full,
                layers: self.layers,
                padding_layers: 0,
                block_size: self.slots(max_len)?,
                page: Bytes::ZERO,
                blocks_per_request: 1,
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// OPT-13B on one A100-40GB, table 1 of the paper: 12 GiB of KV at 800 KiB a token.
    fn paper(reserve: Reserve) -> ContiguousLaw {
        ContiguousLaw {
            bytes_per_token: Bytes::new(819_200),
            bytes_per_sequence: Bytes::ZERO,
            reserve,
            max_len: 2048,
            layers: 40,
        }
    }

    #[test]
    fn orca_max_fits_seven_and_loses_nine_percent() {
        let pool = Bytes::new(12 << 30);
        let c = paper(Reserve::Max).capacity(pool, 2048).unwrap();
        assert_eq!(c.tokens, 15_728);
        assert!((c.max_concurrency - 7.0).abs() < f64::EPSILON);
        let lost: f64 = 1.0 - 7.0 * 2048.0 / 15_728.0;
        assert!((lost - 0.0885).abs() < 5e-5);
    }

    #[test]
    fn pow2_reserves_at_most_twice() {
        // The paper's example: a true length of 25 reserves 32.
        assert_eq!(paper(Reserve::Pow2).slots(25), Ok(32));
        let need = paper(Reserve::Pow2).need(&Load::plain(1, 1500)).unwrap();
        assert_eq!(need.reserved.get(), (2048 - 1500) * 819_200);
        assert_eq!(need.internal, Bytes::ZERO);
    }
}
