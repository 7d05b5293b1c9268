//! From a MODEL argument to an engine: sizes first, then memory, then weights.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use plimsoll_host::{Env, LoadOptions, locate};
use plimsoll_kernels::Level;
use plimsoll_kv::{KvCache, KvConfig, Layout};
use plimsoll_model::ModelSpec;
use plimsoll_program::{KvRules, Limits as Sizes, LowerError, Program, lower};
use plimsoll_report::short_bytes;
use plimsoll_runtime::sample::{Sampling, SamplingError, SamplingParams};
use plimsoll_runtime::text::{ChatTemplate, GenerationConfig, ModelText, Tokenizer};
use plimsoll_runtime::weights::{Checkpoint, load as load_weights};
use plimsoll_runtime::{Arena, Choices, CpuExecutor, Engine, Memory};
use plimsoll_schedule::{CostModel, Limits, Rates, Scheduler, SchedulerConfig, Work};
use plimsoll_simulate::log::LogWriter;
use plimsoll_units::{Bytes, DType};

use crate::args::generate::{GenerateArgs, LevelArg};
use crate::error::{Exit, Failure};
use crate::progress::Progress;

/// Longest sequence unless told.
const MODEL_LEN: u64 = 8192;
/// Kept for everything that is not in an arena: the tokenizer, stacks, tables, buffers of files.
const RESERVE_MIB: u64 = 256;

/// The event log of a run, for `simulate --replay`.
type RunLog = LogWriter<BufWriter<File>>;

/// An engine that is ready.
pub(super) struct Started {
    pub(super) engine: Engine<CpuExecutor<Choices>, Option<RunLog>>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Option<ChatTemplate>,
    generation: GenerationConfig,
    pub(super) limits: Limits,
    vocab: u32,
}

impl Started {
    /// How tokens are chosen: what was asked for, else what the model's own configuration says.
    pub(super) fn params(
        &self,
        args: &GenerateArgs,
        max_tokens: u32,
    ) -> Result<SamplingParams, SamplingError> {
        let own = &self.generation;
        #[allow(
            clippy::cast_possible_truncation,
            reason = "rounds; ranges are checked after"
        )]
        let of = |given: Option<f32>, own: Option<f64>, other: f32| {
            given.or(own.map(|x| x as f32)).unwrap_or(other)
        };
        let asked = Sampling {
            temperature: of(args.temperature, own.temperature, 1.0),
            top_k: args.top_k.or(own.top_k).unwrap_or(0),
            top_p: of(args.top_p, own.top_p, 1.0),
            min_p: of(args.min_p, own.min_p, 0.0),
            repetition_penalty: of(args.repetition_penalty, own.repetition_penalty, 1.0),
            seed: args.seed,
            ignore_eos: args.ignore_eos,
            ..Sampling::default()
        };
        SamplingParams::new(asked, self.vocab, &own.eos, max_tokens)
    }

    /// What was committed, and how much of it was used at most.
    pub(super) fn memory(&self) -> String {
        let parts: Vec<String> = ["weights", "KV", "swap", "activations"]
            .iter()
            .zip(self.engine.executor().arenas())
            .filter(|(_, a)| a.bytes() > Bytes::ZERO)
            .map(|(name, a)| {
                format!(
                    "{name} {} ({} used)",
                    short_bytes(a.bytes().get()),
                    short_bytes(a.high_water().get())
                )
            })
            .collect();
        format!("committed: {}", parts.join(", "))
    }
}

pub(super) fn start(args: &GenerateArgs) -> Result<Started, Failure> {
    let reference = locate(&args.model).map_err(|e| crate::load::failure(&e))?;
    let mut options = LoadOptions::new(Env::process());
    options.offline = true;
    let loaded = plimsoll_host::load(&reference, &options).map_err(|e| crate::load::failure(&e))?;
    let spec = &loaded.spec;
    let checkpoint = Checkpoint::of(&reference, &loaded)
        .map_err(|e| crate::load::failure(&e))?
        .ok_or_else(|| {
            Failure::new(
                Exit::NotFound,
                "E-GEN-007",
                format!("{} is no model on this machine with weights", args.model),
            )
            .why("today models run from a folder as transformers writes it, or a .gguf file")
            .hint("download the model and name its folder or file")
        })?;
    let text = ModelText::of(&checkpoint).map_err(|e| {
        Failure::new(Exit::Corrupt, "E-GEN-002", e.to_string())
            .hint("fetch the model's files again")
    })?;
    let tokenizer = Arc::new(text.tokenizer);

    let context = args
        .max_model_len
        .unwrap_or_else(|| spec.max_context.unwrap_or(MODEL_LEN).min(MODEL_LEN));
    let program = lowered(args, spec, context)?;
    let layout = Layout::new(&program.geometry).map_err(|e| {
        Failure::new(Exit::Usage, "E-SIM-007", e.to_string()).hint("choose another `--block-size`")
    })?;
    let (pages, swap) = pages(args, &program, &layout, context)?;
    let too_large = |e: &dyn std::fmt::Display| {
        Failure::new(Exit::DoesNotFit, "E-FIT-001", e.to_string())
            .hint("lower `--max-num-seqs`, `--max-model-len` or `--kv-memory`")
    };
    let mut weights = Arena::new("weights", program.weight_bytes).map_err(|e| too_large(&e))?;
    let threads = args
        .threads
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let progress = Progress::new();
    load_weights(
        &program,
        &checkpoint,
        &mut weights,
        threads,
        &|done, all| {
            progress.show(|| {
                format!(
                    "loading {} of {}",
                    short_bytes(done.get()),
                    short_bytes(all.get())
                )
            });
        },
    )
    .map_err(|e| Failure::new(Exit::Corrupt, "E-GEN-008", e.to_string()))?;
    drop(progress);

    let vocab = u32::try_from(spec.vocab).unwrap_or(u32::MAX);
    let limits = Limits {
        max_model_len: u32::try_from(context).unwrap_or(u32::MAX),
        vocab,
        max_width: args.max_num_seqs,
        tenants: 1,
    };
    let mut config = SchedulerConfig::new(limits);
    config.max_seqs = args.max_num_seqs;
    config.max_batched_tokens = u32::try_from(program.tokens).unwrap_or(u32::MAX);
    let mut kv = KvConfig::new(layout, pages - 1);
    kv.swap_pages = swap;
    kv.prefix_cache = !args.no_enable_prefix_caching;
    let cost = cost(spec, &program)?;
    let log = match &args.log {
        None => None,
        Some(path) => {
            let file = File::create(path).map_err(|e| cannot_write(path, &e))?;
            Some(LogWriter::new(BufWriter::new(file), &config, &kv, &cost))
        }
    };
    let scheduler = Scheduler::new(config, KvCache::new(kv), cost);
    let memory = Memory {
        weights,
        pages,
        swap,
    };
    let choices = Choices::new(vocab, Some(Arc::clone(&tokenizer)));
    let executor = CpuExecutor::new(program, memory, threads, level(args)?, choices)
        .map_err(|e| too_large(&e))?;
    Ok(Started {
        engine: Engine::new(scheduler, executor, log),
        tokenizer,
        template: text.template,
        generation: text.generation,
        limits,
        vocab,
    })
}

