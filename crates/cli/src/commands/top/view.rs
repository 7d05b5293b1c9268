//! How a server is drawn: lines of text, and colours where they are wanted. What does not fit is cut off.

use std::collections::VecDeque;

use plimsoll_report::{short_bytes, thousands};
use plimsoll_server::memory::{Memory, Way};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::sample::{Rates, Sample};

/// Seconds that are remembered.
const HISTORY: usize = 240;
/// Width of names at the left.
const NAME: usize = 14;
/// Refusals and preemptions that are shown.
const EVENTS: usize = 4;
/// Lines that the page map has at least, where there is any room.
const MAP: u16 = 3;

/// How it may be drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    pub(super) color: bool,
    pub(super) ascii: bool,
}

impl Paint {
    fn span<'a>(self, text: impl Into<std::borrow::Cow<'a, str>>, color: Color) -> Span<'a> {
        let style = if self.color {
            Style::new().fg(color)
        } else {
            Style::new()
        };
        Span::styled(text, style)
    }

    fn title<'a>(self, text: impl Into<std::borrow::Cow<'a, str>>) -> Span<'a> {
        let style = if self.color {
            Style::new().add_modifier(Modifier::BOLD)
        } else {
            Style::new()
        };
        Span::styled(text, style)
    }
}

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Screen {
    address: String,
    last: Option<Sample>,
    rates: VecDeque<Rates>,
    /// Why nothing new came.
    failed: Option<String>,
    pub(super) paused: bool,
    pub(super) help: bool,
}

/// A state of pages: its name in the map, its cell, and its colour.
const STATES: [(&str, char, char, Color); 6] = [
    ("free", '·', '.', Color::DarkGray),
    ("cached", '░', 'c', Color::Blue),
    ("held", '█', '#', Color::Green),
    ("shared", '▓', 'S', Color::Cyan),
    ("beam", '▒', 'B', Color::Magenta),
    ("in_transit", '~', '~', Color::Yellow),
];

impl Screen {
    pub(super) const fn new(address: String) -> Self {
        Self {
            address,
            last: None,
            rates: VecDeque::new(),
            failed: None,
            paused: false,
            help: false,
        }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        if let Some(before) = &self.last {
            if self.rates.len() == HISTORY {
                self.rates.pop_front();
            }
            self.rates.push_back(sample.since(before));
        }
        self.last = Some(sample);
        self.failed = None;
    }

    pub(super) fn failed(&mut self, why: String) {
        self.failed = Some(why);
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>, paint: Paint) {
        let Some(sample) = &self.last else {
            return;
        };
        let m = &sample.memory;
        let mut top = self.head(m, paint);
        if self.help {
            top.extend(help(paint));
        } else {
            top.extend(regions(m, paint));
        }
        let mut bottom = self.sparks(paint, frame.area().width);
        bottom.extend(events(m, paint));
        let lines = |l: &[Line<'_>]| u16::try_from(l.len()).unwrap_or(u16::MAX);
        let [above, map, below] = Layout::vertical([
            Constraint::Length(lines(&top)),
            Constraint::Min(MAP),
            Constraint::Length(lines(&bottom)),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(top), above);
        frame.render_widget(Paragraph::new(pages(m, map, paint)), map);
        frame.render_widget(Paragraph::new(bottom), below);
    }

    fn head(&self, m: &Memory, paint: Paint) -> Vec<Line<'static>> {
        let mut first = vec![
            paint.title(m.model.clone()),
            Span::raw(format!(" at {}   q quit, p pause, ? help", self.address)),
        ];
        if self.paused {
            first.push(paint.span("   paused", Color::Yellow));
        }
        let state = match (&self.failed, m.step_ms) {
            (Some(why), _) => Some(why.clone()),
            (None, Some(ms)) if ms > 2000 => {
                Some(format!("the step under way has taken {} s", ms / 1000))
            }
            _ => None,
        };
        if let Some(state) = state {
            first.push(paint.span(format!("   {state}"), Color::Red));
        }
        let r = &m.requests;
        let rates = self.rates.back().copied().unwrap_or_default();
        let c = &m.counters;
        let second = format!(
            "{} run, {} wait, {} gave way   {:.0} tokens/s, prompts {:.0}   preemptions: {} swapped, {} recomputed",
            r.running,
            r.waiting,
            r.preempted,
            rates.generated_per_s,
            rates.prompt_per_s,
            thousands(c.swaps),
            thousands(c.recomputes),
        );
        vec![Line::from(first), Line::from(second), Line::default()]
    }

    fn sparks(&self, paint: Paint, width: u16) -> Vec<Line<'static>> {
        let row = |name: &str, color, of: fn(&Rates) -> Option<f64>, value: fn(f64) -> String| {
            let all: Vec<Option<f64>> = self.rates.iter().map(of).collect();
            let last = all.iter().rev().find_map(|v| *v);
            let told = last.map_or_else(|| "-".to_owned(), value);
            let room = usize::from(width).saturating_sub(NAME + 12);
            Line::from(vec![
                Span::raw(format!("{name:<NAME$}{told:>10}  ")),
                paint.span(spark(&all, room, paint.ascii), color),
            ])
        };
        let time = |s: f64| {
            if s < 1.0 {
                format!("{:.1} ms", s * 1e3)
            } else {
                format!("{s:.2} s")
            }
        };
        vec![
            Line::default(),
            row(
                "tokens/s",
                Color::Green,
                |r| Some(r.generated_per_s),
                |v| format!("{v:.0}"),
            ),
            row("first token", Color::Yellow, |r| r.first_token_s, time),
            row("next token", Color::Cyan, |r| r.between_tokens_s, time),
        ]
    }
}

