//! The thread that owns the engine.
//!
//! It takes all commands there are without waiting, carries out a step, and waits for a command only where there is
//! nothing to do. A mailbox whose reader is gone is a request that is cancelled: no command is needed for that, so none
//! can be lost or find a full channel.
//!
//! A panic, or steps that fail whoever asks, ends the requests in flight, and the engine begins anew in the memory that
//! it has: weights stay, nothing else is believed. Commands wait meanwhile. After a few times within a window
//! (`restarts.rs`) it gives up.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plimsoll_kv::{TenantId, Usage as Pages};
use plimsoll_runtime::Usage;
use plimsoll_runtime::guide::Guide;
use plimsoll_runtime::sample::{Logprobs, SamplingParams, TokenLogprobs};
use plimsoll_runtime::text::Stops;
use plimsoll_runtime::{Backend, ChoiceError, Choices, Engine, Runner};
use plimsoll_schedule::{
    Ended, Executor, Fan, Log, Notice, Reason, Refusal, Request, RequestId, Stats,
};
use tokio::sync::watch;

use crate::code::Code;
use crate::live::{Live, Recent};
use crate::mailbox::{Events, Mailbox, mailbox};
use crate::memory::{MOST_REQUESTS, Preempted, Way};
use crate::metrics::{Metrics, Reason as How, Timeline};
use crate::restarts::Restarts;
use crate::state::now_ms;
use crate::tenants::Visit;

/// Commands that may wait for the engine to look.
const COMMANDS: usize = 1024;
/// Steps that may fail one after another; then whoever is in flight is given up.
const FAILURES: u32 = 3;
/// Times that may happen without a step between that does not fail; then it is not the requests.
const GIVEN_UP: u32 = 3;
/// What is in the engine is taken down no more often than this, and only while somebody looks.
const LOOKS_APART: Duration = Duration::from_millis(100);
/// How long whoever looks waits for the step under way; then he sees what was.
const LOOK_TIMEOUT: Duration = Duration::from_millis(250);

/// An executor whose tokens are chosen by [`Choices`].
pub trait Choosing {
    /// They.
    fn choices(&mut self) -> &mut Choices;

    /// What each region of memory took so far.
    fn usage(&self) -> Vec<Usage> {
        Vec::new()
    }
}

impl<B: Backend> Choosing for Runner<B, Choices> {
    fn choices(&mut self) -> &mut Choices {
        self.chooser_mut()
    }

    fn usage(&self) -> Vec<Usage> {
        Self::usage(self)
    }
}

/// One prompt, checked.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) params: SamplingParams,
    pub(crate) stops: Stops,
    /// What its tenant is charged by.
    pub(crate) visit: Arc<Visit>,
    /// Where its answers begin in their grammar, where they have one.
    pub(crate) guide: Option<Guide>,
}

/// Prompts of one client, let in together or not at all.
#[derive(Debug)]
struct Submit {
    jobs: Vec<Job>,
    /// Whether tokens are told as they come, or only the end.
    streams: bool,
    events: Mailbox,
    from: Asker,
}

/// Which answer a client's prompts are for, and since when it waits.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(crate) id: Arc<str>,
    pub(crate) arrived: Instant,
}

#[derive(Debug)]
enum Command {
    Submit(Submit),
    /// Somebody looks at the memory.
    Look,
    Drain,
}

/// What happens to a client's prompts, each by its place among them.
#[derive(Debug)]
pub(crate) enum Event {
    /// All were let in; first of all events.
    Accepted,
    /// None was let in; the only event.
    Refused(Refusal),
    /// Log probabilities of a prompt, where they were asked for, before its first token.
    Prompt(usize, TokenLogprobs),
    /// Another token.
    Token(usize, Token),
    /// Steps fail, and would for ever; the last event.
    Failed(String),
    /// It waited too long for its first step; the last event.
    Expired,
    /// Too many events lie here; the last one.
    Slow,
    /// A prompt has all its answers.
    Finished(usize, Box<Finished>),
}

