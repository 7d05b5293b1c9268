//! stdout is data, stderr is talk.

use std::io::{self, Write};

use plimsoll_report::Look;
use serde::Serialize;

use crate::args::{Color, Global};
use crate::error::{Exit, Failure};

/// The two streams, and how to draw on the first.
pub(crate) struct Output {
    out: anstream::AutoStream<io::Stdout>,
    err: anstream::AutoStream<io::Stderr>,
    ascii: bool,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        let choice = match global.color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        Self {
            out: anstream::AutoStream::new(io::stdout(), choice),
            err: anstream::AutoStream::new(io::stderr(), choice),
            ascii: global.ascii,
        }
    }

    pub(crate) fn look(&self) -> Look {
        let color = self.out.current_choice() != anstream::ColorChoice::Never;
        Look {
            color,
            ascii: self.ascii,
            width: 100,
        }
    }

    /// Writes data as it comes.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        let written = self
            .out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush());
        finished(written)
    }

    /// Writes data and a line end. A reader that has gone away (`| head`) is no error.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        let written = self
            .out
            .write_all(text.as_bytes())
            .and_then(|()| {
                if text.ends_with('\n') {
                    Ok(())
                } else {
                    self.out.write_all(b"\n")
                }
            })
            .and_then(|()| self.out.flush());
        finished(written)
    }

    /// Writes data as one line of JSON, piece by piece; returns what is wrong with the data.
    pub(crate) fn json(
        &mut self,
        data: &impl Serialize,
    ) -> Result<Result<(), serde_json::Error>, Failure> {
        let mut out = io::BufWriter::new(&mut self.out);
        let written = match serde_json::to_writer(&mut out, data) {
            Err(e) if !e.is_io() => return Ok(Err(e)),
            other => other.map_err(io::Error::from),
        };
        let written = written.and_then(|()| out.write_all(b"\n"));
        finished(written.and_then(|()| out.flush())).map(Ok)
    }

    /// Talks to a person; losing it loses no data.
    pub(crate) fn talk(&mut self, text: &str) {
        let _ = writeln!(self.err, "{text}");
    }
}

fn finished(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Failure::new(
            Exit::Failure,
            "E-IO-001",
            format!("cannot write to stdout: {e}"),
        )
        .hint("free some space there, or send the output elsewhere")),
        Ok(()) => Ok(()),
    }
}
