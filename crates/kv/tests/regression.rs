//! Faults that were found and fixed, one test each, named after what went wrong. Most were found by the
//! random runs of `reference.rs` and `groups.rs`.
//!
//! `cargo test -p plimsoll-kv --test regression`

use plimsoll_kv::{GroupLayout, KvCache, KvConfig, Layout, LayoutError, Outbox, Scope, Table};
use plimsoll_program::{Group, GroupKind, PoolGeometry};
use plimsoll_units::{Bytes, SeqId};

const ALL: u32 = u32::MAX;

/// A pool of blocks of four tokens.
fn pool(pages: u32, swap: u32, prefix_cache: bool) -> KvCache {
    let mut c = KvConfig::new(Layout::full(4, Bytes::new(8)), pages);
    c.swap_pages = swap;
    c.prefix_cache = prefix_cache;
    KvCache::new(c)
}

fn run(kv: &mut KvCache, id: u64, tokens: &[u32]) -> Table {
    let n = u32::try_from(tokens.len()).expect("short");
    let mut t = kv.table(SeqId(id), &Scope::default(), n);
    kv.prepare(&mut t, n, ALL).expect("pages are there");
    kv.commit(&mut t, n, tokens);
    kv.drain(&mut Outbox::default());
    kv.complete();
    t
}

fn sound(kv: &KvCache, tables: &[&Table]) {
    kv.check_integrity(tables.iter().copied())
        .expect("everything adds up");
}

/// The page was taken for free when the transfer ended, while the new table held it.
#[test]
fn a_prefix_found_while_it_leaves_stays_with_who_found_it() {
    let mut kv = pool(4, 4, true);
    let tokens = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut a = run(&mut kv, 1, &tokens);
    assert_eq!(kv.swap_out(1, &mut [&mut a]), Ok(2));
    let keys = kv.keys(&Scope::default(), &tokens);
    let hit = kv.lookup(&keys, &tokens, ALL);
    assert_eq!(hit.tokens, 8);
    let mut b = kv.table(SeqId(2), &Scope::default(), 8);
    kv.attach(&mut b, &keys, hit);
    sound(&kv, &[&a, &b]);
    kv.complete();
    sound(&kv, &[&a, &b]);
    assert_eq!(kv.available(), 2);
    kv.release(a);
    kv.release(b);
    sound(&kv, &[]);
}

/// One place was then written by two transfers of a step.
#[test]
fn a_place_is_not_given_away_while_a_released_table_is_still_going_there() {
    let mut kv = pool(4, 2, false);
    let mut a = run(&mut kv, 1, &[1; 4]);
    let mut b = run(&mut kv, 2, &[2; 4]);
    kv.swap_out(1, &mut [&mut a]).expect("places are free");
    kv.release(a);
    sound(&kv, &[&b]);
    assert_eq!(kv.swap_free(), 1);
    kv.swap_out(2, &mut [&mut b]).expect("places are free");
    let mut out = Outbox::default();
    kv.drain(&mut out);
    assert_ne!(out.swaps_out[0].slot, out.swaps_out[1].slot);
    kv.complete();
    assert_eq!(kv.swap_free(), 1);
    sound(&kv, &[&b]);
    kv.release(b);
    assert_eq!(kv.swap_free(), 2);
}

/// Another table took the page, and the transfer wrote over it.
#[test]
fn a_page_is_not_given_away_while_a_released_table_is_still_coming_back_to_it() {
    let mut kv = pool(1, 1, false);
    let mut a = run(&mut kv, 1, &[1; 4]);
    kv.swap_out(1, &mut [&mut a]).expect("places are free");
    kv.complete();
    kv.swap_in(1, &mut [&mut a]).expect("pages are free");
    kv.release(a);
    assert_eq!(kv.available(), 0);
    sound(&kv, &[]);
    kv.complete();
    assert_eq!(kv.available(), 1);
    sound(&kv, &[]);
}

/// A page that comes back went there, and the copy, which comes later, wrote over it.
#[test]
fn a_copy_s_target_is_not_given_away_before_the_copy_is_done() {
    let mut kv = pool(3, 1, false);
    let mut c = run(&mut kv, 3, &[3; 4]);
    kv.swap_out(3, &mut [&mut c]).expect("places are free");
    kv.complete();
    let a = run(&mut kv, 1, &[1; 2]);
    let d = run(&mut kv, 4, &[4; 2]);
    let mut b = kv.fork(&a, SeqId(2));
    kv.prepare(&mut b, 1, ALL).expect("a page for the copy");
    kv.release(b);
    assert!(kv.swap_in(3, &mut [&mut c]).is_err());
    kv.complete();
    assert_eq!(kv.swap_in(3, &mut [&mut c]), Ok(1));
    sound(&kv, &[&a, &c, &d]);
    for t in [a, c, d] {
        kv.release(t);
    }
}

