//! Engines: what each allocates for a model on one rank, and how it sizes its KV cache.
//!
//! An engine is one module with one function, `stage`, which returns the memory that does not
//! depend on the load, the budget that the engine allows itself, and its KV law. Everything else
//! (searching, inverse questions, reports) is common.

mod absorbed;
mod asked_kv;
mod contiguous;
mod extras;
mod ideal;
pub mod llamacpp;
mod mxfp4;
pub(crate) mod plimsoll;
pub(crate) use asked_kv::served_kv;
pub(crate) use plimsoll::DRIVER_BOUND_MIB;
pub use plimsoll::host::{STAGED_PAGES, STAGED_WEIGHTS};
pub use plimsoll::http::HttpLimits;
pub mod sglang;
mod trtllm;
pub mod vllm;

use std::fmt;
use std::str::FromStr;

use plimsoll_model::{Mixer, ModelSpec};
use plimsoll_program::{Parallel, RoleBytes, Stage, WeightRules, rank_weights};
use plimsoll_units::{Bytes, DType};

use crate::error::PlanError;
use crate::kv::KvLaw;
use crate::settings::{Deployment, KvType, Settings};
use crate::term::{Kind, Region, Term};

/// An engine whose allocation is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// What the mathematics needs: weights and the keys and values of live tokens. A lower bound.
    Ideal,
    /// A server that reserves contiguous runs, as before paging.
    Contiguous(Reserve),
    /// vLLM's V1 engine.
    Vllm(Version),
    /// SGLang.
    Sglang(Version),
    /// TensorRT-LLM, as a bound.
    TrtLlm,
    /// llama.cpp.
    LlamaCpp(EngineVersion),
    /// Plimsoll's own server.
    Plimsoll,
}

/// How a contiguous server reserves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reserve {
    /// The longest length, always.
    #[default]
    Max,
    /// The next power of two.
    Pow2,
    /// Exactly what will be used.
    Oracle,
}

/// A release number `major.minor.patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch.
    pub patch: u32,
}

/// Which llama.cpp: mainline, by build or by date, or the ik fork.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineVersion {
    /// The newest mainline modelled, of mid-2026.
    #[default]
    Mainline,
    /// Mainline's build of this number, as in `b7079`.
    Build(u32),
    /// Mainline on a day, `yyyymmdd`.
    Date(u32),
    /// The ik_llama.cpp fork.
    Ik,
}

impl fmt::Display for EngineVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mainline => f.pad("mainline"),
            Self::Build(n) => f.pad(&format!("b{n}")),
            Self::Date(d) => f.pad(&format!(
                "{}-{:02}-{:02}",
                d / 10_000,
                d / 100 % 100,
                d % 100
            )),
            Self::Ik => f.pad("ik"),
        }
    }
}

impl FromStr for EngineVersion {
    type Err = String;

    /// Reads `mainline`, `b7079`, `2025-07`, `2025-07-16` and `ik`. A month without a day is its
    /// middle.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || {
            format!("`{s}` is no llama.cpp version: write a build (b7079), a date (2025-07) or ik")
        };
        let lower = s.trim().to_ascii_lowercase();
        match lower.as_str() {
            "mainline" => return Ok(Self::Mainline),
            "ik" => return Ok(Self::Ik),
            _ => {}
        }
        if let Some(number) = lower.strip_prefix('b') {
            return number.parse().map(Self::Build).map_err(|_| bad());
        }
        let parts: Option<Vec<u32>> = lower.split('-').map(|p| p.parse().ok()).collect();
        match parts.as_deref() {
            Some([y @ 2023..=2099, m @ 1..=12]) => Ok(Self::Date(y * 10_000 + m * 100 + 15)),
            Some([y @ 2023..=2099, m @ 1..=12, d @ 1..=31]) => {
                Ok(Self::Date(y * 10_000 + m * 100 + d))
            }
            _ => Err(bad()),
        }
    }
}

