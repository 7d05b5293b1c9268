//! `plimsoll generate`.

use std::path::PathBuf;

use clap::Args;

use super::engine::EngineArgs;

/// R for a file of prompts unless told: what a plan for processors takes too.
const SEQUENCES: u32 = 16;

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// A folder with config.json, safetensors and tokenizer.json, as transformers writes it, a .gguf file, or a hub id org/name or org/name:file.gguf
    #[arg(default_value = crate::demo::NAME)]
    pub(crate) model: String,
    /// The text to go on from; the demo model has one of its own
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Many prompts: a file of JSON lines, each {"prompt": "...", "max_tokens": 64} and what else is asked by the
    /// names of these flags (n for --samples, stop_token_ids); results are JSON lines too
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "chat"])]
    pub(crate) prompts: Option<PathBuf>,
    /// Treat the prompt as a user's message, by the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_tokens: u32,
    /// Fewest tokens before an end is possible
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) min_tokens: Option<u32>,
    /// Answers to each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) samples: u32,
    /// Draw so many answers and keep the likeliest --samples (default: as many)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) best_of: Option<u32>,
    /// Search with so many beams instead of drawing; the answers are the beams, best first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) beam_width: Option<u32>,
    /// A beam's log probability is divided by its length to this power (default: 1)
    #[arg(long, value_name = "X")]
    pub(crate) length_penalty: Option<f64>,
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
    /// Taken off the logits of tokens that were generated
    #[arg(long, value_name = "-2..2", help_heading = "Sampling")]
    pub(crate) presence_penalty: Option<f32>,
    /// Taken off the logits of tokens as often as they were generated
    #[arg(long, value_name = "-2..2", help_heading = "Sampling")]
    pub(crate) frequency_penalty: Option<f32>,
    /// Added to a token's logit, -100 to 100; repeat for several
    #[arg(long, value_name = "ID:X", value_parser = bias, help_heading = "Sampling")]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws (default: drawn, and told)
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub(crate) seed: Option<u64>,
    /// End where this text comes up; repeat for several
    #[arg(long, value_name = "TEXT", help_heading = "Sampling")]
    pub(crate) stop: Vec<String>,
    /// End with this token too; repeat for several
    #[arg(long, value_name = "ID", help_heading = "Sampling")]
    pub(crate) stop_token_id: Vec<u32>,
    /// Go on past the model's end token
    #[arg(long, help_heading = "Sampling")]
    pub(crate) ignore_eos: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// R: sequences that run at once (default: those of the widest prompt, for a file at least 16)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Engine")]
    pub(crate) max_num_seqs: Option<u32>,
    /// One JSON object instead of text
    #[arg(long, conflicts_with = "prompts", help_heading = "Output")]
    pub(crate) json: bool,
    /// The log probability of each token generated, and of so many likeliest ones, before temperature and penalties
    #[arg(long, value_name = "0..20", value_parser = clap::value_parser!(u32).range(0..=20), help_heading = "Output")]
    pub(crate) logprobs: Option<u32>,
    /// The same for each token of the prompt
    #[arg(long, value_name = "0..20", value_parser = clap::value_parser!(u32).range(0..=20), help_heading = "Output")]
    pub(crate) prompt_logprobs: Option<u32>,
    /// Write what each region of memory was planned, committed and used at most, as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) memory_map: Option<PathBuf>,
    /// Record every decision, for `simulate --replay`
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) log: Option<PathBuf>,
}

impl GenerateArgs {
    /// R, where the widest prompt has so many sequences.
    pub(crate) fn sequences(&self, widest: u32) -> u32 {
        let most = if self.prompts.is_some() { SEQUENCES } else { 1 };
        self.max_num_seqs.unwrap_or(most.max(widest))
    }
}

/// A token and its bias.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let parts = text.split_once(':');
    let both = parts.and_then(|(id, x)| Some((id.parse().ok()?, x.parse().ok()?)));
    both.ok_or_else(|| "a token's id and what is added to its logit, as 50256:-100".to_owned())
}
