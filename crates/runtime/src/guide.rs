//! Grammars that an answer keeps to: JSON schemas, regular expressions, choices and Lark grammars, by llguidance.
//!
//! A [`Guide`] is where one sequence stands in its grammar: a function of the grammar and the sequence's tokens alone,
//! so an answer is the same alone, in any batch, and after it gave way. Limits count work, not time, and no state is
//! shared between sequences, so a limit is met at the same token always.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use plimsoll_model::json::printable;
use plimsoll_plan::guided::{COMPILER_STACK_MIB, GUIDES, LEXER_STATES, PLACE_ITEMS, ROW_ITEMS};
use serde_json::{Map, Value};

use crate::text::Tokenizer;

/// Sequences that may keep to a grammar at once: memory for them is planned.
#[allow(clippy::cast_possible_truncation, reason = "few")]
pub const MAX_GUIDES: usize = GUIDES as usize;
/// Largest schema, and all choices.
pub const MAX_GRAMMAR_BYTES: usize = 64 << 10;
/// Largest Lark grammar: the time to compile one may grow with the square of it.
pub const MAX_LARK_BYTES: usize = 16 << 10;
/// Largest regular expression.
pub const MAX_REGEX_BYTES: usize = 4 << 10;
/// Most choices.
pub const MAX_CHOICES: usize = 1024;
/// Brackets inside each other, in regular expressions and Lark grammars: their parsers recurse.
const MAX_BRACKETS: usize = 64;
/// Longest token that a grammar may use: the tree of tokens takes no longer ones.
const MAX_TOKEN_BYTES: usize = 512;
/// Schemas inside each other.
const MAX_SCHEMA_DEPTH: usize = 64;
/// Levels of JSON of a schema and of all that its `$ref`s name: whoever compiles may go through all of them.
const MAX_LINKED_DEPTH: usize = 512;
/// Properties of an object: the time to compile them grows with the square.
const MAX_PROPERTIES: usize = 512;
/// Rules of a Lark grammar: one may lead to the next.
const MAX_RULES: usize = 512;
/// Compiling is recursive.
#[allow(clippy::cast_possible_truncation, reason = "few")]
const COMPILER_STACK_BYTES: usize = (COMPILER_STACK_MIB as usize) << 20;

/// What an answer has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON of this schema, without spaces between its parts unless the schema says otherwise.
    JsonSchema(Value),
    /// A text that matches from its start to its end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this Lark grammar.
    Lark(String),
}

/// Why a text cannot be kept to a grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// One that is no grammar, or one that is too much.
    #[error("{0}")]
    Grammar(String),
    /// The tokenizer's tokens are no bytes.
    #[error(
        "this model's tokenizer has tokens that are no bytes: answers cannot be kept to a grammar"
    )]
    Tokenizer,
    /// Nothing would end an answer.
    #[error("this model has no end token: answers cannot be kept to a grammar")]
    Endless,
    /// Too many at once.
    #[error("{MAX_GUIDES} sequences at once may keep to a grammar: try again")]
    Busy,
    /// More than ever fit.
    #[error("{0} sequences cannot keep to a grammar at once: ask for at most {MAX_GUIDES}")]
    TooMany(usize),
    /// The system gives no thread.
    #[error("the system gives no thread to compile a grammar")]
    Thread,
}

/// What grammars of a model have in common.
pub struct Grammars {
    factory: ParserFactory,
    taken: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Grammars({} taken)", self.taken.load(Ordering::Relaxed))
    }
}

