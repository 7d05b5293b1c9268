//! Tokens per block: what the attention backend takes, and what a recurrent state needs.
//!
//! Source: vLLM `platforms/cuda.py` and `platforms/cpu.py` (`check_and_update_config`),
//! `platforms/interface.py` (`update_block_size_for_backend`), `model_executor/models/config.py`
//! (`HybridAttentionMambaModelConfig`), the backends' `get_supported_kernel_block_sizes`.

use plimsoll_model::{Mixer, StateKind};
use plimsoll_units::{Bytes, SizeOverflow};

use super::super::super::{Context, Version};
use super::caches::{Format, has_latent, states};
use super::compressed;
use super::refused;
use super::rules::{BlockChoice, Rules, States, V0_21};
use crate::error::PlanError;
use crate::settings::StateMode;

/// `CacheConfig.DEFAULT_BLOCK_SIZE`, and the multiple that plain attention kernels take.
const DEFAULT: u64 = 16;
/// `FlashMLA`, and the sparse latent kernels.
const FLASH_MLA: u64 = 64;
/// `FlashInfer`'s latent kernels take 32 and 64.
const FLASHINFER_MLA: u64 = 32;
/// `CUTLASS`'s latent kernel.
const CUTLASS_MLA: u64 = 128;
/// vLLM's CPU backend.
const CPU: u64 = 128;
/// The multiple that its kernels take.
const CPU_KERNEL: u64 = 32;
/// Hybrids with latent attention are aligned to this from 0.32 on.
const LATENT_HYBRID: u64 = 128;
/// The chunk of a state kernel that has none (`get_mamba_chunk_size`).
const NO_CHUNK: u64 = 2048;
/// Blocks above this overflow page sizes; nothing published comes near.
const LARGEST: u64 = 1 << 40;

/// Tokens per block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Of attention layers.
    pub(super) attention: u64,
    /// Of state layers; it counts only where states are kept along the sequence, and in old logs.
    pub(super) state: u64,
    /// Page to which states are padded, in a hybrid.
    pub(super) padded: Option<Bytes>,
    /// Which states are kept.
    pub(super) mode: StateMode,
    /// Whether prefixes are cached.
    pub(super) prefixes: bool,
}

impl Blocks {
    /// The page of a state.
    pub(super) fn state_page(&self, state: Bytes) -> Bytes {
        self.padded.map_or(state, |p| p.max(state))
    }
}

/// Chooses blocks for the model on the card.
pub(super) fn choose(
    context: &Context<'_>,
    rules: &Rules,
    format: &Format<'_>,
) -> Result<Blocks, PlanError> {
    let asked = context.settings.block_size;
    if let Some(0 | LARGEST..) = asked {
        let flag = format!("--block-size {}", asked.unwrap_or(0));
        return Err(refused(rules, flag, "use 1 to 2^40 tokens".to_owned()));
    }
    if compressed::is_in(context) {
        if rules.version < V0_21 {
            let model = "attention over compressed entries".to_owned();
            let reason = "0.21 is the first release read that has it";
            return Err(refused(rules, model, reason.to_owned()));
        }
        if let Some(other) = asked.filter(|b| *b != compressed::BLOCK) {
            let flag = format!("--block-size {other}");
            return Err(refused(
                rules,
                flag,
                "its kernels take blocks of 256 tokens".to_owned(),
            ));
        }
    }
    let base = base(context, rules, format);
    let (mode, prefixes) = caching(context, rules)?;
    let state = format.largest_state(context)?.filter(|b| *b > Bytes::ZERO);
    let token = format.first_attention(context)?;
    let mut blocks = Blocks {
        attention: base,
        state: match mode {
            StateMode::None => context.max_model_len,
            StateMode::Align | StateMode::All => base,
        },
        padded: None,
        mode,
        prefixes,
    };
    if let (Some(state), Some(token)) = (state, token) {
        align(context, rules, format, &mut blocks, state, token)?;
    }
    if let (Some(user), StateMode::None) = (context.settings.mamba_block_size, mode) {
        blocks.state = user;
    }
    Ok(blocks)
}

