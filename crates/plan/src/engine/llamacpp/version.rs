//! What builds of llama.cpp do differently, as switches of the one law for the newest.
//!
//! Mainline has no releases, only numbered builds, so its rules are keyed on the day when a change
//! was merged. A build number is turned into a day by the table [`BUILDS`], a straight line between
//! known points: near a change it may be off by some days, and a date is then the safer input.
//! The changes and their pull requests are named at each switch.

use super::super::EngineVersion;

/// A day, as the number `yyyymmdd`: it sorts as days do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(pub u32);

/// The newest rules known: those of commit 0c1e57098, against which the golden rows were made.
const NEWEST: Day = Day(20_260_701);

/// Builds of mainline whose day is known, oldest first.
///
/// b3772, b5781 and b7079 are those of start-up reports; the others are round numbers.
const BUILDS: &[(u32, Day)] = &[
    (1500, Day(20_231_108)),
    (2000, Day(20_240_128)),
    (3000, Day(20_240_526)),
    (3772, Day(20_240_916)),
    (4000, Day(20_241_101)),
    (5000, Day(20_250_401)),
    (5781, Day(20_250_630)),
    (6000, Day(20_250_727)),
    (7079, Day(20_251_117)),
    (9849, NEWEST),
];

impl Day {
    /// The day of mainline's build `number`.
    #[must_use]
    pub fn of_build(number: u32) -> Self {
        let Some(&(first, oldest)) = BUILDS.first() else {
            return NEWEST;
        };
        if number <= first {
            return oldest;
        }
        for pair in BUILDS.windows(2) {
            let [(n0, d0), (n1, d1)] = *pair else {
                continue;
            };
            if number <= n1 {
                let (from, to) = (d0.ordinal(), d1.ordinal());
                let days = u64::from(to.saturating_sub(from)) * u64::from(number - n0)
                    / u64::from((n1 - n0).max(1));
                let days = u32::try_from(days).unwrap_or(0);
                return Self::from_ordinal(from + days);
            }
        }
        NEWEST
    }

    /// Months of 31 days: enough to order and to interpolate.
    const fn ordinal(self) -> u32 {
        let (y, m, d) = (self.0 / 10_000, self.0 / 100 % 100, self.0 % 100);
        (y * 12 + m - 1) * 31 + d - 1
    }

    const fn from_ordinal(n: u32) -> Self {
        let (months, day) = (n / 31, n % 31 + 1);
        Self(months / 12 * 10_000 + (months % 12 + 1) * 100 + day)
    }
}

/// To what `n_ctx` is rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Padding {
    Always256,
    /// 256 with flash attention, else 32.
    ByAttention,
    None,
}

/// Which of the rules a build follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is one independent change of the engine"
)]
pub struct Rules {
    padding: Padding,
    /// Sequences have cells of their own (PR 14363, July 2025); before, all share one buffer.
    pub streams: bool,
    /// Window layers have a cache of their own (PR 13194, May 2025).
    pub window_cache: bool,
    /// That cache has room for a whole batch instead of a physical one (May and June 2025).
    pub window_of_batch: bool,
    /// The input for embeddings is always allocated (PR 18898, January 2026).
    pub embd_input: bool,
    /// With flash attention the mask is an f16 input (PR 23764, May 2026), not a cast one.
    pub f16_mask: bool,
    /// Cache rows are written through index inputs (August 2025).
    pub index_inputs: bool,
    /// The parts of a fused QKV are copied (to the middle of 2025).
    pub qkv_copies: bool,
    /// Gate and up projection are joined by one operation (PR 14158, July 2025).
    pub glu: bool,
    /// Normalisation and its weight are one operation (ik fork).
    pub fused_norm: bool,
    /// MLA stores no values beside its latent vectors (PR 19067, January 2026).
    pub latent_only: bool,
    /// MLA is cached as latent vectors (PR 12801, April 2025), not decompressed.
    pub latent: bool,
    /// Quantised caches are rotated (PR 21038, spring 2026).
    pub rotation: bool,
    /// The server reserves logits for its slots only (PR 23861, June 2026), not for every row.
    pub few_outputs: bool,
    /// CUDA's flash attention takes its f16 copies of a quantised cache from the compute buffer
    /// (PR 23907, May 2026), not from a pool at run time.
    pub copies_in_buffer: bool,
    /// Flash attention is used unless it is switched off (August 2025).
    pub flash_by_default: bool,
    /// The server keeps finished prompts in host memory (PR 16391, October 2025).
    pub prompt_cache: bool,
}

impl Rules {
    /// Those of a version.
    #[must_use]
    pub fn of(version: EngineVersion) -> Self {
        match version {
            EngineVersion::Mainline => Self::newest(),
            EngineVersion::Build(n) => Self::on(Day::of_build(n)),
            EngineVersion::Date(day) => Self::on(Day(day)),
            EngineVersion::Ik => Self::ik(),
        }
    }

    /// The newest mainline.
    #[must_use]
    pub fn newest() -> Self {
        Self::on(NEWEST)
    }

    /// Mainline on a day.
    #[must_use]
    pub fn on(day: Day) -> Self {
        let since = |d: u32| day.0 >= d;
        Self {
            padding: if since(20_251_106) {
                Padding::Always256
            } else if since(20_251_028) {
                Padding::None
            } else if since(20_240_501) {
                Padding::ByAttention
            } else {
                Padding::Always256
            },
            streams: since(20_250_716),
            window_cache: since(20_250_520),
            window_of_batch: !since(20_250_701),
            embd_input: since(20_260_118),
            f16_mask: since(20_260_527),
            index_inputs: since(20_250_801),
            qkv_copies: !since(20_250_601),
            glu: since(20_250_629),
            fused_norm: false,
            latent_only: since(20_260_124),
            latent: since(20_250_415),
            rotation: since(20_260_325),
            few_outputs: since(20_260_601),
            copies_in_buffer: since(20_260_530),
            flash_by_default: since(20_250_830),
            prompt_cache: since(20_251_009),
        }
    }

    /// The ik fork as of 2026: the mainline of mid-2024 with its own operations.
    #[must_use]
    pub fn ik() -> Self {
        Self {
            streams: false,
            window_cache: false,
            glu: true,
            qkv_copies: false,
            fused_norm: true,
            latent: true,
            latent_only: true,
            ..Self::on(Day(20_240_916))
        }
    }

    /// `n_ctx` is rounded up to a multiple of this.
    #[must_use]
    pub const fn pad_context(&self, flash: bool) -> u64 {
        match self.padding {
            Padding::Always256 => 256,
            Padding::ByAttention if flash => 256,
            Padding::ByAttention => 32,
            Padding::None => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_have_days() {
        assert_eq!(Day::of_build(3772), Day(20_240_916));
        assert_eq!(Day::of_build(5781), Day(20_250_630));
        assert_eq!(Day::of_build(1), Day(20_231_108));
        assert_eq!(Day::of_build(999_999), NEWEST);
        let mut last = Day(0);
        for n in (1000..10_000).step_by(7) {
            assert!(Day::of_build(n) >= last);
            last = Day::of_build(n);
        }
    }

    #[test]
    fn eras_of_published_start_up_reports() {
        let old = Rules::on(Day::of_build(3772));
        assert!(old.qkv_copies && !old.glu && !old.index_inputs && !old.f16_mask);
        let mid = Rules::on(Day::of_build(5781));
        assert!(!mid.qkv_copies && mid.glu && !mid.index_inputs && !mid.streams);
        let new = Rules::newest();
        assert!(new.f16_mask && new.few_outputs && new.streams && new.latent_only);
    }
}