impl Version {
    /// `major.minor.0`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self {
            major,
            minor,
            patch: 0,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = String;

    /// Reads `0.19`, `v0.19.0`, `0.20.1rc1.dev16+g7a1e`: what follows the numbers is ignored.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || format!("`{s}` is no version: write it as 0.19 or 0.19.0");
        let text = s.trim().trim_start_matches(['v', 'V']);
        let mut numbers = text.split('.').map(|part| {
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            part[..end].parse::<u32>().ok()
        });
        let major = numbers.next().flatten().ok_or_else(bad)?;
        let minor = numbers.next().flatten().ok_or_else(bad)?;
        let patch = numbers.next().flatten().unwrap_or(0);
        Ok(Self {
            major,
            minor,
            patch,
        })
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ideal => f.pad("ideal"),
            Self::Contiguous(Reserve::Max) => f.pad("contiguous (reserve max)"),
            Self::Contiguous(Reserve::Pow2) => f.pad("contiguous (reserve pow2)"),
            Self::Contiguous(Reserve::Oracle) => f.pad("contiguous (reserve oracle)"),
            Self::Vllm(v) => f.pad(&format!("vllm {v}")),
            Self::TrtLlm => f.pad("trtllm"),
            Self::Sglang(v) => f.pad(&format!("sglang {v}")),
            Self::LlamaCpp(EngineVersion::Mainline) => f.pad("llama.cpp"),
            Self::LlamaCpp(EngineVersion::Ik) => f.pad("ik_llama.cpp"),
            Self::LlamaCpp(v) => f.pad(&format!("llama.cpp {v}")),
            Self::Plimsoll => f.pad("plimsoll"),
        }
    }
}

impl FromStr for Engine {
    type Err = String;

    /// Reads `ideal`, `contiguous`, `vllm`, `vllm@0.19`, `sglang`, `sglang@0.5.2`, `trtllm`, `llama.cpp`, `llama.cpp@b7079`,
    /// `llama.cpp@2025-07`, `llama.cpp@ik`, `plimsoll`.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let lower = s.trim().to_ascii_lowercase();
        let (name, version) = match lower.split_once('@') {
            Some((n, v)) => (n, Some(v)),
            None => (lower.as_str(), None),
        };
        match (name, version) {
            ("ideal", None) => Ok(Self::Ideal),
            ("contiguous", None) => Ok(Self::Contiguous(Reserve::Max)),
            ("vllm", None) => Ok(Self::Vllm(vllm::NEWEST)),
            ("vllm", Some(v)) => v.parse().map(Self::Vllm),
            ("trtllm" | "tensorrt-llm", None) => Ok(Self::TrtLlm),
            ("sglang", None) => Ok(Self::Sglang(sglang::NEWEST)),
            ("sglang", Some(v)) => v.parse().map(Self::Sglang),
            ("llama.cpp" | "llamacpp", None) => Ok(Self::LlamaCpp(EngineVersion::Mainline)),
            ("llama.cpp" | "llamacpp", Some(v)) => v.parse().map(Self::LlamaCpp),
            ("ik_llama.cpp", None) => Ok(Self::LlamaCpp(EngineVersion::Ik)),
            ("plimsoll", None) => Ok(Self::Plimsoll),
            _ => Err(format!(
                "`{s}` is no engine: use ideal, contiguous, vllm, vllm@VERSION, sglang, sglang@VERSION, trtllm, llama.cpp, \
                 llama.cpp@BUILD, llama.cpp@ik or plimsoll"
            )),
        }
    }
}

/// Everything that an engine's rules may look at.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The model, with any quantisation asked for applied.
    pub spec: &'a ModelSpec,
    /// Devices and division.
    pub deployment: &'a Deployment,
    /// Flags.
    pub settings: &'a Settings,
    /// Which stage.
    pub stage: &'a Stage,
    /// The longest sequence: `--max-model-len`, or what the load and the model imply.
    pub max_model_len: u64,
    /// Requests at once that the load asks for; engines that allocate per slot size by it.
    pub users: u64,
}

