//! llama.cpp's figures, and its forks': a file's weights, caches over all devices, the first compute buffer.

use plimsoll_device::Device;
use plimsoll_model::ModelSpec;
use plimsoll_units::DType;

use super::figure::Figure;
use super::predict::{Estimate, Loaded, Prediction};
use super::record::Setup;
use super::version::{EngineName, Said};
use crate::engine::llamacpp::{
    Day, Net, Placement, Rules, Run, compute_buffer_bytes, kv_buffer_bytes, upper_bound,
};
use crate::error::PlanError;

/// One process, ready to be asked.
#[derive(Clone, Debug)]
pub struct LlamaRun {
    /// The model as it loads it.
    pub net: Net,
    /// Its flags.
    pub run: Run,
    /// Where its layers run.
    pub placement: Placement,
    /// Other rules that the setup's words allow, where they leave the build open.
    pub perhaps: Vec<Rules>,
    /// Why its compute buffer cannot be told from the setup, if so.
    pub partly: Option<String>,
}

/// A compute buffer.
#[derive(Clone, Debug, PartialEq)]
pub enum Compute {
    /// As allocated, MiB: expected, and the ends where the build is open.
    Exact {
        /// By the likeliest rules.
        mib: f64,
        /// Least.
        low: f64,
        /// Most.
        high: f64,
    },
    /// Not above this, MiB, and why no more is known.
    Bound(f64, String),
}

impl LlamaRun {
    /// The process that `setup` describes.
    ///
    /// # Errors
    /// The reason where it does not say enough.
    pub fn new(
        setup: &Setup,
        spec: &ModelSpec,
        engine: EngineName,
        said: Said,
        device: Option<&Device>,
        assumed: &mut Vec<String>,
    ) -> Result<Self, String> {
        let n_ctx = setup
            .max_model_len
            .ok_or("n_ctx is not given, and its default differs between builds")?;
        let (mut rules, perhaps) = if engine == EngineName::IkLlamaCpp {
            (Rules::ik(), Vec::new())
        } else {
            mainline(setup, said, assumed)
        };
        let (type_k, type_v, latent) = cache_types(setup.kv_cache_dtype.as_deref())?;
        let flash = setup.flash_attn.unwrap_or(rules.flash_by_default);
        if engine == EngineName::IkLlamaCpp {
            // `-mla 0` expands every head; `-mla 1` keeps values too unless flash attention is on.
            rules.latent = setup.mla_attn.map_or(latent, |n| n > 0);
            rules.latent_only = setup.mla_attn != Some(1) || flash;
        }
        let slots = setup.max_num_seqs.unwrap_or(1).max(1);
        let kv_unified = setup.kv_unified.unwrap_or(slots > 1);
        if slots > 1 && setup.kv_unified.is_none() {
            assumed.push("one KV buffer for all slots, as the server sets it up".to_owned());
        }
        let net = Net::new(spec);
        let cpu = setup.gpu_count == Some(0);
        let devices = setup.gpu_count.unwrap_or(1).max(1);
        let partly = match setup.layers_offloaded {
            Some((a, b)) if a < b && !cpu => Some(format!(
                "{a} of {b} layers are on a device, the rest on the host"
            )),
            // Pipeline parallelism keeps four copies of what crosses devices, unless any tensor is
            // placed by hand.
            _ if devices > 1 => Some(format!(
                "{devices} devices, and whether tensors are placed by hand is not in the report"
            )),
            _ => None,
        };
        if !type_v.is_scalar() && !flash && !rules.latent {
            return Err("quantised values need flash attention, which is off".to_owned());
        }
        Ok(Self {
            net,
            run: Run {
                n_parallel: slots,
                kv_unified,
                n_batch: setup.n_batch.unwrap_or(2048).max(1),
                n_ubatch: setup.n_ubatch.unwrap_or(512).max(1),
                flash_attention: flash,
                type_k,
                type_v,
                f16_copies: !cpu
                    && device.is_none_or(|d| matches!(d.vendor.as_str(), "nvidia" | "amd")),
                swa_full: setup.swa_full,
                n_outputs_max: setup.n_outputs_max,
                rules,
                ..Run::new(n_ctx)
            },
            placement: if cpu {
                Placement::Host
            } else {
                Placement::equal(devices.min(64))
            },
            perhaps,
            partly,
        })
    }

    /// The caches, all devices together, as the total line prints them: without padding.
    ///
    /// # Errors
    /// [`PlanError::Size`].
    pub fn kv_mib(&self) -> Result<f64, PlanError> {
        Ok(kv_buffer_bytes(&self.net, &self.run, Placement::Host, 0)?
            .total()?
            .mib())
    }

