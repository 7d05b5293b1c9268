//! The scheduler and the block manager under randomised load: every invariant after every event, every answer
//! equal to the same request run alone, everybody ends, nothing is left.
//!
//! Each seed picks a layout, a pool, policies, requests and faults (swarm testing: most features are off in
//! most seeds). CI runs 2,000 seeds; more with
//! `PLIMSOLL_SEEDS=200000 cargo test --release -p plimsoll-schedule --test chaos`, one with
//! `PLIMSOLL_SEED=17`. A failing seed is run again with ever fewer requests, and the smallest is reported.

mod alone;
mod shadow;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use alone::alone;
use plimsoll_kv::{Census, KvCache, KvConfig, Layout, PageState, PageView, Pin, Scope, TenantId};
use plimsoll_program::{Group, GroupKind, PoolGeometry};
use plimsoll_schedule::{
    Admission, AttentionWork, Beam, CostModel, Driver, End, Executor as _, Fan, Input, Limits,
    Notice, Preempt, Rates, Request, RequestId, Scheduler, SchedulerConfig, Step, Tenant, Turn,
    Work, replay,
};
use plimsoll_units::{Bytes, Nanos};
use shadow::{Shadow, mix};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = mix(self.0);
        self.0
    }

    /// From `low` to `high`, both possible.
    fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.next() % of.len() as u64) as usize]
    }
}

/// Everything that a seed decides.
#[derive(Clone, Debug)]
struct Setup {
    layout: Layout,
    pages: u32,
    swap_pages: u32,
    prefix_cache: bool,
    vocab: u32,
    config: SchedulerConfig,
    cost: CostModel,
    requests: u64,
    fans: bool,
    cancels: u64,
    pins: u64,
    fail_steps: u64,
    fail_transfers: u64,
    fail_rows: u64,
    /// Panics of the executor, after which everything begins anew.
    panics: u64,
    /// Steps after which faults end.
    rough_steps: u64,
    jumps: u64,
}

fn group(kind: GroupKind, slots: u64, state_pages: u64) -> Group {
    Group {
        kind,
        layers: 1,
        rate: Bytes::new(if kind == GroupKind::State { 40 } else { 8 }),
        slots,
        state_pages,
        padding: Bytes::ZERO,
    }
}

fn layout(r: &mut Random) -> Layout {
    let slots = r.range(1, 5);
    let full = group(GroupKind::Full, slots, 0);
    let window = |r: &mut Random| group(GroupKind::Window(r.range(1, 9)), r.range(1, 4), 0);
    let groups = match r.range(0, 9) {
        0..=4 => vec![full],
        5 => vec![full, window(r)],
        6 => vec![window(r)],
        7 => vec![
            full,
            group(GroupKind::Chunk(r.range(1, 9)), r.range(1, 3), 0),
        ],
        8 => vec![full, group(GroupKind::State, 0, r.range(1, 2))],
        _ => vec![group(GroupKind::Latent, slots, 0), window(r)],
    };
    let geometry = PoolGeometry {
        page: Bytes::new(64),
        groups,
    };
    let mut layout = Layout::new(&geometry).expect("a small layout");
    layout.snapshot = layout.unit * r.range(1, 3) as u32;
    layout
}

