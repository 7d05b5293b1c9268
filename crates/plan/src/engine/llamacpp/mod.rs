//! `llama.cpp`: cells for every slot, allocated at load, beside weights and a compute buffer.
//!
//! llama.cpp has no fraction of memory: it allocates what its flags ask for, or fails. The rules
//! are read from its source at commit 0c1e57098; what earlier builds and the ik fork do otherwise
//! is a set of switches ([`Rules`]). Caches and compute buffers are checked to the byte against the
//! accounting of llama.cpp itself (`tests/llamacpp.rs`).
//!
//! Users map to slots (`llama-server -np USERS -c USERS × CONTEXT`), pipeline stages to devices of
//! a layer split; on processors everything lies on the host (`host.rs`). Not modelled: layers left on the host, row split, draft models, LoRA.

mod compute;
mod host;
mod kv;
mod net;
mod run;
mod split;
mod version;
mod weights;

use std::ops::Range;

use plimsoll_model::{LayerSpec, Mixer};
use plimsoll_units::{Bytes, DType};

pub use compute::{
    ComputeBytes, Placement, at_the_peak, compute_buffer_bytes, compute_without_shortcut, graph_of,
    upper_bound,
};
pub use kv::{CellsLaw, KvBytes, kv_buffer_bytes};
pub use net::{Arch, Net};
pub use run::{BATCH, MAX_SEQUENCES, Run, Sizes, UBATCH};
pub use split::{MAX_DEVICES, Split};
pub use version::{Day, Rules};
pub use weights::{WeightBytes, host_weight_bytes, weight_bytes};

use super::ideal::whole_device;
use super::{Context, EngineStage, EngineVersion, Takes, in_use};
use crate::error::PlanError;
use crate::settings::KvType;
use crate::term::{Kind, Region, Term};

/// CUDA context, modules, cuBLAS workspaces and the pool of temporary buffers, until a run measures
/// them: twice what contexts with lazily loaded modules were seen to take (FORMULAS section 3.3).
const DRIVER_BOUND_MIB: u64 = 640;
/// What `--fit` leaves free on every device.
const FIT_MARGIN_MIB: u64 = 1024;

/// The layers that device `device` runs.
pub(super) fn layers_of(net: &Net, placement: Placement, device: u64) -> Range<u64> {
    let layers = net.layers.len() as u64;
    match placement {
        Placement::Host => 0..layers,
        Placement::Devices(split) => {
            let first = |d: u64| (0..layers).find(|i| split.device_of(*i, layers) >= d);
            first(device).unwrap_or(layers)..first(device + 1).unwrap_or(layers)
        }
    }
}

/// The devices of a deployment, by what is free on each.
fn split(context: &Context<'_>, version: EngineVersion) -> Result<Split, PlanError> {
    let d = context.deployment;
    let Some(kinds) = &d.kinds else {
        return Ok(Split::Equal(d.parallel.pp.max(1)));
    };
    let free: Vec<Bytes> = kinds
        .devices
        .iter()
        .map(|k| k.usable.saturating_sub(d.in_use))
        .collect();
    Split::of(&free).ok_or_else(|| {
        refused(
            version,
            format!("{} devices", free.len()),
            format!("it splits layers over at most {MAX_DEVICES} devices, each with free memory"),
        )
    })
}

fn refused(version: EngineVersion, setting: String, reason: impl Into<String>) -> PlanError {
    PlanError::Refused {
        engine: super::Engine::LlamaCpp(version).to_string(),
        setting,
        reason: reason.into(),
    }
}

