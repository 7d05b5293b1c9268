//! From a MODEL argument to an engine: sizes first, then memory, then weights.

pub(crate) mod device;
pub(crate) mod memory;
mod ranks;
mod source;
mod weights;

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use plimsoll_cuda::DeviceError;
use plimsoll_host::{Env, LoadOptions};
use plimsoll_kernels::{Inputs, Level, Pool};
use plimsoll_kv::{KvCache, KvConfig, Layout};
use plimsoll_model::ModelSpec;
use plimsoll_plan::{Http, OWN_MODEL_LEN, Region};
use plimsoll_program::{
    KvRules, Limits as Sizes, LowerError, PoolGeometry, Program, Rank, lower_rank,
};
use plimsoll_report::short_bytes;
use plimsoll_runtime::cuda::{self, Arithmetic, Cuda, DeviceSizes};
use plimsoll_runtime::text::{ChatTemplate, GenerationConfig, ModelText, Tokenizer};
use plimsoll_runtime::weights::{WeightsError, load as load_weights};
use plimsoll_runtime::{
    Arena, Backend, BackendError, Choices, Cpu, Engine, Measured, Meeting, Memory, Ranks, Runner,
    StartError, SwapSpace,
};
use plimsoll_schedule::{CostModel, Limits, Rates, Scheduler, SchedulerConfig, Tenant, Work};
use plimsoll_simulate::log::LogWriter;
use plimsoll_units::{Bytes, DType, SizeOverflow, Tokens, WeightType, Weights};

use self::device::Place;
use self::memory::{Map, Report};
use self::source::Source;
use crate::args::engine::{EngineArgs, InputsArg, LevelArg};
use crate::commands::serve::tenants::Tenants;
use crate::error::{Exit, Failure};
use crate::progress::Progress;

/// The event log of a run, for `simulate --replay`.
type RunLog = LogWriter<BufWriter<File>>;

/// What is started: flags, and what a command makes of them.
pub(crate) struct Start<'a> {
    pub(crate) model: &'a str,
    pub(crate) engine: &'a EngineArgs,
    /// R.
    pub(crate) sequences: u32,
    /// Requests that may wait, where there is a limit.
    pub(crate) queued: Option<u32>,
    /// The longest sequence, where no flag says.
    pub(crate) context: Option<u64>,
    /// Where decisions are recorded.
    pub(crate) log: Option<&'a Path>,
    /// Most alternatives that are told with log probabilities of tokens.
    pub(crate) logprobs: Option<u32>,
    /// How it is reached, where it is.
    pub(crate) http: Option<Http>,
    /// Who shares the KV cache, where it is shared.
    pub(crate) tenants: Option<&'a Tenants>,
}

/// A scheduler, a backend, and what is written down.
pub(crate) type RunEngine = Engine<Runner<Box<dyn Backend>, Choices>, Option<RunLog>>;

/// An engine that is ready.
pub(crate) struct Started {
    pub(crate) engine: RunEngine,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) generation: GenerationConfig,
    pub(crate) limits: Limits,
    pub(crate) vocab: u32,
    pub(crate) threads: usize,
    pub(crate) level: Level,
    /// What bf16 weights are multiplied with.
    pub(crate) inputs: Inputs,
    /// What matrices are kept as.
    pub(crate) forms: Vec<WeightType>,
    /// What steps are believed to take.
    pub(crate) cost: CostModel,
    pub(crate) planned: Planned,
    /// Where steps are carried out, and why.
    pub(crate) device: String,
    /// What a user should know of how the model is run.
    pub(crate) note: Option<String>,
}

impl Started {
    /// What was planned, committed and used at most.
    pub(crate) fn memory(&self) -> Report<'_> {
        self.planned.memory(&self.engine)
    }
}

/// What was planned for an engine.
pub(crate) struct Planned {
    map: Map,
    /// What was planned for all ranks together, region by region.
    regions: Vec<(Region, Bytes)>,
    /// What the process had in memory when it was ready.
    ready: Option<Bytes>,
    geometry: PoolGeometry,
    /// Pages for sequences.
    pages: u32,
    /// T.
    step_tokens: u64,
}