    /// The compute buffer of the first device, or the host's where there is none.
    ///
    /// # Errors
    /// [`PlanError::Size`].
    pub fn compute(&self) -> Result<Compute, PlanError> {
        let bound = |why: &str| -> Result<Compute, PlanError> {
            Ok(Compute::Bound(
                upper_bound(&self.net, &self.run)?.mib(),
                why.to_owned(),
            ))
        };
        if let Some(why) = &self.partly {
            return bound(why);
        }
        let with = |rules: Rules| -> Result<Option<f64>, PlanError> {
            let run = Run { rules, ..self.run };
            let c = compute_buffer_bytes(&self.net, &run, self.placement)?;
            Ok(c.map(|c| c.devices.first().copied().unwrap_or(c.host).mib()))
        };
        let Some(mib) = with(self.run.rules)? else {
            return bound(
                self.net
                    .uncovered
                    .as_deref()
                    .unwrap_or("this build's graph of the architecture is not modelled"),
            );
        };
        let (mut low, mut high) = (mib, mib);
        for rules in &self.perhaps {
            if let Some(x) = with(*rules)? {
                low = low.min(x);
                high = high.max(x);
            }
        }
        Ok(Compute::Exact { mib, low, high })
    }
}

/// Mainline's rules by build number or date, and others that the words leave open.
fn mainline(setup: &Setup, said: Said, assumed: &mut Vec<String>) -> (Rules, Vec<Rules>) {
    let text = setup.engine_version.as_deref().unwrap_or("");
    // "mainline or ik fork": both print such lines.
    let mut perhaps = if text.to_ascii_lowercase().contains(" or ik") {
        vec![Rules::ik()]
    } else {
        Vec::new()
    };
    if let Some(n) = build(text) {
        return (Rules::on(Day::of_build(n)), perhaps);
    }
    let on = |day: u32| Rules::on(Day(day));
    match (said, year(text)) {
        (Said::Month { year, month, .. }, _) => {
            let first = year.saturating_mul(10_000) + month * 100;
            perhaps.extend([on(first + 1), on(first + 31)]);
            assumed.push(format!("llama.cpp as of {}", first + 15));
            (on(first + 15), perhaps)
        }
        (_, Some(year)) => {
            let first = year.saturating_mul(10_000);
            perhaps.extend((1..=12).map(|m| on(first + m * 100 + 1)));
            assumed.push(format!("llama.cpp as of {}", first + 701));
            (on(first + 701), perhaps)
        }
        _ => {
            assumed.push("the newest llama.cpp modelled".to_owned());
            (Rules::newest(), perhaps)
        }
    }
}

/// The number after `build`, or of `b7079`.
fn build(text: &str) -> Option<u32> {
    let lower = text.to_ascii_lowercase();
    let digits = |s: &str| -> Option<u32> {
        let s = s.trim_start_matches([':', '=', ' ']);
        let end = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        s[..end]
            .parse()
            .ok()
            .filter(|n| (100..1_000_000).contains(n))
    };
    if let Some(at) = lower.find("build") {
        return digits(&lower[at + "build".len()..]);
    }
    lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .find_map(|w| digits(w.strip_prefix('b')?))
}

fn year(text: &str) -> Option<u32> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter(|w| w.len() == 4)
        .find_map(|w| w.parse().ok().filter(|y| (2023..2100).contains(y)))
}

/// `K:q8_0, V:f16`, `c^KV:f16` (the fork's latent cache) or one name for both; and whether the
/// cache is the latent one.
fn cache_types(text: Option<&str>) -> Result<(DType, DType, bool), String> {
    let Some(text) = text else {
        return Ok((DType::F16, DType::F16, false));
    };
    let one = |t: &str| -> Result<DType, String> {
        let t = t.trim();
        if t.eq_ignore_ascii_case("auto") {
            return Ok(DType::F16);
        }
        t.parse()
            .map_err(|_| format!("KV cache type `{t}` is not known"))
    };
    let (mut k, mut v, mut latent) = (None, None, false);
    for part in text.split(',') {
        match part.split_once(':') {
            Some((name, t)) if name.trim() == "V" => v = Some(one(t)?),
            Some((name, t)) => {
                latent |= name.trim().starts_with("c^KV");
                k = Some(one(t)?);
            }
            None => k = Some(one(part)?),
        }
    }
    let k = k.unwrap_or(DType::F16);
    Ok((k, v.unwrap_or(k), latent))
}

