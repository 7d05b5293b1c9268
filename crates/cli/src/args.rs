//! What can be typed. What is meant by it is decided in `commands`.

pub(crate) mod bench;
pub(crate) mod doctor;
pub(crate) mod engine;
pub(crate) mod generate;
mod rates;
pub(crate) mod serve;
mod simulate;
mod sweep;
pub(crate) mod top;
mod workload;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use plimsoll_plan::{Engine, KvType};
use plimsoll_simulate::Slo;
use plimsoll_simulate::paged::Branching;
use plimsoll_units::{Bytes, DType, Weights};

pub(crate) use self::sweep::Sweep;
pub(crate) use self::workload::WorkloadArgs;
use crate::simulated::RateChanges;

/// How much memory an LLM needs to be served, what fits where, and why.
#[derive(Debug, Parser)]
#[command(
    name = "plimsoll",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Flags of every command.
#[derive(Debug, Default, Args)]
pub(crate) struct Global {
    /// When to colour: auto obeys NO_COLOR, CLICOLOR_FORCE and TERM
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub(crate) color: Color,
    /// Draw with ASCII only
    #[arg(long, global = true)]
    pub(crate) ascii: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Plan memory: how many devices, users and tokens, byte by byte
    Plan(Box<PlanArgs>),
    /// Run a workload through the scheduler and block manager under a virtual clock
    Simulate(Box<SimulateArgs>),
    /// Run a model on this machine's processors
    Generate(Box<generate::GenerateArgs>),
    /// Serve a model over HTTP, as OpenAI's clients expect it
    Serve(Box<serve::ServeArgs>),
    /// Watch a server: its memory, page by page, and what it does
    Top(Box<top::TopArgs>),
    /// Time a model on this machine's processors: decode, prefill, batches
    Bench(Box<bench::BenchArgs>),
    /// Built-in models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Known devices
    Devices {
        /// One object per device instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Compare a start-up log of vLLM or llama.cpp with what is predicted for it
    Compare(CompareArgs),
    /// Judge predictions against a file of published start-up reports
    Accuracy(AccuracyArgs),
    /// Print the JSON Schema of a command's `--json` output, or of a file that is read
    Schema {
        /// Which one
        #[arg(value_enum)]
        of: SchemaOf,
    },
    /// Look at this machine: accelerators, memory, limits; with --gpu, whether a GPU computes what the processors do
    Doctor(doctor::DoctorArgs),
    /// Say what an error code means and what to do, or list all codes
    Explain {
        /// As E-DEVICE-001, or queue_full of the server's answers
        code: Option<String>,
    },
    /// Print a manual page
    Man {
        /// Of this command; without it, of plimsoll itself
        #[arg(conflicts_with = "dir")]
        command: Option<String>,
        /// Write the pages of all commands into this folder
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print shell completions
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaOf {
    Plan,
    Cards,
    Simulate,
    Sweep,
    Find,
    Profile,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List them
    List,
    /// Show one
    Show {
        /// Name or alias
        name: String,
        /// Print its config.json, which plans exactly as the name does
        #[arg(long)]
        config: bool,
    },
}

/// What `--emit` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EmitArg {
    Vllm,
    Sglang,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Plimsoll,
    /// For the plan's engine
    Kubernetes,
}

impl EmitArg {
    /// The engine that it starts, by name; `None` for that of the plan.
    pub(crate) const fn engine(self) -> Option<&'static str> {
        match self {
            Self::Vllm => Some("vllm"),
            Self::Sglang => Some("sglang"),
            Self::LlamaCpp => Some("llama.cpp"),
            Self::Plimsoll => Some("plimsoll"),
            Self::Kubernetes => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// Region by region, under the engine's rules
    Engine,
    /// Weights + KV + 10 % of both, as hand calculations do
    RuleOfThumb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReserveArg {
    Max,
    Pow2,
    Oracle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AssumeArg {
    /// A LLaMA-like decoder with grouped-query attention over the full context
    Gqa,
}

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct PlanArgs {
    /// A built-in name, a folder, config.json, .safetensors, .gguf, or a hub id org/name or org/name@revision
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Print one JSON object (see `plimsoll schema plan`)
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the plan as one page, with the memory of each device, and users by context
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write every term of the plan as CSV; of several kinds of device, a line for each
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Print what starts the plan instead of the plan: a command, or a manifest of a Deployment and a Service
    #[arg(long, value_enum)]
    pub(crate) emit: Option<EmitArg>,
    /// Container image, with `--emit kubernetes` (default: the one that vLLM or SGLang publishes for the release)
    #[arg(long, value_name = "IMAGE", requires = "emit")]
    pub(crate) image: Option<String>,
    /// Expand terms into formula, inputs and source: all, or those whose name contains TERM
    #[arg(long, value_name = "TERM", num_args = 0..=1, default_missing_value = "")]
    pub(crate) explain: Option<String>,
    /// How to compute
    #[arg(long, value_enum, default_value_t = Method::Engine)]
    pub(crate) method: Method,
    /// Take an unknown architecture for this
    #[arg(long, value_enum)]
    pub(crate) assume: Option<AssumeArg>,
    /// Do not touch the network
    #[arg(long)]
    pub(crate) offline: bool,
}

/// What is to be served.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    /// Concurrent requests; without it, the plan answers how many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) users: Option<u64>,
    /// Tokens per sequence, prompt and output (default: the model's trained context); 8k = 8192
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    pub(crate) context: Option<u64>,
    /// A mix of lengths in place of one context: TOKENS:SHARE,... as 512:0.5,2k:0.3,8k:0.2
    #[arg(long, value_name = "MIX", conflicts_with = "context", value_parser = lengths)]
    pub(crate) lengths: Option<Mix>,
    /// Tokens of the prompt, which sequences of one request share (default: half of the context)
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    pub(crate) prompt: Option<u64>,
    /// Sequences per request (parallel sampling)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=16_384))]
    pub(crate) n: u64,
    /// Beams per request; planned as that many sequences that share only the prompt
    #[arg(long, value_name = "N", conflicts_with = "n", value_parser = clap::value_parser!(u64).range(1..=16_384))]
    pub(crate) beam_width: Option<u64>,
    /// Leading tokens that requests have in common
    #[arg(long, value_name = "TOKENS", default_value = "0", value_parser = tokens_or_zero)]
    pub(crate) shared_prefix: u64,
    /// Share of the requests that have them
    #[arg(long, value_name = "0..1", default_value_t = 1.0, value_parser = fraction)]
    pub(crate) prefix_hit: f64,
}

/// Where it is to run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Devices")]
pub(crate) struct DeviceArgs {
    /// Kind of device; several to compare, as a100,h100,l40s; several together, as 2xh100+4xl40s, each kind with pipeline
    /// stages of its own; `any` for the smallest that does, `auto` to look at this machine, `cpu` for its processors
    #[arg(long, value_name = "NAME", env = "PLIMSOLL_GPU")]
    pub(crate) gpu: Option<String>,
    /// How many there are; without it, the plan chooses the fewest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(crate) gpus: Option<u64>,
    /// Memory of one device, instead of a known kind; with `--gpu cpu`, the budget
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Bytes>,
    /// What other processes use on each device
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) in_use: Bytes,
    /// A plan of another engine on the same devices, as `--json` wrote it: what it takes is in use; repeat for several
    #[arg(long, value_name = "PLAN.json")]
    pub(crate) beside: Vec<PathBuf>,
    /// Tensor-parallel degree
    #[arg(long, visible_alias = "tensor-parallel-size", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) tp: Option<u64>,
    /// Pipeline-parallel degree
    #[arg(long, visible_alias = "pipeline-parallel-size", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) pp: Option<u64>,
    /// Data-parallel replicas
    #[arg(long, visible_alias = "data-parallel-size", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) dp: Option<u64>,
    /// Deal whole experts out over the ranks instead of splitting each
    #[arg(long, visible_alias = "enable-expert-parallel")]
    pub(crate) ep: bool,
    /// Price per hour of a kind of device, as h100=2.99/h; repeat to find the cheapest
    #[arg(long, value_name = "NAME=PRICE", value_parser = price)]
    pub(crate) price: Vec<(String, f64)>,
}

/// Under which rules.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine (flags named as vLLM's; SGLang's names do as well)")]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct EngineArgs {
    /// ideal, contiguous, vllm, vllm@VERSION, sglang, sglang@VERSION, trtllm, llama.cpp, llama.cpp@ik or plimsoll
    #[arg(long, value_name = "ENGINE")]
    pub(crate) engine: Option<Engine>,
    /// What a contiguous server reserves
    #[arg(long, value_enum)]
    pub(crate) reserve: Option<ReserveArg>,
    /// Type of activations and unquantised weights
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<DType>,
    /// Quantise while loading: fp8, int8, int4, bitsandbytes
    #[arg(long, value_name = "FORMAT", value_parser = quantization)]
    pub(crate) quantization: Option<plimsoll_model::quant::QuantFormat>,
    /// What matrices are kept as (plimsoll): bf16, fp8, int8 or int4, or auto: fp8 and 4-bit groups as they are stored, others bf16
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub(crate) weights: Weights,
    /// Type of the KV cache
    #[arg(long, visible_aliases = ["kv-dtype", "cache-type-k"], value_name = "TYPE")]
    pub(crate) kv_cache_dtype: Option<KvType>,
    /// Type of cached values, where it differs (llama.cpp)
    #[arg(long, value_name = "TYPE")]
    pub(crate) cache_type_v: Option<KvType>,
    /// Tokens per block
    #[arg(long, alias = "page-size", value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) block_size: Option<u64>,
    /// Longest sequence the engine accepts (default: the trained context, or the load's)
    #[arg(long, alias = "context-length", value_name = "TOKENS", value_parser = tokens)]
    pub(crate) max_model_len: Option<u64>,
    /// R: sequences per step
    #[arg(long, alias = "max-running-requests", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) max_num_seqs: Option<u64>,
    /// T: tokens per step
    #[arg(long, alias = "chunked-prefill-size", value_name = "TOKENS", value_parser = tokens)]
    pub(crate) max_num_batched_tokens: Option<u64>,
    /// Ranks over which a sequence's tokens are dealt (vLLM)
    #[arg(long, visible_alias = "dcp", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) decode_context_parallel_size: Option<u64>,
    /// Most tokens of the pool (SGLang)
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    pub(crate) max_total_tokens: Option<u64>,
    /// Physical batch (llama.cpp)
    #[arg(long, visible_alias = "ubatch", value_name = "TOKENS", value_parser = tokens)]
    pub(crate) ubatch_size: Option<u64>,
    /// Share of the device that vLLM takes, that SGLang has for weights and cache, of free memory that TensorRT-LLM's cache takes
    #[arg(long, visible_alias = "mem-fraction-static", value_name = "0..1", value_parser = utilization)]
    pub(crate) gpu_memory_utilization: Option<f64>,
    /// KV cache per device, taken as given
    #[arg(long, visible_alias = "kv-cache-memory-bytes", value_name = "SIZE")]
    pub(crate) kv_memory: Option<Bytes>,
    /// No CUDA graphs
    #[arg(long, alias = "disable-cuda-graph")]
    pub(crate) enforce_eager: bool,
    /// Keep cached prefixes where the engine would not (vLLM: models with recurrent states)
    #[arg(long, conflicts_with = "no_enable_prefix_caching")]
    pub(crate) enable_prefix_caching: bool,
    /// Keep no cached prefixes
    #[arg(long)]
    pub(crate) no_enable_prefix_caching: bool,
    /// Schedule one step ahead (vLLM): true or false
    #[arg(long, value_name = "BOOL")]
    pub(crate) async_scheduling: Option<bool>,
    /// Flash attention (llama.cpp): true or false
    #[arg(long, value_name = "BOOL")]
    pub(crate) flash_attn: Option<bool>,
    /// One KV buffer for all sequences (llama.cpp)
    #[arg(long)]
    pub(crate) kv_unified: bool,
    /// Full-size cache for window layers (llama.cpp)
    #[arg(long)]
    pub(crate) swa_full: bool,
    /// A draft model for speculative decoding: any MODEL
    #[arg(long, value_name = "MODEL")]
    pub(crate) speculative_model: Option<String>,
    /// Load the checkpoint's multi-token-prediction layers
    #[arg(long, conflicts_with = "speculative_model")]
    pub(crate) mtp: bool,
    /// Slots for LoRA adapters
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(crate) max_loras: Option<u64>,
    /// Largest rank of a LoRA adapter
    #[arg(long, value_name = "RANK", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(crate) max_lora_rank: u64,
    /// Host memory for swapped KV blocks, per device
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) swap_space: Bytes,
    /// Swap space is a file in this folder, with `--gpu cpu`
    #[arg(long, value_name = "DIR", requires = "swap_space")]
    pub(crate) swap_dir: Option<PathBuf>,
    /// Threads, with `--gpu cpu` (default: processors)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) threads: Option<u64>,
    /// Tell the log probability of each token, and of so many likeliest ones, with `--gpu cpu`
    #[arg(long, value_name = "0..20", value_parser = clap::value_parser!(u64).range(0..=20))]
    pub(crate) logprobs: Option<u64>,
    /// Plan what `generate` commits, with `--gpu cpu`: without connections, bodies, requests and log probabilities of `serve`
    #[arg(long)]
    pub(crate) generate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PreemptArg {
    /// Whichever the cost model finds cheaper
    Auto,
    /// To swap space
    Swap,
    /// Forget and compute again
    Recompute,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdmissionArg {
    /// Whoever's prompt fits now
    Optimistic,
    /// Only whoever's worst case fits
    Guaranteed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServerArg {
    /// Our scheduler and block manager
    Paged,
    /// Contiguous, the longest length reserved (Orca Max)
    OrcaMax,
    /// Contiguous, the next power of two (Orca Pow2)
    OrcaPow2,
    /// Contiguous, exactly what will be used (Orca Oracle)
    OrcaOracle,
    /// Contiguous, batches that start and end together (FasterTransformer)
    Static,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RouterArg {
    /// The next one in turn
    RoundRobin,
    /// The one with the fewest requests that have not ended
    LeastLoaded,
}

impl ServerArg {
    pub(crate) const ALL: [Self; 5] = [
        Self::Paged,
        Self::OrcaMax,
        Self::OrcaPow2,
        Self::OrcaOracle,
        Self::Static,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FindArg {
    /// Requests per second
    MaxRate,
}

#[derive(Clone, Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct SimulateArgs {
    /// As for `plan`: a built-in name, a folder, config.json, .safetensors, .gguf, or a hub id
    #[arg(required_unless_present = "replay")]
    pub(crate) model: Option<String>,
    /// Make every decision of a recorded run again, and compare
    #[arg(long, value_name = "LOG", conflicts_with_all = ["model", "workload", "trace", "rate", "requests", "seed", "tp", "kv_memory", "swap_space", "servers", "block_size", "max_model_len", "replicas", "max_num_seqs", "max_num_batched_tokens", "admission", "preempt", "kv_cache_dtype", "no_enable_prefix_caching", "rates", "belief", "profile", "beam_drift", "tenants", "slo", "find", "sweep", "threads", "json", "html", "csv", "svg", "log"])]
    pub(crate) replay: Option<PathBuf>,
    /// What arrives: sharegpt, alpaca, azure-code, azure-conv, or synthetic:in=...,out=...
    ///
    /// Settings follow a colon: sharegpt:rate=4,fan=parallel(4), azure-code:prefix=shared(4,512), or
    /// synthetic:in=lognormal(161,0.8),out=64. They are in, out, rate, cv (of the gaps between arrivals), total
    /// (longest input and output), prefix, fan and tenants.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "azure-conv",
        help_heading = "Workload"
    )]
    pub(crate) workload: String,
    /// A trace: Azure or BurstGPT CSV, Mooncake JSONL, or lengths; - for standard input
    ///
    /// More --requests than it has begin it again, with new content.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "workload",
        help_heading = "Workload"
    )]
    pub(crate) trace: Option<PathBuf>,
    /// Requests per second, in place of the workload's own
    #[arg(long, value_name = "PER_SECOND", help_heading = "Workload")]
    pub(crate) rate: Option<f64>,
    /// How many requests (default: the whole trace; 2,000 of a synthetic workload)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000), help_heading = "Workload")]
    pub(crate) requests: Option<u64>,
    /// How much beams branch: the best candidate's mean loss, in mean gaps between candidates
    #[arg(long, value_name = "X", default_value_t = Branching::default().drift, value_parser = simulate::drift, help_heading = "Workload")]
    pub(crate) beam_drift: f64,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Workload")]
    pub(crate) seed: u64,
    /// Kind of device
    #[arg(
        long,
        value_name = "NAME",
        env = "PLIMSOLL_GPU",
        default_value = "a100-80g",
        help_heading = "Devices"
    )]
    pub(crate) gpu: String,
    /// Tensor-parallel degree
    #[arg(long, visible_alias = "tensor-parallel-size", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024), help_heading = "Devices")]
    pub(crate) tp: u64,
    /// Replicas of the paged server, each with --tp devices and a pool of its own (default: 1)
    #[arg(long, visible_aliases = ["dp", "data-parallel-size"], value_name = "N", value_parser = replicas, help_heading = "Devices")]
    pub(crate) replicas: Option<NonZeroU32>,
    /// Which replica a request goes to when it arrives
    #[arg(
        long,
        value_enum,
        default_value_t = RouterArg::RoundRobin,
        help_heading = "Devices"
    )]
    pub(crate) router: RouterArg,
    /// Rates in place of the device's, as flops=170T,memory=1.6TB/s,link=12GB/s,step=5ms,row=5us
    ///
    /// They are what is reached, not what the datasheet promises: operations, bytes of memory and bytes to the host
    /// per second, and the fixed times of a step and of each of its rows. Also transfer=10us, the fixed time of a
    /// transfer to the host, and transfers-per-block=80.
    #[arg(long, value_name = "NAME=RATE", value_parser = rates::changes, help_heading = "Devices")]
    pub(crate) rates: Option<RateChanges>,
    /// Rates that the scheduler believes in place of the device's; without it, it knows the true ones
    #[arg(long, value_name = "NAME=RATE", value_parser = rates::changes, help_heading = "Devices")]
    pub(crate) belief: Option<RateChanges>,
    /// Rates measured on such a device, or steps timed on one, as JSON (see `plimsoll schema profile`)
    #[arg(long, value_name = "FILE", help_heading = "Devices")]
    pub(crate) profile: Option<PathBuf>,
    /// KV cache per device, in place of what the plan leaves for it
    #[arg(
        long,
        visible_alias = "kv-cache-memory-bytes",
        value_name = "SIZE",
        help_heading = "Devices"
    )]
    pub(crate) kv_memory: Option<Bytes>,
    /// Host memory for swapped KV blocks, per device
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "16GiB",
        help_heading = "Devices"
    )]
    pub(crate) swap_space: Bytes,
    /// Servers to run side by side, each with the same requests and memory (default: all; with --replicas, paged)
    #[arg(long, value_enum, value_delimiter = ',', help_heading = "Server")]
    pub(crate) servers: Vec<ServerArg>,
    /// What tenants of the paged pool are sure of and never exceed: FLOOR:CAP,... as 0.2:0.5,0:1
    ///
    /// Shares of the pool, in the order of the workload's tenants. A tenant gets its floor back from others whenever it
    /// needs it.
    #[arg(long, value_name = "SHARES", value_parser = simulate::tenants, help_heading = "Server")]
    pub(crate) tenants: Option<simulate::Tenants>,
    /// Tokens per block
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=65_536), help_heading = "Server")]
    pub(crate) block_size: u64,
    /// Longest sequence accepted; longer requests are cut, and counted (default: the trained context)
    #[arg(long, value_name = "TOKENS", value_parser = tokens, help_heading = "Server")]
    pub(crate) max_model_len: Option<u64>,
    /// R: sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Server")]
    pub(crate) max_num_seqs: u32,
    /// T: tokens per step
    #[arg(long, value_name = "TOKENS", default_value = "2048", value_parser = tokens, help_heading = "Server")]
    pub(crate) max_num_batched_tokens: u64,
    /// Who is let in
    #[arg(long, value_enum, default_value_t = AdmissionArg::Optimistic, help_heading = "Server")]
    pub(crate) admission: AdmissionArg,
    /// How a victim gives way
    #[arg(long, value_enum, default_value_t = PreemptArg::Auto, help_heading = "Server")]
    pub(crate) preempt: PreemptArg,
    /// Type of the KV cache
    #[arg(
        long,
        visible_alias = "kv-dtype",
        value_name = "TYPE",
        help_heading = "Server"
    )]
    pub(crate) kv_cache_dtype: Option<KvType>,
    /// Keep no cached prefixes
    #[arg(long, help_heading = "Server")]
    pub(crate) no_enable_prefix_caching: bool,
    /// Service level of a request, as ttft=1s,itl=50ms: time to the first token, mean gap between later ones
    ///
    /// Either may be left out; tpot is another word for itl. It is attained where 99 % of the requests keep it, or
    /// the share that follows, as attain=0.95. Requests turned away do not keep it.
    #[arg(long, value_name = "BOUNDS", value_parser = simulate::slo, help_heading = "Output")]
    pub(crate) slo: Option<Slo>,
    /// Search instead of one run: the highest rate at which `--slo` is attained (of paged, unless `--servers` says)
    ///
    /// The table says how probes were judged; `--json` prints another object (see `plimsoll schema find`).
    #[arg(long, value_enum, requires = "slo", conflicts_with_all = ["rate", "sweep", "log", "html", "csv", "svg"], help_heading = "Search")]
    pub(crate) find: Option<FindArg>,
    /// Run every combination of these values of other flags, as rate=1,2,4; repeat for another name
    ///
    /// Names are those of the flags: rate, requests, seed, gpu, tp, kv-memory, swap-space, block-size, max-num-seqs,
    /// max-num-batched-tokens, admission, preempt, kv-cache-dtype, and prefix-cache=on,off. Every server runs at every
    /// point. `--json` prints another object (see `plimsoll schema sweep`); `--csv` writes a line per run.
    #[arg(long, value_name = "NAME=V1,V2", value_parser = sweep::sweep, conflicts_with = "log", help_heading = "Search")]
    pub(crate) sweep: Vec<Sweep>,
    /// Runs at once (default: as many as there are processors); results do not depend on it
    #[arg(long, value_name = "N", help_heading = "Search")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Print one JSON object (see `plimsoll schema simulate`)
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    /// Write a report as one page
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) html: Option<PathBuf>,
    /// Write the time series as CSV
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) csv: Option<PathBuf>,
    /// Write the charts as SVG files into a folder
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(crate) svg: Option<PathBuf>,
    /// Record the paged run, for `--replay`
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) log: Option<PathBuf>,
    /// Do not touch the network
    #[arg(long)]
    pub(crate) offline: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The log, or - for standard input
    pub(crate) log: PathBuf,
    /// The model, where the log does not name one that can be found
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// The kind of device, where the log does not show it
    #[arg(long, value_name = "NAME")]
    pub(crate) gpu: Option<String>,
    /// The engine's version, where the log does not show it
    #[arg(long, value_name = "VERSION")]
    pub(crate) engine_version: Option<plimsoll_plan::Version>,
    /// One object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AccuracyArgs {
    /// Start-up reports, one JSON object per line
    #[arg(required_unless_present = "constants")]
    pub(crate) data: Option<PathBuf>,
    /// Configurations of the models in it, one JSON object per line
    #[arg(long)]
    pub(crate) configs: Option<PathBuf>,
    /// Only records of this engine version or newer
    #[arg(long, value_name = "VERSION")]
    pub(crate) min_version: Option<plimsoll_plan::Version>,
    /// One object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// List every fitted constant with its cause and its errors
    #[arg(long)]
    pub(crate) constants: bool,
}

