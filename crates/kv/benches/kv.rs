//! What the block manager costs, operation by operation, on blocks of 16 tokens.
//!
//! `cargo bench -p plimsoll-kv`; one of them: `cargo bench -p plimsoll-kv -- append`. `bench/kv_peers.sh`
//! compares the figures with another block manager's.
//!
//! Bars (medians, on a quiet machine): a block allocated and freed, and a token appended, below 100 ns each;
//! keys and lookup of 8,192 tokens below 60 µs together.

use std::cell::RefCell;
use std::hint::black_box;

use divan::Bencher;
use plimsoll_kv::{Hit, KvCache, KvConfig, Layout, Outbox, PromptKeys, Scope, Table};
use plimsoll_units::{Bytes, SeqId};

const SLOTS: u32 = 16;
const PAGES: u32 = 100_000;
const PROMPT: u32 = 8_192;
const ALL: u32 = u32::MAX;

fn main() {
    divan::main();
}

fn pool(prefix_cache: bool) -> KvCache {
    let mut config = KvConfig::new(Layout::full(SLOTS, Bytes::new(4_096)), PAGES);
    config.prefix_cache = prefix_cache;
    config.swap_pages = 1_024;
    config.key = [7; 16];
    KvCache::new(config)
}

fn prompt(seed: u32) -> Vec<u32> {
    let token = |i: u32| (i ^ seed).wrapping_mul(2_654_435_761) % 128_000;
    (0..PROMPT).map(token).collect()
}

/// Writes all tokens of a new table.
fn written(kv: &mut KvCache, tokens: &[u32]) -> Table {
    let n = u32::try_from(tokens.len()).expect("short");
    let mut t = kv.table(SeqId(1), &Scope::default(), n);
    kv.prepare(&mut t, n, ALL).expect("pages are there");
    kv.commit(&mut t, n, tokens);
    kv.drain(&mut Outbox::default());
    t
}

/// A pool full of cached prompts, and these with their keys. Benches take one after the other, so that
/// neither is in the processor's cache, as in a server.
fn full() -> (KvCache, Vec<(Vec<u32>, PromptKeys)>) {
    let mut kv = pool(true);
    let mut prompts = Vec::new();
    for seed in 0..PAGES * SLOTS / PROMPT {
        let tokens = prompt(seed);
        let t = written(&mut kv, &tokens);
        kv.release(t);
        let keys = kv.keys(&Scope::default(), &tokens);
        prompts.push((tokens, keys));
    }
    (kv, prompts)
}

/// A table made, a block taken, both given back: what a block costs, the start of its chain and two
/// allocations of the host's.
#[divan::bench(args = [false, true], sample_size = 1_000)]
fn start_and_release_a_table_of_one_block(b: Bencher, prefix_cache: bool) {
    let mut kv = pool(prefix_cache);
    let mut out = Outbox::default();
    let scope = Scope::default();
    let mut n = 0_u32;
    b.bench_local(|| {
        let mut t = kv.table(SeqId(1), &scope, 1);
        kv.prepare(&mut t, 1, ALL).expect("pages are there");
        kv.release(t);
        n += 1;
        if n.is_multiple_of(256) {
            kv.drain(&mut out);
        }
    });
}

/// A block taken and given back by a table that stays.
#[divan::bench]
fn allocate_and_free_a_block(b: Bencher) {
    let mut kv = pool(false);
    let mut out = Outbox::default();
    let mut t = written(&mut kv, &[1; 16]);
    let mut n = 0_u32;
    b.bench_local(|| {
        kv.prepare(&mut t, 1, ALL).expect("pages are there");
        kv.commit(&mut t, 0, &[]);
        n += 1;
        if n.is_multiple_of(256) {
            kv.drain(&mut out);
        }
    });
    kv.release(t);
}

