//! Checkpoints of `tests/fixtures` on the real path: config, lowering, weights, scheduler, pages, kernels.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod both;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use plimsoll_cuda::{Device, Fibers, Nccl, Station};
use plimsoll_kernels::{Inputs, Level, Pool};
use plimsoll_kv::{KvCache, KvConfig, Layout, Scope};
use plimsoll_model::{Assume, ModelSpec, from_config};
use plimsoll_program::{
    Exchange, KvRules, Limits as Sizes, LowerError, Program, Rank, StepInputs, lower_rank,
};
use plimsoll_runtime::cuda::{self, Arithmetic, Cuda, DeviceSizes};
use plimsoll_runtime::weights::{Checkpoint, load};
use plimsoll_runtime::{
    Arena, Backend, Chooser, Cpu, CpuExecutor, Engine, Meeting, Memory, Ranks, Runner, SwapSpace,
};
use plimsoll_schedule::{
    AttentionWork, CostModel, Draw, Fan, Limits, NoLog, Notice, Output, Rates, Request, RequestId,
    Row, RowOutput, Scheduler, SchedulerConfig, SeqEvent, Stats, Work,
};
use plimsoll_units::{Bytes, DType, WeightType, Weights};

pub(crate) fn fixtures() -> Vec<PathBuf> {
    folders("tests/fixtures")
}

/// Checkpoints that are quantised.
pub(crate) fn quantised() -> Vec<PathBuf> {
    folders("tests/quantised")
}

fn folders(of: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(of);
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    all.sort();
    assert!(all.len() >= 13, "{all:?}");
    all
}

pub(crate) fn spec(folder: &Path) -> ModelSpec {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    from_config(&serde_json::from_str(&text).unwrap(), Assume::Nothing).unwrap()
}

/// The prompt and transformers' logits of each of its positions.
pub(crate) fn expected(folder: &Path) -> (Vec<u32>, Vec<f32>) {
    let tokens = words(folder, "tokens").unwrap();
    (
        tokens.into_iter().map(u32::from_le_bytes).collect(),
        floats(folder, "logits").unwrap(),
    )
}

/// Logits of quantised weights that are not rounded.
pub(crate) fn exact(folder: &Path) -> Vec<f32> {
    floats(folder, "logits_exact").unwrap()
}

/// Logits with keys and values rounded to bfloat16, where the checkpoint has experts: a rounding may change which of
/// them a token takes, so there is no comparing with those of other keys and values.
pub(crate) fn rounded(folder: &Path) -> Option<Vec<f32>> {
    floats(folder, "logits_bf16")
}

fn floats(folder: &Path, name: &str) -> Option<Vec<f32>> {
    let words = words(folder, name)?;
    Some(words.into_iter().map(f32::from_le_bytes).collect())
}

fn words(folder: &Path, name: &str) -> Option<Vec<[u8; 4]>> {
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let n = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let place = header.get(name)?;
    let at = |i: usize| {
        let offset = place["data_offsets"][i].as_u64().unwrap();
        8 + n + usize::try_from(offset).unwrap()
    };
    let data = &bytes[at(0)..at(1)];
    Some(data.chunks(4).map(|c| c.try_into().unwrap()).collect())
}

/// What swap space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Memory,
    File,
    /// A file that fails every write.
    NoWrites,
    /// A file that fails every read.
    NoReads,
}

impl Disk {
    fn space(self, bytes: Bytes) -> SwapSpace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = std::env::temp_dir();
        match self {
            Self::Memory => Arena::new("test", bytes).unwrap().into(),
            Self::File => SwapSpace::file(&folder, bytes).unwrap(),
            Self::NoWrites | Self::NoReads => {
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                let path = folder.join(format!("plimsoll-disk-{}-{n}", std::process::id()));
                std::fs::write(&path, []).unwrap();
                let reads = self == Self::NoWrites;
                let file = File::options().read(reads).write(!reads).open(&path);
                std::fs::remove_file(&path).ok();
                SwapSpace::of(file.unwrap(), bytes)
            }
        }
    }
}

