//! `plimsoll serve`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use plimsoll_units::Bytes;

use super::engine::EngineArgs;

/// Who finds whose prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrefixScope {
    /// Nobody learns from the time to the first token what others asked
    Tenant,
    Global,
}

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct ServeArgs {
    /// As of `generate`: a folder, a .gguf file, or a hub id org/name or org/name:file.gguf
    #[arg(default_value = crate::demo::NAME)]
    pub(crate) model: String,
    /// Address to listen at; beyond this machine only with --api-key or --allow-anonymous
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to listen at; 0 for one that is free
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub(crate) port: u16,
    /// What clients call the model (default: MODEL as typed)
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// What clients must send as `Authorization: Bearer KEY`; better from the environment, where no list of processes shows it
    #[arg(
        long,
        value_name = "KEY",
        env = "PLIMSOLL_API_KEY",
        hide_env_values = true
    )]
    pub(crate) api_key: Option<String>,
    /// Tenants, their keys, and how much of the server each may have: a TOML file, whose keys are read again on SIGHUP
    #[arg(long, value_name = "FILE", help_heading = "Tenants")]
    pub(crate) tenants: Option<PathBuf>,
    /// Who finds whose prefixes in the cache: every tenant its own, or all one another's
    #[arg(long, value_enum, default_value_t = PrefixScope::Tenant, help_heading = "Tenants")]
    pub(crate) prefix_cache_scope: PrefixScope,
    /// Serve other machines without a key
    #[arg(long)]
    pub(crate) allow_anonymous: bool,
    /// A name that the server answers to beside localhost, where it listens at this machine alone: no other, so that no page in
    /// a browser gets at it by a name of its own
    #[arg(long = "allowed-host", value_name = "NAME")]
    pub(crate) allowed_hosts: Vec<String>,
    /// Connections at once; more wait
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "Limits")]
    pub(crate) max_connections: u32,
    /// The largest body of a request; what bodies may take at once is planned
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "1MiB",
        help_heading = "Limits"
    )]
    pub(crate) max_body: Bytes,
    /// Seconds that a request may take from its headers to its end
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=604_800), help_heading = "Limits")]
    pub(crate) request_timeout: u32,
    /// Seconds that a request may wait for its first step; then it gets 503
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=604_800), help_heading = "Limits")]
    pub(crate) queue_timeout: u32,
    /// Seconds that a client may take to read on before it is cut off
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=604_800), help_heading = "Limits")]
    pub(crate) write_timeout: u32,
    /// Seconds that a connection may wait for its next request
    #[arg(long, value_name = "SECONDS", default_value_t = 75, value_parser = clap::value_parser!(u32).range(1..=604_800), help_heading = "Limits")]
    pub(crate) idle_timeout: u32,
    /// Seconds that requests in flight may take after SIGTERM; then they are cut off by an error, and the server ends with 0
    #[arg(long, value_name = "SECONDS", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=604_800), help_heading = "Limits")]
    pub(crate) drain_timeout: u32,
    /// R: sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Engine")]
    pub(crate) max_num_seqs: u32,
    /// Requests that may wait; more are told when to come back (429)
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Engine")]
    pub(crate) max_num_queued_reqs: u32,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// A TOML file of these flags, by their names without dashes before them; flags and PLIMSOLL_FLAG_NAME in the environment go before it
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,
    /// Print every value as such a file, and where it is from
    #[arg(long, help_heading = "Configuration")]
    pub(crate) print_config: bool,
    /// Check everything that can be checked without weights, print the plan of memory, and end: 3 where it does not fit
    #[arg(long, help_heading = "Configuration")]
    pub(crate) dry_run: bool,
    /// With --dry-run: the plan as one object
    #[arg(long, requires = "dry_run", help_heading = "Configuration")]
    pub(crate) json: bool,
    /// Do not write a line for each request to stderr; what was asked and answered is never in them
    #[arg(long, help_heading = "Output")]
    pub(crate) no_access_log: bool,
    /// Record every decision, for `simulate --replay`
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) log: Option<PathBuf>,
}