/// The transfer's own reference was left on the pages for ever.
#[test]
fn undoing_a_swap_out_of_released_tables_leaves_pages_to_others() {
    let mut kv = pool(4, 4, true);
    let tokens = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut a = run(&mut kv, 1, &tokens);
    let mut f = kv.fork(&a, SeqId(3));
    assert_eq!(kv.swap_out(1, &mut [&mut a, &mut f]), Ok(2));
    let keys = kv.keys(&Scope::default(), &tokens);
    let mut b = kv.table(SeqId(2), &Scope::default(), 8);
    let hit = kv.lookup(&keys, &tokens, ALL);
    kv.attach(&mut b, &keys, hit);
    kv.release(f);
    kv.release(a);
    kv.undo_swap_out(1, &mut []);
    sound(&kv, &[&b]);
    kv.complete();
    sound(&kv, &[&b]);
    assert_eq!(kv.swap_free(), 4);
    kv.release(b);
    assert_eq!(kv.available(), 4);
    sound(&kv, &[]);
}

/// The second copy read the target of the first: executors carry copies out in any order.
#[test]
fn no_page_is_both_read_and_written_by_the_copies_of_a_step() {
    let mut kv = pool(4, 0, false);
    let a = run(&mut kv, 1, &[1; 2]);
    let mut b = kv.fork(&a, SeqId(2));
    kv.prepare(&mut b, 1, ALL).expect("a page for the copy");
    kv.commit(&mut b, 0, &[]);
    let mut c = kv.fork(&b, SeqId(3));
    kv.prepare(&mut c, 1, ALL).expect("a page for the copy");
    let mut out = Outbox::default();
    kv.drain(&mut out);
    assert_eq!(out.copies.len(), 2);
    assert_eq!(out.copies[0].from, out.copies[1].from);
    sound(&kv, &[&a, &b, &c]);
    kv.complete();
    sound(&kv, &[&a, &b, &c]);
    for t in [a, b, c] {
        kv.release(t);
    }
}

/// Transfers out come first in a step, so the place got what the page held before.
#[test]
fn a_page_that_is_still_coming_back_does_not_go_out_again() {
    let mut kv = pool(4, 4, false);
    let mut a = run(&mut kv, 1, &[1; 6]);
    kv.swap_out(1, &mut [&mut a]).expect("places are free");
    kv.complete();
    kv.drain(&mut Outbox::default());
    kv.swap_in(1, &mut [&mut a]).expect("pages are free");
    assert_eq!(kv.swap_out(1, &mut [&mut a]), Ok(0));
    assert!(a.is_resident());
    kv.drain(&mut Outbox::default());
    kv.complete();
    assert_eq!(kv.swap_out(1, &mut [&mut a]), Ok(2));
    kv.complete();
    sound(&kv, &[&a]);
    kv.release(a);
}

fn with_state() -> Layout {
    let mut layout = Layout::full(4, Bytes::new(8));
    layout.groups.push(GroupLayout {
        kind: GroupKind::State,
        slots: 0,
        state_pages: 2,
        row: Bytes::new(30),
    });
    layout
}

/// The state's pages stayed with a table that held no token.
#[test]
fn a_first_row_that_did_not_run_leaves_no_state() {
    let mut kv = KvCache::new(KvConfig::new(with_state(), 6));
    let mut t = kv.table(SeqId(1), &Scope::default(), 4);
    kv.prepare(&mut t, 0, ALL).expect("nothing is asked for");
    sound(&kv, &[&t]);
    kv.prepare(&mut t, 4, ALL).expect("pages are there");
    sound(&kv, &[&t]);
    kv.commit(&mut t, 0, &[]);
    sound(&kv, &[&t]);
    assert_eq!(kv.available(), 6);
    kv.release(t);
}

/// Tokens that were cut off were still counted while others were written in their place.
#[test]
fn what_is_written_over_after_a_truncation_is_counted_once() {
    for (prefix_cache, swapped) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut kv = pool(3, 2, prefix_cache);
        let mut a = run(&mut kv, 1, &[1; 8]);
        let b = kv.fork(&a, SeqId(2));
        kv.truncate(&mut a, 5).expect("full attention");
        kv.release(b);
        if swapped {
            kv.swap_out(1, &mut [&mut a]).expect("places are free");
            kv.complete();
            kv.swap_in(1, &mut [&mut a]).expect("pages are free");
            kv.complete();
        }
        kv.prepare(&mut a, 3, ALL).expect("nothing is needed");
        let usage = kv.usage().expect("small");
        assert_eq!(usage.token_states, Bytes::new(5 * 8));
        assert_eq!(usage.reserved, Bytes::new(3 * 8));
        assert_eq!(usage.internal, Bytes::ZERO);
        sound(&kv, &[&a]);
        kv.release(a);
        kv.complete();
        sound(&kv, &[]);
    }
}

