//! What a class of priority is worth: a wait, and no more than that.
//!
//! `cargo test -p plimsoll-schedule --test priorities`

mod support;

use plimsoll_kv::{KvCache, KvConfig, Layout, Scope};
use plimsoll_schedule::{
    Draw, Fan, Limits, Output, Reason, Request, RequestId, RowOutput, Scheduler, SchedulerConfig,
    StepOutput,
};
use plimsoll_units::{Bytes, Nanos};

/// The one that has to wait.
const LOW: RequestId = RequestId(0);
const SECOND: u64 = 1_000_000_000;

const LIMITS: Limits = Limits {
    max_model_len: 8,
    vocab: 8,
    max_width: 1,
    tenants: 1,
};

/// One sequence at a time, where a class is worth ten seconds.
fn scheduler() -> Scheduler {
    scheduler_of(usize::MAX)
}

/// The same, where so many may wait.
fn scheduler_of(max_queued: usize) -> Scheduler {
    let mut config = SchedulerConfig::new(LIMITS);
    config.max_queued = max_queued;
    config.max_seqs = 1;
    config.class = Nanos(10 * SECOND);
    let cost = support::cost();
    let kv = KvConfig::new(Layout::full(4, Bytes::new(8)), 8);
    Scheduler::new(config, KvCache::new(kv), cost)
}

fn submit(s: &mut Scheduler, id: RequestId, priority: i32, now: Nanos) {
    let scope = Scope::default();
    let request = Request::new(id, vec![1].into(), 1, Fan::ONE, scope, &LIMITS);
    let request = request.expect("a request within the limits");
    let request = request.with_priority(priority);
    s.submit(request, now).expect("there is room");
}

/// Whoever comes before the first step finds as many places as there are: one that runs, and the queue's.
#[test]
fn a_burst_before_the_first_step_finds_every_place() {
    let mut s = scheduler_of(2);
    for id in 0..3 {
        submit(&mut s, RequestId(id), 0, Nanos(0));
    }
    let one_more = |s: &mut Scheduler| {
        let request = Request::new(
            RequestId(9),
            vec![1].into(),
            1,
            Fan::ONE,
            Scope::default(),
            &LIMITS,
        );
        s.submit(request.expect("within the limits"), Nanos(0))
            .map_err(|r| r.reason)
    };
    assert_eq!(one_more(&mut s), Err(Reason::QueueFull { waiting: 3 }));
    // One runs, two wait: as many as may.
    s.schedule(Nanos(0)).expect("somebody waits");
    assert_eq!((s.running(), s.waiting()), (1, 2));
    assert_eq!(one_more(&mut s), Err(Reason::QueueFull { waiting: 2 }));
}

/// Seconds until the low one runs, beside others of `priority`: each second one more comes, and one is served.
fn waits(priority: i32) -> Option<u64> {
    let mut s = scheduler();
    for second in 0..1000 {
        let now = Nanos(second * SECOND);
        // The first of them is there before it: there is always one that could run.
        submit(&mut s, RequestId(1 + second), priority, now);
        if second == 0 {
            submit(&mut s, LOW, 0, now);
        }
        let step = s.schedule(now).expect("somebody waits");
        let ran = step.rows.iter().any(|r| r.request == LOW);
        let rows = step.rows.iter().map(|r| match r.output {
            Output::None => RowOutput::None,
            Output::Sample { .. } | Output::Candidates { .. } => RowOutput::One(Draw {
                token: 2,
                logprob: 0.0,
                ends: true,
            }),
        });
        let out = StepOutput {
            rows: rows.collect(),
            ..StepOutput::default()
        };
        s.commit(out, now).expect("an output for every row");
        s.check_integrity(&[]).expect("everything adds up");
        if ran {
            return Some(second);
        }
    }
    None
}

#[test]
fn a_class_is_worth_a_wait_and_no_more() {
    // By order of arrival among equals; a later class never goes before.
    assert_eq!(waits(0), Some(1));
    assert_eq!(waits(1), Some(0));
    // Whoever came in the first ten seconds after it goes before it, and nobody after that.
    assert_eq!(waits(-1), Some(10));
    assert_eq!(waits(-2), Some(20));
    assert_eq!(waits(-50), Some(500));
    // The most urgent class of all is worth centuries: here nothing but a limit in time ends the wait.
    assert_eq!(waits(i32::MIN), None);
}
