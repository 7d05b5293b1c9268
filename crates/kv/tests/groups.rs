//! Random steps over pools of one and several layer groups, beside an executor that really keeps content:
//! every resident table reads back exactly its tokens, whatever was forked, cached, copied, swapped, failed
//! or truncated. `check_integrity`, census and usage are checked all the way.
//!
//! `cargo test -p plimsoll-kv --test groups`; longer (5,000,000 operations):
//! `PLIMSOLL_OPS=5000000 CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true cargo test --release -p plimsoll-kv --test groups`

mod common;

use std::collections::BTreeMap;

use common::{Event, Log, Rng, Row, Shadow, first_read, operations};
use plimsoll_kv::{
    CacheEvent, KvCache, KvConfig, Layout, Outbox, Owner, Pin, Scope, Table, TenantId,
};
use plimsoll_program::{Group, GroupKind, PoolGeometry};
use plimsoll_units::{Bytes, SeqId};

struct Seq {
    table: Table,
    scope: Scope,
    request: u64,
    /// Committed ones, and behind them those in flight.
    tokens: Vec<u32>,
    /// The transfer out under way.
    leaving: Option<u64>,
    /// Whether it comes back in the step under way.
    returning: bool,
}

struct World {
    kv: KvCache,
    rng: Rng,
    log: Log,
    shadow: Shadow,
    seqs: Vec<Seq>,
    pins: Vec<Pin>,
    next: u64,
    cache: bool,
    /// Whether prompts have different salts.
    salted: bool,
    /// Whether events tell which prefixes can be found: they show neither salts nor what a state is of.
    predicts: bool,
    /// By address, from events alone: all tokens up to a block's end, also of those that are gone, and the
    /// groups of those that can be found.
    texts: BTreeMap<u128, Vec<u32>>,
    stored: BTreeMap<u128, u8>,
    places: u32,
    operations: u64,
}

fn group(kind: GroupKind, slots: u64, state_pages: u64) -> Group {
    Group {
        kind,
        layers: 2,
        // A page is 120 bytes: 2 layers, and the slots or states of one page.
        rate: Bytes::new(60 * state_pages.max(1) / slots.max(1)),
        slots,
        state_pages,
        padding: Bytes::ZERO,
    }
}

