//! `trtllm`: TensorRT-LLM's PyTorch backend, as an estimate.
//!
//! The engine loads weights, runs once at its largest sizes, and gives the KV cache 0.9 of what is then free
//! (`free_gpu_memory_fraction`). What that run takes is not counted buffer by buffer here: it stands for what the same
//! model's forward pass, experts and logits take when counted as for vLLM. Scratch of its attention kernels, of tuning and
//! of CUDA graphs is in no source that could be counted, so a pool may be smaller than the plan says.
//!
//! Source: TensorRT-LLM 1.x documentation, "Memory Usage" and "KV Cache"; `llmapi/llm_args.py: KvCacheConfig`
//! (`free_gpu_memory_fraction` 0.9, `tokens_per_block` 32; `max_num_tokens` 8192, `max_batch_size` 2048);
//! `_torch/modules/fused_moe/quantization.py` (`MXFP4WeightFusedMoEMethod` and what inherits from it),
//! `cpp/tensorrt_llm/kernels/cutlass_kernels/moe_gemm/moe_kernels.cu: getWorkspaceDeviceBufferSizes`.

use plimsoll_model::{Mixer, local_kv_heads};
use plimsoll_program::GroupKind;
use plimsoll_units::{Bytes, SizeOverflow};

use super::mxfp4::{self, ExpertLayout};
use super::{Context, EngineStage, Takes, ideal, in_use, plain_kv_dtype, sglang, vllm};
use crate::error::PlanError;
use crate::kv::{Held, LogRule, PagedGroup, PagedLaw, StartRule};
use crate::term::{Kind, Region, Term, total};

/// Share of free memory that the KV cache takes.
const FREE_FRACTION: f64 = 0.9;
/// Tokens of a block.
const BLOCK: u64 = 32;
/// T and R where nobody gives them.
const MAX_NUM_TOKENS: u64 = 8192;
const MAX_BATCH_SIZE: u64 = 2048;
/// Sizes of mxfp4 experts are at least multiples of this, in weights and in what passes through them.
const MXFP4_STEP: u64 = 128;

pub(super) fn stage(context: &Context<'_>) -> Result<EngineStage, PlanError> {
    let settings = context.settings;
    refuse(context)?;
    let budget = ideal::whole_device(context);
    let mut terms = vec![sglang::constants::before_loading(context)?];
    for mut t in vllm::tensors(context)? {
        "TensorRT-LLM _torch/modules/linear.py".clone_into(&mut t.source);
        terms.push(t);
    }
    let padding = mxfp4::padding(context, &expert_layout(context))?;
    if padding > 0 {
        terms.push(
            Term::exact(Region::Weights, "expert layout", Bytes::new(padding))
                .kind(Kind::Derived)
                .formula("mxfp4 experts padded for their kernel, less their plain size")
                .source(
                    "TensorRT-LLM _torch/modules/fused_moe/quantization.py, fused_moe_triton.py",
                ),
        );
    }
    let t = settings.max_num_batched_tokens.unwrap_or(MAX_NUM_TOKENS);
    let r = settings.max_num_seqs.unwrap_or(MAX_BATCH_SIZE).min(t);
    terms.push(vllm::activation_bound(context, t, r, MXFP4_STEP)?);
    let law = law(context)?;
    let mut takes = Takes::Blocks;
    if settings.kv_memory.is_none() {
        let free = budget.bytes.saturating_sub(total(&terms)?);
        terms.push(left_free(context, free)?);
    } else {
        takes = Takes::Rest;
    }
    Ok(EngineStage {
        layers: None,
        budget,
        terms,
        outside: in_use(context).into_iter().collect(),
        host: Vec::new(),
        kv: Box::new(law),
        takes,
        notes: vec![
            "TensorRT-LLM's first run is an estimate, counted as for vLLM: scratch of its attention kernels and CUDA graphs \
             is not in it, so its KV cache may be smaller than this"
                .to_owned(),
        ],
    })
}

fn refused(setting: String, reason: &str) -> PlanError {
    PlanError::Refused {
        engine: "trtllm".to_owned(),
        setting,
        reason: reason.to_owned(),
    }
}

