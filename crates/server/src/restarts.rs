//! [`Restarts`]: whether an engine that made a mistake begins anew, as a supervisor decides it.
//!
//! What counts is how often it happened lately: a server that begins anew once a month lives on, one that does nothing
//! else ends, for whoever supervises the process.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often the engine begins anew within a window.
const MOST: usize = 3;
/// A wait before it does, and by how much the next within the window is longer.
const BACK_OFF: Duration = Duration::from_millis(250);
const BACK_OFF_TIMES: u32 = 2;

/// When the engine began anew, as far back as it matters.
#[derive(Debug)]
pub(crate) struct Restarts {
    window: Duration,
    recent: VecDeque<Instant>,
    /// How often in all.
    pub(crate) total: u32,
}

impl Restarts {
    pub(crate) fn new(window: Duration) -> Self {
        Self {
            window,
            recent: VecDeque::with_capacity(MOST),
            total: 0,
        }
    }

    /// One more, asked for at `now`: how long to wait before it, or `None` where it was one too many.
    pub(crate) fn another(&mut self, now: Instant) -> Option<Duration> {
        let window = self.window;
        self.recent
            .retain(|at| now.saturating_duration_since(*at) < window);
        if self.recent.len() >= MOST {
            return None;
        }
        let wait = self
            .recent
            .iter()
            .fold(BACK_OFF, |wait, _| wait * BACK_OFF_TIMES);
        self.recent.push_back(now);
        self.total = self.total.saturating_add(1);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    #[test]
    fn three_in_a_window_and_no_fourth() {
        let mut all = Restarts::new(WINDOW);
        let began = Instant::now();
        let at = |s: u64| began + Duration::from_secs(s);
        let waits: Vec<_> = [0, 1, 599].map(|s| all.another(at(s))).into();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(waits, [ms(250), ms(500), ms(1000)]);
        assert_eq!((all.another(at(599)), all.total), (None, 3));
    }

    #[test]
    fn whoever_begins_anew_once_in_a_while_does_so_for_ever() {
        let mut all = Restarts::new(WINDOW);
        let began = Instant::now();
        for n in 0..1000 {
            // Three in each window, as close to a fourth as there may be.
            let at = began + WINDOW * (n / 3) + Duration::from_secs(u64::from(n % 3));
            assert!(all.another(at).is_some(), "{n}");
            assert!(all.recent.len() <= MOST);
        }
        assert_eq!(all.total, 1000);
    }
}
