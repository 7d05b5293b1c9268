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

/// Elements of MXFP4 that share a scale.
pub(super) const MXFP4_BLOCK: u64 = 32;

/// Elements of MXFP4 as published with gpt-oss, two a byte, the low one first, and one power of two for each 32: every
/// product is a bfloat16. OCP Microscaling Formats 1.0, sections 5.3.3 and 5.4.1.
pub(super) fn mxfp4(blocks: &[u8], scales: &[u8], out: &mut [u16]) {
    const SIZES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for ((block, scale), out) in blocks
        .chunks_exact(16)
        .zip(scales)
        .zip(out.chunks_exact_mut(32))
    {
        let scale = match scale {
            0 => f32::MIN_POSITIVE / 2.0,
            255 => f32::NAN,
            e => f32::from_bits(u32::from(*e) << 23),
        };
        let value = |code: u8| {
            let size = SIZES[usize::from(code & 7)] * scale;
            bf16_from_f32(if code & 8 == 0 { size } else { -size })
        };
        for (out, byte) in out.chunks_exact_mut(2).zip(block) {
            (out[0], out[1]) = (value(byte & 15), value(byte >> 4));
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
    fn mxfp4_by_its_definition() {
        // Sign, two bits of an exponent with bias 1, one bit of a mantissa; a scale is a power of two with bias 127.
        // All sixteen codes, twice.
        let codes: [u8; 16] =
            std::array::from_fn(|i| [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe][i % 8]);
        for scale in 0..=255_u8 {
            let mut out = [0; 32];
            mxfp4(&codes, &[scale], &mut out);
            for (i, got) in out.into_iter().enumerate() {
                let i = i % 16;
                let (e, m) = ((i >> 1 & 3) as i32, (i & 1) as f64);
                let size = match e {
                    0 => m / 2.0,
                    _ => (1.0 + m / 2.0) * 2_f64.powi(e - 1),
                };
                let sign = if i >> 3 & 1 == 1 { -1.0 } else { 1.0 };
                let want = sign * size * 2_f64.powi(i32::from(scale) - 127);
                let got = f64::from(f32_from_bf16(got));
                match scale {
                    255 => assert!(got.is_nan()),
                    // 6 times the largest power is beyond both f32 and bfloat16.
                    _ if want.abs() > f64::from(f32::MAX) => assert!(got.is_infinite()),
                    _ => assert_eq!(got.to_bits(), want.to_bits(), "{i} {scale}"),
                }
            }
        }
    }

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