impl Planned {
    /// What was planned, committed and used at most by `engine`, which it was planned for.
    pub(crate) fn memory(&self, engine: &RunEngine) -> Report<'_> {
        Report {
            map: &self.map,
            regions: &self.regions,
            usage: engine.executor().usage(),
            ready: self.ready,
        }
    }

    /// What was planned, region by region.
    pub(crate) fn regions(&self) -> Vec<(String, Bytes)> {
        let named = |r: &(Region, Bytes)| (r.0.name().to_owned(), r.1);
        self.regions.iter().map(named).collect()
    }

    /// Requests of so many tokens, one sequence each, whose keys and values fit at once.
    pub(crate) fn requests_of(&self, tokens: u64) -> u64 {
        let chunk = self.step_tokens.min(tokens);
        let each = self.geometry.held(Tokens(tokens - chunk), Tokens(chunk));
        u64::from(self.pages) / each.get().max(1)
    }
}

/// Ends the log of `engine`'s run, which lies at `path`.
pub(crate) fn end_log(path: &Path, engine: RunEngine) -> Result<(), Failure> {
    let hash = engine.scheduler().decision_hash();
    let tables = engine.executor().tables().digest();
    match engine.into_log() {
        Some(log) => log
            .end(hash, Some(tables))
            .map_err(|e| cannot_write(path, &e)),
        None => Ok(()),
    }
}

/// Everything that is decided before weights are read.
struct Prepared {
    context: u64,
    threads: u64,
    /// That of each rank.
    programs: Vec<Program>,
    geometry: PoolGeometry,
    layout: Layout,
    map: Map,
    /// Pages for sequences: one more holds nothing.
    pages: u32,
    tenants: Vec<Tenant>,
}

impl Prepared {
    fn of(what: &Start<'_>, spec: &ModelSpec, place: &Place) -> Result<Self, Failure> {
        let args = what.engine;
        let context = args
            .max_model_len
            .or(what.context)
            .unwrap_or_else(|| spec.max_context.unwrap_or(OWN_MODEL_LEN).min(OWN_MODEL_LEN));
        let threads = args.threads.unwrap_or_else(crate::commands::processors);
        let programs = lowered(what, spec, context, place)?;
        // All ranks are alike.
        let geometry = programs[0].geometry.clone();
        let layout = Layout::new(&geometry).map_err(|e| {
            Failure::new(Exit::Usage, "E-SIM-007", e.to_string())
                .hint("choose another `--block-size`")
        })?;
        let map = memory::plan(what, spec, context, threads, place)?;
        let page = geometry.page;
        let pages = whole_pages(map.rank.region(Region::KvCache), page).saturating_sub(1);
        let tenants = match what.tenants {
            None => vec![Tenant::FREE],
            Some(tenants) => tenants.shares(pages, page)?,
        };
        Ok(Self {
            context,
            threads,
            programs,
            geometry,
            layout,
            map,
            pages,
            tenants,
        })
    }
}

fn whole_pages(bytes: Bytes, page: Bytes) -> u32 {
    u32::try_from(bytes.whole(page)).unwrap_or(u32::MAX)
}

fn options(args: &EngineArgs) -> LoadOptions {
    let mut options = LoadOptions::new(Env::process());
    options.offline = args.offline;
    // The headers of all shards: they say what is to be downloaded.
    options.traffic = options.gguf_traffic;
    options
}

/// The map of what would be started, of any model that can be planned; no weights are needed.
pub(crate) fn plan(what: &Start<'_>) -> Result<Map, Failure> {
    let located = crate::demo::find(what.model)?;
    let options = options(what.engine);
    let loaded =
        plimsoll_host::load(&located.reference, &options).map_err(|e| crate::load::failure(&e))?;
    let place = device::place(what.engine)?;
    Prepared::of(what, &loaded.spec, &place).map(|p| p.map)
}