fn help(paint: Paint) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'_>> = [
        "q, Esc or Ctrl-C ends; p holds the picture; ? closes this.",
        "Bars are what a region used at most, of what was planned for it.",
        "Every cell of the map is one page, or the commonest of several neighbours:",
    ]
    .map(Line::from)
    .to_vec();
    lines.push(legend(paint));
    lines.push(Line::from(
        "Times to first and next token are means of the last second.",
    ));
    lines
}

fn legend(paint: Paint) -> Line<'static> {
    let mut spans = Vec::new();
    for (name, cell, ascii, color) in STATES {
        let cell = if paint.ascii { ascii } else { cell };
        spans.push(paint.span(cell.to_string(), color));
        spans.push(Span::raw(format!(" {}  ", name.replace('_', " "))));
    }
    Line::from(spans)
}

/// A bar of `width` cells, of which so many of `most` are full.
fn bar(value: u64, most: u64, width: usize, ascii: bool) -> String {
    let full = u128::from(value) * width as u128 / u128::from(most.max(1));
    let full = usize::try_from(full).unwrap_or(width).min(width);
    let (on, off) = if ascii { ("#", ".") } else { ("█", "░") };
    on.repeat(full) + &off.repeat(width - full)
}

fn regions(m: &Memory, paint: Paint) -> Vec<Line<'static>> {
    let region = |r: &plimsoll_server::memory::Region| {
        let used = r.high_water_bytes.unwrap_or(0);
        let over = used > r.planned_bytes;
        let color = if over { Color::Red } else { Color::Green };
        let name = r.region.replace('_', " ");
        Line::from(vec![
            Span::raw(format!("{name:<NAME$}")),
            paint.span(bar(used, r.planned_bytes, 30, paint.ascii), color),
            Span::raw(format!(
                "  {:>10} of {} planned",
                r.high_water_bytes
                    .map_or_else(|| "-".to_owned(), short_bytes),
                short_bytes(r.planned_bytes),
            )),
        ])
    };
    let mut lines: Vec<_> = m.regions.iter().map(region).collect();
    let w = &m.waste;
    lines.push(Line::from(format!(
        "held pages    {} of tokens, {} for the step, {} empty; swap {} of {} pages",
        short_bytes(w.token_states_bytes),
        short_bytes(w.reserved_bytes),
        short_bytes(w.internal_bytes),
        thousands(m.swap.used_pages),
        thousands(m.swap.total_pages),
    )));
    lines.push(Line::default());
    lines
}

