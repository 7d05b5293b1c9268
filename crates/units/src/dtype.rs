//! [`DType`]: how elements are stored, scalar types and ggml's block types alike.

use std::fmt;
use std::str::FromStr;

use crate::{Bytes, SizeOverflow};

macro_rules! dtypes {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal, $block:literal, $bytes:literal;)*) => {
        /// The type of stored elements.
        ///
        /// Scalar types hold one element per block (floats below 8 bits as many as fill whole
        /// bytes); ggml's quantised types hold 32 or 256 in a
        /// block with its scales (`ggml-common.h`). The names are those of safetensors headers
        /// for scalars and of ggml for block types, in lower case.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DType {
            $( $(#[$doc])* $variant, )*
        }

        impl DType {
            /// Every type, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The printed name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Elements per block: 1 for scalar types.
            #[must_use]
            pub const fn block_elements(self) -> u64 {
                match self { $(Self::$variant => $block),* }
            }

            /// Bytes per block, scales included.
            #[must_use]
            pub const fn block_bytes(self) -> u64 {
                match self { $(Self::$variant => $bytes),* }
            }
        }
    };
}

dtypes! {
    /// IEEE double.
    F64 = "f64", 1, 8;
    /// IEEE single.
    F32 = "f32", 1, 4;
    /// IEEE half.
    F16 = "f16", 1, 2;
    /// bfloat16.
    Bf16 = "bf16", 1, 2;
    /// 8-bit float, 4 exponent bits, no infinities (OCP).
    F8E4m3 = "f8_e4m3", 1, 1;
    /// 8-bit float, 5 exponent bits (OCP).
    F8E5m2 = "f8_e5m2", 1, 1;
    /// 8-bit power-of-two scale (OCP microscaling).
    F8E8m0 = "f8_e8m0", 1, 1;
    /// 8-bit float, 4 exponent bits, no negative zero (as some AMD hardware has it).
    F8E4m3Fnuz = "f8_e4m3fnuz", 1, 1;
    /// 8-bit float, 5 exponent bits, no negative zero.
    F8E5m2Fnuz = "f8_e5m2fnuz", 1, 1;
    /// 6-bit float, 2 exponent bits: four elements in three bytes (OCP microscaling).
    F6E2m3 = "f6_e2m3", 4, 3;
    /// 6-bit float, 3 exponent bits: four elements in three bytes (OCP microscaling).
    F6E3m2 = "f6_e3m2", 4, 3;
    /// 4-bit float: two elements in a byte (OCP microscaling).
    F4 = "f4", 2, 1;
    /// Complex of two singles.
    C64 = "c64", 1, 8;
    /// Signed 64-bit integer.
    I64 = "i64", 1, 8;
    /// Unsigned 64-bit integer.
    U64 = "u64", 1, 8;
    /// Signed 32-bit integer; GPTQ and AWQ pack eight 4-bit weights in one.
    I32 = "i32", 1, 4;
    /// Unsigned 32-bit integer.
    U32 = "u32", 1, 4;
    /// Signed 16-bit integer.
    I16 = "i16", 1, 2;
    /// Unsigned 16-bit integer.
    U16 = "u16", 1, 2;
    /// Signed 8-bit integer.
    I8 = "i8", 1, 1;
    /// Unsigned 8-bit integer; packed 4-bit formats use it as two nibbles.
    U8 = "u8", 1, 1;
    /// Boolean, one byte.
    Bool = "bool", 1, 1;
    /// ggml: 32 × 4 bits, f16 scale.
    Q4_0 = "q4_0", 32, 18;
    /// ggml: 32 × 4 bits, f16 scale and minimum.
    Q4_1 = "q4_1", 32, 20;
    /// ggml: 32 × 5 bits, f16 scale.
    Q5_0 = "q5_0", 32, 22;
    /// ggml: 32 × 5 bits, f16 scale and minimum.
    Q5_1 = "q5_1", 32, 24;
    /// ggml: 32 × 8 bits, f16 scale.
    Q8_0 = "q8_0", 32, 34;
    /// ggml: 32 × 8 bits, f16 scale and sum.
    Q8_1 = "q8_1", 32, 36;
    /// ggml: 128 × 1 bit, f16 scale.
    Q1_0 = "q1_0", 128, 18;
    /// ggml: 64 × 2 bits, f16 scale.
    Q2_0 = "q2_0", 64, 18;
    /// ggml K-quant, 2 bits.
    Q2K = "q2_k", 256, 84;
    /// ggml K-quant, 3 bits.
    Q3K = "q3_k", 256, 110;
    /// ggml K-quant, 4 bits.
    Q4K = "q4_k", 256, 144;
    /// ggml K-quant, 5 bits.
    Q5K = "q5_k", 256, 176;
    /// ggml K-quant, 6 bits.
    Q6K = "q6_k", 256, 210;
    /// ggml K-quant, 8 bits (intermediate).
    Q8K = "q8_k", 256, 292;
    /// ggml i-quant, 2.06 bits.
    Iq2Xxs = "iq2_xxs", 256, 66;
    /// ggml i-quant, 2.31 bits.
    Iq2Xs = "iq2_xs", 256, 74;
    /// ggml i-quant, 3.06 bits.
    Iq3Xxs = "iq3_xxs", 256, 98;
    /// ggml i-quant, 1.56 bits.
    Iq1S = "iq1_s", 256, 50;
    /// ggml i-quant, 4.5 bits, non-linear.
    Iq4Nl = "iq4_nl", 32, 18;
    /// ggml i-quant, 3.44 bits.
    Iq3S = "iq3_s", 256, 110;
    /// ggml i-quant, 2.5 bits.
    Iq2S = "iq2_s", 256, 82;
    /// ggml i-quant, 4.25 bits.
    Iq4Xs = "iq4_xs", 256, 136;
    /// ggml i-quant, 1.75 bits.
    Iq1M = "iq1_m", 256, 56;
    /// ggml ternary, 1.69 bits.
    Tq1_0 = "tq1_0", 256, 54;
    /// ggml ternary, 2.06 bits.
    Tq2_0 = "tq2_0", 256, 66;
    /// ggml microscaling: 32 × fp4, one e8m0 scale.
    Mxfp4 = "mxfp4", 32, 17;
    /// ggml: 64 × fp4 in four sub-blocks with e4m3 scales.
    Nvfp4 = "nvfp4", 64, 36;
}