impl Grammars {
    /// For a model of `vocab` rows of logits that ends by `eos`.
    ///
    /// # Errors
    /// [`GrammarError`] where this model's answers cannot be kept to any.
    pub fn new(tokenizer: &Tokenizer, vocab: u32, eos: &[u32]) -> Result<Self, GrammarError> {
        let eos: Vec<u32> = eos.iter().copied().filter(|e| *e < vocab).collect();
        let &first = eos.first().ok_or(GrammarError::Endless)?;
        let mut words = tokenizer.token_bytes().ok_or(GrammarError::Tokenizer)?;
        words.resize(vocab as usize, Vec::new());
        for word in words.iter_mut().filter(|w| w.len() > MAX_TOKEN_BYTES) {
            word.clear();
        }
        // What it makes of a strange tokenizer's tokens may panic: then this model has no grammars.
        let trie = || TokTrie::from(&TokRxInfo::new(vocab, first), &words).with_eos_tokens(&eos);
        let trie = std::panic::catch_unwind(std::panic::AssertUnwindSafe(trie));
        let trie = trie.map_err(|_| GrammarError::Tokenizer)?;
        drop(words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env)
            .map_err(|e| GrammarError::Grammar(printable(&e.to_string())))?;
        factory.quiet();
        #[allow(clippy::cast_possible_truncation, reason = "few")]
        let limits = ParserLimits {
            max_items_in_row: ROW_ITEMS as usize,
            initial_lexer_fuel: 200_000,
            step_lexer_fuel: 100_000,
            step_max_items: 20_000,
            max_lexer_states: LEXER_STATES as usize,
            max_grammar_size: 50_000,
            precompute_large_lexemes: false,
            verbose_errors: false,
        };
        *factory.limits_mut() = limits;
        let taken = Arc::new(AtomicUsize::new(0));
        Ok(Self { factory, taken })
    }

    /// Where `width` sequences begin in a grammar. It takes a while.
    ///
    /// # Errors
    /// [`GrammarError`].
    pub fn compile(&self, grammar: &Grammar, width: usize) -> Result<Guide, GrammarError> {
        let bad = |e: String| GrammarError::Grammar(e);
        check(grammar).map_err(bad)?;
        let permit = Permit::take(&self.taken, width)?;
        let top = top_level(grammar);
        // The stack of whoever asks may be small, and a thread that overflows it ends the process.
        let compiled = std::thread::scope(|s| {
            let thread = std::thread::Builder::new().stack_size(COMPILER_STACK_BYTES);
            let compile = || {
                let mut matcher = Matcher::new(self.factory.create_parser(top));
                let mask = matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
                let Some(first) = mask.first_bit_set() else {
                    return Err("it allows no text".to_owned());
                };
                // What is too wide behind its first token is refused now, and not in the middle of an answer.
                let mut ahead = matcher.deep_clone();
                let first = u32::try_from(first).map_err(|e| e.to_string())?;
                ahead.consume_token(first).map_err(|e| e.to_string())?;
                Ok(matcher)
            };
            let spawned = thread.spawn_scoped(s, compile);
            let spawned = spawned.map_err(|_| GrammarError::Thread)?;
            let done = spawned.join();
            let done = done.unwrap_or_else(|_| Err("it cannot be compiled".to_owned()));
            done.map_err(|e| match first_line(&e) {
                // What the library calls a grammar without any text.
                e if e.contains("NoExtensionBias") => bad("it allows no text".to_owned()),
                e => bad(e),
            })
        })?;
        let permit = Arc::new(permit);
        Ok(Guide {
            matcher: compiled,
            len: 0,
            items: 0,
            counted: None,
            permit,
        })
    }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    printable(&line.chars().take(300).collect::<String>())
}

/// Sizes, before anything is made of them.
fn check(grammar: &Grammar) -> Result<(), String> {
    let too_long = |len: usize, most: usize| match len {
        0 => Err("it is empty".to_owned()),
        _ if len > most => Err(format!("it has {len} bytes: use at most {most}")),
        _ => Ok(()),
    };
    match grammar {
        Grammar::JsonSchema(schema) => {
            if !schema.is_object() {
                return Err("a schema is an object".to_owned());
            }
            too_long(schema.to_string().len(), MAX_GRAMMAR_BYTES)?;
            if depth(schema) > MAX_SCHEMA_DEPTH {
                let message = format!("it is deeper than {MAX_SCHEMA_DEPTH}");
                return Err(message);
            }
            if let Some(n) = widest(schema).filter(|n| *n > MAX_PROPERTIES) {
                return Err(format!(
                    "an object has {n} properties: use at most {MAX_PROPERTIES}"
                ));
            }
            linked(schema)
        }
        Grammar::Regex(regex) => {
            too_long(regex.len(), MAX_REGEX_BYTES)?;
            shallow(regex)
        }
        Grammar::Lark(text) => {
            too_long(text.len(), MAX_LARK_BYTES)?;
            shallow(text)?;
            // A schema inside would go by none of a schema's limits.
            if text.contains("%json") {
                return Err("`%json` is not taken in a Lark grammar: send a JSON schema".to_owned());
            }
            let rules = text.lines().filter(|l| l.contains(':')).count();
            if rules > MAX_RULES {
                return Err(format!("it has {rules} rules: use at most {MAX_RULES}"));
            }
            Ok(())
        }
        Grammar::Choice(all) => {
            if all.is_empty() || all.iter().any(String::is_empty) {
                return Err("there is no choice, or an empty one".to_owned());
            }
            if all.len() > MAX_CHOICES {
                return Err(format!(
                    "{} are too many: use at most {MAX_CHOICES}",
                    all.len()
                ));
            }
            too_long(all.iter().map(String::len).sum(), MAX_GRAMMAR_BYTES)
        }
    }
}

