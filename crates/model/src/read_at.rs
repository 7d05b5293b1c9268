//! [`ReadAt`]: bytes at an offset, from wherever they lie.
//!
//! The header readers ask for exact ranges and know nothing of files, sockets or caches; whoever
//! owns those implements this trait (`plimsoll-host` does, with `pread` and HTTP ranges). A byte
//! slice is one too, so that every parser can be tested and fuzzed without a file.

/// A source of bytes whose size is known.
pub trait ReadAt {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on, all of them.
    ///
    /// # Errors
    /// [`ReadError`] where the range is not inside the source or cannot be read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;
}

/// Why a range could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {len} bytes at offset {offset}: {reason}")]
pub struct ReadError {
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range.
    pub len: u64,
    /// What went wrong, in words.
    pub reason: String,
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?));
        match part {
            Some(part) => {
                buf.copy_from_slice(part);
                Ok(())
            }
            None => Err(ReadError {
                offset,
                len: buf.len() as u64,
                reason: format!("the data ends at {}", self.len()),
            }),
        }
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        (**self).read_at(offset, buf)
    }
}

/// What a file is that is not a model, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAModel {
    /// The small text that git holds in place of a large file.
    LfsPointer,
    /// A web page, usually an error or login page saved under the file's name.
    Html,
    /// A gzip stream.
    Gzip,
    /// A zip archive; `torch.save` writes one around a pickle.
    Zip,
    /// A bare pickle.
    Pickle,
}

impl NotAModel {
    /// Recognises the first bytes of a file; a few dozen are enough.
    #[must_use]
    pub fn sniff(first: &[u8]) -> Option<Self> {
        let text = first.trim_ascii_start();
        let starts = |tag: &str| {
            text.get(..tag.len())
                .is_some_and(|t| t.eq_ignore_ascii_case(tag.as_bytes()))
        };
        if starts("version https://git-lfs") {
            Some(Self::LfsPointer)
        } else if starts("<!doctype") || starts("<html") || starts("<?xml") {
            Some(Self::Html)
        } else if first.starts_with(&[0x1f, 0x8b]) {
            Some(Self::Gzip)
        } else if first.starts_with(b"PK\x03\x04") {
            Some(Self::Zip)
        } else if matches!(first, [0x80, 2..=5, ..]) {
            Some(Self::Pickle)
        } else {
            None
        }
    }

    /// What it is, to follow "this is".
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LfsPointer => "a Git LFS pointer, not the file itself",
            Self::Html => "a web page",
            Self::Gzip => "a gzip stream",
            Self::Zip => "a zip archive (torch.save writes one around a pickle)",
            Self::Pickle => "a pickle",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn next_step(self) -> &'static str {
        match self {
            Self::LfsPointer => "fetch the real file: `git lfs pull`, or download it from the hub",
            Self::Html => "download the file again: an error or login page was saved in its place",
            Self::Gzip => "unpack it first",
            Self::Zip | Self::Pickle => {
                "convert it to safetensors: reading a pickle can run code from the file, so it is never opened"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_gives_exact_ranges_or_an_error_with_the_offset() {
        let data: &[u8] = b"0123456789";
        let mut buf = [0; 4];
        assert_eq!(data.read_at(6, &mut buf), Ok(()));
        assert_eq!(&buf, b"6789");
        for offset in [7, 10, u64::MAX] {
            let err = data.read_at(offset, &mut buf).unwrap_err();
            assert_eq!((err.offset, err.len), (offset, 4));
        }
    }

    #[test]
    fn names_what_is_not_a_model() {
        let cases: [(&[u8], Option<NotAModel>); 8] = [
            (
                b"version https://git-lfs.github.com/spec/v1\noid",
                Some(NotAModel::LfsPointer),
            ),
            (b"\n<!DOCTYPE html>", Some(NotAModel::Html)),
            (b"\x1f\x8b\x08", Some(NotAModel::Gzip)),
            (b"PK\x03\x04", Some(NotAModel::Zip)),
            (b"\x80\x02}q", Some(NotAModel::Pickle)),
            (b"GGUF", None),
            (b"", None),
            (b"{\"a\"", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(NotAModel::sniff(bytes), expected, "{bytes:?}");
        }
    }
}