/// The page map, in as many cells as there is room for.
fn pages(m: &Memory, area: Rect, paint: Paint) -> Vec<Line<'static>> {
    let p = &m.kv_pages;
    let mut lines = vec![
        Line::from(format!(
            "{} pages of {}: {} held ({} shared, {} of beams), {} cached, {} free, {} in transit",
            thousands(p.total),
            short_bytes(p.page_bytes),
            thousands(p.held),
            thousands(p.shared),
            thousands(p.beam),
            thousands(p.cached),
            thousands(p.free),
            thousands(p.in_transit),
        )),
        legend(paint),
    ];
    let width = usize::from(area.width);
    let rows = usize::from(area.height).saturating_sub(lines.len());
    let cells = cells(m, width.saturating_mul(rows));
    for row in cells.chunks(width.max(1)) {
        let spans = row.chunk_by(|a, b| a == b).map(|same| {
            let (_, cell, ascii, color) = STATES[same[0]];
            let cell = if paint.ascii { ascii } else { cell };
            paint.span(cell.to_string().repeat(same.len()), color)
        });
        lines.push(Line::from(spans.collect::<Vec<_>>()));
    }
    lines
}

/// The commonest state of each cell's pages, as places in [`STATES`]; at most `most` cells.
fn cells(m: &Memory, most: usize) -> Vec<usize> {
    let place = |state: i64| {
        let name = usize::try_from(state).ok();
        let name = name.and_then(|s| m.page_map.states.get(s));
        name.and_then(|n| STATES.iter().position(|s| s.0 == n))
            .unwrap_or(0)
    };
    let runs = m.page_map.runs.chunks_exact(3);
    let runs = runs.map(|r| (place(r[0]), u64::try_from(r[2]).unwrap_or(0)));
    let runs: Vec<(usize, u64)> = runs.collect();
    let total = runs.iter().fold(0_u64, |sum, r| sum.saturating_add(r.1));
    if most == 0 || total == 0 {
        return Vec::new();
    }
    let each = total.div_ceil(most as u64);
    let mut cells = Vec::new();
    let (mut counts, mut filled) = ([0_u64; STATES.len()], 0);
    let mut close = |counts: &mut [u64; STATES.len()]| {
        // Of equally many, whoever is held is shown.
        let best = (0..counts.len()).max_by_key(|s| (counts[*s], *s));
        cells.push(best.unwrap_or(0));
        *counts = [0; STATES.len()];
    };
    for (state, mut length) in runs {
        while length > 0 {
            let part = length.min(each - filled);
            counts[state] += part;
            filled += part;
            length -= part;
            if filled == each {
                close(&mut counts);
                filled = 0;
            }
        }
    }
    if filled > 0 {
        close(&mut counts);
    }
    cells
}

/// The last values as one row of bars; nothing where there was none.
fn spark(all: &[Option<f64>], room: usize, ascii: bool) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const ASCII: [char; 8] = ['_', '.', ',', '-', '~', '=', '+', '#'];
    let shown = &all[all.len().saturating_sub(room)..];
    let most = shown.iter().flatten().fold(0.0_f64, |a, b| a.max(*b));
    let bar = |v: &Option<f64>| match v {
        None => ' ',
        Some(v) => {
            let part = if most > 0.0 { v / most } else { 0.0 };
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and 7"
            )]
            let at = (part * 7.0).round() as usize;
            (if ascii { ASCII } else { BARS })[at.min(7)]
        }
    };
    shown.iter().map(bar).collect()
}

