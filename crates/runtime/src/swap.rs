//! [`SwapSpace`]: where pages go that had to leave the pool, in memory or in a file.
//!
//! A file has its whole size from the start, so a full disk is told then, and it has no name: whatever ends the
//! process, the system takes it back. It is read and written by place, never mapped: a disk that fails is a transfer
//! that failed, and whoever it was of is computed again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use plimsoll_kernels::Pool;
use plimsoll_units::Bytes;

use crate::arena::{Arena, ArenaError, Part};

/// Why there is no swap file.
#[derive(Debug, thiserror::Error)]
#[error("a swap file of {bytes} cannot be made in {}: {source}", folder.display())]
pub struct SwapFileError {
    /// Its size.
    pub bytes: Bytes,
    /// Where.
    pub folder: PathBuf,
    /// What the system says.
    pub source: std::io::Error,
}

#[derive(Debug)]
enum Store {
    Memory(Arena),
    File {
        file: File,
        bytes: Bytes,
        high_water: Bytes,
    },
}

/// Places of pages outside the pool.
#[derive(Debug)]
pub struct SwapSpace(Store);

impl From<Arena> for SwapSpace {
    fn from(arena: Arena) -> Self {
        Self(Store::Memory(arena))
    }
}

impl SwapSpace {
    /// A file in `folder`, which nobody else can open.
    ///
    /// # Errors
    /// [`SwapFileError`] where it cannot be made, or not of this size.
    pub fn file(folder: &Path, bytes: Bytes) -> Result<Self, SwapFileError> {
        match create(folder, bytes.get()) {
            Ok(file) => Ok(Self::of(file, bytes)),
            Err(source) => Err(SwapFileError {
                bytes,
                folder: folder.to_owned(),
                source,
            }),
        }
    }

    /// An open file that has room for so many bytes.
    #[must_use]
    pub const fn of(file: File, bytes: Bytes) -> Self {
        Self(Store::File {
            file,
            bytes,
            high_water: Bytes::ZERO,
        })
    }

    /// Its size.
    #[must_use]
    pub const fn bytes(&self) -> Bytes {
        match &self.0 {
            Store::Memory(arena) => arena.bytes(),
            Store::File { bytes, .. } => *bytes,
        }
    }

    /// Whether it is a file.
    #[must_use]
    pub const fn is_file(&self) -> bool {
        matches!(self.0, Store::File { .. })
    }

    /// The end of the last byte that was ever written.
    #[must_use]
    pub fn high_water(&self) -> Bytes {
        match &self.0 {
            Store::Memory(arena) => arena.high_water(),
            Store::File { high_water, .. } => *high_water,
        }
    }

    pub(crate) fn unmark(&mut self) {
        match &mut self.0 {
            Store::Memory(arena) => arena.unmark(),
            Store::File { high_water, .. } => *high_water = Bytes::ZERO,
        }
    }

    /// Brings pages here, each to its place (its first byte); the numbers of those that failed.
    pub(crate) fn write(
        &mut self,
        pool: &mut Pool,
        pages: Vec<(u64, &[u8])>,
    ) -> Result<Vec<usize>, ArenaError> {
        match &mut self.0 {
            Store::Memory(arena) => {
                let parts: Vec<Part> = pages.iter().map(|(at, page)| part(*at, page)).collect();
                let places = arena.split_mut::<u8>(&parts)?;
                let moves = places.into_iter().zip(pages).collect();
                Ok(each(pool, moves, |(place, (_, page))| {
                    place.copy_from_slice(page);
                    true
                }))
            }
            Store::File {
                file, high_water, ..
            } => {
                let ends = pages.iter().map(|(at, page)| at + page.len() as u64);
                *high_water = (*high_water).max(Bytes::new(ends.max().unwrap_or(0)));
                let file = &*file;
                Ok(each(pool, pages, |(at, page)| {
                    place::write(file, page, at).is_ok()
                }))
            }
        }
    }

    /// Brings pages back from their places; the numbers of those that failed.
    pub(crate) fn read(
        &self,
        pool: &mut Pool,
        pages: Vec<(u64, &mut [u8])>,
    ) -> Result<Vec<usize>, ArenaError> {
        match &self.0 {
            Store::Memory(arena) => {
                let moves = pages
                    .into_iter()
                    .map(|(at, page)| Ok((arena.view::<u8>(part(at, page))?, page)))
                    .collect::<Result<_, ArenaError>>()?;
                Ok(each(pool, moves, |(place, page)| {
                    page.copy_from_slice(place);
                    true
                }))
            }
            Store::File { file, .. } => Ok(each(pool, pages, |(at, page)| {
                place::read(file, page, at).is_ok()
            })),
        }
    }
}

const fn part(offset: u64, page: &[u8]) -> Part {
    Part {
        offset,
        len: page.len() as u64,
    }
}

