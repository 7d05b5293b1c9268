//! [`Input`]: bytes from outside, cut into lines or JSON objects without holding more than one.
//!
//! Memory is bounded by [`ROW_BYTES_MAX`] whatever the input; a CSV reader that lets a quoted
//! field span lines has no such bound (one stray quote swallows the file), and no trace needs it.

use std::fmt;
use std::io::{BufRead, ErrorKind};

use super::error::{WorkloadError, shorten};

/// The longest row that is read: far above any real one (a Mooncake row of 10 million tokens has
/// 150 kB), and small enough to hold.
pub(super) const ROW_BYTES_MAX: usize = 16 << 20;

/// A reader that knows its line.
pub(super) struct Input {
    inner: Box<dyn BufRead + Send>,
    row: Vec<u8>,
    /// The line of the next byte, from 1.
    line: u64,
    at_start: bool,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("line", &self.line).finish()
    }
}

impl Input {
    pub(super) fn new(inner: Box<dyn BufRead + Send>) -> Self {
        Self {
            inner,
            row: Vec::new(),
            line: 1,
            at_start: true,
        }
    }

    pub(super) fn line_number(&self) -> u64 {
        self.line
    }

    /// The next byte that is not white space, left unread; a byte order mark before it is passed
    /// over.
    pub(super) fn peek(&mut self) -> Result<Option<u8>, WorkloadError> {
        loop {
            let Some(byte) = self.next_byte()? else {
                return Ok(None);
            };
            if self.at_start && byte == 0xef {
                self.take_mark()?;
            } else if byte.is_ascii_whitespace() {
                self.take(byte);
            } else {
                return Ok(Some(byte));
            }
            self.at_start = false;
        }
    }

    /// Takes the byte that [`Input::peek`] has shown.
    pub(super) fn take(&mut self, byte: u8) {
        self.inner.consume(1);
        self.line += u64::from(byte == b'\n');
    }

    /// The next line that is not blank, without its end, and its number.
    pub(super) fn next_line(&mut self) -> Result<Option<(u64, &[u8])>, WorkloadError> {
        if self.peek()?.is_none() {
            return Ok(None);
        }
        let line = self.line;
        self.row.clear();
        loop {
            let chunk = fill(&mut *self.inner, line)?;
            let end = chunk.iter().position(|&b| b == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            let used = part.len() + usize::from(end.is_some());
            let room = ROW_BYTES_MAX - self.row.len();
            if part.len() > room {
                return Err(WorkloadError::TooLong {
                    line,
                    bytes_max: ROW_BYTES_MAX,
                });
            }
            self.row.extend_from_slice(part);
            self.inner.consume(used);
            self.line += u64::from(end.is_some());
            if end.is_some() || used == 0 {
                break;
            }
        }
        Ok(Some((line, self.row.trim_ascii_end())))
    }

    /// The JSON object that starts at the next byte, which is `{`, over as many lines as it has.
    pub(super) fn next_object(&mut self) -> Result<(u64, &[u8]), WorkloadError> {
        let line = self.line;
        self.row.clear();
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        loop {
            let chunk = fill(&mut *self.inner, line)?;
            if chunk.is_empty() {
                return Err(WorkloadError::Truncated { line });
            }
            let mut used = 0;
            let mut done = false;
            for &byte in chunk {
                used += 1;
                self.line += u64::from(byte == b'\n');
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    _ if in_string => {}
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                if depth == 0 {
                    done = true;
                    break;
                }
            }
            if used > ROW_BYTES_MAX - self.row.len() {
                return Err(WorkloadError::TooLong {
                    line,
                    bytes_max: ROW_BYTES_MAX,
                });
            }
            self.row.extend_from_slice(&chunk[..used]);
            self.inner.consume(used);
            if done {
                return Ok((line, &self.row));
            }
        }
    }

    fn next_byte(&mut self) -> Result<Option<u8>, WorkloadError> {
        Ok(fill(&mut *self.inner, self.line)?.first().copied())
    }

    /// Passes over a UTF-8 byte order mark, whose first byte is next.
    fn take_mark(&mut self) -> Result<(), WorkloadError> {
        for want in [0xef, 0xbb, 0xbf] {
            if self.next_byte()? != Some(want) {
                return Err(WorkloadError::UnknownFormat {
                    seen: "\u{fffd}".to_owned(),
                });
            }
            self.inner.consume(1);
        }
        Ok(())
    }
}

/// Bytes that are ready; none at the end.
fn fill(inner: &mut dyn BufRead, line: u64) -> Result<&[u8], WorkloadError> {
    // The first call does the waiting; the second returns what it found. A borrow that leaves a
    // loop conditionally cannot be written in one.
    loop {
        match inner.fill_buf() {
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => {
                return Err(WorkloadError::Read {
                    line,
                    why: e.to_string(),
                });
            }
        }
    }
    inner.fill_buf().map_err(|e| WorkloadError::Read {
        line,
        why: e.to_string(),
    })
}

/// A row as text.
pub(super) fn text(line: u64, row: &[u8]) -> Result<&str, WorkloadError> {
    str::from_utf8(row).map_err(|_| WorkloadError::BadRow {
        line,
        why: format!(
            "`{}` is not UTF-8",
            shorten(&String::from_utf8_lossy(&row[..row.len().min(200)]))
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Cursor};

    use super::*;

    /// Reads through a buffer of `capacity` bytes, so that every boundary is met.
    fn input(bytes: &'static [u8], capacity: usize) -> Input {
        Input::new(Box::new(BufReader::with_capacity(
            capacity,
            Cursor::new(bytes),
        )))
    }

    #[test]
    fn lines_are_the_same_through_any_buffer() {
        for capacity in [1, 2, 3, 5, 64] {
            let mut i = input(b"\xef\xbb\xbf\r\na,b\r\n\n  \nc\nlast", capacity);
            let mut seen = Vec::new();
            while let Some((n, row)) = i.next_line().unwrap() {
                seen.push((n, text(n, row).unwrap().to_owned()));
            }
            let want = [(2, "a,b"), (5, "c"), (6, "last")].map(|(n, s)| (n, s.to_owned()));
            assert_eq!(seen, want);
        }
    }

    #[test]
    fn objects_end_where_their_brace_does() {
        for capacity in [1, 7, 64] {
            let mut i = input(br#"{"a":"}\"{","b":[{}]}{"c":"#, capacity);
            assert_eq!(
                i.next_object().unwrap().1,
                br#"{"a":"}\"{","b":[{}]}"#.as_slice()
            );
            assert_eq!(i.next_object(), Err(WorkloadError::Truncated { line: 1 }));
        }
    }

    #[test]
    fn an_endless_line_is_refused_and_not_held() {
        let mut i = Input::new(Box::new(BufReader::new(std::io::repeat(b'x'))));
        assert!(matches!(
            i.next_line(),
            Err(WorkloadError::TooLong { line: 1, .. })
        ));
    }
}
