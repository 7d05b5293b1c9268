//! `plimsoll serve`: a model behind OpenAI's HTTP interface.

mod planning;
pub(crate) mod tenants;

use std::io::ErrorKind;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_host::memory::resident;
use plimsoll_plan::Http;
use plimsoll_report::thousands;
use plimsoll_runtime::text::MAX_TEXT_BYTES;
use plimsoll_schedule::Limits;
use plimsoll_server::{Access, AccessLog, Keys, Options, ServeError, Service, Stop, run as serve};

use plimsoll_units::Bytes;

use self::tenants::Tenants;
use crate::args::serve::{PrefixScope, ServeArgs};
use crate::commands::engine::{Start, Started, end_log, memory, plan, start};
use crate::demo;
use crate::error::{Exit, Failure};
use crate::output::Output;
use crate::settings::Settings;

/// Most alternatives that a client may ask for: memory for them is planned.
pub(crate) const LOGPROBS: u32 = plimsoll_runtime::sample::MAX_LOGPROBS;
/// The length in which the start card counts what the KV cache holds.
const CARD_TOKENS: u64 = 4096;

const _: () = assert!(
    MAX_TEXT_BYTES >= 4 << 20,
    "every body that is taken can be encoded"
);

pub(crate) fn run(
    args: &ServeArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<ExitCode, Failure> {
    if args.print_config {
        output.line(&settings.text())?;
        return Ok(ExitCode::SUCCESS);
    }
    let key = key(args)?;
    let tenants = tenants_of(args, key.as_deref(), output)?;
    let http = Http {
        connections: args.max_connections.into(),
        body: args.max_body,
    };
    let what = Start {
        model: &args.model,
        engine: &args.engine,
        sequences: args.max_num_seqs,
        queued: Some(args.max_num_queued_reqs),
        context: None,
        log: args.log.as_deref(),
        logprobs: Some(LOGPROBS),
        http: Some(http),
        tenants: tenants.as_ref(),
    };
    if args.dry_run {
        let map = plan(&what)?;
        if args.json {
            output.line(&format!("{:#}", memory::planned_json(&map)?))?;
        } else {
            output.line(&memory::planned_text(&map)?)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Before the model is loaded: who has the port already is told at once.
    let listener = bind(args)?;
    let address = listener.local_addr().unwrap_or(address(args));
    if demo::is_meant(&args.model) {
        output.talk(demo::NOTE);
    }
    let started = start(&what)?;
    if let Some(note) = &started.note {
        output.talk(note);
    }
    let name = args.served_model_name.as_ref().unwrap_or(&args.model);
    output.talk(&card(&started, name, address, args));
    let mut options = options(args, name.clone(), access(args, key, tenants))?;
    options.planned = started.planned.regions();
    options.peak = Some(|| resident().map(|r| r.1));
    limit(&mut options, &http, &started.limits, args.max_num_seqs)?;
    let Started {
        engine,
        tokenizer,
        template,
        generation,
        limits,
        planned,
        ..
    } = started;
    let service = Service {
        engine,
        tokenizer,
        template,
        generation,
        limits,
    };
    let (served, engine) = serve(service, listener, options, Stop::Signals);
    if let Some(engine) = engine {
        output.talk(&planned.memory(&engine).text());
        if let Some(path) = &args.log {
            end_log(path, engine)?;
        }
    }
    match served {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(e) => {
            let hint = match e {
                ServeError::System(_) => "raise the limits of processes and open files",
                ServeError::Engine => "please report this with what is printed above",
                ServeError::Cut(_) => "one signal alone lets them end",
            };
            Err(Failure::new(Exit::Failure, "E-SERVE-003", e.to_string()).hint(hint))
        }
    }
}

/// Holds the server to what was planned for it.
fn limit(
    options: &mut Options,
    http: &Http,
    limits: &Limits,
    sequences: u32,
) -> Result<(), Failure> {
    let limits = http.limits(sequences.into(), limits.max_model_len.into());
    let limits = limits.map_err(|e| Failure::new(Exit::Usage, "E-FIT-001", e.to_string()))?;
    let size = |b: Bytes| usize::try_from(b.get()).unwrap_or(usize::MAX);
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    options.threads = count(limits.threads);
    options.workers = count(limits.workers);
    options.connections = count(limits.connections);
    options.body_bytes = size(limits.body);
    options.bodies_bytes = size(limits.bodies);
    options.text_bytes = size(limits.text);
    options.requests_bytes = size(limits.requests);
    options.watchers = count(limits.watchers);
    options.looks = count(limits.looks);
    Ok(())
}

fn options(args: &ServeArgs, name: String, access: Access) -> Result<Options, Failure> {
    let mut options = Options::new(name);
    let seconds = |s: u32| Duration::from_secs(s.into());
    options.access = access;
    options.planner = Some(planning::planner());
    options.request_timeout = seconds(args.request_timeout);
    options.queue_timeout = seconds(args.queue_timeout);
    options.write_timeout = seconds(args.write_timeout);
    options.idle_timeout = seconds(args.idle_timeout);
    options.drain_timeout = seconds(args.drain_timeout);
    if args.host.is_loopback() {
        options.hosts = Some(args.allowed_hosts.clone());
    }
    if !args.no_access_log {
        let log = AccessLog::new(std::io::stderr()).map_err(|e| {
            Failure::new(Exit::Failure, "E-SERVE-003", e.to_string())
                .hint("raise the limits of processes and open files")
        })?;
        options.access_log = Some(log);
    }
    Ok(options)
}

/// The key, unless anybody may come.
fn key(args: &ServeArgs) -> Result<Option<String>, Failure> {
    let bad =
        |what: &str, hint: &str| Err(Failure::new(Exit::Usage, "E-SERVE-001", what).hint(hint));
    match &args.api_key {
        // A header can carry no other.
        Some(key) if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) => bad(
            "the API key is empty, or has characters that no header carries",
            "choose one of letters and digits, such as `openssl rand -hex 24` prints",
        ),
        None if !args.host.is_loopback() && !args.allow_anonymous && args.tenants.is_none() => bad(
            &format!(
                "{} lets other machines in, and there is no API key",
                args.host
            ),
            "set PLIMSOLL_API_KEY, name a file of `--tenants`, or add `--allow-anonymous`",
        ),
        key => Ok(key.clone()),
    }
}

/// What the tenants' file says, where there is one.
fn tenants_of(
    args: &ServeArgs,
    key: Option<&str>,
    output: &mut Output,
) -> Result<Option<Tenants>, Failure> {
    let Some(path) = &args.tenants else {
        return Ok(None);
    };
    if tenants::is_open(path) {
        output.talk(&format!(
            "warning: others may read {}, and keys are in it: `chmod 600` it",
            path.display()
        ));
    }
    Tenants::read(path, key).map(Some)
}

fn access(args: &ServeArgs, key: Option<String>, tenants: Option<Tenants>) -> Access {
    let mut access = match (&tenants, &key) {
        (Some(tenants), _) => tenants.access(),
        (None, Some(key)) => Access::key(key),
        (None, None) => Access::open(),
    };
    access.shared_prefixes = args.prefix_cache_scope == PrefixScope::Global;
    if let (Some(tenants), Some(path)) = (tenants, args.tenants.clone()) {
        access.reload = Some(Arc::new(move |take| {
            reload(&tenants, &path, key.as_deref(), take)
        }));
    }
    access
}

/// Takes the keys that a file has now, and says so. A mistake in it changes nothing.
fn reload(tenants: &Tenants, path: &Path, key: Option<&str>, take: &dyn Fn(Keys)) {
    let read = Tenants::read(path, key).map_err(|e| e.text());
    let said = match read.and_then(|new| tenants.new_keys(new)) {
        Ok(keys) => {
            let count = keys.len();
            take(keys);
            format!("{}: {count} keys", path.display())
        }
        Err(e) => format!("the keys stay as they were: {}", e.trim_end()),
    };
    // Whoever reads it may be gone; nobody else is to suffer from that.
    let _ = writeln!(std::io::stderr(), "{said}");
}

fn address(args: &ServeArgs) -> SocketAddr {
    SocketAddr::new(args.host, args.port)
}

fn bind(args: &ServeArgs) -> Result<TcpListener, Failure> {
    let address = address(args);
    TcpListener::bind(address).map_err(|e| {
        let hint = match e.kind() {
            ErrorKind::AddrInUse => "another program has it: choose another `--port`, or end that",
            ErrorKind::PermissionDenied => "choose a `--port` above 1023",
            _ => "choose an address of this machine with `--host`",
        };
        Failure::new(
            Exit::Failure,
            "E-SERVE-002",
            format!("cannot listen at {address}: {e}"),
        )
        .hint(hint)
    })
}

/// What was started and how to talk to it.
fn card(started: &Started, name: &str, address: SocketAddr, args: &ServeArgs) -> String {
    let memory = started.planned.memory(&started.engine).text();
    let longest = u64::from(started.limits.max_model_len);
    let each = CARD_TOKENS.min(longest);
    let requests = started.planned.requests_of(each);
    let url = format!("http://{address}");
    let key = if args.api_key.is_some() || args.tenants.is_some() {
        " -H \"Authorization: Bearer $PLIMSOLL_API_KEY\""
    } else {
        ""
    };
    let body = serde_json::json!({ "model": name, "prompt": demo::PROMPT, "max_tokens": 32 });
    let body = body.to_string().replace('\'', "'\\''");
    format!(
        "device: {}\n\
         {memory}\n\
         KV cache: {} tokens in {} requests of {}; sequences have at most {}\n\
         {name} at {url}/v1, and in a browser at {url}\n  \
         curl {url}/v1/completions -H 'Content-Type: application/json'{key} -d '{body}'",
        started.device,
        thousands(requests.saturating_mul(each)),
        thousands(requests),
        thousands(each),
        thousands(longest),
    )
}