/// The block before any alignment with states.
fn base(context: &Context<'_>, rules: &Rules, format: &Format<'_>) -> u64 {
    let asked = context.settings.block_size;
    if compressed::is_in(context) {
        return compressed::BLOCK;
    }
    let device = &context.deployment.device;
    let latent = has_latent(context);
    if device.vendor.eq_ignore_ascii_case("cpu") {
        // 0.32's portable latent kernel takes 16 only, whatever is asked.
        return match (latent, rules.blocks) {
            (true, BlockChoice::AllBackends) => DEFAULT,
            _ => asked.unwrap_or(CPU),
        };
    }
    if !latent {
        return asked.unwrap_or(DEFAULT);
    }
    let kernel = latent_kernel(context, rules, format);
    match rules.blocks {
        // Triton takes any multiple of 16; the others force theirs, even against the user.
        BlockChoice::Platform => match asked {
            Some(b) if kernel == DEFAULT || b % kernel == 0 => b,
            Some(FLASHINFER_MLA) if is_blackwell(context) && kernel == FLASH_MLA => FLASHINFER_MLA,
            _ => kernel,
        },
        _ => asked.unwrap_or(kernel),
    }
}

fn major(context: &Context<'_>) -> u32 {
    context
        .deployment
        .device
        .compute_capability
        .map_or(0, |c| c.0)
}

fn is_blackwell(context: &Context<'_>) -> bool {
    major(context) == 10
}

/// Whether the sparse latent kernels take latents in plain 8 bits: `FlashInfer`'s do, which 0.32 prefers on Blackwell.
pub(super) fn plain_sparse(context: &Context<'_>, rules: &Rules) -> bool {
    rules.blocks == BlockChoice::AllBackends && is_blackwell(context)
}

/// The block that the latent backend chosen for the card wants.
fn latent_kernel(context: &Context<'_>, rules: &Rules, format: &Format<'_>) -> u64 {
    if format.is_sparse() {
        return FLASH_MLA;
    }
    let nope = context.spec.layers.iter().find_map(|l| match l.mixer {
        Mixer::Latent(a) => Some(a.nope_dim),
        _ => None,
    });
    // Key sizes that FlashInfer's kernel takes, growing by version.
    let flashinfer: &[u64] = match rules.blocks {
        BlockChoice::Platform if rules.version < Version::new(0, 17) => &[],
        BlockChoice::Platform => &[128],
        BlockChoice::Backend => &[64, 128],
        BlockChoice::BackendAlign | BlockChoice::AllBackends => &[64, 128, 192],
    };
    let platform = rules.blocks == BlockChoice::Platform;
    match major(context) {
        9 if platform => FLASH_MLA,
        // FlashAttention's latent kernel is preferred, but takes no 8-bit cache; FlashMLA does.
        9 if format.is_quantized() => FLASH_MLA,
        10 if nope.is_some_and(|n| flashinfer.contains(&n)) => {
            if platform {
                FLASH_MLA
            } else {
                FLASHINFER_MLA
            }
        }
        10 => CUTLASS_MLA,
        // Triton.
        _ => DEFAULT,
    }
}

/// Which states are kept, and whether prefixes are cached at all.
fn caching(context: &Context<'_>, rules: &Rules) -> Result<(StateMode, bool), PlanError> {
    let asked = context.settings.prefix_caching;
    let mut kinds = states(context).map(|s| s.kind).peekable();
    if kinds.peek().is_none() {
        return Ok((StateMode::None, asked.unwrap_or(true)));
    }
    let attention = |m: &Mixer| matches!(m, Mixer::Attention(_) | Mixer::Latent(_));
    let hybrid = context.spec.layers.iter().any(|l| attention(&l.mixer));
    let on = asked.unwrap_or(rules.hybrid_prefixes && hybrid);
    if !on {
        return Ok((StateMode::None, false));
    }
    // Selective state spaces can keep every block's state; the gated delta rule cannot.
    let can_keep_all = kinds.all(|k| matches!(k, StateKind::Mamba1 | StateKind::Mamba2));
    let wanted = context.settings.mamba_cache_mode;
    let all_or = |else_: StateMode| if can_keep_all { StateMode::All } else { else_ };
    match rules.states {
        States::AllOrOff if can_keep_all => Ok((StateMode::All, true)),
        States::AllOrOff => Ok((StateMode::None, false)),
        States::AllOrAlign => Ok((
            match wanted {
                Some(StateMode::Align) => StateMode::Align,
                _ => all_or(StateMode::Align),
            },
            true,
        )),
        States::Align if wanted == Some(StateMode::All) => Err(refused(
            rules,
            "--mamba-cache-mode all".to_owned(),
            "it knows align and none only".to_owned(),
        )),
        States::Align => Ok((StateMode::Align, true)),
    }
}

