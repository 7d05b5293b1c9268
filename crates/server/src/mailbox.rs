//! Where events lie between the engine and a connection: sending never waits, and no mailbox grows without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::engine::Event;

/// What may lie in one: a thousand tokens, beside those that the system holds. Whoever is further behind is cut off.
pub(crate) const MAILBOX_BYTES: usize = 64 << 10;

#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicUsize,
    cut: AtomicBool,
}

/// The engine's side.
#[derive(Clone, Debug)]
pub(crate) struct Mailbox {
    events: UnboundedSender<Event>,
    shared: Arc<Shared>,
}

/// The connection's side; dropping it cancels what the mailbox is for.
#[derive(Debug)]
pub(crate) struct Events {
    events: UnboundedReceiver<Event>,
    shared: Arc<Shared>,
}

pub(crate) fn mailbox() -> (Mailbox, Events) {
    let (sender, receiver) = unbounded_channel();
    let shared = Arc::<Shared>::default();
    let mailbox = Mailbox {
        events: sender,
        shared: Arc::clone(&shared),
    };
    let events = Events {
        events: receiver,
        shared,
    };
    (mailbox, events)
}

impl Mailbox {
    /// Puts an event in, unless it is cut off; a token that finds no room cuts it off. Whoever it is for may be gone.
    pub(crate) fn send(&self, event: Event) {
        if self.shared.cut.load(Ordering::Acquire) {
            return;
        }
        let bytes = event.bytes();
        let held = self.shared.bytes.fetch_add(bytes, Ordering::AcqRel);
        let event = if held + bytes > MAILBOX_BYTES {
            self.shared.cut.store(true, Ordering::Release);
            Event::Slow
        } else {
            event
        };
        let _ = self.events.send(event);
    }

    /// Whether nobody reads any more, or what is read ends early.
    pub(crate) fn is_closed(&self) -> bool {
        self.events.is_closed() || self.shared.cut.load(Ordering::Acquire)
    }
}

impl Events {
    fn took(&self, event: &Event) {
        self.shared.bytes.fetch_sub(event.bytes(), Ordering::AcqRel);
    }

    /// The next event, when there is one; `None` where there will be none.
    pub(crate) async fn recv(&mut self) -> Option<Event> {
        let event = self.events.recv().await?;
        self.took(&event);
        Some(event)
    }

    /// The next event, if there is one.
    pub(crate) fn try_recv(&mut self) -> Result<Event, TryRecvError> {
        let event = self.events.try_recv()?;
        self.took(&event);
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Token;

    fn token(top: usize) -> Event {
        let token = Token {
            index: 0,
            id: 1,
            logprob: 0.0,
            ends: false,
            top: vec![(0, 0.0); top],
        };
        Event::Token(0, token)
    }

    #[test]
    fn whoever_does_not_read_is_cut_off_once() {
        let (mailbox, mut events) = mailbox();
        let each = token(20).bytes();
        for _ in 0..MAILBOX_BYTES / each {
            mailbox.send(token(20));
        }
        assert!(!mailbox.is_closed());
        // What was read makes room.
        for _ in 0..10 {
            assert!(matches!(events.try_recv(), Ok(Event::Token(..))));
            mailbox.send(token(20));
        }
        assert!(!mailbox.is_closed());
        for _ in 0..10 {
            mailbox.send(token(20));
        }
        assert!(mailbox.is_closed());
        let mut rest = 0;
        while let Ok(Event::Token(..)) = events.try_recv() {
            rest += 1;
        }
        assert_eq!(rest, MAILBOX_BYTES / each);
        assert!(events.try_recv().is_err(), "nothing follows");
    }
}
