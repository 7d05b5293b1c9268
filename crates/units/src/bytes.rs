//! [`Bytes`]: a size in bytes, with checked arithmetic, parsing and printing.

use std::fmt;
use std::str::FromStr;

/// A size in bytes.
///
/// There is deliberately no `+` or `*`: sizes come from files and flags, so each sum and product
/// states that it may not fit by returning [`SizeOverflow`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

/// A size exceeded 2^64 − 1 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a size exceeds 2^64 - 1 bytes")]
pub struct SizeOverflow;

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseBytesError {
    /// The text does not start with a number.
    #[error("`{0}` is not a size: write a number and a unit, such as 24GiB, 80GB or 1073741824")]
    NotANumber(String),
    /// The unit is unknown.
    #[error(
        "`{unit}` in `{text}` is not a unit of size: use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB"
    )]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The part after the number.
        unit: String,
    },
    /// The value is negative, not finite, or above 2^64 − 1 bytes.
    #[error("`{0}` is out of range for a size in bytes")]
    OutOfRange(String),
}

const KIB: f64 = 1024.0;
const MIB: f64 = KIB * 1024.0;
const GIB: f64 = MIB * 1024.0;

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);
    /// The largest representable size.
    pub const MAX: Self = Self(u64::MAX);

    /// A size of `n` bytes.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// A size of `n` MiB.
    ///
    /// # Errors
    /// [`SizeOverflow`] past 2^64 − 1 bytes.
    pub const fn from_mib(n: u64) -> Result<Self, SizeOverflow> {
        match n.checked_mul(1 << 20) {
            Some(v) => Ok(Self(v)),
            None => Err(SizeOverflow),
        }
    }

    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The product of all `factors`, in bytes.
    ///
    /// # Errors
    /// [`SizeOverflow`] past 2^64 − 1.
    pub fn product(factors: impl IntoIterator<Item = u64>) -> Result<Self, SizeOverflow> {
        let mut acc = 1_u64;
        for f in factors {
            acc = acc.checked_mul(f).ok_or(SizeOverflow)?;
        }
        Ok(Self(acc))
    }

    /// The sum of `parts`.
    ///
    /// # Errors
    /// [`SizeOverflow`] past 2^64 − 1.
    pub fn sum(parts: impl IntoIterator<Item = Self>) -> Result<Self, SizeOverflow> {
        parts.into_iter().try_fold(Self::ZERO, Self::add)
    }

    /// `self + other`.
    ///
    /// # Errors
    /// [`SizeOverflow`] past 2^64 − 1.
    #[allow(
        clippy::should_implement_trait,
        reason = "it returns a Result, unlike std::ops::Add"
    )]
    pub fn add(self, other: Self) -> Result<Self, SizeOverflow> {
        self.0.checked_add(other.0).map(Self).ok_or(SizeOverflow)
    }

    /// `self × n`.
    ///
    /// # Errors
    /// [`SizeOverflow`] past 2^64 − 1.
    pub fn times(self, n: u64) -> Result<Self, SizeOverflow> {
        self.0.checked_mul(n).map(Self).ok_or(SizeOverflow)
    }

    /// What is left of `self` after taking `other`, or zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// What is left of `self` after taking `other`; `None` where `other` is larger.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// How many whole `unit`s fit; 0 where `unit` is zero.
    #[must_use]
    pub const fn whole(self, unit: Self) -> u64 {
        match self.0.checked_div(unit.0) {
            Some(n) => n,
            None => 0,
        }
    }

    /// Rounded up to a multiple of `unit`.
    ///
    /// # Errors
    /// [`SizeOverflow`] past 2^64 − 1, or where `unit` is zero.
    pub fn round_up(self, unit: Self) -> Result<Self, SizeOverflow> {
        if unit.0 == 0 {
            return Err(SizeOverflow);
        }
        self.0
            .div_ceil(unit.0)
            .checked_mul(unit.0)
            .map(Self)
            .ok_or(SizeOverflow)
    }

    /// The size in GiB (2^30 bytes).
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        reason = "for printing and calibrated terms only"
    )]
    pub fn gib(self) -> f64 {
        self.0 as f64 / GIB
    }

    /// The size in MiB (2^20 bytes).
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "for printing only")]
    pub fn mib(self) -> f64 {
        self.0 as f64 / MIB
    }

    /// The size in GB (10^9 bytes).
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "for printing only")]
    pub fn gb(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// A real number of bytes, rounded to the nearest; negative counts as zero.
    ///
    /// # Errors
    /// [`SizeOverflow`] where `n` is not finite or too large.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the range is checked on the line before"
    )]
    pub fn from_f64(n: f64) -> Result<Self, SizeOverflow> {
        if !n.is_finite() || n >= u64::MAX as f64 {
            return Err(SizeOverflow);
        }
        Ok(Self(n.max(0.0).round() as u64))
    }

    /// `gib` GiB, rounded to the nearest byte.
    ///
    /// # Errors
    /// As [`Bytes::from_f64`].
    pub fn from_gib(gib: f64) -> Result<Self, SizeOverflow> {
        Self::from_f64(gib * GIB)
    }
}

