//! What the allocator says of grammars: a model's tokens, a grammar that is compiled and a sequence's place in it stay
//! within what is planned for them.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "an allocator that counts; helpers of tests"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use plimsoll_plan::guided::{COMPILER_STACK_MIB, TRIE_TOKEN, compiled, compiling, place};
use plimsoll_runtime::guide::{Grammar, Grammars, Guide};
use plimsoll_runtime::text::{Tokenizer, TokenizerConfig};
use serde_json::json;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does everything; what is not overridden goes through these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `make` returns, what stays of it, and what there was at most beside what was before.
fn counted<T>(make: impl FnOnce() -> T) -> (T, u64, u64) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let made = make();
    let stays = LIVE.load(Ordering::Relaxed).saturating_sub(before);
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    (made, stays as u64, peak as u64)
}

/// All bytes, words that look like none of each other, and an end.
fn tokenizer(size: usize) -> (Tokenizer, u32) {
    let mut vocab = serde_json::Map::new();
    let mut other = 256_u32;
    for byte in 0..=u8::MAX {
        // As GPT-2 writes bytes.
        let sign = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                other += 1;
                char::from_u32(other - 1).unwrap()
            }
        };
        vocab.insert(sign.to_string(), vocab.len().into());
    }
    let mut state = 1_u64;
    while vocab.len() < size - 1 {
        let mut word = String::new();
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        // 2 to 9 letters: words of real vocabularies have 6 on average, and share more of their beginnings.
        for i in 0..2 + state % 8 {
            word.push(char::from(
                b'a' + u8::try_from((state >> (8 + 5 * i)) % 26).unwrap(),
            ));
        }
        let id = vocab.len();
        vocab.entry(word).or_insert(id.into());
    }
    let end = vocab.len();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{ "id": end, "content": "</s>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [] },
    });
    let json = serde_json::to_vec(&json).unwrap();
    let t = Tokenizer::from_json(&json, "x", &TokenizerConfig::default()).unwrap();
    (t, u32::try_from(end).unwrap())
}

/// Texts that cost the most known.
fn grammars() -> Vec<Grammar> {
    let field = |i: u32| json!({ "type": "object", "properties": { format!("p{i}"): { "type": "string", "maxLength": 40 }, "k": { "enum": [i, i + 1] } }, "required": ["k"] });
    let properties: serde_json::Map<_, _> = (0..512)
        .map(|i| (format!("p{i}"), json!({ "type": "string" })))
        .collect();
    let regexes = [
        "(.*a){20}",
        "(a|b)*a(a|b){18}",
        "(a{1,100}){1,100}",
        ".{1,100000}",
        r"\p{L}{1000}",
        r"(\w+\s)*[a-f]{3,800}",
    ];
    let schemas = [
        json!({ "type": "object" }),
        json!({ "anyOf": (0..60).map(field).collect::<Vec<_>>() }),
        json!({ "type": "object", "properties": properties }),
        json!({ "enum": (0..6000).map(|i| format!("e{i}")).collect::<Vec<_>>() }),
        json!({ "type": "array", "items": { "type": "string", "pattern": "(.*a){5}", "maxLength": 200 } }),
        json!({ "type": "string", "format": "date-time" }),
    ];
    let larks = [
        format!("start: {}\"x\"", "\"y\"? ".repeat(3_200)),
        format!("start: {}", ["\"x\""; 2_700].join(" | ")),
        "start: \"a\" | \"b\" | start start".to_owned(),
    ];
    let choice = (0..1024)
        .map(|i| format!("{}{i}", "c".repeat(50)))
        .collect();
    std::iter::empty()
        .chain(regexes.into_iter().map(|r| Grammar::Regex(r.to_owned())))
        .chain(schemas.into_iter().map(Grammar::JsonSchema))
        .chain(larks.into_iter().map(Grammar::Lark))
        .chain([Grammar::Choice(choice)])
        .collect()
}

#[test]
fn grammars_have_what_was_planned() {
    // As many tokens as large models have: their trees alone.
    for size in [2048, 128 << 10] {
        let (t, end) = tokenizer(size);
        let (shared, stays, peak) = counted(|| Grammars::new(&t, end + 1, &[end]).unwrap());
        let each = (stays / size as u64, peak / size as u64);
        println!("{size} tokens: {} bytes each, {} at most", each.0, each.1);
        assert!(each.0 > TRIE_TOKEN / 2 && each.1 <= TRIE_TOKEN, "{each:?}");
        if size > 2048 {
            continue;
        }
        let mut taken = 0;
        for grammar in grammars() {
            let short: String = format!("{grammar:?}").chars().take(70).collect();
            let (guide, stays, most) = counted(|| shared.compile(&grammar, 1));
            println!("{short}: compiled {stays}, {most} at most");
            // Its stack is the system's.
            let stack = COMPILER_STACK_MIB << 20;
            assert!(most <= compiled().unwrap().get() + compiling().unwrap().get() - stack);
            let Ok(guide) = guide else { continue };
            taken += 1;
            assert!(stays <= compiled().unwrap().get());
            let (_, _, most) = counted(|| walk(guide.fork(), end));
            println!("    a place: {most} at most");
            assert!(most <= place().unwrap().get());
        }
        assert!(taken > 10, "{taken}");
    }
}

/// By whatever may come, until nothing may or it is too much.
fn walk(mut guide: Guide, end: u32) -> Guide {
    for step in 0..300_u32 {
        let Ok(mask) = guide.mask() else { break };
        let from = step.wrapping_mul(7919) % end;
        let next = (from..end).chain(0..from).find(|t| mask.allows(*t));
        let Some(next) = next else { break };
        if guide.push(next).is_err() {
            break;
        }
    }
    guide
}