/// One token is prepared and committed; every sixteenth time it takes a new block, and with the prefix
/// cache fills one, which is published.
#[divan::bench(args = [false, true])]
fn append_a_token(b: Bencher, prefix_cache: bool) {
    let mut kv = pool(prefix_cache);
    let mut out = Outbox::default();
    let tokens = prompt(0);
    let mut t = written(&mut kv, &tokens[..1]);
    b.bench_local(|| {
        if t.committed() == PROMPT {
            let new = kv.table(SeqId(1), &Scope::default(), 1);
            kv.release(std::mem::replace(&mut t, new));
            kv.drain(&mut out);
        }
        kv.prepare(&mut t, 1, ALL).expect("pages are there");
        kv.commit(&mut t, 1, &tokens);
    });
    kv.release(t);
}

/// 32 blocks taken, filled and given back; with the prefix cache the same text each time, so that they are
/// found to be known.
#[divan::bench(args = [false, true])]
fn append_a_chunk_of_512(b: Bencher, prefix_cache: bool) {
    let mut kv = pool(prefix_cache);
    let mut out = Outbox::default();
    let tokens = prompt(0);
    b.bench_local(|| {
        let mut t = kv.table(SeqId(1), &Scope::default(), 512);
        kv.prepare(&mut t, 512, ALL).expect("pages are there");
        kv.commit(&mut t, 512, &tokens);
        kv.release(t);
        kv.drain(&mut out);
    });
}

/// A fork of 33 blocks, the copy of the last one, and its release.
#[divan::bench]
fn fork_and_copy_on_write(b: Bencher) {
    let mut kv = pool(false);
    let mut out = Outbox::default();
    let t = written(&mut kv, &prompt(0)[..520]);
    b.bench_local(|| {
        let mut f = kv.fork(&t, SeqId(2));
        kv.prepare(&mut f, 1, ALL).expect("pages are there");
        kv.drain(&mut out);
        kv.complete();
        kv.release(f);
    });
    kv.release(t);
}

#[divan::bench]
fn keys_of_8192_tokens(b: Bencher) {
    let (kv, tokens, scope) = (pool(true), prompt(0), Scope::default());
    b.bench_local(|| kv.keys(&scope, black_box(&tokens)));
}

#[divan::bench]
fn lookup_of_8192_tokens(b: Bencher) {
    let (kv, prompts) = full();
    let mut next = prompts.iter().cycle();
    b.bench_local(|| {
        let (tokens, keys) = next.next().expect("a cycle");
        assert_eq!(kv.lookup(keys, tokens, ALL).tokens, PROMPT);
    });
}

#[divan::bench]
fn keys_and_lookup_of_8192_tokens(b: Bencher) {
    let (kv, prompts) = full();
    let mut next = prompts.iter().cycle();
    b.bench_local(|| {
        let (tokens, _) = next.next().expect("a cycle");
        let keys = kv.keys(&Scope::default(), tokens);
        assert_eq!(kv.lookup(&keys, tokens, ALL).tokens, PROMPT);
    });
}

/// 512 blocks shared and given back.
#[divan::bench]
fn attach_and_release_8192_tokens(b: Bencher) {
    let (mut kv, prompts) = full();
    let mut next = prompts.iter().cycle();
    let mut out = Outbox::default();
    let hit = Hit { tokens: PROMPT };
    b.bench_local(|| {
        let (_, keys) = next.next().expect("a cycle");
        let mut t = kv.table(SeqId(2), &Scope::default(), PROMPT);
        kv.attach(&mut t, keys, hit);
        kv.release(t);
        kv.drain(&mut out);
    });
}

/// 128 blocks out and back, both transfers reported.
#[divan::bench]
fn swap_128_blocks_out_and_in(b: Bencher) {
    let mut kv = pool(false);
    let mut out = Outbox::default();
    let t = RefCell::new(written(&mut kv, &prompt(0)[..2_048]));
    b.bench_local(|| {
        let mut t = t.borrow_mut();
        kv.swap_out(1, &mut [&mut t]).expect("places are there");
        kv.drain(&mut out);
        kv.complete();
        kv.swap_in(1, &mut [&mut t]).expect("pages are there");
        kv.drain(&mut out);
        kv.complete();
    });
    kv.release(t.into_inner());
}

#[divan::bench]
fn usage(b: Bencher) {
    let mut kv = pool(false);
    let t = written(&mut kv, &prompt(0));
    b.bench_local(|| black_box(&kv).usage());
    kv.release(t);
}
