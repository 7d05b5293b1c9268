//! Fleets beside servers that run alone.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};

use plimsoll_kv::{KvCache, Layout, Scope};
use plimsoll_schedule::{
    AttentionWork, Draw, Driver, Executor, ExecutorError, Limits, Notice, Rates, Request,
    RequestId, RowOutput, Scheduler, Step, StepOutput, Tables, Ticket, Turn, Work,
};
use plimsoll_units::Bytes;

use super::*;
use crate::arrival::{Content, Fan};
use crate::log::{LogWriter, replay_log};
use crate::record::{Finished, State};
use crate::recorder::Counts;

/// One call of the sink.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    State(Nanos, State),
    Token(Nanos),
    Finished(Finished),
    Refused(Nanos),
    Count(Nanos, Counts),
    Pages(u64),
}

/// Keeps everything, in order.
#[derive(Default)]
struct Tape(Vec<Told>);

impl Sink for Tape {
    fn state(&mut self, at: Nanos, state: &State) {
        self.0.push(Told::State(at, *state));
    }
    fn token(&mut self, gap: Nanos) {
        self.0.push(Told::Token(gap));
    }
    fn finished(&mut self, f: &Finished) {
        self.0.push(Told::Finished(*f));
    }
    fn refused(&mut self, at: Nanos) {
        self.0.push(Told::Refused(at));
    }
    fn count(&mut self, at: Nanos, counts: &Counts) {
        self.0.push(Told::Count(at, *counts));
    }
    fn pages(&mut self, held: u64) {
        self.0.push(Told::Pages(held));
    }
}

impl Tape {
    /// Who ended, sorted.
    fn finished(&self) -> Vec<(u64, u64, u64, u64)> {
        let mut all: Vec<_> = self
            .0
            .iter()
            .filter_map(|t| match t {
                Told::Finished(f) => {
                    Some((f.arrived.0, f.first_token.0, f.ended.0, f.output_tokens))
                }
                _ => None,
            })
            .collect();
        all.sort_unstable();
        all
    }

    fn states(&self) -> impl Iterator<Item = (Nanos, State)> {
        self.0.iter().filter_map(|t| match t {
            Told::State(at, state) => Some((*at, *state)),
            _ => None,
        })
    }
}

const PAGES: u32 = 40;
const BLOCK: u64 = 4;

/// Steps of 10 ns and 1 ns per row; a pool in which requests of 60 tokens crowd each other out.
fn config() -> Config {
    let cost = CostModel {
        work: Work {
            weight_bytes: 0,
            token_flops: 0,
            head_flops: 0,
            attention: vec![AttentionWork {
                reach: None,
                token_bytes: 0,
                pair_flops: 0,
            }],
        },
        rates: Rates {
            flops_per_s: 1,
            memory_bytes_per_s: 1,
            link_bytes_per_s: 1_000_000_000,
            transfer_ns: 0,
            transfers_per_block: 1,
            step_ns: 10,
            row_ns: 1,
        },
    };
    let limits = Limits {
        max_model_len: 100,
        vocab: 50,
        max_width: 4,
        tenants: 1,
    };
    let layout = Layout::full(4, Bytes::new(8));
    let mut kv = KvConfig::new(layout, PAGES);
    kv.swap_pages = PAGES;
    kv.prefix_cache = false;
    Config {
        scheduler: SchedulerConfig::new(limits),
        kv,
        belief: cost.clone(),
        truth: cost,
        asked: Asked::Most,
        branching: Branching::default(),
        faults: Faults::default(),
        measure_sharing: false,
        seed: 3,
        until: None,
    }
}

fn arrival(at: u64, prompt_tokens: u64, output_tokens: u64) -> Arrival {
    Arrival {
        at: Nanos(at),
        prompt_tokens,
        output_tokens,
        content: Content::Unique,
        fan: Fan::One,
        tenant: 0,
        priority: 0,
    }
}

/// Requests of several lengths, a few at a time; one in a hundred is longer than the model allows.
fn crowd(n: u64) -> Vec<Arrival> {
    (0..n)
        .map(|i| {
            let h = world::mix(i);
            let prompt = if h.is_multiple_of(100) {
                101
            } else {
                1 + h % 40
            };
            arrival(i / 3 * 40, prompt, 1 + (h >> 20) % 50)
        })
        .collect()
}

fn alone(config: &Config, arrivals: &[Arrival]) -> (Tape, Summary) {
    let mut tape = Tape::default();
    let source = arrivals.iter().cloned().map(Ok::<_, Infallible>);
    let (summary, NoLog) = run(config, source, |_, _, _| (), &mut tape, NoLog).unwrap();
    (tape, summary)
}

