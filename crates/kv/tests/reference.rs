//! Random operations beside the naive allocator of `model/mod.rs`, which predicts what every one of them
//! does: pages free, held and cached, table lengths, whether there is room, copies, moves, prefix hits and
//! which cached page is given up; and beside the executor of `common/mod.rs`, which keeps content.
//!
//! `cargo test -p plimsoll-kv --test reference`; longer (5,000,000 operations):
//! `PLIMSOLL_OPS=5000000 CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true cargo test --release -p plimsoll-kv --test reference`

mod common;
#[rustfmt::skip]
mod model;

use common::{Event, Log, Rng, Row, Shadow, operations};
use model::Model;
use plimsoll_kv::{KvCache, KvConfig, Layout, Outbox, Scope, Table};
use plimsoll_units::{Bytes, SeqId};

/// Operations on one pool. The model never forgets a block and counts them all each time: longer episodes
/// take quadratically longer.
const EPISODE: u64 = 80;

struct Both {
    kv: KvCache,
    model: Model,
    shadow: Shadow,
    rng: Rng,
    log: Log,
    /// As in the model, and in its order.
    tables: Vec<Table>,
    tokens: Vec<Vec<u32>>,
    next: u64,
    /// Tokens at most once in how many times are not 0.
    alphabet: u32,
}

fn short(n: usize) -> u32 {
    u32::try_from(n).expect("small")
}