/// How a server is set up.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) weights: WeightType,
    /// Published groups of four bits as they are stored, in place of `weights`.
    pub(crate) stored: bool,
    pub(crate) kv: DType,
    pub(crate) block: u64,
    pub(crate) pages: u32,
    pub(crate) swap: u32,
    pub(crate) disk: Disk,
    pub(crate) tokens: u32,
    /// Rows of logits that are computed at once.
    pub(crate) outputs: u32,
    pub(crate) sequences: u32,
    pub(crate) threads: usize,
    /// Ranks that share the model.
    pub(crate) ranks: usize,
    pub(crate) level: Level,
    pub(crate) inputs: Inputs,
    pub(crate) prefix_cache: bool,
    /// Tokens between states that are kept for reuse, where not as many as usual.
    pub(crate) snapshot: Option<u32>,
    pub(crate) preempt: plimsoll_schedule::Preempt,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            weights: WeightType::Bf16,
            stored: false,
            kv: DType::Bf16,
            block: 16,
            pages: 400,
            swap: 0,
            disk: Disk::Memory,
            tokens: 256,
            outputs: 256,
            sequences: 64,
            threads: 1,
            ranks: 1,
            level: Level::detect(),
            inputs: Inputs::F32,
            prefix_cache: false,
            snapshot: None,
            preempt: plimsoll_schedule::Preempt::Auto,
        }
    }
}

/// Logits by request, sequence and position, as bits.
pub(crate) type Seen = BTreeMap<(u64, u32, u32), Vec<u32>>;

/// What was generated, by request and sequence, every position's logits, and the scheduler's counters.
pub(crate) type Run = (BTreeMap<u64, Vec<Vec<u32>>>, Seen, Stats);

/// The most likely token, always; and what every position's logits were.
#[derive(Debug, Default)]
pub(crate) struct Greedy {
    pub(crate) seen: Seen,
    /// Whether positions may be computed again to other logits: beams change places.
    pub(crate) beams: bool,
}

fn best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best
}

impl Chooser for Greedy {
    fn row(&mut self, row: &Row, _: u32, logits: &mut [f32]) -> RowOutput {
        let mut ranked: Vec<usize> = (0..logits.len()).collect();
        ranked.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let draw = |i: usize| Draw {
            token: u32::try_from(ranked[i]).unwrap(),
            logprob: logits[ranked[i]],
            ends: false,
        };
        match row.output {
            Output::None => RowOutput::None,
            Output::Sample { draws: 1 } => RowOutput::One(draw(row.index as usize)),
            // Sequences of a request draw different tokens, so that they part.
            Output::Sample { draws } => {
                RowOutput::Many((0..draws).map(|i| draw((row.index + i) as usize)).collect())
            }
            Output::Candidates { k } => {
                let top = best(logits);
                let sum: f32 = logits.iter().map(|x| (x - logits[top]).exp()).sum();
                let mut all: Vec<Draw> = (0..k as usize).map(draw).collect();
                for d in &mut all {
                    d.logprob = d.logprob - logits[top] - sum.ln();
                }
                RowOutput::Many(all)
            }
        }
    }

    fn event(&mut self, _: &SeqEvent) {}

    fn wants_all(&self, _: &Row) -> bool {
        true
    }

    fn position(&mut self, row: &Row, position: u32, logits: &[f32]) -> bool {
        let bits: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
        let key = (row.request.0, row.index, position);
        if let Some(before) = self.seen.insert(key, bits.clone()) {
            let same = before == bits || self.beams;
            assert!(same, "request {} at {position}", row.request.0);
        }
        true
    }
}

/// A model that is loaded once.
pub(crate) struct Model {
    spec: ModelSpec,
    folder: PathBuf,
    file: &'static str,
}

