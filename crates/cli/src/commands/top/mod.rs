//! `plimsoll top`: a server's memory and what it does, as it goes.

mod sample;
mod view;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use plimsoll_host::{HostError, Peer};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use self::sample::Sample;
use self::view::{Paint, Screen};
use crate::args::top::TopArgs;
use crate::error::{Exit, Failure};
use crate::load::failure;
use crate::output::Output;

/// How often the server is asked.
const PERIOD: Duration = Duration::from_secs(1);
/// How soon a key is seen.
const GLANCE: Duration = Duration::from_millis(100);
/// The frame of `--once`.
const FRAME: (u16, u16) = (100, 36);
/// What lies between the two samples of `--once`, which rates are made of.
const BETWEEN: Duration = Duration::from_millis(400);

pub(crate) fn run(args: &TopArgs, output: &mut Output) -> Result<ExitCode, Failure> {
    let peer = Peer::new(&args.url, args.api_key.as_deref()).map_err(|e| failure(&e))?;
    let look = output.look();
    let paint = Paint {
        color: look.color,
        ascii: look.ascii,
    };
    let mut screen = Screen::new(peer.address().to_owned());
    // Whoever cannot be reached, or lets nobody look, is told before the screen is taken.
    screen.add(sample(&peer)?);
    if args.once {
        thread::sleep(BETWEEN);
        screen.add(sample(&peer)?);
        output.line(&once(&screen, paint)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !std::io::stdout().is_terminal() {
        return Err(
            Failure::new(Exit::Usage, "E-TOP-002", "stdout is no terminal to draw on")
                .hint("add `--once` for one frame as text"),
        );
    }
    let samples = ask(peer);
    // A terminal that was taken is given back, by a panic too.
    let mut terminal = ratatui::try_init().map_err(|e| no_terminal(&e))?;
    let shown = show(&mut terminal, &mut screen, &samples, paint);
    ratatui::restore();
    shown.map_err(|e| no_terminal(&e))?;
    Ok(ExitCode::SUCCESS)
}

fn no_terminal(e: &std::io::Error) -> Failure {
    let what = format!("cannot draw on this terminal: {e}");
    Failure::new(Exit::Failure, "E-TOP-003", what).hint("add `--once` for one frame as text")
}

fn sample(peer: &Peer) -> Result<Sample, Failure> {
    let memory = peer.get("/v1/memory").map_err(|e| failure(&e))?;
    let metrics = peer.get("/metrics").map_err(|e| failure(&e))?;
    Sample::read(&memory, &metrics).map_err(|why| {
        Failure::new(
            Exit::Failure,
            "E-TOP-004",
            "the server does not answer as `plimsoll serve` does",
        )
        .why(why)
        .hint("use the `plimsoll` that serves there, or a newer one")
    })
}

/// Asks in a thread of its own, so that keys are seen meanwhile.
fn ask(peer: Peer) -> Receiver<Result<Sample, String>> {
    let (sender, samples) = sync_channel(1);
    thread::spawn(move || {
        let text = |e: HostError| format!("{}: {}", e.what, e.why);
        let one = || {
            let memory = peer.get("/v1/memory").map_err(text)?;
            let metrics = peer.get("/metrics").map_err(text)?;
            Sample::read(&memory, &metrics)
        };
        loop {
            thread::sleep(PERIOD);
            if sender.send(one()).is_err() {
                return;
            }
        }
    });
    samples
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    samples: &Receiver<Result<Sample, String>>,
    paint: Paint,
) -> std::io::Result<()> {
    loop {
        terminal.draw(|frame| screen.draw(frame, paint))?;
        match samples.try_recv() {
            Ok(Ok(sample)) if !screen.paused => screen.add(sample),
            Ok(Err(why)) => screen.failed(why),
            Ok(Ok(_)) | Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        if !event::poll(GLANCE)? {
            continue;
        }
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            match key.code {
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(());
                }
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('p') => screen.paused = !screen.paused,
                KeyCode::Char('?') => screen.help = !screen.help,
                _ => {}
            }
        }
    }
}

/// One frame as text.
fn once(screen: &Screen, paint: Paint) -> Result<String, Failure> {
    let backend = TestBackend::new(FRAME.0, FRAME.1);
    let mut terminal =
        Terminal::new(backend).map_err(|e| no_terminal(&std::io::Error::other(e)))?;
    let plain = Paint {
        color: false,
        ..paint
    };
    let drawn = terminal.draw(|frame| screen.draw(frame, plain));
    drawn.map_err(|e| no_terminal(&std::io::Error::other(e)))?;
    Ok(text(terminal.backend().buffer()))
}

/// The lines of a frame, without what is blank at their ends and at its end.
fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let lines = buffer.content.chunks(width).map(|row| {
        let row: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        row.trim_end().to_owned()
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    text.trim_end().to_owned()
}
