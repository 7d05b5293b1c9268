//! The life of tables, step by step.

use plimsoll_kv::{KvCache, KvConfig, Layout, Outbox, Scope, Table};
use plimsoll_units::{Bytes, SeqId};

fn pool(pages: u32, cache: bool) -> KvCache {
    let mut c = KvConfig::new(Layout::full(4, Bytes::new(8)), pages);
    c.swap_pages = pages;
    c.prefix_cache = cache;
    KvCache::new(c)
}

fn table(kv: &KvCache, id: u64, prompt: &[u32]) -> Table {
    kv.table(SeqId(id), &Scope::default(), prompt.len() as u32)
}

fn run(kv: &mut KvCache, t: &mut Table, n: u32, tokens: &[u32]) {
    kv.prepare(t, n, u32::MAX).expect("pages are there");
    kv.commit(t, n, tokens);
    kv.complete();
}

#[test]
fn append_fork_write_release() {
    let mut kv = pool(10, false);
    let tokens: Vec<u32> = (0..40).collect();
    let mut a = table(&kv, 1, &tokens[..6]);
    run(&mut kv, &mut a, 6, &tokens);
    assert_eq!(kv.available(), 8);
    let mut b = kv.fork(&a, SeqId(2));
    assert_eq!(kv.available(), 8);
    kv.prepare(&mut b, 1, u32::MAX).unwrap();
    let mut out = Outbox::default();
    kv.drain(&mut out);
    assert_eq!(out.copies.len(), 1, "the half-filled block is copied");
    kv.commit(&mut b, 1, &tokens);
    kv.complete();
    run(&mut kv, &mut a, 1, &tokens);
    kv.drain(&mut out);
    assert!(out.copies.is_empty(), "the other holder writes in place");
    kv.check_integrity([&a, &b].into_iter()).unwrap();
    kv.release(a);
    kv.release(b);
    assert_eq!(kv.available(), 10);
    kv.check_integrity(std::iter::empty()).unwrap();
}

#[test]
fn a_prefix_is_found_again_and_equal_blocks_become_one() {
    let mut kv = pool(10, true);
    let tokens: Vec<u32> = (0..40).collect();
    let scope = Scope::default();
    let (mut a, mut b) = (table(&kv, 1, &tokens[..9]), table(&kv, 2, &tokens[..9]));
    kv.prepare(&mut a, 9, u32::MAX).unwrap();
    kv.prepare(&mut b, 9, u32::MAX).unwrap();
    kv.commit(&mut a, 9, &tokens);
    kv.commit(&mut b, 9, &tokens);
    kv.complete();
    kv.check_integrity([&a, &b].into_iter()).unwrap();
    assert_eq!(kv.available(), 10 - 4, "two full blocks are shared");
    let keys = kv.keys(&scope, &tokens[..9]);
    let hit = kv.lookup(&keys, &tokens[..9], 8);
    assert_eq!(hit.tokens, 8);
    kv.release(a);
    kv.release(b);
    assert_eq!(kv.available(), 10);
    assert_eq!(kv.lookup(&keys, &tokens[..9], 8).tokens, 8);
    let mut c = table(&kv, 3, &tokens[..9]);
    kv.attach(&mut c, &keys, hit);
    kv.check_integrity([&c].into_iter()).unwrap();
    kv.release(c);
    // Filling the pool gives the end of the chain up first.
    let other: Vec<u32> = (100..140).collect();
    let mut d = table(&kv, 4, &other);
    run(&mut kv, &mut d, 33, &other);
    assert_eq!(kv.lookup(&keys, &tokens[..9], 8).tokens, 4);
    kv.release(d);
    kv.check_integrity(std::iter::empty()).unwrap();
}

#[test]
fn swap_moves_what_nobody_else_holds_and_brings_it_back() {
    let mut kv = pool(10, false);
    let tokens: Vec<u32> = (0..40).collect();
    let mut a = table(&kv, 1, &tokens[..8]);
    run(&mut kv, &mut a, 8, &tokens);
    let mut b = kv.fork(&a, SeqId(2));
    run(&mut kv, &mut b, 3, &tokens);
    assert_eq!(kv.swap_out(7, &mut [&mut b]), Ok(1));
    kv.check_integrity([&a, &b].into_iter()).unwrap();
    kv.complete();
    kv.check_integrity([&a, &b].into_iter()).unwrap();
    assert_eq!(kv.available(), 8);
    assert_eq!(kv.swap_in(7, &mut [&mut b]), Ok(1));
    kv.check_integrity([&a, &b].into_iter()).unwrap();
    kv.complete();
    // Both tables of one group: everything moves, each page once.
    assert_eq!(kv.swap_out(8, &mut [&mut a, &mut b]), Ok(3));
    kv.check_integrity([&a, &b].into_iter()).unwrap();
    kv.undo_swap_out(8, &mut [&mut a, &mut b]);
    kv.complete();
    kv.check_integrity([&a, &b].into_iter()).unwrap();
    assert_eq!(kv.swap_out(8, &mut [&mut a, &mut b]), Ok(3));
    kv.complete();
    assert_eq!(kv.available(), 10);
    assert_eq!(kv.swap_in(8, &mut [&mut a, &mut b]), Ok(3));
    kv.complete();
    kv.check_integrity([&a, &b].into_iter()).unwrap();
    kv.release(a);
    kv.release(b);
    assert_eq!(kv.available(), 10);
    kv.check_integrity(std::iter::empty()).unwrap();
}
