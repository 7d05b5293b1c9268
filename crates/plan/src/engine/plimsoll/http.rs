//! What our server's HTTP side may hold at once. The server is told these limits, so that they are bounds.

use plimsoll_units::{Bytes, SizeOverflow};

use crate::guided::{GUIDES, TRIE_TOKEN, compiled, compiling, place};
use crate::settings::Http;
use crate::term::{Kind, Region, Term};

/// Threads that talk to clients, wait for signals and write the log; and those that read bodies, make tokens and write
/// answers.
const THREADS: u64 = 4;
const WORKERS: u64 = 2;
/// What a thread's stack and allocator keep: stacks of 8 MiB are touched where templates and tokenizers recurse.
const THREAD_KIB: u64 = 1024;
/// A connection: what it reads ahead, what waits to be written, one piece of a stream, its task.
const CONNECTION_KIB: u64 = 64;
/// Bodies that are being received, and what their buffers may be larger for growing.
const BODIES_MIB: u64 = 8;
const GROWTH: u64 = 2;
/// A byte of a body while it is parsed: at most a value of a list, as tokens or as JSON. Measured: 31 for a list of ids
/// to decode, 25 for a list of empty lists.
const PARSED: u64 = 40;
/// A byte of text while it becomes tokens. Measured: 222 for `a a a`, on the demo model.
const ENCODED: u64 = 320;
/// Bytes of text for each token of the longest sequence: texts of more are refused unread. English has 4 to 5.
const TEXT: u64 = 16;
const LEAST_TEXT: u64 = 64 << 10;
/// What a connection's request takes however short it is: most of it is a stream that nobody reads.
const STREAM_KIB: u64 = 70;
/// Their tokens, where they wait, run or are written: at least so much, and every token of all sequences that run.
const REQUESTS_MIB: u64 = 64;
const TOKEN: u64 = 64;

/// Who may watch the memory as it changes, and who may look at once.
const WATCHERS: u64 = 4;
const LOOKS: u64 = 4;
/// What one of them is told: up to 1,000 requests as values and as JSON, and all pages, no two alike.
const LOOK_KIB: u64 = 1536;
const LOOK_PAGE: u64 = 64;
/// One plan at a time, of a model that is described in one question. Measured: 13 MiB for 1,024 layers of 1,024 experts.
const PLANNING_MIB: u64 = 32;

/// The limits that a server keeps, by the same figures as its terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Threads that talk to clients.
    pub threads: u64,
    /// Threads that work on bodies and answers.
    pub workers: u64,
    /// Connections at once.
    pub connections: u64,
    /// The largest body.
    pub body: Bytes,
    /// All bodies that are being received.
    pub bodies: Bytes,
    /// The longest text that is made tokens.
    pub text: Bytes,
    /// All that requests hold from when they were read until they are answered.
    pub requests: Bytes,
    /// Those who watch the memory as it changes.
    pub watchers: u64,
    /// Those who look at it, at metrics, or plan at once.
    pub looks: u64,
}

impl Http {
    /// The limits of a server that runs so many sequences of so many tokens.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn limits(&self, sequences: u64, length: u64) -> Result<HttpLimits, SizeOverflow> {
        let text = Bytes::product([length, TEXT])?.max(Bytes::new(LEAST_TEXT));
        let tokens = Bytes::product([sequences, length, TOKEN])?;
        let streams = Bytes::product([self.connections, STREAM_KIB, 1024])?;
        Ok(HttpLimits {
            // Two talk; the others are ours.
            threads: 2,
            workers: WORKERS,
            connections: self.connections,
            body: self.body,
            bodies: Bytes::from_mib(BODIES_MIB)?.max(self.body),
            text: text.min(self.body),
            requests: tokens.max(Bytes::from_mib(REQUESTS_MIB)?).add(streams)?,
            watchers: WATCHERS,
            looks: LOOKS,
        })
    }
}

/// Terms of the reserve.
pub(super) fn terms(
    http: &Http,
    sequences: u64,
    length: u64,
    vocab: u64,
    pages: u64,
) -> Result<Vec<Term>, SizeOverflow> {
    let limits = http.limits(sequences, length)?;
    let bound = |name: &str, bytes: Bytes| {
        let term = Term::exact(Region::Reserve, name, bytes);
        term.kind(Kind::Bound).shared()
    };
    let threads = THREADS + WORKERS;
    let parsed = Bytes::product([limits.workers, limits.body.get(), PARSED])?;
    let encoded = Bytes::product([limits.workers, limits.text.get(), ENCODED])?;
    let places = sequences.min(GUIDES);
    let (place, compiled, compiling) = (place()?, compiled()?, compiling()?);
    let guided = Bytes::product([vocab, TRIE_TOKEN])?
        .add(Bytes::product([places, place.get()])?)?
        .add(Bytes::product([GUIDES, compiled.get()])?)?
        .add(Bytes::product([WORKERS, compiling.get()])?)?;
    let look = Bytes::product([LOOK_KIB, 1024])?.add(Bytes::product([pages, LOOK_PAGE])?)?;
    let watching = Bytes::product([limits.watchers + limits.looks, look.get()])?
        .add(Bytes::from_mib(PLANNING_MIB)?)?;
    Ok(vec![
        bound("structured output", guided)
            .formula(format!(
                "vocabulary x {TRIE_TOKEN} + min(R, {GUIDES}) x place + {GUIDES} x compiled grammar + workers x compiling"
            ))
            .input("vocabulary", vocab)
            .input("R", sequences)
            .input("place", place.get())
            .input("compiled grammar", compiled.get())
            .input("workers", WORKERS)
            .input("compiling", compiling.get()),
        bound("HTTP threads", Bytes::product([threads, THREAD_KIB, 1024])?)
            .formula(format!("threads x {THREAD_KIB} KiB"))
            .input("threads", threads),
        bound(
            "HTTP connections",
            Bytes::product([limits.connections, CONNECTION_KIB, 1024])?,
        )
        .formula(format!("connections x {CONNECTION_KIB} KiB"))
        .input("connections", limits.connections),
        bound(
            "HTTP bodies",
            Bytes::product([limits.bodies.get(), GROWTH])?
                .add(parsed)?
                .add(encoded)?,
        )
        .formula(format!(
            "all bodies x {GROWTH} + workers x (largest body x {PARSED} + longest text x {ENCODED})"
        ))
        .input("all bodies", limits.bodies.get())
        .input("workers", limits.workers)
        .input("largest body", limits.body.get())
        .input("longest text", limits.text.get()),
        bound("HTTP watching", watching)
            .formula(format!(
                "{PLANNING_MIB} MiB for a plan + (watchers + looks) x ({LOOK_KIB} KiB + pages x {LOOK_PAGE})"
            ))
            .input("watchers", limits.watchers)
            .input("looks", limits.looks)
            .input("pages", pages),
        bound("HTTP requests", limits.requests)
            .formula(format!(
                "connections x {STREAM_KIB} KiB + the larger of {REQUESTS_MIB} MiB and R x longest sequence x {TOKEN}"
            ))
            .input("connections", limits.connections)
            .input("R", sequences)
            .input("longest sequence", length),
    ])
}
