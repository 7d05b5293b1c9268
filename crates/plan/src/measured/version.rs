//! Which engine and version a report names, from texts as people write them.

use crate::engine::Version;

/// The engine of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineName {
    /// vLLM.
    Vllm,
    /// llama.cpp, mainline.
    LlamaCpp,
    /// The ik fork of llama.cpp.
    IkLlamaCpp,
    /// SGLang.
    SgLang,
    /// TensorRT-LLM.
    TensorRtLlm,
    /// Any other.
    Other,
}

impl EngineName {
    /// The name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::LlamaCpp => "llama.cpp",
            Self::IkLlamaCpp => "ik_llama.cpp",
            Self::SgLang => "sglang",
            Self::TensorRtLlm => "tensorrt-llm",
            Self::Other => "other",
        }
    }
}

/// What a report says about the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A release number.
    Number(Version),
    /// No number, but a month, and perhaps which of vLLM's two engines.
    Month {
        /// Year.
        year: u32,
        /// Month, 1 to 12.
        month: u32,
        /// Whether the text names the V0 engine.
        v0: bool,
    },
    /// No number and no month; whether the text names the V0 engine.
    Nothing {
        /// Whether it does.
        v0: bool,
    },
}

/// Reads the engine's name and version text.
#[must_use]
pub fn read_engine(engine: &str, version: Option<&str>) -> (EngineName, Said) {
    let text = version.unwrap_or("");
    let lower = text.to_ascii_lowercase();
    let name = match engine.trim().to_ascii_lowercase().as_str() {
        "vllm" => EngineName::Vllm,
        // "mainline or ik fork" leaves it open; such builds print mainline's lines.
        "llama.cpp" | "llamacpp" | "ik_llama.cpp"
            if engine.starts_with("ik") || (lower.contains("ik_") && !lower.contains(" or ik")) =>
        {
            EngineName::IkLlamaCpp
        }
        "llama.cpp" | "llamacpp" => EngineName::LlamaCpp,
        "sglang" => EngineName::SgLang,
        "tensorrt-llm" | "tensorrt_llm" | "trtllm" | "trt-llm" => EngineName::TensorRtLlm,
        _ => EngineName::Other,
    };
    (name, said(text))
}

fn said(text: &str) -> Said {
    if let Some(v) = number(text) {
        return Said::Number(v);
    }
    let lower = text.to_ascii_lowercase();
    let v0 = lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .any(|w| w == "v0");
    let has = |names: &[&str]| {
        lower
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|w| names.contains(&w))
    };
    // What is built from the branch of a month is what the next release will have.
    let ahead = has(&["main", "nightly", "master"]);
    match month(&lower) {
        Some((year, 12)) if ahead => Said::Month {
            year: year + 1,
            month: 1,
            v0,
        },
        Some((year, month)) if ahead => Said::Month {
            year,
            month: month + 1,
            v0,
        },
        Some((year, month)) => Said::Month { year, month, v0 },
        None => Said::Nothing { v0 },
    }
}

/// The first `digits.digits[.digits]` that starts a word (a leading `v` allowed).
fn number(text: &str) -> Option<Version> {
    text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '(' | ')' | '=' | ':'))
        .filter_map(|word| {
            let bare = word.trim_start_matches(['v', 'V']);
            if !bare.starts_with(|c: char| c.is_ascii_digit()) {
                return None;
            }
            let mut parts = bare.split('.');
            let whole = parts.next()?;
            let minor = parts.next()?;
            let clean = whole.chars().all(|c| c.is_ascii_digit())
                && minor.starts_with(|c: char| c.is_ascii_digit());
            clean.then(|| bare.parse().ok()).flatten()
        })
        .next()
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];

/// A month's name followed by a year, wherever they stand.
fn month(lower: &str) -> Option<(u32, u32)> {
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|w| !w.is_empty())
        .collect();
    words.windows(2).find_map(|w| {
        let at = MONTHS
            .iter()
            .position(|m| w[0].len() >= 3 && w[0].starts_with(m))?;
        let year: u32 = w[1].parse().ok()?;
        let month = u32::try_from(at + 1).ok()?;
        (2023..2100).contains(&year).then_some((year, month))
    })
}

