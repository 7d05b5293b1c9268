//! A connection that is not waited for without end: for its next request, for its headers, or for a client that does
//! not read what it asked for.
//!
//! The socket must know which of these it is in. It sees bytes; when a request begins and ends it is told by [`Phase`],
//! which the connection's service holds.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// From the first byte of a request to the end of its headers.
    pub(crate) header: Duration,
    /// To the next request.
    pub(crate) idle: Duration,
    /// To make room for more of an answer.
    pub(crate) write: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Now {
    /// No byte of a request has come, since then.
    Idle(Instant),
    /// Some of its headers came, the first then.
    Headers(Instant),
    /// It is read, worked on or answered.
    Request,
}

/// What a connection is doing.
#[derive(Clone, Debug)]
pub(crate) struct Phase(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    now: Now,
    /// Whoever reads while a request is answered: then the wait for the next one begins.
    reader: Option<Waker>,
}

impl Phase {
    /// A connection that was just made: its first request is to come at once.
    pub(crate) fn new() -> Self {
        let now = Now::Headers(Instant::now());
        Self(Arc::new(Mutex::new(Shared { now, reader: None })))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The headers of a request are there.
    pub(crate) fn begin(&self) {
        self.lock().now = Now::Request;
    }

    /// Its answer is written, or will not be.
    pub(crate) fn end(&self) {
        let mut shared = self.lock();
        shared.now = Now::Idle(Instant::now());
        if let Some(reader) = shared.reader.take() {
            reader.wake();
        }
    }
}

/// A socket with limits in time.
#[derive(Debug)]
pub(crate) struct Socket {
    inner: TcpStream,
    phase: Phase,
    patience: Patience,
    read: Pin<Box<Sleep>>,
    write: Pin<Box<Sleep>>,
    /// Whether the client makes us wait to write.
    stalled: bool,
}

impl Socket {
    pub(crate) fn new(inner: TcpStream, phase: Phase, patience: Patience) -> Self {
        Self {
            inner,
            phase,
            patience,
            read: Box::pin(tokio::time::sleep(patience.header)),
            write: Box::pin(tokio::time::sleep(patience.write)),
            stalled: false,
        }
    }

    /// What a write came to, or an error where it has been waited for long enough.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.stalled = false;
            return done;
        }
        if !std::mem::replace(&mut self.stalled, true) {
            let until = Instant::now() + self.patience.write;
            self.write.as_mut().reset(until);
        }
        match self.write.as_mut().poll_timer(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// [`Future::poll`] of a timer, by a name that no trait of streams shares.
trait Timer {
    fn poll_timer(self, cx: &mut Context<'_>) -> Poll<()>;
}

impl Timer for Pin<&mut Sleep> {
    fn poll_timer(self, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self, cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.inner).poll_read(cx, into);
        let mut shared = this.phase.lock();
        if done.is_ready() {
            if let Now::Idle(_) = shared.now {
                shared.now = Now::Headers(Instant::now());
            }
            return done;
        }
        let until = match shared.now {
            Now::Idle(since) => since + this.patience.idle,
            Now::Headers(since) => since + this.patience.header,
            Now::Request => {
                shared.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        drop(shared);
        if this.read.deadline() != until {
            this.read.as_mut().reset(until);
        }
        match this.read.as_mut().poll_timer(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.written(cx, done)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.inner).poll_write_vectored(cx, bytes);
        this.written(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