/// How large an engine makes its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// What the load needs.
    Need,
    /// The whole rest of the budget.
    Rest,
    /// Whole blocks of it.
    Blocks,
    /// Whole blocks of the rest of the budget, at most so many bytes, since no more can be used.
    AtMost(Bytes),
    /// The rest of the budget, at most so many bytes: the user said that no more is to be had.
    Capped(Bytes),
}

/// What an engine allocates on one rank of one stage.
pub struct EngineStage {
    /// The layers that it runs, where the engine divides them in its own way.
    pub layers: Option<std::ops::Range<u64>>,
    /// What it allows itself, everything in `terms` and the KV cache included.
    pub budget: Budget,
    /// Memory inside the budget that does not depend on the load.
    pub terms: Vec<Term>,
    /// Memory outside the budget: what the process uses on top of it.
    pub outside: Vec<Term>,
    /// Memory on the host that belongs to this rank.
    pub host: Vec<Term>,
    /// How it allocates the KV cache.
    pub kv: Box<dyn KvLaw>,
    /// How large its pool becomes.
    pub takes: Takes,
    /// What the reader should know.
    pub notes: Vec<String>,
}

impl fmt::Debug for EngineStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineStage")
            .field("budget", &self.budget)
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

/// What an engine allows itself on one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Bytes.
    pub bytes: Bytes,
    /// How it comes about.
    pub formula: String,
    /// Where the rule is written.
    pub source: String,
}

/// The engine's view of one rank of `context.stage`.
///
/// # Errors
/// [`PlanError`] where the model cannot be divided so, or the engine refuses a setting.
pub fn stage(context: &Context<'_>) -> Result<EngineStage, PlanError> {
    check_compressed(context)?;
    match context.settings.engine {
        Engine::Ideal => ideal::stage(context),
        Engine::Contiguous(reserve) => contiguous::stage(context, reserve),
        Engine::Vllm(version) => vllm::stage(context, version),
        Engine::Sglang(version) => sglang::stage(context, version),
        Engine::TrtLlm => trtllm::stage(context),
        Engine::LlamaCpp(version) => llamacpp::stage(context, version),
        Engine::Plimsoll => plimsoll::stage(context),
    }
}

/// Refuses models with attention over compressed entries where the engine's caches of it are not modelled: what it keeps
/// is a part of a vector for every token, so that no other rule is near.
fn check_compressed(context: &Context<'_>) -> Result<(), PlanError> {
    let compressed = |m: &Mixer| matches!(m, Mixer::Latent(a) if a.compressed.is_some());
    let engine = match context.settings.engine {
        Engine::Sglang(_) => "SGLang",
        Engine::TrtLlm => "TensorRT-LLM",
        Engine::LlamaCpp(_) => "llama.cpp",
        Engine::Ideal | Engine::Contiguous(_) | Engine::Vllm(_) | Engine::Plimsoll => return Ok(()),
    };
    if !context.spec.layers.iter().any(|l| compressed(&l.mixer)) {
        return Ok(());
    }
    Err(PlanError::Refused {
        engine: engine.to_owned(),
        setting: "a model with attention over compressed entries".to_owned(),
        reason: "its caches are not modelled: plan it for vLLM (`--engine vllm`)".to_owned(),
    })
}

/// Weight terms of one rank, by role.
pub(crate) fn weight_terms(
    context: &Context<'_>,
    rules: &WeightRules,
    source: &str,
) -> Result<Vec<Term>, PlanError> {
    let spec = context.spec;
    let parallel = &context.deployment.parallel;
    let rows = rank_weights(spec, parallel, context.stage, rules)?;
    let layers = &context.stage.layers;
    Ok(rows
        .into_iter()
        .map(
            |RoleBytes {
                 role,
                 bytes,
                 tensors,
             }| {
                let from = if spec.from_headers {
                    "file headers"
                } else {
                    "config"
                };
                Term::exact(Region::Weights, role.name(), bytes)
                    .formula(format!(
                        "sum of {tensors} stored tensors, split over TP {}",
                        parallel.tp
                    ))
                    .input("tensors", tensors)
                    .input("tp", parallel.tp)
                    .input("layers", format!("{}..{}", layers.start, layers.end))
                    .input("read from", from)
                    .source(source)
            },
        )
        .collect())
}