/// The newest vLLM release on the first day of a month, as the package index lists upload dates;
/// between the rows, the row before counts. A report that names only a month is predicted with it,
/// and says so.
const RELEASES: &[(u32, u32, Version)] = &[
    (2023, 12, v(0, 2, 2)),
    (2024, 3, v(0, 3, 3)),
    (2024, 6, v(0, 4, 3)),
    (2024, 9, v(0, 5, 5)),
    (2024, 10, v(0, 6, 2)),
    (2024, 11, v(0, 6, 3)),
    (2024, 12, v(0, 6, 4)),
    (2025, 1, v(0, 6, 6)),
    (2025, 2, v(0, 7, 1)),
    (2025, 3, v(0, 7, 3)),
    (2025, 4, v(0, 8, 2)),
    (2025, 5, v(0, 8, 5)),
    (2025, 6, v(0, 9, 0)),
    (2025, 7, v(0, 9, 1)),
    (2025, 8, v(0, 10, 0)),
    (2025, 9, v(0, 10, 1)),
    (2025, 10, v(0, 10, 2)),
    (2025, 11, v(0, 11, 0)),
    (2025, 12, v(0, 11, 2)),
    (2026, 1, v(0, 13, 0)),
    (2026, 2, v(0, 15, 0)),
    (2026, 3, v(0, 16, 0)),
    (2026, 4, v(0, 18, 1)),
    (2026, 5, v(0, 20, 0)),
    (2026, 6, v(0, 22, 0)),
    (2026, 7, v(0, 24, 0)),
    (2026, 8, v(0, 26, 0)),
    (2026, 9, v(0, 28, 0)),
    (2026, 10, v(0, 30, 0)),
    (2026, 11, v(0, 32, 0)),
];

/// The newest SGLang release on the first day of a month, as the wheels of the package index are dated.
const SGLANG_RELEASES: &[(u32, u32, Version)] = &[
    (2025, 3, v(0, 4, 3)),
    (2025, 4, v(0, 4, 4)),
    (2025, 5, v(0, 4, 6)),
    (2025, 8, v(0, 4, 9)),
    (2025, 10, v(0, 5, 2)),
    (2025, 11, v(0, 5, 4)),
    (2026, 1, v(0, 5, 6)),
    (2026, 2, v(0, 5, 8)),
    (2026, 5, v(0, 5, 10)),
    (2026, 6, v(0, 5, 12)),
    (2026, 7, v(0, 5, 14)),
    (2026, 8, v(0, 5, 16)),
    (2026, 10, v(0, 5, 20)),
    (2026, 11, v(0, 5, 23)),
];

fn newest_in(releases: &[(u32, u32, Version)], year: u32, month: u32) -> Option<Version> {
    releases
        .iter()
        .rev()
        .find(|(y, m, _)| (*y, *m) <= (year, month))
        .map(|(_, _, v)| *v)
}

const fn v(major: u32, minor: u32, patch: u32) -> Version {
    Version {
        major,
        minor,
        patch,
    }
}

/// The last release whose default engine was V0.
const LAST_V0: Version = v(0, 7, 3);

/// vLLM's releases that stand for all where a report names none: the last V0, and V1 as it measured over time. 0.24 has
/// compressed caches, which 0.19 does not know, as small as they ever were.
const ANY_VLLM: [Version; 5] = [
    v(0, 7, 3),
    v(0, 11, 0),
    v(0, 19, 0),
    v(0, 24, 0),
    v(0, 32, 0),
];
/// The same of SGLang: by ranks, by card, by parts.
const ANY_SGLANG: [Version; 4] = [v(0, 4, 6), v(0, 5, 2), v(0, 5, 8), v(0, 5, 23)];

impl Said {
    /// Releases that stand for all that it may be; empty where it is known well enough. `text` may name a year.
    #[must_use]
    pub fn possible(self, engine: EngineName, text: Option<&str>) -> Vec<Version> {
        if !matches!(self, Self::Nothing { v0: false }) {
            return Vec::new();
        }
        let year = text.unwrap_or("");
        let newer = |v: &Version, table: &[(u32, u32, Version)]| {
            (2024..2030)
                .find(|y| year.contains(&y.to_string()))
                .and_then(|y| newest_in(table, y, 1))
                .is_none_or(|first| *v >= first)
        };
        match engine {
            EngineName::Vllm => ANY_VLLM
                .into_iter()
                .filter(|v| newer(v, RELEASES))
                .collect(),
            EngineName::SgLang => ANY_SGLANG
                .into_iter()
                .filter(|v| newer(v, SGLANG_RELEASES))
                .collect(),
            EngineName::LlamaCpp
            | EngineName::IkLlamaCpp
            | EngineName::TensorRtLlm
            | EngineName::Other => Vec::new(),
        }
    }