fn setup(seed: u64) -> Setup {
    let mut r = Random(mix(seed));
    let r = &mut r;
    let layout = layout(r);
    let pages = r.range(2, 40) as u32;
    let tenants = if r.chance(30) { r.range(2, 3) } else { 1 } as usize;
    let limits = Limits {
        max_model_len: r.range(8, 60) as u32,
        vocab: r.range(2, 5) as u32,
        max_width: 5,
        tenants: tenants as u16,
    };
    let mut config = SchedulerConfig::new(limits);
    config.max_seqs = r.range(1, 8) as u32;
    config.max_batched_tokens = r.range(u64::from(config.max_seqs), 24) as u32;
    config.max_queued = if r.chance(20) { 3 } else { 1000 };
    config.admission = r.pick(&[
        Admission::Optimistic,
        Admission::Optimistic,
        Admission::Guaranteed,
    ]);
    config.preempt = r.pick(&[Preempt::Auto, Preempt::Swap, Preempt::Recompute]);
    config.max_preemptions = if r.chance(30) {
        16
    } else {
        r.range(0, 3) as u32
    };
    config.headroom_tokens = r.pick(&[0, 0, 1, 8]);
    config.class = Nanos(r.pick(&[0, 10_000, 1_000_000]));
    config.tenants = (0..tenants)
        .map(|_| {
            if tenants == 1 && r.chance(80) {
                return Tenant::FREE;
            }
            Tenant {
                floor: r.range(0, u64::from(pages) / tenants as u64) as u32,
                cap: if r.chance(50) {
                    u32::MAX
                } else {
                    r.range(1, u64::from(pages)) as u32
                },
            }
        })
        .collect();
    let faults = r.chance(40);
    Setup {
        pages,
        swap_pages: if r.chance(70) {
            r.range(1, 40) as u32
        } else {
            0
        },
        prefix_cache: r.chance(50),
        vocab: limits.vocab,
        cost: CostModel {
            work: Work {
                weight_bytes: 1000,
                token_flops: 1000,
                head_flops: 10,
                attention: vec![AttentionWork {
                    reach: None,
                    token_bytes: 8,
                    pair_flops: 10,
                }],
            },
            rates: Rates {
                flops_per_s: 1_000_000_000,
                memory_bytes_per_s: 1_000_000_000,
                link_bytes_per_s: r.pick(&[1_000_000, 100_000_000, 10_000_000_000]),
                transfer_ns: r.pick(&[0, 100, 10_000]),
                transfers_per_block: 1,
                step_ns: 100,
                row_ns: 10,
            },
        },
        config,
        layout,
        requests: r.range(2, 25),
        fans: r.chance(40),
        cancels: if r.chance(30) { 8 } else { 0 },
        pins: if r.chance(15) { 10 } else { 0 },
        fail_steps: if faults && r.chance(50) { 30 } else { 0 },
        fail_transfers: if faults && r.chance(70) { 100 } else { 0 },
        rough_steps: if faults { r.range(0, 200) } else { 0 },
        jumps: if r.chance(20) { 10 } else { 0 },
        fail_rows: if r.chance(15) { 5 } else { 0 },
        panics: if r.chance(10) { 30 } else { 0 },
    }
}

struct Asked {
    salt: Vec<u8>,
    prompt: Arc<[u32]>,
    max_tokens: u32,
    fan: Fan,
    seed: u64,
    preempted: u32,
    uncached: bool,
    ended: bool,
}

fn scheduler(s: &Setup) -> Scheduler {
    let mut kv = KvConfig::new(s.layout.clone(), s.pages);
    kv.swap_pages = s.swap_pages;
    kv.prefix_cache = s.prefix_cache;
    kv.tenants = s.config.limits.tenants;
    Scheduler::new(s.config.clone(), KvCache::new(kv), s.cost.clone())
}

fn request(s: &Setup, r: &mut Random, id: u64, prompts: &mut Vec<Vec<u32>>) -> (Request, Asked) {
    let longest = u64::from(s.config.limits.max_model_len);
    let mut prompt: Vec<u32> = Vec::new();
    if r.chance(50) && !prompts.is_empty() {
        let other = &prompts[(r.next() % prompts.len() as u64) as usize];
        prompt.extend(&other[..r.range(0, other.len() as u64) as usize]);
    }
    for _ in 0..r.range(1, longest / 2) {
        prompt.push(r.range(0, u64::from(s.vocab) - 1) as u32);
    }
    prompt.truncate(longest as usize - 1);
    let max_tokens = r.range(1, longest - prompt.len() as u64) as u32;
    prompts.push(prompt.clone());
    let fan = match r.range(0, 9) {
        0..=1 if s.fans => {
            let best_of = r.range(1, 4) as u32;
            Fan::Sample {
                n: r.range(1, u64::from(best_of)) as u32,
                best_of,
            }
        }
        2..=4 if s.fans => Fan::Beam(Beam {
            width: r.range(1, 4) as u32,
            length_penalty: r.pick(&[0.0, 1.0, -0.5, 2.0]),
            early_stopping: r.chance(50),
        }),
        _ => Fan::ONE,
    };
    let tenant = r.range(0, u64::from(s.config.limits.tenants) - 1) as u16;
    let scope = Scope {
        tenant: TenantId(tenant),
        salt: if r.chance(70) {
            vec![tenant as u8]
        } else {
            Vec::new()
        },
        ..Scope::default()
    };
    let prompt: Arc<[u32]> = prompt.into();
    let mut made = Request::new(
        RequestId(id),
        prompt.clone(),
        max_tokens,
        fan,
        scope,
        &s.config.limits,
    )
    .expect("a request within the limits")
    .with_priority(r.range(0, 4) as i32 - 2);
    let uncached = r.chance(10);
    if uncached {
        made = made.without_cached_prefix();
    }
    let asked = Asked {
        salt: made.scope().salt.clone(),
        prompt,
        max_tokens,
        fan,
        seed: r.next(),
        preempted: 0,
        uncached,
        ended: false,
    };
    (made, asked)
}