/// What stands beside a model and has memory of its own that is not counted here.
fn refuse(context: &Context<'_>) -> Result<(), PlanError> {
    let settings = context.settings;
    if settings.draft.is_some() || settings.mtp {
        return Err(refused(
            "a draft".to_owned(),
            "the weights and cache of its drafts are not modelled",
        ));
    }
    if let Some(l) = settings.lora {
        return Err(refused(
            format!("--max-loras {}", l.slots),
            "its cache of adapters is not modelled",
        ));
    }
    Ok(())
}

/// How the kernels that it takes for a card unless told (`_torch/model_config.py: resolve_moe_backend`) lay out mxfp4
/// experts: CUTLASS's biases are in the model's type, the others' in f32.
fn expert_layout(context: &Context<'_>) -> ExpertLayout {
    let (hidden_in, hidden_out, bias) = match context.deployment.device.compute_capability {
        // `TritonMXFP4FusedMoEMethod`; what swizzling adds to scales is not in it.
        Some((9, _)) => (MXFP4_STEP, 2 * MXFP4_STEP, 4),
        // `MXFP4WeightTRTLLMGenFusedMoEMethod`.
        Some((10 | 11, _)) => (512, MXFP4_STEP, 4),
        // `MXFP4WeightCutlassFusedMoEMethod`.
        _ => (MXFP4_STEP, MXFP4_STEP, 2),
    };
    ExpertLayout {
        inner: MXFP4_STEP,
        hidden_in,
        hidden_out,
        value_row: 1,
        scale_rows: 1,
        keeps_scales: false,
        bias,
    }
}

/// What `free_gpu_memory_fraction` leaves of what is free.
#[allow(clippy::cast_precision_loss, reason = "a share of memory")]
fn left_free(context: &Context<'_>, free: Bytes) -> Result<Term, PlanError> {
    let share = context
        .settings
        .gpu_memory_utilization
        .unwrap_or(FREE_FRACTION);
    let left = Bytes::from_f64(free.get() as f64 * (1.0 - share))?;
    Ok(Term::exact(Region::Reserve, "left free", left)
        .kind(Kind::Derived)
        .formula("free after the largest step x (1 - free_gpu_memory_fraction)")
        .input("free after the largest step", free.get())
        .input("free_gpu_memory_fraction", share)
        .source("TensorRT-LLM llmapi/llm_args.py: KvCacheConfig"))
}

/// Blocks of all layers; windows are held whole, which is the most that they need.
fn law(context: &Context<'_>) -> Result<PagedLaw, PlanError> {
    let dtype = plain_kv_dtype(context, "trtllm")?;
    let tp = context.deployment.parallel.tp;
    let block = context.settings.block_size.unwrap_or(BLOCK);
    if !block.is_power_of_two() {
        return Err(refused(
            format!("--block-size {block}"),
            "tokens_per_block is a power of two",
        ));
    }
    let (mut row, mut layers, mut kind) = (Bytes::ZERO, 0, GroupKind::Full);
    for (i, layer) in context.spec.layers.iter().enumerate() {
        if !context.stage.layers.contains(&(i as u64)) {
            continue;
        }
        let elements = match layer.mixer {
            Mixer::Attention(a) if a.shared => continue,
            Mixer::Attention(a) => {
                Bytes::product([local_kv_heads(a.kv_heads, tp)?, a.k_dim + a.v_dim])?.get()
            }
            Mixer::Latent(a) => {
                kind = GroupKind::Latent;
                a.rank.checked_add(a.rope_dim).ok_or(SizeOverflow)?
            }
            Mixer::None => continue,
            Mixer::State(_) => {
                return Err(refused(
                    "a model with recurrent states".to_owned(),
                    "its cache of states is not modelled",
                ));
            }
        };
        if layer.parallel.is_some() {
            return Err(refused(
                "a model with recurrent states".to_owned(),
                "its cache of states is not modelled",
            ));
        }
        row = row.add(dtype.bytes(elements)?)?;
        layers += 1;
    }
    let page = row.times(block)?;
    Ok(PagedLaw {
        block_bytes: page,
        null_blocks: 0,
        groups: vec![PagedGroup {
            kind,
            own_pages: true,
            layers,
            padding_layers: 0,
            block_size: block,
            page,
            row,
            held: Held::PerToken,
            shares: settings_share(context),
        }],
        log: LogRule::BlocksOverGroups,
        start: StartRule::None,
    })
}

/// Whether blocks of common prefixes are kept and shared: its default.
fn settings_share(context: &Context<'_>) -> bool {
    context.settings.prefix_caching.unwrap_or(true)
}