    /// The number, where one is written.
    #[must_use]
    pub const fn number(self) -> Option<Version> {
        match self {
            Self::Number(v) => Some(v),
            Self::Month { .. } | Self::Nothing { .. } => None,
        }
    }

    /// The release to predict vLLM with, and what was assumed to get it; `None` where the text
    /// leaves it open.
    #[must_use]
    pub fn vllm_release(self) -> Option<(Version, Option<String>)> {
        match self {
            Self::Number(v) => Some((v, None)),
            Self::Month { year, month, v0 } => {
                let newest = newest_in(RELEASES, year, month)?;
                let version = if v0 { newest.min(LAST_V0) } else { newest };
                let name = MONTHS[(month as usize - 1).min(11)];
                Some((
                    version,
                    Some(format!(
                        "vLLM {version}, the release current in {name} {year}"
                    )),
                ))
            }
            Self::Nothing { v0: true } => Some((
                LAST_V0,
                Some(format!(
                    "vLLM {LAST_V0}, the last release with the V0 engine"
                )),
            )),
            Self::Nothing { v0: false } => None,
        }
    }

    /// The release to predict SGLang with, and what was assumed to get it.
    #[must_use]
    pub fn sglang_release(self) -> Option<(Version, Option<String>)> {
        match self {
            Self::Number(v) => Some((v, None)),
            Self::Month { year, month, .. } => {
                let newest = newest_in(SGLANG_RELEASES, year, month)?;
                let name = MONTHS[(month as usize - 1).min(11)];
                Some((
                    newest,
                    Some(format!(
                        "SGLang {newest}, the release current in {name} {year}"
                    )),
                ))
            }
            Self::Nothing { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_people_write_them() {
        let n = |s: &str| said(s).number().map(|v| (v.major, v.minor, v.patch));
        assert_eq!(n("v0.19.0"), Some((0, 19, 0)));
        assert_eq!(
            n("v0.21+ (log says default since v0.21.0)"),
            Some((0, 21, 0))
        );
        assert_eq!(n("0.20.1rc1.dev16+g7a1eb8ac2"), Some((0, 20, 1)));
        assert_eq!(n("0.13.0 (nv26.01)"), Some((0, 13, 0)));
        assert_eq!(n("0.6.3, Oct 2024"), Some((0, 6, 3)));
        assert_eq!(n("v0.18, Mar 2026"), Some((0, 18, 0)));
        assert_eq!(n("2026"), None);
        assert_eq!(n("V1, Jun 2025"), None);
        assert_eq!(
            said("V0, Mar 2025"),
            Said::Month {
                year: 2025,
                month: 3,
                v0: true
            }
        );
        assert_eq!(
            said("Dec 2025"),
            Said::Month {
                year: 2025,
                month: 12,
                v0: false
            }
        );
        assert_eq!(said("V0"), Said::Nothing { v0: true });
        assert_eq!(
            said("gemma4-unified image, Jun 2026"),
            Said::Month {
                year: 2026,
                month: 6,
                v0: false
            }
        );
    }

    #[test]
    fn forks_are_told_apart() {
        let f = |s: &str| read_engine("llama.cpp", Some(s)).0;
        assert_eq!(
            f("ik_llama.cpp fork, build = 3597 (127c6ee6)"),
            EngineName::IkLlamaCpp
        );
        assert_eq!(f("mainline build 3772 (57064fba)"), EngineName::LlamaCpp);
        assert_eq!(
            f("llama.cpp mainline or ik fork (see source), build: 5781 (ba3ef86c5)"),
            EngineName::LlamaCpp
        );
    }

    #[test]
    fn a_month_gives_the_release_of_its_time() {
        let r = |s: &str| {
            said(s)
                .vllm_release()
                .map(|(v, a)| (v.to_string(), a.is_some()))
        };
        assert_eq!(r("Dec 2025"), Some(("0.11.2".to_owned(), true)));
        assert_eq!(r("V0, May 2025"), Some(("0.7.3".to_owned(), true)));
        assert_eq!(r("0.19"), Some(("0.19.0".to_owned(), false)));
        assert_eq!(r("2026"), None);
        // The head of a branch has what its month's release has not yet.
        assert_eq!(r("May 2026"), Some(("0.20.0".to_owned(), true)));
        assert_eq!(r("main, May 2026"), Some(("0.22.0".to_owned(), true)));
        assert_eq!(r("nightly Dec 2025"), Some(("0.13.0".to_owned(), true)));
        assert_eq!(r("mainline, May 2026"), Some(("0.20.0".to_owned(), true)));
    }
}