/// Runs one seed with at most `limit` requests.
fn run(seed: u64, limit: u64) -> u64 {
    let s = setup(seed);
    let mut r = Random(mix(seed ^ 0xabcd));
    let mut driver: Driver<Vec<Input>> = Driver::new(scheduler(&s), Vec::new());
    let mut shadow = Shadow::new(s.layout.clone(), s.pages, s.vocab);
    shadow.random = mix(seed);
    shadow.fail_steps = s.fail_steps;
    shadow.fail_transfers = s.fail_transfers;
    shadow.fail_rows = s.fail_rows;
    // Pins are of a pool, and are gone with it.
    shadow.panics = if s.pins == 0 { s.panics } else { 0 };
    let mut asked: BTreeMap<RequestId, Asked> = BTreeMap::new();
    let mut prompts = Vec::new();
    let mut pins: Vec<Pin> = Vec::new();
    let mut notices = Vec::new();
    let (mut now, mut sent) = (0, 0);
    let wanted = s.requests.min(limit);
    let mut idle = 0;
    let mut steps = 0_u64;
    // Safety first, with faults; then liveness, without.
    loop {
        let calm = sent >= wanted && steps >= s.rough_steps;
        if calm {
            shadow.fail_steps = 0;
            shadow.fail_transfers = 0;
            shadow.panics = 0;
            while let Some(pin) = pins.pop() {
                driver.scheduler_mut().unpin(pin);
            }
            if steps > 0 && driver.scheduler().is_idle() {
                break;
            }
        }
        while sent < wanted && r.chance(40) {
            let (req, a) = request(&s, &mut r, sent, &mut prompts);
            let id = req.id();
            shadow.seeds.insert(id, a.seed);
            if driver.submit(req, Nanos(now)).is_ok() {
                asked.insert(id, a);
            }
            sent += 1;
        }
        if !calm && r.chance(s.cancels) && sent > 0 {
            let id = RequestId(r.range(0, sent - 1));
            driver.cancel(id, Nanos(now));
            assert!(
                !driver.cancel(id, Nanos(now)),
                "a second cancel does nothing"
            );
        }
        if !calm && r.chance(s.pins) && !prompts.is_empty() {
            let p = &prompts[(r.next() % prompts.len() as u64) as usize];
            pins.extend(driver.scheduler_mut().pin(&Scope::default(), p));
        }
        if r.chance(30) || calm {
            while let Some(pin) = pins.pop() {
                driver.scheduler_mut().unpin(pin);
            }
        }
        driver
            .scheduler()
            .check_integrity(&pins)
            .expect("before a step");
        let watch = |sched: &Scheduler, step: &Step| {
            sched.check_integrity(&pins).expect("during a step");
            assert!(
                step.tokens.len() <= s.config.max_batched_tokens as usize,
                "T is exceeded"
            );
            assert!(
                step.rows.len() <= s.config.max_seqs as usize,
                "R is exceeded"
            );
            let usage = sched.kv().usage().expect("small sizes");
            let all = usage.free + usage.held + usage.cached + usage.in_transit;
            assert_eq!(all, u64::from(s.pages), "pages are lost");
            let c = sched.census(&pins);
            let counted =
                c.free + c.cached + c.in_transit + c.requests + c.beams + c.shared + c.pinned;
            assert_eq!(counted, u64::from(s.pages), "owners do not add up");
            check_view(sched, &c, usage.held);
        };
        let turn = catch_unwind(AssertUnwindSafe(|| {
            driver.turn(&mut shadow, Nanos(now), watch)
        }));
        let turn = turn.unwrap_or_else(|panic| {
            if !std::mem::take(&mut shadow.panicked) {
                resume_unwind(panic);
            }
            driver.restart();
            shadow.restart();
            assert!(driver.scheduler().is_idle(), "somebody is still there");
            // Whoever was in flight is told by whoever restarts.
            asked.values_mut().for_each(|a| a.ended = true);
            Ok(Turn::Idle)
        });
        driver
            .scheduler()
            .check_integrity(&pins)
            .expect("after a step");
        for (tenant, t) in s.config.tenants.iter().enumerate() {
            let held = driver.scheduler().kv().charged(TenantId(tenant as u16));
            assert!(
                held <= u64::from(t.cap),
                "tenant {tenant} holds {held} of {}",
                t.cap
            );
        }
        now += 1000;
        if r.chance(s.jumps) {
            now += 1_000_000_000;
        }
        steps += 1;
        match turn {
            Ok(Turn::Idle) => {
                idle += 1;
                assert!(
                    driver.scheduler().is_idle() || idle < 2,
                    "somebody waits and nothing is done"
                );
                if driver.scheduler().is_idle() {
                    idle = 0;
                }
            }
            _ => idle = 0,
        }
        assert!(steps < 20_000, "no end after 20,000 steps");
        driver.scheduler_mut().take_notices(&mut notices);
        for n in &notices {
            match n {
                Notice::Token { .. } => {}
                Notice::Preempted { request, .. } => {
                    let a = asked.get_mut(request).expect("a request that came");
                    a.preempted += 1;
                    assert!(
                        a.preempted <= s.config.max_preemptions,
                        "request {} gave way {} times",
                        request.0,
                        a.preempted
                    );
                }
                Notice::Cancelled { request } => {
                    let a = asked.get_mut(request).expect("a request that came");
                    assert!(!std::mem::replace(&mut a.ended, true), "it ends twice");
                }
                Notice::Finished(e) => {
                    let hit = e.cached_tokens as usize;
                    assert!(hit == 0 || !asked[&e.request].uncached, "it read the cache");
                    // Windows and chunks alone can resume where nothing is kept.
                    let all = s
                        .layout
                        .groups
                        .iter()
                        .any(plimsoll_kv::GroupLayout::keeps_all);
                    if hit > 0 && !s.fans && all {
                        let own = &asked[&e.request];
                        let shares = |(id, a): (&RequestId, &Asked)| {
                            let mut all = a.prompt.to_vec();
                            let max = a.max_tokens as usize;
                            all.extend(
                                alone(&s.layout, &a.prompt, max, a.fan, a.seed, s.vocab).concat(),
                            );
                            let same = all.len() >= hit && all[..hit] == own.prompt[..hit];
                            *id != e.request && a.salt == own.salt && same
                        };
                        assert!(
                            asked.iter().any(shares),
                            "request {} found {hit} tokens that nobody of its salt had",
                            e.request.0
                        );
                    }
                    let a = asked.get_mut(&e.request).expect("a request that came");
                    assert!(!std::mem::replace(&mut a.ended, true), "it ends twice");
                    let got: Vec<_> = e.completions.iter().map(|c| c.tokens.clone()).collect();
                    let want = alone(
                        &s.layout,
                        &a.prompt,
                        a.max_tokens as usize,
                        a.fan,
                        a.seed,
                        s.vocab,
                    );
                    if e.completions.iter().any(|c| c.end == End::Error) {
                        assert!(s.fail_rows > 0 && !e.completions.is_empty());
                        assert!(e.completions.iter().all(|c| c.end == End::Error));
                        if a.fan == Fan::ONE {
                            assert!(want[0].starts_with(&got[0]), "it had other tokens");
                        }
                        continue;
                    }
                    assert_eq!(
                        got, want,
                        "request {} answers otherwise than alone",
                        e.request.0
                    );
                }
            }
        }
    }
    assert!(asked.values().all(|a| a.ended), "somebody never ended");
    let sched = driver.scheduler();
    let usage = sched.kv().usage().expect("small sizes");
    assert_eq!(
        (usage.held, usage.swapped, usage.in_transit),
        (0, 0, 0),
        "something is left"
    );
    let (forgotten, again) = (
        sched.stats().forgotten_tokens,
        sched.stats().recomputed_tokens,
    );
    assert!(
        again <= forgotten,
        "{again} tokens are computed again, of {forgotten} forgotten"
    );
    // Everybody ends, so what nothing keeps is computed again; of several sequences some may end elsewhere.
    if !s.prefix_cache && !s.fans && s.cancels == 0 && s.fail_rows == 0 && s.panics == 0 {
        assert_eq!(again, forgotten, "tokens computed again and forgotten");
    }
    let hash = sched.decision_hash();
    if s.pins == 0 {
        let mut again = scheduler(&s);
        replay(&mut again, driver.into_log());
        assert_eq!(again.decision_hash(), hash, "the log replays otherwise");
    }
    hash
}

