//! `plimsoll generate`.

use std::path::PathBuf;

use clap::Args;

use super::engine::EngineArgs;

/// R for a file of prompts unless told: what a plan for processors takes too.
const SEQUENCES: u32 = 16;

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// A folder with config.json, safetensors and tokenizer.json, as transformers writes it, or a .gguf file
    pub(crate) model: String,
    /// The text to go on from
    #[arg(short, long, value_name = "TEXT", required_unless_present = "prompts")]
    pub(crate) prompt: Option<String>,
    /// Many prompts: a file of JSON lines, each {"prompt": "...", "max_tokens": 64}; results are JSON lines too
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "chat"])]
    pub(crate) prompts: Option<PathBuf>,
    /// Treat the prompt as a user's message, by the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_tokens: u32,
    /// Answers to one prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) samples: u32,
    /// 0 for the likeliest token, always (default: the model's own, else 1)
    #[arg(long, value_name = "0..2", help_heading = "Sampling")]
    pub(crate) temperature: Option<f32>,
    /// Only the k likeliest tokens; 0 for all
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    pub(crate) top_k: Option<u32>,
    /// Only the likeliest tokens that have this probability together
    #[arg(long, value_name = "0..1", help_heading = "Sampling")]
    pub(crate) top_p: Option<f32>,
    /// Only tokens of at least this share of the likeliest one's probability
    #[arg(long, value_name = "0..1", help_heading = "Sampling")]
    pub(crate) min_p: Option<f32>,
    /// Divides the logits of tokens that occurred
    #[arg(long, value_name = "X", help_heading = "Sampling")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    pub(crate) seed: u64,
    /// End where this text comes up; repeat for several
    #[arg(long, value_name = "TEXT", help_heading = "Sampling")]
    pub(crate) stop: Vec<String>,
    /// Go on past the model's end token
    #[arg(long, help_heading = "Sampling")]
    pub(crate) ignore_eos: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// R: sequences that run at once (default: 16 for a file of prompts, --samples for one prompt)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Engine")]
    pub(crate) max_num_seqs: Option<u32>,
    /// Write what each region of memory was planned, committed and used at most, as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) memory_map: Option<PathBuf>,
    /// Record every decision, for `simulate --replay`
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) log: Option<PathBuf>,
}

impl GenerateArgs {
    /// R.
    pub(crate) fn sequences(&self) -> u32 {
        let most = if self.prompts.is_some() { SEQUENCES } else { 1 };
        self.max_num_seqs.unwrap_or(most.max(self.samples))
    }
}