impl Model {
    pub(crate) fn open(folder: &Path) -> Self {
        Self {
            spec: spec(folder),
            folder: folder.to_owned(),
            file: "model.safetensors",
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// `model.gguf` of a folder.
    pub(crate) fn gguf(folder: &Path) -> Self {
        let path = folder.join("model.gguf");
        let (_, header) = plimsoll_host::open_gguf(&path).unwrap();
        Self {
            spec: plimsoll_model::gguf::spec(&header, Assume::Nothing)
                .unwrap()
                .1,
            folder: folder.to_owned(),
            file: "model.gguf",
        }
    }

    /// The same, for sequences that may be so long.
    pub(crate) fn longest(mut self, tokens: u64) -> Self {
        self.spec.max_context = Some(tokens);
        self
    }

    /// Tokens of the longest sequence.
    pub(crate) fn longest_context(&self) -> u64 {
        self.spec.max_context.unwrap()
    }

    pub(crate) fn program(&self, server: &Server) -> Program {
        self.lowered(server, 0).unwrap()
    }

    /// The program of a rank.
    pub(crate) fn lowered(&self, server: &Server, rank: u64) -> Result<Program, LowerError> {
        let rank = Rank {
            index: rank,
            of: server.ranks as u64,
        };
        let rules = KvRules::plimsoll(server.kv, server.block);
        let sizes = Sizes {
            tokens: u64::from(server.tokens),
            outputs: u64::from(server.outputs),
            context: self.spec.max_context.unwrap(),
            weights: if server.stored {
                Weights::Stored
            } else {
                server.weights.into()
            },
        };
        lower_rank(&self.spec, rank, &sizes, &rules)
    }

    pub(crate) fn engine(&self, server: &Server) -> Engine<CpuExecutor<Greedy>, NoLog> {
        self.engine_with(server, Greedy::default())
    }

    pub(crate) fn engine_with<S: Chooser>(
        &self,
        server: &Server,
        chooser: S,
    ) -> Engine<CpuExecutor<S>, NoLog> {
        assert_eq!(server.ranks, 1);
        let cpu = self.cpu(server, 0);
        self.engine_on(server, cpu, chooser)
    }

    /// The same on several ranks.
    pub(crate) fn engine_of_ranks<S: Chooser>(
        &self,
        server: &Server,
        chooser: S,
    ) -> Engine<Runner<Ranks<Cpu>, S>, NoLog> {
        let (cpus, meeting) = self.cpus(server);
        let ranks = Ranks::new(cpus, meeting, server.threads).unwrap();
        self.engine_on(server, ranks, chooser)
    }

    /// Ranks in their seats.
    pub(crate) fn cpus(&self, server: &Server) -> (Vec<Cpu>, Meeting) {
        let meeting = Meeting::new(server.ranks);
        let cpu = |rank| self.cpu(server, rank).seated(meeting.seat(rank));
        ((0..server.ranks).map(cpu).collect(), meeting)
    }

    fn cpu(&self, server: &Server, rank: usize) -> Cpu {
        let program = self.lowered(server, rank as u64).unwrap();
        let page = program.geometry.page;
        let arena = |bytes| Arena::new("test", bytes).unwrap();
        let mut memory = Memory {
            weights: arena(program.weight_bytes),
            pages: arena(page.times(server.pages.into()).unwrap()),
            swap: server.disk.space(page.times(server.swap.into()).unwrap()),
            activations: arena(program.activation_bytes),
        };
        load(
            &program,
            &self.checkpoint(),
            &mut memory.weights,
            1,
            &|_, _| {},
        )
        .unwrap();
        let mut cpu = Cpu::new(program, memory, server.level, server.inputs).unwrap();
        // A page that was published stays cached where it was while its copy is in swap space.
        if !server.prefix_cache {
            cpu.poison();
        }
        cpu
    }

    /// The same on a device.
    pub(crate) fn engine_of<S: Chooser>(
        &self,
        server: &Server,
        device: Box<dyn Device>,
        chooser: S,
        arithmetic: Arithmetic,
    ) -> Engine<Runner<Cuda, S>, NoLog> {
        assert_eq!(server.ranks, 1);
        let cuda = self.cuda(server, 0, device, arithmetic);
        self.engine_on(server, cuda, chooser)
    }

    /// A rank on a device.
    pub(crate) fn cuda(
        &self,
        server: &Server,
        rank: usize,
        device: Box<dyn Device>,
        arithmetic: Arithmetic,
    ) -> Cuda {
        let mut cuda = self.started(server, rank, device, arithmetic).unwrap();
        // As many parts as there are large weights: each finds what others have left.
        let staged = Bytes::new(4096);
        cuda::load(&mut cuda, &self.checkpoint(), staged, 1, &|_, _| {}).unwrap();
        cuda
    }

    /// The same without weights.
    pub(crate) fn started(
        &self,
        server: &Server,
        rank: usize,
        device: Box<dyn Device>,
        arithmetic: Arithmetic,
    ) -> Result<Cuda, plimsoll_runtime::StartError> {
        let program = self.lowered(server, rank as u64).unwrap();
        let page = program.geometry.page;
        let context = self.spec.max_context.unwrap();
        let sizes = DeviceSizes {
            weights: program.weight_bytes,
            pages: page.times(server.pages.into()).unwrap(),
            activations: program.activation_bytes,
            inputs: StepInputs::of(&program, context).unwrap().bytes().unwrap(),
            swap: page.times(server.swap.into()).unwrap(),
            collectives: Exchange::of(&program).unwrap().bytes().unwrap(),
        };
        let file = (server.disk != Disk::Memory).then(|| server.disk.space(sizes.swap));
        Cuda::new(device, program, sizes, file, context, arithmetic)
    }

    /// Ranks on fibers, which meet through the host's memory or as `nccl` connects them.
    pub(crate) fn cudas(
        &self,
        server: &Server,
        arithmetic: Arithmetic,
        nccl: impl FnOnce(Vec<Station>) -> Option<Arc<Nccl>>,
    ) -> (Vec<Cuda>, Meeting) {
        let fibers = |rank| Box::new(Fibers::numbered(rank));
        let ranks = (0..server.ranks).zip(0..);
        let ranks = ranks.map(|(rank, number)| self.cuda(server, rank, fibers(number), arithmetic));
        let ranks: Vec<Cuda> = ranks.collect();
        let nccl = nccl(ranks.iter().map(Cuda::station).collect());
        cuda::seated(ranks, nccl)
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.folder, &[self.file]).unwrap()
    }

    pub(crate) fn engine_on<B: Backend, S: Chooser>(
        &self,
        server: &Server,
        backend: B,
        chooser: S,
    ) -> Engine<Runner<B, S>, NoLog> {
        let mut layout = Layout::new(&backend.program().geometry).unwrap();
        layout.snapshot = server.snapshot.unwrap_or(layout.snapshot);
        let mut config = SchedulerConfig::new(self.limits());
        config.max_batched_tokens = server.tokens;
        config.max_seqs = server.sequences;
        config.preempt = server.preempt;
        // Whoever fits is let in, so that somebody has to give way.
        config.headroom_tokens = 0;
        let mut kv = KvConfig::new(layout, server.pages - 1);
        kv.swap_pages = server.swap;
        kv.prefix_cache = server.prefix_cache;
        let scheduler = Scheduler::new(config, KvCache::new(kv), cost());
        let pool = Pool::new(server.threads).unwrap();
        Engine::new(scheduler, Runner::new(backend, pool, chooser), NoLog)
    }

    /// `server` with pages for one request at its longest, of four sequences if so many run, and little more.
    pub(crate) fn tight(&self, server: Server) -> Server {
        let layout = Layout::new(&self.program(&server).geometry).unwrap();
        // Prompts of the tests that use this have 9 to 16 tokens, answers 24: whoever is let in grows.
        let (all, prompt) = (layout.peak(39, 39), layout.peak(16, 16));
        let pages = match server.sequences {
            0..8 => (all + 1).max(4 * prompt),
            // Four sequences that share nothing.
            _ => 4 * all + 4,
        };
        Server {
            pages: u32::try_from(pages + 2).unwrap(),
            ..server
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_model_len: u32::try_from(self.spec.max_context.unwrap()).unwrap(),
            vocab: u32::try_from(self.spec.vocab).unwrap(),
            max_width: 16,
            tenants: 1,
        }
    }

    pub(crate) fn request(&self, id: u64, (prompt, max, fan): &(Vec<u32>, u32, Fan)) -> Request {
        let prompt = prompt.clone().into();
        let (id, scope) = (RequestId(id), Scope::default());
        Request::new(id, prompt, *max, *fan, scope, &self.limits()).unwrap()
    }

    /// All requests at once: what was generated, every position's logits, and the scheduler's counters.
    pub(crate) fn serve(&self, server: &Server, requests: &[(Vec<u32>, u32, Fan)]) -> Run {
        if server.ranks > 1 {
            let engine = self.engine_of_ranks(server, Greedy::default());
            return self.serve_on(engine, requests);
        }
        self.serve_on(self.engine(server), requests)
    }

    /// The same by an engine that is given.
    pub(crate) fn serve_on<B: Backend>(
        &self,
        mut engine: Engine<Runner<B, Greedy>, NoLog>,
        requests: &[(Vec<u32>, u32, Fan)],
    ) -> Run {
        let beams = requests.iter().any(|r| matches!(r.2, Fan::Beam(_)));
        engine.executor_mut().chooser_mut().beams = beams;
        for (i, (prompt, max, fan)) in requests.iter().enumerate() {
            let request = self.request(i as u64, &(prompt.clone(), *max, *fan));
            engine.submit(request).unwrap();
        }
        let mut done = BTreeMap::new();
        for _ in 0..100_000 {
            let stepped = engine
                .step(|n| {
                    if let Notice::Finished(e) = n {
                        let tokens = e.completions.into_iter().map(|c| c.tokens).collect();
                        done.insert(e.request.0, tokens);
                    }
                })
                .unwrap();
            if !stepped {
                break;
            }
        }
        assert!(engine.is_idle() && done.len() == requests.len());
        let stats = *engine.scheduler().stats();
        let seen = std::mem::take(&mut engine.executor_mut().chooser_mut().seen);
        (done, seen, stats)
    }
}

pub(crate) fn cost() -> CostModel {
    CostModel {
        work: Work {
            weight_bytes: 1_000_000,
            token_flops: 1_000_000,
            head_flops: 1_000,
            attention: vec![AttentionWork {
                reach: None,
                token_bytes: 1_000,
                pair_flops: 1_000,
            }],
        },
        rates: Rates {
            flops_per_s: 100_000_000_000,
            memory_bytes_per_s: 10_000_000_000,
            link_bytes_per_s: 10_000_000_000,
            transfer_ns: 100,
            transfers_per_block: 1,
            step_ns: 1_000,
            row_ns: 10,
        },
    }
}
