//! One line for each request, when it has ended: who asked for what, what came of it, how long it took. Never what was
//! asked or answered.
//!
//! A thread of its own writes. Whoever reads the log slowly, or not at all, holds nobody up: lines that find no room are
//! dropped, and counted.

use std::fmt::Write as _;
use std::io::Write;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Method};
use hyper::body::{Frame, SizeHint};

use crate::code::Code;
use crate::metrics::{Counted, HttpEnd};
use crate::room::Room;
use crate::socket::Phase;

/// Lines that may wait.
const LINES: usize = 256;
/// Most characters of a path or method that are told.
const MOST: usize = 200;
/// How long the last lines may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Where requests are logged.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lines: Mutex<Option<SyncSender<String>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// A log that is written to `out` by a thread of its own.
    ///
    /// # Errors
    /// Where the system starts no more threads.
    pub fn new(mut out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (sender, lines) = sync_channel::<String>(LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = Arc::clone(&dropped);
        let thread = std::thread::Builder::new().name("access log".to_owned());
        let thread = thread.spawn(move || {
            for line in lines {
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _ = writeln!(out, "dropped={lost}");
                }
                // A pipe that is closed or a disk that is full ends nothing but this line.
                let _ = writeln!(out, "{line}");
            }
        })?;
        Ok(Self(Arc::new(Inner {
            lines: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
            dropped,
        })))
    }

    fn line(&self, line: String) {
        let lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = lines.as_ref().map(|l| l.try_send(line));
        if !matches!(sent, Some(Ok(()))) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what waits, unless that takes long.
    pub(crate) fn end(&self) {
        let lock = PoisonError::into_inner;
        self.0.lines.lock().unwrap_or_else(lock).take();
        let thread = self
            .0
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let began = Instant::now();
        while thread.as_ref().is_some_and(|t| !t.is_finished()) && began.elapsed() < LAST_LINES {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a response knows of how it ended, for the log: the code of its error, once there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome(Arc<OnceLock<Code>>);

impl Outcome {
    pub(crate) fn of(code: Code) -> Self {
        let outcome = Self::default();
        outcome.error(code);
        outcome
    }

    /// The error that it ended by.
    pub(crate) fn code(&self) -> Option<Code> {
        self.0.get().copied()
    }

    /// It ends by this error.
    pub(crate) fn error(&self, code: Code) {
        let _ = self.0.set(code);
    }
}

/// A request, from its headers to the last byte of its answer.
pub(crate) struct Entry {
    pub(crate) log: Option<AccessLog>,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) began: Instant,
    pub(crate) id: HeaderValue,
    pub(crate) status: u16,
    pub(crate) outcome: Outcome,
    /// Counts it when it has ended.
    pub(crate) counted: Counted,
    /// Its connection's, which goes on when it has ended.
    pub(crate) phase: Option<Phase>,
    /// What it holds until then.
    #[allow(dead_code, reason = "held")]
    pub(crate) room: Option<Room>,
}

/// Most of an answer that a connection takes at a time, as a copy: a part of it would keep all of it in memory.
const PIECE_BYTES: usize = 16 << 10;

/// A body whose end is noticed, whether or not it was taken to its end. It is taken as the client reads, so its end is
/// the client's, but for what a connection may hold anyway.
pub(crate) struct Watched {
    body: Body,
    /// Of what the body gave, what was not taken yet.
    rest: Bytes,
    bytes: u64,
    whole: bool,
    entry: Option<Entry>,
}

impl Watched {
    pub(crate) fn body(body: Body, entry: Entry) -> Body {
        let whole = body.is_end_stream();
        Body::new(Self {
            body,
            rest: Bytes::new(),
            bytes: 0,
            whole,
            entry: Some(entry),
        })
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let mut frame = None;
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)).map(|f| f.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => this.rest = data,
                Some(Ok(Err(other))) => frame = Some(Ok(other)),
                Some(Err(e)) => frame = Some(Err(e)),
                None => this.whole = true,
            }
        }
        if !this.rest.is_empty() {
            let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
            this.bytes += piece.len() as u64;
            frame = Some(Ok(Frame::data(Bytes::copy_from_slice(&piece))));
            this.whole = this.is_end_stream();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(inner.lower().saturating_add(rest));
        hint
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some(mut entry) = self.entry.take() else {
            return;
        };
        if let Some(phase) = &entry.phase {
            phase.end();
        }
        let code = entry.outcome.code();
        entry.counted.ends(match (self.whole, code, entry.status) {
            (_, Some(_), 400..500) => HttpEnd::Client,
            (_, Some(_), 500..) => HttpEnd::Server,
            (_, Some(_), _) => HttpEnd::Cut,
            (true, None, _) => HttpEnd::Whole,
            (false, None, _) => HttpEnd::Left,
        });
        let Some(log) = &entry.log else {
            return;
        };
        let end = match (self.whole, code) {
            (_, Some(code)) => code.name(),
            (true, None) => "whole",
            (false, None) => "left",
        };
        let mut line = String::with_capacity(128);
        time(&mut line);
        let _ = write!(line, " method=");
        escape(&mut line, entry.method.as_str());
        let _ = write!(line, " path=");
        escape(&mut line, &entry.path);
        let _ = write!(
            line,
            " status={} end={end} bytes={} seconds={:.3} id=",
            entry.status,
            self.bytes,
            entry.began.elapsed().as_secs_f64()
        );
        escape(&mut line, entry.id.to_str().unwrap_or("-"));
        log.line(line);
    }
}

/// Characters that could end a field or a line, or mean something to a terminal, as %XX.
fn escape(out: &mut String, text: &str) {
    for byte in text.bytes().take(MOST) {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// The time now, as `time=2026-11-28T19:43:41.123Z`.
fn time(out: &mut String) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.unwrap_or_default();
    let (s, ms) = (since.as_secs(), since.subsec_millis());
    let (year, month, day) = date(s / 86_400);
    let (h, m, s) = (s / 3600 % 24, s / 60 % 60, s % 60);
    let _ = write!(
        out,
        "time={year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z"
    );
}

/// Year, month and day of a number of days since 1970: Howard Hinnant's `civil_from_days`, for days that have been.
const fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        for (days, want) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_785, (2026, 11, 28)),
        ] {
            assert_eq!(date(days), want, "day {days}");
        }
    }

    #[test]
    fn nothing_of_a_client_ends_a_field_or_a_line() {
        let mut line = String::new();
        escape(&mut line, "/v1\n\u{1b}[31m\r a=\"b\\c\u{e9}");
        assert_eq!(line, "/v1%0A%1B[31m%0D%20a%3D%22b%5Cc%C3%A9");
        line.clear();
        escape(&mut line, &"x".repeat(10_000));
        assert_eq!(line.len(), MOST);
    }
}
