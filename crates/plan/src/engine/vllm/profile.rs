//! What the start-up profile measures besides weights: activation peak, non-torch memory, graphs.
//!
//! The profile run (`v1/worker/gpu_model_runner.py: profile_run`) sends T tokens through the model,
//! then R rows through head and sampler; torch's peak over both is the activation peak. So it is the
//! larger of two phases, plus what stays allocated through both. Slopes are counted from the source;
//! what is left to fit is named in `constants`.

use plimsoll_model::{Ffn, Mixer};
use plimsoll_units::{Bytes, SizeOverflow};

use super::super::{Context, Version, activation_dtype};
use super::Defaults;
use super::constants as fitted;
use crate::error::PlanError;
use crate::term::{Kind, Region, Term};

/// Before this release the sampler sorted, and more was counted: a bound, not a model.
const FIRST_MODELLED: Version = Version {
    major: 0,
    minor: 17,
    patch: 0,
};
/// From this release on the graphs' estimate is taken off the KV cache.
const GRAPHS_SUBTRACTED: Version = Version {
    major: 0,
    minor: 21,
    patch: 0,
};
/// Bytes of the sorting sampler beyond the logits, per row and entry: f32 copy, sorted values and 64-bit
/// indices, and the sort's own copies of both (`v1/sample/ops/topk_topp_sampler.py`, and torch's sort).
const SORTING: u64 = 4 + 4 + 8 + 4 + 8 + 8;
/// With fewer rows than this the Triton top-k/top-p kernel is not used, and the sampler sorts.
const TRITON_ROWS: u64 = 8;
/// What cuBLAS takes from torch's allocator: 32 MiB from compute capability 9.0 on, 8.125 MiB before.
const CUBLAS_HOPPER: u64 = 32 << 20;
const CUBLAS_OLDER: u64 = (8 << 20) + (1 << 17);
/// Streaming multiprocessors and L2 cache assumed where a device's are unknown: those of an H100.
const MULTIPROCESSORS: u64 = 132;
const L2_BYTES: u64 = 50 << 20;

/// Which phase of the profile run has the peak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Head and sampler over R rows.
    Sampler,
    /// A decoder piece over T tokens.
    Forward,
    /// Compilation with a cold cache.
    Compile,
}

impl Phase {
    const fn formula(self) -> &'static str {
        match self {
            Self::Sampler => {
                "R x vocabulary x bytes per entry + programs x vocabulary x 4 + (T + 2 R) x hidden x type"
            }
            Self::Forward => "T x (widest piece + 2 x hidden) x type + L2 flush buffer",
            Self::Compile => "embedding rows x hidden x type + 2 x T x hidden x type",
        }
    }
}

