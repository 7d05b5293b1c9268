//! Requests of different lengths: a distribution in place of one context.

use std::cmp::Reverse;
use std::sync::Arc;

use plimsoll_units::{Bytes, SizeOverflow};

use super::{Capacity, KvLaw, Need};
use crate::error::PlanError;
use crate::settings::Load;
use crate::term::Term;

/// Lengths and their shares of the requests; shares add up to 1.
pub type Lengths = Arc<[(u64, f64)]>;

/// An engine's law applied to a mix of lengths.
///
/// The load's context is the longest length; at another context every length is scaled with it.
/// Users are dealt out in whole numbers from the longest length down, each length and all longer ones
/// together rounded up: no more users than there are, and never less than the mix is.
pub struct MixedLaw {
    /// How one length is allocated.
    pub inner: Box<dyn KvLaw>,
    /// The mix.
    pub lengths: Lengths,
}

impl MixedLaw {
    /// The loads that stand for `load`, one per length, longest first.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shares of users; each part is at most the whole"
    )]
    fn parts(&self, load: &Load) -> Result<Vec<Load>, SizeOverflow> {
        let mut lengths = self.lengths.to_vec();
        lengths.sort_by_key(|(length, _)| Reverse(*length));
        let longest = lengths.first().map_or(1, |(n, _)| *n).max(1);
        let (mut share_dealt, mut users_dealt) = (0.0, 0);
        lengths
            .iter()
            .enumerate()
            .map(|(i, (length, share))| {
                share_dealt += share;
                let up_to = if i + 1 == lengths.len() {
                    load.users
                } else {
                    // Shares in decimals are not exact in binary: a billionth of a user is nobody.
                    ((load.users as f64 * share_dealt - 1e-9).ceil() as u64).min(load.users)
                };
                let users = up_to.saturating_sub(users_dealt);
                users_dealt += users;
                let context = length
                    .checked_mul(load.context)
                    .ok_or(SizeOverflow)?
                    .div_ceil(longest);
                let prompt = load.prompt.min(context);
                let shared_prefix = load.shared_prefix.min(context);
                Ok(Load {
                    users,
                    context,
                    prompt,
                    shared_prefix,
                    ..*load
                })
            })
            .collect()
    }
}

impl KvLaw for MixedLaw {
    fn need(&self, load: &Load) -> Result<Need, PlanError> {
        let mut sum = Need::default();
        for part in self.parts(load)? {
            let n = self.inner.need(&part)?;
            sum.pool = sum.pool.add(n.pool)?;
            sum.token_states = sum.token_states.add(n.token_states)?;
            sum.reserved = sum.reserved.add(n.reserved)?;
            sum.internal = sum.internal.add(n.internal)?;
            sum.external = sum.external.add(n.external)?;
        }
        Ok(sum)
    }

    fn capacity(&self, pool: Bytes, max_len: u64) -> Result<Capacity, PlanError> {
        self.inner.capacity(pool, max_len)
    }

    fn start(&self, max_len: u64) -> Result<Option<Bytes>, PlanError> {
        self.inner.start(max_len)
    }

    fn beside(&self, load: &Load) -> Result<Bytes, PlanError> {
        self.inner.beside(load)
    }

    fn beside_terms(&self, load: &Load) -> Result<Vec<Term>, PlanError> {
        self.inner.beside_terms(load)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::TokenLaw;
    use plimsoll_program::GroupKind;

    fn law(lengths: &[(u64, f64)]) -> MixedLaw {
        let inner = TokenLaw {
            groups: vec![(GroupKind::Full, 2, Bytes::new(100))],
        };
        MixedLaw {
            inner: Box::new(inner),
            lengths: lengths.into(),
        }
    }

    #[test]
    fn a_mix_needs_the_sum_of_its_parts() {
        let mix = law(&[(100, 0.75), (1000, 0.25)]);
        let need = mix.need(&Load::plain(8, 1000)).unwrap();
        assert_eq!(need.pool.get(), (6 * 100 + 2 * 1000) * 200);
        // Twice the context: every length doubles.
        let need = mix.need(&Load::plain(8, 2000)).unwrap();
        assert_eq!(need.pool.get(), (6 * 200 + 2 * 2000) * 200);
        // One length is the plain load.
        let one = law(&[(1000, 1.0)]).need(&Load::plain(8, 1000)).unwrap();
        assert_eq!(one.pool.get(), 8 * 1000 * 200);
    }

    #[test]
    fn users_are_dealt_out_longest_first_and_none_is_added() {
        let tenths: Vec<(u64, f64)> = (1..=10).map(|i| (i * 100, 0.1)).collect();
        let mix = law(&tenths);
        let users = |n| {
            let parts = mix.parts(&Load::plain(n, 1000)).unwrap();
            parts.iter().map(|p| p.users).collect::<Vec<_>>()
        };
        assert_eq!(users(1), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(users(3), [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]);
        assert_eq!(users(30), [3; 10]);
        // More users never need less.
        let need = |n| mix.need(&Load::plain(n, 1000)).unwrap().pool;
        for n in 0..200 {
            assert_eq!(users(n).iter().sum::<u64>(), n);
            assert!(need(n) <= need(n + 1), "{n}");
        }
    }
}
