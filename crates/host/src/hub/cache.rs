//! The cache on disk: that of `huggingface_hub`, and our own for headers.
//!
//! ```text
//! hub/models--org--name/refs/main                  the commit that a revision stands for
//! hub/models--org--name/snapshots/COMMIT/FILE   →  ../../blobs/ETAG
//! hub/models--org--name/blobs/ETAG                 the content
//! hub/models--org--name/.no_exist/COMMIT/FILE      that there is no such file
//! hub/.locks/models--org--name/ETAG.lock           held by whoever downloads it
//! plimsoll/headers/models--org--name/COMMIT/FILE   size and first bytes of FILE
//! ```
//!
//! Writing is best effort: a cache that cannot be written costs the next run a request. What is
//! written appears whole or not at all (a temporary file, renamed). What is read is parsed like
//! any other hostile input.

use std::path::{Path, PathBuf};

use plimsoll_model::read_at::{ReadAt, ReadError};

use super::{HubConfig, HubId, is_commit};
use crate::file::{FileSource, write_whole};

/// First bytes of a stored header.
const MAGIC: &[u8; 16] = b"PLIMSOLL-HEAD-1\n";
/// Largest stored header: safetensors' own limit and a margin.
const MAX_HEAD: u64 = 128 << 20;

/// The two caches.
pub(super) struct Cache {
    hub: Option<PathBuf>,
    headers: Option<PathBuf>,
}

/// Where the files of a commit go.
pub(super) struct Places {
    pub(super) snapshot: PathBuf,
    pub(super) blobs: PathBuf,
    pub(super) locks: PathBuf,
}

/// Whether an ETag may name a file.
pub(super) fn is_tag(etag: &str) -> bool {
    !etag.is_empty()
        && etag.len() <= 128
        && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn folder(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

impl Cache {
    pub(super) fn new(config: &HubConfig, id: &HubId) -> Self {
        let name = folder(id.repo());
        Self {
            hub: config.cache.as_ref().map(|c| c.join(&name)),
            headers: config.headers.as_ref().map(|c| c.join(&name)),
        }
    }

    /// Where this model would be, for messages.
    pub(super) fn place(&self) -> String {
        match &self.hub {
            Some(p) => p.display().to_string(),
            None => "no cache folder (HOME is not set)".to_owned(),
        }
    }

    /// The commit that a revision stands for, as last seen.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let path = self.hub.as_ref()?.join("refs").join(revision);
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|c| is_commit(c))
    }

    /// The folder with the files of a commit, where there is one.
    pub(super) fn snapshot(&self, commit: &str) -> Option<PathBuf> {
        Some(self.hub.as_ref()?.join("snapshots").join(commit)).filter(|p| p.is_dir())
    }

    /// Stores a file as `huggingface_hub` does, and what its revision stands for.
    pub(super) fn store(&self, revision: &str, commit: &str, etag: &str, file: &str, bytes: &[u8]) {
        if let Some(hub) = self
            .hub
            .as_ref()
            .filter(|_| is_tag(etag) && is_commit(commit))
        {
            // Best effort, see the module's comment.
            let _ = store(hub, revision, commit, etag, file, bytes);
        }
    }

    /// Stores what a revision stands for.
    pub(super) fn store_ref(&self, revision: &str, commit: &str) {
        if let Some(hub) = self.hub.as_ref().filter(|_| is_commit(commit)) {
            // Best effort, see the module's comment.
            let _ = point_ref(hub, revision, commit);
        }
    }

    /// Where the files of a commit go.
    pub(super) fn places(&self, commit: &str) -> Option<Places> {
        let hub = self.hub.as_ref().filter(|_| is_commit(commit))?;
        Some(Places {
            snapshot: hub.join("snapshots").join(commit),
            blobs: hub.join("blobs"),
            locks: hub.parent()?.join(".locks").join(hub.file_name()?),
        })
    }

    /// Gives a blob that is there its name in a commit.
    pub(super) fn link(&self, commit: &str, etag: &str, file: &str) -> std::io::Result<()> {
        match &self.hub {
            Some(hub) => link(hub, commit, etag, file),
            None => Ok(()),
        }
    }

    fn absent_path(&self, commit: &str, file: &str) -> Option<PathBuf> {
        let hub = self.hub.as_ref().filter(|_| is_commit(commit))?;
        Some(hub.join(".no_exist").join(commit).join(file))
    }

    /// Whether a commit is known not to have a file.
    pub(super) fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absent_path(commit, file).is_some_and(|p| p.exists())
    }

    /// Remembers that a commit does not have a file.
    pub(super) fn store_absent(&self, commit: &str, file: &str) {
        if let Some(path) = self.absent_path(commit, file) {
            // Best effort, see the module's comment.
            let _ = write_whole(&path, b"");
        }
    }

    fn head_path(&self, commit: &str, file: &str) -> Option<PathBuf> {
        is_commit(commit).then(|| Some(self.headers.as_ref()?.join(commit).join(file)))?
    }

    /// The stored first bytes of a file.
    pub(super) fn head(&self, commit: &str, file: &str) -> Option<Head> {
        let source = FileSource::open(&self.head_path(commit, file)?).ok()?;
        if source.size() > MAX_HEAD {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(source.size()).ok()?];
        source.read_at(0, &mut bytes).ok()?;
        let rest = bytes.strip_prefix(MAGIC)?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (len, head) = rest.split_first_chunk::<8>()?;
        if u64::from_le_bytes(*len) != head.len() as u64 {
            return None;
        }
        Some(Head {
            size: u64::from_le_bytes(*size),
            bytes: head.to_vec(),
        })
    }

    /// Stores the first bytes of a file.
    pub(super) fn store_head(&self, commit: &str, file: &str, head: &Head) {
        if let Some(path) = self.head_path(commit, file) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(head.size.to_le_bytes());
            bytes.extend((head.bytes.len() as u64).to_le_bytes());
            bytes.extend(&head.bytes);
            // Best effort, see the module's comment.
            let _ = write_whole(&path, &bytes);
        }
    }
}

