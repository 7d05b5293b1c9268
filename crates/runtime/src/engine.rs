//! [`Engine`]: requests in, tokens out, by the scheduler that also simulates.

use std::time::Instant;

use plimsoll_schedule::{
    Driver, Executor, ExecutorError, Log, Notice, Refusal, Request, RequestId, Scheduler, Turn,
};
use plimsoll_units::Nanos;

/// A scheduler, an executor and a clock.
#[derive(Debug)]
pub struct Engine<E, L> {
    driver: Driver<L>,
    executor: E,
    began: Instant,
    notices: Vec<Notice>,
}

impl<E: Executor, L: Log> Engine<E, L> {
    /// An engine whose time starts now.
    pub fn new(scheduler: Scheduler, executor: E, log: L) -> Self {
        Self {
            driver: Driver::new(scheduler, log),
            executor,
            began: Instant::now(),
            notices: Vec::new(),
        }
    }

    /// The same with another executor, made of this one.
    pub fn with<F: Executor>(self, change: impl FnOnce(E) -> F) -> Engine<F, L> {
        Engine {
            driver: self.driver,
            executor: change(self.executor),
            began: self.began,
            notices: self.notices,
        }
    }

    /// Time since the start.
    #[must_use]
    pub fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// A request comes.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn submit(&mut self, request: Request) -> Result<(), Refusal> {
        let now = self.now();
        self.driver.submit(request, now)
    }

    /// A request is cancelled.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let now = self.now();
        self.driver.cancel(id, now)
    }

    /// Nobody is let in any more; whoever is in, ends.
    pub fn drain(&mut self) {
        self.driver.drain();
    }

    /// Begins anew after a fault, with the memory that it has: whoever is in flight is forgotten.
    pub fn restart(&mut self) {
        self.driver.restart();
        self.executor.restart();
        self.notices.clear();
    }

    /// One step, and what happened in it; `false` where there was nothing to do.
    ///
    /// # Errors
    /// [`ExecutorError`]; requests that had a part in the step are computed again by the next ones.
    pub fn step(&mut self, mut each: impl FnMut(Notice)) -> Result<bool, ExecutorError> {
        let now = self.now();
        let turn = self.driver.turn(&mut self.executor, now, |_, _| {});
        self.driver.scheduler_mut().take_notices(&mut self.notices);
        self.notices.drain(..).for_each(&mut each);
        Ok(turn? != Turn::Idle)
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.driver.scheduler().is_idle()
    }

    /// The scheduler.
    pub const fn scheduler(&self) -> &Scheduler {
        self.driver.scheduler()
    }

    /// The executor.
    pub const fn executor(&self) -> &E {
        &self.executor
    }

    /// The executor.
    pub const fn executor_mut(&mut self) -> &mut E {
        &mut self.executor
    }

    /// The log.
    pub fn into_log(self) -> L {
        self.driver.into_log()
    }
}
