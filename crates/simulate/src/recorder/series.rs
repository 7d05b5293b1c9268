//! [`Series`]: a run over time in a bounded number of buckets, whatever its length.
//!
//! Buckets are equally wide and start at time 0. When time runs past the last one, the width doubles
//! and neighbours merge; so the width, and with it every figure, depends only on when the run ended
//! and on what held when, not on the order or number of calls.

use crate::record::State;

/// Fields of a [`State`], counted.
pub const FIELDS: usize = 11;

/// Which field of a [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs, reason = "the names are those of State and Slots")]
pub enum Field {
    TokenStates,
    Reserved,
    Internal,
    External,
    Cached,
    Free,
    Running,
    Batch,
    Waiting,
    Preempted,
    SwappedBytes,
}

/// The fields of `s` in the order of [`Field`].
#[must_use]
pub fn fields(s: &State) -> [u64; FIELDS] {
    [
        s.slots.token_states,
        s.slots.reserved,
        s.slots.internal,
        s.slots.external,
        s.slots.cached,
        s.slots.free,
        s.running,
        s.batch,
        s.waiting,
        s.preempted,
        s.swapped_bytes,
    ]
}

/// What a caller counts beside the states; added up over buckets and over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps.
    pub steps: u64,
    /// Sequences preempted by swapping their blocks out.
    pub swap_preemptions: u64,
    /// Sequences preempted by dropping their blocks.
    pub recompute_preemptions: u64,
    /// Tokens computed once more.
    pub recomputed_tokens: u64,
    /// Bytes moved to swap space and back, both ways together.
    pub swapped_bytes: u64,
    /// Nanoseconds that those moves took.
    pub swap_ns: u64,
    /// Nanoseconds that computing once more took.
    pub recompute_ns: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub queried_tokens: u64,
    /// Prompt tokens found there.
    pub cached_tokens: u64,
    /// Blocks copied for copy-on-write.
    pub copied_blocks: u64,
}

impl Counts {
    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.steps, other.steps),
            (&mut self.swap_preemptions, other.swap_preemptions),
            (&mut self.recompute_preemptions, other.recompute_preemptions),
            (&mut self.recomputed_tokens, other.recomputed_tokens),
            (&mut self.swapped_bytes, other.swapped_bytes),
            (&mut self.swap_ns, other.swap_ns),
            (&mut self.recompute_ns, other.recompute_ns),
            (&mut self.queried_tokens, other.queried_tokens),
            (&mut self.cached_tokens, other.cached_tokens),
            (&mut self.copied_blocks, other.copied_blocks),
        ];
        for (mine, theirs) in pairs {
            *mine = mine.saturating_add(theirs);
        }
    }
}

/// States added up over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weighted {
    /// Nanoseconds added up.
    pub time: u64,
    /// Each field times the nanoseconds for which it held.
    pub sums: [u128; FIELDS],
}

impl Weighted {
    /// Adds what held for `time` nanoseconds.
    pub fn add(&mut self, time: u64, values: &[u64; FIELDS]) {
        self.time = self.time.saturating_add(time);
        for (sum, v) in self.sums.iter_mut().zip(values) {
            *sum += u128::from(time) * u128::from(*v);
        }
    }

    /// The time-weighted mean of one field; 0 for no time.
    #[must_use]
    pub fn mean(&self, field: Field) -> f64 {
        if self.time == 0 {
            return 0.0;
        }
        self.sums[field as usize] as f64 / self.time as f64
    }

    /// Slots of the pool times nanoseconds.
    #[must_use]
    pub fn slots(&self) -> u128 {
        self.sums[..=Field::Free as usize].iter().sum()
    }
}

/// One bucket of a [`Series`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// What held inside it; its time is less than the width where the run started or ended inside.
    pub weighted: Weighted,
    /// The largest value of each field that held for any time.
    pub maxima: [u64; FIELDS],
    /// What was counted inside it.
    pub counts: Counts,
}

impl Bucket {
    fn merge(&mut self, other: &Self) {
        self.weighted.time = self.weighted.time.saturating_add(other.weighted.time);
        for (sum, s) in self.weighted.sums.iter_mut().zip(other.weighted.sums) {
            *sum += s;
        }
        for (max, m) in self.maxima.iter_mut().zip(other.maxima) {
            *max = m.max(*max);
        }
        self.counts.add(&other.counts);
    }
}

/// A run over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    width: u64,
    limit: usize,
    buckets: Vec<Bucket>,
}

impl Series {
    /// An empty series of at most `limit` buckets (at least 2), at first `width` nanoseconds wide
    /// (at least 1).
    #[must_use]
    pub fn new(limit: usize, width: u64) -> Self {
        Self {
            width: width.max(1),
            limit: limit.max(2),
            buckets: Vec::new(),
        }
    }

    /// Nanoseconds per bucket.
    #[must_use]
    pub fn width(&self) -> u64 {
        self.width
    }

    /// The buckets, the first at time 0.
    #[must_use]
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Adds what held from `from` until before `to`.
    pub fn add(&mut self, from: u64, to: u64, values: &[u64; FIELDS]) {
        if from >= to {
            return;
        }
        self.bucket(to - 1);
        let mut start = from;
        while start < to {
            let width = self.width;
            let end = (start / width).saturating_add(1).saturating_mul(width);
            let end = end.min(to);
            let bucket = self.bucket(start);
            bucket.weighted.add(end - start, values);
            for (max, v) in bucket.maxima.iter_mut().zip(values) {
                *max = (*max).max(*v);
            }
            start = end;
        }
    }

    /// Adds what was counted at `at`.
    pub fn count(&mut self, at: u64, counts: &Counts) {
        self.bucket(at).counts.add(counts);
    }

    /// The bucket of `at`, after as many doublings as it takes.
    fn bucket(&mut self, at: u64) -> &mut Bucket {
        while at / self.width >= self.limit as u64 {
            self.double();
        }
        let index = usize::try_from(at / self.width).unwrap_or(self.limit - 1);
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, Bucket::default());
        }
        &mut self.buckets[index]
    }

    fn double(&mut self) {
        self.width = self.width.saturating_mul(2);
        let merged = self.buckets.chunks(2).map(|pair| {
            let mut b = pair[0];
            if let Some(second) = pair.get(1) {
                b.merge(second);
            }
            b
        });
        self.buckets = merged.collect();
    }
}