impl Both {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let layout = Layout::full(1 + rng.below(5), Bytes::new(8));
        let pages = 1 + rng.below(12);
        let mut config = KvConfig::new(layout.clone(), pages);
        config.swap_pages = rng.below(8);
        config.prefix_cache = !rng.once_in(3);
        let model = Model {
            slots: layout.unit as usize,
            pages: pages as usize,
            places: config.swap_pages as usize,
            cache: config.prefix_cache,
            ..Model::default()
        };
        let what = vec![format!("{config:?}")];
        Self {
            kv: KvCache::new(config),
            model,
            shadow: Shadow::new(&layout, pages),
            alphabet: 2 + rng.below(8),
            rng,
            log: Log { seed, what },
            tables: Vec::new(),
            tokens: Vec::new(),
            next: 0,
        }
    }

    fn say(&mut self, what: String) {
        self.log.what.push(what);
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn any(&mut self) -> Option<usize> {
        let n = short(self.tables.len());
        (n > 0).then(|| self.rng.below(n) as usize)
    }

    fn token(&mut self) -> u32 {
        u32::from(self.rng.once_in(self.alphabet))
    }

    /// The step so far is carried out, but for the transfer that fails.
    fn execute(&mut self, failed: &[u64], row: Option<usize>) -> Outbox {
        let mut out = Outbox::default();
        self.kv.drain(&mut out);
        let rows: Vec<Row> = row
            .map(|s| Row {
                table: &self.tables[s],
                tokens: &self.tokens[s],
            })
            .into_iter()
            .collect();
        self.shadow.step(&out, failed, &rows);
        out
    }

    fn start(&mut self) {
        let (id, n) = (SeqId(self.id()), 1 + self.rng.below(16));
        let mut prompt: Vec<u32> = (0..n).map(|_| self.token()).collect();
        let scope = Scope::default();
        let keys = self.kv.keys(&scope, &prompt);
        let max = self.rng.below(n + 1);
        let hit = self.kv.lookup(&keys, &prompt, max);
        self.say(format!("start {id:?} {prompt:?}, at most {max}: {hit:?}"));
        prompt.truncate(max as usize);
        let predicted = self.model.lookup(&prompt);
        assert_eq!(hit.tokens as usize, predicted);
        let mut table = self.kv.table(id, &scope, n);
        self.shadow.event(&self.kv, Event::Start(id));
        self.kv.attach(&mut table, &keys, hit);
        prompt.truncate(predicted);
        self.model.seqs.push(model::Seq::default());
        self.model.attach(self.tables.len(), &prompt);
        self.tables.push(table);
        self.tokens.push(prompt);
    }

    /// Some tokens are written and all, some (as in speculative decoding) or none are kept.
    fn run(&mut self) {
        let Some(s) = self.any().filter(|s| self.tables[*s].is_resident()) else {
            return;
        };
        let n = 1 + self.rng.below(7);
        let result = self.kv.prepare(&mut self.tables[s], n, u32::MAX);
        let copies = self.model.prepare(s, n as usize);
        let id = self.tables[s].id();
        self.say(format!("prepare {id:?} {n}: {result:?}, {copies:?} copies"));
        assert_eq!(result.is_ok(), copies.is_some());
        let Some(copies) = copies else { return };
        for _ in 0..n {
            let token = self.token();
            self.tokens[s].push(token);
        }
        self.check();
        let out = self.execute(&[], Some(s));
        assert_eq!(out.copies.len(), copies);
        let kept = if self.rng.once_in(3) {
            self.rng.below(n + 1)
        } else {
            n
        };
        let len = (self.tables[s].committed() + kept) as usize;
        self.tokens[s].truncate(len);
        self.say(format!("commit {kept}: {:?}", self.tokens[s]));
        self.kv.commit(&mut self.tables[s], kept, &self.tokens[s]);
        self.kv.complete();
        self.model.commit(s, &self.tokens[s]);
    }

    fn fork(&mut self) {
        let Some(s) = self.any().filter(|s| self.tables[*s].is_resident()) else {
            return;
        };
        let (from, to) = (self.tables[s].id(), SeqId(self.id()));
        self.say(format!("fork {from:?} to {to:?}"));
        let table = self.kv.fork(&self.tables[s], to);
        self.shadow.event(&self.kv, Event::Fork { from, to });
        self.tables.push(table);
        self.tokens.push(self.tokens[s].clone());
        self.model.seqs.push(self.model.seqs[s].clone());
    }

    fn truncate(&mut self) {
        let Some(s) = self.any() else { return };
        let to = self.rng.below(self.tables[s].committed() + 1);
        let id = self.tables[s].id();
        self.say(format!("truncate {id:?} to {to}"));
        let result = self.kv.truncate(&mut self.tables[s], to);
        assert_eq!(result, Ok(()));
        self.tokens[s].truncate(to as usize);
        self.model.cut(s, to as usize);
    }

    fn release(&mut self) {
        let Some(s) = self.any() else { return };
        let table = self.tables.remove(s);
        let id = table.id();
        self.say(format!("release {id:?}"));
        self.shadow.event(&self.kv, Event::Drop(id));
        self.kv.release(table);
        self.tokens.remove(s);
        self.model.cut(s, 0);
        self.model.seqs.remove(s);
    }

    /// Some tables, in order.
    fn some(&mut self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.tables.len()).collect();
        all.retain(|_| self.rng.once_in(2));
        all
    }

    fn swap_out(&mut self) {
        let (set, tag, fails) = (self.some(), self.id(), self.rng.once_in(4));
        let of = |(s, t)| set.contains(&s).then_some(t);
        let mut tables: Vec<&mut Table> =
            self.tables.iter_mut().enumerate().filter_map(of).collect();
        let result = self.kv.swap_out(tag, &mut tables);
        let before = self.model.clone();
        let predicted = self.model.swap_out(&set);
        self.say(format!("swap out {set:?}, fails: {fails}: {result:?}"));
        assert_eq!(result.ok().map(|n| n as usize), predicted);
        if fails {
            self.execute(&[tag], None);
            let of = |(s, t)| set.contains(&s).then_some(t);
            let mut tables: Vec<&mut Table> =
                self.tables.iter_mut().enumerate().filter_map(of).collect();
            self.kv.undo_swap_out(tag, &mut tables);
            self.model = before;
        } else {
            self.execute(&[], None);
        }
        self.kv.complete();
    }

    fn swap_in(&mut self) {
        let (set, tag) = (self.some(), self.id());
        let of = |(s, t)| set.contains(&s).then_some(t);
        let mut tables: Vec<&mut Table> =
            self.tables.iter_mut().enumerate().filter_map(of).collect();
        let result = self.kv.swap_in(tag, &mut tables);
        let predicted = self.model.swap_in(&set);
        self.say(format!("swap in {set:?}: {result:?}"));
        assert_eq!(result.ok().map(|n| n as usize), predicted);
        self.execute(&[], None);
        self.kv.complete();
        if result.is_err() {
            return;
        }
        for s in set {
            let tokens = &self.tokens[s];
            self.kv
                .publish_again(&mut self.tables[s], &Scope::default(), tokens);
            self.model.publish(s, tokens, true);
        }
    }

    fn clear(&mut self) {
        self.say("clear".into());
        self.kv.clear_prefix_cache();
        // What went to swap space still knows what it was.
        for (text, away) in self.model.text.iter_mut().zip(&self.model.away) {
            if !away {
                *text = None;
            }
        }
        self.model.lru.clear();
    }

    fn operation(&mut self) {
        match self.rng.below(40) {
            0..6 => self.start(),
            6..20 => self.run(),
            20..25 => self.fork(),
            25..28 => self.truncate(),
            28..32 => self.release(),
            32..35 => self.swap_out(),
            35..39 => self.swap_in(),
            _ if self.rng.once_in(3) => self.clear(),
            _ => self.release(),
        }
        self.check();
        for (t, tokens) in self.tables.iter().zip(&self.tokens) {
            self.shadow.check(t, tokens);
            self.kv
                .check_content(t, &Scope::default(), tokens)
                .expect("blocks have the addresses of their tokens");
        }
    }

    fn check(&self) {
        self.kv
            .check_integrity(self.tables.iter())
            .expect("everything adds up");
        let u = self.kv.usage().expect("small");
        let m = &self.model;
        // What a copy alone keeps until it is done is none of the model's.
        assert_eq!(u.in_transit, 0);
        assert_eq!(u.held as usize, m.held(false), "held");
        assert_eq!(u.cached as usize, m.lru.len(), "cached");
        assert_eq!((u.free + u.cached) as usize, m.available(), "available");
        assert_eq!(u.swapped as usize, m.held(true), "places");
        for (t, s) in self.tables.iter().zip(&m.seqs) {
            assert_eq!(t.blocks() as usize, s.blocks.len());
            if t.in_flight() == 0 {
                assert_eq!(t.committed() as usize, s.len);
            }
        }
    }
}

#[test]
fn the_naive_allocator_agrees() {
    let mut left = operations(200_000);
    for seed in 0.. {
        let mut both = Both::new(seed);
        for _ in 0..EPISODE.min(left) {
            both.operation();
        }
        left = left.saturating_sub(EPISODE);
        while !both.tables.is_empty() {
            both.release();
        }
        both.check();
        assert_eq!(both.kv.available(), both.kv.pages());
        if left == 0 {
            break;
        }
    }
}