/// Sizes of files are printed with two or three decimals.
const FILE_ROUNDING_GIB: f64 = 0.005;

/// What a file of `gib` takes in buffers. The host's buffers of a mapped file span what lies elsewhere too, on devices or,
/// where quantised matrices are laid out anew for the processor (`CPU_REPACK`), on the host itself: their sum is the file at
/// least, and twice it at most.
fn file_buffers(setup: &Setup, gib: f64, repacked: bool) -> Estimate {
    let beside_devices = setup.layers_offloaded.is_some_and(|(n, _)| n > 0);
    let elsewhere = beside_devices || repacked;
    let most = if elsewhere { 2.0 * gib } else { gib };
    Estimate {
        value: gib,
        low: gib - FILE_ROUNDING_GIB,
        high: most + FILE_ROUNDING_GIB,
        kind: if elsewhere { "bound" } else { "derived" },
    }
}

/// Whether the processor's kernels may want matrices of this file otherwise than they are stored (`ggml-cpu/repack.cpp`: which
/// ones depends on its instructions); the ik fork does so in place, when it is told.
fn may_repack(setup: &Setup, spec: &ModelSpec, engine: EngineName) -> bool {
    const OTHERWISE: [DType; 8] = [
        DType::Q4_0,
        DType::Q8_0,
        DType::Q2K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
        DType::Iq4Nl,
        DType::Mxfp4,
    ];
    if engine != EngineName::LlamaCpp || setup.gpu_count != Some(0) {
        return false;
    }
    if spec.from_headers {
        let mut matrices = spec.tensors.iter().filter(|t| t.shape.len() > 1);
        return matrices.any(|t| OTHERWISE.contains(&t.dtype));
    }
    let plain = ["F16", "BF16", "F32"];
    setup
        .quantization
        .as_deref()
        .is_some_and(|q| !q.split_whitespace().any(|w| plain.contains(&w)))
}

/// Weights, caches and compute buffers.
pub(super) fn figures(
    setup: &Setup,
    loaded: Loaded,
    device: Result<Device, String>,
    p: &mut Prediction,
) -> Result<(), String> {
    let spec = loaded.spec;
    let run = LlamaRun::new(
        setup,
        &spec,
        p.engine,
        p.said,
        device.as_ref().ok(),
        &mut p.assumed,
    )?;
    let stored = if spec.from_headers {
        Some(spec.stored_bytes().map_err(|e| e.to_string())?.gib())
    } else {
        setup.file_gib
    };
    p.figures.push((
        Figure::Weights,
        stored.map_or_else(
            || Err("the tensor types of a GGUF file are in the file, not in the report".to_owned()),
            |gib| Ok(file_buffers(setup, gib, may_repack(setup, &spec, p.engine))),
        ),
    ));
    let kv = run.kv_mib().map_err(|e| e.to_string())?;
    let exact = |value: f64, low: f64, high: f64| Estimate {
        value,
        low,
        high,
        kind: if low < high { "derived" } else { "exact" },
    };
    p.figures.push((Figure::KvBuffer, Ok(exact(kv, kv, kv))));
    let compute = match run.compute().map_err(|e| e.to_string())? {
        Compute::Exact { mib, low, high } => Ok(exact(mib, low, high)),
        Compute::Bound(mib, why) => {
            p.assumed
                .push(format!("compute buffer: only a bound is known: {why}"));
            Ok(Estimate {
                value: mib,
                low: 0.0,
                high: mib,
                kind: "bound",
            })
        }
    };
    p.figures.push((Figure::ComputeBuffer, compute));
    p.start = Err("llama.cpp starts whatever is asked, or fails in its allocator".to_owned());
    p.llama = Some(run);
    p.spec = Some(spec);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_and_years() {
        assert_eq!(build("mainline build 3772 (57064fba)"), Some(3772));
        assert_eq!(build("fork, build = 3597 (127c6ee6)"), Some(3597));
        assert_eq!(build("see source, build: 5781 (ba3)"), Some(5781));
        assert_eq!(build("b7079"), Some(7079));
        assert_eq!(build("mainline 2025 (mobile build)"), None);
        assert_eq!(year("mainline 2025 (mobile build)"), Some(2025));
    }

    #[test]
    fn types_of_caches() {
        assert_eq!(
            cache_types(Some("K:iq4_nl, V:f16")),
            Ok((DType::Iq4Nl, DType::F16, false))
        );
        assert_eq!(
            cache_types(Some("c^KV:q8_0")),
            Ok((DType::Q8_0, DType::Q8_0, true))
        );
        assert!(cache_types(Some("K:potato")).is_err());
    }
}
