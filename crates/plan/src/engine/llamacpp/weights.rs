//! Model buffers: which tensors lie on which device, and with what padding.
//!
//! Source: `llama-model.cpp: load_tensors` (commit 0c1e57098). The lookup tables of tokens and
//! positions always stay on the host. A head tied to the embedding is stored a second time, on the
//! device of the output. Projectors of images are separate files, and multi-token-prediction layers
//! are loaded only for speculation; neither is counted.

use plimsoll_model::{LayerSpec, Mixer, ModelSpec, Reach, Role, TensorSpec};
use plimsoll_units::{Bytes, DType, SizeOverflow};

use super::compute::{DEVICE_ALIGN, HOST_ALIGN};
use super::split::Split;

/// Bytes of weights by place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Per device: role, bytes, tensors.
    pub devices: Vec<Vec<(Role, Bytes, u64)>>,
    /// Tables that stay on the host.
    pub host: Bytes,
}

/// Elements to which a quantised row is filled up on a device.
const ROW_PADDING: u64 = 512;

/// The weights of `spec` split by layer over devices.
///
/// A checkpoint that is no GGUF file is taken as llama.cpp's converter writes it without quantising
/// further: vectors, expert choice and convolutions in f32, matrices in their own type.
///
/// # Errors
/// [`SizeOverflow`].
pub fn weight_bytes(
    spec: &ModelSpec,
    dtype: Option<DType>,
    split: Split,
) -> Result<WeightBytes, SizeOverflow> {
    let layers = spec.layers.len() as u64;
    let count = usize::try_from(split.count().max(1)).map_err(|_| SizeOverflow)?;
    let mut out = WeightBytes {
        devices: vec![Vec::new(); count],
        host: Bytes::ZERO,
    };
    let last = usize::try_from(split.device_of(layers, layers)).unwrap_or(0);
    let add = |list: &mut Vec<(Role, Bytes, u64)>, role: Role, bytes: Bytes, n: u64| {
        match list.iter_mut().find(|(r, ..)| *r == role) {
            Some(row) => {
                row.1 = row.1.add(bytes)?;
                row.2 += n;
            }
            None => list.push((role, bytes, n)),
        }
        Ok::<(), SizeOverflow>(())
    };
    for t in &spec.tensors {
        let ty = stored_type(spec, t, dtype);
        match t.role {
            Role::Encoder | Role::Mtp => {}
            Role::Embedding | Role::Position if t.layer.is_none() => {
                let bytes = padded(t, ty, false)?;
                out.host = out.host.add(bytes)?;
                if spec.tied_embeddings && t.role == Role::Embedding && t.shape.len() == 2 {
                    let head = padded(t, ty, true)?;
                    if let Some(list) = out.devices.get_mut(last) {
                        add(list, Role::Head, head, 1)?;
                    }
                }
            }
            // Frequencies are wanted by every layer with full attention: each such device has them.
            _ if t.layer.is_none() && t.name.starts_with("rope_f") => {
                for (d, list) in (0_u64..).zip(&mut out.devices) {
                    let mut own = (0_u64..).zip(&spec.layers);
                    if own.any(|(i, l)| split.device_of(i, layers) == d && full(l)) {
                        add(list, t.role, padded(t, ty, true)?, 1)?;
                    }
                }
            }
            _ => {
                let d = match t.layer {
                    Some(i) if u64::from(i) < layers => split.device_of(u64::from(i), layers),
                    Some(_) => continue,
                    None => split.device_of(layers, layers),
                };
                let d = usize::try_from(d).unwrap_or(0);
                if let Some(list) = out.devices.get_mut(d) {
                    // A GGUF file stacks a layer's experts in one tensor.
                    add(list, t.role, padded(t, ty, true)?, 1)?;
                }
            }
        }
    }
    for list in &mut out.devices {
        list.sort_by_key(|(role, ..)| *role);
    }
    Ok(out)
}

/// The weights of `spec` on the host alone: every tensor of the file once, a tied head too.
///
/// Matrices that the processor's kernels want otherwise (`CPU_REPACK`) lie in a buffer of their own, and the pages of the
/// mapped file that had them are not looked at again.
///
/// # Errors
/// [`SizeOverflow`].
pub fn host_weight_bytes(
    spec: &ModelSpec,
    dtype: Option<DType>,
) -> Result<Vec<(Role, Bytes, u64)>, SizeOverflow> {
    let layers = spec.layers.len() as u64;
    let mut out: Vec<(Role, Bytes, u64)> = Vec::new();
    for t in &spec.tensors {
        let beyond = t.layer.is_some_and(|i| u64::from(i) >= layers);
        if beyond || matches!(t.role, Role::Encoder | Role::Mtp) {
            continue;
        }
        let bytes = padded(t, stored_type(spec, t, dtype), false)?;
        match out.iter_mut().find(|(r, ..)| *r == t.role) {
            Some(row) => {
                row.1 = row.1.add(bytes)?;
                row.2 += 1;
            }
            None => out.push((t.role, bytes, 1)),
        }
    }
    out.sort_by_key(|(role, ..)| *role);
    Ok(out)
}

/// Whether a layer attends to everything.
const fn full(layer: &LayerSpec) -> bool {
    match layer.mixer {
        Mixer::Attention(a) => matches!(a.reach, Reach::Full),
        Mixer::Latent(_) => true,
        Mixer::State(_) | Mixer::None => false,
    }
}

/// The type in a GGUF file.
fn stored_type(spec: &ModelSpec, t: &TensorSpec, asked: Option<DType>) -> DType {
    if spec.from_headers || !t.dtype.is_scalar() || t.dtype != spec.dtype {
        return t.dtype;
    }
    let plain = t.shape.len() < 2 || matches!(t.role, Role::Router | Role::Position);
    if plain || t.name.contains("conv1d") {
        DType::F32
    } else {
        asked.unwrap_or(t.dtype)
    }
}

/// Bytes of one tensor, its experts stacked, padded as the buffer pads it.
fn padded(t: &TensorSpec, ty: DType, on_device: bool) -> Result<Bytes, SizeOverflow> {
    let plain = ty.bytes(t.elements()?)?.times(t.copies())?;
    if !on_device {
        return plain.round_up(Bytes::new(HOST_ALIGN));
    }
    let row = t.shape.last().copied().unwrap_or(0) % ROW_PADDING;
    let padding = if ty.is_scalar() || row == 0 {
        Bytes::ZERO
    } else {
        ty.bytes(ROW_PADDING - row)?
    };
    plain.add(padding)?.round_up(Bytes::new(DEVICE_ALIGN))
}
