//! [`download`]: a model's files into the hub's cache, as `huggingface_hub` lays them there.
//!
//! What is there already is not fetched again. A file grows as `blobs/ETAG.incomplete` under the lock that the Python
//! library takes too, goes on from there after a cut, in this run or the next, and gets its name when its size and
//! checksum are right. A file is never in memory: a piece of it goes from the socket to the disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::cache::{Cache, is_tag};
use super::http::{Client, Found, Wanted};
use super::load::{INDEX, SINGLE};
use super::{HubConfig, HubId};
use crate::error::{HostError, Kind};
use crate::load::{HeaderKind, LoadOptions, Loaded};

/// Files that a model of safetensors cannot run without.
const NEEDED: &[&str] = &["config.json", "tokenizer.json"];
/// Those that it may have.
const OPTIONAL: &[&str] = &[
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
];
/// Largest file whose size no header announces: the largest tokenizers have some 35 MB.
const MAX_SMALL_BYTES: u64 = 256 << 20;
/// Failures in a row, without a byte between them, that end a download.
const ATTEMPTS: u32 = 5;
/// Bytes of a piece.
const PIECE: usize = 1 << 20;

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetching<'a> {
    /// Another process has the lock of this file.
    Waiting(&'a str),
    /// Bytes of this file.
    Bytes {
        /// The file.
        file: &'a str,
        /// That are here, earlier runs' among them.
        done: u64,
        /// Of the whole.
        all: u64,
    },
}

/// Puts the files of `loaded`, whose headers were read from the hub under the same options, into the cache; returns
/// the folder that has them under their names.
///
/// # Errors
/// [`HostError`]: there are no weights, the hub refuses, the disk has no room, a checksum is wrong, or a file is not
/// cached and the hub may not be asked.
pub fn download(
    id: &HubId,
    loaded: &Loaded,
    options: &LoadOptions,
    told: &dyn Fn(Fetching<'_>),
) -> Result<PathBuf, HostError> {
    let mut config = HubConfig::from_env(&options.env)?;
    config.offline |= options.offline;
    let lost = |what: &str, why: &str| {
        HostError::new(Kind::NotFound, format!("{what} of {}", id.repo()))
            .because(why)
            .next("choose a repository of safetensors or GGUF files on a hub that names commits")
    };
    let none = "there are no weights that run in the repository";
    if loaded.files.is_empty() && !config.offline {
        return Err(lost(none, "it has neither safetensors nor a GGUF model"));
    }
    let commit = loaded
        .commit
        .as_deref()
        .ok_or_else(|| lost("there is no commit", "the server does not name it"))?;
    let cache = Cache::new(&config, id);
    let Some(places) = cache.places(commit) else {
        return Err(
            HostError::new(Kind::Usage, "there is no folder to download into")
                .because("neither HOME nor HF_HOME is set")
                .next("set HF_HOME to a folder with room"),
        );
    };
    let client = (!config.offline)
        .then(|| Client::unbounded(&config))
        .transpose()?;
    let fetch = Fetch {
        id,
        commit,
        cache: &cache,
        snapshot: places.snapshot,
        blobs: places.blobs,
        locks: places.locks,
        client: client.as_ref(),
        backoff: config.timeout / 10,
        told,
    };
    if loaded.headers != HeaderKind::Gguf {
        for file in NEEDED {
            if !fetch.file(file, None, 0)? {
                return Err(lost(file, "the repository has no such file"));
            }
        }
        for file in OPTIONAL {
            fetch.optional(file)?;
        }
        if loaded.files.iter().any(|f| f.name != SINGLE) {
            fetch.optional(INDEX)?;
        }
    }
    if loaded.files.is_empty() {
        return Err(fetch.offline("weights"));
    }
    for (i, file) in loaded.files.iter().enumerate() {
        let later = loaded.files.iter().skip(i + 1);
        let later = later
            .filter(|f| !fetch.has(&f.name))
            .fold(0, |sum: u64, f| sum.saturating_add(f.size));
        if !fetch.file(&file.name, Some(file.size), later)? {
            return Err(lost(&file.name, "it is gone from the repository"));
        }
    }
    cache.store_ref(id.revision(), commit);
    Ok(fetch.snapshot)
}

struct Fetch<'a> {
    id: &'a HubId,
    commit: &'a str,
    cache: &'a Cache,
    snapshot: PathBuf,
    blobs: PathBuf,
    locks: PathBuf,
    /// None where the hub may not be asked.
    client: Option<&'a Client>,
    /// The first wait after a failure.
    backoff: Duration,
    told: &'a dyn Fn(Fetching<'_>),
}

/// What goes wrong with the cache's files.
fn disk(path: &Path) -> impl Fn(std::io::Error) -> HostError {
    move |e| {
        HostError::new(Kind::Io, "cannot download into the cache")
            .at(path.display())
            .because(e)
            .next("make room or correct permissions, or set HF_HUB_CACHE to another folder")
    }
}