pub(crate) fn start(what: &Start<'_>) -> Result<Started, Failure> {
    let args = what.engine;
    let located = source::locate(what.model)?;
    let options = options(args);
    let loaded =
        plimsoll_host::load(&located.reference, &options).map_err(|e| crate::load::failure(&e))?;
    let spec = &loaded.spec;
    let source = Source::of(&located.reference, &loaded)?;
    let place = device::place(args)?;
    let Prepared {
        context,
        threads,
        programs,
        geometry,
        layout,
        map,
        pages: usable,
        tenants,
    } = Prepared::of(what, spec, &place)?;
    // Only now is it known to fit.
    let checkpoint = source.checkpoint(&loaded, &options)?;
    if args.check_weights {
        weights::check(&checkpoint)?;
    }
    let text = ModelText::of(&checkpoint).map_err(|e| {
        Failure::new(Exit::Corrupt, "E-GEN-002", e.to_string())
            .hint("fetch the model's files again")
    })?;
    let tokenizer = Arc::new(text.tokenizer);

    let too_large = |e: &dyn std::fmt::Display| {
        Failure::new(Exit::DoesNotFit, "E-FIT-001", e.to_string())
            .hint("lower `--max-num-seqs`, `--max-model-len` or `--kv-memory`")
    };
    let too_many = |e: SizeOverflow| too_large(&e);
    let regions = map.regions().map_err(too_many)?;
    let swap_bytes = map.rank.region(match args.swap_dir {
        Some(_) => Region::SwapFile,
        None => Region::Swap,
    });
    let swap_file = |folder: &PathBuf| {
        SwapSpace::file(folder, swap_bytes).map_err(|e| {
            Failure::new(Exit::Failure, "E-IO-005", e.to_string())
                .hint("name a folder on a disk with room, or lower `--swap-space`")
        })
    };
    let swap_space = || -> Result<SwapSpace, Failure> {
        match &args.swap_dir {
            Some(folder) => swap_file(folder),
            None => match Arena::new("swap space", swap_bytes) {
                Ok(arena) => Ok(arena.into()),
                Err(e) => Err(too_large(&e)),
            },
        }
    };
    let threads = usize::try_from(threads).unwrap_or(1);
    let (level, inputs) = (level(args)?, inputs(args));
    let swap_pages = whole_pages(swap_bytes, geometry.page);
    let step_tokens = programs[0].tokens;
    let forms = programs[0].forms();
    let mut cost = cost(spec, &programs[0], args.tp)?;
    let (progress, began) = (Progress::new(), Instant::now());
    let tell = |done: Bytes, all: Bytes| {
        progress.show(|| {
            let rate = done.get() as f64 / began.elapsed().as_secs_f64().max(1e-3);
            format!(
                "loading {} of {}, {}/s",
                short_bytes(done.get()),
                short_bytes(all.get()),
                short_bytes(rate as u64)
            )
        });
    };
    let broken = |e: WeightsError| Failure::new(Exit::Corrupt, "E-GEN-008", e.to_string());
    let mut notes = notes(spec, args.weights, context);
    let (backend, how): (Box<dyn Backend>, Option<String>) = match place.gpus {
        gpus if gpus.is_empty() => {
            let meeting = Meeting::new(programs.len());
            let mut ranks = Vec::new();
            for (rank, program) in programs.into_iter().enumerate() {
                let mut memory =
                    Memory::commit(&map.rank, swap_space()?).map_err(|e| too_large(&e))?;
                let weights = &mut memory.weights;
                load_weights(&program, &checkpoint, weights, threads, &tell).map_err(broken)?;
                let cpu = Cpu::new(program, memory, level, inputs).map_err(|e| too_large(&e))?;
                ranks.push(cpu.seated(meeting.seat(rank)));
            }
            if ranks.len() == 1 {
                (Box::new(ranks.remove(0)), None)
            } else {
                let ranks = Ranks::new(ranks, meeting, threads).map_err(|e| too_large(&e))?;
                let how = "ranks meet in this process's memory";
                (Box::new(ranks), Some(how.to_owned()))
            }
        }
        gpus => {
            let arithmetic = if args.batch_invariant {
                Arithmetic::Exact
            } else {
                Arithmetic::Fast
            };
            let mut ranks = Vec::new();
            for (gpu, program) in gpus.into_iter().zip(programs) {
                let file = args.swap_dir.as_ref().map(swap_file).transpose()?;
                let sizes = DeviceSizes::of(&map.rank, &program, context);
                let sizes = sizes.map_err(|e| too_large(&e))?;
                let cuda = Cuda::new(gpu, program, sizes, file, context, arithmetic);
                let mut cuda = cuda.map_err(|e| match &e {
                    // No flag makes it fit.
                    StartError::Device(BackendError::Device(DeviceError::Shared { .. })) => {
                        Failure::new(Exit::Usage, "E-DEVICE-006", e.to_string())
                            .hint("`--device cpu` needs no GPU")
                    }
                    _ => too_large(&e),
                })?;
                let staged = plimsoll_plan::STAGED_WEIGHTS;
                cuda::load(&mut cuda, &checkpoint, staged, threads, &tell).map_err(broken)?;
                if !args.enforce_eager {
                    let eager = "`--enforce-eager` starts kernels one by one";
                    let made = cuda.record().map_err(|e| too_large(&e).hint(eager))?;
                    let taken = made.bytes;
                    notes.extend(taken.and_then(|n| recorded(n, map.rank.region(Region::Graphs))));
                }
                ranks.push(cuda);
            }
            ranks::together(ranks, threads).map_err(|e| too_large(&e))?
        }
    };
    let device = [place.why].into_iter().chain(how).collect::<Vec<_>>();
    drop(progress);

    let vocab = u32::try_from(spec.vocab).unwrap_or(u32::MAX);
    let limits = Limits {
        max_model_len: u32::try_from(context).unwrap_or(u32::MAX),
        vocab,
        max_width: what.sequences,
        tenants: u16::try_from(tenants.len()).unwrap_or(u16::MAX),
    };
    let mut config = SchedulerConfig::new(limits);
    config.tenants = tenants;
    config.max_seqs = what.sequences;
    if let Some(queued) = what.queued {
        config.max_queued = queued as usize;
    }
    config.max_batched_tokens = u32::try_from(step_tokens).unwrap_or(u32::MAX);
    config.preempt = args.preempt.into();
    let mut kv = KvConfig::new(layout, usable);
    kv.tenants = limits.tenants;
    kv.swap_pages = swap_pages;
    kv.prefix_cache = !args.no_enable_prefix_caching;
    kv.key = secret();
    let choosers = threads.min(usize::try_from(what.sequences).unwrap_or(usize::MAX));
    let choices = Choices::new(vocab, choosers, Some(Arc::clone(&tokenizer)));
    let pool = Pool::new(threads).map_err(|e| too_large(&e))?;
    let mut executor = Runner::new(backend, pool, choices);
    if kv.swap_pages > 0 {
        let measured = executor.measure().map_err(|e| too_large(&e))?;
        believe(&mut cost.rates, measured);
    }
    let log = match what.log {
        None => None,
        Some(path) => {
            let file = File::create(path).map_err(|e| cannot_write(path, &e))?;
            executor.note_tables();
            Some(LogWriter::new(BufWriter::new(file), &config, &kv, &cost))
        }
    };
    let scheduler = Scheduler::new(config, KvCache::new(kv), cost.clone());
    Ok(Started {
        engine: Engine::new(scheduler, executor, log),
        tokenizer,
        template: text.template,
        generation: text.generation,
        limits,
        vocab,
        planned: Planned {
            map,
            regions,
            ready: plimsoll_host::memory::resident().map(|(now, _)| now),
            geometry,
            pages: usable,
            step_tokens,
        },
        threads,
        level,
        inputs,
        forms,
        cost,
        device: device.join("; "),
        note: (!notes.is_empty()).then(|| notes.join("\n")),
    })
}

