//! Times as traces write them, in nanoseconds since an origin that cancels out.
//!
//! A trace is known relative to its first row, so the origin may be 1970, midnight or the start of
//! the recording; dates before 1970 and after 2261 are refused, which keeps everything in `i64`.

/// What [`parse`] takes.
pub(super) const WANT: &str =
    "seconds, as in 12.5, or a date and time, as in 2023-11-16 18:17:03.9799600";

/// Nanoseconds of `text`: a date and time (Azure), or seconds (BurstGPT, Vidur).
pub(super) fn parse(text: &str) -> Option<i64> {
    if text.contains(':') {
        date_time(text)
    } else {
        scaled(text.parse().ok()?, 1e9)
    }
}

/// `n` units of `nanos_per_unit`; `None` where it is negative, not a number or above 2^62 ns.
pub(super) fn scaled(n: f64, nanos_per_unit: f64) -> Option<i64> {
    const LIMIT: f64 = (1_i64 << 62) as f64;
    let nanos = libm::round(n * nanos_per_unit);
    (n >= 0.0 && nanos < LIMIT).then_some(nanos as i64)
}

/// `YYYY-MM-DD`, a space or `T`, `HH:MM:SS`, a fraction, and `Z` or an offset such as `+00:00`.
fn date_time(text: &str) -> Option<i64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut parts = date.split('-');
    let (year, month, day) = (
        number(parts.next()?, 4)?,
        number(parts.next()?, 2)?,
        number(parts.next()?, 2)?,
    );
    let time = time.trim();
    let (clock, offset) = match time.find(['Z', '+', '-']) {
        Some(i) => (&time[..i], offset_seconds(&time[i..])?),
        None => (time, 0),
    };
    let (clock, fraction) = match clock.split_once('.') {
        Some((clock, digits)) => (clock, fraction_nanos(digits)?),
        None => (clock, 0),
    };
    let mut parts_of_day = clock.split(':');
    let (hour, minute, second) = (
        number(parts_of_day.next()?, 2)?,
        number(parts_of_day.next()?, 2)?,
        number(parts_of_day.next()?, 2)?,
    );
    let in_range = (1970..=2261).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range || parts.next().is_some() || parts_of_day.next().is_some() {
        return None;
    }
    let seconds = ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    (seconds - offset)
        .checked_mul(1_000_000_000)?
        .checked_add(fraction)
        .filter(|&n| n >= 0)
}

/// An unsigned number of one to `digits` digits.
fn number(text: &str, digits: usize) -> Option<i64> {
    let fits = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if fits { text.parse().ok() } else { None }
}

/// `9799600` is 979,960,000 ns; digits beyond the ninth are dropped.
fn fraction_nanos(digits: &str) -> Option<i64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nine = digits.bytes().chain(std::iter::repeat(b'0')).take(9);
    Some(nine.fold(0, |n, b| n * 10 + i64::from(b - b'0')))
}

fn offset_seconds(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let (sign, rest) = match text.strip_prefix('+') {
        Some(rest) => (1, rest),
        None => (-1, text.strip_prefix('-')?),
    };
    let (hours, minutes) = rest.split_once(':').unwrap_or((rest, "00"));
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    (hours <= 14 && minutes < 60).then_some(sign * (hours * 60 + minutes) * 60)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01, of a year from 1970 on: years, then months counted from March, so that a
/// leap day ends its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    // 153 days in each five months from March; 719,468 days lie before 1970.
    year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_times_that_traces_have() {
        let second = 1_000_000_000;
        assert_eq!(parse("1970-01-01 00:00:00"), Some(0));
        assert_eq!(
            parse("2023-11-16 18:17:03.9799600"),
            Some(1_700_158_623 * second + 979_960_000)
        );
        let utc = parse("2024-05-10T02:00:00Z");
        assert_eq!(utc, Some(1_715_306_400 * second));
        assert_eq!(parse("2024-05-10 04:30:00.000000+02:30"), utc);
        assert_eq!(parse("2024-02-29 00:00:00"), Some(1_709_164_800 * second));
        assert_eq!(parse("12.5"), Some(12_500_000_000));
        assert_eq!(parse("0"), Some(0));
    }

    #[test]
    fn refuses_what_is_no_time() {
        for bad in [
            "",
            ":",
            "-1",
            "NaN",
            "inf",
            "1e300",
            "2023-02-29 00:00:00",
            "2023-13-01 00:00:00",
            "2023-11-16 24:00:00",
            "2023-11-16 18:17",
            "2023-11-16 18:17:03.",
            "1969-12-31 00:00:00",
            "2023-11-16 18:17:03+",
            "2023-11-16 18:17:03+99:00",
            "9999-01-01 00:00:00",
            "a-b-c d:e:f",
            "2023-11-16 18:17:03é",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