/// The mixes of groups that models have, at sizes where everything happens often.
fn layout(rng: &mut Rng) -> Layout {
    use GroupKind::{Chunk, Full, Latent, State, Window};
    let wide = u64::from(1 + rng.below(12));
    let slots = u64::from(1 + rng.below(5));
    let groups = match rng.below(10) {
        0 => vec![group(Full, slots, 0)],
        1 => vec![group(Full, 2, 0), group(Window(wide), 2, 0)],
        2 => vec![group(Full, 2, 0), group(Window(wide), 3, 0)],
        3 => vec![group(Full, 4, 0), group(Chunk(wide), 2, 0)],
        4 => vec![group(Window(wide), slots, 0)],
        5 => vec![group(Latent, slots, 0)],
        6 => vec![group(State, 0, 1 + u64::from(rng.below(3)))],
        7 => vec![group(Full, slots, 0), group(State, 0, 1)],
        8 => vec![
            group(State, 0, 2),
            group(Window(wide), 2, 0),
            group(Full, 3, 0),
        ],
        _ => vec![group(Chunk(wide), slots, 0), group(Window(5), 2, 0)],
    };
    let geometry = PoolGeometry {
        page: Bytes::new(120),
        groups,
    };
    let mut layout = Layout::new(&geometry).expect("it can be paged");
    layout.snapshot = layout.unit * (1 + rng.below(4));
    layout
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let layout = layout(&mut rng);
        let pages = 1 + rng.below(12 * u32::try_from(layout.groups.len()).expect("few"));
        let mut config = KvConfig::new(layout.clone(), pages);
        config.swap_pages = rng.below(10);
        config.prefix_cache = !rng.once_in(3);
        config.events = true;
        config.tenants = 2;
        config.key = [7; 16];
        let what = vec![format!("{config:?}")];
        let salted = rng.once_in(2);
        Self {
            salted,
            predicts: config.prefix_cache && !salted && !layout.has_state(),
            texts: BTreeMap::new(),
            stored: BTreeMap::new(),
            shadow: Shadow::new(&layout, pages),
            cache: config.prefix_cache,
            places: config.swap_pages,
            kv: KvCache::new(config),
            rng,
            log: Log { seed, what },
            seqs: Vec::new(),
            pins: Vec::new(),
            next: 0,
            operations: 0,
        }
    }

    fn say(&mut self, what: String) {
        self.log.what.push(what);
        self.operations += 1;
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Any of the sequences.
    fn any(&mut self) -> Option<usize> {
        let n = u32::try_from(self.seqs.len()).expect("few");
        (n > 0).then(|| self.rng.below(n) as usize)
    }

    /// Any of the sequences, where it is on the device and has nothing in flight.
    fn any_ready(&mut self) -> Option<usize> {
        self.any()
            .filter(|i| self.seqs[*i].table.is_resident() && self.seqs[*i].table.in_flight() == 0)
    }

    fn start(&mut self) {
        let id = SeqId(self.id());
        let scope = Scope {
            tenant: TenantId(u16::try_from(self.rng.below(2)).expect("small")),
            salt: vec![u8::from(self.salted && self.rng.once_in(4))],
            ..Scope::default()
        };
        let n = 1 + self.rng.below(20);
        let prompt: Vec<u32> = (0..n).map(|_| u32::from(self.rng.once_in(6))).collect();
        let mut table = self.kv.table(id, &scope, n);
        self.shadow.event(&self.kv, Event::Start(id));
        let keys = self.kv.keys(&scope, &prompt);
        let hit = self.kv.lookup(&keys, &prompt, n - 1);
        self.say(format!("start {id:?} {scope:?} {prompt:?}: {hit:?}"));
        assert!(hit.tokens < n && (self.cache || hit.tokens == 0));
        if self.predicts {
            assert_eq!(hit.tokens, self.longest(&prompt));
        }
        self.kv.attach(&mut table, &keys, hit);
        self.shadow.check(&table, &prompt);
        let request = self.id();
        self.seqs.push(Seq {
            table,
            scope,
            request,
            tokens: prompt[..hit.tokens as usize].to_vec(),
            leaving: None,
            returning: false,
        });
    }

    /// The longest prefix short of a whole prompt that every group can resume from: all that its next token
    /// reads can be found.
    fn longest(&self, prompt: &[u32]) -> u32 {
        let layout = self.kv.layout();
        let found = |g: usize, end: u32| {
            let text = &prompt[..end as usize];
            let mut stored = self.stored.iter();
            stored.any(|(a, group)| usize::from(*group) == g && self.texts[a] == text)
        };
        let resumes = |len: u32| {
            layout.groups.iter().enumerate().all(|(g, group)| {
                let first = first_read(group.kind, len) / group.slots;
                (first..len / group.slots).all(|i| found(g, (i + 1) * group.slots))
            })
        };
        let most = (u32::try_from(prompt.len()).expect("short") - 1) / layout.unit;
        let lengths = (0..=most).rev().map(|n| n * layout.unit);
        lengths.into_iter().find(|n| resumes(*n)).unwrap_or(0)
    }

    fn follow_events(&mut self) {
        for event in self.kv.take_events() {
            match event {
                CacheEvent::Stored {
                    address,
                    parent,
                    tokens,
                    group,
                } => {
                    // Groups of chunks alone resume at a chunk's start without any block before it.
                    let known = parent.is_none_or(|p| self.texts.contains_key(&p));
                    self.predicts &= known;
                    let mut text = parent
                        .and_then(|p| self.texts.get(&p).cloned())
                        .unwrap_or_default();
                    text.extend(tokens);
                    self.texts.insert(address, text);
                    let twice = self.stored.insert(address, group).is_some();
                    assert!(!twice, "a block is stored that is there already");
                }
                CacheEvent::Removed { address, group } => {
                    assert_eq!(self.stored.remove(&address), Some(group));
                }
                CacheEvent::Cleared => self.stored.clear(),
            }
        }
    }

    fn prepare(&mut self) {
        let Some(i) = self.any_ready() else { return };
        let most = if self.rng.once_in(2) { 9 } else { 3 };
        let n = 1 + self.rng.below(most);
        let limit = if self.rng.once_in(4) {
            self.rng.below(4)
        } else {
            u32::MAX
        };
        let s = &mut self.seqs[i];
        let (before, needed) = (self.kv.available(), self.kv.pages_for(&s.table, n));
        let result = self.kv.prepare(&mut s.table, n, limit);
        assert_eq!(result.is_ok(), needed <= before.min(limit));
        if result.is_ok() {
            // A page that was shared may be kept by the copy alone, and is then not to be had either.
            let taken = before - self.kv.available();
            assert!(taken >= needed);
            assert!(self.cache || taken == needed);
            for _ in 0..n {
                s.tokens.push(u32::from(self.rng.once_in(6)));
            }
        } else {
            assert_eq!(before, self.kv.available());
        }
        let id = s.table.id();
        self.say(format!("prepare {id:?} {n} within {limit}: {result:?}"));
        if result.is_err() && self.rng.once_in(2) {
            self.release();
        }
    }

    /// All sequences of one request, all or nothing.
    fn prepare_all(&mut self) {
        let Some(i) = self.any() else { return };
        let request = self.seqs[i].request;
        let ready = |s: &Seq| s.table.is_resident() && s.table.in_flight() == 0;
        let before = self.kv.available();
        let mut tables = Vec::new();
        for s in self.seqs.iter_mut().filter(|s| s.request == request) {
            if ready(s) {
                let n = self.rng.below(4);
                tables.push((&mut s.table, n));
            }
        }
        let result = self.kv.prepare_all(&mut tables, u32::MAX);
        if let Err(short) = result {
            assert!(short.needed > short.available);
            assert_eq!(before, self.kv.available());
        }
        let added: Vec<(SeqId, u32)> = tables.iter().map(|(t, n)| (t.id(), *n)).collect();
        for s in self.seqs.iter_mut().filter(|_| result.is_ok()) {
            if let Some((_, n)) = added.iter().find(|(id, _)| *id == s.table.id()) {
                for _ in 0..*n {
                    s.tokens.push(u32::from(self.rng.once_in(6)));
                }
            }
        }
        self.say(format!("prepare {added:?}: {result:?}"));
    }

    fn fork(&mut self) {
        let Some(i) = self.any_ready().filter(|_| self.seqs.len() < 8) else {
            return;
        };
        let (to, from) = (SeqId(self.id()), self.seqs[i].table.id());
        self.say(format!("fork {from:?} to {to:?}"));
        let table = self.kv.fork(&self.seqs[i].table, to);
        self.shadow.event(&self.kv, Event::Fork { from, to });
        let s = &self.seqs[i];
        let fork = Seq {
            table,
            scope: s.scope.clone(),
            request: s.request,
            tokens: s.tokens.clone(),
            leaving: None,
            returning: s.returning,
        };
        self.seqs.push(fork);
    }

    fn truncate(&mut self) {
        let Some(i) = self.any().filter(|i| self.seqs[*i].table.in_flight() == 0) else {
            return;
        };
        let to = self.rng.below(self.seqs[i].table.committed() + 2);
        let s = &mut self.seqs[i];
        let layout = self.kv.layout().clone();
        let possible = to == 0
            || to >= s.table.committed()
            || layout.groups.iter().enumerate().all(|(g, group)| {
                !group.is_state() && s.table.first(g) * group.slots <= first_read(group.kind, to)
            });
        let result = self.kv.truncate(&mut s.table, to);
        assert_eq!(result.is_ok(), possible);
        if possible {
            s.tokens.truncate(to as usize);
        }
        let id = s.table.id();
        self.say(format!("truncate {id:?} to {to}: {result:?}"));
    }

    fn release(&mut self) {
        let Some(i) = self.any() else { return };
        let s = self.seqs.remove(i);
        let id = s.table.id();
        self.say(format!("release {id:?}"));
        self.kv.release(s.table);
        self.shadow.event(&self.kv, Event::Drop(id));
    }

    /// A row that is given up before it runs.
    fn give_up(&mut self) {
        let Some(i) = self.any() else { return };
        let s = &mut self.seqs[i];
        s.tokens.truncate(s.table.committed() as usize);
        self.kv.commit(&mut s.table, 0, &s.tokens);
        let id = s.table.id();
        self.say(format!("give up {id:?}"));
    }

    fn swap_out(&mut self) {
        let Some(i) = self.any().filter(|i| !self.seqs[*i].table.is_empty()) else {
            return;
        };
        let (request, tag) = (self.seqs[i].request, self.id());
        let of = |s: &&mut Seq| s.request == request;
        if self
            .seqs
            .iter()
            .any(|s| s.request == request && (s.table.in_flight() > 0 || s.leaving.is_some()))
        {
            return;
        }
        let (places, free) = (self.kv.swap_free(), self.kv.available());
        let mut tables: Vec<&mut Table> = Vec::new();
        for s in self.seqs.iter_mut().filter(of) {
            tables.push(&mut s.table);
        }
        let would = {
            let tables: Vec<&Table> = tables.iter().map(|t| &**t).collect();
            self.kv.swappable(&tables)
        };
        let result = self.kv.swap_out(tag, &mut tables);
        assert_eq!(result.is_ok(), would <= places);
        if result.is_ok() {
            assert_eq!(result, Ok(would));
            assert_eq!(self.kv.swap_free(), places - would);
            assert_eq!(self.kv.available(), free, "not before the transfer is done");
            for s in self.seqs.iter_mut().filter(of) {
                s.leaving = Some(tag);
            }
        }
        self.say(format!("swap out request {request} as {tag}: {result:?}"));
    }

    fn swap_in(&mut self) {
        let away = |s: &Seq| !s.table.is_resident() && s.leaving.is_none();
        let Some(i) = self.seqs.iter().position(away).or_else(|| self.any()) else {
            return;
        };
        let (request, tag, alone) = (self.seqs[i].request, self.id(), self.rng.once_in(6));
        let id = self.seqs[i].table.id();
        let of = |s: &&mut Seq| {
            s.request == request && s.leaving.is_none() && (!alone || s.table.id() == id)
        };
        let free = self.kv.available();
        let mut tables: Vec<&mut Table> = Vec::new();
        for s in self.seqs.iter_mut().filter(of) {
            tables.push(&mut s.table);
        }
        let needed = {
            let tables: Vec<&Table> = tables.iter().map(|t| &**t).collect();
            self.kv.pages_on_host(&tables)
        };
        let result = self.kv.swap_in(tag, &mut tables);
        assert_eq!(result.is_ok(), needed <= free);
        for s in self.seqs.iter_mut().filter(of) {
            s.returning |= result.is_ok();
            assert!(s.table.is_resident() || result.is_err());
        }
        self.say(format!(
            "swap in request {request} ({id:?} alone: {alone}): {result:?}"
        ));
    }

    fn pin(&mut self) {
        if self.rng.once_in(2) && !self.pins.is_empty() {
            let pin = self.pins.remove(0);
            self.say("unpin".into());
            self.kv.unpin(pin);
        } else if let Some(i) = self.any().filter(|_| self.pins.len() < 2) {
            let s = &self.seqs[i];
            let tokens = &s.tokens[..s.table.committed() as usize];
            let pin = self.kv.pin(&s.scope, tokens);
            let said = format!("pin {:?}: {pin:?}", s.table.id());
            if let Some(pin) = pin {
                self.shadow.check(pin.table(), tokens);
                self.pins.push(pin);
            }
            self.say(said);
        }
    }

    fn plan(&mut self) {
        match self.rng.below(20) {
            0..3 => self.start(),
            3..9 => self.prepare(),
            9 => self.prepare_all(),
            10..12 => self.fork(),
            12 => self.truncate(),
            13 => self.release(),
            14 => self.give_up(),
            15 | 16 => self.swap_out(),
            17 | 18 => self.swap_in(),
            _ if self.rng.once_in(12) => {
                self.say("clear".into());
                self.kv.clear_prefix_cache();
            }
            _ => self.pin(),
        }
        self.follow_events();
        self.check();
    }

    fn step(&mut self) {
        for _ in 0..1 + self.rng.below(6) {
            self.plan();
        }
        let mut out = Outbox::default();
        self.kv.drain(&mut out);
        let mut failed: Vec<u64> = self.seqs.iter().filter_map(|s| s.leaving).collect();
        failed.retain(|_| self.rng.once_in(4));
        let has_state = self.kv.layout().has_state();
        let mut accepted = Vec::new();
        let mut rows = Vec::new();
        for s in self.seqs.iter().filter(|s| s.table.in_flight() > 0) {
            let ran = !self.rng.once_in(8);
            let n = s.table.in_flight();
            let some = self.rng.below(n + 1);
            let n = if !ran {
                0
            } else if has_state || self.rng.once_in(2) {
                n
            } else {
                some
            };
            accepted.push((s.table.id(), n));
            if ran {
                rows.push(Row {
                    table: &s.table,
                    tokens: &s.tokens,
                });
            }
        }
        self.shadow.step(&out, &failed, &rows);
        self.say(format!("step: fails {failed:?}, accepts {accepted:?}"));
        if self.rng.once_in(6) {
            self.release();
        }
        for tag in failed {
            let of = |s: &&mut Seq| s.leaving == Some(tag);
            let mut tables: Vec<&mut Table> = self
                .seqs
                .iter_mut()
                .filter(of)
                .map(|s| &mut s.table)
                .collect();
            self.kv.undo_swap_out(tag, &mut tables);
        }
        let complete_first = self.rng.once_in(2);
        if complete_first {
            self.kv.complete();
        }
        for s in self.seqs.iter_mut().filter(|s| s.returning) {
            self.kv.publish_again(&mut s.table, &s.scope, &s.tokens);
        }
        for (id, n) in accepted {
            let Some(s) = self.seqs.iter_mut().find(|s| s.table.id() == id) else {
                continue;
            };
            s.tokens.truncate((s.table.committed() + n) as usize);
            self.kv.commit(&mut s.table, n, &s.tokens);
        }
        if !complete_first {
            self.kv.complete();
        }
        for s in &mut self.seqs {
            s.leaving = None;
            s.returning = false;
        }
        self.follow_events();
        self.check();
        for s in &self.seqs {
            self.shadow.check(&s.table, &s.tokens);
            self.kv
                .check_content(&s.table, &s.scope, &s.tokens)
                .expect("blocks have the addresses of their tokens");
        }
    }

    fn check(&self) {
        let tables = self.seqs.iter().map(|s| &s.table);
        let pins = || self.pins.iter().map(Pin::table);
        self.kv
            .check_integrity(tables.chain(pins()))
            .expect("everything adds up");
        let owner = |s: &Seq| Owner {
            request: s.request,
            beam: s.request.is_multiple_of(2),
        };
        let tables = self.seqs.iter().map(|s| (owner(s), &s.table));
        let c = self.kv.census(tables, pins());
        let sum = c.free + c.cached + c.in_transit + c.requests + c.beams + c.shared + c.pinned;
        assert_eq!(sum, u64::from(self.kv.pages()), "{c:?}");
        let u = self.kv.usage().expect("small");
        assert_eq!(u.free + u.held + u.cached + u.in_transit, u.pages);
        assert_eq!(
            (u.free, u.cached, u.in_transit, u.swapped),
            (c.free, c.cached, c.in_transit, c.swapped)
        );
        assert_eq!(u.held, c.requests + c.beams + c.shared + c.pinned);
        assert!(c.tenants.iter().sum::<u64>() <= u.held);
        // Nothing is counted twice: what is left over is never negative.
        let parts = [u.token_states, u.reserved, u.internal];
        let held = Bytes::new(120 * u.held);
        assert_eq!(
            parts.iter().map(|b| b.get()).sum::<u64>(),
            held.get(),
            "{u:?}"
        );
        for s in &self.seqs {
            let (c, n) = (s.table.committed(), s.table.in_flight());
            let held = if c + n > 0 {
                self.kv.layout().held(c.into(), n.into())
            } else {
                0
            };
            assert_eq!(s.table.blocks(), held);
            assert!(held <= self.kv.layout().peak(u64::from(c + n), 9));
        }
    }

    fn end(mut self) -> u64 {
        for pin in std::mem::take(&mut self.pins) {
            self.kv.unpin(pin);
        }
        while !self.seqs.is_empty() {
            self.release();
            self.check();
        }
        self.kv.complete();
        self.check();
        assert_eq!(self.kv.available(), self.kv.pages());
        assert_eq!(self.kv.swap_free(), self.places);
        for t in 0..2 {
            assert_eq!(self.kv.charged(TenantId(t)), 0);
        }
        self.operations
    }
}

#[test]
fn every_table_reads_back_its_tokens() {
    let mut left = operations(200_000);
    for seed in 0.. {
        let mut world = World::new(seed);
        for _ in 0..60 {
            world.step();
        }
        left = left.saturating_sub(world.end());
        if left == 0 {
            break;
        }
    }
}