/// What recordings of decode steps took, where it is more than was planned.
fn recorded(taken: Bytes, planned: Bytes) -> Option<String> {
    (taken > planned).then(|| {
        format!(
            "note: CUDA graphs took {}, where {} were planned: `--enforce-eager` does without",
            short_bytes(taken.get()),
            short_bytes(planned.get())
        )
    })
}

/// A key that nobody outside of this process knows: without it nobody makes prompts whose addresses collide.
fn secret() -> [u8; 16] {
    // The system's randomness keys it, and the halves are keyed hashes of different numbers.
    let drawn = RandomState::new();
    let mut key = [0; 16];
    for (half, i) in key.chunks_exact_mut(8).zip(0_u64..) {
        half.copy_from_slice(&drawn.hash_one(i).to_le_bytes());
    }
    key
}

fn cannot_write(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Failure,
        "E-IO-004",
        format!("cannot write {}: {e}", path.display()),
    )
    .hint("name a file in a folder that exists and has room")
}

fn level(args: &EngineArgs) -> Result<Level, Failure> {
    let level = match args.cpu_level {
        LevelArg::Auto => Level::detect(),
        LevelArg::Scalar => Level::Scalar,
        LevelArg::Avx2 => Level::Avx2,
        LevelArg::Avx512 => Level::Avx512,
    };
    if level.is_available() {
        return Ok(level);
    }
    Err(Failure::new(
        Exit::Usage,
        "E-GEN-009",
        format!("this processor has no {}", level.name()),
    )
    .hint("leave `--cpu-level` out"))
}

fn inputs(args: &EngineArgs) -> Inputs {
    match args.inputs {
        InputsArg::Auto => Inputs::detect(),
        InputsArg::Bf16 => Inputs::Bf16,
        InputsArg::F32 => Inputs::F32,
    }
}

