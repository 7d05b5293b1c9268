//! Requests of different lengths: a distribution in place of one context.

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
/// Users are dealt out in whole numbers, rounded up, so that a mix never needs less than it is.
pub struct MixedLaw {
    /// How one length is allocated.
    pub inner: Box<dyn KvLaw>,
    /// The mix.
    pub lengths: Lengths,
}

impl MixedLaw {
    /// The loads that stand for `load`, one per length.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shares of users; each part is at most the whole"
    )]
    fn parts(&self, load: &Load) -> Result<Vec<Load>, SizeOverflow> {
        let longest = self
            .lengths
            .iter()
            .map(|(n, _)| *n)
            .max()
            .unwrap_or(1)
            .max(1);
        self.lengths
            .iter()
            .map(|(length, share)| {
                let users = ((load.users as f64 * share).ceil() as u64).min(load.users);
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
}
