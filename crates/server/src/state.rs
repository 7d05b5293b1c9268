//! What every handler sees.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use plimsoll_runtime::text::{ChatTemplate, GenerationConfig, Tokenizer};
use plimsoll_schedule::Limits;
use tokio::sync::Semaphore;

use crate::Options;
use crate::engine::Handle;
use crate::tenants::Tenants;

/// Bodies that are read, parsed and tokenised at once; more wait.
const BODIES: usize = 64;

/// What is known of the model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) generation: GenerationConfig,
    pub(crate) limits: Limits,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) model: Model,
    pub(crate) engine: Handle,
    pub(crate) options: Options,
    pub(crate) tenants: Arc<Tenants>,
    /// Whether it goes down when whoever is in flight has ended.
    draining: AtomicBool,
    /// Requests between their body and the last byte of their answer.
    flying: AtomicUsize,
    pub(crate) bodies: Semaphore,
    pub(crate) started_s: u64,
    /// Secret of this process, and a count: ids that nobody guesses.
    secret: RandomState,
    count: AtomicU64,
}

/// A request that is counted as in flight as long as this lives.
#[derive(Debug)]
pub(crate) struct Flying(Arc<State>);

impl Drop for Flying {
    fn drop(&mut self) {
        self.0.flying.fetch_sub(1, Ordering::AcqRel);
    }
}

impl State {
    pub(crate) fn new(model: Model, engine: Handle, options: Options) -> Self {
        Self {
            model,
            engine,
            tenants: Arc::new(Tenants::new(options.access.clone())),
            options,
            draining: AtomicBool::new(false),
            flying: AtomicUsize::new(0),
            bodies: Semaphore::new(BODIES),
            started_s: now_s(),
            secret: RandomState::new(),
            count: AtomicU64::new(0),
        }
    }

    /// From now on nobody new is served.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn fly(self: &Arc<Self>) -> Flying {
        self.flying.fetch_add(1, Ordering::AcqRel);
        Flying(Arc::clone(self))
    }

    pub(crate) fn flying(&self) -> usize {
        self.flying.load(Ordering::Acquire)
    }

    /// A number that differs each time, here and in any other process.
    pub(crate) fn draw(&self) -> u64 {
        let mut hasher = self.secret.build_hasher();
        hasher.write_u64(self.count.fetch_add(1, Ordering::Relaxed));
        hasher.finish()
    }

    /// Whether new requests are served, in a word, and why not where they are not.
    pub(crate) fn health(&self) -> (&'static str, Option<String>) {
        let now = self.engine.snapshot();
        let takes = now.stepping.map(|since| since.elapsed());
        if now.dead {
            let why = "the engine stopped, and the process ends";
            ("failed", Some(why.to_owned()))
        } else if now.restarting {
            let why = "the engine begins anew after a fault";
            ("restarting", Some(why.to_owned()))
        } else if let Some(takes) = takes.filter(|t| *t > self.options.step_timeout) {
            let why = format!("a step has taken {} s so far", takes.as_secs());
            ("stuck", Some(why))
        } else if self.is_draining() {
            ("draining", Some("the server is shutting down".to_owned()))
        } else {
            ("ready", None)
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}
