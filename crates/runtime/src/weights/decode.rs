//! Stored elements as f32 and bfloat16.

use plimsoll_kernels::{bf16_from_f32, f32_from_bf16, f32_from_f16};
use plimsoll_units::DType;

use super::blocks;

/// Elements that are decoded at a time: the longest block.
const STRIP: usize = 256;

/// Decodes the elements of whole blocks.
type Decode = fn(bytes: &[u8], out: &mut [f32]);

fn decoder(dtype: DType) -> Option<Decode> {
    Some(match dtype {
        DType::F32 => f32s,
        DType::F16 => f16s,
        DType::Bf16 => bf16s,
        DType::Q4_0 => blocks::q4_0,
        DType::Q4_1 => blocks::q4_1,
        DType::Q5_0 => blocks::q5_0,
        DType::Q5_1 => blocks::q5_1,
        DType::Q8_0 => blocks::q8_0,
        DType::Q4K => blocks::q4_k,
        DType::Q5K => blocks::q5_k,
        DType::Q6K => blocks::q6_k,
        _ => return None,
    })
}

/// Whether elements of this type are read.
pub(super) fn is_known(dtype: DType) -> bool {
    decoder(dtype).is_some()
}

/// Elements as f32: `bytes` are whole blocks of as many elements as `out` has.
pub(super) fn floats(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    if let Some(decode) = decoder(dtype) {
        decode(bytes, out);
    }
}

/// Elements, each plus `plus` (−0 for none), as the nearest bfloat16, ties to even.
pub(super) fn halves(dtype: DType, bytes: &[u8], plus: f32, out: &mut [u16]) {
    if dtype == DType::Bf16 && plus == 0.0 {
        for (out, b) in out.iter_mut().zip(bytes.as_chunks().0) {
            *out = u16::from_le_bytes(*b);
        }
        return;
    }
    let mut strip = [0.0; STRIP];
    let (elements, size) = block(dtype);
    let strip_bytes = STRIP / elements * size;
    for (out, bytes) in out.chunks_mut(STRIP).zip(bytes.chunks(strip_bytes)) {
        let strip = &mut strip[..out.len()];
        floats(dtype, bytes, strip);
        for (out, x) in out.iter_mut().zip(strip) {
            *out = bf16_from_f32(*x + plus);
        }
    }
}

/// Elements and bytes of a block.
pub(super) fn block(dtype: DType) -> (usize, usize) {
    // Both are at most some hundreds.
    let n = |n: u64| usize::try_from(n).unwrap_or(1);
    (n(dtype.block_elements()), n(dtype.block_bytes()))
}

fn f32s(bytes: &[u8], out: &mut [f32]) {
    for (out, b) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32::from_le_bytes(*b);
    }
}

fn bf16s(bytes: &[u8], out: &mut [f32]) {
    for (out, b) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32_from_bf16(u16::from_le_bytes(*b));
    }
}

fn f16s(bytes: &[u8], out: &mut [f32]) {
    for (out, b) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32_from_f16(u16::from_le_bytes(*b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_after_adding() {
        let mut out = [0; 3];
        let bytes: Vec<u8> = [0.5_f32, -1.0, 1.0 / 512.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        halves(DType::F32, &bytes, 1.0, &mut out);
        assert_eq!(out.map(f32_from_bf16), [1.5, 0.0, 1.0]);
    }
}