fn tokens_or_zero(s: &str) -> Result<u64, String> {
    let text = s.trim();
    let (number, factor) = match text.strip_suffix(['k', 'K']) {
        Some(n) => (n, 1024),
        None => match text.strip_suffix(['m', 'M']) {
            Some(n) => (n, 1024 * 1024),
            None => (text, 1),
        },
    };
    let n: u64 = number
        .replace('_', "")
        .parse()
        .map_err(|_| format!("`{s}` is no number of tokens: write 8192 or 8k"))?;
    n.checked_mul(factor)
        .filter(|n| *n <= 1 << 32)
        .ok_or_else(|| format!("`{s}` is out of range: at most {} tokens", 1_u64 << 32))
}

/// Lengths with their shares, scaled to 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mix(pub(crate) Vec<(u64, f64)>);

fn lengths(s: &str) -> Result<Mix, String> {
    let mut mix = Vec::new();
    for part in s.split(',') {
        let (length, share) = part.split_once(':').unwrap_or((part, "1"));
        let share: f64 = share
            .trim()
            .parse()
            .map_err(|_| format!("`{share}` is no share"))?;
        if !share.is_finite() || share <= 0.0 || share > 1e9 {
            return Err(format!(
                "a share of {share} makes no sense: use numbers above 0"
            ));
        }
        mix.push((tokens(length)?, share));
    }
    if mix.len() > 1000 {
        return Err(format!(
            "{} lengths are too many: use at most 1,000",
            mix.len()
        ));
    }
    let sum: f64 = mix.iter().map(|(_, share)| share).sum();
    for (_, share) in &mut mix {
        *share /= sum;
    }
    Ok(Mix(mix))
}

