//! Scales of axes: where a value lies, and round ticks.

use super::text::{clip, compact, seconds, short};

/// Width of a character of a tick's label, generously.
const CHARACTER: f64 = 6.0;

/// The least of 1, 2 and 5 times a power of ten that is not below `x`.
fn round_up(x: f64) -> f64 {
    if !(x.is_finite() && x > 0.0) {
        return 1.0;
    }
    let power = 10_f64.powf(x.log10().floor());
    let digit = x / power;
    let nice = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|n| digit <= n + 1e-9)
        .unwrap_or(10.0);
    nice * power
}

/// A scale from value to pixel, and its ticks.
pub(super) struct Scale {
    from: f64,
    to: f64,
    pixels: [f64; 2],
    log: bool,
    /// Values that get a tick, and what it says.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Scale {
    /// From 0 to `max` or the next tick above it, in about `target` ticks, each written by `label`.
    fn linear(max: f64, target: f64, pixels: [f64; 2], label: impl Fn(f64) -> String) -> Self {
        let max = if max.is_finite() && max > 0.0 {
            max
        } else {
            1.0
        };
        let step = round_up(max / target);
        let n = (max / step - 1e-9).ceil().max(1.0) as u32;
        Self {
            from: 0.0,
            to: f64::from(n) * step,
            pixels,
            log: false,
            ticks: (0..=n)
                .map(|i| f64::from(i) * step)
                .map(|v| (v, label(v)))
                .collect(),
        }
    }

    /// Counts from 0 to at least `max`; whole ones where there are few.
    pub(super) fn counts(max: f64, pixels: [f64; 2]) -> Self {
        Self::linear(max.max(4.0), 4.0, pixels, compact)
    }

    /// Counts from 0 to `max` exactly, for what is a part of `max`.
    pub(super) fn whole(max: f64, pixels: [f64; 2]) -> Self {
        let mut s = Self::counts(max, pixels);
        if max.is_finite() && max > 0.0 {
            s.to = max;
            s.ticks.retain(|(v, _)| *v <= max);
        }
        s
    }

    /// Shares from 0 to 100 %.
    pub(super) fn shares(max: f64, pixels: [f64; 2]) -> Self {
        Self::linear(max.min(1.0), 4.0, pixels, |v| {
            format!("{} %", short(v * 100.0))
        })
    }

    /// Seconds from 0 to `max` exactly, with the unit that the ticks are in.
    pub(super) fn time(max: f64, pixels: [f64; 2]) -> (Self, &'static str) {
        let (unit, size) = match max {
            m if m > 4.0 * 3600.0 => ("h", 3600.0),
            m if m > 300.0 => ("min", 60.0),
            m if m > 1.0 => ("s", 1.0),
            _ => ("ms", 1e-3),
        };
        let mut s = Self::linear(max / size, 6.0, pixels, compact);
        s.ticks.iter_mut().for_each(|(v, _)| *v *= size);
        s.to = if max > 0.0 { max } else { size };
        let end = s.to * (1.0 + 1e-9);
        s.ticks.retain(|(v, _)| *v <= end);
        (s, unit)
    }

