//! A hub of our own on this machine, and a home for what is cached of it.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use plimsoll_host::{Env, HostError, LoadOptions, Loaded, load, locate};

use crate::support::{LLAMA_CONFIG, f16_file, llama_tensors};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) token: Option<String>,
}

/// What the server sends.
pub(crate) struct Answer {
    pub(crate) status: &'static str,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Nothing more comes of it, and its connection stays open.
    pub(crate) hangs: bool,
}

impl Answer {
    pub(crate) fn new(status: &'static str) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            hangs: false,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

type Handler = dyn Fn(&Seen) -> Answer + Send + Sync;

/// A server on a free port; its thread ends with the test's process.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) fn new(handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up early is part of the game.
                let _ = answer(stream, &handler, &log);
            }
        });
        Self { address, seen }
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(
    stream: TcpStream,
    handler: &Arc<Handler>,
    log: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let (mut range, mut token) = (None, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let r = value.trim_start_matches("bytes=").split_once('-').unwrap();
                range = Some((r.0.parse().unwrap(), r.1.parse().unwrap()));
            }
            "authorization" => token = Some(value.to_owned()),
            _ => {}
        }
    }
    let seen = Seen {
        method,
        path,
        range,
        token,
    };
    log.lock().unwrap().push(seen.clone());
    let answer = handler(&seen);
    let mut out = format!("HTTP/1.1 {}\r\nconnection: close\r\n", answer.status);
    if !answer
        .headers
        .iter()
        .any(|(n, _)| n == "content-length" || n == "transfer-encoding")
    {
        out.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    let mut stream = reader.into_inner();
    stream.write_all(out.as_bytes())?;
    if seen.method == "HEAD" {
        return Ok(());
    }
    stream.write_all(&answer.body)?;
    if answer.hangs {
        // As long as the test's process.
        std::mem::forget(stream);
    }
    Ok(())
}

/// The answer of a good server for a file: a range of it, or all.
pub(crate) fn serve(bytes: &[u8], seen: &Seen) -> Answer {
    let base = |s| {
        Answer::new(s)
            .with("x-repo-commit", COMMIT)
            .with("etag", "\"abc123\"")
    };
    match seen.range {
        Some((first, _)) if first >= bytes.len() as u64 => base("416 Range Not Satisfiable")
            .with("content-range", format!("bytes */{}", bytes.len())),
        Some((first, last)) => {
            let last = last.min(bytes.len() as u64 - 1);
            base("206 Partial Content")
                .with(
                    "content-range",
                    format!("bytes {first}-{last}/{}", bytes.len()),
                )
                .body(&bytes[first as usize..=last as usize])
        }
        None => base("200 OK").body(bytes),
    }
}

pub(crate) type Files = BTreeMap<&'static str, Vec<u8>>;

pub(crate) fn files() -> Files {
    Files::from([
        ("config.json", LLAMA_CONFIG.as_bytes().to_vec()),
        ("model.safetensors", f16_file(&llama_tensors())),
    ])
}

/// A good hub with these files in `org/name`.
pub(crate) fn hub(files: Files) -> Server {
    Server::new(move |seen| repository(&files, seen))
}

pub(crate) fn repository(files: &Files, seen: &Seen) -> Answer {
    let file = seen
        .path
        .strip_prefix("/org/name/resolve/")
        .and_then(|r| r.split_once('/'));
    match file.and_then(|(_, f)| files.get(f)) {
        Some(bytes) => serve(bytes, seen),
        None => Answer::new("404 Not Found").with("x-error-code", "EntryNotFound"),
    }
}

/// A home for the caches, gone after the test.
pub(crate) struct Home(pub(crate) PathBuf);

impl Home {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plimsoll-hub-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn options(&self, server: &Server, more: &[(&str, &str)]) -> LoadOptions {
        let mut vars = vec![
            ("HF_HOME", self.0.to_str().unwrap()),
            ("HF_ENDPOINT", server.address.as_str()),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "1"),
        ];
        vars.extend(more);
        LoadOptions::new(Env::of(vars))
    }

    pub(crate) fn load(&self, server: &Server, model: &str) -> Result<Loaded, HostError> {
        load(&locate(model).unwrap(), &self.options(server, &[]))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
