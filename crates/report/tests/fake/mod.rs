//! A made-up report, the same every time: five ways to allocate under one load that swells and ebbs.
//! Nothing of it was simulated.

use plimsoll_report::simulation::*;

/// Slots of every pool.
const SLOTS: f64 = 15_728.0;

/// Buckets, three seconds each: 20 minutes.
const BUCKETS: usize = 400;

struct Style {
    label: &'static str,
    /// Shares of what is held: live, reserved, internal, external.
    held: [f64; 4],
    /// Slots that one sequence holds.
    each: f64,
    /// Times slower than the fastest.
    slow: f64,
}

fn named(name: &str, value: &str) -> Named {
    Named {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

/// What `f` gives for each bucket, as a track whose maxima are a little above.
fn track(f: impl Fn(usize) -> f64) -> Track {
    let mean: Vec<f64> = (0..BUCKETS)
        .map(|i| (f(i).max(0.0) * 1000.0).round() / 1000.0)
        .collect();
    let max = mean.iter().map(|m| (m * 1.03).ceil() as u64).collect();
    Track { mean, max }
}

/// A wobble between -1 and 1.
fn wobble(i: usize, k: u64) -> f64 {
    let x = (i as u64 + 1)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_mul(k * 2 + 1);
    ((x >> 40) % 2001) as f64 / 1000.0 - 1.0
}

/// How full the pool would like to be, of 1.
fn demand(i: usize) -> f64 {
    let t = i as f64 / BUCKETS as f64;
    (1.25 * (std::f64::consts::PI * t).sin().powf(0.6) + 0.04 * wobble(i, 3)).max(0.0)
}

fn percentiles(p50_s: f64, tail: f64, count: u64) -> Option<Percentiles> {
    Some(Percentiles {
        count,
        mean_s: p50_s * 1.2,
        p50_s,
        p90_s: p50_s * tail.sqrt(),
        p99_s: p50_s * tail,
        max_s: p50_s * tail * 1.7,
    })
}

fn run(style: &Style) -> Run {
    let paged = style.label == "paged";
    let fill = |i: usize| demand(i).min(1.0) * if paged { 0.995 } else { 1.0 };
    let held = |k: usize| {
        track(|i| {
            SLOTS * fill(i) * style.held[k] * (1.0 + 0.02 * wobble(i, k as u64 + 5)).min(1.02)
        })
    };
    let running = |i: usize| SLOTS * fill(i) / style.each;
    let waiting = |i: usize| ((demand(i) - 0.9) * 60.0 * style.slow * style.slow).max(0.0);
    let mut series = TimeSeries {
        width_s: 3.0,
        start_s: (0..BUCKETS).map(|i| i as f64 * 3.0).collect(),
        token_states: held(0),
        reserved: held(1),
        internal: held(2),
        external: held(3),
        cached: track(|i| {
            if paged {
                SLOTS * (1.0 - fill(i)) * 0.6
            } else {
                0.0
            }
        }),
        running: track(running),
        batch: track(|i| running(i) * 0.97),
        waiting: track(waiting),
        preempted: track(|i| if paged { (demand(i) - 1.0) * 9.0 } else { 0.0 }),
        swapped_bytes: track(|i| if paged { (demand(i) - 1.0) * 3e9 } else { 0.0 }),
        steps: (0..BUCKETS).map(|i| 60 + i as u64 % 7).collect(),
        swap_preemptions: vec![0; BUCKETS],
        recompute_preemptions: vec![0; BUCKETS],
        queried_tokens: vec![0; BUCKETS],
        cached_tokens: vec![0; BUCKETS],
        ..TimeSeries::default()
    };
    let taken = |i: usize| {
        series.token_states.mean[i]
            + series.reserved.mean[i]
            + series.internal.mean[i]
            + series.external.mean[i]
            + series.cached.mean[i]
    };
    series.free = track(|i| SLOTS - taken(i));
    if paged {
        for i in 0..BUCKETS {
            series.swap_preemptions[i] = (waiting(i) * (0.3 + 0.2 * wobble(i, 8))) as u64 / 4;
            series.recompute_preemptions[i] = (waiting(i) * (0.2 + 0.2 * wobble(i, 9))) as u64 / 5;
            series.queried_tokens[i] = 4000 + 900 * (i as u64 % 5);
            series.cached_tokens[i] = series.queried_tokens[i] * (10 + i as u64 / 12) / 100;
        }
    }
    let mean = |t: &Track| t.mean.iter().sum::<f64>() / BUCKETS as f64 / SLOTS;
    let whole = Classes {
        token_states: mean(&series.token_states),
        reserved: mean(&series.reserved),
        internal: mean(&series.internal),
        external: mean(&series.external),
        cached: mean(&series.cached),
        free: mean(&series.free),
    };
    let [token_states, reserved, internal, external] = style.held;
    let full = Classes {
        token_states,
        reserved,
        internal,
        external,
        cached: 0.0,
        free: (1.0 - style.held.iter().sum::<f64>()).max(0.0),
    };
    let (queried, cached) = (
        series.queried_tokens.iter().sum::<u64>(),
        series.cached_tokens.iter().sum::<u64>(),
    );
    let finished = (2400.0 / style.slow.sqrt()) as u64;
    Run {
        label: style.label.to_owned(),
        policies: vec![
            named("allocation", style.label),
            named("admission", "first come, first served"),
        ],
        pool: Pool {
            slots: SLOTS as u64,
            pages: paged.then_some(983),
            page_bytes: paged.then_some(13_107_200),
            block_size: paged.then_some(16),
        },
        from_s: 0.0,
        duration_s: 1200.0,
        busy_share: 0.985,
        requests: Requests {
            finished,
            refused: u64::from(!paged) * 3,
            cancelled: 0,
            refusals: Vec::new(),
        },
        requests_per_s: finished as f64 / 1200.0,
        output_tokens_per_s: finished as f64 * 338.0 / 1200.0,
        goodput: Some(Goodput {
            requests: (finished as f64 / style.slow / 1.1) as u64,
            requests_per_s: finished as f64 / style.slow / 1.1 / 1200.0,
            share: 1.0 / style.slow / 1.1,
            attained: style.slow < 1.0,
        }),
        latency: Latency {
            ttft: percentiles(0.212 * style.slow.powi(4), 30.0, finished),
            inter_token: percentiles(0.031 + 0.002 / style.slow, 3.5, finished * 337),
            e2e: percentiles(10.4 * style.slow.powi(2), 5.0, finished),
            normalised: percentiles(0.034 * style.slow.powi(3), 8.0, finished),
        },
        batch_mean: (0..BUCKETS).map(running).sum::<f64>() / BUCKETS as f64 * 0.97,
        running_mean: (0..BUCKETS).map(running).sum::<f64>() / BUCKETS as f64,
        steps: series.steps.iter().sum(),
        preemptions: Preemptions {
            swap: series.swap_preemptions.iter().sum(),
            recompute: series.recompute_preemptions.iter().sum(),
            swapped_bytes: if paged { 412_000_000_000 } else { 0 },
            recomputed_tokens: if paged { 96_412 } else { 0 },
            swap_time_s: if paged { 16.5 } else { 0.0 },
            recompute_time_s: if paged { 9.1 } else { 0.0 },
        },
        prefix_cache: PrefixCache {
            queried_tokens: queried,
            cached_tokens: cached,
            hit_share: (queried > 0).then(|| cached as f64 / queried as f64),
        },
        copied_blocks: 0,
        kv: KvUse {
            live_share_at_saturation: Some(full.token_states),
            saturated_s: 820.0,
            saturated_steps: 17_000,
            saturated: Some(full),
            busy: whole,
            whole,
            high_water_pages: paged.then_some(983),
            high_water_slots: SLOTS as u64,
        },
        tenants: vec![TenantCounts {
            tenant: 0,
            finished,
            output_tokens: finished * 338,
            good: 0,
            ttft_mean_s: Some(0.3),
            ttft_max_s: Some(2.0),
            e2e_mean_s: Some(11.0),
        }],
        decision_hash: Some(format!("{:016x}", 0x5eed_u64 * finished)),
        series,
    }
}

/// The report.
pub(crate) fn report() -> SimulationReport {
    let styles = [
        Style {
            label: "paged",
            held: [0.963, 0.0, 0.032, 0.0],
            each: 330.0,
            slow: 1.0,
        },
        Style {
            label: "orca-oracle",
            held: [0.386, 0.251, 0.0, 0.363],
            each: 610.0,
            slow: 1.35,
        },
        Style {
            label: "orca-pow2",
            held: [0.268, 0.179, 0.137, 0.416],
            each: 880.0,
            slow: 1.6,
        },
        Style {
            label: "orca-max",
            held: [0.204, 0.133, 0.573, 0.09],
            each: 2048.0,
            slow: 2.4,
        },
        Style {
            label: "static",
            held: [0.12, 0.1, 0.62, 0.16],
            each: 2300.0,
            slow: 3.1,
        },
    ];
    SimulationReport {
        schema: SIMULATION_SCHEMA.to_owned(),
        setup: Setup {
            model: "facebook/opt-13b".to_owned(),
            device: "1 x A100-40G".to_owned(),
            kv_bytes: 12_884_377_600,
            swap_bytes: 34_359_738_368,
            max_batched_tokens: 2560,
            max_sequences: 256,
            seed: 20_231_023,
            workload: "ShareGPT lengths (161 in, 338 out on average), Poisson arrivals, 2 requests/s".to_owned(),
            requests: 2400,
            costs: vec![named("flops_per_s", "171,600,000,000,000"), named("memory_bytes_per_s", "1,244,000,000,000")],
            slo: Some(SloBounds { ttft_s: Some(2.0), per_token_s: Some(0.1), attain: 0.99 }),
            modelled: vec![
                "Every block of the KV pool, and every decision of the scheduler that serves.".to_owned(),
                "Time of a step by a roofline of weights, attention, transfers and fixed costs.".to_owned(),
            ],
            not_modelled: vec![
                "Kernels that fall short of the assumed rates, clocks that throttle, other processes.".to_owned(),
                "Tokenising, the network, and clients that go away.".to_owned(),
            ],
        },
        runs: styles.iter().map(run).collect(),
        notes: vec!["Made up for a picture: nothing here was simulated.".to_owned()],
    }
}
