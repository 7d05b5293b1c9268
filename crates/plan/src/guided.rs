//! Limits of answers that keep to a grammar, for who plans memory for them and for who keeps them.

use plimsoll_units::{Bytes, SizeOverflow};

/// Sequences that may keep to a grammar at once.
pub const GUIDES: u64 = 8;
/// States of a sequence's lexer at most.
pub const LEXER_STATES: u64 = 1000;
/// Items of a row of a sequence's parser at most: enough for 1024 choices, and for objects of 512 properties.
pub const ROW_ITEMS: u64 = 2500;
/// Items that a sequence's parser makes at most, kept or not. Measured: some tens for 400 tokens of JSON.
pub const PLACE_ITEMS: u64 = 1 << 17;
/// Stack to compile a grammar on: compiling is recursive.
pub const COMPILER_STACK_MIB: u64 = 16;

/// A state of a lexer, and an item of a parser in a list that grows. The library says 1 to 2 kB of the former;
/// measured: 2.8 kB, for 1024 choices.
const LEXER_STATE: u64 = 3 << 10;
const ITEM: u64 = 16;
/// A grammar that is compiled, with the start in it, and what there is beside while it is compiled. Measured: 3.5 MB, and
/// 10 MB, for an object of 900 properties.
const COMPILED_MIB: u64 = 4;
const COMPILING_MIB: u64 = 12;
/// A token in the trees that masks are made of. Measured: 491, and 552 while they are made, for words that look like
/// none of each other.
pub const TRIE_TOKEN: u64 = 640;

/// A sequence's place in its grammar.
///
/// # Errors
/// [`SizeOverflow`].
pub fn place() -> Result<Bytes, SizeOverflow> {
    Bytes::product([LEXER_STATES, LEXER_STATE])?.add(Bytes::product([PLACE_ITEMS, ITEM])?)
}

/// A grammar and its start, while a request waits or runs.
///
/// # Errors
/// [`SizeOverflow`].
pub fn compiled() -> Result<Bytes, SizeOverflow> {
    Bytes::from_mib(COMPILED_MIB)
}

/// What compiling takes beside what stays of it.
///
/// # Errors
/// [`SizeOverflow`].
pub fn compiling() -> Result<Bytes, SizeOverflow> {
    Bytes::from_mib(COMPILER_STACK_MIB + COMPILING_MIB)
}
