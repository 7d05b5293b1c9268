//! [`WeightType`]: what the elements of a packed matrix are kept as, and what that takes.

use crate::{Bytes, SizeOverflow};

/// Output rows of a packed panel.
const PANEL: u64 = 32;
/// Columns that an input's elements share a scale over.
const INPUT_GROUP: u64 = 128;
/// 32-bit words of such a group: its scale, the sums of its quarters, its elements as bytes.
const INPUT_WORDS: u64 = 1 + 4 + INPUT_GROUP / 4;

/// What [`Weights::Stored`] is called in flags and reports.
const AUTO: &str = "auto";

/// What the elements of a packed matrix are kept as (`plimsoll-kernels`, linear).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// bfloat16.
    #[default]
    Bf16,
    /// float8 e4m3, and an f32 scale for each row and 128 columns.
    Fp8,
    /// Eight bits, and an f32 scale for each row and 128 columns.
    Int8,
    /// Four bits, and a bfloat16 scale for each row and 32 columns.
    Int4,
    /// Four bits as they are published: numbers of 0 to 15, and for each row and group of columns a word with a scale and
    /// what numbers are less.
    Grouped(GroupSize),
}

/// Columns that share a scale and a zero point in published weights of four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupSize {
    /// 32.
    G32,
    /// 64.
    G64,
    /// 128.
    G128,
}

impl GroupSize {
    /// All, the smallest first.
    pub const ALL: [Self; 3] = [Self::G32, Self::G64, Self::G128];

    /// That of so many columns, if there is one.
    #[must_use]
    pub fn of(columns: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|g| g.columns() == columns)
    }

    /// How many columns.
    #[must_use]
    pub const fn columns(self) -> u64 {
        match self {
            Self::G32 => 32,
            Self::G64 => 64,
            Self::G128 => 128,
        }
    }
}

impl WeightType {
    /// Columns that share a scale in weights of eight bits.
    pub const SCALED: u64 = 128;
    /// Those that any matrix can be made, widest first.
    pub const ALL: [Self; 4] = [Self::Bf16, Self::Fp8, Self::Int8, Self::Int4];
    /// Those that matrices are published as.
    pub const GROUPED: [Self; 3] = [
        Self::Grouped(GroupSize::G128),
        Self::Grouped(GroupSize::G64),
        Self::Grouped(GroupSize::G32),
    ];

    /// Its name in flags and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Grouped(GroupSize::G128) => "int4-g128",
            Self::Grouped(GroupSize::G64) => "int4-g64",
            Self::Grouped(GroupSize::G32) => "int4-g32",
        }
    }

    /// 32-bit words that `k` columns take of each row of a panel, scales among them.
    #[must_use]
    pub const fn row_words(self, k: u64) -> u64 {
        match self {
            Self::Bf16 => k.div_ceil(2),
            Self::Fp8 | Self::Int8 => k.div_ceil(4) + k.div_ceil(Self::SCALED),
            Self::Int4 => k.div_ceil(8) + k.div_ceil(64),
            Self::Grouped(group) => k.div_ceil(8) + k.div_ceil(group.columns()),
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
            Self::Bf16 | Self::Fp8 => 0,
            // No more than the elements of the row, or little: it fits.
            _ => k.div_ceil(INPUT_GROUP).saturating_mul(INPUT_WORDS),
        }
    }
}

/// What matrices are to be kept as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Weights {
    /// This, whatever they are stored as.
    As(WeightType),
    /// Published groups of four bits and float8 as they are stored, everything else as bfloat16.
    #[default]
    Stored,
}

impl From<WeightType> for Weights {
    fn from(form: WeightType) -> Self {
        Self::As(form)
    }
}

/// A word that names nothing that weights are kept as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no type of weights: use bf16, fp8, int8, int4 or auto")]
pub struct ParseWeightsError(String);

impl std::str::FromStr for Weights {
    type Err = ParseWeightsError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.eq_ignore_ascii_case(AUTO) {
            return Ok(Self::Stored);
        }
        let named = |w: &WeightType| w.name().eq_ignore_ascii_case(s);
        let found = WeightType::ALL.into_iter().find(named);
        found
            .map(Self::As)
            .ok_or_else(|| ParseWeightsError(s.to_owned()))
    }
}

impl std::fmt::Display for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::As(form) => form.fmt(f),
            Self::Stored => f.write_str(AUTO),
        }
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
        assert_eq!(bytes(WeightType::Fp8, 32, 257), 32 * (260 + 3 * 4));
        assert_eq!(bytes(WeightType::Int4, 32, 128), 32 * (64 + 4 * 2));
        // Whole panels, and no more columns than there are.
        assert_eq!(bytes(WeightType::Int8, 33, 130), 64 * (132 + 2 * 4));
        assert_eq!(bytes(WeightType::Int4, 1, 1), 32 * (4 + 4));
        let grouped = |g| WeightType::Grouped(g);
        assert_eq!(bytes(grouped(GroupSize::G128), 32, 256), 32 * (128 + 2 * 4));
        assert_eq!(bytes(grouped(GroupSize::G32), 32, 96), 32 * (48 + 3 * 4));
        assert!(WeightType::Int8.bytes(u64::MAX, 1).is_err());
        for group in GroupSize::ALL {
            assert_eq!(GroupSize::of(group.columns()), Some(group));
        }
        for t in WeightType::ALL {
            assert_eq!(t.name().parse(), Ok(Weights::As(t)));
        }
        assert_eq!("auto".parse(), Ok(Weights::Stored));
        assert!("int3".parse::<Weights>().is_err());
        assert!("int4-g128".parse::<Weights>().is_err());
    }
}
