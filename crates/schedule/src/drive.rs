//! The one loop: schedule, submit, complete, commit; and the log of everything that decisions depend on.

use plimsoll_units::Nanos;

use crate::cost::CostModel;
use crate::notice::Refusal;
use crate::request::{Request, RequestId};
use crate::scheduler::Scheduler;
use crate::step::{Executor, ExecutorError, Step, StepOutput};

/// Everything that a decision depends on, in the order in which it came. Whoever feeds the same inputs to
/// a new scheduler gets the same decisions.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A request came.
    Arrive {
        /// When.
        at: Nanos,
        /// The request.
        request: Request,
    },
    /// A request was cancelled.
    Cancel {
        /// When.
        at: Nanos,
        /// Which.
        id: RequestId,
    },
    /// A step was asked for.
    Schedule {
        /// When.
        at: Nanos,
    },
    /// A step ended.
    Output {
        /// When.
        at: Nanos,
        /// What it yielded.
        output: StepOutput,
    },
    /// A step failed.
    Failed {
        /// When.
        at: Nanos,
    },
    /// The belief about times changed.
    Believe {
        /// What is believed now.
        cost: Box<CostModel>,
    },
    /// Nobody is let in any more.
    Drain,
    /// A fault left nothing to trust: the scheduler began anew, over an empty pool.
    Restart,
}

/// A scheduler that writes down what it is told.
#[derive(Debug)]
pub struct Driver<L> {
    scheduler: Scheduler,
    log: L,
}

/// Where inputs are written down.
pub trait Log {
    /// One more input.
    fn input(&mut self, input: &Input);
}

/// Nothing is written down.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLog;

impl Log for NoLog {
    fn input(&mut self, _: &Input) {}
}

impl<L: Log> Log for Option<L> {
    fn input(&mut self, input: &Input) {
        if let Some(log) = self {
            log.input(input);
        }
    }
}

impl Log for Vec<Input> {
    fn input(&mut self, input: &Input) {
        self.push(input.clone());
    }
}

/// What one turn of the loop did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There was nothing to do.
    Idle,
    /// A step was carried out.
    Stepped {
        /// How long it took.
        elapsed: Nanos,
    },
}

impl<L: Log> Driver<L> {
    /// Drives `scheduler`.
    pub const fn new(scheduler: Scheduler, log: L) -> Self {
        Self { scheduler, log }
    }

    /// The scheduler.
    pub const fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The scheduler, for what changes no decision (notices, pins before the first request).
    pub const fn scheduler_mut(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }

    /// The log.
    pub fn into_log(self) -> L {
        self.log
    }

    /// A request comes.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn submit(&mut self, request: Request, at: Nanos) -> Result<(), Refusal> {
        let input = Input::Arrive { at, request };
        self.log.input(&input);
        let Input::Arrive { request, .. } = input else {
            return Ok(());
        };
        self.scheduler.submit(request, at)
    }

    /// A request is cancelled.
    pub fn cancel(&mut self, id: RequestId, at: Nanos) -> bool {
        self.log.input(&Input::Cancel { at, id });
        self.scheduler.cancel(id)
    }

    /// Another belief about times.
    pub fn believe(&mut self, cost: CostModel) {
        self.log.input(&Input::Believe {
            cost: Box::new(cost.clone()),
        });
        self.scheduler.believe(cost);
    }

    /// Nobody is let in any more.
    pub fn drain(&mut self) {
        self.log.input(&Input::Drain);
        self.scheduler.drain();
    }

    /// Begins anew after a fault: whoever is in flight is forgotten.
    pub fn restart(&mut self) {
        self.log.input(&Input::Restart);
        self.scheduler.restart();
    }

    /// One step: scheduled at `now`, carried out, and taken in at `now` plus what it took. `watch` sees the
    /// step and the scheduler while it is under way.
    ///
    /// # Errors
    /// [`ExecutorError`]; whoever had a part in the step is computed again, so the loop can go on.
    pub fn turn<E: Executor>(
        &mut self,
        executor: &mut E,
        now: Nanos,
        watch: impl FnOnce(&Scheduler, &Step),
    ) -> Result<Turn, ExecutorError> {
        self.log.input(&Input::Schedule { at: now });
        if self.scheduler.schedule(now).is_none() {
            return Ok(Turn::Idle);
        }
        watch(&self.scheduler, self.scheduler.current());
        let done = executor
            .submit(self.scheduler.current())
            .and_then(|ticket| executor.complete(ticket));
        match done {
            Ok(output) => {
                let elapsed = output.elapsed;
                let at = Nanos(now.0.saturating_add(elapsed.0));
                let step = self.scheduler.current().number;
                let input = Input::Output { at, output };
                self.log.input(&input);
                if let Input::Output { output, .. } = input {
                    self.scheduler
                        .commit(output, at)
                        .map_err(|e| ExecutorError {
                            step,
                            reason: e.to_string(),
                        })?;
                }
                Ok(Turn::Stepped { elapsed })
            }
            Err(e) => {
                self.log.input(&Input::Failed { at: now });
                self.scheduler.fail();
                Err(e)
            }
        }
    }
}

/// Feeds `inputs` to a scheduler that has not decided anything yet. Its decision hash then equals the
/// recorded run's.
pub fn replay(scheduler: &mut Scheduler, inputs: impl IntoIterator<Item = Input>) {
    for input in inputs {
        match input {
            Input::Arrive { at, request } => {
                // What was refused then is refused now, and leaves no trace.
                let _ = scheduler.submit(request, at);
            }
            Input::Cancel { id, .. } => {
                scheduler.cancel(id);
            }
            Input::Schedule { at } => {
                scheduler.schedule(at);
            }
            Input::Output { at, output } => {
                // A mismatch then is a mismatch now.
                let _ = scheduler.commit(output, at);
            }
            Input::Failed { .. } => scheduler.fail(),
            Input::Believe { cost } => scheduler.believe(*cost),
            Input::Drain => scheduler.drain(),
            Input::Restart => scheduler.restart(),
        }
    }
}
