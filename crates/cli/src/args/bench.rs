//! `plimsoll bench`.

use clap::Args;

use super::engine::EngineArgs;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// A folder with config.json, safetensors and tokenizer.json, as transformers writes it, or a .gguf file
    pub(crate) model: String,
    /// Prompt of the prefill case
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) prefill: u32,
    /// Tokens that each request of the other cases generates
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(crate) output_len: u32,
    /// Prompt of each request of the batch cases
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) prompt_len: u32,
    /// Requests of the batch cases, which come at once
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,2,4,8,16", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) concurrency: Vec<u32>,
    /// Times that each case is run, after once to warm up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeats: u32,
    /// One JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}