/// The last refusals and preemptions, newest first.
fn events(m: &Memory, paint: Paint) -> Vec<Line<'static>> {
    let ago = |at_ms: u64| {
        let s = m.at_ms.saturating_sub(at_ms) / 1000;
        format!("{:>5} s ago  ", thousands(s))
    };
    let refused = m.refusals.iter().map(|r| {
        let text = format!(
            "{}refused {} ({}): {}",
            ago(r.at_ms),
            r.tenant,
            r.code,
            r.reason
        );
        (r.at_ms, paint.span(text, Color::Red))
    });
    let gave_way = m.preemptions.iter().map(|p| {
        let how = match p.kind {
            Way::Swap => format!("{} pages swapped", p.swapped_pages),
            Way::Recompute => format!("{} tokens forgotten", p.forgotten_tokens),
        };
        let text = format!(
            "{}{} gave way: {how}; {} pages were needed and {} there",
            ago(p.at_ms),
            p.tenant,
            p.pages_needed,
            p.pages_available
        );
        (p.at_ms, paint.span(text, Color::Yellow))
    });
    let mut all: Vec<_> = refused.chain(gave_way).collect();
    all.sort_by_key(|e| std::cmp::Reverse(e.0));
    let mut lines = vec![Line::default()];
    lines.extend(all.into_iter().take(EVENTS).map(|e| Line::from(e.1)));
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::commands::top::sample::tests::later;
    use crate::commands::top::text;

    fn screen() -> Screen {
        let mut screen = Screen::new("http://127.0.0.1:8000".to_owned());
        for s in 0..8 {
            screen.add(later(s, s * s * 10));
        }
        screen
    }

    fn drawn(screen: &Screen, (width, height): (u16, u16), paint: Paint) -> TestBackend {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame, paint)).unwrap();
        terminal.backend().clone()
    }

    const PLAIN: Paint = Paint {
        color: false,
        ascii: false,
    };

    #[test]
    fn a_frame_shows_everything() {
        let got = text(drawn(&screen(), (100, 26), PLAIN).buffer());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/top/frame.txt");
        if std::env::var_os("UPDATE_FRAMES").is_some() {
            std::fs::write(path, format!("{got}\n")).unwrap();
        }
        let want = std::fs::read_to_string(path).unwrap();
        assert_eq!(got, want.trim_end(), "UPDATE_FRAMES=1 writes it anew");
    }

    #[test]
    fn without_colour_nothing_has_a_style() {
        let color = Paint {
            color: true,
            ..PLAIN
        };
        let styled = |paint| {
            let backend = drawn(&screen(), (100, 30), paint);
            let cells = backend.buffer().content.iter();
            cells
                .filter(|c| c.fg != Color::Reset || !c.modifier.is_empty())
                .count()
        };
        assert_eq!(styled(PLAIN), 0);
        assert!(styled(color) > 100);
        let ascii = Paint {
            ascii: true,
            ..PLAIN
        };
        let text = text(drawn(&screen(), (100, 30), ascii).buffer());
        assert!(text.is_ascii(), "{text}");
    }

    #[test]
    fn no_terminal_is_too_small() {
        let mut all = [screen(), screen(), screen()];
        all[1].help = true;
        all[2].failed("the server cannot be reached".to_owned());
        for screen in &all {
            for width in [1, 2, 7, 20, 79, 300] {
                for height in [1, 2, 5, 11, 24, 90] {
                    drawn(screen, (width, height), PLAIN);
                }
            }
        }
    }

    #[test]
    fn cells_are_the_commonest_of_their_pages() {
        let mut m = later(0, 0).memory;
        let of = |m: &Memory, most| cells(m, most);
        // 4 shared, 5 held, 5 held, 5 cached, 1 in transit, 20 free.
        assert_eq!(of(&m, 40).len(), 40);
        assert_eq!(of(&m, 40)[3..6], [3, 2, 2]);
        assert_eq!(of(&m, 8), [3, 2, 2, 1, 0, 0, 0, 0]);
        assert_eq!(of(&m, 1), [0]);
        assert!(of(&m, 0).is_empty());
        // What another version knows is drawn as nothing, and nonsense ends nothing.
        m.page_map.runs = vec![9, 0, 3, -1, 0, -4, 2, 0];
        assert_eq!(of(&m, 10), [0, 0, 0]);
    }

    #[test]
    fn a_server_that_writes_to_terminals_is_not_obeyed() {
        let mut s = screen();
        let mut sample = later(9, 900);
        sample.memory.model = "\u{1b}[2Jx".to_owned();
        s.add(sample);
        let text = text(drawn(&s, (100, 30), PLAIN).buffer());
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
