//! [`highest`]: the highest rate at which something holds, from yes and no alone.

/// Between which rates the answer lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bracket {
    /// The highest rate at which it was seen to hold; `None` where it never did.
    pub holds: Option<f64>,
    /// The lowest rate above that at which it was seen to fail; `None` where it never did.
    pub fails: Option<f64>,
}

/// Asks `holds` at rates in powers of `1 + precision` from `start` on: doubling or halving until it holds at one
/// and fails at another, then halving the powers between, until they are neighbours. At most `probes_max`
/// questions; where they do not suffice, the bracket is wider.
///
/// Rates are rounded to four digits, so that a rate as printed is the rate that was asked about; a precision
/// below 0.001 is taken as 0.001. Where the answers are not monotone, what was seen is still true: it holds at
/// one end and fails at the other.
///
/// # Errors
/// The first one of `holds`.
pub fn highest<E>(
    start: f64,
    precision: f64,
    probes_max: u32,
    mut holds: impl FnMut(f64) -> Result<bool, E>,
) -> Result<Bracket, E> {
    let step = 1.0 + precision.max(0.001);
    // Steps that double a rate; at most 694.
    let double = (2.0_f64.ln() / step.ln()).ceil() as i32;
    let rate = |power: i32| four_digits(start * step.powi(power));
    let (mut low, mut high): (Option<i32>, Option<i32>) = (None, None);
    let mut power = 0;
    for _ in 0..probes_max {
        if holds(rate(power))? {
            low = Some(power);
        } else {
            high = Some(power);
        }
        power = match (low, high) {
            (Some(l), Some(h)) if h - l <= 1 => break,
            (Some(l), Some(h)) => l + (h - l) / 2,
            (Some(l), None) => l + double,
            (None, Some(h)) => h - double,
            // One of them was set above.
            (None, None) => break,
        };
    }
    Ok(Bracket {
        holds: low.map(rate),
        fails: high.map(rate),
    })
}

fn four_digits(x: f64) -> f64 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// The bracket of a threshold, and how many questions it took.
    fn search(threshold: f64, start: f64, precision: f64) -> (Bracket, u32) {
        let mut probes = 0;
        let bracket = highest(start, precision, 64, |rate| {
            probes += 1;
            Ok::<bool, Infallible>(rate <= threshold)
        });
        (bracket.unwrap(), probes)
    }

    #[test]
    fn a_threshold_lies_between_neighbours() {
        for threshold in [0.001_234, 0.5, 1.0, 3.3, 17.0, 999.9, 123_456.0] {
            for start in [0.01, 1.0, 40.0] {
                for precision in [0.5, 0.05, 0.01] {
                    let (b, probes) = search(threshold, start, precision);
                    let (holds, fails) = (b.holds.unwrap(), b.fails.unwrap());
                    assert!(
                        holds <= threshold && threshold < fails,
                        "{threshold}: {b:?}"
                    );
                    assert!(fails / holds <= 1.0 + precision + 0.001, "{b:?}");
                    assert!(probes <= 34, "{threshold} {start} {precision}: {probes}");
                    assert_eq!(holds, four_digits(holds));
                }
            }
        }
    }

    #[test]
    fn what_never_holds_or_never_fails_says_so() {
        let always = |answer: bool| {
            let mut rates = Vec::new();
            let bracket = highest(1.0, 0.01, 5, |rate| {
                rates.push(rate);
                Ok::<bool, Infallible>(answer)
            });
            (bracket.unwrap(), rates)
        };
        let (b, rates) = always(true);
        assert_eq!((b.holds, b.fails), (rates.last().copied(), None));
        assert!(rates.windows(2).all(|w| w[1] / w[0] > 1.99));
        let (b, rates) = always(false);
        assert_eq!((b.holds, b.fails), (None, rates.last().copied()));
        assert_eq!(rates.len(), 5);
    }

    #[test]
    fn ends_are_true_where_answers_are_not_monotone() {
        let holds = |rate: f64| rate < 3.0 || (5.0..6.0).contains(&rate);
        for start in [0.1, 1.0, 5.5, 20.0] {
            let b = highest(start, 0.02, 64, |r| Ok::<bool, Infallible>(holds(r))).unwrap();
            assert!(holds(b.holds.unwrap()) && !holds(b.fails.unwrap()), "{b:?}");
        }
    }

    #[test]
    fn an_error_ends_it() {
        let mut probes = 0;
        let result = highest(1.0, 0.01, 64, |_| {
            probes += 1;
            if probes == 3 { Err("no") } else { Ok(true) }
        });
        assert_eq!((result, probes), (Err("no"), 3));
    }
}
