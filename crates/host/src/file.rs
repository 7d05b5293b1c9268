//! Local files: exact reads at offsets, and a config that is one.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use plimsoll_model::json;
use plimsoll_model::read_at::{NotAModel, ReadAt, ReadError};
use serde_json::Value;

use crate::error::{HostError, Kind};

/// Largest accepted config or index; the largest index published has 10 MB.
pub(crate) const MAX_JSON_BYTES: u64 = 16 << 20;

/// A regular file, read by position.
///
/// Never mapped: another process that truncates a mapped file ends this one by a signal that no
/// code can catch, where a read returns an error.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    size: u64,
}

/// What an error of the file system is for the user.
pub(crate) fn io_error(what: &str, path: &Path, err: &io::Error) -> HostError {
    let (kind, next) = match err.kind() {
        io::ErrorKind::NotFound => {
            // A link that leads nowhere is there, but opening it finds nothing.
            if path.symlink_metadata().is_ok() {
                return HostError::new(Kind::NotFound, what)
                    .at(path.display())
                    .because("it is a symbolic link to a file that does not exist")
                    .next("fetch the file again; a cache was probably cleaned under its links");
            }
            (Kind::NotFound, "check the path")
        }
        io::ErrorKind::PermissionDenied => (Kind::Forbidden, "check the permissions of the file"),
        _ => (Kind::Io, "check the disk and try again"),
    };
    HostError::new(kind, what)
        .at(path.display())
        .because(err)
        .next(next)
}

/// What a thing that is no regular file is.
fn special(meta: &Metadata) -> Option<&'static str> {
    if meta.is_file() {
        return None;
    }
    if meta.is_dir() {
        return Some("a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        let t = meta.file_type();
        if t.is_fifo() {
            return Some("a named pipe");
        }
        if t.is_socket() {
            return Some("a socket");
        }
        if t.is_char_device() || t.is_block_device() {
            return Some("a device");
        }
    }
    Some("no regular file")
}

impl FileSource {
    /// Opens a regular, non-empty file.
    ///
    /// # Errors
    /// [`HostError`] where it is missing, unreadable, empty, a folder, pipe, socket or device.
    pub fn open(path: &Path) -> Result<Self, HostError> {
        let what = "cannot read the file";
        let fail = |err: io::Error| io_error(what, path, &err);
        let refuse = |why: &str| {
            HostError::new(Kind::Corrupt, what)
                .at(path.display())
                .because(format!("it is {why}"))
                .next("give a regular file")
        };
        // Asked before opening: opening a pipe waits for a writer.
        if let Some(why) = special(&std::fs::metadata(path).map_err(fail)?) {
            return Err(refuse(why));
        }
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if let Some(why) = special(&meta) {
            return Err(refuse(why));
        }
        if meta.len() == 0 {
            return Err(refuse("empty").next("the download is incomplete: fetch the file again"));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            size: meta.len(),
        })
    }

    /// Its path as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[cfg(unix)]
    fn pread(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, buf, offset)
    }

    #[cfg(windows)]
    fn pread(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.file, buf, offset)
    }
}

impl ReadAt for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let len = buf.len() as u64;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            let at = offset.saturating_add(done as u64);
            match self.pread(at, rest) {
                Ok(0) => {
                    let reason = if at < self.size {
                        format!(
                            "the file ends at {at}; it had {} bytes when it was opened",
                            self.size
                        )
                    } else {
                        format!("the file ends at {}", self.size)
                    };
                    return Err(ReadError {
                        offset,
                        len,
                        reason,
                    });
                }
                Ok(n) => done += n,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => {
                    return Err(ReadError {
                        offset: at,
                        len,
                        reason: err.to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Writes a file that appears whole or not at all, and the folder that it lies in.
///
/// # Errors
/// Of the file system.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let dir = path.parent().unwrap_or(path);
    std::fs::create_dir_all(dir)?;
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!(".plimsoll-{}-{n}.incomplete", std::process::id()));
    let result = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if result.is_err() {
        // Best effort on the way out of a failure: the name is unique and starts with a dot.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// The bytes of a config or an index.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, HostError> {
    read_whole(path, MAX_JSON_BYTES)
}

/// The bytes of a regular file of at most `max` bytes.
///
/// # Errors
/// [`HostError`] where it cannot be read or is larger.
pub fn read_whole(path: &Path, max: u64) -> Result<Vec<u8>, HostError> {
    let source = FileSource::open(path)?;
    let size = source.size();
    if size > max {
        return Err(HostError::new(Kind::Corrupt, "cannot read the file")
            .at(path.display())
            .because(format!(
                "it has {size} bytes; a file of its kind has at most {max}"
            ))
            .next("check that this is the right file"));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    source.read_at(0, &mut bytes).map_err(|err| {
        HostError::new(Kind::Io, "cannot read the file")
            .at(path.display())
            .because(err)
            .next("check the disk and try again")
    })?;
    Ok(bytes)
}

/// Reads a `config.json`.
///
/// # Errors
/// [`HostError`] where the file cannot be read or is no acceptable JSON: each key once, UTF-8
/// without a byte-order mark, at most 16 MiB and 128 levels.
pub fn read_config(path: &Path) -> Result<Value, HostError> {
    parse_config(&read_small(path)?, &path.display().to_string())
}

/// As [`read_config`], for bytes from `place`.
pub(crate) fn parse_config(bytes: &[u8], place: &str) -> Result<Value, HostError> {
    json::parse_config(bytes).map_err(|err| {
        let bad = HostError::new(Kind::Corrupt, "this is no usable config.json");
        match NotAModel::sniff(bytes) {
            Some(what) => bad
                .at(place)
                .because(format!("it is {}", what.name()))
                .next(what.next_step()),
            None => bad
                .at(format!("{place}, byte {}", err.offset))
                .because(err)
                .next("fetch the file again, or correct it"),
        }
    })
}