/// A peak with its parts.
struct Peak {
    bytes: u64,
    phase: Phase,
    inputs: Vec<(&'static str, u64)>,
}

fn sum(parts: &[u64]) -> Result<u64, SizeOverflow> {
    parts
        .iter()
        .try_fold(0_u64, |acc, p| acc.checked_add(*p))
        .ok_or(SizeOverflow)
}

fn product(factors: &[u64]) -> Result<u64, SizeOverflow> {
    Bytes::product(factors.iter().copied()).map(Bytes::get)
}

/// Head and sampler over R rows, while the hidden states of T tokens are still held.
///
/// Logits in the model's type, their f32 copy (none for f32 models), probabilities and the
/// exponential noise to divide by; the Triton top-k/top-p kernel keeps a row of f32 per program. The
/// sum was checked by running vLLM 0.19's sampler under a tracker of live storages
/// (`tools/research/vllm_activation.py`).
fn sampler(
    context: &Context<'_>,
    version: Version,
    d: &Defaults,
    width: u64,
) -> Result<Peak, PlanError> {
    let spec = context.spec;
    let r = d.sequences.min(d.batched_tokens);
    let sorts = version < FIRST_MODELLED || r < TRITON_ROWS;
    let copy = if width == 4 { 0 } else { 4 };
    let per_entry = if sorts {
        width + SORTING
    } else {
        width + copy + 4 + 4
    };
    let sms = context
        .deployment
        .device
        .multiprocessors
        .unwrap_or(MULTIPROCESSORS);
    let buffer_rows = if sorts {
        0
    } else {
        sms.min(r)
            .checked_next_power_of_two()
            .map_or(sms, |n| n.min(sms))
    };
    let bytes = sum(&[
        product(&[r, spec.vocab, per_entry])?,
        product(&[buffer_rows, spec.vocab, 4])?,
        product(&[d.batched_tokens, spec.hidden, width])?,
        // The sampled rows' hidden states and the random ones that replace them.
        product(&[2, r, spec.hidden, width])?,
    ])?;
    Ok(Peak {
        bytes,
        phase: Phase::Sampler,
        inputs: vec![
            ("R", r),
            ("T", d.batched_tokens),
            ("vocabulary", spec.vocab),
            ("bytes per row and entry", per_entry),
            ("programs", buffer_rows),
            ("hidden", spec.hidden),
        ],
    })
}

/// The widest piece between two attention calls over T tokens: both residuals and the attention output
/// are held; MLP: gate, up and their product; projections: fused output, rotated parts, empty output.
fn forward(context: &Context<'_>, d: &Defaults, width: u64) -> Result<Peak, PlanError> {
    let spec = context.spec;
    let tp = context.deployment.parallel.tp.max(1);
    let mut widest = 0_u64;
    for (i, layer) in spec.layers.iter().enumerate() {
        if !context.stage.layers.contains(&(i as u64)) {
            continue;
        }
        let (held, projections) = match layer.mixer {
            Mixer::Attention(a) => {
                let q = product(&[a.q_heads / tp, a.k_dim])?;
                let kv = product(&[(a.kv_heads / tp).max(1), a.k_dim + a.v_dim])?;
                (q, sum(&[q, kv, q, kv / 2, q])?)
            }
            Mixer::Latent(a) => {
                let q = product(&[a.q_heads / tp, a.nope_dim + a.rope_dim])?;
                let v = product(&[a.q_heads / tp, a.v_dim])?;
                (v, sum(&[q, q, v, a.rank + a.rope_dim])?)
            }
            Mixer::State(s) => {
                let out = product(&[s.heads / tp, s.rows])?;
                (out, sum(&[product(&[2, s.conv_channels / tp])?, out])?)
            }
            Mixer::None => (0, 0),
        };
        let ffn = match layer.ffn {
            Ffn::Dense {
                intermediate,
                gated,
            } => product(&[intermediate / tp, if gated { 3 } else { 2 }])?,
            // The routed experts' buffers are a workspace of their own; the shared expert is dense.
            Ffn::Moe(m) => sum(&[product(&[m.shared / tp, 3])?, spec.hidden])?,
            Ffn::None => 0,
        };
        widest = widest.max(sum(&[held, projections.max(ffn)])?);
    }
    let row = sum(&[widest, product(&[2, spec.hidden])?])?;
    let l2 = context.deployment.device.l2_bytes.unwrap_or(L2_BYTES);
    Ok(Peak {
        bytes: sum(&[product(&[d.batched_tokens, row, width])?, l2])?,
        phase: Phase::Forward,
        inputs: vec![
            ("T", d.batched_tokens),
            ("widest piece, elements per token", widest),
            ("hidden", spec.hidden),
            ("L2 flush buffer", l2),
        ],
    })
}

/// Compilation of the first piece with a cold cache: Inductor times the embedding kernel on random
/// inputs, a copy of the table among them. Inferred from four reports; with a warm cache it is not there.
fn compile(context: &Context<'_>, d: &Defaults, width: u64) -> Result<Option<Peak>, PlanError> {
    let spec = context.spec;
    if !context.stage.is_first() || spec.encoder.is_some() || context.settings.enforce_eager {
        return Ok(None);
    }
    let rows = spec.vocab.div_ceil(64).saturating_mul(64) / context.deployment.parallel.tp.max(1);
    let bytes = sum(&[
        product(&[rows, spec.hidden, width])?,
        product(&[2, d.batched_tokens, spec.hidden, width])?,
    ])?;
    Ok(Some(Peak {
        bytes,
        phase: Phase::Compile,
        inputs: vec![
            ("embedding rows", rows),
            ("T", d.batched_tokens),
            ("hidden", spec.hidden),
        ],
    }))
}

/// Workspace of the fused expert kernels, allocated once and kept: outputs of the first product (or of
/// the second, which reuses it) and of the activation, for every token and chosen expert.
///
/// Source: `model_executor/layers/fused_moe/experts/triton_moe.py: workspace_shapes`.
fn experts(
    context: &Context<'_>,
    d: &Defaults,
    width: u64,
    mxfp4_step: Option<u64>,
) -> Result<Option<Term>, PlanError> {
    let spec = context.spec;
    let parallel = &context.deployment.parallel;
    // Formats with kernels of their own bring their own scratch (mxfp4 on Hopper computes in place).
    let mxfp4 = spec
        .quant
        .as_ref()
        .is_some_and(|q| matches!(q.format, plimsoll_model::quant::QuantFormat::Mxfp4));
    let widest = spec
        .layers
        .iter()
        .enumerate()
        .filter(|(i, _)| context.stage.layers.contains(&(*i as u64)))
        .filter_map(|(_, l)| match l.ffn {
            Ffn::Moe(m) => Some(m),
            Ffn::Dense { .. } | Ffn::None => None,
        })
        .max_by_key(|m| m.top_k.saturating_mul(m.intermediate));
    let (Some(m), false) = (widest, mxfp4 && mxfp4_step.is_none()) else {
        return Ok(None);
    };
    let inner = if parallel.expert_parallel {
        m.intermediate
    } else {
        m.intermediate / parallel.tp.max(1)
    };
    let step = mxfp4_step.filter(|_| mxfp4).unwrap_or(1);
    let up = |n: u64| product(&[n.div_ceil(step), step]);
    let (inner, hidden) = (up(inner)?, up(spec.hidden)?);
    let two = product(&[2, inner])?;
    // workspace13 serves the first product's output and the second's; workspace2 the activation's.
    let per_choice = sum(&[two.max(hidden), inner.max(hidden)])?;
    let bytes = product(&[d.batched_tokens, m.top_k, per_choice, width])?;
    Ok(Some(
        Term::exact(Region::Workspace, "expert workspace", Bytes::new(bytes))
            .formula("T x experts per token x (max(2 inner, hidden) + max(inner, hidden)) x type")
            .input("T", d.batched_tokens)
            .input("experts per token", m.top_k)
            .input("inner", inner)
            .input("hidden", hidden)
            .source("vLLM fused_moe/experts/triton_moe.py: workspace_shapes; v1/worker/workspace.py keeps it"),
    ))
}

/// Images as they come in and what the tower makes of them, for as many as T tokens hold.
fn encoder(context: &Context<'_>, d: &Defaults, width: u64) -> Result<u64, PlanError> {
    let Some(e) = context.spec.encoder.filter(|_| context.stage.is_first()) else {
        return Ok(0);
    };
    let (Some(patches), Some(tokens)) = (e.patches, e.tokens_per_image) else {
        return Ok(0);
    };
    let images = (d.batched_tokens / tokens.max(1)).max(1);
    Ok(sum(&[
        product(&[images, patches, e.patch_elements, width])?,
        product(&[images, tokens, context.spec.hidden, width])?,
    ])?)
}

/// Activation peak, expert workspace, non-torch memory and graphs.
pub(super) fn terms(
    context: &Context<'_>,
    version: Version,
    d: &Defaults,
) -> Result<Vec<Term>, PlanError> {
    let width = activation_dtype(context).bytes(1)?.get();
    if super::is_cpu(context) {
        return on_cpu(context, version, d, width, None).map(|t| vec![t]);
    }
    let newer = context
        .deployment
        .device
        .compute_capability
        .is_none_or(|c| c >= (9, 0));
    let cublas = if newer { CUBLAS_HOPPER } else { CUBLAS_OLDER };
    let forward = forward(context, d, width)?;
    let forward_warm = forward
        .bytes
        .saturating_sub(context.deployment.device.l2_bytes.unwrap_or(L2_BYTES));
    let mut peaks = vec![forward];
    if context.stage.is_last() {
        peaks.push(sampler(context, version, d, width)?);
    }
    let warm = peaks
        .iter()
        .map(|p| {
            if p.phase == Phase::Forward {
                forward_warm
            } else {
                p.bytes
            }
        })
        .max()
        .unwrap_or(0);
    // Compilation needs torch 2.9's combo kernels; sorting releases came without.
    if version >= FIRST_MODELLED {
        peaks.extend(compile(context, d, width)?);
    }
    let Some(peak) = peaks.into_iter().max_by_key(|p| p.bytes) else {
        return Err(PlanError::Load("the stage runs nothing".to_owned()));
    };
    let multimodal = encoder(context, d, width)?;
    let workspace = experts(context, d, width, None)?;
    // The runner's own copies of what an earlier stage hands over.
    let received = if context.stage.is_first() {
        0
    } else {
        product(&[2, d.batched_tokens, context.spec.hidden, width])?
    };
    let kept = sum(&[
        multimodal,
        cublas,
        received,
        workspace.as_ref().map_or(0, |t| t.bytes.get()),
    ])?;
    // The engine prints one figure: peak and what is kept through it.
    let total = sum(&[peak.bytes, kept])?;
    let (low, high) = fitted::activation_interval(
        context,
        version,
        d,
        &fitted::Measured {
            phase: peak.phase,
            total,
            warm: sum(&[warm, kept])?,
            experts: workspace.is_some(),
        },
    );
    let mut term = Term::exact(Region::Activations, "activation peak", Bytes::new(total))
        .kind(Kind::Calibrated { low: Bytes::from_f64(low)?, high: Bytes::from_f64(high)? })
        .formula(format!("{} + cuBLAS + images + expert workspace + received", peak.phase.formula()))
        .source("vLLM v1/worker/gpu_model_runner.py: profile_run, _dummy_sampler_run; v1/sample/sampler.py");
    for (name, value) in peak.inputs {
        term = term.input(name, value);
    }
    term = term
        .input("type, bytes", width)
        .input("cuBLAS workspace", cublas)
        .input("images and their embeddings", multimodal)
        .input("received from the stage before", received);
    term = term.input("checked on", fitted::MEASURED_ON);
    if let Some(w) = workspace {
        term = term.input(
            "expert workspace",
            format!("{} = {}", w.bytes.get(), w.formula),
        );
    }
    if version < super::FIRST_V1 {
        term = term.kind(Kind::Bound);
    } else if version < FIRST_MODELLED {
        // Seen from nearly nothing up to the expected figure.
        term = term.kind(Kind::Calibrated {
            low: Bytes::ZERO,
            high: Bytes::from_f64(high)?,
        });
    }
    let mut terms = vec![term];
    terms.push(non_torch(context, version)?);
    if let Some(g) = graphs(context, version, d)? {
        terms.push(g);
    }
    Ok(terms)
}

/// What a step of `tokens` with `sequences` rows of logits needs, bounded by the larger phase: for engines whose own
/// buffers are not counted. The experts' workspace is in it whatever their format; that of mxfp4 ones has sizes rounded up
/// to `mxfp4_step`.
pub(in crate::engine) fn activation_bound(
    context: &Context<'_>,
    tokens: u64,
    sequences: u64,
    mxfp4_step: u64,
) -> Result<Term, PlanError> {
    let width = activation_dtype(context).bytes(1)?.get();
    let sizes = Defaults {
        batched_tokens: tokens,
        sequences,
        gpu_memory_utilization: 0.0,
        async_scheduling: false,
    };
    let mut term = on_cpu(context, super::NEWEST, &sizes, width, Some(mxfp4_step))?;
    "plimsoll-plan: engine/vllm/profile.rs, as for vLLM".clone_into(&mut term.source);
    Ok(term.input("T", tokens).input("R", sequences))
}

/// The CPU backend profiles nothing that it subtracts; what a step needs is bounded by the larger phase.
fn on_cpu(
    context: &Context<'_>,
    version: Version,
    d: &Defaults,
    width: u64,
    mxfp4_step: Option<u64>,
) -> Result<Term, PlanError> {
    let mut bytes = forward(context, d, width)?.bytes;
    if context.stage.is_last() {
        bytes = bytes.max(sampler(context, version, d, width)?.bytes);
    }
    let workspace = experts(context, d, width, mxfp4_step)?.map_or(0, |t| t.bytes.get());
    let all = Bytes::new(sum(&[bytes, workspace, encoder(context, d, width)?])?);
    Ok(Term::exact(Region::Activations, "activation peak", all)
        .kind(Kind::Bound)
        .formula("the larger of forward pass and sampler, counted as on a GPU")
        .source("plimsoll-plan: engine/vllm/profile.rs; not measured on CPUs"))
}

/// Modules, and the communicator that the first collective makes, after the first snapshot.
fn non_torch(context: &Context<'_>, version: Version) -> Result<Term, PlanError> {
    let parallel = &context.deployment.parallel;
    let layers = context.stage.layers.end - context.stage.layers.start;
    let (expected, low, high) = fitted::non_torch(context, version, layers);
    let gib = |g: f64| Bytes::from_gib(g);
    Ok(Term::exact(Region::Collectives, "non-torch", gib(expected)?)
        .kind(Kind::Calibrated { low: gib(low)?, high: gib(high)? })
        .formula("base of the release and kind of parallelism + 0.0005 GiB x TP x layers")
        .input("tp", parallel.tp)
        .input("pp", parallel.pp)
        .input("layers", layers)
        .source("fitted: see `plimsoll accuracy --constants`; vLLM utils/mem_utils.py: non_torch_increase"))
}

/// The trial capture, where the release takes it off the KV cache: the larger first capture of the two
/// modes, and every further size at the cost of a second one.
fn graphs(
    context: &Context<'_>,
    version: Version,
    d: &Defaults,
) -> Result<Option<Term>, PlanError> {
    if version < GRAPHS_SUBTRACTED || context.settings.enforce_eager {
        return Ok(None);
    }
    let spec = context.spec;
    let tp = context.deployment.parallel.tp.max(1);
    let layers = context.stage.layers.end - context.stage.layers.start;
    let (sizes, largest) = capture_sizes(d);
    let width = activation_dtype(context).bytes(1)?.get();
    let experts = crate::evaluate::has_experts(spec);
    let widest = spec
        .layers
        .iter()
        .map(|l| match l.ffn {
            Ffn::Dense { intermediate, .. } => intermediate,
            Ffn::Moe(m) => m
                .intermediate
                .saturating_mul(m.top_k)
                .saturating_add(m.shared),
            Ffn::None => 0,
        })
        .max()
        .unwrap_or(0);
    let heads = spec.q_heads() / tp;
    let head = spec.layers.iter().find_map(|l| match l.mixer {
        Mixer::Attention(a) => Some(a.v_dim),
        Mixer::Latent(a) => Some(a.v_dim),
        Mixer::State(_) | Mixer::None => None,
    });
    // FlashAttention 3 splits long sequences 32 ways and keeps an f32 output of each.
    let hopper = context
        .deployment
        .device
        .compute_capability
        .is_some_and(|c| c.0 == 9);
    let full = if hopper && largest <= fitted::FA3_LARGEST_BATCH {
        sum(&[
            product(&[fitted::FA3_SPLITS, largest, heads, head.unwrap_or(0), 4])?,
            fitted::GRAPH_FIRST_FULL,
        ])?
    } else {
        fitted::GRAPH_FIRST_FULL
    };
    let row = sum(&[product(&[3, widest / tp])?, product(&[3, spec.hidden])?])?;
    let piecewise = sum(&[
        product(&[largest, width, row])?,
        fitted::GRAPH_FIRST_PIECEWISE,
    ])?;
    let per_layer = if experts {
        fitted::GRAPH_PER_LAYER * 3 / 2
    } else {
        fitted::GRAPH_PER_LAYER
    };
    // vLLM counts a further capture as 1 MiB at least.
    let second = product(&[layers, per_layer])?.max(1 << 20);
    let bytes = sum(&[
        full.max(piecewise),
        product(&[sizes.saturating_sub(1), second])?,
    ])?;
    let (below, above) = fitted::graph_interval(context);
    let expected = Bytes::new(bytes);
    let kind = Kind::Calibrated {
        low: Bytes::from_gib((expected.gib() - below).max(0.0))?,
        high: Bytes::from_gib(expected.gib() + above)?,
    };
    let term = Term::exact(Region::Graphs, "graph estimate", expected)
        .kind(kind)
        .formula("largest first capture + (sizes - 1) x further capture")
        .input("captured sizes", sizes)
        .input("largest size", largest)
        .input("first capture", full.max(piecewise))
        .input("further capture", second)
        .source("vLLM v1/worker/gpu_model_runner.py: profile_cudagraph_memory, subtracted from 0.21 on; fitted");
    Ok(Some(term))
}

/// 1, 2, 4, then every 8 below 256, then every 16 up to min(2 R, 512, T).
///
/// Source: vLLM `config/vllm.py: _set_cudagraph_sizes`.
fn capture_sizes(d: &Defaults) -> (u64, u64) {
    let largest = d.sequences.saturating_mul(2).min(512).min(d.batched_tokens);
    let first = [1, 2, 4].iter().filter(|n| **n <= largest).count() as u64;
    let eights = (largest.min(255)) / 8;
    let sixteens = if largest >= 256 {
        (largest - 256) / 16 + 1
    } else {
        0
    };
    (first + eights + sixteens, largest)
}

/// What the process uses outside the budget: its context, made before the first snapshot.
pub(super) fn outside(context: &Context<'_>, version: Version) -> Result<Vec<Term>, PlanError> {
    if context.deployment.device.vendor != "nvidia" {
        return Ok(Vec::new());
    }
    let ranks = context
        .deployment
        .parallel
        .tp
        .saturating_mul(context.deployment.parallel.pp);
    let (low, high) = fitted::context(context);
    Ok(vec![
        Term::exact(Region::Driver, "context", Bytes::from_gib(high)?)
            .kind(Kind::Calibrated { low: Bytes::from_gib(low)?, high: Bytes::from_gib(high)? })
            .formula("total - free before anything is loaded")
            .input("ranks that communicate", ranks)
            .input("vllm", version)
            .source("start-up reports on 0.19: total 79.19, initial free 78.68 (one device), 77.18 to 77.76 GiB"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_sizes_are_vllms() {
        let of = |sequences, batched_tokens| {
            capture_sizes(&Defaults {
                batched_tokens,
                sequences,
                ..Defaults::for_tests()
            })
            .0
        };
        // 3 + 31 + 17, as counted from its list.
        assert_eq!(of(1024, 8192), 51);
        assert_eq!(of(256, 2048), 51);
        assert_eq!(of(8, 2048), 3 + 2);
        assert_eq!(of(1, 2048), 2);
    }
}