/// A name that is no element type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a known element type")]
pub struct ParseDTypeError(pub String);

impl DType {
    /// Bytes of a row of `elements`; a row of a block type takes whole blocks.
    ///
    /// # Errors
    /// [`SizeOverflow`] past 2^64 − 1 bytes.
    pub fn bytes(self, elements: u64) -> Result<Bytes, SizeOverflow> {
        Bytes::product([elements.div_ceil(self.block_elements()), self.block_bytes()])
    }

    /// Bits per element, scales included.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "small constants, for printing")]
    pub fn bits_per_element(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_elements() as f64
    }

    /// Whether elements stand alone, without a block's shared scale.
    #[must_use]
    pub const fn is_scalar(self) -> bool {
        self.block_elements() == 1
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = ParseDTypeError;

    /// Reads our names, torch's (`bfloat16`, `torch.float16`), and safetensors' (`BF16`).
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let lower = s.trim().trim_start_matches("torch.").to_ascii_lowercase();
        let name = match lower.as_str() {
            "float64" | "double" => "f64",
            "float32" | "float" => "f32",
            "float16" | "half" | "fp16" => "f16",
            "bfloat16" => "bf16",
            "float8_e4m3fn" | "f8_e4m3fn" | "fp8" | "fp8_e4m3" => "f8_e4m3",
            "float8_e5m2" | "fp8_e5m2" => "f8_e5m2",
            "float8_e8m0fnu" => "f8_e8m0",
            "int64" => "i64",
            "int32" => "i32",
            "int16" => "i16",
            "int8" => "i8",
            "uint8" => "u8",
            other => other,
        };
        Self::ALL
            .iter()
            .copied()
            .find(|d| d.name() == name)
            .ok_or_else(|| ParseDTypeError(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for &d in DType::ALL {
            assert_eq!(d.name().parse(), Ok(d));
        }
    }

    #[test]
    fn block_types_take_whole_blocks() {
        assert_eq!(DType::Q4_0.bytes(32), Ok(Bytes::new(18)));
        assert_eq!(DType::Q4_0.bytes(33), Ok(Bytes::new(36)));
        assert_eq!(DType::Bf16.bytes(33), Ok(Bytes::new(66)));
        assert!((DType::Q4K.bits_per_element() - 4.5).abs() < 1e-12);
    }
}
