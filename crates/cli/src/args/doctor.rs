//! Flags of `doctor`.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Try every operation on a GPU (the first, or number N) against this machine's processors, to the bit, and time it; exit
    /// code 1 where one differs, 2 where there is no such GPU
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0")]
    pub(crate) gpu: Option<GpuArg>,
    /// Run MODEL on this machine's processors and on the GPU instead: exit code 1 where, computing what processors compute
    /// (`--batch-invariant`), it generates other tokens, or where, with its own arithmetic and the processors' text, another
    /// token is the likeliest at a position where it is not close
    #[arg(long, value_name = "MODEL", requires = "gpu")]
    pub(crate) model: Option<String>,
    /// Tokens that are generated and compared
    #[arg(long, value_name = "N", default_value_t = 128, requires = "model", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) positions: u32,
    /// Flags of `generate` that MODEL runs with, as `-- --weights int8`
    #[arg(last = true, value_name = "FLAG", requires = "model")]
    pub(crate) flags: Vec<String>,
    /// One object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GpuArg {
    /// By its number.
    Number(u32),
    /// A GPU's kernels on the processors, in builds that have them.
    Fibers,
}

impl std::str::FromStr for GpuArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "fibers" => Ok(Self::Fibers),
            n => n
                .parse()
                .map(Self::Number)
                .map_err(|_| "use the number of a GPU, as 0".to_owned()),
        }
    }
}
