//! [`WeightType`]: what the elements of a packed matrix are kept as, and what that takes.

use crate::{Bytes, SizeOverflow};

/// Output rows of a packed panel.
const PANEL: u64 = 32;
/// Columns that an input's elements share a scale over.
const INPUT_GROUP: u64 = 128;
/// 32-bit words of such a group: its scale, the sums of its quarters, its elements as bytes.
const INPUT_WORDS: u64 = 1 + 4 + INPUT_GROUP / 4;

/// What the elements of a packed matrix are kept as (`plimsoll-kernels`, linear).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// bfloat16.
    #[default]
    Bf16,
    /// Eight bits, and an f32 scale for each row and 128 columns.
    Int8,
    /// Four bits, and a bfloat16 scale for each row and 32 columns.
    Int4,
}

impl WeightType {
    /// All, widest first.
    pub const ALL: [Self; 3] = [Self::Bf16, Self::Int8, Self::Int4];

    /// Its name in flags and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// 32-bit words that `k` columns take of each row of a panel, scales among them.
    #[must_use]
    pub const fn row_words(self, k: u64) -> u64 {
        match self {
            Self::Bf16 => k.div_ceil(2),
            Self::Int8 => k.div_ceil(4) + k.div_ceil(128),
            Self::Int4 => k.div_ceil(8) + k.div_ceil(64),
        }
    }

    /// Bytes of a packed matrix of `n` output rows and `k` columns: whole panels of 32 rows.
    ///
    /// # Errors
    /// [`SizeOverflow`].
    pub fn bytes(self, n: u64, k: u64) -> Result<Bytes, SizeOverflow> {
        let rows = n.div_ceil(PANEL).checked_mul(PANEL).ok_or(SizeOverflow)?;
        Bytes::product([rows, self.row_words(k), 4])
    }

    /// 32-bit words that a row of `k` inputs takes, quantised, beside the row itself; none where rows are multiplied
    /// as they are.
    #[must_use]
    pub const fn input_words(self, k: u64) -> u64 {
        match self {
            Self::Bf16 => 0,
            // No more than the elements of the row, or little: it fits.
            Self::Int8 | Self::Int4 => k.div_ceil(INPUT_GROUP).saturating_mul(INPUT_WORDS),
        }
    }
}

/// A word that names no type of weights.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no type of weights: use bf16, int8 or int4")]
pub struct ParseWeightTypeError(String);

impl std::str::FromStr for WeightType {
    type Err = ParseWeightTypeError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let named = |w: &Self| w.name().eq_ignore_ascii_case(s);
        let found = Self::ALL.into_iter().find(named);
        found.ok_or_else(|| ParseWeightTypeError(s.to_owned()))
    }
}

impl std::fmt::Display for WeightType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_its_elements_and_scales_do() {
        let bytes = |t: WeightType, n, k| t.bytes(n, k).unwrap().get();
        assert_eq!(bytes(WeightType::Bf16, 32, 128), 32 * 128 * 2);
        assert_eq!(bytes(WeightType::Int8, 32, 128), 32 * (128 + 4));
        assert_eq!(bytes(WeightType::Int4, 32, 128), 32 * (64 + 4 * 2));
        // Whole panels, and no more columns than there are.
        assert_eq!(bytes(WeightType::Int8, 33, 130), 64 * (132 + 2 * 4));
        assert_eq!(bytes(WeightType::Int4, 1, 1), 32 * (4 + 4));
        assert!(WeightType::Int8.bytes(u64::MAX, 1).is_err());
        for t in WeightType::ALL {
            assert_eq!(t.name().parse(), Ok(t));
        }
        assert!("int3".parse::<WeightType>().is_err());
    }
}