fn fails(seed: u64, limit: u64) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| {
        run(seed, limit);
    }))
    .err()
    .map(|e| {
        e.downcast_ref::<String>()
            .cloned()
            .or_else(|| e.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default()
    })
}

/// Every bug of `plimsoll_kv::planted` is found, each by some seed.
#[cfg(feature = "planted-bugs")]
#[test]
fn every_planted_bug_is_found() {
    use plimsoll_kv::planted::{ALL, plant};
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for &bug in ALL {
        plant(Some(bug));
        let found = (0..4000).find_map(|seed| fails(seed, u64::MAX).map(|why| (seed, why)));
        plant(None);
        match found {
            Some((seed, why)) => {
                let why = why.lines().next().unwrap_or_default().to_owned();
                println!("{bug:?}: seed {seed}: {why}");
            }
            None => missed.push(bug),
        }
    }
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Another order of victims is another run, though every invariant holds.
#[cfg(feature = "planted-bugs")]
#[test]
fn another_order_of_victims_changes_the_hash() {
    use plimsoll_kv::planted::{Bug, plant};
    let differ = (0..300)
        .filter(|&seed| {
            let hash = run(seed, u64::MAX);
            plant(Some(Bug::FirstGivesWay));
            let other = run(seed, u64::MAX);
            plant(None);
            assert_eq!(
                run(seed, u64::MAX),
                hash,
                "seed {seed} runs otherwise again"
            );
            hash != other
        })
        .count();
    assert!(differ > 0, "no seed has victims to choose from");
    println!("{differ} of 300 seeds decide otherwise");
}

#[test]
fn every_seed_holds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("PLIMSOLL_SEED") {
        println!("{:#?}", setup(seed));
        run(seed, number("PLIMSOLL_REQUESTS").unwrap_or(u64::MAX));
        return;
    }
    let seeds = number("PLIMSOLL_SEEDS").unwrap_or(2000);
    let first = number("PLIMSOLL_FIRST").unwrap_or(0);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut failures = Vec::new();
    for seed in first..first + seeds {
        if fails(seed, u64::MAX).is_none() {
            continue;
        }
        let smallest = (1..=25).find_map(|n| fails(seed, n).map(|why| (n, why)));
        failures.push((seed, smallest));
        if failures.len() >= 5 {
            break;
        }
    }
    std::panic::set_hook(hook);
    for (seed, smallest) in &failures {
        let (n, why) = smallest
            .clone()
            .unwrap_or((25, "only in the first run".into()));
        println!("seed {seed}: {why}\n  again: PLIMSOLL_SEED={seed} PLIMSOLL_REQUESTS={n}");
    }
    assert!(failures.is_empty(), "{} seeds fail", failures.len());
}