impl fmt::Display for Bytes {
    /// `1.50 GiB`, `300.0 MiB`, `12.0 KiB` or `17 B`: the largest binary unit with a value ≥ 1.
    /// A plain size from 1,000 GiB on stays in GiB, as every engine prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss, reason = "for printing only")]
        let n = self.0 as f64;
        let text = if n >= GIB {
            format!("{:.2} GiB", n / GIB)
        } else if n >= MIB {
            format!("{:.1} MiB", n / MIB)
        } else if n >= KIB {
            format!("{:.1} KiB", n / KIB)
        } else {
            format!("{} B", self.0)
        };
        f.pad(&text)
    }
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// Reads `24GiB`, `80GB`, `80G`, `80e9`, `1.5 TiB` or a plain number of bytes.
    ///
    /// `K`, `M`, `G`, `T` alone are binary, as in vLLM's `--kv-cache-memory-bytes` with capital
    /// letters; `kB`, `MB`, `GB`, `TB` are decimal. Case is ignored except that a lone lower-case
    /// `k`, `m`, `g`, `t` is decimal, which is that flag's convention too.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let text = s.trim();
        let not_a_number = || ParseBytesError::NotANumber(s.to_owned());
        let mut end = text
            .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
            .unwrap_or(text.len());
        // `80e9`: an exponent belongs to the number only where digits follow it.
        let rest = &text[end..];
        if let Some(exp) = rest.strip_prefix(['e', 'E']) {
            let digits = exp.trim_start_matches('+').len();
            let sign = exp.len() - digits;
            let count = exp[sign..].bytes().take_while(u8::is_ascii_digit).count();
            if count > 0 {
                end += 1 + sign + count;
            }
        }
        let (number, unit) = text.split_at(end);
        let number = number.replace('_', "");
        let unit = unit.trim();
        let factor: u64 = match unit {
            "" | "B" | "b" => 1,
            "k" | "kB" | "KB" | "kb" => 1_000,
            "m" | "MB" | "mB" | "mb" => 1_000_000,
            "g" | "GB" | "gB" | "gb" => 1_000_000_000,
            "t" | "TB" | "tB" | "tb" => 1_000_000_000_000,
            "K" | "KiB" | "kiB" | "kib" | "Ki" => 1 << 10,
            "M" | "MiB" | "miB" | "mib" | "Mi" => 1 << 20,
            "G" | "GiB" | "giB" | "gib" | "Gi" => 1 << 30,
            "T" | "TiB" | "tiB" | "tib" | "Ti" => 1 << 40,
            _ if number.is_empty() => return Err(not_a_number()),
            _ => {
                return Err(ParseBytesError::UnknownUnit {
                    text: s.to_owned(),
                    unit: unit.to_owned(),
                });
            }
        };
        let out_of_range = || ParseBytesError::OutOfRange(s.to_owned());
        if let Ok(n) = number.parse::<u64>() {
            return n.checked_mul(factor).map(Self).ok_or_else(out_of_range);
        }
        let n: f64 = number.parse().map_err(|_| not_a_number())?;
        #[allow(clippy::cast_precision_loss, reason = "factors are exact in f64")]
        Self::from_f64(n * factor as f64).map_err(|_| out_of_range())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_binary_and_decimal_units_apart() {
        let of = |s: &str| s.parse::<Bytes>().map(Bytes::get);
        assert_eq!(of("24GiB"), Ok(24 << 30));
        assert_eq!(of("80GB"), Ok(80_000_000_000));
        assert_eq!(of("80e9"), Ok(80_000_000_000));
        assert_eq!(of("80G"), Ok(80 << 30));
        assert_eq!(of("80g"), Ok(80_000_000_000));
        assert_eq!(of("1.5 MiB"), Ok(3 << 19));
        assert_eq!(of("12_000"), Ok(12_000));
        assert_eq!(of("0"), Ok(0));
    }

    #[test]
    fn refuses_what_is_not_a_size() {
        for bad in [
            "",
            "GiB",
            "12 parsecs",
            "-1",
            "1e400",
            "NaN",
            "inf",
            "1.2.3",
            "99999999999TiB",
        ] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn prints_the_unit_it_means() {
        assert_eq!(Bytes::new(819_200).to_string(), "800.0 KiB");
        assert_eq!(Bytes::new(12 << 30).to_string(), "12.00 GiB");
        assert_eq!(Bytes::new(17).to_string(), "17 B");
        assert_eq!(format!("{:>10}", Bytes::new(17)), "      17 B");
    }

    #[test]
    fn products_and_sums_do_not_wrap() {
        assert_eq!(Bytes::product([1 << 40, 1 << 40]), Err(SizeOverflow));
        assert_eq!(Bytes::sum([Bytes::MAX, Bytes::new(1)]), Err(SizeOverflow));
        assert_eq!(Bytes::product([2, 3, 4]), Ok(Bytes::new(24)));
    }
}
