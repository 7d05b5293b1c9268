//! [`KvCache::check_integrity`]: everything that must hold of the pool and all tables, recounted from
//! scratch. O(pages + blocks); for tests, and for a server that is idle.

use crate::cache::KvCache;
use crate::table::{Entry, Table};

/// What does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation(what()))
    }
}

impl KvCache {
    /// Recounts references, lists, fill, charges and table lengths. `tables` must be all there are, pins
    /// included.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn check_integrity<'a>(
        &self,
        tables: impl Iterator<Item = &'a Table>,
    ) -> Result<(), Violation> {
        let total = self.pool.total() as usize;
        let mut refs = vec![0_u32; total + 1];
        let mut filled = vec![0_u32; total + 1];
        let mut places = vec![0_u32; self.swap.places().len()];
        let mut writing = vec![0_u64; self.layout.groups.len()];
        refs[0] = 1;
        for t in tables {
            self.check_table(t, &mut refs, &mut filled, &mut places)?;
            for (w, g) in writing.iter_mut().zip(&self.layout.groups) {
                *w += if g.is_state() {
                    0
                } else {
                    u64::from(t.in_flight)
                };
            }
        }
        let mut moves = vec![0_u32; total + 1];
        for page in self.copies_under_way() {
            moves[*page as usize] += 1;
        }
        for (_, slot, page) in self.transfers_out() {
            moves[*page as usize] += 1;
            places[*slot as usize] += 1;
            ensure(self.swap.place(*slot).page == *page, || {
                format!("place {slot} is not where page {page} goes")
            })?;
        }
        for (slot, page) in self.transfers_in() {
            places[*slot as usize] += 1;
            if let Some(page) = page {
                moves[*page as usize] += 1;
            }
        }
        self.check_pages(&refs, &filled, &moves)?;
        let used = places.iter().filter(|n| **n > 0).count();
        ensure(used == self.swap.used() as usize, || {
            format!(
                "{used} places are pointed at, {} are taken",
                self.swap.used()
            )
        })?;
        ensure(self.swap.used() <= self.swap.cap(), || {
            "swap space exceeds its cap".into()
        })?;
        for (slot, (counted, place)) in places.iter().zip(self.swap.places()).enumerate() {
            ensure(*counted == place.refs, || {
                format!("place {slot}: {counted} tables, count {}", place.refs)
            })?;
        }
        for (g, w) in writing.iter().enumerate() {
            ensure(*w == self.writing(g), || {
                format!(
                    "group {g}: {w} slots are being written, counted {}",
                    self.writing(g)
                )
            })?;
        }
        Ok(())
    }

    fn check_table(
        &self,
        t: &Table,
        refs: &mut [u32],
        filled: &mut [u32],
        places: &mut [u32],
    ) -> Result<(), Violation> {
        let mut on_host = 0;
        for (g, gt) in t.groups.iter().enumerate() {
            let group = self.group(g);
            let (from, to) = if group.is_state() {
                let some = t.committed + t.in_flight > 0;
                (0, if some { group.state_pages } else { 0 })
            } else {
                let first = group.first_needed(u64::from(t.committed));
                let first = u32::try_from(first).unwrap_or(u32::MAX) / group.slots;
                (first, (t.committed + t.in_flight).div_ceil(group.slots))
            };
            // A window that begins where the next block will holds nothing yet.
            let exact = gt.end() == to.max(gt.first) && (gt.first == from || gt.blocks.is_empty());
            ensure(exact, || {
                format!(
                    "sequence {}, group {g}: holds blocks {}..{}, must hold {from}..{to} at {} + {} tokens",
                    t.id,
                    gt.first,
                    gt.end(),
                    t.committed,
                    t.in_flight
                )
            })?;
            for (i, e) in gt.blocks.iter().enumerate() {
                let index = gt.first as usize + i;
                match *e {
                    Entry::Device { page, generation } => {
                        let p = self.pool.page(page);
                        refs[page as usize] += 1;
                        ensure(p.generation == generation, || {
                            format!(
                                "sequence {}, group {g}, block {index}: stale page {page}",
                                t.id
                            )
                        })?;
                        ensure(p.group as usize == g, || {
                            format!(
                                "page {page} serves group {} and lies in a table of {g}",
                                p.group
                            )
                        })?;
                        let here = if group.is_state() {
                            1
                        } else {
                            let start = index as u64 * u64::from(group.slots);
                            let n = u64::from(t.committed).saturating_sub(start);
                            u32::try_from(n).unwrap_or(u32::MAX).min(group.slots)
                        };
                        filled[page as usize] = filled[page as usize].max(here);
                        // What is being written is held once and in no index.
                        let written = t.in_flight > 0
                            && (group.is_state()
                                || (index + 1) as u64 * u64::from(group.slots)
                                    > u64::from(t.committed));
                        ensure(!written || (p.refs == 1 && !p.published), || {
                            format!(
                                "page {page} is written by sequence {} while {} hold it (published: {})",
                                t.id, p.refs, p.published
                            )
                        })?;
                    }
                    Entry::Host { slot, generation } => {
                        on_host += 1;
                        places[slot as usize] += 1;
                        ensure(self.swap.place(slot).generation == generation, || {
                            format!(
                                "sequence {}, group {g}, block {index}: stale place {slot}",
                                t.id
                            )
                        })?;
                    }
                }
            }
        }
        ensure(on_host == t.on_host, || {
            format!(
                "sequence {}: {on_host} blocks in swap space, counted {}",
                t.id, t.on_host
            )
        })
    }

    fn check_pages(&self, refs: &[u32], filled: &[u32], moves: &[u32]) -> Result<(), Violation> {
        let pool = &self.pool;
        let (mut held, mut cached, mut free, mut transit) = (0_u32, 0_u32, 0_u32, 0_u32);
        let mut live = vec![0_u64; self.layout.groups.len()];
        let mut charged = vec![0_u64; pool.accounts().len()];
        let mut published = 0_usize;
        for id in 1..=pool.total() {
            let p = pool.page(id);
            let counted = refs[id as usize];
            ensure(counted == p.refs, || {
                format!("page {id}: {counted} holders, reference count {}", p.refs)
            })?;
            published += usize::from(p.published);
            if p.published {
                ensure(self.index.find(p.address) == Some(id), || {
                    format!("page {id} is published but the index does not find it")
                })?;
            }
            let moving = moves[id as usize];
            ensure(moving == p.moves, || {
                format!(
                    "page {id}: {moving} copies and transfers, counted {}",
                    p.moves
                )
            })?;
            match (p.refs, p.published) {
                (0, _) if moving > 0 => transit += 1,
                (0, true) => cached += 1,
                (0, false) => free += 1,
                _ => {
                    held += 1;
                    live[p.group as usize] += u64::from(p.filled);
                    let tenant = (p.tenant.0 as usize).min(charged.len() - 1);
                    charged[tenant] += 1;
                    ensure(p.filled >= filled[id as usize], || {
                        format!(
                            "page {id} has {} slots filled, tables say {}",
                            p.filled, filled[id as usize]
                        )
                    })?;
                }
            }
        }
        let counts = [
            ("held", held, pool.referenced()),
            ("cached", cached, pool.cached()),
            ("free", free, pool.free()),
            ("in transit", transit, pool.in_transit()),
        ];
        for (what, counted, kept) in counts {
            ensure(counted == kept, || {
                format!("{counted} pages are {what}, counted {kept}")
            })?;
        }
        ensure(held + cached + free + transit == pool.total(), || {
            "pages are lost or counted twice".into()
        })?;
        let (listed, listed_free) = (pool.lru().count(), pool.free_list().len());
        ensure(
            listed == cached as usize && listed_free == free as usize,
            || {
                format!(
                    "lists hold {listed} cached and {listed_free} free pages, of {cached} and {free}"
                )
            },
        )?;
        ensure(published == self.index.len(), || {
            format!(
                "{published} pages are published, the index holds {}",
                self.index.len()
            )
        })?;
        for (g, n) in live.iter().enumerate() {
            ensure(*n == pool.live(g), || {
                format!("group {g}: {n} live slots, counted {}", pool.live(g))
            })?;
        }
        ensure(charged == pool.accounts(), || {
            format!("tenants hold {charged:?}, charged {:?}", pool.accounts())
        })?;
        Ok(())
    }

    /// Checks that every full block of a table has the address of the tokens in it.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn check_content(
        &self,
        t: &Table,
        scope: &crate::Scope,
        tokens: &[u32],
    ) -> Result<(), Violation> {
        let keys = self.keys(scope, tokens);
        for (g, gt) in t
            .groups
            .iter()
            .enumerate()
            .filter(|(g, _)| !self.group(*g).is_state())
        {
            for (i, e) in gt.blocks.iter().enumerate() {
                let index = gt.first as usize + i;
                let (Entry::Device { page, .. }, Some(address)) =
                    (e, keys.groups.get(g).and_then(|k| k.get(index)))
                else {
                    continue;
                };
                let p = self.pool.page(*page);
                let within =
                    (index as u64 + 1) * u64::from(self.group(g).slots) <= u64::from(t.committed);
                ensure(!p.published || !within || p.address == *address, || {
                    format!(
                        "sequence {}, group {g}, block {index}: page {page} holds other tokens",
                        t.id
                    )
                })?;
            }
        }
        Ok(())
    }
}
