//! [`MemoryMap`]: what our server commits, and what it keeps beside, in the order of its regions.

use plimsoll_units::{Bytes, SizeOverflow};

use crate::evaluate::StageEvaluation;
use crate::term::{Region, Term};

/// The memory of one rank, region by region. A server receives it, commits an arena for each region that has one,
/// and keeps everything else within [`Region::Reserve`].
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryMap {
    terms: Vec<Term>,
    regions: Vec<(Region, Bytes)>,
}

impl MemoryMap {
    /// The map of an evaluated rank: what its device and its host hold.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn of(rank: &StageEvaluation) -> Result<Self, SizeOverflow> {
        let terms = rank.terms.iter().chain([&rank.kv_term]).chain(&rank.host);
        let mut terms: Vec<Term> = terms.cloned().collect();
        terms.sort_by_key(|t| t.region);
        let regions = by_region(&terms, |t| Ok(t.bytes))?;
        Ok(Self { terms, regions })
    }

    /// Regions and their bytes of so many ranks of one process together, in order.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn together(&self, ranks: u64) -> Result<Vec<(Region, Bytes)>, SizeOverflow> {
        by_region(&self.terms, |t| {
            t.bytes.times(if t.shared { 1 } else { ranks })
        })
    }

    /// Its terms, by region.
    #[must_use]
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Regions and their bytes, in order.
    #[must_use]
    pub fn regions(&self) -> &[(Region, Bytes)] {
        &self.regions
    }

    /// Bytes of one region; none where it is not there.
    #[must_use]
    pub fn region(&self, region: Region) -> Bytes {
        let found = self.regions.iter().find(|(r, _)| *r == region);
        found.map_or(Bytes::ZERO, |(_, bytes)| *bytes)
    }
}

/// Terms in the order of their regions, those of one added up.
fn by_region(
    terms: &[Term],
    bytes: impl Fn(&Term) -> Result<Bytes, SizeOverflow>,
) -> Result<Vec<(Region, Bytes)>, SizeOverflow> {
    let mut regions: Vec<(Region, Bytes)> = Vec::new();
    for term in terms {
        match regions.last_mut() {
            Some((region, sum)) if *region == term.region => *sum = sum.add(bytes(term)?)?,
            _ => regions.push((term.region, bytes(term)?)),
        }
    }
    Ok(regions)
}