pub(super) fn cannot_write(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Failure,
        "E-IO-004",
        format!("cannot write {}: {e}", path.display()),
    )
    .hint("name a file in a folder that exists and has room")
}

fn level(args: &GenerateArgs) -> Result<Level, Failure> {
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

fn lowered(args: &GenerateArgs, spec: &ModelSpec, context: u64) -> Result<Program, Failure> {
    let rules = KvRules {
        dtype: args.kv_cache_dtype,
        state_dtype: DType::F32,
        block_size: args.block_size,
    };
    let sizes = Sizes {
        // A step has room for a token of every sequence.
        tokens: args
            .max_num_batched_tokens
            .max(u64::from(args.max_num_seqs)),
        outputs: u64::from(args.max_num_seqs),
        context,
    };
    lower(spec, &sizes, &rules).map_err(|e| {
        let exit = match e {
            LowerError::NotYet { .. } | LowerError::Unsupported { .. } => Exit::Usage,
            _ => Exit::Corrupt,
        };
        Failure::new(exit, "E-GEN-010", e.to_string())
    })
}

/// Pages of the pool, the null page among them, and of swap space.
fn pages(
    args: &GenerateArgs,
    program: &Program,
    layout: &Layout,
    context: u64,
) -> Result<(u32, u32), Failure> {
    let overflow = |_| {
        Failure::new(
            Exit::Usage,
            "E-FIT-001",
            "the KV cache is larger than 2^64 bytes",
        )
    };
    let page = layout.page;
    // What R sequences of the longest length hold, and the null page.
    let most = layout
        .peak(context, program.tokens)
        .saturating_mul(u64::from(args.max_num_seqs))
        .saturating_add(1);
    let fixed = program
        .weight_bytes
        .add(program.activation_bytes)
        .and_then(|b| b.add(args.swap_space))
        .and_then(|b| b.add(Bytes::from_mib(RESERVE_MIB)?))
        .map_err(overflow)?;
    let usable = plimsoll_host::memory::host().usable();
    let left = usable.map(|u| u.saturating_sub(fixed));
    let wanted = match args.kv_memory {
        Some(given) => given.whole(page),
        None => left.map_or(most, |l| most.min(l.whole(page))),
    };
    let least = layout.peak(context.min(64), program.tokens) + 1;
    let too_much = left.is_some_and(|l| wanted.saturating_mul(page.get()) > l.get());
    if wanted < least || too_much {
        let need = least.max(wanted).saturating_mul(page.get());
        return Err(Failure::new(
            Exit::DoesNotFit,
            "E-FIT-001",
            format!(
                "{} of weights, {} of activations and {} of KV cache do not fit into {} of free memory",
                program.weight_bytes,
                program.activation_bytes,
                Bytes::new(need),
                usable.map_or_else(|| "an unknown amount".to_owned(), |u| u.to_string()),
            ),
        )
        .why(format!("{RESERVE_MIB} MiB are kept for everything else"))
        .hint("lower `--kv-memory` or `--max-num-batched-tokens`, or choose a smaller model"));
    }
    let pages = u32::try_from(wanted).unwrap_or(u32::MAX);
    let swap = u32::try_from(args.swap_space.whole(page)).unwrap_or(u32::MAX);
    Ok((pages, swap))
}

/// What the scheduler believes of this machine until step times teach it: rates of a server core.
fn cost(spec: &ModelSpec, program: &Program) -> Result<CostModel, Failure> {
    let work = Work::new(spec, &program.geometry, 1)
        .map_err(|e| Failure::new(Exit::Corrupt, "E-MODEL-001", e.to_string()))?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    Ok(CostModel {
        work,
        rates: Rates {
            flops_per_s: 80_000_000_000 * cores,
            memory_bytes_per_s: 20_000_000_000,
            link_bytes_per_s: 5_000_000_000,
            transfer_ns: 1_000,
            transfers_per_block: 1,
            step_ns: 100_000,
            row_ns: 1_000,
        },
    })
}
