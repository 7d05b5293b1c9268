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
/// Bytes per row and vocabulary entry of the sorting sampler before 0.17: f32 logits, sorted values,
/// 64-bit indices, probabilities, cumulative sums (measured 38.4 to 39.6 on 0.11).
const SORTING_SAMPLER_BYTES: u64 = 39;
/// cuBLAS takes this from torch's allocator (`:4096:2:16:8`-style workspaces; 32 MiB on Hopper, 8 on others).
const CUBLAS_HOPPER: u64 = 32 << 20;
const CUBLAS_OTHER: u64 = 8 << 20;
/// Streaming multiprocessors assumed where a device's are unknown: those of an H100.
const MULTIPROCESSORS: u64 = 132;

/// A peak with its parts.
struct Peak {
    bytes: u64,
    phase: &'static str,
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
/// Logits in the model's type, their f32 copy, probabilities and the exponential noise to divide by;
/// the Triton top-k/top-p kernel keeps a row of f32 per program.
fn sampler(
    context: &Context<'_>,
    version: Version,
    d: &Defaults,
    width: u64,
) -> Result<Peak, PlanError> {
    let spec = context.spec;
    let r = d.sequences.min(d.batched_tokens);
    let per_entry = if version < FIRST_MODELLED {
        SORTING_SAMPLER_BYTES
    } else {
        width + 4 + 4 + 4
    };
    let sms = context
        .deployment
        .device
        .multiprocessors
        .unwrap_or(MULTIPROCESSORS);
    let programs = sms.min(r);
    let buffer_rows = if version < FIRST_MODELLED {
        0
    } else {
        programs
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
        phase: "R x vocabulary x per entry + programs x vocabulary x 4 + (T + 2 R) x hidden x type",
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

/// The widest layer over T tokens: residual, normed input, output and one spare beside the widest of the
/// projections; MLP: gate, up and their product; the hand-over to the next stage under PP.
fn forward(context: &Context<'_>, d: &Defaults, width: u64) -> Result<Peak, PlanError> {
    let spec = context.spec;
    let tp = context.deployment.parallel.tp.max(1);
    let mut widest = 0_u64;
    for (i, layer) in spec.layers.iter().enumerate() {
        if !context.stage.layers.contains(&(i as u64)) {
            continue;
        }
        let mixer = match layer.mixer {
            Mixer::Attention(a) => {
                let kv = (a.kv_heads / tp).max(1);
                // q, k, v and the rotated q, k, then the output.
                sum(&[
                    product(&[2, a.q_heads / tp, a.k_dim])?,
                    product(&[2, kv, a.k_dim + a.v_dim])?,
                ])?
            }
            Mixer::Latent(a) => sum(&[
                product(&[a.q_heads / tp, a.nope_dim + a.rope_dim])?,
                product(&[a.q_heads / tp, a.nope_dim + a.rope_dim + a.v_dim])?,
                a.rank + a.rope_dim,
            ])?,
            Mixer::State(s) => sum(&[
                product(&[2, s.conv_channels / tp])?,
                product(&[2, s.heads / tp, s.rows])?,
            ])?,
            Mixer::None => 0,
        };
        let ffn = match layer.ffn {
            Ffn::Dense {
                intermediate,
                gated,
            } => product(&[intermediate / tp, if gated { 3 } else { 2 }])?,
            // The routed experts' buffers are a workspace of their own; the shared expert is dense.
            Ffn::Moe(m) => product(&[m.shared / tp, 3])?,
            Ffn::None => 0,
        };
        widest = widest.max(mixer).max(ffn);
    }
    let handed_over = if context.stage.is_last() { 0 } else { 2 };
    let row = sum(&[
        widest,
        product(&[fitted::RESIDENT_ROWS + handed_over, spec.hidden])?,
    ])?;
    Ok(Peak {
        bytes: product(&[d.batched_tokens, row, width])?,
        phase: "T x (widest layer + resident rows x hidden) x type",
        inputs: vec![
            ("T", d.batched_tokens),
            ("widest layer, elements per token", widest),
            ("resident rows", fitted::RESIDENT_ROWS + handed_over),
            ("hidden", spec.hidden),
        ],
    })
}

/// Workspace of the fused expert kernels, allocated once and kept: outputs of the first product (or of
/// the second, which reuses it) and of the activation, for every token and chosen expert.
///
/// Source: `model_executor/layers/fused_moe/experts/triton_moe.py: workspace_shapes`.
fn experts(context: &Context<'_>, d: &Defaults, width: u64) -> Result<Option<Term>, PlanError> {
    let spec = context.spec;
    let parallel = &context.deployment.parallel;
    // Formats with kernels of their own bring their own scratch (mxfp4 on Hopper computes in place).
    let own_kernel = spec
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
    let (Some(m), false) = (widest, own_kernel) else {
        return Ok(None);
    };
    let inner = if parallel.expert_parallel {
        m.intermediate
    } else {
        m.intermediate / parallel.tp.max(1)
    };
    let two = product(&[2, inner])?;
    // workspace13 serves the first product's output and the second's; workspace2 the activation's.
    let per_choice = sum(&[two.max(spec.hidden), inner.max(spec.hidden)])?;
    let bytes = product(&[d.batched_tokens, m.top_k, per_choice, width])?;
    Ok(Some(
        Term::exact(Region::Workspace, "expert workspace", Bytes::new(bytes))
            .formula("T x experts per token x (max(2 inner, hidden) + max(inner, hidden)) x type")
            .input("T", d.batched_tokens)
            .input("experts per token", m.top_k)
            .input("inner", inner)
            .input("hidden", spec.hidden)
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
    let hopper = context.deployment.device.has_compute(9, 0);
    let cublas = if hopper { CUBLAS_HOPPER } else { CUBLAS_OTHER };
    let forward = forward(context, d, width)?;
    let sampler = if context.stage.is_last() {
        Some(sampler(context, version, d, width)?)
    } else {
        None
    };
    let sampler_decides = sampler.as_ref().is_some_and(|s| s.bytes >= forward.bytes);
    let peak = match sampler {
        Some(s) if sampler_decides => s,
        _ => forward,
    };
    let multimodal = encoder(context, d, width)?;
    let workspace = experts(context, d, width)?;
    let kept = sum(&[
        multimodal,
        cublas,
        workspace.as_ref().map_or(0, |t| t.bytes.get()),
    ])?;
    // The engine prints one figure: peak and what is kept through it.
    let total = sum(&[peak.bytes, kept])?;
    let spread =
        fitted::activation_spread(context, version, d, sampler_decides, workspace.is_some());
    let mut term = calibrated(Region::Activations, "activation peak", total, spread)?
        .formula(format!("{} + cuBLAS + images + expert workspace", peak.phase))
        .source("vLLM v1/worker/gpu_model_runner.py: profile_run, _dummy_sampler_run; v1/sample/sampler.py");
    for (name, value) in peak.inputs {
        term = term.input(name, value);
    }
    term = term
        .input("type, bytes", width)
        .input("cuBLAS workspace", cublas)
        .input("images and their embeddings", multimodal);
    if let Some(w) = workspace {
        term = term.input(
            "expert workspace",
            format!("{} = {}", w.bytes.get(), w.formula),
        );
    }
    if version < FIRST_MODELLED {
        term = term.kind(Kind::Bound);
    }
    let mut terms = vec![term];
    terms.push(non_torch(context, version)?);
    if let Some(g) = graphs(context, version, d)? {
        terms.push(g);
    }
    Ok(terms)
}

/// A term with its 90 % interval as shares below and above.
fn calibrated(
    region: Region,
    name: &str,
    bytes: u64,
    (below, above): (f64, f64),
) -> Result<Term, PlanError> {
    #[allow(clippy::cast_precision_loss, reason = "an interval")]
    let at = |share: f64| Bytes::from_f64(bytes as f64 * share);
    let kind = Kind::Calibrated {
        low: at(1.0 - below)?,
        high: at(1.0 + above)?,
    };
    Ok(Term::exact(region, name, Bytes::new(bytes)).kind(kind))
}

/// Modules, communicators and their buffers, made after the first snapshot.
fn non_torch(context: &Context<'_>, version: Version) -> Result<Term, PlanError> {
    let parallel = &context.deployment.parallel;
    let (expected, low, high) = fitted::non_torch(version, parallel.tp, parallel.pp);
    let gib = |g: f64| Bytes::from_gib(g);
    Ok(Term::exact(Region::Collectives, "non-torch", gib(expected)?)
        .kind(Kind::Calibrated { low: gib(low)?, high: gib(high)? })
        .formula("constant per release: kernel modules; with TP also communicators and their buffers")
        .input("tp", parallel.tp)
        .input("pp", parallel.pp)
        .source("fitted: see `plimsoll accuracy --constants`; vLLM utils/mem_utils.py: non_torch_increase"))
}

/// The trial capture, where the release takes it off the KV cache.
fn graphs(
    context: &Context<'_>,
    version: Version,
    d: &Defaults,
) -> Result<Option<Term>, PlanError> {
    if version < GRAPHS_SUBTRACTED || context.settings.enforce_eager {
        return Ok(None);
    }
    let layers = context.stage.layers.end - context.stage.layers.start;
    let sizes = capture_sizes(d);
    let bytes = product(&[sizes, layers + 1, fitted::GRAPH_BYTES_PER_PIECE])?;
    let term = calibrated(Region::Graphs, "graph estimate", bytes, (0.45, 0.9))?
        .formula("captured sizes x (layers + 1) pieces x bytes per piece")
        .input("captured sizes", sizes)
        .input("layers", layers)
        .input("bytes per piece", fitted::GRAPH_BYTES_PER_PIECE)
        .source("fitted; vLLM v1/worker/gpu_model_runner.py: profile_cudagraph_memory, subtracted from 0.21 on");
    Ok(Some(term))
}

/// 1, 2, 4, then every 8 below 256, then every 16 up to min(2 R, 512, T).
///
/// Source: vLLM `config/vllm.py: _set_cudagraph_sizes`.
fn capture_sizes(d: &Defaults) -> u64 {
    let largest = d.sequences.saturating_mul(2).min(512).min(d.batched_tokens);
    let first = [1, 2, 4].iter().filter(|n| **n <= largest).count() as u64;
    let eights = (largest.min(255)) / 8;
    let sixteens = if largest >= 256 {
        (largest - 256) / 16 + 1
    } else {
        0
    };
    first + eights + sixteens
}

/// What the process uses outside the budget: its context, made before the first snapshot.
pub(super) fn outside(context: &Context<'_>, version: Version) -> Result<Vec<Term>, PlanError> {
    if context.deployment.device.vendor != "nvidia" {
        return Ok(Vec::new());
    }
    let (low, high) = fitted::CONTEXT_GIB;
    Ok(vec![
        Term::exact(Region::Driver, "context", Bytes::from_gib(high)?)
            .kind(Kind::Bound)
            .formula("total - free before anything is loaded")
            .input("seen, GiB", format!("{low} to {high}"))
            .input("vllm", version)
            .source("start-up reports on 0.19: total 79.19, initial free 77.6 to 78.7 GiB"),
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
        };
        // 3 + 31 + 17, as counted from its list.
        assert_eq!(of(1024, 8192), 51);
        assert_eq!(of(256, 2048), 51);
        assert_eq!(of(8, 2048), 3 + 2);
        assert_eq!(of(1, 2048), 2);
    }
}
