//! How a simulation's figures and names are written.

use super::wire::{Classes, Run, SloBounds};
use crate::numbers::{plain, thousands};

/// A class of the KV pool: key of its colour, its name, its letter in plain bars, its ANSI colour, and
/// where its share is.
pub(super) struct Class {
    pub(super) key: &'static str,
    pub(super) name: &'static str,
    pub(super) letter: char,
    pub(super) ansi: u8,
    pub(super) share: fn(&Classes) -> f64,
}

/// The classes in the order in which bars and areas stack them.
pub(super) const CLASSES: [Class; 6] = [
    Class {
        key: "token",
        name: "token states",
        letter: 'T',
        ansi: 34,
        share: |c| c.token_states,
    },
    Class {
        key: "reserved",
        name: "reserved",
        letter: 'r',
        ansi: 33,
        share: |c| c.reserved,
    },
    Class {
        key: "internal",
        name: "internal",
        letter: 'i',
        ansi: 31,
        share: |c| c.internal,
    },
    Class {
        key: "external",
        name: "external",
        letter: 'e',
        ansi: 35,
        share: |c| c.external,
    },
    Class {
        key: "cached",
        name: "cached",
        letter: 'c',
        ansi: 32,
        share: |c| c.cached,
    },
    Class {
        key: "free",
        name: "free",
        letter: '.',
        ansi: 90,
        share: |c| c.free,
    },
];

/// The classes that speak of a run: while requests waited, or else while it was busy; and which.
pub(super) fn telling(run: &Run) -> (&Classes, &'static str) {
    run.kv
        .saturated
        .as_ref()
        .map_or((&run.kv.busy, "while busy"), |c| (c, "at saturation"))
}

/// `x` to three significant digits, no more than needed.
pub(super) fn short(x: f64) -> String {
    let x = if x.is_finite() { x } else { 0.0 };
    let size = x.abs();
    let text = if size >= 100.0 || size == 0.0 {
        return format!("{x:.0}");
    } else if size >= 10.0 {
        format!("{x:.1}")
    } else if size >= 1.0 {
        format!("{x:.2}")
    } else {
        format!("{x:.3}")
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A rate or a mean: `12,345`, `98.7`, `1.23`.
pub(crate) fn figure(x: f64) -> String {
    if x.is_finite() && x >= 1000.0 {
        thousands(x.round() as u64)
    } else {
        short(x)
    }
}

/// `12k`, `3.4M`: for axes.
pub(super) fn compact(x: f64) -> String {
    for (unit, size) in [("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if x >= size {
            return format!("{}{unit}", short(x / size));
        }
    }
    short(x)
}

/// A duration in seconds, in its own unit.
pub(crate) fn seconds(s: f64) -> String {
    let (x, unit) = match s {
        s if s >= 7200.0 => (s / 3600.0, "h"),
        s if s >= 600.0 => (s / 60.0, "min"),
        s if s >= 0.9995 => (s, "s"),
        s if s >= 0.000_999_5 => (s * 1e3, "ms"),
        s if s > 0.0 => (s * 1e6, "µs"),
        _ => (0.0, "s"),
    };
    format!("{} {unit}", short(x))
}

/// Durations with slashes between them, the unit once where it is the same: `21 / 80 ms`.
pub(super) fn joined(durations: &[f64]) -> String {
    let all: Vec<String> = durations.iter().map(|d| seconds(*d)).collect();
    let unit = |t: &String| t.split(' ').nth(1).map(str::to_owned);
    let last = all.last().and_then(unit);
    if all.iter().any(|t| unit(t) != last) {
        return all.join(" / ");
    }
    let figures: Vec<&str> = all.iter().filter_map(|t| t.split(' ').next()).collect();
    format!("{} {}", figures.join(" / "), last.unwrap_or_default())
}

/// A service level as a sentence without its stop.
pub(crate) fn slo_words(slo: &SloBounds) -> String {
    let ttft = slo
        .ttft_s
        .map(|s| format!("the first token within {}", seconds(s)));
    let later = slo
        .per_token_s
        .map(|s| format!("later tokens within {} each", seconds(s)));
    let bounds: Vec<String> = ttft.into_iter().chain(later).collect();
    format!(
        "{}, for {} % of the requests",
        bounds.join(", "),
        short(slo.attain * 100.0)
    )
}

/// A share of 1 as a percentage.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// At most `n` characters of `text`, the last an ellipsis where some are missing.
pub(super) fn clip(text: &str, n: usize) -> String {
    let text = plain(text);
    if text.chars().count() <= n {
        return text;
    }
    let mut out: String = text.chars().take(n.saturating_sub(1)).collect();
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(short(0.0), "0");
        assert_eq!(short(1234.6), "1235");
        assert_eq!(short(12.0), "12");
        assert_eq!(short(1.5), "1.5");
        assert_eq!(short(f64::NAN), "0");
        assert_eq!(figure(15_728.2), "15,728");
        assert_eq!(compact(2_500_000.0), "2.5M");
        assert_eq!(compact(15_000.0), "15k");
    }

    #[test]
    fn durations_have_their_unit() {
        assert_eq!(seconds(0.0), "0 s");
        assert_eq!(seconds(0.000_25), "250 µs");
        assert_eq!(seconds(0.0312), "31.2 ms");
        assert_eq!(seconds(0.9999), "1 s");
        assert_eq!(seconds(86.0), "86 s");
        assert_eq!(seconds(3600.0), "60 min");
        assert_eq!(seconds(7200.0), "2 h");
        assert_eq!(joined(&[0.021, 0.08]), "21 / 80 ms");
        assert_eq!(joined(&[0.021, 8.0]), "21 ms / 8 s");
    }

    #[test]
    fn control_characters_go() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb c");
        assert_eq!(clip("orca-oracle-long", 6), "orca-…");
    }
}
