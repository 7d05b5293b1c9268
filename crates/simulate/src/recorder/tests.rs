//! The recorder beside a naive computation that keeps everything.

use plimsoll_report::simulation::Pool;

use super::*;
use crate::record::Slots;

/// A small generator (Knuth's MMIX constants): these tests need no good randomness.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn state(r: &mut Lcg) -> State {
    let live = r.below(1000);
    let reserved = r.below(200);
    State {
        slots: Slots {
            token_states: live,
            reserved,
            internal: r.below(16),
            external: r.below(30),
            cached: r.below(100),
            free: 2000 - live - reserved,
        },
        running: r.below(3) * r.below(40),
        batch: r.below(64),
        waiting: r.below(2) * r.below(10),
        preempted: r.below(2) * r.below(3),
        swapped_bytes: r.below(1 << 40),
    }
}

fn facts() -> RunFacts {
    RunFacts {
        label: "test".to_owned(),
        policies: Vec::new(),
        pool: Pool {
            slots: 2000,
            pages: None,
            page_bytes: None,
            block_size: None,
        },
        decision_hash: Some(0xabc),
    }
}

/// Spans (from, to, state) of a random run, steps between 0 and 2 `most` nanoseconds.
fn spans(seed: u64, n: usize, most: u64) -> Vec<(u64, u64, State)> {
    let mut r = Lcg(seed);
    let mut at = r.below(most);
    (0..n)
        .map(|_| {
            let from = at;
            at += r.below(2 * most);
            (from, at, state(&mut r))
        })
        .collect()
}

#[test]
fn means_and_buckets_are_those_of_a_naive_sum() {
    for (seed, most) in [(1, 900_000), (2, 30_000_000), (3, 4_000_000_000)] {
        let spans = spans(seed, 600, most);
        let end = spans.last().unwrap().1;
        let (from, to) = (end / 7, end - end / 5);
        let mut r = Recorder::new(RecorderConfig {
            from: Nanos(from),
            to: Some(Nanos(to)),
            buckets: 37,
            slo: None,
        });
        for (at, _, s) in &spans {
            r.state(Nanos(*at), s);
        }
        r.finish(Nanos(end));

        let mut naive = [Weighted::default(); 3];
        for (a, b, s) in &spans {
            let time = (*b).min(to).saturating_sub((*a).max(from));
            let v = fields(s);
            naive[0].add(time, &v);
            if s.running + s.batch > 0 {
                naive[1].add(time, &v);
            }
            if s.waiting + s.preempted > 0 {
                naive[2].add(time, &v);
            }
        }
        for (mine, naive) in r.weighted().iter().zip(&naive) {
            assert_eq!(**mine, *naive, "seed {seed}");
        }

        let width = r.series().width();
        assert!(r.series().buckets().len() <= 37);
        assert_eq!(r.series().buckets().len() as u64, (end - 1) / width + 1);
        for (i, bucket) in r.series().buckets().iter().enumerate() {
            let (lo, hi) = (i as u64 * width, (i as u64 + 1) * width);
            let mut sum = Weighted::default();
            let mut max = [0; FIELDS];
            for (a, b, s) in &spans {
                let time = (*b).min(hi).saturating_sub((*a).max(lo));
                if time > 0 {
                    sum.add(time, &fields(s));
                    for (m, v) in max.iter_mut().zip(fields(s)) {
                        *m = v.max(*m);
                    }
                }
            }
            assert_eq!(bucket.weighted, sum, "seed {seed}, bucket {i}");
            assert_eq!(bucket.maxima, max, "seed {seed}, bucket {i}");
        }
    }
}

#[test]
fn states_repeated_change_nothing() {
    let spans = spans(5, 300, 20_000_000);
    let mut once = Recorder::new(RecorderConfig::default());
    let mut often = Recorder::new(RecorderConfig::default());
    for (a, b, s) in &spans {
        once.state(Nanos(*a), s);
        for i in 0..4 {
            often.state(Nanos(a + (b - a) * i / 4), s);
        }
    }
    let end = Nanos(spans.last().unwrap().1);
    once.finish(end);
    often.finish(end);
    assert_eq!(once.series(), often.series());
    assert_eq!(once.weighted(), often.weighted());
}

#[test]
fn percentiles_are_those_of_a_sorted_list() {
    let mut r = Lcg(9);
    let mut rec = Recorder::new(RecorderConfig::default());
    let mut all: Vec<u64> = (0..5000).map(|_| 1000 + r.below(90_000_000)).collect();
    for gap in &all {
        rec.token(Nanos(*gap));
    }
    all.sort_unstable();
    let p = rec.run(facts()).latency.inter_token.unwrap();
    for (q, got) in [(50, p.p50_s), (90, p.p90_s), (99, p.p99_s)] {
        let exact = all[all.len() * q / 100 - 1] as f64 / 1e9;
        assert!((got / exact - 1.0).abs() < 0.001, "{q}: {got} for {exact}");
    }
    assert!((p.max_s - *all.last().unwrap() as f64 / 1e9).abs() < 1e-15);
    let mean = all.iter().sum::<u64>() as f64 / 5000.0 / 1e9;
    assert!((p.mean_s / mean - 1.0).abs() < 1e-12);
}