/// Raises attention's block until its page holds a state, and pads states to that page.
fn align(
    context: &Context<'_>,
    rules: &Rules,
    format: &Format<'_>,
    blocks: &mut Blocks,
    state: Bytes,
    token: Bytes,
) -> Result<(), PlanError> {
    let latent = has_latent(context);
    let smallest = smallest_kernel(context, rules, format, latent);
    let kernel = match rules.blocks {
        BlockChoice::Platform | BlockChoice::Backend => config_kernel(context, latent),
        BlockChoice::BackendAlign => smallest.max(blocks.attention),
        BlockChoice::AllBackends if latent => smallest.max(blocks.attention).max(LATENT_HYBRID),
        BlockChoice::AllBackends => smallest.max(blocks.attention),
    };
    let tokens = state.get().div_ceil(token.get().max(1));
    let mut block = if blocks.mode == StateMode::All {
        let chunk = context.settings.mamba_block_size.or_else(|| chunk(context));
        let Some(chunk) = chunk.filter(|c| *c > 0) else {
            return Err(refused(
                rules,
                "--enable-prefix-caching".to_owned(),
                "blocks follow the chunk of the state kernel, which this plan does not know: give \
                 --mamba-block-size or --no-enable-prefix-caching"
                    .to_owned(),
            ));
        };
        let unit = lcm(chunk, kernel)?;
        let block = multiple(tokens, unit)?;
        blocks.state = block;
        block
    } else {
        multiple(tokens, kernel)?
    };
    if rules.blocks == BlockChoice::AllBackends {
        block = multiple(block, smallest)?;
    }
    blocks.attention = blocks.attention.max(block);
    if blocks.mode == StateMode::Align {
        blocks.state = blocks.attention;
    }
    blocks.padded = Some(token.times(blocks.attention)?);
    Ok(())
}

/// The smallest block that the attention backend's kernels take.
fn smallest_kernel(context: &Context<'_>, rules: &Rules, format: &Format<'_>, latent: bool) -> u64 {
    if context.deployment.device.vendor.eq_ignore_ascii_case("cpu") && !latent {
        CPU_KERNEL
    } else if latent {
        latent_kernel(context, rules, format)
    } else {
        DEFAULT
    }
}

/// The alignment that was fixed before the backend was known (up to 0.20).
fn config_kernel(context: &Context<'_>, latent: bool) -> u64 {
    let wide = context.spec.layers.iter().any(|l| match l.mixer {
        Mixer::Attention(a) => a.k_dim == 256,
        _ => false,
    });
    if latent {
        64
    } else if is_blackwell(context) && wide {
        // FlashInfer could not run 256-wide heads in blocks of 16 there.
        32
    } else {
        DEFAULT
    }
}

/// The chunk of the state kernel, where the model's kind settles it.
fn chunk(context: &Context<'_>) -> Option<u64> {
    states(context)
        .all(|s| s.kind == StateKind::Mamba1)
        .then_some(NO_CHUNK)
}

fn multiple(n: u64, unit: u64) -> Result<u64, PlanError> {
    let unit = unit.max(1);
    Ok(n.div_ceil(unit).checked_mul(unit).ok_or(SizeOverflow)?)
}

fn lcm(a: u64, b: u64) -> Result<u64, PlanError> {
    let (mut x, mut y) = (a.max(1), b.max(1));
    while y != 0 {
        (x, y) = (y, x % y);
    }
    Ok((a.max(1) / x).checked_mul(b.max(1)).ok_or(SizeOverflow)?)
}
