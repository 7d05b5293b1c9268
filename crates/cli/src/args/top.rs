//! `plimsoll top`.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Where the server is, as `plimsoll serve` printed it
    #[arg(default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// The key of a tenant that may see what others do; better from the environment, where no list of processes shows it
    #[arg(
        long,
        value_name = "KEY",
        env = "PLIMSOLL_API_KEY",
        hide_env_values = true
    )]
    pub(crate) api_key: Option<String>,
    /// Print one frame as text and end
    #[arg(long)]
    pub(crate) once: bool,
}
