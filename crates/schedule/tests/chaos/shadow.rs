//! An executor that keeps real contents in its pages, and a model that reads them: the next token is a hash of
//! everything that a row's block tables show. Whatever goes wrong with a page changes an answer.

use std::collections::BTreeMap;

use plimsoll_kv::{DeltaOp, Layout};
use plimsoll_program::GroupKind;
use plimsoll_schedule::{
    Draw, Executor, ExecutorError, Output, RequestId, Row, RowOutput, SeqEvent, Step, StepOutput,
    Ticket,
};
use plimsoll_units::{Nanos, SeqId};

pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a layer group lets the model see of `tokens`, all of them known.
fn view(kind: GroupKind, tokens: &[u32]) -> u64 {
    let n = tokens.len();
    let from = match kind {
        GroupKind::Window(w) => n.saturating_sub(w as usize),
        GroupKind::Chunk(c) => (n - 1) / c as usize * c as usize,
        _ => 0,
    };
    (from..n).fold(7, |h, p| mix(h ^ (p as u64) << 32 ^ u64::from(tokens[p])))
}

/// The "logits" after `tokens`.
pub(crate) fn logits(layout: &Layout, tokens: &[u32]) -> u64 {
    layout
        .groups
        .iter()
        .fold(1, |h, g| mix(h ^ view(g.kind, tokens)))
}

/// The draw of sequence `index` from these logits; `seed` is the request's.
pub(crate) fn draw(logits: u64, seed: u64, index: u32, vocab: u32) -> Draw {
    let h = mix(logits ^ mix(seed ^ u64::from(index) << 20));
    Draw {
        token: (h % u64::from(vocab)) as u32,
        logprob: -((h >> 40) as f32) / 1e6,
        ends: (h >> 20).is_multiple_of(16),
    }
}

/// The `k` most likely next tokens.
pub(crate) fn candidates(logits: u64, k: u32, vocab: u32) -> Vec<Draw> {
    let mut sum = 0.0_f32;
    (0..k)
        .map(|i| {
            let h = mix(logits ^ u64::from(i) << 33);
            sum -= ((h >> 40) as f32) / 1e7;
            Draw {
                token: ((h >> 7) % u64::from(vocab)) as u32,
                logprob: sum,
                ends: (h >> 20).is_multiple_of(8),
            }
        })
        .collect()
}

#[derive(Clone, Debug, Default)]
struct Page {
    /// Token and position of each slot.
    slots: Vec<Option<(u32, u32)>>,
    /// Running hash of a state.
    state: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Shadow {
    layout: Layout,
    vocab: u32,
    pages: Vec<Page>,
    places: BTreeMap<u32, (u32, Page)>,
    tables: BTreeMap<SeqId, Vec<BTreeMap<u32, u32>>>,
    /// Tokens written of each sequence; unknown where a cached prefix may be in its tables.
    written: BTreeMap<SeqId, u32>,
    pub(crate) seeds: BTreeMap<RequestId, u64>,
    pub(crate) fail_steps: u64,
    pub(crate) fail_transfers: u64,
    pub(crate) fail_rows: u64,
    pub(crate) panics: u64,
    /// Whether it panicked as planned.
    pub(crate) panicked: bool,
    pub(crate) random: u64,
    output: Option<StepOutput>,
}

impl Shadow {
    pub(crate) fn new(layout: Layout, pages: u32, vocab: u32) -> Self {
        let slots = layout.groups.iter().map(|g| g.slots).max().unwrap_or(1) as usize;
        let page = Page {
            slots: vec![None; slots],
            state: 0,
        };
        Self {
            layout,
            vocab,
            pages: vec![page; pages as usize + 1],
            places: BTreeMap::new(),
            tables: BTreeMap::new(),
            written: BTreeMap::new(),
            seeds: BTreeMap::new(),
            fail_steps: 0,
            fail_transfers: 0,
            fail_rows: 0,
            panics: 0,
            panicked: false,
            random: 1,
            output: None,
        }
    }

    fn chance(&mut self, per_thousand: u64) -> bool {
        self.random = mix(self.random);
        self.random % 1000 < per_thousand
    }

    fn apply(&mut self, step: &Step) {
        let groups = self.layout.groups.len();
        let mut events = step.events.iter().peekable();
        for i in 0..=step.kv.deltas.len() {
            while let Some((_, e)) = events.next_if(|(at, _)| *at <= i) {
                match *e {
                    SeqEvent::Start { seq, .. } => {
                        let old = self.tables.insert(seq, vec![BTreeMap::new(); groups]);
                        assert!(old.is_none(), "sequence {seq} starts twice");
                    }
                    SeqEvent::Fork { seq, from, .. } => {
                        let t = self.tables[&from].clone();
                        self.tables.insert(seq, t);
                        if let Some(&n) = self.written.get(&from) {
                            self.written.insert(seq, n);
                        }
                    }
                    SeqEvent::Truncate { seq, to } => {
                        let t = self.tables.get_mut(&seq).expect("a living sequence");
                        if to == 0 {
                            t.iter_mut().for_each(BTreeMap::clear);
                            self.written.remove(&seq);
                        } else if let Some(n) = self.written.get_mut(&seq) {
                            *n = to.min(*n);
                        }
                    }
                    SeqEvent::Drop { seq } => {
                        self.tables.remove(&seq).expect("a living sequence");
                        self.written.remove(&seq);
                    }
                }
            }
            if let Some(d) = step.kv.deltas.get(i) {
                let t = self.tables.get_mut(&d.seq);
                let Some(t) = t.map(|t| &mut t[d.group as usize]) else {
                    panic!(
                        "a change of the table of sequence {}, which is unknown",
                        d.seq
                    );
                };
                match d.op {
                    DeltaOp::Append { index, page } | DeltaOp::Replace { index, page } => {
                        t.insert(index, page.0);
                    }
                    DeltaOp::Truncate { len } => t.retain(|i, _| *i < len),
                }
            }
        }
        assert!(
            events.next().is_none(),
            "an event lies past the last change"
        );
    }