/// What whoever looks is shown is what is there.
fn check_view(sched: &Scheduler, census: &Census, held: u64) {
    let view = sched.view(usize::MAX);
    let of = |state| view.pages.pages.iter().filter(|p| p.state == state).count() as u64;
    assert_eq!(of(PageState::Free), census.free, "free pages");
    assert_eq!(of(PageState::Cached), census.cached, "cached pages");
    assert_eq!(
        of(PageState::InTransit),
        census.in_transit,
        "pages in transit"
    );
    let shown = of(PageState::Held) + of(PageState::Shared) + of(PageState::Beam);
    assert_eq!(shown, held, "held pages");
    let (running, waiting) = (sched.running(), sched.waiting());
    let there = running + waiting + sched.preempted();
    assert_eq!((view.requests.len(), view.left_out), (there, 0));
    let owned = |place: usize| {
        let own = |p: &&PageView| p.owner.is_some_and(|o| o as usize == place);
        view.pages.pages.iter().filter(own).count()
    };
    for (place, holding) in view.pages.holdings.iter().enumerate() {
        let alone = (holding.pages - holding.shared) as usize;
        assert_eq!(owned(place), alone, "pages of one request alone");
    }
    let few = sched.view(2);
    assert_eq!(few.requests.len() + few.left_out, there);
    assert_eq!(few.pages, view.pages);
}