impl Event {
    /// What it takes in a mailbox, where there may be many of its kind.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Token(_, token) => size_of::<Self>() + size_of_val(&*token.top),
            _ => 0,
        }
    }
}

/// A token that came.
#[derive(Debug)]
pub(crate) struct Token {
    /// The sequence's place among the prompt's.
    pub(crate) index: u32,
    pub(crate) id: u32,
    pub(crate) logprob: f32,
    /// Whether it ends its sequence.
    pub(crate) ends: bool,
    /// The likeliest tokens at its place, where they were asked for.
    pub(crate) top: Vec<(u32, f32)>,
}

/// The end of a prompt.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) ended: Ended,
    pub(crate) logprobs: Logprobs,
    /// Why nothing could be chosen, where that is how it ended.
    pub(crate) error: Option<Why>,
}

/// Why nothing could be chosen.
#[derive(Debug)]
pub(crate) struct Why {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl From<&ChoiceError> for Why {
    fn from(e: &ChoiceError) -> Self {
        Self {
            code: match e {
                ChoiceError::Sample(_) => Code::NumericalError,
                ChoiceError::Text(_) => Code::InternalError,
                ChoiceError::Grammar(_) | ChoiceError::DeadEnd => Code::GrammarFailed,
            },
            message: e.to_string(),
        }
    }
}

/// What the engine does now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) preempted: usize,
    /// Pages that sequences hold.
    pub(crate) pages_held: u32,
    pub(crate) pages: u32,
    /// Places in swap space.
    pub(crate) swap_pages: u32,
    /// Bytes of a page, and the most tokens of one.
    pub(crate) page_bytes: u64,
    pub(crate) block_tokens: u32,
    /// The pool, by state and by what its bytes are.
    pub(crate) usage: Pages,
    /// Pages that each tenant is charged for.
    pub(crate) charged: Vec<u64>,
    /// What each region of memory took so far.
    pub(crate) regions: Vec<Usage>,
    pub(crate) stats: Stats,
    /// Since when the step under way is under way.
    pub(crate) stepping: Option<Instant>,
    /// Times the engine began anew.
    pub(crate) restarts: u32,
    /// It is about to.
    pub(crate) restarting: bool,
    /// Nothing comes of it any more.
    pub(crate) dead: bool,
}

/// Why prompts were not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// Too many commands wait.
    Full,
    /// The engine is gone, or going.
    Closed,
}

/// What the engine's thread tells, for everybody to read.
#[derive(Debug)]
pub(crate) struct Published {
    now: Mutex<Snapshot>,
    /// Names of tenants, by their places.
    pub(crate) tenants: Vec<String>,
}

impl Published {
    /// What happened last.
    pub(crate) fn snapshot(&self) -> Snapshot {
        lock(&self.now).clone()
    }
}

/// The way to the engine.
#[derive(Debug)]
pub(crate) struct Handle {
    commands: Mutex<Option<SyncSender<Command>>>,
    next: AtomicU64,
    pub(crate) published: Arc<Published>,
    pub(crate) metrics: Arc<Metrics>,
    live: watch::Receiver<Arc<Live>>,
    /// Whether the engine has been asked to look, and has not yet.
    looking: Arc<AtomicBool>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is behind these locks is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    /// An id that no other request has.
    pub(crate) fn id(&self) -> RequestId {
        RequestId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// What happened last.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.published.snapshot()
    }

    /// What is in the engine, one by one: as it is now, or as it was where it does not say soon.
    pub(crate) async fn look(&self) -> Arc<Live> {
        let mut live = self.live.clone();
        let is_old = live.borrow_and_update().taken.elapsed() >= LOOKS_APART;
        if is_old {
            if !self.looking.swap(true, Ordering::AcqRel) && self.send(Command::Look).is_err() {
                self.looking.store(false, Ordering::Release);
            }
            // A step that takes long, or the end of the engine.
            let _ = tokio::time::timeout(LOOK_TIMEOUT, live.changed()).await;
        }
        let now = live.borrow();
        Arc::clone(&now)
    }