fn store(
    hub: &Path,
    revision: &str,
    commit: &str,
    etag: &str,
    file: &str,
    bytes: &[u8],
) -> std::io::Result<()> {
    let blob = hub.join("blobs").join(etag);
    if !blob.exists() {
        write_whole(&blob, bytes)?;
    }
    link(hub, commit, etag, file)?;
    point_ref(hub, revision, commit)
}

fn link(hub: &Path, commit: &str, etag: &str, file: &str) -> std::io::Result<()> {
    let link = hub.join("snapshots").join(commit).join(file);
    if link.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(link.parent().unwrap_or(&link))?;
    if link.symlink_metadata().is_ok() {
        // It leads to a blob that somebody removed.
        std::fs::remove_file(&link)?;
    }
    let up = "../".repeat(2 + file.matches('/').count());
    point(
        &format!("{up}blobs/{etag}"),
        &link,
        &hub.join("blobs").join(etag),
    )
}

fn point_ref(hub: &Path, revision: &str, commit: &str) -> std::io::Result<()> {
    let path = hub.join("refs").join(revision);
    if revision != commit && std::fs::read_to_string(&path).ok().as_deref() != Some(commit) {
        write_whole(&path, commit.as_bytes())?;
    }
    Ok(())
}

#[cfg(unix)]
fn point(target: &str, link: &Path, _: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Where links need a privilege, the content is there twice by name and once on the disk.
#[cfg(not(unix))]
fn point(_: &str, link: &Path, blob: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, link)
}

/// The first bytes of a file whose whole size is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) size: u64,
    pub(super) bytes: Vec<u8>,
}

impl ReadAt for Head {
    fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that were not stored read as zeros: a reader fetches by windows and may ask past the
    /// end of the header, but does not look there.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        buf.fill(0);
        if let Some(have) = usize::try_from(offset)
            .ok()
            .and_then(|o| self.bytes.get(o..))
        {
            let n = have.len().min(buf.len());
            if let (Some(to), Some(from)) = (buf.get_mut(..n), have.get(..n)) {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }
}
