//! Flags of whatever runs the engine.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use plimsoll_units::{Bytes, DType, Weights};

use super::{PreemptArg, tokens};

/// Which instructions kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LevelArg {
    /// The best that this processor has
    Auto,
    Scalar,
    Avx2,
    Avx512,
}

/// What bf16 weights are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputsArg {
    /// bf16 where the processor multiplies it by itself, else f32
    Auto,
    Bf16,
    F32,
}

/// Where steps are carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeviceArg {
    /// The first GPUs, where they can be used, else the processors.
    Auto,
    Cpu,
    /// A GPU for each rank, by its number; the first ones where none is named.
    Cuda(Vec<u32>),
    /// A GPU's kernels on the processors, in builds that have them.
    Fibers,
}

impl std::str::FromStr for DeviceArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(Vec::new())),
            "fibers" => Ok(Self::Fibers),
            _ => {
                let numbers = s.strip_prefix("cuda:").and_then(|all| {
                    let all = all.split(',').map(|n| n.parse().ok());
                    all.collect::<Option<Vec<u32>>>()
                });
                let how = "use auto, cpu, cuda, cuda:N, or cuda:N,M for ranks";
                numbers.map(Self::Cuda).ok_or_else(|| how.to_owned())
            }
        }
    }
}

impl std::fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(numbers) => {
                f.write_str("cuda")?;
                for (i, n) in numbers.iter().enumerate() {
                    write!(f, "{}{n}", if i == 0 { ':' } else { ',' })?;
                }
                Ok(())
            }
            Self::Fibers => f.write_str("fibers"),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Where steps are carried out: auto (the first GPU that can be used, or --tp of them, else the processors), cpu, cuda or
    /// cuda:N; of several ranks cuda:N,M names each one's GPU
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceArg::Auto)]
    pub(crate) device: DeviceArg,
    /// Ranks that share the model: each has a part of the weights and of the KV cache, and a GPU or threads of its own
    #[arg(long, visible_alias = "tensor-parallel-size", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) tp: u64,
    /// On a GPU, compute what the processors compute, to the bit, without tensor cores: slower. Processors always do
    #[arg(long)]
    pub(crate) batch_invariant: bool,
    /// On a GPU, start kernels one by one: decode steps are not recorded before the first (CUDA graphs)
    #[arg(long)]
    pub(crate) enforce_eager: bool,
    /// What matrices are kept as: bf16, fp8, int8 or int4, quantised as they are loaded; auto: fp8 and groups of 4 bits
    /// (AWQ, GPTQ, compressed-tensors) as they are stored, others bf16
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub(crate) weights: Weights,
    /// What bf16 weights are multiplied with: their inputs rounded to bf16, or in f32, closer to the model's own arithmetic in
    /// f32 and slower where the processor multiplies bf16 by itself; results differ
    #[arg(long, value_enum, default_value_t = InputsArg::Auto)]
    pub(crate) inputs: InputsArg,
    /// Threads (default: processors)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) threads: Option<u64>,
    /// Which instructions kernels use; results are the same with all
    #[arg(long, value_enum, default_value_t = LevelArg::Auto)]
    pub(crate) cpu_level: LevelArg,
    /// Budget for everything (default: what the machine and its control group leave, less a reserve for others)
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Bytes>,
    /// KV cache of each rank, in place of what R sequences of the longest length can use
    #[arg(long, value_name = "SIZE")]
    pub(crate) kv_memory: Option<Bytes>,
    /// Host memory for swapped KV blocks of each rank
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) swap_space: Bytes,
    /// Take --swap-space from a file in this folder instead: readable by nobody else, gone with the process
    #[arg(long, value_name = "DIR", requires = "swap_space")]
    pub(crate) swap_dir: Option<PathBuf>,
    /// How requests give way where the KV cache is full
    #[arg(long, visible_alias = "preemption-mode", value_enum, default_value_t = PreemptArg::Auto)]
    pub(crate) preempt: PreemptArg,
    /// Type of the KV cache: bf16, f16, f32, fp8 (e4m3 as it is), or int8 with a scale per token and head
    #[arg(
        long,
        visible_alias = "kv-dtype",
        value_name = "TYPE",
        default_value = "bf16"
    )]
    pub(crate) kv_cache_dtype: DType,
    /// Tokens per block
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) block_size: u64,
    /// Longest sequence accepted (default: the trained context, at most 8,192)
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    pub(crate) max_model_len: Option<u64>,
    /// T: tokens per step
    #[arg(long, value_name = "TOKENS", default_value = "512", value_parser = tokens)]
    pub(crate) max_num_batched_tokens: u64,
    /// Read all weights first and refuse those that are no numbers
    #[arg(long)]
    pub(crate) check_weights: bool,
    /// Do not touch the network: a hub id must be cached
    #[arg(long)]
    pub(crate) offline: bool,
    /// Keep no cached prefixes
    #[arg(long)]
    pub(crate) no_enable_prefix_caching: bool,
}
