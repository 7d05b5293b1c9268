//! [`Buddy`]: a buddy allocator over any number of slots, as contiguous KV caches are placed.
//!
//! A chunk's size is a power of two and its offset a multiple of its size. Allocation rounds up,
//! takes the smallest free chunk that fits (the lowest among equals) and halves it as often as it
//! can; freeing merges a chunk with its other half as often as that is free too. Both are
//! O(log² slots): at most one ordered-set operation per size.
//!
//! The pool need not be a power of two. It starts as its binary decomposition, largest first, so
//! that 15,728 slots are roots of 8192, 4096, 2048, 1024, 256, 64, 32 and 16. Each root then lies at
//! a multiple of its size, the other half of a chunk is found by flipping one bit of its offset, and
//! roots never merge with one another.
//!
//! Source: Knowlton, "A fast storage allocator" (CACM 1965); Kwon et al. (SOSP 2023), section 6.1,
//! gives the Orca baselines one.

use std::collections::BTreeSet;

/// A pool of slots and which of its chunks are free.
#[derive(Debug)]
pub struct Buddy {
    slots: u64,
    free_slots: u64,
    /// Offsets of the free chunks of `2^i` slots at index `i`.
    free: Vec<BTreeSet<u64>>,
}

/// A run of slots that somebody holds. Not `Clone`: whoever has it returns it, once, to the pool
/// that it came from.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a chunk that is not freed is lost to its pool"]
pub struct Chunk {
    offset: u64,
    order: u32,
}

impl Chunk {
    /// Its first slot.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// How many slots it has: a power of two.
    #[must_use]
    pub const fn slots(&self) -> u64 {
        1 << self.order
    }
}

/// The size, as an exponent of two, of the chunk that holds `slots`; `None` past 2^63.
fn order_of(slots: u64) -> Option<u32> {
    slots
        .max(1)
        .checked_next_power_of_two()
        .map(u64::trailing_zeros)
}

impl Buddy {
    /// A pool of `slots` slots, all free.
    #[must_use]
    pub fn new(slots: u64) -> Self {
        let orders = slots.checked_ilog2().map_or(0, |top| top + 1);
        let mut pool = Self {
            slots,
            free_slots: slots,
            free: (0..orders).map(|_| BTreeSet::new()).collect(),
        };
        for (order, set) in pool.free.iter_mut().enumerate() {
            if slots & (1 << order) != 0 {
                set.insert(root_offset(slots, order));
            }
        }
        pool
    }

    /// All slots of the pool, free or not.
    #[must_use]
    pub const fn slots(&self) -> u64 {
        self.slots
    }

    /// Slots that no chunk holds.
    #[must_use]
    pub const fn free_slots(&self) -> u64 {
        self.free_slots
    }

    /// The size of the chunk that `slots` would get, whether or not one is free; `None` past 2^63.
    #[must_use]
    pub fn rounded(slots: u64) -> Option<u64> {
        order_of(slots).map(|order| 1 << order)
    }

    /// How many chunks for `slots` slots an empty pool of `pool` slots holds.
    #[must_use]
    pub fn capacity(pool: u64, slots: u64) -> u64 {
        // A larger root is a multiple of the chunk's size, and all smaller roots together are less
        // than one chunk: dividing the whole is dividing root by root.
        Self::rounded(slots).map_or(0, |size| pool / size)
    }

    /// A chunk of at least `slots` slots; `None` where no free chunk is as large.
    pub fn allocate(&mut self, slots: u64) -> Option<Chunk> {
        let order = order_of(slots)?;
        let (from, offset) = self
            .free
            .iter()
            .enumerate()
            .skip(order as usize)
            .find_map(|(i, set)| set.first().map(|&offset| (i, offset)))?;
        self.free[from].remove(&offset);
        // Halve it: the left half goes on, right halves stay free.
        for half in (order as usize..from).rev() {
            self.free[half].insert(offset + (1 << half));
        }
        self.free_slots -= 1 << order;
        Some(Chunk { offset, order })
    }