/// The row was written in place; then the transfer failed, and the first table got the page back changed.
#[test]
fn a_page_whose_transfer_may_fail_is_not_written_by_who_found_it() {
    let mut kv = pool(2, 2, true);
    let tokens = [1, 2, 3, 4];
    let mut a = run(&mut kv, 1, &tokens);
    assert_eq!(kv.swap_out(1, &mut [&mut a]), Ok(1));
    let keys = kv.keys(&Scope::default(), &tokens);
    let mut b = kv.table(SeqId(2), &Scope::default(), 4);
    let hit = kv.lookup(&keys, &tokens, ALL);
    kv.attach(&mut b, &keys, hit);
    kv.truncate(&mut b, 2).expect("full attention");
    kv.prepare(&mut b, 1, ALL).expect("a page for the copy");
    let mut out = Outbox::default();
    kv.drain(&mut out);
    assert_eq!(out.copies.len(), 1);
    kv.undo_swap_out(1, &mut [&mut a]);
    kv.complete();
    kv.commit(&mut b, 1, &[1, 2, 9]);
    sound(&kv, &[&a, &b]);
    assert_ne!(
        a.pages(0).collect::<Vec<_>>(),
        b.pages(0).collect::<Vec<_>>()
    );
    kv.release(a);
    kv.release(b);
}

/// A group without slots made the common unit 0, and the first operation divided by it.
#[test]
fn a_block_that_holds_nothing_is_refused() {
    for (kind, slots, state_pages) in [(GroupKind::Full, 0, 0), (GroupKind::State, 0, 0)] {
        let group = Group {
            kind,
            layers: 1,
            rate: Bytes::new(8),
            slots,
            state_pages,
            padding: Bytes::ZERO,
        };
        let geometry = PoolGeometry {
            page: Bytes::new(8),
            groups: vec![group],
        };
        assert_eq!(Layout::new(&geometry), Err(LayoutError::OutOfRange(0)));
    }
}

/// Nobody found what had come back from swap space, however long it stayed.
#[test]
fn a_prefix_that_comes_back_from_swap_space_is_found_again() {
    let mut kv = pool(4, 4, true);
    let (scope, tokens) = (Scope::default(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let mut a = run(&mut kv, 1, &tokens);
    let mut f = kv.fork(&a, SeqId(2));
    kv.swap_out(1, &mut [&mut a, &mut f])
        .expect("places are free");
    kv.complete();
    // Every cached page is given up meanwhile.
    let other = run(&mut kv, 3, &[0; 16]);
    kv.release(other);
    let keys = kv.keys(&scope, &tokens);
    assert_eq!(kv.lookup(&keys, &tokens, ALL).tokens, 0);
    assert_eq!(kv.swap_in(1, &mut [&mut a, &mut f]), Ok(3));
    // Until the transfer is done its content is not there.
    assert_eq!(kv.lookup(&keys, &tokens, ALL).tokens, 0);
    kv.complete();
    for t in [&mut a, &mut f] {
        kv.publish_again(t, &scope, &tokens);
    }
    assert_eq!(kv.lookup(&keys, &tokens, ALL).tokens, 8);
    for t in [&a, &f] {
        kv.check_content(t, &scope, &tokens)
            .expect("blocks have the addresses of their tokens");
    }
    sound(&kv, &[&a, &f]);
    assert_eq!(kv.available(), 1, "tables share what they shared");
    kv.release(a);
    kv.release(f);
    assert_eq!(kv.lookup(&keys, &tokens, ALL).tokens, 8);
}

/// The same blocks were held twice for as long as both lived.
#[test]
fn what_comes_back_becomes_one_with_what_was_computed_meanwhile() {
    let mut kv = pool(4, 4, true);
    let (scope, tokens) = (Scope::default(), [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut a = run(&mut kv, 1, &tokens);
    kv.swap_out(1, &mut [&mut a]).expect("places are free");
    kv.complete();
    kv.clear_prefix_cache();
    assert_eq!(kv.swap_in(1, &mut [&mut a]), Ok(2));
    let b = run(&mut kv, 2, &tokens);
    assert_eq!(kv.available(), 0);
    kv.publish_again(&mut a, &scope, &tokens);
    sound(&kv, &[&a, &b]);
    assert_eq!(kv.available(), 2);
    assert!(a.pages(0).eq(b.pages(0)));
    kv.release(a);
    kv.release(b);
    sound(&kv, &[]);
}
