//! What the random tests share: a generator, a log that is printed where a test fails, and [`Shadow`], an
//! executor that carries outboxes out on pages of hashes.
#![allow(dead_code, reason = "every test uses its own part")]
#![allow(clippy::print_stderr, reason = "a failing test says how to repeat it")]

use std::collections::BTreeMap;

use plimsoll_kv::{DeltaOp, KvCache, Layout, Outbox, Table};
use plimsoll_program::GroupKind;
use plimsoll_units::SeqId;

/// SplitMix64 (Steele et al., OOPSLA 2014): small, and the same everywhere.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }

    /// A number below `n`, or 0.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        u32::try_from(self.next() % u64::from(n.max(1))).expect("below n")
    }

    /// Once in `n` times.
    pub(crate) fn once_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
}

fn scramble(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Operations to run in all: `PLIMSOLL_OPS`, or what CI can afford.
pub(crate) fn operations(in_ci: u64) -> u64 {
    match std::env::var("PLIMSOLL_OPS") {
        Ok(n) => n.parse().expect("PLIMSOLL_OPS is a number"),
        Err(_) => in_ci,
    }
}

/// The operations of one episode; printed when the test fails in it.
pub(crate) struct Log {
    pub(crate) seed: u64,
    pub(crate) what: Vec<String>,
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}, operations:\n{}", self.seed, self.what.join("\n"));
        }
    }
}

/// What happens to sequences besides deltas.
pub(crate) enum Event {
    Start(SeqId),
    Fork { from: SeqId, to: SeqId },
    Drop(SeqId),
}

/// A row that runs: a table and its tokens, those in flight included.
pub(crate) struct Row<'a> {
    pub(crate) table: &'a Table,
    pub(crate) tokens: &'a [u32],
}

/// An executor whose pages hold, for every slot, a hash of all tokens up to it (as keys and values depend on
/// all of them), and for every page of a state a hash of all tokens so far.
pub(crate) struct Shadow {
    layout: Layout,
    pages: Vec<Vec<u64>>,
    places: BTreeMap<u32, (u32, Vec<u64>)>,
    tables: BTreeMap<SeqId, Vec<BTreeMap<u32, u32>>>,
    /// Each with the number of deltas before it.
    events: Vec<(usize, Event)>,
}

fn cell(group: usize, part: usize, prefix: u64) -> u64 {
    scramble(prefix ^ (group as u64) << 32 ^ (part as u64) << 48)
}

/// Hash of the first 0, 1, 2 ... tokens.
fn prefixes(tokens: &[u32]) -> Vec<u64> {
    let mut all = vec![1_u64];
    for t in tokens {
        let last = all[all.len() - 1];
        all.push(scramble(
            last.wrapping_mul(31).wrapping_add(u64::from(*t) + 1),
        ));
    }
    all
}

