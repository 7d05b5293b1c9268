//! What every handler sees.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use plimsoll_runtime::guide::{GrammarError, Grammars};
use plimsoll_runtime::text::{ChatTemplate, Disarmed, GenerationConfig, Tokenizer};
use plimsoll_schedule::{Limits, Room};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::code::Code;
use crate::engine::Handle;
use crate::error::ApiError;
use crate::metrics::{Planned, Scrape};
use crate::tenants::Tenants;
use crate::{Options, docs, openapi};

/// How long a body may wait for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// Room is counted in pieces of this size.
const ROOM_BYTES: usize = 1024;

/// What is known of the model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) generation: GenerationConfig,
    /// Where answers can be kept to grammars.
    pub(crate) grammars: Result<Grammars, GrammarError>,
    pub(crate) limits: Limits,
    /// What could ever be let in.
    pub(crate) room: Room,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) model: Model,
    pub(crate) engine: Handle,
    pub(crate) options: Options,
    pub(crate) tenants: Arc<Tenants>,
    /// Whether it goes down when whoever is in flight has ended.
    draining: AtomicBool,
    /// Whether nobody in flight is waited for any more.
    cut: watch::Sender<bool>,
    /// Requests between their body and the last byte of their answer.
    flying: AtomicUsize,
    /// Memory for bodies that are read, parsed and tokenised.
    bodies: Arc<Semaphore>,
    /// Memory for requests from then on.
    requests: Arc<Semaphore>,
    /// What was planned.
    pub(crate) planned: Planned,
    /// All metrics.
    pub(crate) scrape: Scrape,
    /// Room for those who watch the memory.
    pub(crate) watchers: Arc<Semaphore>,
    /// Places for those who look once.
    pub(crate) looks: Arc<Semaphore>,
    pub(crate) started_s: u64,
    /// What the server says of its interface, once somebody has asked.
    described: OnceLock<Described>,
    /// Secret of this process, and a count: ids that nobody guesses.
    secret: RandomState,
    count: AtomicU64,
}

/// The interface, for programs and for people.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) json: Bytes,
    pub(crate) html: Bytes,
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
        let planned = Planned {
            regions: options.planned.clone(),
            peak: options.peak,
        };
        let name = &options.name;
        Self {
            scrape: Scrape::new(&engine.metrics, &engine.published, &planned, name),
            planned,
            watchers: Arc::new(Semaphore::new(options.watchers)),
            looks: Arc::new(Semaphore::new(options.looks)),
            bodies: Arc::new(Semaphore::new(options.bodies_bytes / ROOM_BYTES)),
            requests: Arc::new(Semaphore::new(options.requests_bytes / ROOM_BYTES)),
            model,
            engine,
            tenants: Arc::new(Tenants::new(options.access.clone())),
            options,
            draining: AtomicBool::new(false),
            cut: watch::Sender::new(false),
            flying: AtomicUsize::new(0),
            started_s: now_s(),
            described: OnceLock::new(),
            secret: RandomState::new(),
            count: AtomicU64::new(0),
        }
    }

    /// Room for a body of so many bytes, when there is; it is others' when what comes back is dropped.
    pub(crate) async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let most = self.options.bodies_bytes / ROOM_BYTES;
        let pieces = bytes.div_ceil(ROOM_BYTES).clamp(1, most.max(1));
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.bodies).acquire_many_owned(pieces);
        match tokio::time::timeout(ROOM_TIMEOUT, room).await {
            Ok(Ok(room)) => Ok(room),
            _ => Err(ApiError::crowded()),
        }
    }

    /// Room for requests of so many bytes, if there is.
    pub(crate) fn requests_room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let most = self.options.requests_bytes / ROOM_BYTES;
        let pieces = u32::try_from(bytes.div_ceil(ROOM_BYTES).min(most)).unwrap_or(u32::MAX);
        Arc::clone(&self.requests)
            .try_acquire_many_owned(pieces)
            .ok()
    }

    /// Tokens of a text that may be long.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ApiError> {
        self.fits(text)?;
        Ok(self.model.tokenizer.encode(text, special)?)
    }

    /// Tokens of a prompt that a template made.
    pub(crate) fn encode_chat(
        &self,
        text: &str,
        disarmed: &Disarmed,
        special: bool,
    ) -> Result<Vec<u32>, ApiError> {
        self.fits(text)?;
        let tokenizer = &self.model.tokenizer;
        Ok(tokenizer.encode_chat(text, disarmed, special)?)
    }

    /// Whether a text is one that could fit, as far as its bytes tell.
    fn fits(&self, text: &str) -> Result<(), ApiError> {
        let most = self.options.text_bytes;
        if text.len() > most {
            let length = self.model.limits.max_model_len;
            let message = format!(
                "the text has {} bytes, and one of more than {most} is not read here: sequences have at most {length} tokens",
                text.len()
            );
            return Err(ApiError::invalid(Code::ContextLengthExceeded, message).param("prompt"));
        }
        Ok(())
    }

    pub(crate) fn described(&self) -> &Described {
        self.described.get_or_init(|| {
            let planner = self.options.planner.as_ref().map(|p| &p.schemas);
            let document = openapi::document(planner);
            Described {
                json: document.to_string().into(),
                html: docs::page(&document).into(),
            }
        })
    }

    /// From now on nobody new is served.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// From now on nobody is waited for: whoever is in flight ends by an error.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub(crate) fn is_cut(&self) -> bool {
        *self.cut.borrow()
    }

    /// Waits until a request that began then must end, and says why.
    pub(crate) async fn over(self: Arc<Self>, began: Instant) -> ApiError {
        let mut cut = self.cut.subscribe();
        let limit = self.options.request_timeout;
        tokio::select! {
            // Its sender is here.
            _ = cut.wait_for(|cut| *cut) => ApiError::draining(),
            () = tokio::time::sleep_until((began + limit).into()) => ApiError::too_long(limit),
        }
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

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