    /// Durations in seconds from `min` to `max` on a logarithmic axis; both must not be negative.
    pub(super) fn durations(min: f64, max: f64, pixels: [f64; 2]) -> Self {
        let max = if max.is_finite() && max > 0.0 {
            max
        } else {
            1.0
        };
        let min = if min > 0.0 { min.min(max) } else { max / 1e3 };
        let (from, to) = (min / 1.25, max * 1.25);
        let decades = (to / from).log10();
        let digits: &[f64] = match decades {
            d if d < 0.6 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
            d if d < 1.5 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        // At most about five labels.
        let every = if digits.len() == 1 {
            (decades / 5.0).ceil().max(1.0) as i32
        } else {
            1
        };
        let (low, high) = (from.log10().floor() as i32, to.log10().ceil() as i32);
        let ticks = (low..=high)
            .filter(|e| e.rem_euclid(every) == 0)
            .flat_map(|e| digits.iter().map(move |d| d * 10_f64.powi(e)))
            .filter(|v| (from..=to).contains(v))
            .map(|v| (v, seconds(v)))
            .collect();
        Self {
            from,
            to,
            pixels,
            log: true,
            ticks,
        }
    }

    /// Given values, each with a tick as far as its label has room; logarithmic where they span more than a
    /// decade and none is 0 or below.
    pub(super) fn places(values: &[f64], labels: &[String], pixels: [f64; 2]) -> Self {
        let finite = || values.iter().copied().filter(|v| v.is_finite());
        let from = finite().fold(f64::INFINITY, f64::min);
        let to = finite().fold(f64::NEG_INFINITY, f64::max);
        let mut s = Self {
            from,
            to,
            pixels,
            log: from > 0.0 && to / from > 10.0,
            ticks: Vec::new(),
        };
        if from >= to {
            // One value, or none: in the middle.
            (s.from, s.to) = (from - 1.0, from + 1.0);
        }
        let mut all: Vec<(f64, &String)> = values.iter().copied().zip(labels).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut free_from = f64::NEG_INFINITY;
        for (v, label) in all {
            let label = clip(label, 14);
            let half = label.chars().count() as f64 * CHARACTER / 2.0;
            let x = s.at(v);
            if x - half >= free_from {
                free_from = x + half + CHARACTER;
                s.ticks.push((v, label));
            }
        }
        s
    }

    /// The pixel of `value`, inside the axis.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.from) / self.from).log10() / (self.to / self.from).log10()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        let share = if share.is_finite() { share } else { 0.0 };
        self.pixels[0] + share.clamp(0.0, 1.0) * (self.pixels[1] - self.pixels[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(s: &Scale) -> Vec<&str> {
        s.ticks.iter().map(|(_, l)| l.as_str()).collect()
    }

    #[test]
    fn ticks_are_round() {
        let s = Scale::counts(15_728.0, [0.0, 100.0]);
        assert_eq!(labels(&s), ["0", "5k", "10k", "15k", "20k"]);
        let s = Scale::counts(0.0, [0.0, 100.0]);
        assert_eq!(labels(&s), ["0", "1", "2", "3", "4"]);
        let (s, unit) = Scale::time(3600.0, [0.0, 100.0]);
        assert_eq!(
            (labels(&s).join(" "), unit),
            ("0 10 20 30 40 50 60".to_owned(), "min")
        );
        let texts = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let s = Scale::places(&[4.0, 1.0], &texts(&["four", "one"]), [0.0, 100.0]);
        assert_eq!(labels(&s), ["one", "four"]);
        assert_eq!((s.at(1.0), s.at(4.0), s.at(2.5)), (0.0, 100.0, 50.0));
        // A hundred-fold range is logarithmic, and a label without room is left out.
        let s = Scale::places(
            &[1.0, 10.0, 100.0, 101.0],
            &texts(&["1", "10", "100", "101"]),
            [0.0, 100.0],
        );
        assert_eq!(labels(&s), ["1", "10", "100"]);
        assert!((s.at(10.0) - 50.0).abs() < 0.2);
        let s = Scale::durations(0.02, 40.0, [0.0, 100.0]);
        assert_eq!(labels(&s), ["100 ms", "1 s", "10 s"]);
        let s = Scale::durations(0.018, 0.021, [0.0, 100.0]);
        assert_eq!(labels(&s), ["15 ms", "20 ms"]);
        let s = Scale::durations(0.02, 0.1, [0.0, 100.0]);
        assert_eq!(labels(&s), ["20 ms", "50 ms", "100 ms"]);
    }

    #[test]
    fn nothing_leaves_the_axis() {
        for s in [
            Scale::counts(f64::NAN, [0.0, 100.0]),
            Scale::durations(0.0, 0.0, [0.0, 100.0]),
            Scale::durations(3.0, 3.0, [0.0, 100.0]),
            Scale::time(0.0, [0.0, 100.0]).0,
            Scale::places(&[], &[], [0.0, 100.0]),
            Scale::places(&[2.0], &["2".to_owned()], [0.0, 100.0]),
            Scale::places(
                &[f64::NAN, -1.0],
                &["a".to_owned(), "b".to_owned()],
                [0.0, 100.0],
            ),
        ] {
            for v in [-1.0, 0.0, 1e-9, 3.0, 1e30, f64::NAN, f64::INFINITY] {
                assert!((0.0..=100.0).contains(&s.at(v)));
            }
            assert!(s.ticks.len() < 12);
        }
    }
}
