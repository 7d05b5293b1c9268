//! Two requests that do not fit together: what the one that gives way has to compute again, and what others
//! find of it.
//!
//! `cargo test -p plimsoll-schedule --test giving_way`

mod support;

use plimsoll_kv::{KvCache, KvConfig, Layout, Scope};
use plimsoll_schedule::{
    Draw, Fan, Limits, Output, Preempt, Request, RequestId, RowOutput, Scheduler, SchedulerConfig,
    Step, StepOutput,
};
use plimsoll_units::{Bytes, Nanos};

/// The one that gives way, and the one that runs on.
const VICTIM: RequestId = RequestId(2);
const OLDER: RequestId = RequestId(1);

const PROMPT: u32 = 8;
const OUTPUT: u32 = 16;

fn prompt(of: RequestId) -> Vec<u32> {
    let first = u32::try_from(of.0).expect("small") * 100;
    (first..first + PROMPT).collect()
}

/// Six blocks of four tokens: each request needs all of them in the end.
fn scheduler(preempt: Preempt, prefix_cache: bool) -> Scheduler {
    let limits = Limits {
        max_model_len: 32,
        vocab: 1000,
        max_width: 1,
        tenants: 1,
    };
    let mut config = SchedulerConfig::new(limits);
    config.preempt = preempt;
    config.headroom_tokens = 0;
    let mut kv = KvConfig::new(Layout::full(4, Bytes::new(8)), 6);
    kv.swap_pages = 6;
    kv.prefix_cache = prefix_cache;
    let cost = support::cost();
    let mut s = Scheduler::new(config, KvCache::new(kv), cost);
    for id in [OLDER, VICTIM] {
        let r = Request::new(
            id,
            prompt(id).into(),
            OUTPUT,
            Fan::ONE,
            Scope::default(),
            &limits,
        )
        .expect("a request within the limits");
        s.submit(r, Nanos(id.0)).expect("it fits alone");
    }
    s
}

/// What a step yields: no token ends anything, and none is drawn twice.
fn outputs(step: &Step) -> StepOutput {
    let rows = step.rows.iter().map(|r| match r.output {
        Output::None => RowOutput::None,
        Output::Sample { .. } | Output::Candidates { .. } => RowOutput::One(Draw {
            token: u32::try_from(r.request.0).expect("small") * 100 + r.start,
            logprob: 0.0,
            ends: false,
        }),
    });
    StepOutput {
        rows: rows.collect(),
        ..StepOutput::default()
    }
}

/// One step; whether blocks came back in it, of which the transfer fails where `fails`.
fn step(s: &mut Scheduler, fails: bool) -> bool {
    let step = s.schedule(Nanos(0)).expect("somebody runs");
    let back = !step.kv.swaps_in.is_empty();
    let mut out = outputs(step);
    if back && fails {
        out.failed_transfers.push(VICTIM.0);
    }
    s.commit(out, Nanos(0)).expect("an output for every row");
    s.check_integrity(&[]).expect("everything adds up");
    back
}

/// Tokens of the victim's prompt that another request would find.
fn found(s: &Scheduler) -> u32 {
    let tokens = prompt(VICTIM);
    let keys = s.kv().keys(&Scope::default(), &tokens);
    s.kv().lookup(&keys, &tokens, u32::MAX).tokens
}

#[test]
fn others_find_what_came_back_from_swap_space_unless_the_transfer_failed() {
    for (fails, finds) in [(false, PROMPT), (true, 0)] {
        let mut s = scheduler(Preempt::Swap, true);
        let mut before = found(&s);
        while !step(&mut s, fails) {
            before = found(&s);
        }
        assert_eq!(s.stats().swaps, 1);
        assert_eq!(before, 0, "the older request has taken every page");
        assert_eq!(found(&s), finds);
        while !s.is_idle() {
            step(&mut s, false);
        }
    }
}

#[test]
fn tokens_that_the_prefix_cache_kept_are_not_computed_again() {
    let run = |prefix_cache| {
        let mut s = scheduler(Preempt::Recompute, prefix_cache);
        // Everybody is in, and one gives way.
        while s.preempted() == 0 {
            step(&mut s, false);
        }
        // The older one goes before it takes the pages of the other.
        s.cancel(OLDER);
        while !s.is_idle() {
            step(&mut s, false);
        }
        *s.stats()
    };
    let (without, with) = (run(false), run(true));
    for s in [without, with] {
        assert_eq!(s.recomputes, 1);
        assert_eq!(s.forgotten_tokens, without.forgotten_tokens);
    }
    assert_eq!(without.recomputed_tokens, without.forgotten_tokens);
    // The older one has taken a page: the end of the victim's blocks went first.
    let kept = u64::from(PROMPT);
    assert_eq!(with.recomputed_tokens, with.forgotten_tokens - kept);
    // Everything else is computed once either way.
    assert_eq!(with.tokens, without.tokens - kept);
}