impl Fetch<'_> {
    fn has(&self, file: &str) -> bool {
        self.snapshot.join(file).exists()
    }

    fn offline(&self, file: &str) -> HostError {
        HostError::new(
            Kind::Offline,
            format!("{file} of {} not cached", self.id.repo()),
        )
        .at(self.snapshot.display())
        .because("the hub may not be asked")
        .next("run once without `--offline` and HF_HUB_OFFLINE, or name a local folder")
    }

    /// A file that the repository may have; that it has none is remembered as the Python library does.
    fn optional(&self, file: &str) -> Result<(), HostError> {
        if self.client.is_some() && !self.cache.is_absent(self.commit, file) {
            let there = self.file(file, None, 0)?;
            if !there {
                self.cache.store_absent(self.commit, file);
            }
        }
        Ok(())
    }

    /// Sees to it that a file is there; whether the repository has it. Its size is `expected`, where that is known
    /// from its header, and `later` bytes of other files are to come.
    fn file(&self, file: &str, expected: Option<u64>, later: u64) -> Result<bool, HostError> {
        if self.has(file) {
            return Ok(true);
        }
        let client = self.client.ok_or_else(|| self.offline(file))?;
        let wanted = Wanted {
            repo: self.id.repo(),
            revision: self.commit,
            file,
        };
        let address = client.address(wanted);
        let probed = self.patiently(|| client.probe(&address, wanted), || 0)?;
        let Some(probe) = probed else {
            return Ok(false);
        };
        let odd = |why: &str| {
            HostError::new(Kind::Io, "the server does not answer as a hub does")
                .at(&address)
                .because(why)
                .next("check HF_ENDPOINT, or try again later")
        };
        let size = probe
            .size
            .ok_or_else(|| odd("it does not say how large the file is"))?;
        let etag = probe
            .etag
            .filter(|t| is_tag(t))
            .ok_or_else(|| odd("it does not say which content the file has (ETag)"))?;

        if expected.is_none() && size > MAX_SMALL_BYTES {
            return Err(
                HostError::new(Kind::Corrupt, "a file of the model is too large")
                    .at(format!("{}:{file}", self.id.repo()))
                    .because(format!(
                        "it has {size} bytes; a file of its kind has at most {MAX_SMALL_BYTES}"
                    ))
                    .next("check the repository"),
            );
        }

        std::fs::create_dir_all(&self.locks).map_err(disk(&self.locks))?;
        std::fs::create_dir_all(&self.blobs).map_err(disk(&self.blobs))?;
        let path = self.locks.join(format!("{etag}.lock"));
        // Let go of when it is dropped, or the process ends.
        let _lock = self.lock(&path, file)?;
        let blob = self.blobs.join(&etag);
        if !blob.exists() {
            let incomplete = self.blobs.join(format!("{etag}.incomplete"));
            self.room(&incomplete, expected.unwrap_or(size), later)?;
            if expected.is_some_and(|e| e != size) {
                return Err(odd("the file's size is not that of its header"));
            }
            self.stream(client, wanted, &etag, size, &incomplete)?;
            std::fs::rename(&incomplete, &blob).map_err(disk(&blob))?;
        }
        self.cache
            .link(self.commit, &etag, file)
            .map_err(disk(&self.snapshot))?;
        Ok(true)
    }

    /// Waits until no other process downloads this content.
    fn lock(&self, path: &Path, file: &str) -> Result<File, HostError> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(disk(path))?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) => (self.told)(Fetching::Waiting(file)),
                Err(TryLockError::Error(e)) => return Err(disk(path)(e)),
            }
            std::thread::sleep(self.backoff / 10);
        }
    }

    /// Whether the rest of a file of `size` bytes and `later` bytes more have room.
    fn room(&self, incomplete: &Path, size: u64, later: u64) -> Result<(), HostError> {
        let have = incomplete.metadata().map_or(0, |m| m.len());
        let need = size.saturating_sub(have).saturating_add(later);
        let free = free_bytes(&self.blobs);
        match free.filter(|f| *f < need) {
            None => Ok(()),
            Some(free) => Err(
                HostError::new(Kind::Io, "the disk has no room for the model")
                    .at(self.blobs.display())
                    .because(format!("{need} bytes are to come, and {free} are free"))
                    .next("make room, or set HF_HUB_CACHE to a folder on another disk"),
            ),
        }
    }

    /// Runs `once` again after a failure that may pass, for as long as `done` grows or few follow each other.
    fn patiently<T>(
        &self,
        mut once: impl FnMut() -> Result<T, HostError>,
        done: impl Fn() -> u64,
    ) -> Result<T, HostError> {
        let (mut failures, mut before) = (0, done());
        loop {
            let err = match once() {
                Err(e) if e.kind() == Kind::Temporary => e,
                other => return other,
            };
            let now = done();
            failures = if now > before { 1 } else { failures + 1 };
            before = now;
            if failures == ATTEMPTS {
                return Err(err.next("try again: what has come is kept"));
            }
            std::thread::sleep(self.backoff.saturating_mul(1 << (failures - 1)));
        }
    }

    /// Fills `path` up to `size` bytes, and compares them with the tag.
    fn stream(
        &self,
        client: &Client,
        wanted: Wanted<'_>,
        etag: &str,
        size: u64,
        path: &Path,
    ) -> Result<(), HostError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(disk(path))?;
        let mut part = Part::of(file, etag, size).map_err(disk(path))?;
        let done = std::cell::Cell::new(part.len);
        let once = || {
            if part.len == size {
                return Ok(());
            }
            let range = (part.len > 0).then_some((part.len, size - 1));
            let reply = match client.get(&client.address(wanted), range, wanted) {
                Ok(Found::Yes(reply)) => *reply,
                Ok(Found::No) => return Err(changed(wanted, "it is gone")),
                // A server that cannot go on begins again.
                Err(e) if e.kind() == Kind::Io && part.len > 0 => {
                    part.restart().map_err(disk(path))?;
                    return Err(HostError::new(Kind::Temporary, e.what).because(e.why));
                }
                Err(e) => return Err(e),
            };
            if reply.etag.as_deref() != Some(etag) || reply.size.is_some_and(|s| s != size) {
                return Err(changed(wanted, "its ETag or size is another"));
            }
            client.pieces(reply, size - part.len, PIECE, &mut |piece| {
                part.push(piece).map_err(disk(path))?;
                done.set(part.len);
                (self.told)(Fetching::Bytes {
                    file: wanted.file,
                    done: part.len,
                    all: size,
                });
                Ok(())
            })
        };
        self.patiently(once, || done.get())?;
        part.file.sync_all().map_err(disk(path))?;
        if part.ends_right() {
            return Ok(());
        }
        std::fs::remove_file(path).map_err(disk(path))?;
        Err(
            HostError::new(Kind::Corrupt, "a download does not have its checksum")
                .at(format!("{}:{}", wanted.repo, wanted.file))
                .because(format!("its content is not what the hub calls {etag}"))
                .next(
                    "try again; if it comes back, something between you and the hub changes files",
                ),
        )
    }
}