/// The type of activations: `--dtype`, else what the engine makes of the model's.
pub(crate) fn activation_dtype(context: &Context<'_>) -> DType {
    served_dtype(context.settings, context.spec)
}

/// The type that a model is served in: `--dtype`, else the config's, which vLLM and SGLang halve where it has 32 bits.
///
/// Sources: vLLM `config/model.py` (`_resolve_auto_dtype`: "Downcast for float32 models"; before 0.9 in
/// `_get_and_verify_dtype`); SGLang `srt/configs/model_config.py` (`_get_and_verify_dtype`).
pub(crate) fn served_dtype(settings: &Settings, spec: &ModelSpec) -> DType {
    let halves = matches!(settings.engine, Engine::Vllm(_) | Engine::Sglang(_));
    match settings.dtype {
        Some(dtype) => dtype,
        None if halves && spec.dtype == DType::F32 => DType::F16,
        None => spec.dtype,
    }
}

/// [`served_dtype`], where it is not the config's own.
pub(crate) fn cast_to(settings: &Settings, spec: &ModelSpec) -> Option<DType> {
    Some(served_dtype(settings, spec)).filter(|d| *d != spec.dtype)
}

/// The type of cached keys and values as a plain element type, where it is one.
pub(crate) fn plain_kv_dtype(context: &Context<'_>, engine: &str) -> Result<DType, PlanError> {
    match context.settings.kv_type {
        KvType::Auto => Ok(activation_dtype(context)),
        KvType::Plain(d) => Ok(d),
        other => Err(PlanError::Refused {
            engine: engine.to_owned(),
            setting: format!("--kv-cache-dtype {other}"),
            reason: "it is a format of vLLM's kernels".to_owned(),
        }),
    }
}

/// Degrees and stages are checked once, before any engine looks at them.
pub(crate) fn check(spec: &ModelSpec, parallel: &Parallel) -> Result<Vec<Stage>, PlanError> {
    parallel.check(spec)?;
    Ok(parallel.stages(spec.layers.len() as u64))
}

/// A term for what other processes use.
pub(crate) fn in_use(context: &Context<'_>) -> Option<Term> {
    (context.deployment.in_use > Bytes::ZERO).then(|| {
        Term::exact(Region::InUse, "other processes", context.deployment.in_use)
            .kind(Kind::Exact)
            .formula("given")
            .source("--in-use")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_engines_print_them() {
        let v = |s: &str| s.parse::<Version>().map(|v| (v.major, v.minor, v.patch));
        assert_eq!(v("v0.19.0"), Ok((0, 19, 0)));
        assert_eq!(v("0.20.1rc1.dev16+g7a1eb8ac2"), Ok((0, 20, 1)));
        assert_eq!(v("0.18"), Ok((0, 18, 0)));
        assert!(v("main").is_err());
    }

    #[test]
    fn llama_cpp_builds_and_dates_read() {
        let v = |s: &str| s.parse::<EngineVersion>();
        assert_eq!(v("b7079"), Ok(EngineVersion::Build(7079)));
        assert_eq!(v("2025-07"), Ok(EngineVersion::Date(20_250_715)));
        assert_eq!(v("2025-07-16"), Ok(EngineVersion::Date(20_250_716)));
        assert_eq!(v("ik"), Ok(EngineVersion::Ik));
        assert!(v("2025-13").is_err());
        assert!(v("7079").is_err());
        let e: Engine = "llama.cpp@2025-07".parse().unwrap();
        assert_eq!(e.to_string(), "llama.cpp 2025-07-15");
    }
}
