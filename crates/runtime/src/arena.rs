//! [`Arena`]: one block of memory, committed when it is made, of which typed parts are lent out.
//!
//! Every region of the plan that the engine holds is one arena. Its pages are touched at once, so that a machine
//! that has not enough says so at start and never in the middle of a step; nothing grows afterwards. The
//! high-water mark is the end of the last byte that was ever lent, to be compared with the plan; who borrows the
//! whole says which bytes it used.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use plimsoll_units::Bytes;

/// Bytes of the smallest page of the machines that we run on: each is touched.
const PAGE: usize = 4096;
/// Bytes of a huge page of x86-64 and of arm64 with pages of 4 KiB: large arenas begin at one, so that the system
/// can back them by such pages from their first byte.
const HUGE_PAGE: usize = 2 << 20;

/// A type that any bits are a value of.
///
/// # Safety
/// Plain numbers only: every pattern of bits is valid, no padding, no drop.
pub unsafe trait Element: Copy + private::Sealed {}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($t:ty),*) => {$(
        impl private::Sealed for $t {}
        // SAFETY: a plain number.
        unsafe impl Element for $t {}
    )*};
}
elements!(
    u8,
    i8,
    u16,
    u32,
    f32,
    plimsoll_kernels::F16,
    plimsoll_kernels::F8
);

/// Why an arena cannot be made, or cannot lend a part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArenaError {
    /// The machine does not give the memory.
    #[error(
        "{arena}: the system has no {bytes} to give; free memory, or plan for less (`--memory`)"
    )]
    Memory {
        /// What it is for.
        arena: &'static str,
        /// Its size.
        bytes: Bytes,
    },
    /// A part that leaves the arena.
    #[error("{arena}: {len} elements of {size} bytes from {offset} on leave its {bytes} bytes")]
    Outside {
        /// What the arena is for.
        arena: &'static str,
        /// First byte.
        offset: u64,
        /// Elements.
        len: u64,
        /// Bytes of an element.
        size: usize,
        /// Bytes of the arena.
        bytes: usize,
    },
    /// A part that does not begin at an element.
    #[error("{arena}: byte {offset} is no multiple of {size}")]
    Unaligned {
        /// What the arena is for.
        arena: &'static str,
        /// First byte.
        offset: u64,
        /// Bytes of an element.
        size: usize,
    },
    /// Two parts to be written at once that share bytes.
    #[error("{arena}: the parts from {first} and from {second} on share bytes")]
    Overlap {
        /// What the arena is for.
        arena: &'static str,
        /// First byte of one.
        first: u64,
        /// First byte of the other.
        second: u64,
    },
}

/// Some elements of an arena: where they begin, in bytes, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First byte.
    pub offset: u64,
    /// Elements.
    pub len: u64,
}

/// One block of committed memory, filled with zeros.
pub struct Arena {
    name: &'static str,
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
    high_water: AtomicUsize,
}

// SAFETY: it owns its block, which has no tie to a thread.
unsafe impl Send for Arena {}
// SAFETY: shared parts are read only, and the mark is atomic.
unsafe impl Sync for Arena {}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({}, {} bytes)", self.name, self.bytes)
    }
}