    /// Takes a chunk back and merges it with its free halves. It must be one of this pool's.
    pub fn free(&mut self, chunk: Chunk) {
        self.free_slots += chunk.slots();
        let (mut offset, mut order) = (chunk.offset, chunk.order as usize);
        while !self.is_root(offset, order) && self.free[order].remove(&(offset ^ (1 << order))) {
            offset &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(offset);
    }

    /// The free chunks as `(offset, slots)`, by size and then by offset.
    pub fn free_chunks(&self) -> impl Iterator<Item = (u64, u64)> {
        self.free
            .iter()
            .enumerate()
            .flat_map(|(order, set)| set.iter().map(move |&offset| (offset, 1 << order)))
    }

    fn is_root(&self, offset: u64, order: usize) -> bool {
        self.slots & (1 << order) != 0 && offset == root_offset(self.slots, order)
    }
}

/// Where the root of `2^order` slots lies: after all larger ones.
const fn root_offset(slots: u64, order: usize) -> u64 {
    slots & !((1 << order) | ((1 << order) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference: one flag per slot, and free chunks found by looking at all of them.
    struct Naive {
        taken: Vec<bool>,
    }

    impl Naive {
        fn roots(&self) -> Vec<(usize, usize)> {
            let (mut start, mut out) = (0, Vec::new());
            for bit in (0..usize::BITS).rev() {
                if self.taken.len() & (1 << bit) != 0 {
                    out.push((start, 1 << bit));
                    start += 1 << bit;
                }
            }
            out
        }

        /// The largest aligned free chunks, as a buddy allocator that merges eagerly has them.
        fn free_chunks(&self) -> Vec<(u64, u64)> {
            fn walk(taken: &[bool], start: usize, size: usize, out: &mut Vec<(u64, u64)>) {
                if taken[start..start + size].iter().all(|t| !t) {
                    out.push((start as u64, size as u64));
                } else if size > 1 {
                    walk(taken, start, size / 2, out);
                    walk(taken, start + size / 2, size / 2, out);
                }
            }
            let mut out = Vec::new();
            for (start, size) in self.roots() {
                walk(&self.taken, start, size, &mut out);
            }
            out.sort_by_key(|&(offset, size)| (size, offset));
            out
        }

        fn set(&mut self, chunk: &Chunk, to: bool) {
            let start = usize::try_from(chunk.offset()).unwrap();
            for i in start..start + usize::try_from(chunk.slots()).unwrap() {
                assert_ne!(self.taken[i], to, "slot {i}");
                self.taken[i] = to;
            }
        }
    }

    /// A small generator, so that a failure can be told by its pool and step.
    fn random(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn random_operations_agree_with_a_bitmap() {
        for pool in [1_u64, 2, 3, 7, 13, 64, 100, 491] {
            let mut seed = pool;
            let mut buddy = Buddy::new(pool);
            let mut naive = Naive {
                taken: vec![false; usize::try_from(pool).unwrap()],
            };
            let mut held: Vec<Chunk> = Vec::new();
            for step in 0..20_000 {
                // Runs of mostly allocation and of mostly freeing, so that it fills and empties.
                let grow = (step / 50) % 2 == 0;
                if random(&mut seed) % 10 < if grow { 8 } else { 3 } {
                    let wanted = 1 + random(&mut seed) % (pool / 3 + 1);
                    let size = wanted.next_power_of_two();
                    let expect = naive.free_chunks().into_iter().find(|&(_, s)| s >= size);
                    let got = buddy.allocate(wanted);
                    assert_eq!(
                        got.as_ref().map(Chunk::offset),
                        expect.map(|(offset, _)| offset),
                        "pool {pool} step {step}"
                    );
                    if let Some(chunk) = got {
                        assert_eq!(chunk.slots(), size);
                        assert_eq!(chunk.offset() % size, 0);
                        naive.set(&chunk, true);
                        held.push(chunk);
                    }
                } else if !held.is_empty() {
                    let i = usize::try_from(random(&mut seed)).unwrap() % held.len();
                    let chunk = held.swap_remove(i);
                    naive.set(&chunk, false);
                    buddy.free(chunk);
                }
                let taken: u64 = held.iter().map(Chunk::slots).sum();
                assert_eq!(buddy.free_slots() + taken, pool);
                assert!(
                    buddy.free_chunks().eq(naive.free_chunks()),
                    "pool {pool} step {step}"
                );
            }
            for chunk in held {
                buddy.free(chunk);
            }
            assert!(buddy.free_chunks().eq(Buddy::new(pool).free_chunks()));
        }
    }

    #[test]
    fn the_papers_pool_has_eight_roots_and_seven_chunks_of_2048() {
        let mut pool = Buddy::new(15_728);
        let roots: Vec<u64> = pool.free_chunks().map(|(_, size)| size).collect();
        assert_eq!(roots, [16, 32, 64, 256, 1024, 2048, 4096, 8192]);
        assert_eq!(Buddy::capacity(15_728, 2048), 7);
        let chunks: Vec<Chunk> = std::iter::from_fn(|| pool.allocate(2000)).collect();
        assert_eq!(chunks.len(), 7);
        assert_eq!(pool.free_slots(), 1392);
        assert_eq!(pool.allocate(1025), None);
        assert!(pool.allocate(1024).is_some());
    }

    #[test]
    fn an_empty_pool_and_absurd_sizes_give_nothing() {
        let mut pool = Buddy::new(0);
        assert_eq!(pool.allocate(1), None);
        assert_eq!(Buddy::capacity(0, 1), 0);
        let mut pool = Buddy::new(u64::MAX);
        assert_eq!(pool.allocate(u64::MAX), None);
        let top = pool.allocate(1 << 63).unwrap();
        assert_eq!((top.offset(), top.slots()), (0, 1 << 63));
        pool.free(top);
        assert_eq!(pool.free_slots(), u64::MAX);
    }
}
