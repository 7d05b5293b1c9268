//! [`RemoteFile`]: a file on the hub, read by ranges.

use std::cell::RefCell;

use plimsoll_model::read_at::{ReadAt, ReadError};

use super::cache::Head;
use super::http::{Client, Found, Reply, Wanted};
use crate::error::{HostError, Kind};

/// Bytes asked for at once when a GGUF header is walked: a request costs about as much as this.
const BLOCK: u64 = 1 << 20;

/// A file on the hub.
pub(super) struct RemoteFile<'a> {
    client: &'a Client,
    wanted: Wanted<'a>,
    size: u64,
    /// The tag of whoever serves the bytes, which may be a store behind the hub.
    etag: Option<String>,
    /// Where the hub sent us; asked directly from then on.
    address: String,
    /// All bytes read so far, by offset, in the order of reading.
    parts: RefCell<Vec<(u64, Vec<u8>)>>,
    /// What went wrong, for whoever gets a [`ReadError`] from a parser.
    failure: RefCell<Option<HostError>>,
    /// The commit of the file.
    pub(super) commit: Option<String>,
}

impl<'a> RemoteFile<'a> {
    /// Asks for the first `guess` bytes; `None` where the repository has no such file.
    pub(super) fn open(
        client: &'a Client,
        wanted: Wanted<'a>,
        guess: u64,
    ) -> Result<Option<Self>, HostError> {
        let guess = guess.clamp(1, client.left().max(1));
        let reply = match client.get(&client.address(wanted), Some((0, guess - 1)), wanted)? {
            Found::Yes(reply) => *reply,
            Found::No => return Ok(None),
        };
        let (etag, commit, address) = (
            reply.own_etag.clone(),
            reply.commit.clone(),
            reply.address.clone(),
        );
        let size = reply.size.unwrap_or(0);
        let first = client.body(reply, guess)?;
        Ok(Some(Self {
            client,
            wanted,
            size,
            etag,
            address,
            parts: RefCell::new(vec![(0, first)]),
            failure: RefCell::new(None),
            commit,
        }))
    }

    /// What went wrong while a parser was reading.
    pub(super) fn failure(&self) -> Option<HostError> {
        self.failure.borrow_mut().take()
    }

    /// The first `len` bytes as far as they were read, the rest zero.
    pub(super) fn head(&self, len: u64) -> Head {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        for (start, part) in self.parts.borrow().iter() {
            let at = usize::try_from(*start)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let n = part.len().min(bytes.len() - at);
            if let (Some(to), Some(from)) = (bytes.get_mut(at..at + n), part.get(..n)) {
                to.copy_from_slice(from);
            }
        }
        Head {
            size: self.size,
            bytes,
        }
    }

    /// Fetches at least `len` bytes from `offset` on.
    fn fetch(&self, offset: u64, len: u64) -> Result<(), HostError> {
        let last = offset.saturating_add(len).min(self.size);
        let Some(last) = last.checked_sub(1).filter(|&l| l >= offset) else {
            return Err(
                HostError::new(Kind::Corrupt, "the file ends before its header does")
                    .at(&self.address),
            );
        };
        let reply: Reply =
            match self
                .client
                .get(&self.address, Some((offset, last)), self.wanted)?
            {
                Found::Yes(reply) => *reply,
                Found::No => {
                    return Err(self.changed("it is gone"));
                }
            };
        if reply.size != Some(self.size) {
            return Err(self.changed("its size is another"));
        }
        if reply.own_etag != self.etag {
            return Err(self.changed("its ETag is another"));
        }
        let want = last - offset + 1;
        let bytes = self.client.body(reply, want)?;
        if (bytes.len() as u64) < want {
            return Err(self.changed("it is shorter"));
        }
        self.parts.borrow_mut().push((offset, bytes));
        Ok(())
    }

    fn changed(&self, how: &str) -> HostError {
        HostError::new(Kind::Temporary, "the file changed while it was being read")
            .at(&self.address)
            .because(how)
            .next("try again")
    }

    /// Copies what is there; the offset of the first byte that is not.
    fn copy(&self, offset: u64, buf: &mut [u8]) -> u64 {
        let mut at = offset;
        let end = offset.saturating_add(buf.len() as u64);
        // Parts lie in order and side by side, so one pass finds all of them.
        for (start, part) in self.parts.borrow().iter() {
            let stop = start.saturating_add(part.len() as u64);
            if *start <= at && at < stop && at < end {
                let n = stop.min(end) - at;
                let index = |v: u64| usize::try_from(v).unwrap_or(usize::MAX);
                let from = part.get(index(at - start)..index(at - start + n));
                let to = buf.get_mut(index(at - offset)..index(at - offset + n));
                if let (Some(from), Some(to)) = (from, to) {
                    to.copy_from_slice(from);
                }
                at += n;
            }
        }
        at
    }
}

impl ReadAt for RemoteFile<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let len = buf.len() as u64;
        let end = offset.saturating_add(len);
        let mut at = self.copy(offset, buf);
        if at < end {
            // A block at least: who reads a window reads the next one, too.
            let more = (end - at)
                .max(BLOCK)
                .min(self.size.saturating_sub(at))
                .min(self.client.left().max(end - at));
            if let Err(err) = self.fetch(at, more) {
                let reason = err.to_string();
                *self.failure.borrow_mut() = Some(err);
                return Err(ReadError {
                    offset: at,
                    len,
                    reason,
                });
            }
            at = self.copy(offset, buf);
        }
        if at < end {
            return Err(ReadError {
                offset: at,
                len,
                reason: "the server sent less than it was asked for".into(),
            });
        }
        Ok(())
    }
}
