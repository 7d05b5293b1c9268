//! One scheduler step with 1,000 sequences decoding and 10,000 requests waiting: `schedule` alone, and with
//! `commit`. `cargo bench -p plimsoll-schedule`.

use std::sync::Arc;

use plimsoll_kv::{KvCache, KvConfig, Layout, Scope};
use plimsoll_schedule::{
    AttentionWork, CostModel, Draw, Fan, Limits, Output, Rates, Request, RequestId, RowOutput,
    Scheduler, SchedulerConfig, StepOutput, Work,
};
use plimsoll_units::{Bytes, Nanos};

fn main() {
    divan::main();
}

fn cost() -> CostModel {
    CostModel {
        work: Work {
            weight_bytes: 1 << 30,
            token_flops: 1 << 30,
            head_flops: 1 << 20,
            attention: vec![AttentionWork {
                reach: None,
                token_bytes: 1 << 17,
                pair_flops: 1 << 16,
            }],
        },
        rates: Rates {
            flops_per_s: 1 << 47,
            memory_bytes_per_s: 1 << 40,
            link_bytes_per_s: 1 << 34,
            transfer_ns: 10_000,
            transfers_per_block: 1,
            step_ns: 1000,
            row_ns: 10,
        },
    }
}

/// 1,000 requests of 512 tokens that decode, 10,000 that wait; the prefix cache on or off.
fn loaded(prefix_cache: bool) -> Scheduler {
    let mut kv = KvConfig::new(Layout::full(16, Bytes::new(1 << 17)), 110_000);
    kv.prefix_cache = prefix_cache;
    let mut config = SchedulerConfig::new(Limits {
        max_model_len: 1 << 20,
        vocab: 32_000,
        max_width: 8,
        tenants: 1,
    });
    config.max_seqs = 1000;
    config.max_batched_tokens = 8192;
    let limits = config.limits;
    let mut s = Scheduler::new(config, KvCache::new(kv), cost());
    for id in 0..11_000 {
        let prompt: Arc<[u32]> = (0..512).map(|i| (id as u32 * 7919 + i) % 32_000).collect();
        let r = Request::new(
            RequestId(id),
            prompt,
            1000,
            Fan::ONE,
            Scope::default(),
            &limits,
        );
        s.submit(r.expect("valid"), Nanos(id)).expect("let in");
    }
    let mut now = 0;
    // Until everybody decodes.
    for _ in 0..80 {
        now += 1;
        let output = step(&mut s, now);
        s.commit(output, Nanos(now)).expect("as many rows");
    }
    s
}

fn step(s: &mut Scheduler, now: u64) -> StepOutput {
    let Some(step) = s.schedule(Nanos(now)) else {
        return StepOutput::default();
    };
    let rows = step
        .rows
        .iter()
        .map(|r| match r.output {
            Output::None => RowOutput::None,
            _ => RowOutput::One(Draw {
                token: r.start % 1000,
                logprob: -1.0,
                ends: false,
            }),
        })
        .collect();
    StepOutput {
        rows,
        ..StepOutput::default()
    }
}

#[divan::bench(args = [false, true], sample_count = 200)]
fn schedule_only(bencher: divan::Bencher, prefix_cache: bool) {
    let mut s = loaded(prefix_cache);
    let mut notices = Vec::new();
    let mut now = 1000;
    let mut pending: Option<StepOutput> = None;
    let cell = std::cell::RefCell::new((&mut s, &mut notices, &mut pending));
    bencher
        .with_inputs(|| {
            let mut c = cell.borrow_mut();
            let (s, notices, pending) = &mut *c;
            if let Some(output) = pending.take() {
                s.commit(output, Nanos(now)).expect("as many rows");
            }
            s.take_notices(notices);
            now += 1;
        })
        .bench_local_values(|()| {
            let mut c = cell.borrow_mut();
            let (s, _, pending) = &mut *c;
            let rows = s.schedule(Nanos(5)).map_or(0, |step| step.rows.len());
            assert_eq!(rows, 1000);
            let one = RowOutput::One(Draw {
                token: 7,
                logprob: -1.0,
                ends: false,
            });
            **pending = Some(StepOutput {
                rows: vec![one; rows],
                ..StepOutput::default()
            });
        });
}

#[divan::bench(args = [false, true], sample_count = 200)]
fn schedule_and_commit(bencher: divan::Bencher, prefix_cache: bool) {
    let mut s = loaded(prefix_cache);
    let mut notices = Vec::new();
    let mut now = 1000;
    bencher.bench_local(|| {
        now += 1;
        let output = step(&mut s, now);
        assert_eq!(output.rows.len(), 1000);
        s.commit(output, Nanos(now)).expect("as many rows");
        s.take_notices(&mut notices);
    });
}