fn tokens(s: &str) -> Result<u64, String> {
    match tokens_or_zero(s)? {
        0 => Err("0 tokens: use 1 or more".to_owned()),
        n => Ok(n),
    }
}

fn replicas(s: &str) -> Result<NonZeroU32, String> {
    let n: Option<NonZeroU32> = s.parse().ok();
    n.filter(|n| n.get() <= 1024)
        .ok_or_else(|| format!("`{s}` is no number of replicas: write 1 to 1024"))
}

fn fraction(s: &str) -> Result<f64, String> {
    let f: f64 = s.parse().map_err(|_| format!("`{s}` is no number"))?;
    if (0.0..=1.0).contains(&f) {
        Ok(f)
    } else {
        Err(format!("{s} is not between 0 and 1"))
    }
}

fn utilization(s: &str) -> Result<f64, String> {
    match fraction(s)? {
        f if f > 0.0 => Ok(f),
        _ => Err("0 leaves no memory: use a share above 0 and up to 1".to_owned()),
    }
}

fn price(s: &str) -> Result<(String, f64), String> {
    let bad = || format!("`{s}` is no price: write NAME=PRICE, such as h100=2.99/h");
    let (name, price) = s.split_once('=').ok_or_else(bad)?;
    let price: f64 = price.trim_end_matches("/h").parse().map_err(|_| bad())?;
    if price.is_finite() && price >= 0.0 {
        Ok((name.to_owned(), price))
    } else {
        Err(bad())
    }
}

fn quantization(s: &str) -> Result<plimsoll_model::quant::QuantFormat, String> {
    use plimsoll_model::quant::QuantFormat as Q;
    match s.to_ascii_lowercase().as_str() {
        "fp8" => Ok(Q::Fp8Tensor {
            static_input: false,
        }),
        "int8" => Ok(Q::Int8Channel {
            static_input: false,
        }),
        "int4" => Ok(Q::Packed {
            bits: 4,
            group: Some(128),
            zero_points: false,
            g_idx: false,
        }),
        "bitsandbytes" => Ok(Q::Bnb4),
        _ => Err(format!(
            "`{s}` is no format to quantise to: use fp8, int8, int4 or bitsandbytes"
        )),
    }
}