fn request(arrived: u64, first: u64, ended: u64, output: u64) -> Finished {
    Finished {
        arrived: Nanos(arrived),
        first_token: Nanos(first),
        ended: Nanos(ended),
        prompt_tokens: 10,
        output_tokens: output,
        longest_output: output,
        cached_tokens: 0,
        swaps: 0,
        recomputes: 0,
        tenant: (output % 2) as u32,
    }
}

#[test]
fn the_window_counts_throughput_by_end_and_latency_by_arrival() {
    let mut r = Recorder::new(RecorderConfig {
        from: Nanos(1_000),
        to: Some(Nanos(2_000)),
        buckets: 10,
        slo: Some(Slo {
            ttft: Some(Nanos(100)),
            per_token: Some(Nanos(10)),
            attain: 0.5,
        }),
    });
    r.state(Nanos(0), &State::default());
    r.finished(&request(500, 600, 1_500, 11)); // ends inside, arrived before
    r.finished(&request(1_100, 1_200, 1_290, 10)); // inside, and good
    r.finished(&request(1_900, 1_950, 5_000, 4)); // arrived inside, ends after
    r.refused(Nanos(1_500));
    r.refused(Nanos(2_000));
    r.reason(Nanos(1_500), "too long");
    r.cancelled(Nanos(999));
    r.finish(Nanos(6_000));
    let run = r.run(facts());
    assert_eq!(run.requests.finished, 2);
    assert_eq!((run.requests.refused, run.requests.cancelled), (1, 0));
    assert_eq!(run.requests.refusals[0].reason, "too long");
    assert_eq!(run.latency.e2e.unwrap().count, 2);
    // One of two that finished and one that was refused.
    let goodput = run.goodput.unwrap();
    assert_eq!((goodput.requests, goodput.attained), (1, false));
    assert!((goodput.share - 1.0 / 3.0).abs() < 1e-12);
    assert!((run.duration_s - 1e-6).abs() < 1e-15);
    assert!((run.requests_per_s - 2e6).abs() < 1.0);
    assert_eq!(run.tenants.iter().map(|t| t.finished).sum::<u64>(), 2);
    assert_eq!(run.decision_hash.as_deref(), Some("0000000000000abc"));
}

#[test]
fn counts_reach_buckets_and_the_run() {
    let mut r = Recorder::new(RecorderConfig {
        buckets: 4,
        ..RecorderConfig::default()
    });
    let waiting = State {
        waiting: 1,
        ..State::default()
    };
    let one = Counts {
        steps: 1,
        queried_tokens: 8,
        cached_tokens: 2,
        ..Counts::default()
    };
    for i in 0..100_u64 {
        let s = if i < 30 { waiting } else { State::default() };
        r.state(Nanos(i * 1_000_000), &s);
        r.count(Nanos(i * 1_000_000), &one);
    }
    r.pages(7);
    r.pages(3);
    r.finish(Nanos(100_000_000));
    let run = r.run(facts());
    assert_eq!(run.steps, 100);
    assert_eq!(run.kv.saturated_steps, 30);
    assert_eq!(run.series.steps.iter().sum::<u64>(), 100);
    assert_eq!(run.series.steps.len(), run.series.start_s.len());
    assert_eq!(run.prefix_cache.hit_share, Some(0.25));
    assert_eq!(run.kv.high_water_pages, Some(7));
    // Nothing was said of slots, so there is no share to speak of.
    assert_eq!(run.kv.live_share_at_saturation, None);
}

#[test]
fn an_empty_run_is_a_run() {
    let run = Recorder::new(RecorderConfig::default()).run(facts());
    assert_eq!(run.requests.finished, 0);
    assert!(run.latency.ttft.is_none());
    assert!(run.series.start_s.is_empty());
    serde_json::to_string(&run).unwrap();
}

#[test]
fn a_service_level_may_leave_a_bound_out() {
    let f = request(0, 200, 290, 10); // 200 ns to the first token, then 10 ns each
    let slo = |ttft: Option<u64>, per_token: Option<u64>| Slo {
        ttft: ttft.map(Nanos),
        per_token: per_token.map(Nanos),
        attain: 0.99,
    };
    assert!(slo(Some(200), Some(10)).kept(&f));
    assert!(!slo(Some(199), Some(10)).kept(&f));
    assert!(!slo(Some(200), Some(9)).kept(&f));
    assert!(slo(None, Some(10)).kept(&f) && slo(Some(200), None).kept(&f));
    assert!(slo(None, None).attained(99, 100));
    assert!(!slo(None, None).attained(98, 100));
    // 0.07 * 100 is above 7 in binary.
    let low = Slo {
        attain: 0.07,
        ..slo(None, None)
    };
    assert!(low.attained(7, 100));
}