/// The program of each rank.
fn lowered(
    what: &Start<'_>,
    spec: &ModelSpec,
    context: u64,
    place: &Place,
) -> Result<Vec<Program>, Failure> {
    let args = what.engine;
    let rules = KvRules::plimsoll(args.kv_cache_dtype, args.block_size);
    let sizes = Sizes {
        // A step has room for a token of every sequence.
        tokens: args.max_num_batched_tokens.max(u64::from(what.sequences)),
        outputs: u64::from(what.sequences),
        context,
        weights: args.weights,
    };
    let ranks = Rank::all(args.tp).map(|rank| lower_rank(spec, rank, &sizes, &rules));
    let programs = ranks.collect::<Result<Vec<_>, _>>().map_err(|e| {
        let exit = match e {
            LowerError::NotYet { .. } | LowerError::Unsupported { .. } => Exit::Usage,
            LowerError::Divided(_) | LowerError::Shard(_) if args.tp > 1 => Exit::Usage,
            _ => Exit::Corrupt,
        };
        let hint = match e {
            LowerError::NotYet { .. } => {
                "choose a model of a family that runs: README.md lists them"
            }
            LowerError::Divided(_) | LowerError::Shard(_) if args.tp > 1 => {
                "choose another `--tp`, or leave it out"
            }
            _ => "change what it names, or choose another model",
        };
        Failure::new(exit, "E-GEN-010", e.to_string()).hint(hint)
    })?;
    let check = if place.gpus.is_empty() {
        plimsoll_runtime::check
    } else {
        cuda::check
    };
    check(&programs[0]).map_err(|e| {
        let hint = match e {
            StartError::KvType(_) | StartError::LatentType(_) => "set `--kv-cache-dtype`",
            StartError::Group(_) => "run it on processors: `--device cpu`",
            _ => "choose a model that the processor can run",
        };
        Failure::new(Exit::Usage, "E-GEN-010", e.to_string()).hint(hint)
    })?;
    Ok(programs)
}

/// What a user should know of how the model is run, if anything.
fn notes(spec: &ModelSpec, weights: Weights, context: u64) -> Vec<String> {
    let longer = spec.max_context.filter(|trained| context > *trained);
    let longer = longer.map(|trained| {
        format!("note: sequences may have {context} tokens, and the model was trained for {trained}: what comes after them is often worse")
    });
    converted(spec, weights).into_iter().chain(longer).collect()
}

/// Matrices that are stored in another type than the one they are packed in, if any.
fn converted(spec: &ModelSpec, weights: Weights) -> Option<String> {
    const KEPT: Weights = Weights::As(WeightType::Bf16);
    let matrices = spec.tensors.iter().filter(|t| t.linear.is_some());
    let plain = [DType::F32, DType::F16, DType::Bf16];
    let mut types: Vec<String> = matrices
        .map(|t| t.dtype)
        .filter(|d| *d != DType::Bf16 || !matches!(weights, KEPT | Weights::Stored))
        .map(|d| match &spec.quant {
            Some(scheme) if !plain.contains(&d) => scheme.name(),
            _ => d.to_string(),
        })
        .collect();
    types.sort();
    types.dedup();
    let done = match weights {
        KEPT => "computed as bf16, rounded".to_owned(),
        Weights::Stored => {
            "kept so where that is fp8, or 4 bits in groups, whose inputs are in int8, else computed as bf16, rounded"
                .to_owned()
        }
        Weights::As(WeightType::Fp8) => "kept so where that is fp8, else quantised to it".to_owned(),
        Weights::As(other) => format!("quantised to {other} as they are loaded, and their inputs to int8"),
    };
    (!types.is_empty()).then(|| format!("note: matrices stored as {} are {done}", types.join(", ")))
}

/// What the scheduler believes of this machine: rates of a server core, until they are measured; of several ranks those
/// of one.
fn cost(spec: &ModelSpec, program: &Program, ranks: u64) -> Result<CostModel, Failure> {
    let wrong = |e: SizeOverflow| Failure::new(Exit::Corrupt, "E-MODEL-001", e.to_string());
    let mut work = Work::new(spec, &program.geometry, ranks).map_err(wrong)?;
    // As they lie here, not as they are stored.
    work.weight_bytes = program.read_by_one_token().map_err(wrong)?.get();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    Ok(CostModel {
        work,
        rates: Rates {
            flops_per_s: 80_000_000_000 * cores.div_ceil(ranks),
            memory_bytes_per_s: 20_000_000_000,
            link_bytes_per_s: 5_000_000_000,
            transfer_ns: 1_000,
            transfers_per_block: 1,
            step_ns: 100_000,
            row_ns: 1_000,
        },
    })
}

/// Puts what was measured in the place of what was guessed; step times correct it later.
fn believe(rates: &mut Rates, measured: Measured) {
    rates.memory_bytes_per_s = measured.read_bytes_per_s;
    rates.link_bytes_per_s = measured.swap_bytes_per_s;
    // Whole pages were moved: what each costs beside its bytes is in that rate.
    rates.transfer_ns = 0;
    if let Some(flops) = measured.flops_per_s {
        rates.flops_per_s = flops;
    }
}
