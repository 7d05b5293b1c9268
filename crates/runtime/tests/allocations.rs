//! What the allocator says: in a worst-case step every arena is used to its last byte, everything else stays within
//! the plan's reserve, and thousands of steps leave nothing behind.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "an allocator that counts; helpers of tests"
)]

mod support;

use std::alloc::{GlobalAlloc, Layout as AllocLayout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use plimsoll_device::Device;
use plimsoll_kernels::{Inputs, Level, Pool};
use plimsoll_kv::{KvCache, KvConfig, Layout, Scope};
use plimsoll_model::ModelSpec;
use plimsoll_plan::{
    Deployment, Engine as Engines, KvType, Load, MemoryMap, Region, Settings, evaluate,
};
use plimsoll_program::{
    GroupKind, KvRules, Limits as Sizes, LowerError, Parallel, Program, Rank, lower_rank,
};
use plimsoll_runtime::sample::{Sampling, SamplingParams};
use plimsoll_runtime::text::Stops;
use plimsoll_runtime::text::{Tokenizer, TokenizerConfig};
use plimsoll_runtime::weights::{Checkpoint, load};
use plimsoll_runtime::{
    Arena, Backend, Choices, Cpu, Engine, Meeting, Memory, Ranks, Runner, SwapSpace,
};
use plimsoll_schedule::{
    Fan, Limits, NoLog, Notice, Request, RequestId, Scheduler, SchedulerConfig,
};
use plimsoll_units::{Bytes, DType, WeightType, Weights};
use support::{fixtures, quantised};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn more(n: usize) {
    let live = LIVE.fetch_add(n, Ordering::Relaxed) + n;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: the system's allocator does everything.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: AllocLayout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: AllocLayout) -> *mut u8 {
        more(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: AllocLayout, size: usize) -> *mut u8 {
        // Both may exist at once.
        more(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: AllocLayout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test counts at a time.
static TURN: Mutex<()> = Mutex::new(());

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

const TOKENS: u64 = 64;
const SEQUENCES: u32 = 4;
const LENGTH: u32 = 64;
const BLOCK: u64 = 16;

fn map(spec: &ModelSpec, weights: impl Into<Weights>, kv: DType, ranks: u64) -> MemoryMap {
    let deployment = Deployment {
        device: Device {
            vendor: "cpu".to_owned(),
            ..Device::of_size(Bytes::new(1 << 30))
        },
        kinds: None,
        parallel: Parallel {
            tp: ranks,
            ..Parallel::default()
        },
        in_use: Bytes::ZERO,
    };
    let settings = Settings {
        weights: weights.into(),
        kv_type: KvType::Plain(kv),
        block_size: Some(BLOCK),
        max_model_len: Some(LENGTH.into()),
        max_num_seqs: Some(SEQUENCES.into()),
        max_num_batched_tokens: Some(TOKENS),
        threads: Some(2),
        ..Settings::new(Engines::Plimsoll)
    };
    let load = Load::plain(1, LENGTH.into());
    let e = evaluate(spec, &deployment, &settings, &load).unwrap();
    MemoryMap::of(&e.stages[0]).unwrap()
}

fn planned(spec: &ModelSpec, weights: WeightType, kv: DType) -> (Program, MemoryMap) {
    let program = lowered(spec, weights, kv, Rank::ALONE).unwrap();
    (program, map(spec, weights, kv, 1))
}

fn lowered(
    spec: &ModelSpec,
    weights: WeightType,
    kv: DType,
    rank: Rank,
) -> Result<Program, LowerError> {
    let rules = KvRules::plimsoll(kv, BLOCK);
    let sizes = Sizes {
        tokens: TOKENS,
        outputs: SEQUENCES.into(),
        context: LENGTH.into(),
        weights: weights.into(),
    };
    lower_rank(spec, rank, &sizes, &rules)
}

fn bytes(map: &MemoryMap, name: &str) -> usize {
    let term = map.terms().iter().find(|t| t.name == name).unwrap();
    usize::try_from(term.bytes.get()).unwrap()
}

struct Served<B> {
    engine: Engine<Runner<B, Choices>, NoLog>,
    limits: Limits,
    /// Prompts are encoded by it, and answers decoded to look for a stop string.
    tokenizer: Option<Arc<Tokenizer>>,
    next: u64,
    steps: u64,
}

/// A program in the arenas of its map, with its weights.
fn cpu(program: Program, map: &MemoryMap, checkpoint: &Checkpoint) -> Cpu {
    let mut memory = Memory::commit(map, swap_of(map)).unwrap();
    load(&program, checkpoint, &mut memory.weights, 1, &|_, _| {}).unwrap();
    Cpu::new(program, memory, Level::detect(), Inputs::default()).unwrap()
}

impl<B: Backend> Served<B> {
    fn start(backend: B, map: &MemoryMap, tokenizer: Option<Arc<Tokenizer>>) -> Self {
        let program = backend.program();
        let layout = Layout::new(&program.geometry).unwrap();
        let vocab = u32::try_from(program.vocab).unwrap();
        let limits = Limits {
            max_model_len: LENGTH,
            vocab,
            max_width: SEQUENCES,
            tenants: 1,
        };
        let mut config = SchedulerConfig::new(limits);
        config.max_seqs = SEQUENCES;
        config.max_batched_tokens = u32::try_from(TOKENS).unwrap();
        let pages = map.region(Region::KvCache).whole(program.geometry.page);
        let mut kv = KvConfig::new(layout, u32::try_from(pages).unwrap() - 1);
        kv.prefix_cache = true;
        let scheduler = Scheduler::new(config, KvCache::new(kv), support::cost());
        let choices = Choices::new(vocab, 2, tokenizer.clone());
        let executor = Runner::new(backend, Pool::new(2).unwrap(), choices);
        Self {
            engine: Engine::new(scheduler, executor, NoLog),
            limits,
            tokenizer,
            next: 0,
            steps: 0,
        }
    }

    /// R requests whose prompts fill a step of T tokens, to their longest.
    fn round(&mut self) {
        let prompt = u32::try_from(TOKENS).unwrap() / SEQUENCES;
        for _ in 0..SEQUENCES {
            let id = RequestId(self.next);
            let first = u32::try_from(self.next % 250).unwrap();
            let ids: Vec<u32> = (0..prompt).map(|i| (first + i * 7) % 250).collect();
            let asked = Sampling {
                temperature: 1.0,
                logprobs: Some(1),
                repetition_penalty: 1.1,
                ignore_eos: true,
                seed: self.next,
                ..Sampling::default()
            };
            let most = LENGTH - prompt;
            let params = SamplingParams::new(asked, self.limits.vocab, &[], most).unwrap();
            let chooser = self.engine.executor_mut().chooser_mut();
            let mut stops = Stops::default();
            if let Some(t) = &self.tokenizer {
                let text = t.decode(&ids, false).unwrap();
                assert!(!t.encode(&text, false).unwrap().is_empty());
                stops = Stops::new(vec!["never said".to_owned()], false).unwrap();
            }
            chooser.expect(id, &ids, params, stops);
            let scope = Scope::default();
            let request = Request::new(id, ids.into(), most, Fan::ONE, scope, &self.limits);
            self.engine.submit(request.unwrap()).unwrap();
            self.next += 1;
        }
        let mut ended = Vec::new();
        while self
            .engine
            .step(|n| {
                if let Notice::Finished(e) = n {
                    assert_eq!(e.completions[0].tokens.len() as u32, LENGTH - prompt);
                    ended.push(e.request);
                }
            })
            .unwrap()
        {
            self.steps += 1;
        }
        assert_eq!(ended.len() as u32, SEQUENCES);
        let chooser = self.engine.executor_mut().chooser_mut();
        assert!(chooser.take_failed().is_empty());
        ended.into_iter().for_each(|id| chooser.forget(id));
    }
}

fn swap_of(map: &MemoryMap) -> SwapSpace {
    let bytes = map.region(plimsoll_plan::Region::Swap);
    Arena::new("swap space", bytes).unwrap().into()
}

#[test]
fn a_worst_case_step_uses_every_arena_to_its_last_byte() {
    let _turn = TURN.lock().unwrap();
    let types = [
        (WeightType::Bf16, DType::Bf16),
        (WeightType::Bf16, DType::F32),
        (WeightType::Int8, DType::F16),
        (WeightType::Int4, DType::I8),
    ];
    let each = |folder| types.map(|types| (PathBuf::clone(folder), types));
    let all = fixtures().into_iter().chain(quantised());
    for (folder, (weights, kv)) in all.collect::<Vec<_>>().iter().flat_map(each) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let spec = support::spec(&folder);
        // Latents are not kept as int8.
        let latent = kv == DType::I8 && (name.starts_with("deepseek") || name == "fp8_block");
        let kv = if latent { DType::F16 } else { kv };
        let name = format!("{name}, {weights}, {kv} cache");
        let (program, map) = planned(&spec, weights, kv);
        let full = program.geometry.groups.iter().all(|g| {
            matches!(
                g.kind,
                GroupKind::Full | GroupKind::Latent | GroupKind::State
            )
        });
        let checkpoint = Checkpoint::open(&folder, &["model.safetensors"]).unwrap();
        let mut served = Served::start(cpu(program, &map, &checkpoint), &map, None);
        let before = served.engine.executor().usage();
        let mark = |of: &[plimsoll_runtime::Usage], r| {
            of.iter().find(|u| u.region == r).unwrap().high_water
        };
        for region in [Region::KvCache, Region::Activations, Region::Workspace] {
            assert_eq!(
                mark(&before, region),
                Bytes::ZERO,
                "{name}: {region} at the start"
            );
        }
        served.round();
        for u in served.engine.executor().usage() {
            let planned = map.region(u.region);
            assert_eq!(u.committed, planned, "{name}: {}", u.region);
            // Windows overlap less than the plan allows for, wherever chunks begin.
            if u.region == Region::KvCache && !full {
                assert!(u.high_water <= planned);
                continue;
            }
            assert_eq!(u.high_water, planned, "{name}: {}", u.region);
        }
    }
}

/// Every rank's arenas are as large as the plan says of a rank, and a worst-case step uses each to its last byte.
#[test]
fn a_worst_case_step_uses_every_arena_of_every_rank() {
    let _turn = TURN.lock().unwrap();
    let mut divided = 0;
    for (folder, ranks) in fixtures().iter().flat_map(|f| [(f, 2), (f, 4)]) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let name = format!("{name} on {ranks}");
        let (spec, weights, kv) = (support::spec(folder), WeightType::Bf16, DType::Bf16);
        let programs = Rank::all(ranks).map(|rank| lowered(&spec, weights, kv, rank));
        let Ok(programs) = programs.collect::<Result<Vec<_>, _>>() else {
            continue;
        };
        divided += 1;
        let map = map(&spec, weights, kv, ranks);
        let full = programs[0].geometry.groups.iter().all(|g| {
            matches!(
                g.kind,
                GroupKind::Full | GroupKind::Latent | GroupKind::State
            )
        });
        let checkpoint = Checkpoint::open(folder, &["model.safetensors"]).unwrap();
        let meeting = Meeting::new(programs.len());
        let seated = |(i, p)| cpu(p, &map, &checkpoint).seated(meeting.seat(i));
        let cpus = programs.into_iter().enumerate().map(seated).collect();
        let backend = Ranks::new(cpus, meeting.clone(), 2).unwrap();
        let mut served = Served::start(backend, &map, None);
        served.round();
        let executor = served.engine.executor();
        for rank in executor.backend().backends() {
            let usage = rank.usage();
            assert!(usage.len() >= 4);
            for u in usage {
                let planned = map.region(u.region);
                assert_eq!(u.committed, planned, "{name}: {}", u.region);
                if u.region == Region::KvCache && !full {
                    assert!(u.high_water <= planned);
                    continue;
                }
                assert_eq!(u.high_water, planned, "{name}: {}", u.region);
            }
        }
        // What chooses is there once.
        for u in executor.usage() {
            let each = if u.region == Region::Workspace {
                1
            } else {
                ranks
            };
            let planned = map.region(u.region).times(each).unwrap();
            assert_eq!(u.committed, planned, "{name}: {}", u.region);
        }
    }
    // Those with recurrent layers do not divide.
    assert_eq!(divided, 2 * (fixtures().len() - 2));
}

/// The most bytes alive after the first rounds of 5,000 steps, the most in 10,000 steps more, and the most ever beside
/// arenas.
fn thousands_of_steps(tokenizer: Option<Arc<Tokenizer>>) -> (usize, usize, usize, MemoryMap) {
    let folder = fixtures()
        .into_iter()
        .find(|f| f.ends_with("llama"))
        .unwrap();
    let (program, map) = planned(&support::spec(&folder), WeightType::Int8, DType::Bf16);
    let checkpoint = Checkpoint::open(&folder, &["model.safetensors"]).unwrap();
    let base = live();
    let mut served = Served::start(cpu(program, &map, &checkpoint), &map, tokenizer);
    // Loading has its own term.
    PEAK.store(live(), Ordering::Relaxed);
    let mut early = 0;
    while served.steps < 5_000 {
        served.round();
        early = early.max(if served.steps > 500 { live() } else { 0 });
    }
    let mut late = 0;
    while served.steps < 15_000 {
        served.round();
        late = late.max(live());
    }
    let arenas: u64 = served
        .engine
        .executor()
        .usage()
        .iter()
        .map(|u| u.committed.get())
        .sum();
    let used = PEAK.load(Ordering::Relaxed) - base - usize::try_from(arenas).unwrap();
    println!("{early} bytes, then {late}; beside arenas {used}");
    (early, late, used, map)
}

#[test]
fn thousands_of_steps_leave_nothing_behind_and_stay_within_the_reserve() {
    let _turn = TURN.lock().unwrap();
    let (early, late, used, map) = thousands_of_steps(None);
    let reserve = ["threads", "block manager", "scheduler"].map(|n| bytes(&map, n));
    assert!(late <= early, "{late} bytes, and {early} before");
    assert!(used <= reserve[1] + reserve[2], "{used} of {reserve:?}");
}

/// The word of a token of [`wide`].
fn word(i: u64) -> String {
    // Pairs of letters of an alphabet of 512: every word beyond it is a merge.
    let letter = |n: u64| char::from_u32(0x4e00 + u32::try_from(n).unwrap()).unwrap();
    match i.checked_sub(512) {
        None => letter(i).to_string(),
        Some(n) => [letter(n / 512), letter(n % 512)].iter().collect(),
    }
}

/// The `tokenizer.json` of so many words.
fn wide(vocab: u64) -> Vec<u8> {
    let ids: serde_json::Map<_, _> = (0..vocab).map(|i| (word(i), i.into())).collect();
    let merges: Vec<_> = (512..vocab)
        .map(|i| {
            let pair: Vec<String> = word(i).chars().map(String::from).collect();
            serde_json::Value::from(pair)
        })
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": merges},
    });
    serde_json::to_vec(&json).unwrap()
}