impl Shadow {
    pub(crate) fn new(layout: &Layout, pages: u32) -> Self {
        let slots = layout.groups.iter().map(|g| g.slots.max(1)).max();
        Self {
            layout: layout.clone(),
            pages: vec![vec![0; slots.unwrap_or(1) as usize]; pages as usize + 1],
            places: BTreeMap::new(),
            tables: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    pub(crate) fn event(&mut self, kv: &KvCache, event: Event) {
        self.events.push((kv.deltas_so_far(), event));
    }

    /// Carries out one step: pages out (but for transfers that fail), pages in, copies, rows.
    pub(crate) fn step(&mut self, out: &Outbox, failed: &[u64], rows: &[Row]) {
        self.follow(out);
        for s in out.swaps_out.iter().filter(|s| !failed.contains(&s.tag)) {
            let content = self.pages[s.page.0 as usize].clone();
            self.places.insert(s.slot, (s.generation, content));
        }
        for s in &out.swaps_in {
            let (generation, content) = self.places.get(&s.slot).expect("it has gone out");
            assert_eq!(*generation, s.generation, "place {} is stale", s.slot);
            self.pages[s.page.0 as usize].clone_from(content);
        }
        for (i, c) in out.copies.iter().enumerate() {
            for other in &out.copies {
                assert_ne!(c.from, other.to, "a page is read and written by copies");
            }
            let twice = out.copies[..i].iter().any(|o| o.to == c.to);
            assert!(!twice, "a page is written by two copies");
            self.pages[c.to.0 as usize] = self.pages[c.from.0 as usize].clone();
        }
        // No row reads what another writes: order must not matter, so all read first.
        for r in rows {
            self.check(r.table, r.tokens);
            self.check_table(r.table);
        }
        for r in rows {
            self.write(r);
        }
    }

    /// Keeps block tables as an executor does, from deltas and events alone.
    fn follow(&mut self, out: &Outbox) {
        let mut events = std::mem::take(&mut self.events).into_iter().peekable();
        for i in 0..=out.deltas.len() {
            while let Some((_, e)) = events.next_if(|(at, _)| *at <= i) {
                match e {
                    Event::Start(s) => {
                        let groups = self.layout.groups.len();
                        self.tables.insert(s, vec![BTreeMap::new(); groups]);
                    }
                    Event::Fork { from, to } => {
                        let t = self.tables[&from].clone();
                        self.tables.insert(to, t);
                    }
                    Event::Drop(s) => drop(self.tables.remove(&s)),
                }
            }
            let Some(d) = out.deltas.get(i) else { break };
            let t = self.tables.get_mut(&d.seq).expect("a table that is there");
            let t = &mut t[d.group as usize];
            match d.op {
                DeltaOp::Append { index, page } => {
                    t.retain(|i, _| *i < index);
                    t.insert(index, page.0);
                }
                DeltaOp::Replace { index, page } => {
                    t.insert(index, page.0);
                }
                DeltaOp::Truncate { len } => t.retain(|i, _| *i < len),
            }
        }
    }

    fn check_table(&self, t: &Table) {
        let known = &self.tables[&t.id()];
        for (g, known) in known.iter().enumerate() {
            for (i, page) in (t.first(g)..).zip(t.pages(g)) {
                assert_eq!(
                    known.get(&i).copied(),
                    page.map(|p| p.0),
                    "{:?}, group {g}, block {i}: the executor's table differs",
                    t.id()
                );
            }
        }
    }

    fn write(&mut self, r: &Row) {
        let prefixes = prefixes(r.tokens);
        let (from, to) = (
            r.table.committed(),
            r.table.committed() + r.table.in_flight(),
        );
        for (g, group) in self.layout.groups.iter().enumerate() {
            let pages: Vec<u32> = r.table.pages(g).flatten().map(|p| p.0).collect();
            if group.is_state() {
                for (part, page) in pages.iter().enumerate() {
                    self.pages[*page as usize][0] = cell(g, part, prefixes[to as usize]);
                }
                continue;
            }
            for at in from..to {
                let page = pages[(at / group.slots - r.table.first(g)) as usize];
                self.pages[page as usize][(at % group.slots) as usize] =
                    cell(g, 0, prefixes[at as usize + 1]);
            }
        }
    }

    /// Checks that what a table's pages hold is what its committed tokens are.
    pub(crate) fn check(&self, t: &Table, tokens: &[u32]) {
        let prefixes = prefixes(tokens);
        for (g, group) in self.layout.groups.iter().enumerate() {
            let mut blocks = 0;
            for (i, page) in t.pages(g).enumerate() {
                let Some(page) = page else { continue };
                let page = &self.pages[page.0 as usize];
                blocks += 1;
                if group.is_state() {
                    if t.committed() > 0 {
                        let want = cell(g, i, prefixes[t.committed() as usize]);
                        assert_eq!(page[0], want, "{:?}: state, part {i}", t.id());
                    }
                    continue;
                }
                let start = (t.first(g) + u32::try_from(i).expect("short")) * group.slots;
                for at in start..(start + group.slots).min(t.committed()) {
                    let want = cell(g, 0, prefixes[at as usize + 1]);
                    let got = page[(at - start) as usize];
                    assert_eq!(got, want, "{:?}, group {g}: token {at}", t.id());
                }
            }
            if t.is_resident() && !group.is_state() {
                let read = first_read(group.kind, t.committed());
                assert!(t.first(g) * group.slots <= read, "a token is missing");
                let end = (t.first(g) + blocks) * group.slots;
                assert!(end >= t.committed(), "the last tokens are missing");
            }
        }
    }
}

/// The first token that the next one reads, from the definition of the kinds.
pub(crate) fn first_read(kind: GroupKind, committed: u32) -> u32 {
    let mut at = committed;
    let reads = |at: u32| match kind {
        GroupKind::Full | GroupKind::Latent | GroupKind::State => true,
        GroupKind::Window(w) => u64::from(committed - at) < w,
        GroupKind::Chunk(c) => u64::from(at) / c == u64::from(committed) / c,
    };
    while at > 0 && reads(at - 1) {
        at -= 1;
    }
    at
}