/// Whether brackets are not too deep for parsers that recurse; those in texts and classes count too.
fn shallow(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for c in text.bytes() {
        match c {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_BRACKETS {
            return Err(format!("its brackets are more than {MAX_BRACKETS} deep"));
        }
    }
    Ok(())
}

/// Whether a chain of `$ref`s is not too long for a compiler that recurses, which enters each at most once at a time.
fn linked(schema: &Value) -> Result<(), String> {
    let mut levels = depth(schema);
    let mut seen = std::collections::BTreeSet::new();
    let mut rest = vec![schema];
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(all) => rest.extend(all),
            Value::Object(all) => {
                rest.extend(all.values());
                let Some(Value::String(to)) = all.get("$ref") else {
                    continue;
                };
                if !seen.insert(to) {
                    continue;
                }
                let target = to.strip_prefix('#').and_then(|p| schema.pointer(p));
                levels += target.map_or(MAX_SCHEMA_DEPTH, depth).max(1);
                if levels > MAX_LINKED_DEPTH {
                    return Err(format!(
                        "it and what its `$ref`s name are deeper than {MAX_LINKED_DEPTH} together"
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Properties of the object that has the most: any may come next, and a parser keeps items of all.
fn widest(value: &Value) -> Option<usize> {
    match value {
        Value::Array(all) => all.iter().filter_map(widest).max(),
        Value::Object(all) => {
            let own = all.get("properties").and_then(Value::as_object);
            let inner = all.values().filter_map(widest).max();
            own.map(Map::len).max(inner)
        }
        _ => None,
    }
}

/// JSON inside each other; parsed JSON is at most 128 deep.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(all) => 1 + all.iter().map(depth).max().unwrap_or(0),
        Value::Object(all) => 1 + all.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn top_level(grammar: &Grammar) -> TopLevelGrammar {
    match grammar {
        Grammar::JsonSchema(schema) => {
            let mut schema = schema.clone();
            if let Some(all) = schema.as_object_mut() {
                // A model that likes spaces would write them for ever.
                // Options are ours: a client's could let through what is not kept to.
                let compact = serde_json::json!({ "whitespace_flexible": false });
                all.insert("x-guidance".to_owned(), compact);
            }
            TopLevelGrammar::from_json_schema(schema)
        }
        Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Grammar::Choice(all) => {
            let all: Vec<String> = all.iter().map(|c| Value::from(&**c).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: {}", all.join(" | ")))
        }
        Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
    }
}

/// Room for the sequences of one request, until all are gone.
struct Permit {
    taken: Arc<AtomicUsize>,
    width: usize,
}

impl Permit {
    fn take(taken: &Arc<AtomicUsize>, width: usize) -> Result<Self, GrammarError> {
        if width > MAX_GUIDES {
            return Err(GrammarError::TooMany(width));
        }
        let add = |n: usize| n.checked_add(width).filter(|n| *n <= MAX_GUIDES);
        taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add)
            .map_err(|_| GrammarError::Busy)?;
        let taken = Arc::clone(taken);
        Ok(Self { taken, width })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.width, Ordering::AcqRel);
    }
}

/// Where a sequence stands in its grammar.
pub struct Guide {
    matcher: Matcher,
    /// Tokens taken in.
    len: u32,
    /// Items that its parser made so far, kept or not.
    items: u64,
    /// Where they were counted last.
    counted: Option<u32>,
    permit: Arc<Permit>,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guide({} tokens, {} items)", self.len, self.items)
    }
}

/// Tokens that may come next, a bit for each.
#[derive(Debug)]
pub struct Mask(SimpleVob);

impl Mask {
    /// Whether a token may come.
    #[must_use]
    pub fn allows(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }
}

impl Guide {
    /// The same place, for another sequence: nothing is shared with it.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            len: self.len,
            items: self.items,
            counted: self.counted,
            permit: Arc::clone(&self.permit),
        }
    }

    /// Tokens taken in.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether it stands at the start.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What may come next: an end alone, where the text is whole.
    ///
    /// # Errors
    /// [`GrammarError::Grammar`] where that is too much work.
    pub fn mask(&mut self) -> Result<Mask, GrammarError> {
        let mask = self.matcher.compute_mask_or_eos();
        let mask = mask.map_err(|e| too_much(&e))?;
        if self.counted != Some(self.len) {
            let step = self.matcher.last_step_stats().map_err(|e| too_much(&e))?;
            self.items += step.all_items as u64;
            self.counted = Some(self.len);
        }
        if self.items > PLACE_ITEMS {
            let message = format!("it needs more than {PLACE_ITEMS} items of a parser");
            return Err(GrammarError::Grammar(message));
        }
        Ok(Mask(mask))
    }

    /// Goes on by a token.
    ///
    /// # Errors
    /// [`GrammarError::Grammar`] where it may not come.
    pub fn push(&mut self, token: u32) -> Result<(), GrammarError> {
        if self.counted != Some(self.len) {
            // Whoever goes on without a look, as after it gave way, meets its limit at the same token.
            self.mask()?;
        }
        self.len += 1;
        self.matcher.consume_token(token).map_err(|e| too_much(&e))
    }
}

fn too_much(e: &dyn std::fmt::Display) -> GrammarError {
    GrammarError::Grammar(first_line(&e.to_string()))
}

#[cfg(test)]
mod hostile;

#[cfg(test)]
mod tests {
    use plimsoll_schedule::{RequestId, SeqEvent};
    use plimsoll_units::SeqId;

    use super::*;
    use crate::sample::{Sampling, SamplingParams};
    use crate::text::{Stops, TokenizerConfig};
    use crate::{Choices, Chooser as _};

    /// A vocabulary of bytes and some pairs, whose last token ends.
    pub(super) fn tokenizer() -> (Tokenizer, u32) {
        tokenizer_with(&[])
    }

    pub(super) fn tokenizer_with(more: &[String]) -> (Tokenizer, u32) {
        let mut vocab = serde_json::Map::new();
        for byte in 0..=u8::MAX {
            let sign = crate::text::byte_sign(byte);
            vocab.insert(sign.to_string(), vocab.len().into());
        }
        let mut merges = Vec::new();
        for (a, b) in [("a", "b"), ("b", "-"), ("ab", "-"), ("-", "1")] {
            vocab.insert(format!("{a}{b}"), vocab.len().into());
            merges.push(serde_json::json!([a, b]));
        }
        for word in more {
            vocab.insert(word.clone(), vocab.len().into());
        }
        let end = vocab.len();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [{ "id": end, "content": "</s>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false }],
            "normalizer": null,
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
            "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges },
        });
        let json = serde_json::to_vec(&json).unwrap();
        let t = Tokenizer::from_json(&json, "x", &TokenizerConfig::default()).unwrap();
        (t, u32::try_from(end).unwrap())
    }

    /// Beside all texts of a grammar: a token may come if a text goes on with it.
    #[test]
    fn masks_are_those_of_all_texts() {
        let (t, end) = tokenizer();
        let bytes = t.token_bytes().unwrap();
        let grammars = Grammars::new(&t, end + 3, &[end]).unwrap();
        let mut texts = Vec::new();
        for a in ["a", "b", "c"] {
            for b in ["a", "b", "c"] {
                texts.extend((0..10).map(|d| format!("{a}{b}-{d}")));
            }
        }
        let regex = Grammar::Regex("[a-c]{2}-[0-9]".to_owned());
        for grammar in [regex, Grammar::Choice(texts.clone())] {
            let guide = grammars.compile(&grammar, 1).unwrap();
            // From every place that tokens lead to.
            let mut places = vec![(Vec::new(), guide)];
            let mut looked = 0;
            while let Some((so_far, mut guide)) = places.pop() {
                let mask = guide.mask().unwrap();
                for token in 0..end + 3 {
                    let more = bytes.get(token as usize).map_or(&[][..], |b| b);
                    let next = [&so_far[..], more].concat();
                    let want = match token {
                        _ if token == end => texts.iter().any(|t| t.as_bytes() == so_far),
                        _ if token > end => false,
                        _ => texts.iter().any(|t| t.as_bytes().starts_with(&next)),
                    };
                    assert_eq!(mask.allows(token), want, "{token} after {so_far:?}");
                    if want && token != end && next.len() < 4 {
                        // The place that is left does not move with the one that goes on.
                        let mut fork = guide.fork();
                        fork.push(token).unwrap();
                        places.push((next, fork));
                    }
                }
                looked += 1;
            }
            assert!(looked > 20);
        }
        assert_eq!(grammars.taken.load(Ordering::Relaxed), 0);
    }

    /// Their places stayed taken, and a later sequence of the same number could keep to a grammar that nobody asked for.
    #[test]
    fn who_was_in_flight_when_the_engine_began_anew_keeps_no_place() {
        let (t, end) = tokenizer();
        let grammars = Grammars::new(&t, end + 1, &[end]).unwrap();
        let guide = grammars.compile(&Grammar::Regex("a".to_owned()), MAX_GUIDES);
        let params = SamplingParams::new(Sampling::default(), end + 1, &[], 8).unwrap();
        let mut choices = Choices::new(end + 1, 1, None);
        let (id, stops) = (RequestId(1), Stops::default());
        choices.expect_guided(id, &[0], params, stops, Some(guide.unwrap()));
        choices.event(&SeqEvent::Start {
            seq: SeqId(0),
            request: id,
            index: 0,
        });
        assert_eq!(grammars.taken.load(Ordering::Relaxed), MAX_GUIDES);
        choices.restart();
        assert_eq!(grammars.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_place_has_so_many_items_however_it_got_there() {
        let (t, end) = tokenizer();
        let grammars = Grammars::new(&t, end + 1, &[end]).unwrap();
        // Its parser keeps every way in which the text may have come about.
        let grammar = Grammar::Lark("start: \"a\" | \"b\" | start start".to_owned());
        let a = t.id("a").unwrap();
        let lasts = |looks: bool| {
            let mut guide = grammars.compile(&grammar, 1).unwrap();
            for n in 0..2_000 {
                let mask = if looks {
                    guide.mask().map(|m| m.allows(a))
                } else {
                    Ok(true)
                };
                let done = mask.and_then(|allowed| {
                    assert!(allowed);
                    guide.push(a)
                });
                if let Err(e) = done {
                    assert!(e.to_string().contains("items of a parser"), "{e}");
                    return n;
                }
            }
            panic!("it has no end");
        };
        // As one that gave way and goes through its tokens again.
        assert_eq!(lasts(true), lasts(false));
    }

    #[test]
    fn room_is_given_back() {
        let (t, end) = tokenizer();
        let grammars = Grammars::new(&t, end + 1, &[end]).unwrap();
        let a = Grammar::Regex("a".to_owned());
        let all = grammars.compile(&a, MAX_GUIDES).unwrap();
        let fork = all.fork();
        assert_eq!(grammars.compile(&a, 1).unwrap_err(), GrammarError::Busy);
        drop(all);
        assert_eq!(grammars.compile(&a, 1).unwrap_err(), GrammarError::Busy);
        drop(fork);
        assert!(grammars.compile(&a, 1).is_ok());
        assert!(
            Grammars::new(&t, end, &[end]).is_err(),
            "its end has no logit"
        );
    }
}
