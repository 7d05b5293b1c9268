//! Memory of the host, and what of it this process may use.
//!
//! Linux: `/proc/meminfo`, and the limits of the control groups above the process, in version 2
//! (`memory.max`) and 1 (`memory.limit_in_bytes`). A container sees the machine's `meminfo`, so the
//! limit is what counts there.

use std::path::{Path, PathBuf};

use plimsoll_units::Bytes;

use crate::gpu::Roots;

/// Version 1 writes "no limit" as the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 62;

/// Memory of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: Option<Bytes>,
    /// What can be used without swapping.
    pub available: Option<Bytes>,
    /// The tightest limit of the control groups.
    pub limit: Option<Bytes>,
    /// What the group with that limit uses.
    pub limit_used: Option<Bytes>,
}

impl HostMemory {
    /// What a new allocation may take: the smaller of what is available and what the limit leaves.
    #[must_use]
    pub fn usable(&self) -> Option<Bytes> {
        let left = self
            .limit
            .map(|l| l.saturating_sub(self.limit_used.unwrap_or(Bytes::ZERO)));
        match (self.available.or(self.total), left) {
            (Some(a), Some(l)) => Some(a.min(l)),
            (a, l) => a.or(l),
        }
    }
}

/// Memory of this host.
#[must_use]
pub fn host() -> HostMemory {
    host_in(&Roots::default())
}

/// What this process has in memory, and the most that it had; nothing where the system does not say.
#[must_use]
pub fn resident() -> Option<(Bytes, Bytes)> {
    let text = std::fs::read_to_string(Roots::default().proc.join("self/status")).ok()?;
    kib_of(&text, "VmRSS").zip(kib_of(&text, "VmHWM"))
}

/// The bytes of a line such as `VmRSS:   1024 kB`.
fn kib_of(text: &str, key: &str) -> Option<Bytes> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024).map(Bytes::new)
}

/// Memory as shown under these roots; what is not shown is absent.
#[must_use]
pub fn host_in(roots: &Roots) -> HostMemory {
    let text = std::fs::read_to_string(roots.proc.join("meminfo")).unwrap_or_default();
    let group = limit(roots);
    HostMemory {
        total: kib_of(&text, "MemTotal"),
        available: kib_of(&text, "MemAvailable"),
        limit: group.map(|(l, _)| Bytes::new(l)),
        limit_used: group.and_then(|(_, u)| u).map(Bytes::new),
    }
}

fn number(path: &Path) -> Option<u64> {
    // `max` is no number, and so no limit.
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The tightest limit above this process, and what is used under it.
fn limit(roots: &Roots) -> Option<(u64, Option<u64>)> {
    let groups = std::fs::read_to_string(roots.proc.join("self/cgroup")).unwrap_or_default();
    let base = roots.sys.join("fs/cgroup");
    let mut found: Vec<(u64, Option<u64>)> = Vec::new();
    let mut look = |root: &Path, path: &str, max: &str, used: &str| {
        for dir in upwards(root, path) {
            if let Some(n) = number(&dir.join(max)).filter(|&n| n < NO_LIMIT) {
                found.push((n, number(&dir.join(used))));
            }
        }
    };
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(kinds), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if kinds.is_empty() {
            look(&base, path, "memory.max", "memory.current");
        } else if kinds.split(',').any(|k| k == "memory") {
            look(
                &base.join("memory"),
                path,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            );
        }
    }
    found
        .into_iter()
        .min_by_key(|&(limit, used)| limit.saturating_sub(used.unwrap_or(0)))
}

/// The folder of a group and all above it; inside a container the path may be that of the host and
/// lead nowhere, then the root alone is there.
fn upwards(root: &Path, path: &str) -> Vec<PathBuf> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    if parts.contains(&"..") {
        return vec![root.to_owned()];
    }
    (0..=parts.len())
        .map(|n| {
            parts
                .iter()
                .take(n)
                .fold(root.to_owned(), |dir, p| dir.join(p))
        })
        .collect()
}