pub(super) fn stage(
    context: &Context<'_>,
    version: EngineVersion,
) -> Result<EngineStage, PlanError> {
    let parallel = &context.deployment.parallel;
    if parallel.tp > 1 || parallel.expert_parallel {
        return Err(refused(
            version,
            format!("--tp {}", parallel.tp),
            "its row split is not modelled; use --pp, which splits by layer",
        ));
    }
    if context.settings.kv_memory.is_some() {
        return Err(refused(
            version,
            "--kv-memory".to_owned(),
            "its cache follows from context and slots; use --max-model-len and --max-num-seqs",
        ));
    }
    let settings = context.settings;
    if settings.draft.is_some() || settings.mtp {
        return Err(refused(
            version,
            "a draft".to_owned(),
            "the second context of its drafts is not modelled",
        ));
    }
    if let Some(l) = settings.lora {
        return Err(refused(
            version,
            format!("--max-loras {}", l.slots),
            "it has no slots for adapters: each file of --lora is loaded beside the model",
        ));
    }
    if context.users > MAX_SEQUENCES {
        return Err(refused(
            version,
            format!("{} sequences", context.users),
            format!("a context has at most {MAX_SEQUENCES} (LLAMA_MAX_SEQ)"),
        ));
    }
    let run = flags(context, version)?;
    let net = Net::new(context.spec);
    check_types(&net, &run, version)?;
    let on_host = context.deployment.device.vendor == "cpu";
    let placement = if on_host {
        Placement::Host
    } else {
        Placement::Devices(split(context, version)?)
    };
    let (terms, notes) = match placement {
        Placement::Host if parallel.pp > 1 => {
            return Err(refused(
                version,
                format!("--pp {}", parallel.pp),
                "processors are one device",
            ));
        }
        Placement::Host => (
            host::terms(context, &net)?,
            host::notes(context, &net, &run)?,
        ),
        Placement::Devices(split) => {
            let weights = weight_bytes(context.spec, settings.dtype, split)?;
            let notes = notes(context, &net, &run, &weights, placement)?;
            (on_device(context, &net, &weights, placement)?, notes)
        }
    };
    let device = context.stage.index;
    let own = layers_of(&net, placement, device);
    let law = CellsLaw::new(
        net,
        run,
        placement,
        device,
        settings.max_model_len,
        settings.max_num_seqs.unwrap_or(0),
    )?;
    Ok(EngineStage {
        layers: Some(own),
        budget: whole_device(context),
        terms,
        outside: in_use(context).into_iter().collect(),
        host: Vec::new(),
        kv: Box::new(law),
        takes: Takes::Need,
        notes,
    })
}

/// What lies on a device whatever the load is.
fn on_device(
    context: &Context<'_>,
    net: &Net,
    weights: &WeightBytes,
    placement: Placement,
) -> Result<Vec<Term>, PlanError> {
    let device = context.stage.index;
    let own = layers_of(net, placement, device);
    let d = usize::try_from(device).unwrap_or(usize::MAX);
    let mut terms = Vec::new();
    for (role, bytes, tensors) in weights.devices.get(d).into_iter().flatten() {
        terms.push(
            Term::exact(Region::Weights, role.name(), *bytes)
                .formula("tensors of this device's layers, each padded to 128 bytes")
                .input("tensors", tensors)
                .input("layers", format!("{}..{}", own.start, own.end))
                .input("read from", read_from(context))
                .source("llama.cpp: llama-model.cpp load_tensors"),
        );
    }
    terms.push(
        Term::exact(
            Region::Driver,
            "context and pools",
            Bytes::from_mib(DRIVER_BOUND_MIB)?,
        )
        .kind(Kind::Bound)
        .formula("fixed bound for context, modules, cuBLAS and temporary buffers")
        .source("plimsoll-plan: engine/llamacpp/mod.rs"),
    );
    Ok(terms)
}