/// Calls `f` with every item, on all threads; the numbers of those for which it is false, in order.
fn each<T: Send>(pool: &mut Pool, items: Vec<T>, f: impl Fn(T) -> bool + Sync) -> Vec<usize> {
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|x| Mutex::new(Some(x))).collect();
    let failed = Mutex::new(Vec::new());
    pool.run(items.len(), |i| {
        let item = items[i]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if item.is_some_and(|x| !f(x)) {
            failed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(i);
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_unstable();
    failed
}

/// A file without a name, with disk space for all of it.
#[cfg(unix)]
fn create(folder: &Path, bytes: u64) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = folder.join(format!("plimsoll-swap-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    reserve(&file, bytes)?;
    Ok(file)
}

#[cfg(not(unix))]
fn create(_: &Path, _: u64) -> std::io::Result<File> {
    Err(std::io::Error::new(
        std::io::ErrorKind::Unsupported,
        "files without a name need a Unix system",
    ))
}

#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    use rustix::process::{Resource, getrlimit};
    // Past this limit the system does not refuse: it ends the process.
    if let Some(most) = getrlimit(Resource::Fsize).current
        && bytes > most
    {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("this process may write files of at most {most} bytes (ulimit -f)"),
        ));
    }
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // Nothing is no length.
        Ok(()) => Ok(()),
        Err(Errno::INVAL) if bytes == 0 => Ok(()),
        Err(Errno::OPNOTSUPP) => fill(file, bytes),
        Err(e) => Err(e.into()),
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
    fill(file, bytes)
}

/// Takes disk space where the file system cannot promise it.
#[cfg(unix)]
fn fill(file: &File, bytes: u64) -> std::io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let n = (bytes - at).min(zeros.len() as u64);
        let n = usize::try_from(n).unwrap_or(zeros.len());
        place::write(file, &zeros[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

#[cfg(unix)]
mod place {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    pub(super) fn write(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
        file.write_all_at(bytes, at)
    }

    pub(super) fn read(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
        file.read_exact_at(bytes, at)
    }
}

#[cfg(not(unix))]
mod place {
    use std::fs::File;
    use std::io::{Error, ErrorKind, Result};

    pub(super) fn write(_: &File, _: &[u8], _: u64) -> Result<()> {
        Err(Error::from(ErrorKind::Unsupported))
    }

    pub(super) fn read(_: &File, _: &mut [u8], _: u64) -> Result<()> {
        Err(Error::from(ErrorKind::Unsupported))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::testing::Folder;

    #[test]
    fn pages_come_back_as_they_went_from_memory_and_from_a_file_without_a_name() {
        let folder = Folder::new();
        let bytes = Bytes::new(3 << 12);
        let file = SwapSpace::file(&folder.0, bytes).unwrap();
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
        if let Store::File { file, .. } = &file.0 {
            let m = file.metadata().unwrap();
            assert_eq!((m.mode() & 0o777, m.len()), (0o600, bytes.get()));
            assert!(
                m.blocks() * 512 >= bytes.get(),
                "disk space was only promised"
            );
        }
        let memory = SwapSpace::from(Arena::new("test", bytes).unwrap());
        let mut pool = Pool::new(2).unwrap();
        for mut space in [file, memory] {
            assert_eq!((space.bytes(), space.high_water()), (bytes, Bytes::ZERO));
            let (a, b) = (vec![7; 1 << 12], vec![9; 1 << 12]);
            let out = vec![(1 << 12, &a[..]), (0, &b[..])];
            assert!(space.write(&mut pool, out).unwrap().is_empty());
            assert_eq!(space.high_water(), Bytes::new(2 << 12));
            let (mut c, mut d) = (vec![0; 1 << 12], vec![0; 1 << 12]);
            let back = vec![(0, &mut c[..]), (1 << 12, &mut d[..])];
            assert!(space.read(&mut pool, back).unwrap().is_empty());
            assert!(c == b && d == a);
            space.unmark();
            assert_eq!(space.high_water(), Bytes::ZERO);
        }
    }

    #[test]
    fn what_the_disk_cannot_hold_is_told_at_the_start_and_failures_one_by_one() {
        let folder = Folder::new();
        let e = SwapSpace::file(&folder.0, Bytes::new(1 << 62)).unwrap_err();
        assert!(e.to_string().contains("a swap file of"), "{e}");
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
        let e = SwapSpace::file(&folder.0.join("none"), Bytes::new(1)).unwrap_err();
        assert_eq!(e.source.kind(), std::io::ErrorKind::NotFound);
        // The second page lies behind the end.
        let path = folder.0.join("short");
        std::fs::write(&path, [5; 8]).unwrap();
        let space = SwapSpace::of(File::open(&path).unwrap(), Bytes::new(16));
        let (mut a, mut b) = ([0; 8], [0; 8]);
        let back = vec![(0, &mut a[..]), (8, &mut b[..])];
        let mut pool = Pool::new(1).unwrap();
        assert_eq!(space.read(&mut pool, back).unwrap(), [1]);
        assert_eq!(a, [5; 8]);
    }
}
