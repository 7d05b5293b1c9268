//! Small runs whose every number can be counted by hand, and laws over random ones.

use std::convert::Infallible;

use plimsoll_schedule::{AttentionWork, CostModel, Rates, Work};

use super::*;
use crate::arrival::{Content, Fan};
use crate::record::{Finished, Slots, State};

/// Keeps everything.
#[derive(Default)]
struct Log {
    states: Vec<(u64, State)>,
    gaps: Vec<u64>,
    finished: Vec<Finished>,
    refused: Vec<u64>,
}

impl Sink for Log {
    fn state(&mut self, at: Nanos, state: &State) {
        self.states.push((at.0, *state));
    }
    fn token(&mut self, gap: Nanos) {
        self.gaps.push(gap.0);
    }
    fn finished(&mut self, f: &Finished) {
        self.finished.push(*f);
    }
    fn refused(&mut self, at: Nanos) {
        self.refused.push(at.0);
    }
}

/// Every step takes 10 ns, whatever it does.
fn tens() -> CostModel {
    CostModel {
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
            link_bytes_per_s: 1,
            transfer_ns: 0,
            transfers_per_block: 1,
            step_ns: 10,
            row_ns: 0,
        },
    }
}

fn arrival(at: u64, prompt_tokens: u64, output_tokens: u64, fan: Fan) -> Arrival {
    Arrival {
        at: Nanos(at),
        prompt_tokens,
        output_tokens,
        content: Content::Unique,
        fan,
        tenant: 0,
        priority: 0,
    }
}

fn config(slots: u64, server: Server) -> Config {
    Config {
        slots,
        max_tokens: 32,
        server,
        max_batch: None,
        until: None,
    }
}

fn served(config: &Config, arrivals: &[Arrival]) -> Log {
    let mut log = Log::default();
    let source = arrivals.iter().cloned().map(Ok::<_, Infallible>);
    run(config, source, &tens(), &mut log).unwrap();
    log
}

const SERVERS: [Server; 4] = [
    Server::StaticBatch,
    Server::Orca(Reservation::Max),
    Server::Orca(Reservation::Pow2),
    Server::Orca(Reservation::Oracle),
];

fn sum(s: &Slots) -> u64 {
    s.token_states + s.reserved + s.internal + s.external + s.cached + s.free
}

#[test]
fn classes_of_one_request_by_policy() {
    // Prompt 3, output 5: 8 in all; Pow2 reserves 3 + 8 = 11, and the allocator gives 16.
    let first = |policy| {
        let log = served(
            &config(48, Server::Orca(policy)),
            &[arrival(0, 3, 5, Fan::One)],
        );
        log.states[0].1.slots
    };
    let slots = |internal, external, free| Slots {
        token_states: 3,
        reserved: 5,
        internal,
        external,
        cached: 0,
        free,
    };
    assert_eq!(first(Reservation::Max), slots(24, 0, 16));
    assert_eq!(first(Reservation::Pow2), slots(3, 5, 32));
    assert_eq!(first(Reservation::Oracle), slots(0, 0, 40));
}

#[test]
fn orca_tells_tokens_records_and_states_in_order() {
    let log = served(
        &config(32, Server::Orca(Reservation::Max)),
        &[arrival(5, 3, 3, Fan::One), arrival(12, 4, 1, Fan::One)],
    );
    // The second waits for the only chunk until the first has ended at 35.
    assert_eq!(log.gaps, [10, 10]);
    let ends: Vec<_> = log
        .finished
        .iter()
        .map(|f| (f.arrived.0, f.first_token.0, f.ended.0))
        .collect();
    assert_eq!(ends, [(5, 15, 35), (12, 45, 45)]);
    let states: Vec<_> = log
        .states
        .iter()
        .map(|(at, s)| (*at, s.slots.token_states, s.running, s.waiting))
        .collect();
    assert_eq!(
        states,
        [
            (0, 0, 0, 0),
            (5, 3, 1, 0),
            (12, 3, 1, 1),
            (15, 4, 1, 1),
            (25, 5, 1, 1),
            (35, 4, 1, 0),
            (45, 0, 0, 0)
        ]
    );
}

#[test]
fn nobody_overtakes_the_head_of_the_queue() {
    // 24 slots: the first holds 16 of them, the second needs 16, the third would fit the rest.
    let log = served(
        &config(24, Server::Orca(Reservation::Oracle)),
        &[
            arrival(0, 10, 4, Fan::One),
            arrival(0, 10, 4, Fan::One),
            arrival(0, 2, 2, Fan::One),
        ],
    );
    let ends: Vec<_> = log.finished.iter().map(|f| f.ended.0).collect();
    assert_eq!(ends, [40, 60, 80]);
}

#[test]
fn parallel_sequences_have_a_chunk_each_all_or_none() {
    let log = served(
        &config(64, Server::Orca(Reservation::Oracle)),
        &[
            arrival(0, 9, 3, Fan::Parallel(3)),
            arrival(0, 9, 3, Fan::Beam(2)),
            arrival(0, 9, 3, Fan::Parallel(5)),
        ],
    );
    assert_eq!(log.refused, [0]);
    let state = log.states[0].1;
    assert_eq!((state.running, state.batch, state.waiting), (3, 1, 1));
    assert_eq!(state.slots.token_states, 27);
    assert_eq!(state.slots.free, 16);
    assert_eq!(log.states[1].1.batch, 3);
    let outputs: Vec<_> = log
        .finished
        .iter()
        .map(|f| (f.ended.0, f.output_tokens, f.longest_output))
        .collect();
    assert_eq!(outputs, [(30, 9, 3), (60, 6, 3)]);
    assert_eq!(log.gaps.len(), 6 + 4);
}