#[test]
fn a_tokenizer_of_262144_words_fits_its_term_and_grows_in_no_step() {
    let _turn = TURN.lock().unwrap();
    // Words that a thread remembers go with it, before the next test counts.
    std::thread::spawn(wide_tokenizer).join().unwrap();
}

fn wide_tokenizer() {
    let vocab = 1_u64 << 18;
    let mut spec = support::spec(&fixtures()[0]);
    let json = wide(vocab);
    spec.vocab = vocab;
    let base = live();
    PEAK.store(base, Ordering::Relaxed);
    let tokenizer = Tokenizer::from_json(&json, "test", &TokenizerConfig::default()).unwrap();
    let (kept, peak) = (
        live() - base,
        PEAK.load(Ordering::Relaxed) - base + json.len(),
    );
    assert_eq!(u64::from(tokenizer.vocab()), vocab);
    // Tensors of this vocabulary are not there: as they are stored, they need not be.
    let planned = map(&spec, Weights::Stored, DType::Bf16, 1);
    let [term, starting] = ["tokenizer", "starting"].map(|n| bytes(&planned, n));
    println!("kept {kept} of {term}, {peak} at most with the file, for which {starting} more");
    assert!(kept <= term, "{kept} of {term}");
    assert!(peak <= term + starting, "{peak} of {term} and {starting}");
    let text: String = (0..2000).map(|i| word(512 + i * 97)).collect();
    let before = live();
    for _ in 0..3 {
        drop(tokenizer.encode(&text, false).unwrap());
    }
    let warm = live();
    for _ in 0..50 {
        drop(tokenizer.encode(&text, false).unwrap());
    }
    assert!(live() <= warm, "{} then {warm} then {}", before, live());
    let (early, late, used, map) = thousands_of_steps(Some(Arc::new(tokenizer)));
    assert!(late <= early, "{late} bytes, and {early} before");
    // What encoding and decoding take is the tokenizer's.
    let reserve = bytes(&map, "block manager") + bytes(&map, "scheduler") + term - kept;
    assert!(used <= reserve, "{used} of {reserve}");
}