/// Asks the system to back a block that nobody has touched yet by huge pages, as far as it fills them: weights and KV
/// blocks are read all over, and each small page would be looked up by itself. No is an answer too.
fn ask_for_huge_pages(start: NonNull<u8>, bytes: usize) {
    let whole = bytes / HUGE_PAGE * HUGE_PAGE;
    #[cfg(target_os = "linux")]
    if whole > 0 {
        use rustix::mm::{Advice, madvise};
        // SAFETY: inside the block, which begins at a huge page; the advice changes no contents.
        let _ = unsafe { madvise(start.as_ptr().cast(), whole, Advice::LinuxHugepage) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, whole);
}

impl Arena {
    /// Commits an arena for `name`.
    ///
    /// # Errors
    /// [`ArenaError::Memory`].
    pub fn new(name: &'static str, size: Bytes) -> Result<Self, ArenaError> {
        let fail = || ArenaError::Memory {
            arena: name,
            bytes: size,
        };
        let bytes = usize::try_from(size.get()).map_err(|_| fail())?;
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
        let layout = Layout::from_size_align(bytes.max(1), align).map_err(|_| fail())?;
        // SAFETY: the layout has at least one byte.
        let start = NonNull::new(unsafe { alloc(layout) }).ok_or_else(fail)?;
        ask_for_huge_pages(start, bytes);
        // SAFETY: the whole block, which nobody else knows yet.
        unsafe { start.write_bytes(0, layout.size()) };
        for at in (0..bytes).step_by(PAGE) {
            // Volatile, since an allocator may give pages that the system has only promised.
            // SAFETY: inside the block, which nobody else knows yet.
            unsafe { start.add(at).write_volatile(0) };
        }
        Ok(Self {
            name,
            start,
            layout,
            bytes,
            high_water: AtomicUsize::new(0),
        })
    }

    /// Its size.
    #[must_use]
    pub const fn bytes(&self) -> Bytes {
        Bytes::new(self.bytes as u64)
    }

    /// The end of the last byte that was ever lent.
    #[must_use]
    pub fn high_water(&self) -> Bytes {
        Bytes::new(self.high_water.load(Ordering::Relaxed) as u64)
    }

    /// Elements to read.
    ///
    /// # Errors
    /// [`ArenaError::Outside`] or [`ArenaError::Unaligned`].
    pub fn view<T: Element>(&self, part: Part) -> Result<&[T], ArenaError> {
        let (at, len) = self.locate::<T>(part)?;
        // SAFETY: `locate` found it inside the block and aligned; every byte is initialised and any bits are a T;
        // nobody writes while `self` is borrowed.
        Ok(unsafe { std::slice::from_raw_parts(self.start.add(at).cast().as_ptr(), len) })
    }

    /// Elements to write.
    ///
    /// # Errors
    /// As [`Arena::view`].
    pub fn view_mut<T: Element>(&mut self, part: Part) -> Result<&mut [T], ArenaError> {
        let [one] = self.views_mut([part])?;
        Ok(one)
    }

    /// Several parts to write at once, none of which shares a byte with another.
    ///
    /// # Errors
    /// As [`Arena::view`], and [`ArenaError::Overlap`].
    pub fn views_mut<T: Element, const N: usize>(
        &mut self,
        parts: [Part; N],
    ) -> Result<[&mut [T]; N], ArenaError> {
        let mut found = [(0, 0); N];
        for (i, part) in parts.iter().enumerate() {
            found[i] = self.locate::<T>(*part)?;
        }
        self.apart::<T>(&parts, &mut found.clone())?;
        // SAFETY: as in `view`, and `apart` found that no two of them share a byte; `self` is borrowed mutably for as
        // long as they live.
        Ok(found.map(|(at, len)| unsafe { self.slice_mut(at, len) }))
    }

    /// As [`Arena::views_mut`], for any number of parts.
    ///
    /// # Errors
    /// As [`Arena::views_mut`].
    pub fn split_mut<T: Element>(&mut self, parts: &[Part]) -> Result<Vec<&mut [T]>, ArenaError> {
        let found = parts
            .iter()
            .map(|p| self.locate::<T>(*p))
            .collect::<Result<Vec<_>, _>>()?;
        self.apart::<T>(parts, &mut found.clone())?;
        Ok(found
            .into_iter()
            // SAFETY: as in `views_mut`.
            .map(|(at, len)| unsafe { self.slice_mut(at, len) })
            .collect())
    }

    /// All of it, to write. Nothing counts as lent: the borrower [`mark`](Self::mark)s what it used.
    pub fn whole_mut<T: Element>(&mut self) -> &mut [T] {
        let len = self.bytes / size_of::<T>();
        // SAFETY: inside the block, which begins at a page; as in `views_mut`.
        unsafe { self.slice_mut(0, len) }
    }

    /// Nothing of it counts as lent so far: measures at the start are no use.
    pub fn unmark(&mut self) {
        *self.high_water.get_mut() = 0;
    }

    /// The bytes before `end` were used.
    pub fn mark(&self, end: Bytes) {
        let end = usize::try_from(end.min(self.bytes()).get()).unwrap_or(self.bytes);
        self.high_water.fetch_max(end, Ordering::Relaxed);
    }

    /// # Safety
    /// `len` elements from byte `at` on lie inside and aligned; nobody else has them while the result lives.
    unsafe fn slice_mut<'a, T: Element>(&self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at).cast().as_ptr(), len) }
    }

    /// First byte and elements of a part, as found to lie inside; counted as lent.
    fn locate<T: Element>(&self, part: Part) -> Result<(usize, usize), ArenaError> {
        let (at, len) = self.find::<T>(part)?;
        if len > 0 {
            let end = at + len * size_of::<T>();
            self.high_water.fetch_max(end, Ordering::Relaxed);
        }
        Ok((at, len))
    }

    /// First byte and elements of a part that could be lent.
    ///
    /// # Errors
    /// As [`Arena::view`].
    pub fn find<T: Element>(&self, part: Part) -> Result<(usize, usize), ArenaError> {
        let size = size_of::<T>();
        let outside = || ArenaError::Outside {
            arena: self.name,
            offset: part.offset,
            len: part.len,
            size,
            bytes: self.bytes,
        };
        let at = usize::try_from(part.offset).map_err(|_| outside())?;
        let len = usize::try_from(part.len).map_err(|_| outside())?;
        len.checked_mul(size)
            .and_then(|b| b.checked_add(at))
            .filter(|&end| end <= self.bytes)
            .ok_or_else(outside)?;
        if !at.is_multiple_of(align_of::<T>()) {
            return Err(ArenaError::Unaligned {
                arena: self.name,
                offset: part.offset,
                size,
            });
        }
        Ok((at, len))
    }

    /// Checks that no two parts share a byte; `found` is sorted on the way.
    fn apart<T>(&self, parts: &[Part], found: &mut [(usize, usize)]) -> Result<(), ArenaError> {
        debug_assert_eq!(parts.len(), found.len());
        found.sort_unstable();
        let mut last: Option<(usize, usize)> = None;
        for &(at, len) in found.iter().filter(|f| f.1 > 0) {
            if let Some((first, end)) = last
                && at < end
            {
                return Err(ArenaError::Overlap {
                    arena: self.name,
                    first: first as u64,
                    second: at as u64,
                });
            }
            last = Some((at, at + len * size_of::<T>()));
        }
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the block came from the same allocator with the same layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn part(offset: u64, len: u64) -> Part {
        Part { offset, len }
    }

    #[test]
    fn lends_typed_parts_and_marks_how_far() {
        let mut a = Arena::new("test", Bytes::new(3 << 20)).unwrap();
        assert_eq!(a.high_water(), Bytes::new(0));
        a.view_mut::<f32>(part(64, 3))
            .unwrap()
            .copy_from_slice(&[1.0, 2.0, 3.0]);
        assert_eq!(a.high_water(), Bytes::new(76));
        assert_eq!(
            a.view::<u32>(part(64, 2)).unwrap(),
            [1.0_f32.to_bits(), 2.0_f32.to_bits()]
        );
        assert_eq!(
            a.high_water(),
            Bytes::new(76),
            "reading below the mark leaves it"
        );
        let whole = a.view::<u8>(part(0, 3 << 20)).unwrap();
        assert!(whole[76..].iter().all(|&b| b == 0));
        assert_eq!(whole.as_ptr() as usize % HUGE_PAGE, 0);
        assert_eq!(a.high_water(), a.bytes());
    }

    #[test]
    fn refuses_what_lies_outside_or_between_elements() {
        let a = Arena::new("test", Bytes::new(100)).unwrap();
        assert_eq!(a.view::<f32>(part(0, 25)).unwrap().len(), 25);
        for (offset, len) in [
            (0, 26),
            (100, 1),
            (u64::MAX, 1),
            (0, u64::MAX),
            (4, u64::MAX / 4),
        ] {
            let e = a.view::<f32>(part(offset, len)).unwrap_err();
            assert!(matches!(e, ArenaError::Outside { .. }), "{e}");
        }
        let e = a.view::<f32>(part(2, 1)).unwrap_err();
        assert!(matches!(e, ArenaError::Unaligned { .. }), "{e}");
        assert_eq!(a.view::<f32>(part(100, 0)).unwrap().len(), 0);
        assert_eq!(
            Arena::new("none", Bytes::new(0)).unwrap().bytes(),
            Bytes::new(0)
        );
    }

    #[test]
    fn parts_written_at_once_share_no_byte() {
        let mut a = Arena::new("test", Bytes::new(128)).unwrap();
        let [x, y] = a.views_mut::<f32, 2>([part(64, 16), part(0, 16)]).unwrap();
        x.fill(1.0);
        y.fill(2.0);
        assert_eq!(a.view::<f32>(part(60, 2)).unwrap(), [2.0, 1.0]);
        let e = a
            .views_mut::<f32, 2>([part(60, 4), part(0, 16)])
            .unwrap_err();
        assert!(
            matches!(
                e,
                ArenaError::Overlap {
                    first: 0,
                    second: 60,
                    ..
                }
            ),
            "{e}"
        );
        let parts = a
            .split_mut::<u32>(&[part(0, 4), part(16, 0), part(16, 4)])
            .unwrap();
        assert_eq!(parts.iter().map(|p| p.len()).collect::<Vec<_>>(), [4, 0, 4]);
        assert!(a.split_mut::<u32>(&[part(0, 4), part(12, 4)]).is_err());
    }

    #[test]
    fn says_when_the_system_has_not_enough() {
        for bytes in [u64::MAX, 1 << 62] {
            let e = Arena::new("weights", Bytes::new(bytes)).unwrap_err();
            assert!(e.to_string().contains("weights"), "{e}");
        }
    }
}
