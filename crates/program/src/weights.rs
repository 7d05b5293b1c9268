//! What one rank loads: the inventory, split and padded by an engine's rules.

use plimsoll_model::{ModelSpec, Role, Shard, ShardError, TensorSpec, quant};
use plimsoll_units::{Bytes, DType, SizeOverflow};

use crate::parallel::{Parallel, Stage};

/// Bytes of one role on one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleBytes {
    /// The role.
    pub role: Role,
    /// Bytes as the engine holds them.
    pub bytes: Bytes,
    /// Stored tensors behind it (experts counted one by one).
    pub tensors: u64,
}

/// What an engine does to the inventory while loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightRules {
    /// Unquantised tensors are cast to this type; `None` keeps the stored one.
    pub dtype: Option<DType>,
    /// The vocabulary is padded to a multiple of this (and of the TP degree).
    pub vocab_multiple: u64,
    /// Whether multi-token-prediction layers are loaded.
    pub mtp: bool,
    /// Whether the vision or audio tower is loaded.
    pub encoder: bool,
    /// Whether the tower is a full copy on every TP rank.
    pub encoder_replicated: bool,
    /// Whether GPTQ's `g_idx` is kept (kernels that need no order drop it).
    pub keep_order_index: bool,
    /// Plimsoll's packed panels instead of plain matrices.
    pub packed: Option<PackedLayout>,
    /// What quantised matrices become as they are loaded; `None` keeps codes and scales.
    pub widened: Option<DType>,
}

impl WeightRules {
    /// Everything exactly as stored.
    #[must_use]
    pub const fn stored() -> Self {
        Self {
            dtype: None,
            vocab_multiple: 1,
            mtp: false,
            encoder: true,
            encoder_replicated: false,
            keep_order_index: true,
            packed: None,
            widened: None,
        }
    }
}

/// Whether a tensor of a model whose type is `stored` follows that type: scales and what has a type of its own do not.
#[must_use]
pub fn is_cast(tensor: &TensorSpec, stored: DType) -> bool {
    tensor.dtype == stored && tensor.dtype.is_scalar() && !quant::is_auxiliary(&tensor.name)
}

/// Plimsoll's layout of a weight matrix: panels of `rows` output rows, so the last panel is padded.
///
/// Source: DESIGN section 5 (panels of 32 rows, pairs of inputs adjacent, serve both the widening
/// FMA and the dot-product kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedLayout {
    /// Output rows of one panel.
    pub rows: u64,
}

/// One stored tensor's part on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTensor<'a> {
    /// The tensor.
    pub tensor: &'a TensorSpec,
    /// What it is here: a tied embedding that serves as head on a later stage is a head.
    pub role: Role,
    /// Bytes of one copy on this rank.
    pub each: Bytes,
    /// Copies on this rank: the experts that it holds, or 1.
    pub copies: u64,
}

/// The parts that one tensor-parallel rank of `stage` holds, in checkpoint order.
///
/// TP ranks are alike: splits are even, and KV heads replicate evenly.
///
/// # Errors
/// [`ShardError`] where the degree does not divide what it must divide.
pub fn rank_tensors<'a>(
    spec: &'a ModelSpec,
    parallel: &Parallel,
    stage: &Stage,
    rules: &WeightRules,
) -> Result<Vec<LocalTensor<'a>>, ShardError> {
    let mut out = Vec::with_capacity(spec.tensors.len());
    for tensor in spec
        .tensors
        .iter()
        .filter(|t| held_by(spec, t, stage, rules))
    {
        out.push(LocalTensor {
            tensor,
            role: tensor.role,
            each: one_copy(spec, tensor, parallel, rules)?,
            copies: local_copies(tensor, parallel),
        });
    }
    // A tied head on a later stage needs its own copy of the embedding.
    if spec.tied_embeddings && stage.is_last() && !stage.is_first() {
        let tables =
            |t: &&TensorSpec| t.role == Role::Embedding && matches!(t.shard, Shard::Vocab { .. });
        for tensor in spec.tensors.iter().filter(tables) {
            let each = one_copy(spec, tensor, parallel, rules)?;
            out.push(LocalTensor {
                tensor,
                role: Role::Head,
                each,
                copies: 1,
            });
        }
    }
    Ok(out)
}