#[test]
fn a_static_batch_ends_with_its_longest() {
    let log = served(
        &config(70, Server::StaticBatch),
        &[
            arrival(0, 3, 1, Fan::One),
            arrival(0, 3, 3, Fan::One),
            arrival(1, 3, 1, Fan::One),
        ],
    );
    let ends: Vec<_> = log
        .finished
        .iter()
        .map(|f| (f.first_token.0, f.ended.0))
        .collect();
    assert_eq!(ends, [(10, 30), (10, 30), (40, 40)]);
    let (at, state) = log.states[2];
    assert_eq!(at, 10);
    // The first ended: its row is padding and its 32 slots are of no use.
    assert_eq!((state.running, state.batch, state.waiting), (1, 2, 1));
    assert_eq!(
        state.slots,
        Slots {
            token_states: 4,
            reserved: 2,
            internal: 58,
            external: 0,
            cached: 0,
            free: 6
        }
    );
}

#[test]
fn until_cuts_the_step_that_is_under_way() {
    let cut = Config {
        until: Some(Nanos(25)),
        ..config(32, Server::Orca(Reservation::Max))
    };
    let log = served(
        &cut,
        &[arrival(0, 3, 9, Fan::One), arrival(25, 3, 9, Fan::One)],
    );
    assert_eq!(log.states.last().unwrap().0, 25);
    assert_eq!(log.states.last().unwrap().1.slots.token_states, 5);
    assert_eq!(log.gaps, [10]);
    assert!(log.finished.is_empty());
    // Past the last arrival the idle pool is told up to the end.
    let log = served(&cut, &[arrival(0, 3, 1, Fan::One)]);
    assert_eq!(log.states.last().unwrap(), &{
        let mut idle = State::default();
        idle.slots.free = 32;
        (25, idle)
    });
}

#[test]
fn what_cannot_run_alone_is_refused() {
    for server in SERVERS {
        let two = Config {
            max_batch: Some(2),
            ..config(200, server)
        };
        let log = served(
            &two,
            &[
                arrival(0, 30, 3, Fan::One),
                arrival(1, 0, 3, Fan::One),
                arrival(2, 3, 0, Fan::One),
                arrival(3, u64::MAX, 3, Fan::One),
                arrival(4, 3, 3, Fan::Parallel(0)),
                arrival(5, 3, 3, Fan::Parallel(3)),
                arrival(6, 30, 2, Fan::Parallel(2)),
            ],
        );
        assert_eq!(log.refused, [0, 1, 2, 3, 4, 5], "{server:?}");
        assert_eq!(log.finished.len(), 1);
        // Without slots, or without a length, nothing runs.
        let none = served(&config(0, server), &[arrival(0, 1, 1, Fan::One)]);
        assert_eq!(none.refused, [0]);
    }
}

#[test]
fn arrivals_out_of_order_and_failing_sources_are_errors() {
    let c = config(32, Server::StaticBatch);
    let back = [arrival(5, 1, 1, Fan::One), arrival(4, 1, 1, Fan::One)];
    let source = back.into_iter().map(Ok::<_, Infallible>);
    assert_eq!(
        run(&c, source, &tens(), &mut Log::default()),
        Err(RunError::Disordered {
            at: Nanos(4),
            before: Nanos(5)
        })
    );
    let failing = std::iter::once(Err(std::fmt::Error));
    assert_eq!(
        run(&c, failing, &tens(), &mut Log::default()),
        Err(RunError::Arrivals(std::fmt::Error))
    );
    let late = std::iter::once(Ok::<_, Infallible>(arrival(u64::MAX, 1, 1, Fan::One)));
    assert_eq!(
        run(&c, late, &tens(), &mut Log::default()),
        Err(RunError::ClockOverflow)
    );
}

#[test]
fn random_runs_conserve_slots_and_requests() {
    let mut seed = 1_u64;
    let mut random = |n: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    let mut at = 0;
    let arrivals: Vec<Arrival> = (0..3000)
        .map(|_| {
            at += random(60);
            let fan = match random(6) {
                0 => Fan::Parallel(1 + u32::try_from(random(3)).unwrap()),
                1 => Fan::Beam(2),
                _ => Fan::One,
            };
            arrival(at, 1 + random(20), 1 + random(14), fan)
        })
        .collect();
    for server in SERVERS {
        for max_batch in [None, Some(3)] {
            let c = Config {
                max_batch,
                ..config(171, server)
            };
            let log = served(&c, &arrivals);
            assert_eq!(log.finished.len() + log.refused.len(), arrivals.len());
            let tokens: u64 = log.finished.iter().map(|f| f.output_tokens).sum();
            let firsts: u64 = log
                .finished
                .iter()
                .map(|f| f.output_tokens / f.longest_output)
                .sum();
            assert_eq!(log.gaps.len() as u64, tokens - firsts);
            let mut before = 0;
            for (at, s) in &log.states {
                assert!(*at >= before);
                before = *at;
                assert_eq!(sum(&s.slots), 171);
                assert!(s.running <= max_batch.unwrap_or(171));
                if server == Server::Orca(Reservation::Oracle) {
                    assert_eq!(s.slots.internal, 0);
                }
            }
            assert_eq!(log.states.last().unwrap().1.slots.free, 171);
            for f in &log.finished {
                assert!(f.arrived < f.first_token && f.first_token <= f.ended);
            }
        }
    }
}