fn together(
    config: &Config,
    replicas: u32,
    router: Router,
    arrivals: &[Arrival],
) -> (Tape, Summary) {
    let mut tape = Tape::default();
    let fleet = Fleet {
        replicas: NonZeroU32::new(replicas).unwrap(),
        router,
    };
    let source = arrivals.iter().cloned().map(Ok::<_, Infallible>);
    let summary = run_fleet(config, fleet, source, |_, _, _| (), &mut tape).unwrap();
    (tape, summary)
}

#[test]
fn a_fleet_of_one_is_a_server() {
    let requests = crowd(600);
    let (tape, summary) = alone(&config(), &requests);
    assert!(summary.stats.swaps + summary.stats.recomputes > 0);
    assert!(tape.0.iter().any(|t| matches!(t, Told::Refused(_))));
    for router in [Router::RoundRobin, Router::LeastLoaded] {
        let (other, s) = together(&config(), 1, router, &requests);
        assert_eq!(other.0, tape.0);
        assert_eq!(s, summary);
    }
}

#[test]
fn round_robin_gives_each_replica_what_it_would_serve_alone() {
    let requests = crowd(600);
    let (tape, summary) = together(&config(), 3, Router::RoundRobin, &requests);
    let mut finished = Vec::new();
    let mut stats = Stats::default();
    let mut ended = Nanos(0);
    for k in 0..3 {
        let mine: Vec<_> = requests.iter().skip(k).step_by(3).cloned().collect();
        let (one, s) = alone(&config(), &mine);
        finished.extend(one.finished());
        stats += s.stats;
        ended = ended.max(s.ended);
    }
    finished.sort_unstable();
    assert_eq!(tape.finished(), finished);
    assert_eq!(summary.stats, stats);
    assert_eq!(summary.ended, ended);
}

#[test]
fn a_fleet_is_told_in_order_of_time_and_its_pools_add_up() {
    for router in [Router::RoundRobin, Router::LeastLoaded] {
        let (tape, summary) = together(&config(), 3, router, &crowd(600));
        let mut before = Nanos(0);
        let mut most = 0;
        let mut busy = 0;
        for (at, state) in tape.states() {
            assert!(before <= at, "{before} then {at}");
            before = at;
            busy = busy.max(state.batch);
            let s = state.slots;
            let all = s.token_states + s.reserved + s.internal + s.external + s.cached + s.free;
            most = most.max(all);
        }
        assert_eq!(most, 3 * u64::from(PAGES) * BLOCK);
        assert!(busy > 3, "three replicas run at once");
        assert!(summary.pages_peak > u64::from(PAGES));
        assert!(summary.pages_peak <= 3 * u64::from(PAGES));
        let (_, last) = tape.states().last().unwrap();
        assert_eq!((last.running, last.batch, last.waiting), (0, 0, 0));
    }
}

/// The first replica has a long answer to give when the third request comes, and the second one is free.
#[test]
fn the_least_loaded_replica_is_the_one_that_has_ended_its_requests() {
    let requests = [arrival(0, 4, 50), arrival(0, 4, 1), arrival(200, 4, 10)];
    let (lone, _) = alone(&config(), &requests[2..]);
    let (free, _) = together(&config(), 2, Router::LeastLoaded, &requests);
    let (turns, _) = together(&config(), 2, Router::RoundRobin, &requests);
    let last = |t: &Tape| t.finished().into_iter().find(|f| f.0 == 200);
    assert_eq!(last(&free), last(&lone));
    assert!(last(&turns).unwrap().2 > last(&lone).unwrap().2);
}

/// A request counts until its last token is there, though the step that yields it has begun.
#[test]
fn the_router_does_not_see_the_end_of_a_step_under_way() {
    // At 5 ns each replica has a request, and the second one's will end at 11 ns. The third request goes to the
    // first replica, whose next step has two rows: from 11 to 23 ns.
    let requests = [arrival(0, 4, 50), arrival(0, 4, 1), arrival(5, 4, 1)];
    let (tape, _) = together(&config(), 2, Router::LeastLoaded, &requests);
    let third = tape.finished().into_iter().find(|f| f.0 == 5);
    assert_eq!(third.unwrap().2, 23);
}

#[test]
fn a_fleet_stops_when_told() {
    let requests = crowd(600);
    let config = Config {
        until: Some(Nanos(2000)),
        ..config()
    };
    let (tape, summary) = together(&config, 3, Router::RoundRobin, &requests);
    assert!(summary.unfinished > 0);
    assert!(summary.ended >= Nanos(2000) && summary.ended < Nanos(2100));
    assert!(tape.finished().iter().all(|f| f.0 < 2000 && f.2 < 2100));
    let (one, s) = alone(&config, &requests);
    let (other, t) = together(&config, 1, Router::RoundRobin, &requests);
    assert_eq!((one.0, s), (other.0, t));
}