const fn read_from(context: &Context<'_>) -> &'static str {
    if context.spec.from_headers {
        "file headers"
    } else {
        "config, as the converter writes it"
    }
}

/// The flags that do not depend on the load.
fn flags(context: &Context<'_>, version: EngineVersion) -> Result<Run, PlanError> {
    let s = context.settings;
    let rules = Rules::of(version);
    let type_k = cache_type(s.kv_type, version)?;
    Ok(Run {
        kv_unified: s.kv_unified,
        n_batch: s.max_num_batched_tokens.unwrap_or(BATCH).max(1),
        n_ubatch: s.ubatch.unwrap_or(UBATCH).max(1),
        flash_attention: s.flash_attention.unwrap_or(rules.flash_by_default),
        type_k,
        type_v: s.kv_type_v.map_or(Ok(type_k), |t| cache_type(t, version))?,
        swa_full: s.swa_full,
        // HIP builds compile the same backend as CUDA's.
        f16_copies: matches!(
            context
                .deployment
                .device
                .vendor
                .to_ascii_lowercase()
                .as_str(),
            "nvidia" | "amd"
        ),
        rules,
        ..Run::new(1)
    })
}

/// Whether its caches can have this type (`common/arg.cpp: kv_cache_types`).
#[must_use]
pub const fn caches(d: DType) -> bool {
    matches!(
        d,
        DType::F32
            | DType::F16
            | DType::Bf16
            | DType::Q8_0
            | DType::Q4_0
            | DType::Q4_1
            | DType::Iq4Nl
            | DType::Q5_0
            | DType::Q5_1
    )
}

/// A type that the cache accepts; f16 unless it is asked for.
fn cache_type(t: KvType, version: EngineVersion) -> Result<DType, PlanError> {
    match t {
        KvType::Auto => Ok(DType::F16),
        KvType::Plain(d) if caches(d) => Ok(d),
        other => Err(refused(
            version,
            format!("--kv-cache-dtype {other}"),
            "its caches are f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl",
        )),
    }
}

fn check_types(net: &Net, run: &Run, version: EngineVersion) -> Result<(), PlanError> {
    let latent = |l: &LayerSpec| matches!(l.mixer, Mixer::Latent(_));
    if !run.type_v.is_scalar() && !run.flash_attention {
        return Err(refused(
            version,
            format!("--cache-type-v {}", run.type_v),
            "quantised values need flash attention",
        ));
    }
    if run.type_k != run.type_v && net.layers.iter().any(latent) {
        return Err(refused(
            version,
            format!("--cache-type-v {}", run.type_v),
            "a latent cache has one type",
        ));
    }
    for l in &net.layers {
        let Mixer::Attention(a) = l.mixer else {
            continue;
        };
        for (flag, ty, head) in [("k", run.type_k, a.k_dim), ("v", run.type_v, a.v_dim)] {
            if !head.is_multiple_of(ty.block_elements()) {
                return Err(refused(
                    version,
                    format!("--cache-type-{flag} {ty}"),
                    format!(
                        "its blocks of {} do not divide heads of {head} elements",
                        ty.block_elements()
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn notes(
    context: &Context<'_>,
    net: &Net,
    run: &Run,
    weights: &WeightBytes,
    placement: Placement,
) -> Result<Vec<String>, PlanError> {
    let mut out = Vec::new();
    let slots = context.users.max(1);
    let output = Bytes::product([net.vocab, slots, 4])?;
    out.push(format!(
        "host memory beside it: {} of lookup tables, {output} of output buffer, and the compute \
         buffer's part",
        weights.host
    ));
    out.push(format!(
        "llama.cpp takes no share of memory; its --fit would leave {FIT_MARGIN_MIB} MiB free per device"
    ));
    if let Placement::Devices(split) = placement
        && split.count() > 1
    {
        let equal = matches!(split, Split::Equal(_));
        let layers: Vec<String> = (0..split.count())
            .map(|d| {
                let r = layers_of(net, placement, d);
                format!("{}..{}", r.start, r.end)
            })
            .collect();
        out.push(format!(
            "layer split over devices {}: layers {}",
            if equal {
                "with equal free memory"
            } else {
                "by their free memory, in the order of their numbers"
            },
            layers.join(", ")
        ));
    }
    out.extend(caveats(context, net, run));
    Ok(out)
}

/// What is known less well than the rest.
fn caveats(context: &Context<'_>, net: &Net, run: &Run) -> Vec<String> {
    let mut out = Vec::new();
    if let Err(why) = graph_of(net, run) {
        out.push(format!("the compute buffer is a bound: {why}"));
    }
    if !context.spec.from_headers && context.spec.quant.is_some() {
        out.push(
            "weights are those of this checkpoint; a GGUF file of it will differ: give its header"
                .to_owned(),
        );
    }
    out
}
