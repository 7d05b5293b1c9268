//! ggml's block types (`ggml-common.h`, `ggml-quants.c`: `dequantize_row_*`): the same operations in the same order.

use plimsoll_kernels::f32_from_f16;

/// Elements of a block of the simple types, and of a sub-block of the others.
const SMALL: usize = 32;
/// Elements of a K-quant's block.
const LARGE: usize = 256;

fn f16(b: &[u8]) -> f32 {
    f32_from_f16(u16::from_le_bytes([b[0], b[1]]))
}

/// Low nibbles, then high ones.
fn nibbles(qs: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = out.split_at_mut(qs.len());
    for (i, q) in qs.iter().enumerate() {
        low[i] = value(i, q & 15);
        high[i] = value(i + qs.len(), q >> 4);
    }
}

/// scale; 16 bytes of nibbles around 8.
pub(super) fn q4_0(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(SMALL)) {
        let d = f16(b);
        nibbles(&b[2..], out, |_, q| f32::from(i16::from(q) - 8) * d);
    }
}

/// scale, minimum; 16 bytes of nibbles.
pub(super) fn q4_1(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(20).zip(out.chunks_exact_mut(SMALL)) {
        let (d, m) = (f16(b), f16(&b[2..]));
        nibbles(&b[4..], out, |_, q| f32::from(q) * d + m);
    }
}

/// scale; 32 fifth bits; 16 bytes of nibbles; around 16.
pub(super) fn q5_0(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(22).zip(out.chunks_exact_mut(SMALL)) {
        let (d, high) = (f16(b), u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
        nibbles(&b[6..], out, |i, q| {
            let fifth = (high >> i & 1) as i16;
            f32::from((i16::from(q) | fifth << 4) - 16) * d
        });
    }
}

/// scale, minimum; 32 fifth bits; 16 bytes of nibbles.
pub(super) fn q5_1(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(24).zip(out.chunks_exact_mut(SMALL)) {
        let (d, m) = (f16(b), f16(&b[2..]));
        let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        nibbles(&b[8..], out, |i, q| {
            let fifth = (high >> i & 1) as u8;
            f32::from(q | fifth << 4) * d + m
        });
    }
}

/// scale; 32 signed bytes.
pub(super) fn q8_0(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(34).zip(out.chunks_exact_mut(SMALL)) {
        let d = f16(b);
        for (out, q) in out.iter_mut().zip(&b[2..]) {
            *out = f32::from(*q as i8) * d;
        }
    }
}

/// Scale and minimum of sub-block `i`, 6 bits each, of 12 bytes (`get_scale_min_k4`).
fn scale_min(s: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = if i < 4 {
        (s[i] & 63, s[i + 4] & 63)
    } else {
        (
            s[i + 4] & 15 | s[i - 4] >> 6 << 4,
            s[i + 4] >> 4 | s[i] >> 6 << 4,
        )
    };
    (scale.into(), min.into())
}

/// Eight sub-blocks, in pairs: 32 low nibbles, 32 high ones; `fifth(i, l)` is the fifth bit of element l of sub-block i.
fn k_nibbles(b: &[u8], qs: &[u8], out: &mut [f32], fifth: impl Fn(usize, usize) -> u8) {
    let (d, min) = (f16(b), f16(&b[2..]));
    for (i, out) in out.chunks_exact_mut(SMALL).enumerate() {
        let (s, m) = scale_min(&b[4..16], i);
        let (s, m) = (d * s, min * m);
        let qs = &qs[i / 2 * SMALL..][..SMALL];
        for (l, (out, q)) in out.iter_mut().zip(qs).enumerate() {
            let q = if i % 2 == 0 { q & 15 } else { q >> 4 };
            *out = s * f32::from(q | fifth(i, l) << 4) - m;
        }
    }
}

/// scale, scale of minima, 12 bytes of both per sub-block; 128 bytes of nibbles.
pub(super) fn q4_k(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(144).zip(out.chunks_exact_mut(LARGE)) {
        k_nibbles(b, &b[16..], out, |_, _| 0);
    }
}

/// As q4_k, with 32 bytes of fifth bits before the nibbles: bit i for sub-block i.
pub(super) fn q5_k(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(176).zip(out.chunks_exact_mut(LARGE)) {
        k_nibbles(b, &b[48..], out, |i, l| b[16 + l] >> i & 1);
    }
}

/// 128 bytes of low nibbles, 64 of two upper bits, 16 signed scales, scale; around 32.
pub(super) fn q6_k(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.chunks_exact(210).zip(out.chunks_exact_mut(LARGE)) {
        let d = f16(&b[208..]);
        // Four quarters of 32 in each half: nibbles low, low, high, high; upper bits 0, 2, 4, 6.
        for (i, out) in out.chunks_exact_mut(SMALL).enumerate() {
            let (half, quarter) = (i / 4, i % 4);
            let low = &b[half * 64 + quarter % 2 * SMALL..][..SMALL];
            let high = &b[128 + half * SMALL..][..SMALL];
            for (l, out) in out.iter_mut().enumerate() {
                let q = low[l] >> (quarter / 2 * 4) & 15 | (high[l] >> (2 * quarter) & 3) << 4;
                let scale = f32::from(b[192 + half * 8 + quarter * 2 + l / 16] as i8);
                *out = d * scale * f32::from(i16::from(q) - 32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_units::DType;

    use super::super::decode;

    /// Values of ggml's own Python package (`tools/oracles/gguf_blocks.py`).
    #[test]
    fn blocks_have_the_values_of_ggml() {
        let golden = include_str!("golden/gguf_blocks.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let golden = golden.as_object().unwrap();
        assert_eq!(golden.len(), 8);
        for (name, case) in golden {
            let dtype = DType::ALL.iter().find(|d| d.name() == name).unwrap();
            let hex = case["bytes"].as_str().unwrap();
            let bytes: Vec<u8> = (0..hex.len() / 2)
                .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
                .collect();
            let want: Vec<f32> = case["values"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap() as f32)
                .collect();
            let mut got = vec![0.0; want.len()];
            decode::floats(*dtype, &bytes, &mut got);
            assert_eq!(
                bytes.len() as u64,
                dtype.bytes(want.len() as u64).unwrap().get()
            );
            assert_eq!(got, want, "{name}");
            let mut halves = vec![0; want.len()];
            decode::halves(*dtype, &bytes, -0.0, &mut halves);
            let rounded: Vec<u16> = want
                .iter()
                .map(|x| plimsoll_kernels::bf16_from_f32(*x))
                .collect();
            assert_eq!(halves, rounded, "{name}");
        }
    }
}