#[test]
fn equal_fleets_decide_alike_and_a_different_router_otherwise() {
    let requests = crowd(600);
    let hash = |router| together(&config(), 3, router, &requests).1.decision_hash;
    assert_eq!(hash(Router::LeastLoaded), hash(Router::LeastLoaded));
    assert_ne!(hash(Router::LeastLoaded), hash(Router::RoundRobin));
}

/// Twelve prompts of 8 tokens or two blocks, whose two sequences go on to 16 tokens: they share two blocks of three, then
/// of four.
#[test]
fn a_replay_counts_what_the_run_shared() {
    let mut config = config();
    config.measure_sharing = true;
    config.asked = Asked::Exact;
    config.scheduler.max_seqs = 2;
    let requests: Vec<Arrival> = (0..12)
        .map(|i| Arrival {
            fan: Fan::Parallel(2),
            ..arrival(i, 8, 8)
        })
        .collect();
    let mut log = Vec::new();
    let writer = LogWriter::new(&mut log, &config.scheduler, &config.kv, &config.belief);
    let source = requests.into_iter().map(Ok::<_, Infallible>);
    let (summary, writer) =
        run(&config, source, |_, _, _| (), &mut Tape::default(), writer).unwrap();
    writer.end(summary.decision_hash, None).unwrap();
    // Of each: the prompt alone; 4 steps with 2 of 3 blocks shared, 3 with 2 of 4.
    let (blocks, pages) = (2 + 4 * 6 + 3 * 8, 2 + 4 * 4 + 3 * 6);
    let want = Sharing {
        blocks: 12 * blocks,
        pages: 12 * pages,
    };
    assert_eq!(summary.sharing, want);
    let replay = replay_log(std::io::Cursor::new(log)).unwrap();
    assert!(replay.is_same());
    assert_eq!(replay.sharing, want);
    assert!((want.saved_percent() - 28.0).abs() < 1e-9);
}

/// Carries steps out at once, but panics at the second one.
struct Panics(Tables);

impl Executor for Panics {
    fn submit(&mut self, step: &Step) -> Result<Ticket, ExecutorError> {
        self.0.apply(step, |_| {});
        self.0.note(step);
        assert_ne!(step.number, 2, "as it was told");
        Ok(Ticket(step.rows.len() as u64))
    }

    fn complete(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        let draw = Draw {
            token: 1,
            logprob: 0.0,
            ends: false,
        };
        Ok(StepOutput {
            rows: (0..ticket.0).map(|_| RowOutput::One(draw)).collect(),
            failed_transfers: Vec::new(),
            elapsed: Nanos(1000),
        })
    }

    fn restart(&mut self) {
        self.0.clear();
    }
}

#[test]
fn a_run_that_began_anew_replays() {
    let config = config();
    let mut log = Vec::new();
    let writer = LogWriter::new(&mut log, &config.scheduler, &config.kv, &config.belief);
    let scheduler = Scheduler::new(
        config.scheduler.clone(),
        KvCache::new(config.kv.clone()),
        config.belief.clone(),
    );
    let mut driver = Driver::new(scheduler, writer);
    let mut executor = Panics(Tables::new(config.kv.layout.groups.len()));
    let limits = config.scheduler.limits;
    let mut finished = 0;
    for id in 0..3 {
        let (prompt, scope) = (vec![1; 8].into(), Scope::default());
        let request = Request::new(
            RequestId(id),
            prompt,
            4,
            plimsoll_schedule::Fan::ONE,
            scope,
            &limits,
        );
        driver.submit(request.unwrap(), Nanos(id)).unwrap();
        let mut notices = Vec::new();
        for at in 10.. {
            let turn = AssertUnwindSafe(|| driver.turn(&mut executor, Nanos(at), |_, _| {}));
            match catch_unwind(turn) {
                Ok(Ok(Turn::Idle)) => break,
                Ok(_) => {}
                Err(_) => {
                    driver.restart();
                    executor.restart();
                }
            }
            driver.scheduler_mut().take_notices(&mut notices);
            let ends = |n: &&Notice| matches!(n, Notice::Finished(_));
            finished += notices.iter().filter(ends).count();
        }
    }
    assert_eq!(finished, 2, "the first was forgotten");
    let hash = driver.scheduler().decision_hash();
    let digest = executor.0.digest();
    driver.into_log().end(hash, Some(digest)).unwrap();
    let text = std::str::from_utf8(&log).unwrap();
    assert_eq!(text.matches("\n\"restart\"\n").count(), 1);
    let replay = replay_log(std::io::Cursor::new(&log)).unwrap();
    assert!(replay.is_same(), "{replay:?}");
}
