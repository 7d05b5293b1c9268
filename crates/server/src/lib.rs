//! The engine behind OpenAI's HTTP interface.
//!
//! [`run`] takes an engine that is ready and a socket that is bound, and serves until it is told to stop. Promises:
//!
//! - one thread owns the engine and never waits for a reader: what a request yields lies in a mailbox of its own,
//!   which holds no more than the request may produce;
//! - a client that goes away takes its request with it: the pages are free by the next step;
//! - a request is checked once, before the engine sees it, and each mistake is one error that names the field;
//! - a panic ends what it happened in: a handler's request, or the requests in flight where it is the engine's.
//!
//! It does not know flags, files or the terminal. The shapes on the wire are OpenAI's, with vLLM's additions.

mod accept;
mod answer;
mod body;
mod code;
mod docs;
mod engine;
mod error;
mod live;
mod log;
mod logprobs;
mod mailbox;
pub mod memory;
mod metrics;
mod openapi;
mod page;
mod planning;
mod prepare;
mod reply;
mod restarts;
mod room;
mod routes;
mod screen;
mod socket;
mod state;
mod stream;
mod tenants;
mod tools;
mod wire;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plimsoll_runtime::Engine;
use plimsoll_runtime::guide::Grammars;
use plimsoll_runtime::text::{ChatTemplate, GenerationConfig, Tokenizer};
use plimsoll_schedule::{Executor, Limits, Log};
use plimsoll_units::Bytes;

pub use accept::Stop;
pub use code::error_codes;
pub use engine::Choosing;
pub use log::AccessLog;
pub use planning::{Patience, Planner, Unanswered};
pub use tenants::{Access, KeyDigest, Keys, Reload, Rules, digest};

/// How long the step under way may take after whoever is in it was cut off.
const LAST_STEP: Duration = Duration::from_secs(5);

/// A model that is ready, by its parts.
#[derive(Debug)]
pub struct Service<E, L> {
    /// Runs it.
    pub engine: Engine<E, L>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How it makes prompts of chats, where it does.
    pub template: Option<ChatTemplate>,
    /// How it is meant to be sampled.
    pub generation: GenerationConfig,
    /// What may be asked for.
    pub limits: Limits,
}

/// How it is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the model is called.
    pub name: String,
    /// Who gets anything but health.
    pub access: Access,
    /// Threads that talk to clients.
    pub threads: usize,
    /// Connections at once; more wait.
    pub connections: usize,
    /// The largest body.
    pub body_bytes: usize,
    /// All bodies at once, from their first byte until they are jobs of the engine; more wait.
    pub bodies_bytes: usize,
    /// The longest text that is made tokens.
    pub text_bytes: usize,
    /// What requests may hold in all, from when they were read until they are answered.
    pub requests_bytes: usize,
    /// Who may watch the memory as it changes.
    pub watchers: usize,
    /// Who may look at it, at metrics, or plan at once.
    pub looks: usize,
    /// Threads that read bodies, make tokens and write answers.
    pub workers: usize,
    /// The names that it answers to beside this machine's own; without, any.
    pub hosts: Option<Vec<String>>,
    /// What was planned, region by region.
    pub planned: Vec<(String, Bytes)>,
    /// The most that the process had in memory so far, where the system says.
    pub peak: Option<fn() -> Option<Bytes>>,
    /// What answers questions about plans, where something does.
    pub planner: Option<Planner>,
    /// Where requests are logged.
    pub access_log: Option<AccessLog>,
    /// How long a client may take for its headers.
    pub header_timeout: Duration,
    /// How long a client may take for its body.
    pub body_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long a client may take to read on.
    pub write_timeout: Duration,
    /// How long a request may wait for its first step.
    pub queue_timeout: Duration,
    /// How long a request may take from its headers to its end.
    pub request_timeout: Duration,
    /// How long whoever is in may take when it is told to stop; then they are cut off.
    pub drain_timeout: Duration,
    /// A step that takes longer is taken for a hang: health turns red.
    pub step_timeout: Duration,
    /// The engine begins anew at most three times within it; then the process ends, for whoever supervises it.
    pub restart_window: Duration,
}

impl Options {
    /// Defaults, for a model of this name.
    #[must_use]
    pub fn new(name: String) -> Self {
        Self {
            name,
            access: Access::open(),
            threads: 2,
            connections: 1024,
            body_bytes: 4 << 20,
            bodies_bytes: 16 << 20,
            text_bytes: 4 << 20,
            requests_bytes: 64 << 20,
            watchers: 4,
            looks: 4,
            workers: 2,
            hosts: None,
            planned: Vec::new(),
            peak: None,
            planner: None,
            access_log: None,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            queue_timeout: Duration::from_secs(600),
            request_timeout: Duration::from_secs(600),
            // Below the 30 s after which Kubernetes kills.
            drain_timeout: Duration::from_secs(25),
            step_timeout: Duration::from_secs(60),
            restart_window: Duration::from_secs(600),
        }
    }
}

/// Why a server ended otherwise than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The system refused a thread, a socket or a signal handler.
    #[error("the server cannot run: {0}")]
    System(#[from] std::io::Error),
    /// The engine's thread ended by a panic, and its requests with it.
    #[error("the engine stopped by a panic")]
    Engine,
    /// It was told twice, and did not wait for requests in flight.
    #[error("stopped before {0} requests had ended")]
    Cut(usize),
}

/// Serves until it is told to stop: once, whoever is in flight ends, or is cut off when that takes too long; twice,
/// nobody is waited for. The engine comes
/// back for a report, where there is one left.
///
/// # Errors
/// [`ServeError`].
pub fn run<E, L>(
    service: Service<E, L>,
    listener: TcpListener,
    options: Options,
    stop: Stop,
) -> (Result<(), ServeError>, Option<Engine<E, L>>)
where
    E: Executor + Choosing + Send + 'static,
    L: Log + Send + 'static,
{
    let Service {
        engine,
        tokenizer,
        template,
        generation,
        limits,
    } = service;
    let room = engine.scheduler().room();
    let tenants = options.access.tenants.iter().map(|t| t.name.clone());
    let metrics = metrics::Metrics::new(limits.max_model_len);
    let spawned = engine::spawn(
        engine,
        options.queue_timeout,
        options.restart_window,
        tenants.collect(),
        metrics,
    );
    let (handle, thread) = match spawned {
        Ok(both) => both,
        Err(e) => return (Err(e.into()), None),
    };
    let model = state::Model {
        grammars: Grammars::new(&tokenizer, limits.vocab, &generation.eos),
        tokenizer,
        template,
        generation,
        limits,
        room,
    };
    let state = Arc::new(state::State::new(model, handle, options));
    let served = accept::serve(&state, listener, stop);
    if let Some(log) = &state.options.access_log {
        log.end();
    }
    // Nobody can send a command any more: the engine's thread ends when it has done what it has.
    state.engine.close();
    if matches!(served, Err(ServeError::Cut(_))) {
        return (served, None);
    }
    if state.is_cut() {
        // Whoever was cut off is out before the next step; a step that hangs is not waited for.
        let began = Instant::now();
        while !thread.is_finished() {
            if began.elapsed() > LAST_STEP {
                return (served, None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    match thread.join() {
        Ok(Some(engine)) => (served, Some(engine)),
        Ok(None) | Err(_) => (served.and(Err(ServeError::Engine)), None),
    }
}