fn changed(wanted: Wanted<'_>, how: &str) -> HostError {
    HostError::new(Kind::Io, "the file changed while it was downloaded")
        .at(format!("{}:{}", wanted.repo, wanted.file))
        .because(how)
        .next("try again")
}

/// The part of a file that has come, and the checksum of it.
struct Part<'a> {
    file: File,
    len: u64,
    etag: &'a str,
    size: u64,
    digest: Option<Context>,
}

impl<'a> Part<'a> {
    /// Goes on behind what is in the file.
    fn of(file: File, etag: &'a str, size: u64) -> std::io::Result<Self> {
        let mut part = Self {
            file,
            len: 0,
            etag,
            size,
            digest: digest(etag, size),
        };
        let mut piece = vec![0; PIECE];
        loop {
            let n = part.file.read(&mut piece)?;
            let Some(read) = piece.get(..n).filter(|r| !r.is_empty()) else {
                break;
            };
            part.len += n as u64;
            if let Some(d) = &mut part.digest {
                d.update(read);
            }
        }
        if part.len > size {
            part.restart()?;
        }
        Ok(part)
    }

    fn restart(&mut self) -> std::io::Result<()> {
        use std::io::Seek as _;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.len = 0;
        self.digest = digest(self.etag, self.size);
        Ok(())
    }

    fn push(&mut self, piece: &[u8]) -> std::io::Result<()> {
        self.file.write_all(piece)?;
        self.len += piece.len() as u64;
        if let Some(d) = &mut self.digest {
            d.update(piece);
        }
        Ok(())
    }

    /// Whether all is there, and has the checksum that the tag is, where it is one.
    fn ends_right(self) -> bool {
        let sum = |d: Context| {
            let bytes = d.finish();
            bytes
                .as_ref()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
        };
        self.len == self.size
            && self
                .digest
                .is_none_or(|d| sum(d).eq_ignore_ascii_case(self.etag))
    }
}

/// What computes a tag: SHA-256 for large files, Git's own SHA-1 for others; mirrors may have tags of their own.
fn digest(etag: &str, size: u64) -> Option<Context> {
    if !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    match etag.len() {
        64 => Some(Context::new(&SHA256)),
        40 => {
            let mut blob = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            blob.update(format!("blob {size}\0").as_bytes());
            Some(blob)
        }
        _ => None,
    }
}

/// Bytes that a user may still write to the disk of a folder, where the system says.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}