    /// Hands prompts over; dropping what comes back cancels them.
    pub(crate) fn submit(
        &self,
        jobs: Vec<Job>,
        streams: bool,
        from: Asker,
    ) -> Result<Events, NotSent> {
        let (events, receiver) = mailbox();
        let submit = Submit {
            jobs,
            streams,
            events,
            from,
        };
        self.send(Command::Submit(submit)).map(|()| receiver)
    }

    /// Nobody is let in any more.
    pub(crate) fn drain(&self) -> Result<(), NotSent> {
        self.send(Command::Drain)
    }

    /// No more commands.
    pub(crate) fn close(&self) {
        lock(&self.commands).take();
    }

    fn send(&self, command: Command) -> Result<(), NotSent> {
        let commands = lock(&self.commands);
        let sender = commands.as_ref().ok_or(NotSent::Closed)?;
        sender.try_send(command).map_err(|e| match e {
            TrySendError::Full(_) => NotSent::Full,
            TrySendError::Disconnected(_) => NotSent::Closed,
        })
    }
}

/// The engine's thread, and what it gives back.
pub(crate) type Thread<E, L> = JoinHandle<Option<Engine<E, L>>>;

/// Starts the engine's thread. It gives the engine back when it has been drained or nobody can send commands, and
/// nothing where it panicked too often within `restart_window`.
///
/// Whoever waits longer than `queue_timeout` for a first step has none.
pub(crate) fn spawn<E, L>(
    engine: Engine<E, L>,
    queue_timeout: Duration,
    restart_window: Duration,
    tenants: Vec<String>,
    metrics: Metrics,
) -> std::io::Result<(Handle, Thread<E, L>)>
where
    E: Executor + Choosing + Send + 'static,
    L: Log + Send + 'static,
{
    let (sender, receiver) = sync_channel(COMMANDS);
    let published = Arc::new(Published {
        now: Mutex::default(),
        tenants,
    });
    let metrics = Arc::new(metrics);
    let (lives, live) = watch::channel(Arc::new(Live::default()));
    let looking = Arc::new(AtomicBool::new(false));
    let handle = Handle {
        commands: Mutex::new(Some(sender)),
        next: AtomicU64::new(0),
        published: Arc::clone(&published),
        metrics: Arc::clone(&metrics),
        live,
        looking: Arc::clone(&looking),
    };
    let thread = std::thread::Builder::new().name("engine".to_owned());
    let thread = thread.spawn(move || {
        let mut worker = Worker {
            engine,
            flights: BTreeMap::new(),
            queue_timeout,
            draining: false,
            failures: 0,
            given_up: 0,
            restarts: Restarts::new(restart_window),
            published: &published,
            metrics: &metrics,
            recent: Recent::default(),
            lives,
            looking: &looking,
        };
        let now = &published.now;
        worker.publish(None);
        loop {
            let ended = catch_unwind(AssertUnwindSafe(|| {
                if lock(now).restarting {
                    worker.restart();
                }
                worker.work(&receiver)
            }));
            // The panic's own words are on stderr; clients are not told of our insides.
            let panicked = |_| {
                metrics.panics.inc();
                Err(Broken("it made a mistake".to_owned()))
            };
            let Err(Broken(why)) = ended.unwrap_or_else(panicked) else {
                return Some(worker.engine);
            };
            // Health is red before anybody hears of it.
            let wait = worker.restarts.another(Instant::now());
            if wait.is_some() {
                lock(now).restarting = true;
            } else {
                lock(now).dead = true;
            }
            worker.tell_failed(&why);
            // Whoever has a command in the channel sees the mailbox close without an end.
            std::thread::sleep(wait?);
        }
    })?;
    Ok((handle, thread))
}

