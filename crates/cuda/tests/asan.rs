//! Kernels that leave the memory that they were given are stopped at their line. Under AddressSanitizer only
//! (`tools/asan.sh`): elsewhere there is nothing to see.

#![cfg(plimsoll_asan)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::path::Path;
use std::process::Command;

use plimsoll_cuda::{Address, Device, Fibers, Launch, args};

/// Set where a test is to make its mistake: sanitizers end the process.
const MISTAKE: &str = "PLIMSOLL_MISTAKE";

/// Floats on a device, and how many bytes they are.
fn floats(device: &mut Fibers, n: u64) -> (Address, u64) {
    (device.allocate(4 * n).unwrap(), 4 * n)
}

fn words(device: &mut Fibers, words: &[u32]) -> (Address, u64) {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let at = device.allocate(bytes.len() as u64).unwrap();
    device.upload(at, &bytes).unwrap();
    (at, bytes.len() as u64)
}

/// Rows of `x` by their numbers: five rows of seven elements, beside others; they begin `aside` bytes further on.
fn gather(rows: &[u32], aside: u64) {
    let mut device = Fibers::new();
    let (arena, _) = floats(&mut device, 64);
    let wanted = words(&mut device, rows);
    let out = floats(&mut device, 7 * rows.len() as u64);
    // One allocation, of which rows are a part: what lies behind them is no redzone of the allocator's.
    device.allow(&[(arena, 4 * 35 + aside), wanted, out]);
    let a = args::Gather {
        x: arena.0 + aside,
        wanted: wanted.0.0,
        out: out.0.0,
        width: 7,
        none: 0,
    };
    let how = Launch::blocks(u32::try_from(rows.len()).unwrap(), 128);
    device.launch("gather", how, a.bytes()).unwrap();
}

/// Attention of one token at `position`, whose table has two pages of four tokens.
fn attend(position: u32) {
    let mut device = Fibers::new();
    let (pages, _) = floats(&mut device, 4 * 16);
    let (lists, _) = words(&mut device, &[0, position, 1, 0, 0, 0, 0, 0, 1, 2, 0, 0]);
    let (q, out) = (floats(&mut device, 2), floats(&mut device, 2));
    let (seqs, of, tables) = (lists, lists.plus(16), lists.plus(32));
    let part = |page: u64| (pages.plus(64 * page), 64);
    device.allow(&[part(1), part(2), (seqs, 16), (of, 4), (tables, 8), q, out]);
    let a = args::Kv {
        pages: pages.0,
        seqs: seqs.0,
        of: of.0,
        tables: tables.0,
        q: q.0.0,
        out: out.0.0,
        page: 16,
        slots: 4,
        q_heads: 1,
        kv_heads: 1,
        k_dim: 2,
        v_dim: 2,
        q_stride: 2,
        scale: 1.0,
        ..args::Kv::default()
    };
    let how = Launch {
        grid: [1, 1, 1],
        threads: 128,
        shared: 4 * (2 + 2 + 128 + 1 + 16 + 8 + 128),
    };
    device.launch("attend_f32", how, a.bytes()).unwrap();
}

/// The same with too little to share.
fn attend_in(shared: u32) {
    let mut device = Fibers::new();
    let x = floats(&mut device, 8);
    let out = floats(&mut device, 4);
    device.allow(&[x, out]);
    let a = args::Route {
        logits: x.0.0,
        out: out.0.0,
        experts: 8,
        taken: 2,
        ..args::Route::default()
    };
    let how = Launch {
        shared,
        ..Launch::blocks(1, 128)
    };
    device.launch("route", how, a.bytes()).unwrap();
}

/// Makes the mistake of a test, and looks at the line that the report names: it holds `what`.
fn stops(test: &str, file: &str, what: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(MISTAKE, test)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{test} was not stopped: {said}");
    // The first frame, or the line of an error without frames.
    let frame = said
        .lines()
        .find(|l| l.trim_start().starts_with("#0") || l.contains("runtime error"));
    let at = frame.and_then(|f| f.split_once(&format!("/{file}:")));
    let (_, at) = at.unwrap_or_else(|| panic!("{file} is not named: {said}"));
    let line: usize = at.split(':').next().unwrap().parse().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cu").join(file);
    let source = std::fs::read_to_string(path).unwrap();
    let there = source.lines().nth(line - 1).unwrap();
    assert!(there.contains(what), "{file}:{line}: {there}");
}

fn mistaken(test: &str) -> bool {
    std::env::var(MISTAKE).is_ok_and(|v| v == test)
}

#[test]
fn a_row_past_its_buffer() {
    gather(&[0, 4, 2], 0);
    if mistaken("a_row_past_its_buffer") {
        return gather(&[0, 5, 2], 0);
    }
    stops("a_row_past_its_buffer", "rows.cu", "out[i] = x[i]");
}

#[test]
fn an_index_past_its_table() {
    attend(7);
    if mistaken("an_index_past_its_table") {
        return attend(8);
    }
    stops(
        "an_index_past_its_table",
        "attention.cu",
        "table[key / a.slots]",
    );
}

#[test]
fn shared_memory_that_was_not_asked_for() {
    attend_in(4 * 16);
    if mistaken("shared_memory_that_was_not_asked_for") {
        return attend_in(4 * 15);
    }
    stops(
        "shared_memory_that_was_not_asked_for",
        "rows.cu",
        "chosen[e] =",
    );
}

#[test]
fn an_element_between_two_others() {
    if mistaken("an_element_between_two_others") {
        return gather(&[0, 4, 2], 2);
    }
    stops("an_element_between_two_others", "rows.cu", "out[i] = x[i]");
}