    fn moves(&mut self, step: &Step) -> Vec<u64> {
        let mut failed = Vec::new();
        for s in &step.kv.swaps_out {
            let rate = self.fail_transfers;
            if self.chance(rate) {
                failed.push(s.tag);
            } else {
                let page = self.pages[s.page.0 as usize].clone();
                self.places.insert(s.slot, (s.generation, page));
            }
        }
        for s in &step.kv.swaps_in {
            let (generation, page) = self.places.get(&s.slot).expect("something was put there");
            assert_eq!(*generation, s.generation, "place {} is stale", s.slot);
            self.pages[s.page.0 as usize] = page.clone();
            let rate = self.fail_transfers;
            if self.chance(rate) {
                self.pages[s.page.0 as usize].slots.fill(None);
                self.pages[s.page.0 as usize].state = 99;
                failed.push(s.tag);
            }
        }
        let targets: Vec<u32> = step.kv.copies.iter().map(|c| c.to.0).collect();
        for c in &step.kv.copies {
            assert!(
                !targets.contains(&c.from.0),
                "page {} is copied and copied to",
                c.from
            );
            self.pages[c.to.0 as usize] = self.pages[c.from.0 as usize].clone();
        }
        failed
    }

    fn row(&mut self, step: &Step, r: &Row, ruined: bool) -> RowOutput {
        let table = self.tables.get(&r.seq).expect("a living sequence").clone();
        let tokens = &step.tokens[r.tokens.start as usize..r.tokens.end as usize];
        let end = r.start as usize + tokens.len();
        if let Some(&n) = self.written.get(&r.seq) {
            assert_eq!(
                r.start, n,
                "sequence {} goes on elsewhere than where it was",
                r.seq
            );
        }
        self.written.insert(r.seq, end as u32);
        let groups = self.layout.groups.clone();
        let mut h = 1;
        for (g, group) in groups.iter().enumerate() {
            if group.is_state() {
                let mut state = 0;
                for i in 0..group.state_pages {
                    let page = &mut self.pages[table[g][&i] as usize];
                    let mut s = if r.start == 0 { 7 } else { page.state };
                    for (i, t) in tokens.iter().enumerate() {
                        s = mix(s ^ (r.start as u64 + i as u64) << 32 ^ u64::from(*t));
                    }
                    page.state = s;
                    state = s;
                }
                h = mix(h ^ state);
                continue;
            }
            let at = |p: usize| (p as u32 / group.slots, (p as u32 % group.slots) as usize);
            for (i, t) in tokens.iter().enumerate() {
                let p = r.start as usize + i;
                let (block, slot) = at(p);
                self.pages[table[g][&block] as usize].slots[slot] = Some((*t, p as u32));
            }
            let from = match group.kind {
                GroupKind::Window(w) => end.saturating_sub(w as usize),
                GroupKind::Chunk(c) => (end - 1) / c as usize * c as usize,
                _ => 0,
            };
            let mut view = 7;
            for p in from..end {
                let (block, slot) = at(p);
                let seen = self.pages[table[g][&block] as usize].slots[slot];
                let (t, q) = match seen {
                    Some(x) => x,
                    None if ruined => (0, 0),
                    None => panic!("sequence {}, group {g}: nothing at position {p}", r.seq),
                };
                assert!(
                    ruined || q as usize == p,
                    "sequence {}: position {q} lies at {p}",
                    r.seq
                );
                view = mix(view ^ (p as u64) << 32 ^ u64::from(t));
            }
            h = mix(h ^ view);
        }
        let seed = self.seeds.get(&r.request).copied().unwrap_or(0);
        match r.output {
            Output::None => RowOutput::None,
            Output::Sample { draws: 1 } => RowOutput::One(draw(h, seed, r.index, self.vocab)),
            Output::Sample { draws } => RowOutput::Many(
                (0..draws)
                    .map(|i| draw(h, seed, r.index + i, self.vocab))
                    .collect(),
            ),
            Output::Candidates { k } => RowOutput::Many(candidates(h, k, self.vocab)),
        }
    }
}

impl Executor for Shadow {
    fn submit(&mut self, step: &Step) -> Result<Ticket, ExecutorError> {
        self.apply(step);
        let rate = self.fail_steps;
        if self.chance(rate) {
            return Err(ExecutorError {
                step: step.number,
                reason: "planned".into(),
            });
        }
        let failed = self.moves(step);
        let rate = self.panics;
        if rate > 0 && self.chance(rate) {
            self.panicked = true;
            panic!("planned");
        }
        let rows = step
            .rows
            .iter()
            .map(|r| {
                let out = self.row(step, r, failed.contains(&r.request.0));
                let rate = self.fail_rows;
                if self.chance(rate) {
                    return RowOutput::Failed;
                }
                out
            })
            .collect();
        self.output = Some(StepOutput {
            rows,
            failed_transfers: failed,
            elapsed: Nanos(1000),
        });
        Ok(Ticket(step.number))
    }

    fn complete(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        let rate = self.fail_steps;
        if self.chance(rate) {
            self.output = None;
            return Err(ExecutorError {
                step: ticket.0,
                reason: "planned, at the end".into(),
            });
        }
        Ok(self.output.take().expect("a step is under way"))
    }

    fn restart(&mut self) {
        // Pages keep what was in them: nobody may read it.
        self.places.clear();
        self.tables.clear();
        self.written.clear();
        self.output = None;
    }
}