/// What one tensor-parallel rank of `stage` holds, by role in report order.
///
/// # Errors
/// As [`rank_tensors`].
pub fn rank_weights(
    spec: &ModelSpec,
    parallel: &Parallel,
    stage: &Stage,
    rules: &WeightRules,
) -> Result<Vec<RoleBytes>, ShardError> {
    let mut rows: Vec<RoleBytes> = Role::ALL
        .iter()
        .map(|&role| RoleBytes {
            role,
            bytes: Bytes::ZERO,
            tensors: 0,
        })
        .collect();
    for part in rank_tensors(spec, parallel, stage, rules)? {
        if let Some(row) = rows.iter_mut().find(|r| r.role == part.role) {
            row.bytes = row.bytes.add(part.each.times(part.copies)?)?;
            row.tensors = row.tensors.saturating_add(part.copies);
        }
    }
    rows.retain(|r| r.tensors > 0);
    Ok(rows)
}

fn held_by(spec: &ModelSpec, tensor: &TensorSpec, stage: &Stage, rules: &WeightRules) -> bool {
    if !rules.keep_order_index && tensor.name.ends_with("g_idx") {
        return false;
    }
    if let Some(layer) = tensor
        .layer
        .map(u64::from)
        .filter(|l| *l < spec.layers.len() as u64)
    {
        return stage.layers.contains(&layer) && (tensor.role != Role::Mtp || rules.mtp);
    }
    match tensor.role {
        Role::Mtp => rules.mtp && stage.is_last(),
        Role::Encoder => rules.encoder && stage.is_first(),
        Role::Embedding | Role::Position => stage.is_first(),
        Role::Head | Role::Norm | Role::Other => stage.is_last(),
        Role::Attention
        | Role::State
        | Role::Mlp
        | Role::Router
        | Role::Experts
        | Role::SharedExperts => true,
    }
}

/// Experts of which this rank holds at least a part: the fullest rank's number under EP.
fn local_copies(tensor: &TensorSpec, parallel: &Parallel) -> u64 {
    tensor.copies().div_ceil(if tensor.experts.is_some() {
        parallel.ep()
    } else {
        1
    })
}

fn one_copy(
    spec: &ModelSpec,
    tensor: &TensorSpec,
    parallel: &Parallel,
    rules: &WeightRules,
) -> Result<Bytes, ShardError> {
    let whole_expert = tensor.experts.is_some() && parallel.expert_parallel;
    let replicated_tower = tensor.role == Role::Encoder && rules.encoder_replicated;
    let shard = if whole_expert || replicated_tower {
        Shard::Replicated
    } else {
        tensor.shard
    };
    let pad = |rows: u64| {
        let unit = rules.vocab_multiple.max(1);
        rows.div_ceil(unit).saturating_mul(unit)
    };
    let plain = [DType::F32, DType::F16, DType::Bf16].contains(&tensor.dtype);
    let widened = rules.widened.filter(|_| spec.quant.is_some());
    if widened.is_some() && tensor.linear.is_none() && quant::is_auxiliary(&tensor.name) {
        return Ok(Bytes::ZERO);
    }
    let widened = widened.filter(|_| !plain).zip(tensor.linear);
    let elements = match widened {
        Some((_, linear)) => linear.out.checked_mul(linear.inp).ok_or(SizeOverflow)?,
        None => tensor.elements()?,
    };
    let local = shard.local_elements(elements, parallel.tp, pad)?;
    let dtype = match (widened, rules.dtype) {
        (Some((dtype, _)), _) => dtype,
        (None, Some(d)) if is_cast(tensor, spec.dtype) => d,
        _ => tensor.dtype,
    };
    let elements = match (rules.packed, tensor.linear) {
        // Only whole matrices of plain elements are packed; the embedding is read row by row.
        (Some(layout), Some(linear)) if dtype.is_scalar() && linear.inp > 0 && linear.out > 0 => {
            let inp = match (linear.axis, shard) {
                (plimsoll_model::Axis::In, Shard::Split { .. }) => linear.inp / parallel.tp,
                _ => linear.inp,
            };
            let out = local / inp.max(1);
            Bytes::product([out.div_ceil(layout.rows.max(1)), layout.rows, inp])?
                .get()
                .max(local)
        }
        _ => local,
    };
    Ok(dtype.bytes(elements)?)
}