/// A prompt in the engine.
struct Flight {
    /// The id of its answer.
    id: Arc<str>,
    events: Mailbox,
    /// When it came, and how far it has got since.
    times: Timeline,
    /// When each of its sequences had its last token.
    last: Vec<Option<Instant>>,
    place: usize,
    streams: bool,
    /// Whether its prompt's log probabilities are still to be told.
    prompt_untold: bool,
    /// Tokens of each sequence, where log probabilities of them are told.
    told: Option<Vec<usize>>,
    visit: Arc<Visit>,
    /// Whether its tokens are known only at its end.
    searches: bool,
}

/// Steps fail, whoever asks.
struct Broken(String);

struct Worker<'a, E, L> {
    engine: Engine<E, L>,
    flights: BTreeMap<RequestId, Flight>,
    queue_timeout: Duration,
    draining: bool,
    /// Steps that failed since one did not.
    failures: u32,
    /// Times whoever was in flight was given up since.
    given_up: u32,
    restarts: Restarts,
    published: &'a Published,
    metrics: &'a Metrics,
    recent: Recent,
    lives: watch::Sender<Arc<Live>>,
    looking: &'a AtomicBool,
}

impl<E: Executor + Choosing, L: Log> Worker<'_, E, L> {
    /// Until it has been drained or nobody can send commands.
    fn work(&mut self, commands: &Receiver<Command>) -> Result<(), Broken> {
        let mut notices = Vec::new();
        loop {
            if self.flights.is_empty() && self.engine.is_idle() {
                if self.draining {
                    return Ok(());
                }
                let Ok(command) = commands.recv() else {
                    return Ok(());
                };
                self.take(command);
            }
            while let Ok(command) = commands.try_recv() {
                self.take(command);
            }
            self.cancel_gone();
            let began = Instant::now();
            self.publish(Some(began));
            let stepped = self.engine.step(|n| notices.push(n));
            self.began(began, matches!(stepped, Ok(true)));
            let now = Instant::now();
            let failed = self.engine.executor_mut().choices().take_failed();
            for notice in notices.drain(..) {
                let error = |id| {
                    let error = failed.iter().find(|f| f.0 == id);
                    error.map(|f| Why::from(&f.1))
                };
                self.tell(notice, now, &error);
            }
            match stepped {
                Ok(_) => (self.failures, self.given_up) = (0, 0),
                Err(e) => {
                    self.failures += 1;
                    if self.failures.is_multiple_of(FAILURES) {
                        self.given_up += 1;
                        if self.given_up >= GIVEN_UP {
                            return Err(Broken(e.to_string()));
                        }
                        self.give_up(&e.to_string());
                    }
                }
            }
            self.publish(None);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(submit) => self.submit(submit),
            Command::Look => self.look(),
            Command::Drain => {
                self.draining = true;
                self.engine.drain();
            }
        }
    }

    /// Lets all of a client's prompts in, or none.
    fn submit(&mut self, submit: Submit) {
        let Submit {
            jobs,
            streams,
            events,
            from,
        } = submit;
        let mut all = Vec::with_capacity(jobs.len());
        for (place, job) in jobs.into_iter().enumerate() {
            let id = job.request.id();
            let asked = job.params.asked();
            let width = job.request.fan().width() as usize;
            let times = Timeline {
                arrived: from.arrived,
                queued: Instant::now(),
                scheduled: None,
                first: None,
                last: None,
                prompt_tokens: job.request.prompt_len(),
                max_tokens: job.request.max_tokens(),
                sequences: job.request.fan().width(),
            };
            let flight = Flight {
                id: Arc::clone(&from.id),
                events: events.clone(),
                times,
                last: vec![None; width],
                place,
                streams,
                prompt_untold: asked.prompt_logprobs.is_some(),
                told: asked.logprobs.map(|_| vec![0; width]),
                visit: job.visit,
                searches: matches!(job.request.fan(), Fan::Beam(_)),
            };
            let choices = self.engine.executor_mut().choices();
            let prompt = job.request.prompt();
            choices.expect_guided(id, prompt, job.params, job.stops, job.guide);
            all.push((id, flight));
            if let Err(refusal) = self.engine.submit(job.request) {
                for (id, _) in all {
                    self.engine.cancel(id);
                    self.engine.executor_mut().choices().forget(id);
                }
                events.send(Event::Refused(refusal));
                return;
            }
        }
        events.send(Event::Accepted);
        self.metrics.requests.inc_by(all.len() as u64);
        self.flights.extend(all);
    }

    /// A step was asked for then: whoever has rows in it runs.
    fn began(&mut self, at: Instant, carried_out: bool) {
        let step = self.engine.scheduler().current();
        for row in &step.rows {
            if let Some(flight) = self.flights.get_mut(&row.request) {
                flight.times.scheduled.get_or_insert(at);
            }
        }
        if carried_out {
            self.metrics.stepped(step.tokens.len());
        }
    }

    /// Takes down everything that is there, for whoever looks.
    fn look(&mut self) {
        self.looking.store(false, Ordering::Release);
        let flight = |id| self.flights.get(&id).map(|f| (&f.id, f.times.arrived));
        let view = self.engine.scheduler().view(MOST_REQUESTS);
        let live = Live::of(&view, &self.published.tenants, &self.recent, flight);
        self.lives.send_replace(Arc::new(live));
    }

    /// Cancels whatever nobody waits for any more, and whatever has waited too long.
    fn cancel_gone(&mut self) {
        let (engine, metrics) = (&mut self.engine, self.metrics);
        let limit = self.queue_timeout;
        self.flights.retain(|&id, flight| {
            let late = flight.times.queued.elapsed() > limit && engine.scheduler().is_waiting(id);
            if late {
                flight.events.send(Event::Expired);
            }
            let gone = late || flight.events.is_closed();
            if gone {
                if let Some(request) = engine.scheduler().request(id) {
                    metrics.cancelled(request.place);
                }
                metrics.gave_up(How::Abort);
                engine.cancel(id);
                engine.executor_mut().choices().forget(id);
            }
            !gone
        });
    }

    /// Drops whoever is in flight: steps fail, and would for ever.
    fn give_up(&mut self, why: &str) {
        for id in self.tell_failed(why) {
            self.engine.cancel(id);
            self.engine.executor_mut().choices().forget(id);
        }
    }

    /// Tells whoever is in flight that it is over, once; who that was.
    fn tell_failed(&mut self, why: &str) -> Vec<RequestId> {
        let flights = std::mem::take(&mut self.flights).into_iter();
        let told = flights.map(|(id, flight)| {
            // Of several prompts of a body the first tells it.
            flight.events.send(Event::Failed(why.to_owned()));
            self.metrics.gave_up(How::Error);
            id
        });
        told.collect()
    }

    /// Begins anew, with the memory that there is.
    fn restart(&mut self) {
        self.engine.restart();
        (self.failures, self.given_up) = (0, 0);
        if self.draining {
            self.engine.drain();
        }
        self.publish(None);
    }

    fn tell(&mut self, notice: Notice, now: Instant, error: &dyn Fn(RequestId) -> Option<Why>) {
        match notice {
            Notice::Token {
                request,
                index,
                draw,
            } => {
                let Some(flight) = self.flights.get_mut(&request) else {
                    return;
                };
                flight.visit.generated(1);
                let last = flight.last.get_mut(index as usize);
                let before = last.and_then(|last| last.replace(now));
                self.metrics.token(&mut flight.times, before, now);
                if !flight.streams {
                    return;
                }
                let choices = self.engine.executor_mut().choices();
                let logprobs = choices.logprobs(request);
                if std::mem::take(&mut flight.prompt_untold) {
                    let prompt = logprobs.map(|l| l.prompt.clone()).unwrap_or_default();
                    flight.events.send(Event::Prompt(flight.place, prompt));
                }
                let told = flight.told.as_mut();
                let top = told.and_then(|t| t.get_mut(index as usize)).map(|place| {
                    let all = logprobs.and_then(|l| l.sequences.get(&index));
                    let entry = all.and_then(|s| s.get(*place));
                    *place += 1;
                    entry.map(|e| e.1.to_vec()).unwrap_or_default()
                });
                let token = Token {
                    index,
                    id: draw.token,
                    logprob: draw.logprob,
                    ends: draw.ends,
                    top: top.unwrap_or_default(),
                };
                flight.events.send(Event::Token(flight.place, token));
            }
            Notice::Finished(ended) => {
                let id = ended.request;
                let choices = self.engine.executor_mut().choices();
                let logprobs = choices.take_logprobs(id);
                choices.forget(id);
                let Some(mut flight) = self.flights.remove(&id) else {
                    return;
                };
                self.metrics.ended(&mut flight.times, &ended, now);
                if flight.searches {
                    let tokens = ended.completions.iter().map(|c| c.tokens.len() as u64);
                    flight.visit.generated(tokens.sum());
                }
                let finished = Box::new(Finished {
                    ended: *ended,
                    // A stream has them already.
                    logprobs: if flight.streams {
                        Logprobs::default()
                    } else {
                        logprobs
                    },
                    error: error(id),
                });
                flight.events.send(Event::Finished(flight.place, finished));
            }
            Notice::Preempted {
                request,
                by,
                short,
                swapped_pages,
                forgotten_tokens,
                cost,
            } => {
                self.metrics.believed_ns.inc_by(cost.0);
                let id = |id| self.flights.get(&id).map_or("", |f| &*f.id).to_owned();
                let whose = self.engine.scheduler().request(request);
                let tenant =
                    whose.and_then(|r| self.published.tenants.get(usize::from(r.tenant.0)));
                self.recent.add(Preempted {
                    at_ms: now_ms(),
                    kind: if swapped_pages > 0 {
                        Way::Swap
                    } else {
                        Way::Recompute
                    },
                    id: id(request),
                    by: id(by),
                    tenant: tenant.cloned().unwrap_or_default(),
                    pages_needed: short.needed.into(),
                    pages_available: short.available.into(),
                    swapped_pages: swapped_pages.into(),
                    forgotten_tokens: forgotten_tokens.into(),
                    cost_ns: cost.0,
                });
            }
            Notice::Cancelled { .. } => {}
        }
    }

    fn publish(&self, stepping: Option<Instant>) {
        let scheduler = self.engine.scheduler();
        let kv = scheduler.kv();
        let layout = kv.layout();
        let tenants = u16::try_from(self.published.tenants.len()).unwrap_or(u16::MAX);
        let next = Snapshot {
            swap_pages: kv.swap_pages(),
            page_bytes: layout.page.get(),
            block_tokens: layout.groups.iter().map(|g| g.slots).max().unwrap_or(0),
            // Bytes of a pool that was committed.
            usage: kv.usage().unwrap_or_default(),
            charged: (0..tenants).map(|t| kv.charged(TenantId(t))).collect(),
            regions: self.engine.executor().usage(),
            running: scheduler.running(),
            waiting: scheduler.waiting(),
            preempted: scheduler.preempted(),
            pages_held: kv.pages().saturating_sub(kv.available()),
            pages: kv.pages(),
            stats: *scheduler.stats(),
            stepping,
            restarts: self.restarts.total,
            restarting: false,
            dead: false,
        };
        *lock(&self.published.now) = next;
    }
}

/// When to come back after a refusal, where that helps.
pub(crate) fn retry_after(refusal: &Refusal) -> Option<Duration> {
    match refusal.reason {
        Reason::QueueFull { .. } => Some(Duration::from_nanos(
            refusal.retry_after.map_or(1_000_000_000, |n| n.0),
        )),
        _ => None,
    }
}
